"""Numbers of the original implementation, reproduced through our packed path (fixture: PARITY_FIXTURE)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lucavirus.attention import make_layout
from lucavirus.config import Run
from lucavirus.gradients import FlatGradients, divisor
from lucavirus.losses import sequence_losses
from lucavirus.model import Architecture, LucaVirus
from lucavirus.optimizer import make_optimizer
from lucavirus.packs import IGNORED, TaskLabels
from lucavirus.tasks import SUPERVISED, TASKS
from lucavirus.weights import import_weights
from tests.tiny import ALONE

FOLDER = Path(os.environ.get("PARITY_FIXTURE", Path(__file__).parents[3] / "shared/fixtures/parity_a"))
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason=f"no parity fixture at {FOLDER} (set PARITY_FIXTURE)")
MOLECULES = ("gene", "prot")
LEVELS = {"token": "token_level", "span": "span_level", "sequence": "seq_level"}


@dataclass
class Fixture:
    """The fixture, and our model with its weights."""

    expected: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    model: LucaVirus


@dataclass
class Batch:
    """The non-padding tokens of one of the fixture's padded batches, as one pack in a scrambled order."""

    rows: list[int]
    keep: NDArray[np.bool_]
    hidden: list[Tensor]
    offsets: list[int]

    def unpacked(self, row: int) -> slice:
        place = self.rows.index(row)
        return slice(self.offsets[place], self.offsets[place + 1])


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    expected = json.loads((FOLDER / "expected.json").read_text())
    arrays = dict(np.load(FOLDER / "arrays.npz"))
    heads = {t: (expected["classifier_size"][t], expected["label_size"][t]) for t in SUPERVISED}
    architecture = Architecture(
        expected["hidden_size"], expected["num_hidden_layers"], expected["num_attention_heads"],
        expected["max_length"], heads,
    )  # fmt: skip
    model = LucaVirus(architecture)
    imported = import_weights(model, FOLDER / "checkpoint-step0")
    assert imported.left == [] and imported.unused == []
    return Fixture(expected, arrays, model)


def _batch(fixture: Fixture, molecule: str) -> Batch:
    ids = fixture.arrays[f"{molecule}/input_ids"]
    types = fixture.arrays[f"{molecule}/token_type_ids"]
    keep = ids != 0
    rows = [int(row) for row in np.random.default_rng(5).permutation(len(ids))]
    lengths = [int(keep[row].sum()) for row in rows]
    offsets = [0, *np.cumsum(lengths).tolist()]
    packed = [torch.from_numpy(np.concatenate([a[row][keep[row]] for row in rows])) for a in (ids, types)]
    positions = torch.cat([torch.arange(length) for length in lengths])
    layout = make_layout(offsets, torch.device("cpu"))
    states: list[torch.Tensor] = []
    model = fixture.model
    hooks = [model.layers[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))]
    hooks += [layer.register_forward_hook(lambda *called: states.append(called[2])) for layer in model.layers]
    states.append(model(*packed, positions, layout))
    for hook in hooks:
        hook.remove()
    return Batch(rows, keep, states, offsets)


def _tasks(molecule: str) -> Iterator[str]:
    return (task for task in TASKS if TASKS[task].molecule == molecule)


def _array(fixture: Fixture, molecule: str, kind: str, task: str) -> NDArray[Any]:
    return fixture.arrays[f"{molecule}/{kind}/{LEVELS[TASKS[task].level]}/{task}"]


def _labels(fixture: Fixture, batch: Batch, molecule: str, task: str) -> TaskLabels | None:
    """The fixture's padded label vectors as labels of our pack."""
    vectors = _array(fixture, molecule, "labels", task)
    positions, targets, owners = [], [], []
    for row in batch.rows:
        part, start = vectors[row], batch.unpacked(row).start
        if TASKS[task].level == "sequence":
            if (part == IGNORED).all():
                continue
            found, kept = [start], part[None] if TASKS[task].multi_label else part
        else:
            part = part[batch.keep[row]]
            where = np.flatnonzero(part != IGNORED)
            found, kept = start + where, part[where]
        positions += list(found)
        targets += list(kept)
        owners += [row] * len(kept)
    if not positions:
        return None
    _, rows, counts = np.unique(owners, return_inverse=True, return_counts=True)
    dtype = torch.int8 if TASKS[task].multi_label else torch.int64
    return TaskLabels(
        torch.tensor(positions), torch.from_numpy(np.array(targets)).to(dtype), torch.from_numpy(rows),
        torch.from_numpy(counts).float(), torch.arange(len(counts)),
    )  # fmt: skip


def _losses(fixture: Fixture) -> dict[str, Tensor]:
    """The original's batch losses: means over the rows that have the task."""
    losses = {}
    for molecule in MOLECULES:
        batch = _batch(fixture, molecule)
        for task in _tasks(molecule):
            labels = _labels(fixture, batch, molecule, task)
            if labels is not None:
                logits = fixture.model.logits(task, batch.hidden[-1][labels.positions])
                losses[task] = sequence_losses(logits, labels).mean()
    return losses


def _total(fixture: Fixture) -> Tensor:
    weights = fixture.expected["weights"]
    return torch.stack([weights[task] * loss for task, loss in _losses(fixture).items()]).sum()


@pytest.mark.parametrize("molecule", MOLECULES)
def test_every_layer_equals_the_original(fixture: Fixture, molecule: str) -> None:
    batch = _batch(fixture, molecule)
    layers = fixture.arrays[f"{molecule}/embedding_and_layer_outputs"]
    wanted = [*layers, fixture.arrays[f"{molecule}/last_hidden_state"]]
    assert len(wanted) == len(batch.hidden)
    for ours, theirs in zip(batch.hidden, wanted, strict=True):
        for row in batch.rows:
            np.testing.assert_allclose(
                ours[batch.unpacked(row)].detach(), theirs[row][batch.keep[row]], atol=5e-5, rtol=0
            )


@pytest.mark.parametrize("task", TASKS)
def test_logits_equal_the_original(fixture: Fixture, task: str) -> None:
    batch = _batch(fixture, TASKS[task].molecule)
    theirs = _array(fixture, TASKS[task].molecule, "logits", task)
    for row in batch.rows:
        hidden = batch.hidden[-1][batch.unpacked(row)]
        if TASKS[task].level == "sequence":
            ours, wanted = fixture.model.logits(task, hidden[:1])[0], theirs[row]
        else:
            ours, wanted = fixture.model.logits(task, hidden), theirs[row][batch.keep[row]]
        np.testing.assert_allclose(ours.detach(), wanted, atol=1e-4, rtol=0)


def test_losses_equal_the_original(fixture: Fixture) -> None:
    losses = _losses(fixture)
    wanted = {key.split("/")[1]: value for key, value in fixture.expected["losses"].items()}
    assert {task: float(loss.detach()) for task, loss in losses.items()} == pytest.approx(wanted, rel=1e-5)
    assert float(_total(fixture).detach()) == pytest.approx(fixture.expected["totals"]["gene_plus_prot"], rel=5e-6)


def test_gradient_norms_equal_the_original(fixture: Fixture) -> None:
    fixture.model.zero_grad()
    _total(fixture).backward()
    ours = {name: float(p.grad.norm()) for name, p in fixture.model.named_parameters() if p.grad is not None}
    wanted = {n: v for n, v in fixture.expected["grad_norm"].items() if n != "lm_head.weight"}
    assert ours == pytest.approx(wanted, rel=5e-5, abs=1e-6)
    for name, parameter in fixture.model.named_parameters():
        if f"grad/{name}" in fixture.arrays:
            np.testing.assert_allclose(parameter.grad, fixture.arrays[f"grad/{name}"], atol=5e-5, rtol=5e-5)


def test_clipped_adamw_step_equals_the_original(fixture: Fixture) -> None:
    wanted = fixture.expected["adamw_step"]
    before = {name: p.detach().clone() for name, p in fixture.model.named_parameters()}
    run = Run(learning_rate=wanted["lr"], weight_decay=wanted["weight_decay"])
    optimizer = make_optimizer(fixture.model, run)
    gradients = FlatGradients(fixture.model, ALONE, statistics=0)
    gradients.clear()
    try:
        _total(fixture).backward()
        norm = gradients.norm()
        assert norm.item() == pytest.approx(fixture.expected["grad_norm_total"], rel=1e-5)
        optimizer.step(divisor(norm, wanted["clip"]))
        moved = {n: float((p.detach() - before[n]).norm()) for n, p in fixture.model.named_parameters()}
        expected = {n: v for n, v in wanted["delta_norm"].items() if n != "lm_head.weight"}
        assert moved == pytest.approx(expected, rel=1e-3)
        for name, parameter in fixture.model.named_parameters():
            if f"after_step/{name}" in fixture.arrays:
                # The first step goes by the gradient's sign, which rounding decides where the gradient is next to 0.
                off = np.abs(parameter.detach().numpy() - fixture.arrays[f"after_step/{name}"])
                assert np.quantile(off, 0.99) < 1e-5
        assert float(_total(fixture).detach()) == pytest.approx(wanted["total_after"], rel=1e-4)
    finally:
        fixture.model.load_state_dict(before, strict=False)
