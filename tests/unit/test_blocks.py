"""Blocks of plain and compressed files: every byte once, gzip in all its forms, failures told."""

from __future__ import annotations

import gzip
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lucavirus import blocks
from lucavirus.blocks import read_ahead, read_blocks
from lucavirus.errors import UserError

TEXT = b"".join(b">s%d title\n" % n + bytes(random.Random(n).choices(b"ACGT", k=n % 90)) + b"\n" for n in range(900))


def read(path: Path, start: int = 0, *, lines: bool = True) -> list[tuple[int, bytes]]:
    return list(read_blocks(str(path), start, sys.maxsize, lines=lines))


def members(size: int) -> bytes:
    return b"".join(gzip.compress(TEXT[at : at + size]) for at in range(0, len(TEXT), size))


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(TEXT),
        members(777),
        members(5000) + b"\0" * 5000,
        gzip.compress(TEXT[:99]) + b"\0" * 300 + gzip.compress(TEXT[99:]),
        gzip.compress(b"") + gzip.compress(TEXT) + gzip.compress(b""),
    ],
)
def test_every_byte_of_a_gzip_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, size: int, lines: bool
) -> None:
    for name in ("BLOCK",):
        monkeypatch.setattr(blocks, name, size)
    path = tmp_path / "a.fa.gz"
    path.write_bytes(content)
    found = read(path, lines=lines)
    assert b"".join(block for _, block in found) == TEXT
    assert all(TEXT[offset : offset + len(block)] == block for offset, block in found)
    ends = [block.endswith(b"\n") for _, block in found]
    assert all(ends) if lines else size > 100 or not all(ends)
    # A header is never torn, wherever it stands.
    assert all(block[block.rfind(b"\n") + 1 :][:1] != b">" for _, block in found)


def test_a_gzip_that_unpacks_to_much_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 10_000)
    path = tmp_path / "n.fa.gz"
    path.write_bytes(gzip.compress(b"N" * 10**6))
    found = read(path, lines=False)
    assert sum(len(block) for _, block in found) == 10**6 and max(len(block) for _, block in found) <= 10_000


@pytest.mark.parametrize("junk", [b"junk", b"\0\0junk"])
def test_what_follows_a_gzip_must_be_gzip(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(TEXT) + junk)
    with pytest.raises(UserError, match="cannot be read"):
        read(path)


def test_a_range_is_left_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "OVERRUN", 10)
    path = tmp_path / "a.fa"
    path.write_bytes(b"A" * 5000)
    assert [len(block) for _, block in read_blocks(str(path), 100, 1100, lines=False)][:3] == [1000, 10, 10]


def test_reading_ahead_keeps_order_and_passes_errors_on() -> None:
    def items() -> Iterator[bytes]:
        yield from (b"1", b"2", b"3", b"4", b"5", b"6")
        time.sleep(0.01)
        raise ValueError("broken")

    seen = []
    with pytest.raises(ValueError, match="broken"):
        for item in read_ahead(items()):
            seen.append(item)
    assert b"".join(seen) == b"123456"
