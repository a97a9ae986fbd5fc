"""The HDF5 shard: writer, memory-mapped reader, checks. Its layout is told in docs/formats.md."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from lucavirus import alphabet
from lucavirus.background import Background
from lucavirus.counters import U64
from lucavirus.errors import UserError
from lucavirus.files import replacing
from lucavirus.hashes import sequence_hashes
from lucavirus.record_batches import bounds_of
from lucavirus.rows import AT_ONCE, Rows
from lucavirus.tasks import SUPERVISED, TASKS

FORMAT, VERSION = "lucavirus-shard", 3
# Tokens and rows after which a unit goes on in its next shard: bounds the memory of the writer. The labels of a row
# take about a kilobyte there.
PART_TOKENS, PART_ROWS = 64 * 2**20, 2**18
# What the checksum of a shard is made over, in this order; the content hashes among it are those of the tokens.
CHECKED = (
    *("offsets", "molecule", "ids", "id_offsets", "parent_hash", "content_hash", "row_hash"),
    *(f"labels/{task}/{part}" for task in SUPERVISED for part in ("values", "offsets")),
)

# Bytes that a file takes beside its arrays.
_OF_HDF5 = 2**16

_REDO = "remove {folder} and run the workflow again; it makes the shards anew from the input"


class ShardWriter:
    """Gathers the rows of one unit and writes them as one shard, or several when they are many.

    `attributes` are written to each shard (source, input, input_bytes, labels). A shard gets its name only when it is
    whole; it is written in the `background`, while the next one is gathered.
    """

    def __init__(
        self, folder: Path, unit: int, attributes: Mapping[str, Any], background: Background,
        part_tokens: int = PART_TOKENS, part_rows: int = PART_ROWS,
    ) -> None:  # fmt: skip
        self.folder, self.unit, self.attributes = folder, unit, attributes
        self.part_tokens, self.part_rows = part_tokens, part_rows
        self.background = background
        self.entries: list[dict[str, Any]] = []
        self._rows, self._count, self._size = list[Rows](), 0, 0

    def add(self, rows: Rows) -> None:
        """Add rows; those that do not fit into a shard of `part_tokens` and `part_rows` begin the next one."""
        while len(rows):
            fit = int(np.searchsorted(rows.offsets[1:], self.part_tokens - self._size, side="right"))
            fit = min(fit, self.part_rows - self._count)
            if not fit and not self._rows:
                fit = 1  # longer than a whole shard: one of its own
            if fit:
                self._rows.append(rows[:fit])
                self._count += fit
                self._size += int(rows.offsets[fit])
            rows = rows[fit:]
            if len(rows) or self._count >= self.part_rows or self._size >= self.part_tokens:
                self._write()

    def close(self) -> list[dict[str, Any]]:
        """Write what is left; returns the index entries of all shards, which are there when the background is done."""
        if self._rows:
            self._write()
        return self.entries

    def _write(self) -> None:
        path, columns = self.folder / f"{self.unit:05d}-{len(self.entries):03d}.h5", _columns(self._rows)
        counts = {"sequences": self._count, "tokens": self._size, "checksum": checksum(columns)}
        self.entries.append({"name": path.name, **counts})
        kind = {"format": FORMAT, "version": VERSION, "alphabet": " ".join(alphabet.TOKENS)}
        tokens = [np.frombuffer(rows.tokens, np.uint8) for rows in self._rows]
        self.background.run(write_arrays, path, {"tokens": tokens, **columns}, {**kind, **self.attributes, **counts})
        if self._size > self.part_tokens:  # no room for the next one beside it
            self.background.wait()
        self._rows, self._count, self._size = [], 0, 0


def _columns(parts: Sequence[Rows]) -> dict[str, NDArray[Any]]:
    """The datasets of a shard but its tokens, in the order of CHECKED."""
    arrays: dict[str, NDArray[Any]] = {
        "offsets": _joined([rows.offsets for rows in parts]),
        "molecule": np.concatenate([rows.molecule for rows in parts]),
        "ids": np.frombuffer(b"".join([rows.ids for rows in parts]), np.uint8),
        "id_offsets": _joined([rows.id_offsets for rows in parts]),
        "parent_hash": np.concatenate([rows.parent_hash for rows in parts]),
        "content_hash": np.concatenate([rows.content_hash for rows in parts]),
        "row_hash": np.concatenate([rows.row_hash for rows in parts]),
    }
    places = zip(bounds_of([len(rows) for rows in parts]).tolist(), parts, strict=False)
    labels = {first + row: found for first, rows in places for row, found in rows.labels.items()}
    for task in SUPERVISED:
        width, counts = 3 if TASKS[task].level == "span" else 1, np.zeros(len(arrays["molecule"]), np.int64)
        mine = {row: labels[row][task] for row in sorted(labels) if task in labels[row]}
        counts[list(mine)] = [len(values) for values in mine.values()]
        values = [value for values in mine.values() for value in values]
        arrays[f"labels/{task}/values"] = np.array(values, np.int32).reshape(-1, width)
        arrays[f"labels/{task}/offsets"] = bounds_of(counts)
    return arrays


def _joined(offsets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The offsets of neighbours as one array."""
    return bounds_of(np.concatenate([np.diff(part) for part in offsets]))


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any] | list[NDArray[Any]]], attributes: Mapping[str, Any]
) -> None:
    """Write contiguous datasets and attributes to an HDF5 file that appears whole or not at all.

    A list of arrays becomes one dataset, without being put together in memory. Raises OSError on a full disk.
    """
    needed = sum(part.nbytes for array in arrays.values() for part in (array if isinstance(array, list) else [array]))
    needed += _OF_HDF5
    if shutil.disk_usage(path.parent).free < needed:  # HDF5 may crash when it closes a file that it could not write
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    in_parts: dict[int, list[NDArray[Any]]] = {}
    with replacing(path) as temporary:
        with h5py.File(temporary, "w") as file:
            for name, array in arrays.items():
                if isinstance(array, list):
                    in_parts[_reserve(file, name, array)] = array
                else:
                    file.create_dataset(name, data=array, track_times=False)
            for name, value in attributes.items():
                file.attrs[name] = value
        # Past HDF5, which holds the interpreter's lock while it writes: other threads go on meanwhile.
        with temporary.open("r+b") as stream:
            for place, parts in in_parts.items():
                stream.seek(place)
                stream.writelines(part.data for part in parts)


def _reserve(file: h5py.File, name: str, parts: list[NDArray[Any]]) -> int:
    """Make a dataset for neighbouring parts, not empty, without writing it; returns its place in the file."""
    at_once = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    at_once.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    at_once.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    size = sum(len(part) for part in parts)
    dataset = file.create_dataset(name, (size,), parts[0].dtype, dcpl=at_once, track_times=False)
    place: int = dataset.id.get_offset()
    return place


def checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    """XXH3 of 128 bits over the bytes of all arrays, in their order."""
    digest = xxh3_128()
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
            # Once: each map holds a file open, and there are seventeen datasets in each of hundreds of shards.
            # As a plain array: each slice of a memmap costs microseconds, and there are dozens in a sample.
            content = np.asarray(np.memmap(path, np.uint8, "r"))
            arrays = {item.name.lstrip("/"): _view(content, item) for item in datasets}
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            hint = "it may well be whole: see that it can be read (disk, rights), then start the same command again"
        raise UserError(f"cannot be read ({error})", where=str(path), hint=hint) from error
    if (attributes.get("format"), attributes.get("version")) != (format_name, version):
        raise UserError(f"is not a {format_name} file of version {version}", where=str(path), hint=hint)
    return arrays, attributes


def _view(content: NDArray[np.uint8], dataset: h5py.Dataset) -> NDArray[Any]:
    offset = dataset.id.get_offset()
    if offset is None:  # no bytes were ever stored
        return np.empty(dataset.shape, dataset.dtype)
    array: NDArray[Any] = content[offset : offset + dataset.nbytes].view(dataset.dtype).reshape(dataset.shape)
    return array


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

    def has_labels(self, rows: NDArray[np.integer], task: str) -> bool:
        """True where one of these sequences has a label of the task."""
        _, offsets = self._labels[task]
        return bool(offsets[-1]) and bool((offsets[rows] < offsets[rows + 1]).any())

    def name(self, row: int) -> str:
        """The id of one sequence."""
        first, last = self.arrays["id_offsets"][row : row + 2]
        return bytes(self.arrays["ids"][first:last]).decode()

    def verify(self) -> None:
        """Raise UserError unless every byte is the one that was written."""
        whole = checksum({name: self.arrays[name] for name in CHECKED}) == self.attributes["checksum"]
        if not whole or not np.array_equal(self._content_hashes(), self.arrays["content_hash"]):
            raise UserError(
                "does not match its checksum: the file was damaged after it was written",
                where=str(self.path), hint=_REDO.format(folder=self.path.parent),
            )  # fmt: skip

    def _content_hashes(self) -> U64:
        hashes = [np.empty(0, np.uint64)]
        for first in range(0, len(self), AT_ONCE):
            bounds = self.offsets[first : first + AT_ONCE + 1]
            tokens, bounds = self.tokens[bounds[0] : bounds[-1]].tobytes(), bounds - bounds[0]
            hashes.append(sequence_hashes(tokens, bounds[:-1], bounds[1:], self.molecule[first : first + AT_ONCE]))
        return np.concatenate(hashes)


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a source's shards, the proof that they are complete."""
    path = folder / "index.json"
    try:
        index: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), hint=_REDO.format(folder=folder)) from error
    return index
