"""Read the units of a source into batches: FASTA (fasta.py), and OpenVirus CSV here, row by row."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from lucavirus import alphabet
from lucavirus.blocks import Range, Unit, check_text, decoded, find_junk, mistake, read_blocks
from lucavirus.errors import UserError
from lucavirus.fasta import LettersCheck, read_fasta
from lucavirus.record_batches import Record, RecordBatch, to_batch
from lucavirus.tasks import MOLECULES, Molecule

CSV_COLUMNS = ("obj_id", "obj_type", "obj_seq", "obj_label")
_TYPE_HINT = "obj_type of such rows must be {}, or the sequences are not those that were meant"
GATHERED = 1 << 20  # tokens of CSV rows that make a batch


def read_unit(unit: Unit, kind: Molecule | None) -> Iterator[RecordBatch]:
    """Yield the records of a unit of a source: of FASTA of that kind, or of CSV where `kind` is None."""
    for part in unit:
        yield from _gathered(read_csv(part)) if kind is None else read_fasta(part, kind)


def read_csv(part: Range) -> Iterator[Record]:
    """Yield the OpenVirus rows whose line begins in the range, in order; the columns are named by the file's header.

    Raises UserError on a file or row that is broken; the text of obj_label is not looked at.
    """
    csv.field_size_limit(sys.maxsize)
    header = _csv_header(part.file)
    if part.start == 0 and not any(line.strip() for _, line in _lines(Range(part.file), header.end)):
        raise UserError("has a header but no rows", where=part.file, hint="take it out of `files` or fill it")
    letters = {molecule: LettersCheck(part.file, molecule, "obj_type says {}", _TYPE_HINT) for molecule in MOLECULES}
    for offset, line in _lines(part, max(part.start, header.end)):
        if line.strip():
            yield _csv_record(part.file, offset, line, header, letters)
    for check in letters.values():
        check.judge()


def _lines(part: Range, start: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in [start, end of the range), without their ends, with their offsets."""
    # From the byte before, which tells whether a line begins at `start`.
    for offset, block in read_blocks(part.file, max(start - 1, 0), part.stop, lines=True):
        check_text(part.file, offset, find_junk(block))
        for line in block.split(b"\n"):
            if offset >= part.stop:
                return
            if offset >= start:
                yield offset, line
            offset += len(line) + 1


@dataclass(frozen=True, slots=True)
class _Header:
    """The first line of a CSV: the position of each of our columns, how many there are, the offset of the first row."""

    columns: dict[str, int]
    count: int
    end: int


def _csv_header(file: str) -> _Header:
    offset, line = next(_lines(Range(file), 0), (0, b""))
    names = [name.strip() for name in _fields(file, offset, line)] if line.strip() else []
    missing = [name for name in CSV_COLUMNS if names.count(name) != 1]
    if missing:
        hint = f"the first line must be {','.join(CSV_COLUMNS)} (any order; further columns are not read)"
        what = f"the header must have the column {', '.join(missing)} once" if names else "is empty: there is no header"
        raise UserError(what, where=f"{file}:1", hint=hint)
    return _Header({name: names.index(name) for name in CSV_COLUMNS}, len(names), offset + len(line) + 1)


def _fields(file: str, offset: int, line: bytes) -> list[str]:
    try:
        return next(csv.reader([decoded(file, offset, line.rstrip(b"\r\n"))], strict=True))
    except csv.Error as error:
        hint = "each row must be one line; a quoted field must be closed on the line where it begins"
        raise mistake(file, offset, f"malformed row ({error})", hint) from None


def _csv_record(file: str, offset: int, line: bytes, header: _Header, letters: dict[Molecule, LettersCheck]) -> Record:
    fields = _fields(file, offset, line)
    if len(fields) != header.count:
        what = f"the row has {len(fields)} fields, the header has {header.count}"
        raise mistake(file, offset, what, "quote a field that holds commas; each row must be one line")
    name, kind, sequence, labels = (fields[header.columns[column]].strip() for column in CSV_COLUMNS)
    if not name:
        raise mistake(file, offset, "the row has no obj_id", "give each sequence an id")
    if kind not in MOLECULES:
        raise mistake(file, offset, f"obj_type of {name} is {kind!r}", "obj_type must be gene or prot")
    if not sequence:
        raise mistake(file, offset, f"the sequence {name} has no residues", "remove it, or give it its residues")
    if not sequence.isascii():
        hint = "residues are plain letters; look for accents, typographic dashes or blanks"
        raise mistake(file, offset, f"the sequence {name} has a character that is not ASCII", hint)
    molecule: Molecule = "gene" if kind == "gene" else "prot"
    letters[molecule].add(sequence.encode(), offset)
    return Record(name, molecule, alphabet.encode(molecule, sequence.encode()), file, offset, labels)


def _gathered(records: Iterator[Record]) -> Iterator[RecordBatch]:
    some, size = list[Record](), 0
    for record in records:
        some.append(record)
        size += len(record.tokens)
        if size >= GATHERED:
            yield to_batch(some)
            some, size = [], 0
    if some:
        yield to_batch(some)
