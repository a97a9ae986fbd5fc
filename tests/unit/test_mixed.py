"""Linear layers in 16 bits that add their gradients up themselves: here on a CPU, by a product of the same meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from lucavirus import rotary
from lucavirus.attention import make_layout
from lucavirus.compute import make_compute
from lucavirus.distributed import ALONE, Ranks
from lucavirus.gradients import FlatGradients
from lucavirus.linear import Linear
from lucavirus.mixed import add_gradients
from lucavirus.model import Layer, LucaVirus
from lucavirus.state import STATISTICS
from lucavirus.update import Updater
from tests.made_up import ARCHITECTURE, FILL, RUN, made_packs


@add_gradients.register_kernel("cpu")
def _(of_weight: Tensor, of_bias: Tensor, gradient: Tensor, x: Tensor) -> None:
    of_weight += gradient.t().float() @ x.float()
    of_bias += gradient.float().sum(0)


class Stack(nn.Module):
    """Two layers of the encoder, and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = width
        self.layers = nn.ModuleList([Layer(width, 3), Layer(width, 3)])
        self.head = Linear(width, 13)

    def forward(self, x: Tensor) -> Tensor:
        turns, layout = rotary.angles(torch.arange(len(x)), self.width // 3), make_layout([0, len(x)], x.device)
        for layer in self.layers:
            x = layer(x, turns, layout)
        return cast(Tensor, self.head(x))


def _packs(width: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(1)
    for rows in (50, 70, 90):
        yield torch.randn(rows, width, generator=random)


def _gradients(stack: Stack, *, mixed: bool, ranks: Ranks = ALONE) -> FlatGradients:
    gradients = FlatGradients(cast(LucaVirus, stack), ranks, statistics=2, mixed=mixed)
    gradients.clear()
    packs = list(_packs(stack.width))
    for number, x in enumerate(packs):
        gradients.expect(last=number == len(packs) - 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = stack(x.clone().requires_grad_())
        out.float().pow(2).sum().backward()  # type: ignore[no-untyped-call]
    return gradients


def _found(stack: Stack) -> dict[str, Tensor]:
    return {name: cast(Tensor, parameter.grad).clone() for name, parameter in stack.named_parameters()}


# The second width is no multiple of 8: there the gradients of keys, values and queries are not made together.
@pytest.mark.parametrize(("width", "compiled"), [(24, False), (12, False), (24, True)])
def test_gradients_are_those_of_fp32_up_to_16_bits(width: int, compiled: bool) -> None:
    stack = Stack(width)
    _gradients(stack, mixed=False)
    wanted = _found(stack)
    if compiled:
        torch._dynamo.reset()
        counters.clear()
        for layer in stack.layers:
            layer.compile(dynamic=True)
    _gradients(stack, mixed=True)
    assert [layer.self_attn.sums is None for layer in stack.layers] == [width % 8 > 0] * 2
    errors = {name: float((found - wanted[name]).norm() / wanted[name].norm()) for name, found in _found(stack).items()}
    assert min(errors.values()) > 0 and max(errors.values()) < 0.02
    if compiled:
        assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_a_sum_is_not_rounded_to_16_bits() -> None:
    layer = Linear(8, 13)
    stack = nn.ModuleDict({"layers": nn.ModuleList(), "one": layer})
    gradients = FlatGradients(cast(LucaVirus, stack), ALONE, statistics=0, mixed=True)
    x = torch.full((3, 8), 1.0)
    for factor in (1024.0, 1.0):
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        assert out.shape == (3, 13) and out.dtype == torch.bfloat16
        assert out.stride() == (16, 1)  # each row begins at 16 bytes
        (out.sum() * factor).backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None
    assert layer.weight.grad.tolist() == [[3075.0] * 8] * 13 and layer.bias.grad.tolist() == [3075.0] * 13
    assert gradients.flat.sum() == 3075 * 9 * 13


@pytest.mark.parametrize("recomputation", [False, True])
def test_an_update_is_that_of_fp32_up_to_16_bits(recomputation: bool) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        run = RUN.model_copy(update={"precision": precision, "recomputation": recomputation})
        model, compute = LucaVirus(ARCHITECTURE, seed=5), make_compute(run, ALONE.device)
        updater = Updater(model, run, compute, 1000, ALONE)
        updater._gradients = FlatGradients(model, ALONE, len(STATISTICS), mixed=precision == "bf16")
        model.recomputation = recomputation
        statistics, norm = updater.step(1, made_packs(FILL), {})
        found.append((statistics, norm, [cast(Tensor, parameter.grad) for parameter in model.parameters()]))
    (statistics, norm, gradients), (its_statistics, its_norm, its_gradients) = found
    assert its_statistics == pytest.approx(statistics, rel=0.02) and its_norm == pytest.approx(norm, rel=0.02)
    for wanted, gradient in zip(gradients, its_gradients, strict=True):
        assert float((gradient - wanted).norm()) <= 0.03 * float(wanted.norm())


def test_without_gradients_the_layer_is_torchs_own() -> None:
    layer = Linear(8, 13)
    FlatGradients(cast(LucaVirus, nn.ModuleDict({"layers": nn.ModuleList(), "one": layer})), ALONE, 0, mixed=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = torch.ones(3, 8)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_is_reduced_when_all_its_gradients_are_there(compiled: bool) -> None:
    stack = Stack(24)
    if compiled:
        torch._dynamo.reset()
        for layer in stack.layers:
            layer.compile(dynamic=True)
    begun: list[tuple[int, Tensor]] = []

    class TwoRanks(Ranks):
        def start_sum(self, tensor: Tensor) -> Any:
            begun.append((tensor.storage_offset(), tensor.clone()))

    gradients = _gradients(stack, mixed=True, ranks=TwoRanks(0, 2, torch.device("cpu")))
    assert len(begun) == 2  # both layers, the last one first, before anything else asks for it
    assert begun[0][0] > begun[1][0]
    for start, found in begun:
        assert torch.equal(found, gradients.flat[start : start + len(found)]) and found.any()
    gradients.reduce()
    assert len(begun) == 3
