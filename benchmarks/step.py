"""Tokens a second and peak memory of training steps on the CPU, beside a plain stand-in of the original's step.

The model has hidden size 256, 4 layers, 8 heads, nine tasks and max_length 3074; an update has 32 sequences. --heads 1
are the head sizes of SPEC section 2, 0.1 a tenth of them. Both run by turns, each in a process of its own. Prints one
JSON object: medians over all updates but the first of each process, per second of wall-clock time and of CPU time, the
share of this machine's own matrix-multiply peak (encoder and heads, real tokens only), and ours over the stand-in's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.corpus import head_sizes, make_project
from benchmarks.stand_in import StandIn
from lucavirus import memory
from lucavirus.capacity import training_capacity
from lucavirus.compute import make_compute
from lucavirus.config import Model, Run
from lucavirus.distributed import ALONE
from lucavirus.flops import encoder_flops
from lucavirus.launch import ROOT, TUNING
from lucavirus.loader import Batches
from lucavirus.model import Architecture, LucaVirus
from lucavirus.packing import make_pack
from lucavirus.packs import Pack
from lucavirus.prepare import Prepared, prepare
from lucavirus.update import Updater

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_run(heads: float, precision: str) -> Run:
    """The run that is measured."""
    model = Model(hidden_size=256, num_attention_layers=4, num_attention_heads=8, head_size=head_sizes(heads))
    return Run(gpus=1, gradient_accumulation_steps=32, worker_num=0, device="cpu", model=model,
               precision="bf16" if precision == "bf16" else "fp32")  # fmt: skip


def head_flops(architecture: Architecture, packs: list[Pack]) -> float:
    """FLOPs of the heads on the rows that have a label, forward and backward."""
    total = 0.0
    for pack in packs:
        for task, labels in pack.labels.items():
            width, classes = architecture.heads.get(task, (architecture.hidden_size, 39))
            total += 6.0 * float(labels.counts.sum()) * (architecture.hidden_size * width + width * classes)
    return total


def one(kind: str, run: Run, data: Path, updates: int) -> dict[str, Any]:
    """Measure one kind of step in this process."""
    prepared = prepare("full", run, data)
    if kind == "ours":
        memory.prepare_for_model(prepared.architecture.weights)
    model = LucaVirus(prepared.architecture, run.seed)
    step, batches = _ours(prepared, model) if kind == "ours" else _stand_in(prepared, model)
    rows = []
    for update in range(updates + 1):
        packs = batches(update)
        wall, cpu = time.perf_counter(), time.process_time()
        step(update, packs)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        sizes = [pack.sizes() for pack in packs]
        tokens, squares = (sum(size[name] for size in sizes) for name in ("tokens", "squares"))
        work = encoder_flops(prepared.architecture, tokens, squares) + head_flops(prepared.architecture, packs)
        rows.append({"tokens": tokens, "wall_s": wall, "cpu_s": cpu, "flops": work})
    return {"updates": rows[1:], "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _ours(prepared: Prepared, model: LucaVirus) -> tuple[Any, Any]:
    run = prepared.run
    updater = Updater(model, run, make_compute(run, torch.device("cpu")), 1000, ALONE)
    updater.compute = updater.compute.with_capacity(training_capacity(updater, prepared.classes))
    batches = Batches.of(prepared, updater.compute, ALONE)
    return lambda update, packs: updater.step(update + 1, packs, {}), batches.packs


def _stand_in(prepared: Prepared, model: LucaVirus) -> tuple[Any, Any]:
    run, plan = prepared.run, prepared.plan
    stand_in = StandIn(model, run, run.tasks)

    def packs(update: int) -> list[Pack]:
        samples = prepared.train.samples(plan.update_samples(update))
        return [make_pack([sample], run, prepared.classes, 0) for sample in samples]

    return lambda update, packs: stand_in.step(packs), packs


def matmul_peak(precision: str, repeats: int = 10) -> float:
    """FLOP/s of this machine in matrix products of 2048 x 2048, the best of torch's libraries."""
    a, b = (torch.randn(2048, 2048, dtype=DTYPES[precision]) for _ in range(2))
    one_dnn: Any = torch.ops.mkldnn._linear_pointwise
    products: list[Callable[[], Tensor]] = [lambda: torch.mm(a, b), lambda: one_dnn(a, b, None, "none", [], "")]
    best = float("inf")
    for product in products * repeats:
        started = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best


def summary(results: list[dict[str, Any]], peak: float) -> dict[str, float]:
    """Medians over the updates of some processes."""
    updates = [update for result in results for update in result["updates"]]
    return {
        "tokens_per_s": statistics.median(u["tokens"] / u["wall_s"] for u in updates),
        "tokens_per_cpu_s": statistics.median(u["tokens"] / u["cpu_s"] for u in updates),
        "share_of_matmul_peak": statistics.median(u["flops"] / u["wall_s"] for u in updates) / peak,
        "peak_rss_mb": max(result["peak_rss_mb"] for result in results),
    }


def compare(data: Path, heads: float, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run both by turns. The stand-in computes in fp32, as the original does, whatever `precision` is."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "stand_in": []}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(args.threads)}
    for _ in range(args.rounds):
        for kind, results in found.items():
            # The launcher's variables are a part of ours.
            tuned = {**TUNING, **env} if kind == "ours" else env
            kind_precision = precision if kind == "ours" else "fp32"
            words = ("--one", kind, "--data", data, "--heads", heads, "--precision", kind_precision,
                     "--updates", args.updates)  # fmt: skip
            done = subprocess.run(
                [sys.executable, __file__, *map(str, words)], env=tuned, check=True, stdout=subprocess.PIPE, text=True
            )
            results.append(json.loads(done.stdout))
    peak = matmul_peak(precision)
    summaries = {kind: summary(results, peak) for kind, results in found.items()}
    ours, plain = summaries["ours"], summaries["stand_in"]
    return {
        "heads": heads, "precision": precision, "matmul_peak_gflops": peak / 1e9, **summaries,
        "speed_ratio": ours["tokens_per_s"] / plain["tokens_per_s"],
        "cpu_ratio": ours["tokens_per_cpu_s"] / plain["tokens_per_cpu_s"],
        "memory_ratio": ours["peak_rss_mb"] / plain["peak_rss_mb"],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, help="folder with part_*.csv.gz and labels/; default: made-up sequences")
    parser.add_argument("--heads", type=float, nargs="+", default=[1.0, 0.1], help="parts of SPEC's head sizes")
    parser.add_argument("--precision", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--updates", type=int, default=3, help="updates measured in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=("ours", "stand_in"), help="measure one kind here, on the data of --data")
    parser.add_argument("--data", type=Path, help="with --one: the results folder of a project")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, make_run(args.heads[0], args.precision[0]), args.data, args.updates)))
        return
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        data = make_project(Path(folder), make_run(1.0, "fp32"), args.csv).parent
        found = [compare(data, heads, precision, args) for heads in args.heads for precision in args.precision]
    print(json.dumps({"threads": args.threads, "torch": torch.__version__, "results": found}))


if __name__ == "__main__":
    main()
