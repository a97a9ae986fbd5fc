"""Data for benchmarks: OpenVirus CSV files, or made-up ones with lengths and labels like theirs, as shards.

The lengths follow a sample of OpenVirus: 58 % of the genes are whole windows of 3,072 bases, the rest are shorter;
proteins are log-normal around 230 residues. Labels are random, with the class counts of SPEC section 2.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lucavirus import alphabet
from lucavirus.config import Run, Settings
from lucavirus.config_data import Source
from lucavirus.distributed import ALONE
from lucavirus.records import CSV_COLUMNS
from lucavirus.splits import make_datasets
from lucavirus.tasks import MOLECULES, SUPERVISED, TASKS, Molecule
from lucavirus.tokenization import tokenize_source
from lucavirus.vocabularies import build_vocabularies

CLASSES = dict(zip(SUPERVISED, (8, 1659, 476, 3460, 63, 55, 603), strict=True))
LONGEST_GENE = 3072
# Residues that a task's spans cover in a sequence that has any, about.
_SPAN_LENGTH = {"gene_type": 900, "prot_homo": 150, "prot_site": 12, "prot_domain": 120}


def lengths(molecule: Molecule, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Lengths of `count` made-up sequences, without specials."""
    random = np.random.default_rng([seed, MOLECULES.index(molecule)])
    if molecule == "gene":
        whole = random.random(count) < 0.58
        return np.where(whole, LONGEST_GENE, random.integers(86, LONGEST_GENE, count))
    return np.clip(random.lognormal(5.44, 0.95, count), 10, 2000).astype(np.int64)


def head_sizes(part: float) -> dict[Any, int]:
    """A part of the head sizes of SPEC section 2."""
    return {task: max(1, int(TASKS[task].head_size * part)) for task in SUPERVISED}


def mixed_lengths(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Lengths of genes and proteins, 2 to 1, shuffled; with [CLS] and [SEP]."""
    genes = 2 * count // 3
    both = np.concatenate([lengths("gene", genes, seed), lengths("prot", count - genes, seed)])
    return np.random.default_rng(seed).permutation(both) + 2


def make_project(folder: Path, run: Run, source: Path | None, sequences: int = 1500) -> Path:
    """Make the data sets of a project with the one run `full`, all of it to train on; returns the path of its settings.

    `source` is a folder with `part_*.csv.gz` and `labels/{task}.txt`; without it, `sequences` rows are made up.
    """
    if source is None:
        source = folder / "csv"
        write_csv(source, sequences)
    files = tuple(sorted(map(str, source.glob("part_*.csv*"))))
    settings = Settings(
        project="benchmark",
        sources=(Source(name="sample", files=files, split="train"),),
        vocabularies=label_files(source),
        runs={"full": run},
    )
    data = folder / "results/benchmark"
    data.mkdir(parents=True)
    path = data / "settings.json"
    path.write_text(settings.model_dump_json())
    build_vocabularies(settings, data / "vocabularies")
    tokenize_source(settings, "sample", data / "vocabularies", data / "shards" / "sample", ALONE)
    make_datasets(settings, data / "shards", data / "datasets", ALONE)
    return path


def label_files(folder: Path) -> dict[Any, str]:
    """The label files of a folder of CSV files, of each supervised task."""
    return {task: str(folder / "labels" / f"{task}.txt") for task in SUPERVISED}


def write_csv(folder: Path, sequences: int) -> None:
    """Write `part_00.csv`, of made-up sequences with labels, and the label files."""
    (folder / "labels").mkdir(parents=True)
    for task, count in CLASSES.items():
        (folder / "labels" / f"{task}.txt").write_text("".join(f"{task}_{n}\n" for n in range(count)))
    with (folder / "part_00.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        writer.writerows(_rows(sequences))


def _rows(sequences: int) -> Iterator[tuple[str, str, str, str]]:
    """Genes and proteins 1 to 2, as in the sample."""
    random = np.random.default_rng(0)
    genes = sequences // 3
    for molecule, count in (("gene", genes), ("prot", sequences - genes)):
        letters = np.frombuffer((b"ACGT" if molecule == "gene" else alphabet.AMINO_ACIDS.encode()), np.uint8)
        for number, length in enumerate(lengths("gene" if molecule == "gene" else "prot", count)):
            sequence = random.choice(letters, length).tobytes().decode()
            yield f"{molecule}{number}", molecule, sequence, json.dumps(_labels(molecule, int(length), random))


def _labels(molecule: str, length: int, random: np.random.Generator) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in SUPERVISED:
        task = TASKS[name]
        if task.molecule != molecule or random.random() < 0.25:
            continue
        label = int(random.integers(CLASSES[name]))
        if task.level == "span":
            size = min(length, _SPAN_LENGTH[name])
            start = int(random.integers(0, length - size + 1))
            found[name] = [[start, start + size - 1, label]]
        else:
            found[name] = [label] if task.multi_label else label
    spans = {name: label for name, label in found.items() if TASKS[name].level == "span"}
    return {"span_level": spans, "seq_level": {name: label for name, label in found.items() if name not in spans}}
