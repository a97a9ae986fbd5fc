"""Random numbers that are functions of their coordinates: no state to save, none to lose.

Built on the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of 64 bits with full avalanche.
"""

from __future__ import annotations

import math
from functools import lru_cache

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


@lru_cache(maxsize=256)
def key(*parts: int) -> np.uint64:
    """Fold coordinates (seed, epoch, ...) into one 64-bit key."""
    folded = np.zeros(1, np.uint64)
    for part in parts:
        folded = keys(folded, np.array([part], np.uint64))
    return np.uint64(folded[0])


def keys(start: U64 | np.uint64, coordinates: U64) -> U64:
    """Keys of points by their last coordinate; `start` is the key of all others, of each point or in common."""
    return mix(mix(coordinates) ^ start)


def below(draws: U64, probability: float) -> NDArray[np.bool_]:
    """True for a part `probability` of 64-bit draws, by their upper 53 bits."""
    return (draws >> np.uint64(11)) < np.uint64(math.ceil(probability * 2.0**53))


def permute(index: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Images of `index` under the epoch's permutation of range(size), without building the permutation.

    A generalised Feistel network on pairs (Black and Rogaway, 2002): i = a + width * b, with width * height the least
    that holds all; what lies outside, less than one in the square root of the size, is walked on until it is inside.
    Memory and time depend on len(index) alone, so that a corpus of any size starts at once at any position.
    """
    width = math.isqrt(size - 1) + 1
    sides = np.uint64(width), np.uint64(-(-size // width))
    rounds = tuple(key(seed, epoch, number) for number in range(_FEISTEL_ROUNDS))
    values = index.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], sides, rounds)
        outside = outside[values[outside] >= np.uint64(size)]
    return values.astype(np.int64)


def _feistel(values: U64, sides: tuple[np.uint64, np.uint64], rounds: tuple[np.uint64, ...]) -> U64:
    width, height = sides
    b, a = np.divmod(values, width)
    for even, odd in zip(rounds[::2], rounds[1::2], strict=True):
        a = (a + mix(b ^ even) % width) % width
        b = (b + mix(a ^ odd) % height) % height
    return a + width * b
