"""The order of samples, who computes them, and the schedule's numbers."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lucavirus.config import ORDER, Run
from lucavirus.continuing import differences
from lucavirus.counters import permute
from lucavirus.flops import encoder_flops
from lucavirus.model import Architecture
from lucavirus.optimizer import learning_rate
from lucavirus.plan import Plan, automatic_max_steps, crosses, pack, sequence_costs, share
from lucavirus.prepare import Prepared


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 10, 257, 5000])
def test_permutation_is_a_bijection(size: int) -> None:
    image = permute(np.arange(size), size, seed=1111, epoch=3)
    assert sorted(image.tolist()) == list(range(size))


def test_permutation_is_the_same_asked_whole_or_in_parts() -> None:
    whole = permute(np.arange(1000), 1000, 7, 0)
    parts = np.concatenate([permute(np.arange(start, start + 100), 1000, 7, 0) for start in range(0, 1000, 100)])
    np.testing.assert_array_equal(whole, parts)


def test_permutation_looks_random() -> None:
    size = 20_000
    first, second = (permute(np.arange(size), size, 7, epoch) for epoch in (0, 1))
    assert np.mean(first == second) < 0.001 and np.mean(first == np.arange(size)) < 0.001
    # For independent uniforms these correlations are 0, with a deviation of 1/sqrt(size) = 0.007.
    assert abs(np.corrcoef(first, np.arange(size))[0, 1]) < 0.03
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_permutation_of_a_huge_corpus_is_immediate() -> None:
    size = 15_718_611
    image = permute(np.arange(12_000_000, 12_000_256), size, 1111, 2)
    assert len(set(image.tolist())) == 256 and image.min() >= 0 and image.max() < size


def test_the_order_of_a_version_stays() -> None:
    # Where these numbers change, config.ORDER must too.
    assert ORDER == 2
    assert permute(np.arange(10), 10, 1111, 0).tolist() == [9, 7, 3, 2, 1, 6, 0, 4, 8, 5]
    assert permute(np.array([0, 1, 15_718_610]), 15_718_611, 1111, 3).tolist() == [7_209_611, 7_534_371, 2_529_867]


def test_a_run_begun_in_another_order_is_refused() -> None:
    now = Run().meaning()
    before = {name: value for name, value in now.items() if name != "order of samples"}
    assert differences(before, now) == ["order of samples: None -> 2"]


PLAN = Plan(samples=100, gpus=2, batch_size=3, accumulation=4, seed=5, epochs=3)


def test_each_sample_once_an_epoch() -> None:
    assert (PLAN.sequences_per_update, PLAN.updates_per_epoch, PLAN.steps_per_epoch) == (24, 5, 17)
    for epoch in range(3):
        seen = np.concatenate([PLAN.update_samples(5 * epoch + n) for n in range(5)])
        assert sorted(seen.tolist()) == list(range(100))
    assert [len(PLAN.update_samples(n)) for n in range(5)] == [24, 24, 24, 24, 4]


def test_steps_count_micro_batches_and_the_last_update_has_the_remainder() -> None:
    # 100 samples in steps of 6 are 17 steps an epoch; 4 steps an update, the fifth update has the last one.
    assert [PLAN.position(u).step for u in range(7)] == [0, 4, 8, 12, 16, 17, 21]
    assert (PLAN.position(7).epoch, PLAN.position(7).index) == (1, 2)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_each_sample_once_over_ranks_and_packs(ranks: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 900, 64)
    found: list[int] = []
    for mine in share(sequence_costs(lengths, 64), ranks):
        for members in pack(lengths[mine], 1000):
            assert lengths[mine][members].sum() <= 1000
            found += mine[members].tolist()
    assert sorted(found) == list(range(64))


def test_ranks_get_like_amounts_of_work() -> None:
    costs = sequence_costs(np.random.default_rng(0).integers(100, 3074, 256), 2560)
    work = [costs[mine].sum() for mine in share(costs, 8)]
    assert max(work) / np.mean(work) < 1.01


def test_more_ranks_than_samples_leaves_some_without_work() -> None:
    assert [len(part) for part in share(np.ones(2), 4)] == [1, 1, 0, 0]


def test_pack_is_best_fit_decreasing() -> None:
    packs = [members.tolist() for members in pack(np.array([5, 9, 4, 6, 1]), 10)]
    assert packs == [[1, 4], [3, 2], [0]]


def test_intervals_are_crossed_once() -> None:
    assert [crosses(a, a + 4, 10) for a in range(0, 40, 4)] == [
        False, False, True, False, True, False, False, True, False, True,
    ]  # fmt: skip


def test_max_steps_is_the_seeds_number() -> None:
    assert automatic_max_steps(Fraction(15_718_611 * 4, 8 * 1 * 32), 2e-4, 1.5e-4) == 982_413


def test_the_last_update_of_little_data_has_the_final_rate() -> None:
    run = Run(gpus=1, max_epochs=5, max_steps="auto", learning_rate=0.01, final_learning_rate=0.002)
    prepared: Any = SimpleNamespace(run=run, plan=Plan.of(run, 100))
    max_steps = Prepared.max_steps(prepared)
    assert (prepared.plan.updates, max_steps) == (20, 25)
    assert learning_rate(20, 0.01, 0, max_steps) == pytest.approx(0.002)


def test_plan_of_the_full_recipe() -> None:
    plan = Plan.of(Run(), 15_718_611)
    assert (plan.sequences_per_update, plan.updates_per_epoch, plan.updates) == (256, 61_401, 245_604)
    assert plan.position(6250).step == 200_000


def test_costs_are_the_work_of_the_encoder() -> None:
    architecture = Architecture(64, 3, 4, 1024, {})
    costs = sequence_costs(np.array([3, 100, 3074]), 64)
    work = [encoder_flops(architecture, length, length**2) for length in (3, 100, 3074)]
    assert (costs / costs[0]).tolist() == pytest.approx([each / work[0] for each in work])


def test_an_update_has_its_part_of_the_order_of_its_epoch_and_seed() -> None:
    np.testing.assert_array_equal(PLAN.update_samples(6), permute(np.arange(24, 48), 100, 5, 1))
    assert Plan.of(Run(seed=7, max_epochs=9), 100) == Plan(100, 8, 1, 32, 7, 9)


def test_best_fit_takes_the_fullest_pack_whichever_was_first() -> None:
    assert [members.tolist() for members in pack(np.array([7, 4, 4, 2]), 10)] == [[0], [1, 2, 3]]
