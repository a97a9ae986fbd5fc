"""The schedule, the parameter groups, and the flat gradients."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from lucavirus.config import Model, Run
from lucavirus.gradients import FlatGradients, divisor
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
    assert sorted(names[id(p)] for p in decayed["params"]) == sorted(
        ["embed_tokens.weight", "embed_type.weight", "lm_head.dense.weight",
         "layers.0.fc1.weight", "layers.0.fc2.weight",
         *(f"layers.0.self_attn.{x}_proj.weight" for x in "qkv"), "layers.0.self_attn.out_proj.weight",
         "hidden_layer_list.0.weight", "classifier_list.0.weight"]
    )  # fmt: skip
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_steps_are_those_of_torchs_adamw_to_the_bit() -> None:
    ours, theirs = _model(), _model()
    run = Run(weight_decay=0.5, learning_rate=0.1, model=Model(hidden_size=16, num_attention_heads=2))
    optimizer = make_optimizer(ours, run)
    same = dict(zip(ours.parameters(), theirs.parameters(), strict=True))
    groups = [
        {"params": [same[p] for p in group["params"]], "weight_decay": group["weight_decay"]}
        for group in optimizer.param_groups
    ]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.99), eps=1e-8, fused=True)
    for rate in (0.1, 0.05, 0.2):
        for mine, other in same.items():
            mine.grad = other.grad = torch.randn(mine.shape)
        ours.lm_head.bias.grad = theirs.lm_head.bias.grad = None
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = rate
        optimizer.step()
        reference.step()
    assert all(torch.equal(mine, other) for mine, other in same.items())
    assert ours.lm_head.bias not in optimizer.state
    found = optimizer.state[ours.lm_head.dense.weight]
    assert found["step"] == 3
    assert torch.equal(found["exp_avg_sq"], reference.state[theirs.lm_head.dense.weight]["exp_avg_sq"])


AN_UPDATE = """
import sys
import torch
from lucavirus.capacity import dearest_pack
from lucavirus.compute import make_compute
from lucavirus.config import Model, Run
from lucavirus.model import Architecture, LucaVirus
from lucavirus.tasks import SUPERVISED
from lucavirus.update import Updater
from tests.tiny import ALONE

classes = dict.fromkeys(SUPERVISED, 3)
run = Run(model=Model(hidden_size=16, num_attention_layers=1, num_attention_heads=2, max_length=32))
model = LucaVirus(Architecture.of(run, classes), seed=1)
updater = Updater(model, run, make_compute(run, torch.device("cpu")), 10, ALONE)
before = model.embed_tokens.weight.clone()
updater.step(1, [dearest_pack(32, run, classes)], {})
assert not torch.equal(model.embed_tokens.weight, before), "there was no step"
assert "torch._dynamo" not in sys.modules, "the compiler was imported"
"""


def test_an_update_on_a_cpu_does_not_load_torchs_compiler() -> None:
    # Two seconds and 70 MB, which torch's own optimizer would cost each training.
    command = [sys.executable, "-c", AN_UPDATE]
    done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 1)])


def test_gradients_gather_in_one_buffer() -> None:
    model = OneLayer()
    layer = model.layers[0]
    gradients = FlatGradients(cast(LucaVirus, model), tiny.ALONE, statistics=2)
    gradients.clear()
    for _ in range(2):
        layer(torch.tensor([[3.0, 0.0]])).sum().backward()
    gradients.statistics[1] += 5
    # Each parameter begins at a multiple of 16 bytes.
    assert gradients.flat.tolist() == [6, 0, 0, 0, 2, 0, 0, 0] and gradients.statistics.tolist() == [0, 5]
    assert gradients.norm().item() == pytest.approx(40**0.5)
    gradients.clear()
    assert layer.weight.grad is not None and not layer.weight.grad.any() and not gradients.statistics.any()


def test_what_clips_gradients() -> None:
    found = [divisor(torch.tensor(norm), 2.0).item() for norm in (0.0, 1.99, 4.0, torch.inf)]
    assert found == [1.0, 1.0, pytest.approx(2.0), torch.inf]


def test_a_step_divides_gradients_or_leaves_all_as_it_is() -> None:
    models = _model(), _model()
    optimizers = [make_optimizer(model, Run(learning_rate=0.1)) for model in models]
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        mine.grad = torch.randn(mine.shape)
        other.grad = mine.grad / 4
    optimizers[0].step(torch.tensor(4.0), torch.tensor(0.0))
    optimizers[1].step()
    pairs = list(zip(*(model.parameters() for model in models), strict=True))
    assert all(torch.equal(mine, other) for mine, other in pairs)
    for parameter in models[0].parameters():
        cast(torch.Tensor, parameter.grad).fill_(torch.nan)
    optimizers[0].step(torch.tensor(torch.nan), torch.tensor(1.0))
    assert all(torch.equal(mine, other) for mine, other in pairs)
    for mine, other in pairs:
        states = optimizers[0].state[mine], optimizers[1].state[other]
        assert all(torch.equal(states[0][key], states[1][key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_the_norm_of_many_numbers_is_exact() -> None:
    """Added up one after the other, in float32, it comes out 0.07 % too small."""
    numbers = torch.randn(2**24 + 5, generator=torch.Generator().manual_seed(1))
    few = torch.tensor([3.0, 4.0])
    for flat, norm in ((numbers, numbers.double().norm().item()), (few, 5.0), (few[:0], 0.0)):
        gradients: Any = SimpleNamespace(flat=flat)
        assert FlatGradients.norm(gradients).item() == pytest.approx(norm, rel=1e-6)
