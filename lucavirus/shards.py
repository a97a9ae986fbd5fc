"""The HDF5 shard: writer, memory-mapped reader, checks. Its layout is told in docs/formats.md."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lucavirus import alphabet
from lucavirus.errors import UserError
from lucavirus.files import flush
from lucavirus.tasks import MOLECULES, SUPERVISED, TASKS, Molecule

FORMAT, VERSION = "lucavirus-shard", 1
# Tokens after which a unit goes on in its next shard: bounds the memory of the writer.
PART_TOKENS = 64 * 2**20

Labels = Mapping[str, list[tuple[int, ...]]]

_REDO = "remove {folder} and run the workflow again; it makes the shards anew from the input"


def sequence_hash(molecule: Molecule, tokens: bytes) -> int:
    """64-bit hash of a sequence as the model sees it, stable over machines and versions."""
    digest = hashlib.blake2b(tokens, digest_size=8, person=molecule.encode()).digest()
    return int.from_bytes(digest, "little")


def text_hash(text: str) -> int:
    """64-bit hash of a text, stable over machines and versions."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass
class _Columns:
    """What a shard will hold, while it is gathered."""

    tokens: list[bytes] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    molecules: list[int] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    values: dict[str, list[tuple[int, ...]]] = field(default_factory=lambda: {task: [] for task in SUPERVISED})
    counts: dict[str, list[int]] = field(default_factory=lambda: {task: [] for task in SUPERVISED})

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        yield "tokens", np.frombuffer(b"".join(self.tokens), np.uint8)
        yield "offsets", _offsets(self.lengths)
        yield "molecule", np.array(self.molecules, np.uint8)
        yield "ids", np.frombuffer(b"".join(self.ids), np.uint8)
        yield "id_offsets", _offsets([len(name) for name in self.ids])
        yield "parent_hash", np.array(self.parents, np.uint64)
        yield "content_hash", np.array(self.contents, np.uint64)
        yield "row_hash", np.array(self.rows, np.uint64)
        for task in SUPERVISED:
            width = 3 if TASKS[task].level == "span" else 1
            yield f"labels/{task}/values", np.array(self.values[task], np.int32).reshape(-1, width)
            yield f"labels/{task}/offsets", _offsets(self.counts[task])


def _offsets(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


class ShardWriter:
    """Gathers the rows of one unit and writes them as one shard, or several when they are many.

    `attributes` are written to each shard (source, input, input_bytes, labels). A shard gets its name only when it is
    whole.
    """

    def __init__(self, folder: Path, unit: int, attributes: Mapping[str, Any], part_tokens: int = PART_TOKENS) -> None:
        self.folder, self.unit, self.attributes, self.part_tokens = folder, unit, attributes, part_tokens
        self.written: list[dict[str, Any]] = []
        self._columns, self._size = _Columns(), 0

    def add(self, name: str, molecule: Molecule, tokens: bytes, parent_hash: int, labels: Labels) -> None:
        """Add one row: id, body tokens (uint8), hash of the sequence before windows, labels (docs/formats.md)."""
        columns = self._columns
        columns.tokens.append(tokens)
        columns.lengths.append(len(tokens))
        columns.molecules.append(MOLECULES.index(molecule))
        columns.ids.append(name.encode())
        columns.parents.append(parent_hash)
        columns.contents.append(sequence_hash(molecule, tokens))
        columns.rows.append(text_hash(repr((name, columns.contents[-1], sorted(labels.items())))))
        for task in SUPERVISED:
            rows = labels.get(task, ())
            columns.values[task].extend(rows)
            columns.counts[task].append(len(rows))
        self._size += len(tokens)
        if self._size >= self.part_tokens:
            self._write()

    def close(self) -> list[dict[str, Any]]:
        """Write what is left; returns the index entry of each shard written."""
        if self._columns.lengths:
            self._write()
        return self.written

    def _write(self) -> None:
        name = f"{self.unit:05d}-{len(self.written):03d}.h5"
        entry = write_shard(self.folder / name, dict(self._columns.arrays()), self.attributes)
        self.written.append(entry)
        self._columns, self._size = _Columns(), 0


def write_shard(path: Path, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Write one shard under a temporary name, flush it to disk, rename it; returns its index entry."""
    entry = {"name": path.name, "sequences": len(arrays["offsets"]) - 1, "tokens": len(arrays["tokens"])}
    entry["checksum"] = checksum(arrays)
    stamped = {"format": FORMAT, "version": VERSION, "alphabet": " ".join(alphabet.TOKENS), **attributes, **entry}
    write_arrays(path, arrays, {key: value for key, value in stamped.items() if key != "name"})
    return entry


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> None:
    """Write contiguous datasets and attributes to an HDF5 file that appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, track_times=False)
        for name, value in attributes.items():
            file.attrs[name] = value
    flush(temporary)
    os.replace(temporary, path)


def checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    """blake2b over the bytes of all arrays, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()


def map_arrays(path: Path, format_name: str, version: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Memory-map all datasets of an HDF5 file of ours; returns them and the file's attributes.

    No HDF5 object stays open, so that the result survives a fork. Raises UserError for a file of another kind.
    """
    hint = _REDO.format(folder=path.parent)
    try:
        with h5py.File(path, "r", locking=False) as file:
            attributes = dict(file.attrs)
            datasets: list[h5py.Dataset] = []
            file.visititems(lambda _, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
            arrays = {item.name.lstrip("/"): _map(path, item) for item in datasets}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), hint=hint) from error
    if (attributes.get("format"), attributes.get("version")) != (format_name, version):
        raise UserError(f"is not a {format_name} file of version {version}", where=str(path), hint=hint)
    return arrays, attributes


def _map(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    offset = dataset.id.get_offset()
    if offset is None:  # no bytes were ever stored
        return np.empty(dataset.shape, dataset.dtype)
    return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)


class Shard:
    """One shard, memory-mapped: random access to tokens, ids and labels without copies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrays, self.attributes = map_arrays(path, FORMAT, VERSION)
        if self.attributes["alphabet"] != " ".join(alphabet.TOKENS):
            raise UserError("was made with another alphabet", where=str(path), hint=_REDO.format(folder=path.parent))
        self.tokens, self.offsets = self.arrays["tokens"], self.arrays["offsets"]
        self.molecule = self.arrays["molecule"]
        self._labels = {
            task: (self.arrays[f"labels/{task}/values"], self.arrays[f"labels/{task}/offsets"]) for task in SUPERVISED
        }

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sequence(self, row: int) -> NDArray[np.uint8]:
        """Tokens of one body, uint8, as a view of the file."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def labels(self, row: int, task: str) -> NDArray[np.int32]:
        """Labels of one sequence, int32 (m, 3) spans or (m, 1) classes; m is 0 where it has none."""
        values, offsets = self._labels[task]
        return values[offsets[row] : offsets[row + 1]]

    def name(self, row: int) -> str:
        """The id of one sequence."""
        first, last = self.arrays["id_offsets"][row : row + 2]
        return bytes(self.arrays["ids"][first:last]).decode()

    def verify(self) -> None:
        """Raise UserError unless every byte is the one that was written."""
        ordered = {name: self.arrays[name] for name, _ in _Columns().arrays()}
        if checksum(ordered) != self.attributes["checksum"]:
            raise UserError(
                "does not match its checksum: the file was damaged after it was written",
                where=str(self.path), hint=_REDO.format(folder=self.path.parent),
            )  # fmt: skip


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a source's shards, the proof that they are complete."""
    path = folder / "index.json"
    try:
        index: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), hint=_REDO.format(folder=folder)) from error
    return index
