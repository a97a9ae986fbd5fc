"""Input files in large blocks: plain ones by byte ranges, compressed ones unpacked ahead; where a mistake stands."""

from __future__ import annotations

import gzip
import itertools
import os
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from lucavirus.errors import UserError

BLOCK = 1 << 20  # bytes read at once: what is made of them stays in the cache
OVERRUN = 1 << 16  # bytes read at once behind a range, where only the rest of a record is wanted
AHEAD = 3  # blocks that are unpacked ahead
BOM = b"\xef\xbb\xbf"

# Small files share a unit up to this part of it; bases take so many times as much as when they are compressed.
_SHARED, _UNPACKED = 8, 4

Stream = BufferedReader | gzip.GzipFile


@dataclass(frozen=True, slots=True)
class Range:
    """The records of `file` that begin in the bytes [start, end); 0, 0 means the whole file."""

    file: str
    start: int = 0
    end: int = 0

    @property
    def stop(self) -> int:
        """`end`, or a number above all where the unit is the whole file."""
        return self.end or sys.maxsize


Unit = list[Range]  # a unit of work: what one rank reads, and writes into shards of its own


def plan_units(files: Iterable[str], unit_bytes: int) -> list[Unit]:
    """Divide files, by their sizes alone, into equal ranges of at most `unit_bytes`, so that ranks have equal shares.

    A compressed or empty file is one range. Each is a unit, but small files that follow each other share one, up to an
    eighth of `unit_bytes`: a unit takes milliseconds however small it is, when it is written and whenever it is opened.
    """
    units, room = list[Unit](), -1
    for file in files:
        size, packed = os.path.getsize(file), file.endswith(".gz")
        unpacked = size * _UNPACKED if packed else size
        parts = -(-size // unit_bytes)
        if packed or not parts:
            ranges = [Range(file)]
        else:
            ranges = [Range(file, size * part // parts, size * (part + 1) // parts) for part in range(parts)]
        if unpacked <= room:
            units[-1] += ranges
            room -= unpacked
        else:
            units += [[part] for part in ranges]
            room = unit_bytes // _SHARED - unpacked
    return units


@contextmanager
def reading(file: str) -> Iterator[Stream]:
    """Open a plain or .gz file for reading bytes; a failure in reading becomes a UserError."""
    opened: Any = igzip.open if file.endswith(".gz") else open
    with _failures_told(file), opened(file, "rb") as stream:
        yield stream


def read_blocks(file: str, start: int, stop: int, *, lines: bool) -> Iterator[tuple[int, bytes]]:
    """Yield blocks of a file, from byte `start` on, with their offsets; a byte order mark is left out.

    With `lines` a block ends at a line end; else a block may end within a line, but not within one that begins with
    '>'. Reading goes on behind `stop`, in small steps. A compressed file is read from its beginning, whatever `start`.
    """
    with reading(file) as stream:
        if file.endswith(".gz"):
            # ISA-L works without the interpreter's lock. Its own thread for that may miss a file's last bytes, when it
            # ends between two looks of who waits for it.
            chunks = read_ahead(iter(lambda: stream.read(max(BLOCK, len(BOM))), b""))
            first = next(chunks, b"")
            start = len(BOM) if first.startswith(BOM) else 0
            chunks = itertools.chain([first[start:]], chunks)
        else:
            start = max(start, len(BOM)) if stream.read(len(BOM)) == BOM else start
            chunks = _chunks(stream, start, stop)
        yield from _whole_lines(chunks, start, lines=lines)


def read_ahead(items: Iterator[bytes]) -> Iterator[bytes]:
    """The same items, some of them made in advance by a thread."""
    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(next, items, None) for _ in range(AHEAD))
        while (item := ahead.popleft().result()) is not None:
            ahead.append(pool.submit(next, items, None))
            yield item


def check_text(file: str, offset: int, junk: NDArray[np.int64]) -> None:
    """Refuse a block with `junk`, the positions of control characters in it, unless there are none."""
    if len(junk):
        hint = "expected plain text (UTF-8); a gzip file must be named .gz, other packings must be unpacked first"
        raise mistake(file, offset + int(junk[0]), "is not text", hint)


def find_junk(block: bytes, blanks: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Positions of control characters other than tab, line ends and form feeds (9 to 13), int64.

    `blanks` are those of all bytes up to 32 in the block, where they are known.
    """
    blanks = find_blanks(block) if blanks is None else blanks
    low = np.frombuffer(block, dtype=np.uint8)[blanks]
    return blanks[(low < 9) | ((low > 13) & (low < 32))]


def find_blanks(block: bytes) -> NDArray[np.int64]:
    """Positions of blanks and control characters, int64."""
    return np.flatnonzero(np.frombuffer(block, dtype=np.uint8) <= 32)


def decoded(file: str, offset: int, line: bytes) -> str:
    """The text of a line at `offset`; raises UserError where it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        hint = "save the file as UTF-8, for example with `iconv -f latin1 -t utf-8`"
        raise mistake(file, offset, "the line is not valid UTF-8", hint) from None


def mistake(file: str, offset: int, what: str, hint: str) -> UserError:
    """The error about a byte of the uncompressed file."""
    return UserError(what, where=line_of(file, offset), hint=hint)


def line_of(file: str, offset: int) -> str:
    """`file:line` of a byte of the uncompressed file; counts the lines before it, so ask only to report a mistake."""
    line, left = 1, offset
    with reading(file) as stream:
        while left > 0 and (block := stream.read(min(left, BLOCK))):
            line, left = line + block.count(b"\n"), left - len(block)
    return f"{file}:{line}"


@contextmanager
def _failures_told(file: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, isal_zlib.error) as error:  # type: ignore[misc]
        hint = "check its path and rights; a .gz that is cut short or damaged must be copied again (`gzip -t` tells)"
        if file.endswith(".gz") and _is_not_gzip(file):
            hint = "it is no gzip file: take .gz off its name, or pack it"
        raise UserError(f"cannot be read ({error})", where=file, hint=hint) from None


def _is_not_gzip(file: str) -> bool:
    try:
        with open(file, "rb") as stream:
            return not b"\x1f\x8b".startswith(stream.read(2))  # one byte of a file that was cut short too
    except OSError:
        return False


def _chunks(stream: Stream, start: int, stop: int) -> Iterator[bytes]:
    stream.seek(start)
    while chunk := stream.read(min(BLOCK, stop - start if start < stop else OVERRUN)):
        yield chunk
        start += len(chunk)


def _whole_lines(chunks: Iterable[bytes], offset: int, *, lines: bool) -> Iterator[tuple[int, bytes]]:
    held: list[bytes] = []  # the beginning of a line that is to stay whole
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if held and not end:
            held.append(chunk)
            continue
        if not lines and chunk[end : end + 1] != b">":
            end = len(chunk)
        block = b"".join([*held, chunk[:end]])
        held = [chunk[end:]] if end < len(chunk) else []
        if block:
            yield offset, block
            offset += len(block)
    if held:
        yield offset, b"".join(held)
