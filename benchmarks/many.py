"""Very many short made-up sequences without labels, as shards and a training set, made in parts that memory holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lucavirus import alphabet
from lucavirus.background import Background
from lucavirus.dataset import FORMAT, VERSION
from lucavirus.record_batches import bounds_of
from lucavirus.rows import Rows
from lucavirus.shards import ShardWriter, write_arrays
from lucavirus.tasks import MOLECULES

_AT_ONCE = 250_000
_SHORTEST, _LONGEST = 20, 60
_ID_DIGITS = 9


def write_many(data: Path, sequences: int) -> int:
    """Write `data/shards` and `data/datasets/{gene,prot}/train.h5`, two genes to a protein; returns the residues."""
    folder = data / "shards" / "many"
    folder.mkdir(parents=True)
    lengths, molecules = list[NDArray[np.int32]](), list[NDArray[np.uint8]]()
    with Background() as background:
        writer = ShardWriter(folder, 0, {"source": "many"}, background)
        for first in range(0, sequences, _AT_ONCE):
            rows = made_up_rows(first, min(_AT_ONCE, sequences - first))
            writer.add(rows)
            lengths.append(np.diff(rows.offsets).astype(np.int32))
            molecules.append(rows.molecule)
        entries = writer.close()
    _write_datasets(data, entries, np.concatenate(lengths), np.concatenate(molecules))
    return sum(entry["tokens"] for entry in entries)


def made_up_rows(first: int, count: int) -> Rows:
    """Rows `first` to `first + count` - 1 of the corpus; their hashes are random numbers."""
    random = np.random.default_rng(first)
    lengths = random.integers(_SHORTEST, _LONGEST + 1, count)
    molecule = (np.arange(first, first + count) % 3 == 2).astype(np.uint8)
    letters = alphabet.letters("gene"), alphabet.letters("prot")
    tokens = np.empty(lengths.sum(), np.uint8)
    of_protein = np.repeat(molecule == 1, lengths)
    for own, here in zip(letters, (~of_protein, of_protein), strict=True):
        tokens[here] = own[random.integers(0, len(own), np.count_nonzero(here))]
    digits = np.arange(first, first + count)[:, None] // 10 ** np.arange(_ID_DIGITS)[::-1] % 10 + ord("0")
    hashes = random.integers(0, 2**64, count, np.uint64)
    return Rows(
        tokens.tobytes(), bounds_of(lengths), digits.astype(np.uint8).tobytes(),
        np.arange(count + 1, dtype=np.int64) * _ID_DIGITS, molecule, hashes, hashes, hashes, hashes, {},
    )  # fmt: skip


def _write_datasets(
    data: Path, entries: list[dict[str, Any]], length: NDArray[np.int32], molecules: NDArray[np.uint8]
) -> None:
    counts = [entry["sequences"] for entry in entries]
    shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    row = np.arange(len(length)) - np.repeat(bounds_of(counts)[:-1], counts)
    names = json.dumps([f"many/{entry['name']}" for entry in entries])
    for number, molecule in enumerate(MOLECULES):
        path, mine = data / "datasets" / molecule / "train.h5", molecules == number
        path.parent.mkdir(parents=True)
        arrays = {"shard": shard[mine], "row": row[mine], "length": length[mine]}
        write_arrays(path, arrays, {
            "format": FORMAT, "version": VERSION, "molecule": molecule, "split": "train", "shards": names,
            "sequences": int(mine.sum()), "tokens": int(arrays["length"].sum()), "fingerprint": "made up",
        })  # fmt: skip
