"""Batches into the rows of shards: windows with their ids, labels and hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lucavirus.counters import U64
from lucavirus.hashes import row_hashes, sequence_hashes, text_hashes
from lucavirus.record_batches import RecordBatch, bounds_of
from lucavirus.sequence_labels import Labels, window_labels

AT_ONCE = 4096  # rows that are made at once: bounds the memory where a long sequence has many windows


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows of a shard in columns, as told in docs/formats.md.

    `id_hash` uint64 (N,) tells ids apart; `labels` has the rows that have any. Slices are rows too.
    """

    tokens: bytes
    offsets: NDArray[np.int64]
    ids: bytes
    id_offsets: NDArray[np.int64]
    molecule: NDArray[np.uint8]
    parent_hash: U64
    content_hash: U64
    row_hash: U64
    id_hash: U64
    labels: Mapping[int, Labels]

    def __len__(self) -> int:
        return len(self.molecule)

    def __getitem__(self, part: slice) -> Rows:
        first, last, _ = part.indices(len(self))
        tokens, ids = self.offsets[first : last + 1], self.id_offsets[first : last + 1]
        labels = {row - first: found for row, found in self.labels.items() if first <= row < last}
        return Rows(
            self.tokens[tokens[0] : tokens[-1]], tokens - tokens[0], self.ids[ids[0] : ids[-1]], ids - ids[0],
            self.molecule[part], self.parent_hash[part], self.content_hash[part], self.row_hash[part],
            self.id_hash[part], labels,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows over some sequences, in order, int64 (N,) each.

    `sequence` is the one that a window is of, `number` counts within it, [start, end) is its place in it; `cut` is
    true where a sequence has more than one.
    """

    sequence: NDArray[np.int64]
    number: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    cut: NDArray[np.bool_]


def cut_windows(lengths: NDArray[np.int64], size: int | None, overlap: int) -> Windows:
    """Windows over sequences: of `size` bases each, the last one shorter; the whole sequence where it fits."""
    size = int(lengths.max(initial=1)) if size is None else size
    step = max(size - overlap, 1)
    counts = np.where(lengths <= size, 1, 1 - (size - lengths) // step)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * step
    return Windows(sequence, number, start, np.minimum(start + size, lengths[sequence]), counts[sequence] > 1)


def make_rows(batch: RecordBatch, windows: Windows, labels: Mapping[int, Labels]) -> Iterator[Rows]:
    """Yield the rows of a batch, some at a time, in order; `labels` are those of its sequences, by number."""
    parents = _parents(batch, windows)
    for first in range(0, len(windows.sequence), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        sequence, cut = windows.sequence[part], windows.cut[part]
        begin = batch.bounds[sequence]
        start, end = begin + windows.start[part], begin + windows.end[part]
        ids = window_ids(batch, windows, part)
        found = _labels(windows, part, labels) if labels else {}
        id_hash, molecule = text_hashes(ids), batch.molecules[sequence]
        content = sequence_hashes(batch.tokens, start, end, molecule)
        row_hash = row_hashes(id_hash, content, _label_hashes(found, len(ids)))
        parent = np.where(cut, parents[sequence], content)
        columns = (molecule, parent, content, row_hash, id_hash)
        yield Rows(
            _bodies(batch.tokens, start, end), bounds_of(end - start),
            b"".join(ids), bounds_of(list(map(len, ids))), *columns, found,
        )  # fmt: skip


def window_ids(batch: RecordBatch, windows: Windows, part: slice) -> Sequence[bytes]:
    """Ids of the rows: that of the sequence, or {id}_{n}_{start}_{end} of a window of it."""
    if not windows.cut.any():
        return batch.ids[part]
    columns = (windows.sequence, windows.number, windows.start, windows.end, windows.cut)
    return [
        b"%b_%d_%d_%d" % (batch.ids[sequence], number, start, end) if cut else batch.ids[sequence]
        for sequence, number, start, end, cut in zip(*(column[part].tolist() for column in columns), strict=True)
    ]


def cut_sequences(windows: Windows) -> NDArray[np.int64]:
    """The sequences that have more than one window, int64, ascending."""
    first: NDArray[np.bool_] = windows.cut & (windows.number == 0)
    return windows.sequence[first]


def _parents(batch: RecordBatch, windows: Windows) -> U64:
    """Hashes of the whole sequences that are cut, uint64 (sequences,); of the others the row has it."""
    parents, cut = np.zeros(len(batch), np.uint64), cut_sequences(windows)
    parents[cut] = sequence_hashes(batch.tokens, batch.bounds[cut], batch.bounds[cut + 1], batch.molecules[cut])
    return parents


def _bodies(tokens: bytes, start: NDArray[np.int64], end: NDArray[np.int64]) -> bytes:
    """The tokens [start, end) of all rows, one after the other."""
    if np.array_equal(start[1:], end[:-1]):
        return tokens[start[0] : end[-1]]
    return b"".join([tokens[a:b] for a, b in zip(start.tolist(), end.tolist(), strict=True)])


def _labels(windows: Windows, part: slice, labels: Mapping[int, Labels]) -> dict[int, Labels]:
    """The labels of those rows of a part that have any."""
    start, end, cut = (column[part].tolist() for column in (windows.start, windows.end, windows.cut))
    found: dict[int, Labels] = {}
    sequences, firsts = np.unique(windows.sequence[part], return_index=True)
    bounds = [*firsts.tolist(), len(start)]
    for sequence, rows in zip(sequences.tolist(), map(slice, bounds, bounds[1:]), strict=True):
        if own := labels.get(sequence):
            of_rows = window_labels(own, start[rows], end[rows]) if cut[rows.start] else [own]
            found.update((row, of_row) for row, of_row in enumerate(of_rows, rows.start) if of_row)
    return found


def _label_hashes(labels: Mapping[int, Labels], rows: int) -> U64:
    """Hash of each row's labels, uint64 (rows,), 0 where it has none."""
    hashes = np.zeros(rows, np.uint64)
    hashes[list(labels)] = text_hashes([repr(sorted(found.items())).encode() for found in labels.values()])
    return hashes
