"""BERT corruption (SPEC section 2), keyed by (seed, epoch, sample): the same masks in any pack, on any rank."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lucavirus import alphabet
from lucavirus.counters import U64, key, mix, uniform

# The part of the chosen tokens that becomes [MASK]; of the rest, one half is replaced and one half stays.
_MASKED, _REPLACED = 0.8, 0.9
# Epochs are counted from 0; evaluation masks are drawn once, for all of them.
EVALUATION_EPOCH = 2**32


def sample_keys(seed: int, epoch: int, samples: NDArray[np.int64]) -> U64:
    """One key a sample, for `corrupt`."""
    return key(seed, epoch, samples.astype(np.uint64))


def corrupt(
    tokens: NDArray[np.uint8],
    molecule: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    keys: U64,
    probability: float,
    random_tokens: Literal["molecule", "all"] = "molecule",
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Choose tokens to predict and corrupt them.

    `tokens` (T,) are bodies only, one after the other, none empty; `molecule` (N,) is 0 gene, 1 prot; sequence i is
    tokens[offsets[i]:offsets[i+1]]; `keys` (N,) from `sample_keys`. Returns the corrupted tokens (T,) and which were
    chosen (T,). A sequence in which none was chosen gets one random position masked.
    """
    lengths = np.diff(offsets)
    place = np.arange(len(tokens), dtype=np.uint64) - np.repeat(offsets[:-1].astype(np.uint64), lengths)
    draws = mix(np.repeat(keys, lengths) + place)
    chosen = uniform(draws) < probability
    forced = _lowest_where_none(draws, chosen, offsets)

    where = np.flatnonzero(chosen)
    corrupted = tokens.copy()
    action = uniform(mix(draws[where] ^ np.uint64(1)))
    corrupted[where[action < _MASKED]] = alphabet.MASK
    replaced = where[(action >= _MASKED) & (action < _REPLACED)]
    of_gene = np.repeat(molecule, lengths)[replaced] == 0
    corrupted[replaced] = _random_tokens(mix(draws[replaced] ^ np.uint64(2)), of_gene, random_tokens)

    chosen[forced] = True
    corrupted[forced] = alphabet.MASK
    return corrupted, chosen


def _lowest_where_none(draws: U64, chosen: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    empty = np.flatnonzero(np.add.reduceat(chosen, offsets[:-1], dtype=np.int64) == 0)
    return np.array([offsets[i] + np.argmin(draws[offsets[i] : offsets[i + 1]]) for i in empty], dtype=np.int64)


def _random_tokens(draws: U64, of_gene: NDArray[np.bool_], choice: str) -> NDArray[np.uint8]:
    if choice == "all":
        return (1 + draws % np.uint64(len(alphabet.TOKENS) - 1)).astype(np.uint8)
    gene, prot = alphabet.letters("gene"), alphabet.letters("prot")
    picked: NDArray[np.uint8] = np.where(
        of_gene, gene[draws % np.uint64(len(gene))], prot[draws % np.uint64(len(prot))]
    )
    return picked
