"""64-bit hashes of sequences, texts and rows, stable over machines and versions, made by the thousand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lucavirus.counters import U64, keys, mix


def text_hashes(texts: Sequence[bytes]) -> U64:
    """Hash each text (SipHash): uint64 (N,)."""
    from pandas.util import hash_array  # here: a training never hashes, and pandas takes 30 MB a process

    if not texts:
        return np.empty(0, np.uint64)
    return hash_array(np.array(texts, dtype=object), categorize=False)


def sequence_hashes(bodies: Sequence[bytes], molecules: NDArray[np.uint8]) -> U64:
    """Hash each sequence as the model sees it: uint64 (N,) of its tokens and its molecule (uint8 (N,))."""
    return mix(text_hashes(bodies) ^ molecules.astype(np.uint64))


def row_hashes(ids: U64, contents: U64, labels: U64) -> U64:
    """Hash what a row is known by, from the hashes of its id, its body and its labels (0 without): uint64 (N,)."""
    return keys(keys(keys(np.uint64(0), ids), contents), labels)
