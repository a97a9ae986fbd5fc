"""Stream FASTA and OpenVirus CSV files, in large blocks, into records; a mistake is told with its file and line."""

from __future__ import annotations

import csv
import gzip
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader

import numpy as np

from lucavirus import alphabet
from lucavirus.errors import UserError
from lucavirus.tasks import MOLECULES, Molecule

BLOCK = 4 << 20  # bytes read at once
KIND_SAMPLE = 10_000  # residues by which the kind of a FASTA is judged
BOM = b"\xef\xbb\xbf"
CSV_COLUMNS = ("obj_id", "obj_type", "obj_seq", "obj_label")

Stream = BufferedReader | gzip.GzipFile


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work: the records of `file` that begin in the bytes [start, end); 0, 0 means the whole file."""

    file: str
    start: int = 0
    end: int = 0


@dataclass(slots=True)
class Record:
    """One sequence as it stands in its file.

    `sequence` holds raw residues, of a FASTA with the line ends between them (alphabet.encode removes them); `offset`
    is the byte of the uncompressed file where the record begins; `labels` is the obj_label of a CSV row.
    """

    id: str
    molecule: Molecule
    sequence: bytes
    file: str
    offset: int
    labels: str | None = None

    @property
    def where(self) -> str:
        """`file:line`; counts the lines of the file, so ask only when there is a mistake to report."""
        return _where(self.file, self.offset)


def plan_units(files: Iterable[str], unit_bytes: int) -> list[Unit]:
    """Divide files, by their sizes alone, into ranges of `unit_bytes`; a compressed or empty file is one unit."""
    units = []
    for file in files:
        size = os.path.getsize(file)
        if file.endswith(".gz") or size == 0:
            units.append(Unit(file))
        else:
            units += [Unit(file, start, min(start + unit_bytes, size)) for start in range(0, size, unit_bytes)]
    return units


def read_unit(unit: Unit, kind: Molecule | None) -> Iterator[Record]:
    """Yield the records of a unit of a source: of a FASTA of that kind, or of a CSV where `kind` is None."""
    return read_csv(unit) if kind is None else read_fasta(unit, kind)


def read_fasta(unit: Unit, molecule: Molecule) -> Iterator[Record]:
    """Yield the records whose '>' lies in the unit, in order; the last one is read to its end, past the range.

    Raises UserError on a file or record that is broken, and where the first letters are those of the other molecule.
    """
    records, head, size = _fasta_records(unit, molecule), list[Record](), 0
    while size < KIND_SAMPLE and (record := next(records, None)):
        head.append(record)
        size += len(record.sequence)
    _check_kind(head, molecule)
    yield from head
    yield from records


def read_csv(unit: Unit) -> Iterator[Record]:
    """Yield the OpenVirus rows whose line begins in the unit, in order; the columns are named by the file's header.

    Raises UserError on a file or row that is broken; the text of obj_label is not looked at.
    """
    csv.field_size_limit(sys.maxsize)
    with reading(unit.file) as stream:
        columns, body = _csv_header(unit.file, stream)
        if unit.start == 0 and not any(block.strip() for _, block in _blocks(unit.file, stream, body)):
            raise UserError("has a header but no rows", where=unit.file, hint="take it out of `files` or fill it")
        for offset, block in _blocks(unit.file, stream, _seek_line(stream, max(unit.start, body))):
            for line in block.split(b"\n"):
                if offset >= (unit.end or sys.maxsize):
                    return
                if line.strip():
                    yield _csv_record(unit.file, offset, line, columns)
                offset += len(line) + 1


def scan_ids(file: str) -> Iterator[str]:
    """Yield only the ids of a FASTA, in order; sequences are not looked at."""
    with reading(file) as stream:
        for offset, block in _blocks(file, stream, _seek_line(stream, 0)):
            at = _next_header(block, 0)
            while at < len(block):
                stop = block.find(b"\n", at)
                yield _first_word(file, offset + at, block[at + 1 : stop if stop >= 0 else len(block)])
                at = _next_header(block, at + 1)


@contextmanager
def reading(file: str) -> Iterator[Stream]:
    """Open a plain or .gz file for reading bytes; a failure in reading becomes a UserError."""
    try:
        with gzip.open(file) if file.endswith(".gz") else open(file, "rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        hint = "check its path and rights; a .gz that is cut short or damaged must be copied again (`gzip -t` tells)"
        raise UserError(f"cannot be read ({error})", where=file, hint=hint) from None


def _seek_line(stream: Stream, start: int) -> int:
    """Go to the first line that begins at or after `start` (behind a byte order mark) and return its offset."""
    stream.seek(0)
    if stream.read(len(BOM)) == BOM and start <= len(BOM):
        return len(BOM)
    stream.seek(max(start - 1, 0))
    return start - 1 + len(stream.readline()) if start else 0


def _blocks(file: str, stream: Stream, offset: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines, about BLOCK bytes of them at once, from where the stream stands; with their offset in the file."""
    while block := stream.read(BLOCK):
        if not block.endswith(b"\n"):
            block += stream.readline()
        _check_text(file, offset, block)
        yield offset, block
        offset += len(block)


def _check_text(file: str, offset: int, block: bytes) -> None:
    """Refuse control characters other than tab, line ends and form feeds (9 to 13)."""
    codes = np.frombuffer(block, dtype=np.uint8)
    # Subtracting 14 wraps 0..13 round to the top: two minima are ten times faster than any search.
    if codes.min() < 9 or (codes - 14).min() < 32 - 14:
        junk = int(np.flatnonzero((codes < 9) | ((codes > 13) & (codes < 32)))[0])
        hint = "expected plain text (UTF-8); a gzip file must be named .gz, other packings must be unpacked first"
        raise _mistake(file, offset + junk, "is not text", hint)


def _next_header(block: bytes, at: int) -> int:
    """Position of the first '>' at or after `at` that begins a line, else the length of the block."""
    # A single byte is searched 50 times faster than the pair "\n>", and '>' is rare.
    while (at := block.find(b">", at)) > 0 and block[at - 1] != 10:
        at += 1
    return at if at >= 0 else len(block)


def _fasta_records(unit: Unit, molecule: Molecule) -> Iterator[Record]:
    with reading(unit.file) as stream:
        if unit.start == 0:
            _check_beginning(unit.file, stream)
        blocks = _blocks(unit.file, stream, _seek_line(stream, unit.start))
        for offset, piece in _pieces(blocks, unit.end or sys.maxsize):
            yield _fasta_record(unit.file, molecule, offset, piece)


def _pieces(blocks: Iterator[tuple[int, bytes]], end: int) -> Iterator[tuple[int, bytes]]:
    """Cut blocks into FASTA records with their offsets, from the first header on to the last one before `end`."""
    begin, parts = -1, list[bytes]()
    for offset, block in blocks:
        at = _next_header(block, 0)
        if begin >= 0:
            parts.append(block[:at])
        elif offset + at >= end:
            return
        while at < len(block):
            if begin >= 0:
                yield begin, b"".join(parts)
            begin = offset + at
            if begin >= end:
                return
            following = _next_header(block, at + 1)
            parts = [block[at:following]]
            at = following
    if begin >= 0:
        yield begin, b"".join(parts)


def _fasta_record(file: str, molecule: Molecule, offset: int, piece: bytes) -> Record:
    header, _, sequence = piece.partition(b"\n")
    name = _first_word(file, offset, header[1:])
    if b">" in sequence:
        hint = "start a new line before '>'; files put together with `cat` need a line end at the end of each"
        at = offset + piece.index(b">", len(header))
        raise _mistake(file, at, f"a '>' within the sequence {name}", hint)
    return _record(file, offset, name, molecule, sequence, None)


def _first_word(file: str, offset: int, header: bytes) -> str:
    if not (words := _decoded(file, offset, header) and header.split(None, 1)):
        raise _mistake(file, offset, "a header without an id", "give the sequence an id: the first word after '>'")
    return words[0].decode()


def _check_beginning(file: str, stream: Stream) -> None:
    """Refuse a FASTA without any record, or with text before the first one."""
    for offset, block in _blocks(file, stream, _seek_line(stream, 0)):
        at = _next_header(block, 0)
        if block[:at].strip():
            hint = "a FASTA begins with a header line: '>', directly followed by the id; or is it another format?"
            raise _mistake(file, offset + at - len(block[:at].lstrip()), "text before the first header line", hint)
        if at < len(block):
            return
    raise UserError("is empty: there is no sequence in it", where=file, hint="take it out of `files` or fill it")


def _check_kind(head: list[Record], molecule: Molecule) -> None:
    if alphabet.mistaken(molecule, b"".join(record.sequence[:KIND_SAMPLE] for record in head)):
        other, letters = ("prot", "amino acids") if molecule == "gene" else ("gene", "bases")
        hint = f"write `kind: {other}` for the source of this file, or give it the right file"
        what = f"the source says `kind: {molecule}`, but the letters are {letters}"
        raise UserError(what, where=head[0].where, hint=hint)


def _csv_header(file: str, stream: Stream) -> tuple[dict[str, int], int]:
    """Position of each column (and under "" their number), and the offset of the first row."""
    offset = _seek_line(stream, 0)
    line = stream.readline()
    _check_text(file, offset, line + b"\n")
    names = [name.strip() for name in _fields(file, offset, line)] if line.strip() else []
    missing = [name for name in CSV_COLUMNS if names.count(name) != 1]
    if missing:
        hint = f"the first line must be {','.join(CSV_COLUMNS)} (any order; further columns are not read)"
        what = f"the header must have the column {', '.join(missing)} once" if names else "is empty: there is no header"
        raise UserError(what, where=f"{file}:1", hint=hint)
    return {**{name: names.index(name) for name in CSV_COLUMNS}, "": len(names)}, offset + len(line)


def _fields(file: str, offset: int, line: bytes) -> list[str]:
    try:
        return next(csv.reader([_decoded(file, offset, line.rstrip(b"\r\n"))], strict=True))
    except csv.Error as error:
        hint = "each row must be one line; a quoted field must be closed on the line where it begins"
        raise _mistake(file, offset, f"malformed row ({error})", hint) from None


def _csv_record(file: str, offset: int, line: bytes, columns: dict[str, int]) -> Record:
    fields = _fields(file, offset, line)
    if len(fields) != columns[""]:
        what = f"the row has {len(fields)} fields, the header has {columns['']}"
        raise _mistake(file, offset, what, "quote a field that holds commas; each row must be one line")
    name, kind, sequence, labels = (fields[columns[column]].strip() for column in CSV_COLUMNS)
    if not name:
        raise _mistake(file, offset, "the row has no obj_id", "give each sequence an id")
    if kind not in MOLECULES:
        raise _mistake(file, offset, f"obj_type of {name} is {kind!r}", "obj_type must be gene or prot")
    molecule: Molecule = "gene" if kind == "gene" else "prot"
    return _record(file, offset, name, molecule, sequence.encode(), labels)


def _record(file: str, offset: int, name: str, molecule: Molecule, sequence: bytes, labels: str | None) -> Record:
    if not sequence or sequence.isspace():
        raise _mistake(file, offset, f"the sequence {name} has no residues", "remove it, or give it its residues")
    if not sequence.isascii():
        hint = "residues are plain letters; look for accents, typographic dashes or blanks"
        raise _mistake(file, offset, f"the sequence {name} has a character that is not ASCII", hint)
    return Record(name, molecule, sequence, file, offset, labels)


def _decoded(file: str, offset: int, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        hint = "save the file as UTF-8, for example with `iconv -f latin1 -t utf-8`"
        raise _mistake(file, offset, "the line is not valid UTF-8", hint) from None


def _mistake(file: str, offset: int, what: str, hint: str) -> UserError:
    return UserError(what, where=_where(file, offset), hint=hint)


def _where(file: str, offset: int) -> str:
    """`file:line` of a byte of the uncompressed file."""
    line, left = 1, offset
    with reading(file) as stream:
        while left > 0 and (block := stream.read(min(left, BLOCK))):
            line, left = line + block.count(b"\n"), left - len(block)
    return f"{file}:{line}"
