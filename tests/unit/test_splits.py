"""Assignment by hash, sources with a fixed split, and rows that would leak."""

from __future__ import annotations

import numpy as np
import pytest

from lucavirus.config_data import Split
from lucavirus.splits import assign, drop_leaks, length_histogram

RNG = np.random.default_rng(0)
PARENTS = np.repeat(RNG.integers(0, 2**64, 4000, dtype=np.uint64), 3)
FREE = np.full(len(PARENTS), -1, np.int8)


def test_fractions() -> None:
    assigned = assign(PARENTS, FREE, Split(dev=0.1, test=0.05))
    # 4,000 sequences: the deviation of a part of 0.1 is 0.005.
    assert np.mean(assigned == 1) == pytest.approx(0.1, abs=0.02)
    assert np.mean(assigned == 2) == pytest.approx(0.05, abs=0.015)


def test_windows_of_a_sequence_stay_together_wherever_they_stand() -> None:
    split = Split(dev=0.2, test=0.2)
    assigned = assign(PARENTS, FREE, split).reshape(-1, 3)
    assert (assigned == assigned[:, :1]).all()
    order = RNG.permutation(len(PARENTS))
    np.testing.assert_array_equal(assign(PARENTS[order], FREE, split), assigned.ravel()[order])


def test_numbers_take_that_many_sequences() -> None:
    assigned = assign(PARENTS, FREE, Split(dev=100, test=50))
    assert [len(np.unique(PARENTS[assigned == n])) for n in range(3)] == [3850, 100, 50]


def test_one_sequence_is_a_number() -> None:
    for dev, test in ((1, 1), (1, 0), (0, 1)):
        assigned = assign(PARENTS, FREE, Split(dev=dev, test=test))
        assert [len(np.unique(PARENTS[assigned == n])) for n in range(3)] == [4000 - dev - test, dev, test]


def test_a_source_may_name_the_training_set() -> None:
    fixed = FREE.copy()
    fixed[:600] = 0
    assert (assign(PARENTS, fixed, Split(dev=0.5, test=0.4))[:600] == 0).all()


def test_a_source_may_name_its_split() -> None:
    fixed = FREE.copy()
    fixed[:600] = 2
    assigned = assign(PARENTS, fixed, Split(dev=0.5, test=0))
    assert (assigned[:600] == 2).all() and not (assigned[600:] == 2).any()


def test_rows_of_dev_and_test_that_are_in_train_go() -> None:
    assigned = np.array([0, 0, 1, 1, 2, 2, 0], np.int8)
    contents = np.array([5, 6, 5, 7, 6, 7, 5], np.uint64)
    parents = np.array([15, 16, 15, 17, 18, 19, 15], np.uint64)
    assert drop_leaks(assigned, contents, parents).tolist() == [False, False, True, False, True, False, False]
    parents[3] = 16  # another window of a genome that train has
    assert drop_leaks(assigned, contents, parents).tolist() == [False, False, True, True, True, False, False]


def test_histogram() -> None:
    bins = length_histogram(np.array([1, 2, 2, 9]), [1, 3, 10])
    assert bins == [{"from": 1, "to": 3, "sequences": 3}, {"from": 3, "to": 10, "sequences": 1}]
