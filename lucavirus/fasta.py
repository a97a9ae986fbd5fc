"""Read FASTA files block by block into batches of tokenized sequences; no work is done per line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lucavirus import alphabet
from lucavirus.blocks import Range, check_text, decoded, find_blanks, find_junk, mistake, read_blocks
from lucavirus.errors import UserError
from lucavirus.record_batches import RecordBatch, bounds_of, spans
from lucavirus.tasks import MOLECULES, Molecule

KIND_SAMPLE = 10_000  # bytes of sequences by which the kind of a FASTA is judged

_NEWLINE, _RETURN, _HEADER, _BLANK = b"\n\r> "
# What NCBI (nr) puts between the headers of several records with the same sequence, in one header.
_JOINT = b"\1"
_KIND_HINT = "write `kind: {}` for the source of this file, or give it the right file"


def read_fasta(part: Range, molecule: Molecule) -> Iterator[RecordBatch]:
    """Yield the records whose '>' lies in the range, in order; the last one is read to its end, past it.

    Raises UserError on a file or record that is broken, and where the first letters are those of the other molecule.
    """
    rest, letters = _Rest(), LettersCheck(part.file, molecule, "the source says `kind: {}`", _KIND_HINT)
    for page in _pages(part):
        raw = page.text(begun=bool(rest.ids))
        if not raw.isascii() or b">" in raw:
            raise _bad_residue(page, rest)
        letters.add(raw, [*rest.offsets, *page.offsets][0])
        batch = rest.go_on(page, molecule, alphabet.encode(molecule, raw))
        if batch:
            yield batch
    letters.judge()
    if rest.ids:
        yield rest.finish(part.file, molecule)


def scan_ids(file: str) -> Iterator[str]:
    """Yield only the ids of a FASTA, in order; sequences are not looked at."""
    for page in _pages(Range(file)):
        for name in page.ids:
            yield name.decode()


@dataclass(slots=True)
class _Page:
    """A block of a FASTA: the records whose headers stand in it, and what comes before the first of them.

    `texts` int64 (2, n + 1) are first and last byte (exclusive) of the sequence text before the first header and of
    that behind each, `residues` (n,) the bytes that are not blank in all but the last, which may go on.
    """

    file: str
    offset: int
    block: bytes
    ids: list[bytes]
    offsets: list[int]
    texts: NDArray[np.int64]
    residues: NDArray[np.int64]

    def text(self, *, begun: bool) -> bytearray:
        """The sequence texts, blanks in place of headers; that before the first of them where a record is `begun`."""
        skipped = 0 if begun else 1
        first = int(self.texts[0, skipped])
        text = bytearray(memoryview(self.block)[first : self.texts[1, -1]])
        headers = spans(self.texts[1, skipped:-1] - first, self.texts[0, skipped + 1 :] - first)
        np.frombuffer(text, np.uint8)[headers] = _BLANK
        return text


@dataclass(slots=True)
class _Rest:
    """The record that was last begun and may go on in the next block, its tokens so far; at first none."""

    ids: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    parts: list[bytearray] = field(default_factory=list)

    def go_on(self, page: _Page, molecule: Molecule, tokens: bytearray) -> RecordBatch | None:
        """Add the next block's tokens; returns the records that are known to be whole, all but the last."""
        bounds = bounds_of(page.residues[0 if self.ids else 1 :])
        ids, offsets = self.ids + page.ids, self.offsets + page.offsets
        if len(ids) == 1:
            self.ids, self.offsets = ids, offsets
            self.parts.append(tokens)
            return None
        end = int(bounds[-1])
        begun = sum(map(len, self.parts))
        bounds[1:] += begun
        whole = _batch(page.file, molecule, ids[:-1], offsets[:-1], [*self.parts, memoryview(tokens)[:end]], bounds)
        self.ids, self.offsets, self.parts = ids[-1:], offsets[-1:], [tokens[end:]]
        return whole

    def finish(self, file: str, molecule: Molecule) -> RecordBatch:
        """The last record of a range."""
        parts, self.parts = self.parts, []
        return _batch(file, molecule, self.ids, self.offsets, parts, bounds_of([sum(map(len, parts))]))


class LettersCheck:
    """Judges by the first residues of a range whether they are those of the molecule that they are said to be.

    `says` and `hint` are the words of the error; {} is the molecule there, and the other one.
    """

    def __init__(self, file: str, molecule: Molecule, says: str, hint: str) -> None:
        self.file, self.molecule, self.says, self.hint = file, molecule, says, hint
        self.raw, self.offset, self.open = b"", -1, True

    def add(self, raw: bytes | bytearray, offset: int) -> None:
        """Take the next sequence text, until it is enough; `offset` of its first record."""
        if self.open:
            self.offset = offset if self.offset < 0 else self.offset
            self.raw += raw[:KIND_SAMPLE]
            if len(self.raw) >= KIND_SAMPLE:
                self.judge()

    def judge(self) -> None:
        """Raise UserError where the letters are those of the other molecule."""
        if self.open and alphabet.mistaken(self.molecule, self.raw):
            other, letters = ("prot", "amino acids") if self.molecule == "gene" else ("gene", "bases")
            what = f"{self.says.format(self.molecule)}, but the letters are {letters}"
            raise mistake(self.file, self.offset, what, self.hint.format(other))
        self.open = False


def _batch(
    file: str,
    molecule: Molecule,
    ids: list[bytes],
    offsets: list[int],
    parts: Iterable[bytearray | memoryview],
    bounds: NDArray[np.int64],
) -> RecordBatch:
    empty = np.flatnonzero(bounds[1:] == bounds[:-1])
    if len(empty):
        what = f"the sequence {ids[empty[0]].decode()} has no residues"
        raise mistake(file, offsets[empty[0]], what, "remove it, or give it its residues")
    molecules = np.full(len(ids), MOLECULES.index(molecule), np.uint8)
    return RecordBatch(file, ids, molecules, b"".join(parts), bounds, offsets)


def _pages(part: Range) -> Iterator[_Page]:
    """The blocks of a range from its first header on, to the last byte of its last record.

    Raises UserError for a file without any record or with text before the first one.
    """
    begun, fresh = False, True
    strict = part.start == 0
    # From the byte before: a header is one behind a line end.
    for offset, block in read_blocks(part.file, max(part.start - 1, 0), part.stop, lines=False):
        page = _page(part, offset, block, fresh=fresh, own=strict or begun)
        end = int(page.texts[1, -1])
        fresh = block.endswith(b"\n")
        if strict and not begun:
            _check_beginning(page)
        begun = begun or bool(page.ids)
        if begun:
            yield page
        if end < len(block) or (offset + end >= part.stop and not begun and not strict):
            return
    if strict and not begun:
        raise UserError(
            "is empty: there is no sequence in it", where=part.file, hint="take it out of `files` or fill it"
        )


def _page(part: Range, offset: int, block: bytes, *, fresh: bool, own: bool) -> _Page:
    """Find the headers; `fresh` where the block begins with a line. It is cut at the first header behind the range.

    What comes before the first header is read, and checked, with an earlier range where it is not this one's `own`.
    """
    blanks, codes = find_blanks(block), np.frombuffer(block, np.uint8)
    # Blanks and the block's two ends; all that follows are places among these, so that nothing has to be searched.
    edges = np.concatenate([[-1], blanks, [len(block)]])
    breaks = np.flatnonzero(codes[blanks] == _NEWLINE) + 1
    breaks = np.concatenate([[0] if fresh else breaks[:0], breaks, [len(edges) - 1]])
    starts = edges[breaks[:-1]] + 1
    lines = np.flatnonzero(codes.take(starts, mode="clip") == _HEADER)  # behind the last line end: that one itself
    first, behind = np.searchsorted(starts[lines] + offset, [part.start, part.stop]).tolist()
    if len(junk := find_junk(block, blanks)):
        joints = (codes[junk] == ord(_JOINT)) & _within(junk, starts[lines], edges[breaks[lines + 1]])
        begin = 0 if own else np.append(starts[lines], len(block))[first]
        check_text(part.file, offset, junk[~joints & (junk >= begin)])
    if _RETURN in block:
        returns = blanks[codes[blanks] == _RETURN]
        _refuse_returns(part.file, offset, returns[_within(returns, starts[lines], edges[breaks[lines + 1]] - 1)])
    stop = int(starts[lines[behind]]) if behind < len(lines) else len(block)
    lines = lines[first:behind]
    heads, before, after = starts[lines], breaks[lines], breaks[lines + 1]
    texts = np.stack([np.concatenate([[0], edges[after] + 1]), np.concatenate([heads, [stop]])])
    texts[0] = np.minimum(texts[0], stop)
    residues = texts[1, :-1] - texts[0, :-1] - (before - np.concatenate([[0], after])[:-1])
    ids = _ids(part.file, offset, block, heads, edges[before + 1], edges[after])
    return _Page(part.file, offset, block, ids, (heads + offset).tolist(), texts, residues)


def _refuse_returns(file: str, offset: int, returns: NDArray[np.int64]) -> None:
    """Refuse carriage returns within headers: the line ends of old Macs, behind which sequence may stand."""
    if len(returns):
        what, hint = "a carriage return within a header", "save the file with the line ends of Unix: `tr '\\r' '\\n'`"
        raise mistake(file, offset + int(returns[0]), what, hint)


def _within(places: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which places are in one of the parts, which are in order."""
    number = np.searchsorted(starts, places, "right") - 1
    return (number >= 0) & (places < np.append(ends, -1)[number])


def _ids(
    file: str, offset: int, block: bytes, heads: NDArray[np.int64], blanks: NDArray[np.int64], ends: NDArray[np.int64]
) -> list[bytes]:
    """The first word of each header, which ends at the first blank in it; int64 (n,) places in the block."""
    ids = [block[start:end] for start, end in zip((heads + 1).tolist(), blanks.tolist(), strict=True)]
    if all(ids) and block.isascii():
        return ids
    lines = zip(heads.tolist(), ends.tolist(), strict=True)
    return [_first_word(file, offset + head, block[head + 1 : end]) for head, end in lines]


def _first_word(file: str, offset: int, header: bytes) -> bytes:
    if not (words := decoded(file, offset, header) and header.replace(_JOINT, b" ").split(None, 1)):
        raise mistake(file, offset, "a header without an id", "give the sequence an id: the first word after '>'")
    return words[0]


def _check_beginning(page: _Page) -> None:
    """Refuse text before the first header."""
    text = page.block[: page.texts[1, 0]]
    if text.strip():
        hint = "a FASTA begins with a header line: '>', directly followed by the id; or is it another format?"
        at = page.offset + len(text) - len(text.lstrip())
        raise mistake(page.file, at, "text before the first header line", hint)


def _bad_residue(page: _Page, rest: _Rest) -> UserError:
    """The error about the first sequence text of a page with a '>' or a character that is not ASCII in it."""
    starts, ends = page.texts[:, 0 if rest.ids else 1 :].tolist()
    pieces = [page.block[start:end] for start, end in zip(starts, ends, strict=True)]
    bad = next(number for number, piece in enumerate(pieces) if b">" in piece or not piece.isascii())
    name, offset = (rest.ids + page.ids)[bad], (rest.offsets + page.offsets)[bad]
    if b">" in pieces[bad]:
        hint = "start a new line before '>'; files put together with `cat` need a line end at the end of each"
        at = page.offset + starts[bad] + pieces[bad].index(b">")
        return mistake(page.file, at, f"a '>' within the sequence {name.decode()}", hint)
    hint = "residues are plain letters; look for accents, typographic dashes or blanks"
    return mistake(page.file, offset, f"the sequence {name.decode()} has a character that is not ASCII", hint)
