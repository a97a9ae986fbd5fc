"""Sequences in columns: what is read from an input file at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lucavirus import blocks
from lucavirus.tasks import MOLECULES, Molecule


@dataclass(slots=True)
class Record:
    """One sequence: `tokens` uint8 ids of its body; `offset` the byte of the uncompressed file where it begins.

    `labels` is the obj_label of a CSV row, None for a FASTA record.
    """

    id: str
    molecule: Molecule
    tokens: bytes
    file: str
    offset: int
    labels: str | None = None

    @property
    def where(self) -> str:
        """`file:line`; counts the lines of the file, so ask only when there is a mistake to report."""
        return blocks.line_of(self.file, self.offset)


@dataclass(slots=True)
class RecordBatch:
    """N sequences of a file, in its order: sequence i is `tokens[bounds[i]:bounds[i + 1]]`.

    `ids` are UTF-8; `molecules` uint8 (N,) indices into MOLECULES; `tokens` uint8 ids; `bounds` int64 (N + 1,);
    `offsets` (N,) are the bytes of the uncompressed file where they begin; `labels` as in Record.
    """

    file: str
    ids: Sequence[bytes]
    molecules: NDArray[np.uint8]
    tokens: bytes
    bounds: NDArray[np.int64]
    offsets: Sequence[int]
    labels: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        return (self.record(number) for number in range(len(self)))

    def length(self, number: int) -> int:
        """Tokens of one of the sequences."""
        return int(self.bounds[number + 1] - self.bounds[number])

    def count(self, token: int) -> int:
        """How often a token stands in the sequences."""
        if token not in self.tokens:  # as mostly: a search is some times faster than to count
            return 0
        tokens, size = np.frombuffer(self.tokens, np.uint8), 1 << 17
        # Some at a time: they stay in the cache, and a sequence may be as large as the memory allows.
        return sum(int(np.count_nonzero(tokens[at : at + size] == token)) for at in range(0, len(tokens), size))

    def record(self, number: int) -> Record:
        """One of the sequences."""
        return Record(
            self.ids[number].decode(),
            MOLECULES[self.molecules[number]],
            self.tokens[self.bounds[number] : self.bounds[number + 1]],
            self.file,
            self.offsets[number],
            self.labels[number] if self.labels else None,
        )


def to_batch(records: Sequence[Record]) -> RecordBatch:
    """The records, one or more of the same file, in columns."""
    return RecordBatch(
        records[0].file,
        [record.id.encode() for record in records],
        np.array([MOLECULES.index(record.molecule) for record in records], np.uint8),
        b"".join([record.tokens for record in records]),
        bounds_of([len(record.tokens) for record in records]),
        [record.offset for record in records],
        [record.labels for record in records],
    )


def bounds_of(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of N neighbours begins and ends, int64 (N + 1,), from 0."""
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def spans(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all ranges [start, end), one range after the other, int64."""
    bounds = bounds_of(end - start)
    return np.arange(bounds[-1]) + np.repeat(start - bounds[:-1], end - start)
