"""The schedule, the parameter groups, and the flat gradients."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import nn

from lucavirus.config import Model, Run
from lucavirus.gradients import FlatGradients
from lucavirus.model import Architecture, LucaVirus
from lucavirus.optimizer import learning_rate, make_optimizer
from tests import tiny


def test_schedule() -> None:
    rates = [learning_rate(update, 2e-4, 1000, 982_413) for update in (1, 500, 1000, 982_413, 982_414)]
    assert rates == pytest.approx([2e-7, 1e-4, 2e-4, 0, 0])
    # SPEC section 4: the rate after the four epochs of the seed's example.
    assert learning_rate(245_604, 2e-4, 1000, 982_413) == pytest.approx(1.5015e-4, rel=1e-4)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(1, 1.0, 0, 4) == 0.75 and learning_rate(4, 1.0, 0, 4) == 0


def _model() -> LucaVirus:
    return LucaVirus(Architecture(16, 1, 2, 20, {"gene_type": (8, 3)}), seed=1)


def test_biases_and_layer_norms_are_not_decayed() -> None:
    model = _model()
    names = {id(p): n for n, p in model.named_parameters()}
    run = Run(weight_decay=0.5, model=Model(hidden_size=16, num_attention_heads=2))
    decayed, others = make_optimizer(model, run).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0)
    assert (decayed["betas"], decayed["eps"]) == ((0.9, 0.99), 1e-8)
    assert sorted(names[id(p)] for p in decayed["params"]) == sorted(
        ["embed_tokens.weight", "embed_type.weight", "lm_head.dense.weight",
         "layers.0.fc1.weight", "layers.0.fc2.weight",
         *(f"layers.0.self_attn.{x}_proj.weight" for x in "qkv"), "layers.0.self_attn.out_proj.weight",
         "hidden_layer_list.0.weight", "classifier_list.0.weight"]
    )  # fmt: skip
    assert len(decayed["params"]) + len(others["params"]) == len(names)


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 1)])


def test_gradients_gather_in_one_buffer_and_are_clipped() -> None:
    model = OneLayer()
    layer = model.layers[0]
    gradients = FlatGradients(cast(LucaVirus, model), tiny.ALONE, statistics=2)
    gradients.clear()
    for _ in range(2):
        layer(torch.tensor([[3.0, 0.0]])).sum().backward()
    gradients.statistics[1] += 5
    assert gradients.flat.tolist() == [6, 0, 2] and gradients.statistics.tolist() == [0, 5]
    assert float(gradients.clip(1.0)) == pytest.approx(40**0.5)
    assert layer.weight.grad is not None and layer.weight.grad.tolist()[0] == pytest.approx([6 / 40**0.5, 0])
    assert gradients.statistics.tolist() == [0, 5]
    assert float(gradients.clip(10.0)) == pytest.approx(1.0)
    assert gradients.flat.tolist() == pytest.approx([6 / 40**0.5, 0, 2 / 40**0.5])
