"""BERT corruption (SPEC section 2), keyed by (seed, epoch, sample): the same masks in any pack, on any rank."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lucavirus import alphabet
from lucavirus.counters import U64, below, key, keys, mix
from lucavirus.tasks import Molecule

# The part of the chosen tokens that becomes [MASK]; of the rest, one half is replaced and one half stays.
_MASKED, _REPLACED = 0.8, 0.9
# Epochs are counted from 0; evaluation masks are drawn once, for all of them.
EVALUATION_EPOCH = 2**32


def sample_keys(seed: int, epoch: int, samples: NDArray[np.int64]) -> U64:
    """One key a sample, for `corrupt`."""
    return keys(key(seed, epoch), samples.astype(np.uint64))


def random_letters(molecule: Molecule, choice: Literal["molecule", "all"]) -> NDArray[np.uint8]:
    """The tokens from which a random one is drawn: the molecule's own, or all but [PAD]."""
    return alphabet.letters(molecule) if choice == "molecule" else np.arange(1, len(alphabet.TOKENS), dtype=np.uint8)


def corrupt(
    tokens: NDArray[np.uint8], offsets: NDArray[np.int64], keys: U64, probability: float, letters: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Choose tokens to predict and corrupt them.

    `tokens` (T,) are bodies only, one after the other, none empty; sequence i is tokens[offsets[i]:offsets[i+1]];
    `keys` (N,) from `sample_keys`; random tokens are drawn from `letters`. Returns the corrupted tokens (T,) and which
    were chosen (T,). A sequence in which none was chosen gets one random position masked.
    """
    lengths = np.diff(offsets)
    place = np.arange(len(tokens), dtype=np.uint64)
    draws = mix(np.repeat(keys - offsets[:-1].astype(np.uint64), lengths) + place)
    chosen = below(draws, probability)
    forced = _lowest_where_none(draws, chosen, offsets)

    where = np.flatnonzero(chosen)
    corrupted = tokens.copy()
    of_chosen = draws[where]
    action = mix(of_chosen ^ np.uint64(1))
    masked = below(action, _MASKED)
    corrupted[where[masked]] = alphabet.MASK
    replaced = below(action, _REPLACED) & ~masked
    random = mix(of_chosen[replaced] ^ np.uint64(2))
    corrupted[where[replaced]] = letters[random % np.uint64(len(letters))]

    chosen[forced] = True
    corrupted[forced] = alphabet.MASK
    return corrupted, chosen


def _lowest_where_none(draws: U64, chosen: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    empty = np.flatnonzero(~np.logical_or.reduceat(chosen, offsets[:-1]))
    return np.array([offsets[i] + np.argmin(draws[offsets[i] : offsets[i + 1]]) for i in empty], dtype=np.int64)
