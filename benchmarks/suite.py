"""All benchmarks at a small size, one after the other: some minutes on two cores.

Writes --out, {name: what it printed, with `seconds` taken; `machine`: processor, cores, load, torch, date}, whole or
not at all, and prints the main figures. The first benchmark that fails ends the suite with its message.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lucavirus.files import replace_json

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "bench.json"
# Arguments of each benchmark.
SMALL: dict[str, tuple[str, ...]] = {
    "tokenize_source": ("--megabases", "130", "--long-megabytes", "40", "--repeats", "1"),
    "batches": ("--updates", "20", "--rounds", "3", "--sequences", "200000"),
    "packing": ("--updates", "20"),
    "step": ("--heads", "0.1", "--precision", "fp32", "--updates", "1", "--rounds", "1"),
    "training": ("--hidden", "64", "--layers", "2", "--attention-heads", "4", "--heads", "0.1", "--updates", "3"),
    "resume": ("--repeats", "3"),
    "save": ("--millions", "50", "--repeats", "3"),
}
# Which figures the table shows, by the beginning of the keys on the way to them; of the others all.
SHOWN: dict[str, tuple[str, ...]] = {
    "tokenize_source": ("cases genomes, windows", "cases prot", "cases CSV", "two_processes", "gzip", "long_record"),
    "batches": ("speed 8 ranks, packs of 16384", "many 1 first", "many 1 rss"),
    "packing": ("worst",),
}


class BenchmarkFailed(RuntimeError):
    """A benchmark ended with an error, or printed something else than one JSON object."""


def run_benchmark(script: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run one benchmark; returns what it printed, with `seconds`. Raises BenchmarkFailed with its last words."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkFailed(f"{script.name} failed (exit status {done.returncode}):\n{done.stderr[-6000:].strip()}")
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise BenchmarkFailed(f"{script.name} printed no JSON object: {done.stdout[-300:]!r}") from error
    return result | {"seconds": round(time.perf_counter() - started, 1)}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _processor(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0],
        "torch": version("torch"), "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def run_suite(folder: Path, benchmarks: Mapping[str, Sequence[str]], out: Path) -> dict[str, Any]:
    """Run `folder/{name}.py` for each benchmark and write `out`; returns what was written."""
    results: dict[str, Any] = {"machine": machine()}
    for name, arguments in benchmarks.items():
        results[name] = run_benchmark(folder / f"{name}.py", arguments)
        print(f"{name}: {results[name]['seconds']} s", file=sys.stderr, flush=True)
    replace_json(out, results)
    return results


def figures(result: Any, path: str = "") -> dict[str, float]:
    """All numbers of a result, by the keys on the way to them joined by blanks."""
    if isinstance(result, Mapping):
        pairs = result.items()
    elif isinstance(result, Sequence) and not isinstance(result, str):
        pairs = dict(enumerate(result)).items()
    else:
        return {path: result} if isinstance(result, int | float) else {}
    return {name: value for key, part in pairs for name, value in figures(part, f"{path} {key}".strip()).items()}


def table(results: Mapping[str, Any]) -> str:
    """The seconds and the main figures of each benchmark, a line each."""
    lines = []
    for name in results:
        if name != "machine":
            found = figures(results[name])
            lines.append(f"{name}: {found.pop('seconds')} s")
            shown = {key: value for key, value in found.items() if key.startswith(SHOWN.get(name, ""))}
            lines += [f"  {key:<60} {value:>14,.4g}" for key, value in shown.items()]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    try:
        results = run_suite(Path(__file__).parent, SMALL, args.out)
    except BenchmarkFailed as error:
        sys.exit(f"error: {error}")
    print(table(results))
    print(f"all figures: {args.out}")


if __name__ == "__main__":
    main()
