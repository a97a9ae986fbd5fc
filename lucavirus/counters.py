"""Random numbers that are functions of their coordinates: no state to save, none to lose.

Built on the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of 64 bits with full avalanche.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_FEISTEL_ROUNDS = 8


def mix(values: U64) -> U64:
    """Scramble 64-bit integers, one by one."""
    x = values + _GOLDEN
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        x ^= x >> shift
        x *= factor
    x ^= x >> _SHIFTS[2]
    return x


def key(*parts: int | U64) -> U64:
    """Fold coordinates (seed, epoch, sample, ...) into 64-bit keys; arrays among them broadcast."""
    folded: U64 = np.zeros(1, np.uint64)
    for part in parts:
        folded = mix(folded ^ mix(np.atleast_1d(np.asarray(part, dtype=np.uint64))))
    return folded


def uniform(draws: U64) -> NDArray[np.float64]:
    """Turn 64-bit draws into floats in [0, 1), with 53 bits each."""
    return (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(index: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Images of `index` under the epoch's permutation of range(size), without building the permutation.

    A balanced Feistel network over the next power of four, walked until the image lies inside (Black and Rogaway,
    2002): memory and time depend on len(index) alone, so that a corpus of any size starts at once at any position.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    rounds = [key(seed, epoch, n)[0] for n in range(_FEISTEL_ROUNDS)]
    values = index.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, rounds)
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def _feistel(values: U64, half: np.uint64, rounds: list[np.uint64]) -> U64:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low
    for round_key in rounds:
        left, right = right, left ^ (mix(right ^ round_key) & low)
    return (left << half) | right
