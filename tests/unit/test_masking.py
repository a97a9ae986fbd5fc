"""Statistics of the corruption, and that it depends on (seed, epoch, sample) alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lucavirus import alphabet
from lucavirus.masking import EVALUATION_EPOCH, corrupt, random_letters, sample_keys
from lucavirus.tasks import MOLECULES

GENE, PROT = alphabet.letters("gene"), alphabet.letters("prot")


def _bodies(count: int, length: int, letters: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    tokens = np.random.default_rng(3).choice(letters, count * length)
    return tokens, np.arange(0, count * length + 1, length, dtype=np.int64)


def _corrupt(tokens: Any, offsets: Any, molecule: int = 0, **changes: Any) -> Any:
    count = len(offsets) - 1
    keys = sample_keys(changes.pop("seed", 1111), changes.pop("epoch", 0), np.arange(count))
    letters = random_letters(MOLECULES[molecule], changes.pop("random_tokens", "molecule"))
    return corrupt(tokens, offsets, keys, changes.pop("probability", 0.15), letters)


def test_proportions() -> None:
    tokens, offsets = _bodies(400, 1000, PROT)
    corrupted, chosen = _corrupt(tokens, offsets, 1)
    # 400,000 tokens: the deviation of the part chosen is 0.0006, of the parts of the chosen below 0.002.
    assert abs(chosen.mean() - 0.15) < 0.003
    masked = corrupted[chosen] == alphabet.MASK
    same = corrupted[chosen] == tokens[chosen]
    assert abs(masked.mean() - 0.8) < 0.008
    # One random letter in 20 is the one that stood there.
    assert abs(same.mean() - (0.1 + 0.1 / 20)) < 0.008
    assert (corrupted[~chosen] == tokens[~chosen]).all()


def test_random_tokens_are_the_molecules_own_and_uniform() -> None:
    for molecule, letters in ((0, GENE), (1, PROT)):
        tokens = np.full(1_000_000, alphabet.OTHER_BASE + 21, np.uint8)  # a letter that is in neither set
        assert tokens[0] not in letters
        corrupted, chosen = _corrupt(tokens, np.arange(0, 1_000_001, 1000), molecule)
        replaced = corrupted[chosen & (corrupted != alphabet.MASK) & (corrupted != tokens)]
        values, counts = np.unique(replaced, return_counts=True)
        np.testing.assert_array_equal(values, np.sort(letters))
        assert abs(len(replaced) / chosen.sum() - 0.1) < 0.005
        assert (abs(counts / len(replaced) * len(letters) - 1) < 0.15).all()


def test_the_originals_draw_has_all_tokens_but_pad() -> None:
    tokens, offsets = _bodies(400, 1000, GENE)
    corrupted, chosen = _corrupt(tokens, offsets, random_tokens="all")
    replaced = corrupted[chosen & (corrupted != tokens)]
    assert set(np.unique(replaced)) == set(range(1, 39))


def test_masks_do_not_depend_on_company_or_place() -> None:
    tokens, offsets = _bodies(3, 200, PROT)
    together, chosen = _corrupt(tokens, offsets, 1)
    key = sample_keys(1111, 0, np.array([1]))
    alone = corrupt(tokens[200:400], np.array([0, 200]), key, 0.15, PROT)
    np.testing.assert_array_equal(together[200:400], alone[0])
    np.testing.assert_array_equal(chosen[200:400], alone[1])


def test_masks_change_with_epoch_seed_and_sample() -> None:
    tokens = np.full(2000, GENE[0])
    offsets = np.array([0, 1000, 2000])
    _, first = _corrupt(tokens, offsets)
    for other in (_corrupt(tokens, offsets, epoch=1)[1], _corrupt(tokens, offsets, seed=1)[1], np.roll(first, 1000)):
        # Independent masks agree on both being chosen in 0.15 squared of the places.
        assert abs((first & other).mean() - 0.0225) < 0.012


def test_a_sequence_in_which_none_was_chosen_gets_one_mask() -> None:
    count = 3000
    tokens, offsets = _bodies(count, 2, GENE)
    corrupted, chosen = _corrupt(tokens, offsets, probability=0.01)
    per_sequence = chosen.reshape(count, 2).sum(1)
    assert per_sequence.min() == 1
    forced = (chosen & (corrupted == alphabet.MASK)).reshape(count, 2)[per_sequence == 1]
    # Nearly all are forced here, and the place is random.
    assert forced.any(1).mean() > 0.99 and abs(forced[:, 0].mean() - 0.5) < 0.05


def test_the_masks_of_a_version_stay() -> None:
    key = sample_keys(1111, 2, np.array([7]))
    corrupted, chosen = corrupt(np.full(60, PROT[0], np.uint8), np.array([0, 60]), key, 0.3, PROT)
    where = [1, 2, 3, 4, 6, 13, 15, 17, 19, 21, 25, 26, 30, 34, 40, 42, 48, 52, 56, 59]
    assert np.flatnonzero(chosen).tolist() == where
    assert corrupted[where].tolist() == [4, 4, 4, 25, 4, 10, *[4] * 13, 12]
    assert EVALUATION_EPOCH == 2**32
