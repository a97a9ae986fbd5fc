"""Speed of the data loader, from the order of samples to packed batches with masks and labels; and its memory.

Prints one JSON object. `speed`: tokens a second (median of --rounds passes over warm data) of one worker process and of
the same work done in this process, by the clock and by the processor time of what does it, for some capacities of packs
and numbers of ranks, with 32 sequences a rank and update. `many`: a corpus of --sequences short sequences, and one of a
hundredth of it: seconds to open it and make the first update, on a disk's and on warm pages; memory of the process's
own (RssAnon) before and after 200 updates spread over the corpus. The original's loader: 122,000 tokens a second.
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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.corpus import make_project
from benchmarks.many import write_many
from benchmarks.resume import multiply_data
from lucavirus.config import Run
from lucavirus.dataset import Dataset, classes_of
from lucavirus.loader import Batches, updates
from lucavirus.packs import Pack
from lucavirus.plan import Plan
from lucavirus.vocabularies import read_vocabularies

ORIGINAL_TOKENS_PER_S = 122_000
SEQUENCES_PER_RANK = 32
CAPACITIES = (3074, 16384)
RANKS = (1, 8, 512)
# Every update of the most ranks must find its sequences: the sample is repeated until it has as many as these.
_ENOUGH = 4 * SEQUENCES_PER_RANK * max(RANKS)
_SPREAD_UPDATES = 200
_RUN = Run(worker_num=1)


def open_batches(data: Path, capacity: int, ranks: int) -> Batches:
    """The batches of rank 0 of `ranks`, with all labels, as the full-size recipe reads them."""
    run = _RUN.model_copy(update={"gpus": ranks, "gradient_accumulation_steps": SEQUENCES_PER_RANK})
    classes = classes_of(read_vocabularies(data / "vocabularies"), run.tasks)
    dataset = Dataset(data, run.molecules, "train", run.model.max_length, run.tasks)
    return Batches(dataset, run, Plan.of(run, len(dataset)), classes, capacity, 0, ranks)


def _tokens(packs: Iterable[Pack]) -> int:
    return sum(int(pack.lengths.sum()) for pack in packs)


def _in_process(batches: Batches, count: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = sum(_tokens(batches.packs(update)) for update in range(count))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"tokens_per_s": tokens / wall, "tokens_per_cpu_s": tokens / cpu}


def _from_worker(batches: Batches, count: int) -> dict[str, float]:
    """From the first update that arrives to the last, so that the start of the process is left out."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arriving: Iterator[list[Pack]] = updates(batches, 0, count, torch.device("cpu"))
    first = _tokens(next(arriving))
    started = time.perf_counter()
    tokens = sum(_tokens(packs) for packs in arriving)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"tokens_per_s": tokens / wall, "tokens_per_cpu_s": (first + tokens) / cpu}


def measure_speed(data: Path, count: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of `count` updates, the first ones of a run, for each capacity and number of ranks."""
    found = {}
    for ranks in RANKS:
        for capacity in CAPACITIES:
            batches = open_batches(data, capacity, ranks)
            _in_process(batches, count)  # reads all pages once
            ways = {"one_worker": _from_worker, "in_process": _in_process}
            passes = [{name: way(batches, count) for name, way in ways.items()} for _ in range(rounds)]
            case = f"{ranks} ranks, packs of {capacity}"
            found[case] = {name: _medians([done[name] for done in passes]) for name in ways}
    return found


def _medians(passes: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(done[name] for done in passes) for name in passes[0]}


def anonymous_mb() -> float:
    """MiB of this process that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def read_spread(data: Path, count: int) -> None:
    """Open a corpus and make updates all over it, in this process; prints seconds and memory."""
    started = time.perf_counter()
    run = _RUN
    dataset = Dataset(data, run.molecules, "train", run.model.max_length, run.tasks)
    batches = Batches(dataset, run, Plan.of(run, len(dataset)), {}, CAPACITIES[1], 0, 1)
    batches.packs(0)
    first, before = time.perf_counter() - started, anonymous_mb()
    last = batches.plan.updates_per_epoch - 1
    tokens = sum(_tokens(batches.packs(number * last // count)) for number in range(count))
    print(json.dumps({"first_update_s": first, "before_mb": before, "after_mb": anonymous_mb(), "tokens": tokens}))


def _spread(data: Path, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--spread", str(data), "--updates", str(count)]
    done = subprocess.run(command, check=True, capture_output=True)
    took: dict[str, float] = json.loads(done.stdout)
    return took


def measure_many(folder: Path, sequences: int) -> dict[str, Any]:
    """Open and read a corpus of that many sequences, with cold pages and with warm ones."""
    data = folder / f"many-{sequences}"
    residues = write_many(data, sequences)
    files = list(data.rglob("*.h5"))
    for path in files:
        _forget(path)
    cold = _spread(data, 0)["first_update_s"]
    for path in files:
        _read(path)
    took = _spread(data, _SPREAD_UPDATES)
    return {
        "sequences": sequences, "residues": residues, "bytes": sum(path.stat().st_size for path in files),
        "first_update_cold_s": cold, "first_update_s": took["first_update_s"],
        "rss_anon_before_mb": took["before_mb"], "rss_anon_after_mb": took["after_mb"],
    }  # fmt: skip


def _forget(path: Path) -> None:
    """Drop a file's pages from memory; it was flushed when it was written."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _read(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def measure(folder: Path, source: Path | None, count: int, rounds: int, sequences: int) -> dict[str, Any]:
    """Make the data in `folder` and measure; returns what is printed."""
    data = make_project(folder, _RUN, source).parent
    multiply_data(data / "settings.json", -(-_ENOUGH // len(open_batches(data, CAPACITIES[0], 1).dataset)))
    return {
        "original_tokens_per_s": ORIGINAL_TOKENS_PER_S, "cores": len(os.sched_getaffinity(0)),
        "speed": measure_speed(data, count, rounds),
        "many": [measure_many(folder, size) for size in (sequences // 100, sequences)],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, help="folder with OpenVirus part_*.csv.gz and labels/; default: made up")
    parser.add_argument("--updates", type=int, default=100, help="updates of one pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=200_000, help="sequences of the large corpus")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument("--spread", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.spread:
        read_spread(args.spread, args.updates)
        return
    torch.set_num_threads(1)  # what is measured is a worker: who receives its packs must not take its core
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(json.dumps(measure(Path(folder), args.csv, args.updates, args.rounds, args.sequences)))


if __name__ == "__main__":
    main()
