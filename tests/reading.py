"""Input files written and read by tests of the readers."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

from lucavirus.blocks import Range, plan_units
from lucavirus.fasta import read_fasta as read_batches
from lucavirus.record_batches import Record, RecordBatch
from lucavirus.tasks import Molecule
from tests.mistakes import mistake

Write = Callable[..., str]


def writer(folder: Path) -> Write:
    """Writes a file there, packed where its name ends with .gz; returns its path."""

    def write(content: bytes, name: str = "input.fasta") -> str:
        path = folder / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return write


def read_fasta(part: Range, molecule: Molecule) -> Iterator[Record]:
    return flat(read_batches(part, molecule))


def ranges(file: str, size: int) -> list[Range]:
    """What the units of a file read, when they are of at most `size` bytes."""
    return [part for unit in plan_units([file], size) for part in unit]


def flat(batches: Iterator[RecordBatch]) -> Iterator[Record]:
    return (record for batch in batches for record in batch)


def bodies(found: Iterator[Record] | list[Record]) -> list[tuple[str, bytes]]:
    return [(record.id, record.tokens) for record in found]


def fasta_mistake(file: str, molecule: str = "gene") -> str:
    return mistake(lambda: list(read_fasta(Range(file), molecule)))  # type: ignore[arg-type]
