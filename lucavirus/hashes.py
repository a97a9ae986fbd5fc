"""64-bit hashes of sequences, texts and rows, stable over machines and versions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest

from lucavirus.counters import U64, keys, mix


def text_hashes(texts: Iterable[bytes]) -> U64:
    """Hash each text (XXH3 of 64 bits): uint64 (N,)."""
    return _numbers([xxh3_64_digest(text) for text in texts])


def sequence_hashes(
    tokens: bytes, start: NDArray[np.int64], end: NDArray[np.int64], molecules: NDArray[np.uint8]
) -> U64:
    """Hash each sequence as the model sees it: uint64 (N,) of its tokens [start, end) and its molecule (uint8 (N,))."""
    # One sequence at a time is copied out, into memory that stays in the cache.
    digests = [xxh3_64_digest(tokens[a:b]) for a, b in zip(start.tolist(), end.tolist(), strict=True)]
    return mix(_numbers(digests) ^ molecules.astype(np.uint64))


def row_hashes(ids: U64, contents: U64, labels: U64) -> U64:
    """Hash what a row is known by, from the hashes of its id, its body and its labels (0 without): uint64 (N,)."""
    return keys(keys(keys(np.uint64(0), ids), contents), labels)


def _numbers(digests: list[bytes]) -> U64:
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
