"""Speed of the tokenize stage, from FASTA or labelled CSV to finished shards, on made-up genomes and proteins.

Prints one JSON object: residues a second (median of --repeats), by the clock and by the processor time of the process
(start-up aside); two ranks beside one (median of pairs), started by torchrun as the rule does, and what two processes
of pure computation reach here beside one; a gzip file beside Python's gzip reading it to its end; peak memory, also
with one record of --long-megabytes; and the published speed of the original's tokenizer. The file system is that of
--folder.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import label_files, write_csv
from lucavirus.config import Run, Settings
from lucavirus.config_load import read_settings
from lucavirus.distributed import joined
from lucavirus.launch import environment, program
from lucavirus.tokenization import tokenize_source
from lucavirus.vocabularies import build_vocabularies

# Residues a second of the original's tokenizer, as published.
ORIGINAL = {"gene": 0.26e6, "prot": 0.16e6}
# Letters, length from and to (exclusive) of a record.
MADE_UP = {"gene": ("ACGT", 3_000, 30_001), "prot": ("LAGVSERTIDPKQNFYMHWC", 100, 501)}
CASES = {"genomes, windows": ("gene", 3072), "genomes, whole": ("gene", None), "proteins": ("prot", None)}
WIDTH = 80


def write_fasta(path: Path, kind: str, residues: int, length: int | None = None, seed: int = 1) -> None:
    """Write about that many residues as records of `length`, or of the usual lengths, in lines of 80."""
    letters, low, high = MADE_UP[kind]
    codes, dice = np.frombuffer(letters.encode(), np.uint8), np.random.default_rng(seed)
    with path.open("wb") as file:
        number = 0
        while residues > 0:
            size = length or int(dice.integers(low, high))
            file.write(
                b">%s%07d made-up sequence\n" % (kind.encode(), number)
                + _lines(codes[dice.integers(0, len(codes), size)])
            )
            number, residues = number + 1, residues - size


def _lines(body: NDArray[np.uint8]) -> bytes:
    places = np.arange(len(body))
    wrapped = np.full(len(body) + -(-len(body) // WIDTH), ord("\n"), np.uint8)
    wrapped[places + places // WIDTH] = body
    return wrapped.tobytes()


def prepare(folder: Path, file: Path, kind: str, window: int | None) -> Path:
    """Write settings and vocabularies of a FASTA, and of one of few records; returns the path of the settings."""
    write_fasta(folder / "few.fasta", kind, 10**5)
    sources: Any = [
        {"name": name, "files": [str(path)], "kind": kind, "window_size": window}
        for name, path in (("s", file), ("few", folder / "few.fasta"))
    ]
    return _write(folder, Settings(project="p", sources=tuple(sources), runs={"full": Run()}))


def prepare_csv(folder: Path, sequences: int) -> Path:
    """The same for made-up CSV files with labels of every task."""
    places = {"s": folder / "csv", "few": folder / "few"}
    for name, number in (("s", sequences), ("few", 100)):
        write_csv(places[name], number)
    sources: Any = [{"name": name, "files": [str(place / "part_00.csv")]} for name, place in places.items()]
    labels = label_files(places["s"])
    return _write(folder, Settings(project="p", sources=tuple(sources), vocabularies=labels, runs={"full": Run()}))


def _write(folder: Path, settings: Settings) -> Path:
    build_vocabularies(settings, folder / "vocabularies")
    path = folder / "settings.json"
    path.write_text(settings.model_dump_json())
    return path


def stage(settings: Path) -> None:
    """Tokenize, on each rank; the first prints what it took, without what is imported at the first use."""
    with joined("cpu") as ranks:
        vocabularies, out = settings.parent / "vocabularies", settings.parent / "shards"
        tokenize_source(read_settings(settings), "few", vocabularies, out / "few", ranks)
        ranks.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        index = tokenize_source(read_settings(settings), "s", vocabularies, out / "s", ranks)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        took = ranks.gather(np.array([wall, cpu, memory]))
        if ranks.first:
            walls, cpus, memories = zip(*took, strict=True)
            wall, cpu, memory = max(walls), sum(cpus), max(memories)
            print(json.dumps({"residues": index["tokens"], "wall": wall, "cpu": cpu, "rss_mb": memory}))


def run_stage(settings: Path, ranks: int = 1) -> dict[str, float]:
    """Seconds, residues and peak memory (MiB, of the largest rank) of the stage."""
    shutil.rmtree(settings.parent / "shards", ignore_errors=True)
    command = ["torchrun", "--standalone", f"--nproc-per-node={ranks}", __file__, "--stage", str(settings)]
    surroundings = environment(command, settings.parent / "errors")
    done = subprocess.run(program(command), env=surroundings, check=True, stdout=subprocess.PIPE)
    took: dict[str, float] = json.loads(done.stdout)
    return took


def gunzip_seconds(file: Path) -> float:
    """Seconds that Python's gzip takes to read a file to its end."""
    started = time.perf_counter()
    with gzip.open(file) as stream:
        while stream.read(1 << 20):
            pass
    return time.perf_counter() - started


def machine_scaling(repeats: int) -> float:
    """How much more two processes of this machine compute than one, on what needs neither disk nor much memory."""
    with ProcessPoolExecutor(2) as pool:

        def seconds(processes: int) -> float:
            started = time.perf_counter()
            list(pool.map(_compute, range(processes)))
            return time.perf_counter() - started

        seconds(2)
        return statistics.median(2 * seconds(1) / seconds(2) for _ in range(repeats))


def _compute(_: int) -> None:
    block, table = bytes(1 << 20), bytes(range(256))
    for _ in range(200):
        block.translate(table)


def measure(folder: Path, megabases: int = 225, long_megabytes: int = 300, repeats: int = 3) -> dict[str, Any]:
    """Make the inputs in `folder`, of that many million residues each, and measure.

    Two ranks are compared fairly where a file is some times 64 MB, the unit of work. Returns what is printed.
    """
    result: dict[str, Any] = {"original_residues_per_s": ORIGINAL, "cores": len(os.sched_getaffinity(0)), "cases": {}}
    result["two_processes_to_one"] = machine_scaling(max(3, repeats))
    files = {kind: folder / f"{kind}.fasta" for kind in MADE_UP}
    for kind, file in files.items():
        write_fasta(file, kind, megabases * 10**6)
    for case, (kind, window) in CASES.items():
        result["cases"][case] = _case(prepare(folder, files[kind], kind, window), kind, repeats)
    result["cases"]["CSV with labels"] = _case(prepare_csv(folder, megabases * 200), "gene", repeats)
    packed = folder / "gene.fasta.gz"
    packed.write_bytes(gzip.compress(files["gene"].read_bytes()[: megabases * 10**6 // 2], compresslevel=6))
    settings = prepare(folder, packed, "gene", 3072)
    pairs = [(run_stage(settings)["wall"], gunzip_seconds(packed)) for _ in range(repeats)]
    result["gzip_to_decompressing_alone"] = statistics.median(stage / alone for stage, alone in pairs)
    long = folder / "long.fasta"
    write_fasta(long, "gene", long_megabytes * 10**6, length=long_megabytes * 10**6)
    result["long_record_peak_mb"] = run_stage(prepare(folder, long, "gene", None))["rss_mb"]
    return result


def _case(settings: Path, kind: str, repeats: int) -> dict[str, float]:
    run_stage(settings)  # the first run has the file system find room
    pairs = [(run_stage(settings), run_stage(settings, ranks=2)) for _ in range(repeats)]
    wall, cpu = (statistics.median(one["residues"] / one[clock] for one, _ in pairs) for clock in ("wall", "cpu"))
    return {
        "residues_per_s": wall, "residues_per_cpu_s": cpu, "times_the_original": wall / ORIGINAL[kind],
        "two_ranks_to_one": statistics.median(one["wall"] / two["wall"] for one, two in pairs),
        "peak_mb": max(one["rss_mb"] for one, _ in pairs),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabases", type=int, default=225, help="residues of the genomes and of the proteins")
    parser.add_argument("--long-megabytes", type=int, default=300, help="size of the one long record")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument("--stage", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        stage(args.stage)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(json.dumps(measure(Path(folder), args.megabases, args.long_megabytes, args.repeats)))


if __name__ == "__main__":
    main()
