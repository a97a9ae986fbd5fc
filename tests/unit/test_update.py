"""One update: the gradient of the weighted losses in the recipe's measure; what is not finite changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lucavirus.attention import make_layout
from lucavirus.compute import make_compute
from lucavirus.distributed import Ranks
from lucavirus.gradients import FlatGradients
from lucavirus.losses import sequence_losses
from lucavirus.model import LucaVirus
from lucavirus.state import PLACE, task_losses
from lucavirus.update import Updater
from tests.made_up import ARCHITECTURE, RUN, made_packs
from tests.tiny import ALONE


def _updater(**changes: object) -> Updater:
    run = RUN.model_copy(update=changes)
    return Updater(LucaVirus(ARCHITECTURE, seed=5), run, make_compute(run, ALONE.device), 1000, ALONE)


def test_the_gradient_is_that_of_the_weighted_losses_by_the_sequences_of_the_recipe() -> None:
    updater, packs = _updater(task_weights={"gene_type": 0.5, "prot_keyword": 3.0}), made_packs()
    run, model = updater.run, LucaVirus(ARCHITECTURE, seed=5)
    sums, counts = dict.fromkeys(run.tasks, torch.zeros(())), dict.fromkeys(run.tasks, 0)
    for pack in packs:
        hidden = model(pack.tokens, pack.types, pack.positions, make_layout(pack.offsets, ALONE.device))
        for task, labels in pack.labels.items():
            losses = sequence_losses(model.logits(task, hidden[labels.positions]), labels)
            sums[task], counts[task] = sums[task] + losses.sum(), counts[task] + len(losses)
    total = torch.stack([run.task_weight(task) * found for task, found in sums.items()]).sum()
    (total / 4).backward()  # type: ignore[no-untyped-call]
    statistics, norm = updater.step(1, packs, {"stop": True, "save": False})
    assert statistics[PLACE["loss"]] == pytest.approx(total.item(), rel=1e-5)
    assert task_losses(statistics) == pytest.approx({t: sums[t].item() / counts[t] for t in run.tasks}, rel=1e-5)
    assert [statistics[PLACE[name]] for name in ("stop", "save", "sequences")] == [1, 0, 12]
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert norm == pytest.approx(float(torch.stack([g.norm() for g in wanted.values()]).norm()), rel=1e-5)
    clipped = min(1.0, run.max_grad_norm / norm)
    for name, parameter in updater.model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, clipped * wanted[name], atol=1e-6, rtol=1e-4)
    assert {group["lr"] for group in updater.optimizer.param_groups} == {updater.learning_rate(1)}


def test_the_warm_up_is_counted_in_steps_of_which_an_update_has_several() -> None:
    updater = _updater(warmup_steps=40, learning_rate=1.0)
    assert RUN.gradient_accumulation_steps == 4
    assert [updater.learning_rate(update) for update in (1, 5, 10, 505)] == [0.1, 0.5, 1.0, 0.5]


def test_an_update_without_a_finite_gradient_changes_neither_weights_nor_moments() -> None:
    updater = _updater(task_weights={"gene_mask": 3e38, "prot_mask": 3e38})
    before = {name: tensor.clone() for name, tensor in updater.model.state_dict().items()}
    _, norm = updater.step(1, made_packs(), {})
    assert not np.isfinite(norm)
    assert not any(state[key].any() for state in updater.optimizer.state.values() for key in state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in updater.model.state_dict().items())


def test_moments_are_of_clipped_gradients() -> None:
    whole, clipped = _updater(max_grad_norm=1e9), _updater(max_grad_norm=0.5)
    norm = whole.step(1, made_packs(), {})[1]
    assert clipped.step(1, made_packs(), {})[1] == norm > 1
    for mine, other in zip(clipped.model.parameters(), whole.model.parameters(), strict=True):
        wanted = whole.optimizer.state[other]["exp_avg"] * (0.5 / norm)
        torch.testing.assert_close(clipped.optimizer.state[mine]["exp_avg"], wanted, rtol=1e-4, atol=1e-9)


class Doubling(Ranks):
    """One of two ranks that do the same: a sum over them is twice what there is."""

    def start_sum(self, tensor: Tensor) -> None:
        sums.append(tensor.numel())
        tensor.mul_(2)


sums: list[int] = []


@pytest.mark.parametrize("packs", [3, 1, 0])  # a rank may have none
def test_each_gradient_is_added_up_once_over_ranks(packs: int) -> None:
    sums.clear()
    found = []
    for ranks in (ALONE, Doubling(0, 2, ALONE.device)):
        model = LucaVirus(replace(ARCHITECTURE, layers=3), seed=5)
        updater = Updater(model, RUN, make_compute(RUN, ALONE.device), 1000, ranks)
        statistics, _ = updater.step(1, made_packs()[:packs], {"stop": True})
        found.append((torch.tensor(statistics), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (statistics, alone), (of_both, summed) = found
    assert torch.equal(of_both, 2 * statistics)
    assert [name for name in alone if not torch.equal(summed[name], 2 * alone[name])] == []
    layers = [sum(p.numel() for p in layer.parameters()) for layer in reversed(model.layers)]
    assert isinstance(updater._gradients, FlatGradients)
    # The same on every rank, and all of the buffer.
    assert sums[:3] == layers and sum(sums) == len(updater._gradients.flat) + len(statistics)
