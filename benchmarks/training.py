"""Tokens a second, MFU and memory of a training as users run it: data loader, packs and updates, on GPUs or the CPU.

By default the model of full size. Under torchrun all ranks train together. The first rank prints one JSON object:
`capacity_s` to place the model and search the largest pack, which compiles (else `first_update_s` does), and of the
updates after `--warm-up` medians: tokens a second of all ranks, MFU (the encoder's work on real tokens beside the
peak in bf16; 0 where that is not known), and the shares of the time spent waiting for data and for the reduction of
gradients. The first updates of a GPU are slower, 50 were enough (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.corpus import head_sizes, make_project
from lucavirus import memory
from lucavirus.compute import set_determinism
from lucavirus.config import Model, Run
from lucavirus.distributed import Ranks, joined
from lucavirus.flops import encoder_flops, peak_flops
from lucavirus.loader import Batches, updates
from lucavirus.model import LucaVirus, count_parameters
from lucavirus.packs import Pack
from lucavirus.prepare import prepare
from lucavirus.start import make_updater
from lucavirus.state import PLACE, State
from lucavirus.train import peak_memory_mb
from lucavirus.update import Updater

_PROFILED_UPDATES, _PROFILED_LINES = 2, 40


def make_run(args: argparse.Namespace, gpus: int) -> Run:
    """The run that is measured; every setting but those of the arguments is the recipe's."""
    model = Model(
        hidden_size=args.hidden, num_attention_layers=args.layers, num_attention_heads=args.attention_heads,
        head_size=head_sizes(args.heads),
    )  # fmt: skip
    return Run(
        gpus=gpus, gradient_accumulation_steps=args.sequences, worker_num=2, device=args.device, model=model,
        precision=args.precision, compile=args.compile, parallel=args.parallel, recomputation=args.recomputation,
        deterministic=args.deterministic, max_tokens_per_pack=args.max_tokens_per_pack or "auto",
    )  # fmt: skip


def measure(run: Run, data: Path, ranks: Ranks, warm_up: int, count: int, profile_to: Path | None) -> dict[str, Any]:
    """Make `count` updates after those to warm up; `profile_to` is where the kernels of two more are listed."""
    set_determinism(run)
    prepared = prepare("full", run, data)
    memory.prepare_for_model(prepared.architecture.weights)
    model, started = LucaVirus(prepared.architecture, run.seed), time.perf_counter()
    updater = make_updater(prepared, model, State(resolved={"max_steps": 1000}), ranks)
    capacity_s = time.perf_counter() - started
    batches = Batches.of(prepared, updater.compute, ranks)
    end = warm_up + count
    last = end + (_PROFILED_UPDATES if profile_to else 0)
    with closing(updates(batches, 0, last, ranks.device)) as arriving:
        made = [_update(updater, number, arriving, ranks) for number in range(end)]
        if profile_to:
            _list_kernels(updater, end, arriving, ranks, profile_to)
    rows = made[warm_up:]
    peak = peak_flops(updater.compute.device_name)
    for row in rows:
        work = encoder_flops(prepared.architecture, row["tokens"], row["squares"])
        row["mfu"] = work / (row["seconds"] * peak * ranks.world_size) if peak else 0.0
        row["tokens_per_s"] = row["tokens"] / row["seconds"]
        row["positions_filled"] = row["tokens"] / row["positions"]
        row["data_share"], row["reduce_share"] = (row[name] / row["seconds"] for name in ("data_s", "reduce_s"))
    shown = ("tokens_per_s", "mfu", "positions_filled", "data_share", "reduce_share", "seconds", "tokens")
    return {
        "device": updater.compute.device_name, "torch": torch.__version__, "ranks": ranks.world_size,
        "precision": str(updater.compute.dtype), "attention": updater.compute.attention,
        "parallel": updater.compute.parallel, "parameters": count_parameters(model),
        "capacity": updater.compute.capacity, "capacity_s": capacity_s,
        "first_update_s": made[0]["seconds"], "updates": count,
        **{name: statistics.median(row[name] for row in rows) for name in shown},
        "peak_memory_mb": peak_memory_mb(ranks.device),
    }  # fmt: skip


def _update(updater: Updater, number: int, arriving: Iterator[list[Pack]], ranks: Ranks) -> dict[str, float]:
    """One update, to where the norm of its gradient is read: AdamW's time on a GPU is in that of the next one."""
    started = time.perf_counter()
    packs = next(arriving)
    waited = time.perf_counter() - started
    found, _ = updater.step(number + 1, packs, {})
    seconds = time.perf_counter() - started
    counts = {name: found[PLACE[name]] for name in ("tokens", "squares", "positions")}
    return counts | {"seconds": seconds, "data_s": waited, "reduce_s": updater.reduce_watch.read()}


def _list_kernels(updater: Updater, number: int, arriving: Iterator[list[Pack]], ranks: Ranks, out: Path) -> None:
    on_gpu = ranks.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) if ranks.first else nullcontext() as found:
        for update in range(number, number + _PROFILED_UPDATES):
            _update(updater, update, arriving, ranks)
    if found:
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        out.write_text(found.key_averages().table(sort_by=order, row_limit=_PROFILED_LINES))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="for the data, made there once and kept; default: a temporary one")
    parser.add_argument("--csv", type=Path, help="folder with part_*.csv.gz and labels/; default: made-up sequences")
    parser.add_argument("--hidden", type=int, default=2560)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--attention-heads", type=int, default=20)
    parser.add_argument("--heads", type=float, default=1.0, help="part of SPEC's head sizes")
    parser.add_argument("--sequences", type=int, default=32, help="of each rank and update")
    parser.add_argument("--warm-up", type=int, default=1, help="updates before those that are measured")
    parser.add_argument("--updates", type=int, default=20, help="measured updates")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--parallel", choices=("auto", "ddp", "fsdp"), default="auto")
    parser.add_argument("--max-tokens-per-pack", type=int, help="default: the largest that fits")
    parser.add_argument("--recomputation", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--profile", type=Path, help="write the kernels of two more updates there, the dearest first")
    args = parser.parse_args()
    with joined(args.device) as ranks, tempfile.TemporaryDirectory() as temporary:
        if ranks.world_size > 1 and not args.folder:
            parser.error("several ranks need a --folder that all of them see")
        folder = args.folder or Path(temporary)
        data, run = folder / "results/benchmark", make_run(args, ranks.world_size)
        if ranks.first and not data.exists():
            make_project(folder, run, args.csv)
        ranks.barrier()
        result = measure(run, data, ranks, args.warm_up, args.updates, args.profile)
        if ranks.first:
            print(json.dumps(result))


if __name__ == "__main__":
    main()
