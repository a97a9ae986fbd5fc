"""Products that use the whole width of a CPU: torch's results, gradients added in place."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lucavirus import linear


def _layers(x: torch.Tensor, layers: list[linear.Linear]) -> torch.Tensor:
    return layers[0](x) if len(layers) == 1 else linear.two_layers(layers[0], layers[1], x)


def _torchs_layers(x: torch.Tensor, layers: list[linear.Linear]) -> torch.Tensor:
    x = F.linear(x, layers[0].weight, layers[0].bias)
    return x if len(layers) == 1 else F.linear(F.gelu(x), layers[1].weight, layers[1].bias)


@pytest.mark.parametrize(("onednn", "wide"), [(True, 100), (False, 100), (False, 9)])
@pytest.mark.parametrize("sizes", [(24, 10), (24, 40, 10)])
def test_our_products_are_those_of_torch(
    sizes: tuple[int, ...], onednn: bool, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ONEDNN", onednn and torch.backends.mkldnn.is_available())
    monkeypatch.setattr(linear, "_BETWEEN_BY_ONEDNN" if onednn else "_BETWEEN", 40 * 5)
    monkeypatch.setattr(linear, "_FEWEST", 5)  # of 17 rows: what lies between two layers is made in four parts
    monkeypatch.setattr(linear, "_WIDE", wide)
    monkeypatch.setattr(linear, "_OUTPUTS", 4)  # of 10, 24 or 40 outputs
    torch.manual_seed(0)
    x, layers = torch.randn(17, 24), [linear.Linear(a, b) for a, b in pairwise(sizes)]
    assert len(layers) == 1 or linear._parts(x, layers[0].weight, (False, False)) == 4
    results = []
    for compute in (_layers, _torchs_layers):
        given = x.clone().requires_grad_()
        for layer in layers:
            layer.zero_grad()
        out = compute(given, layers)
        (out * torch.arange(10.0)).sum().backward()
        gradients = [parameter.grad for layer in layers for parameter in layer.parameters()]
        results.append((type(out.grad_fn).__name__, [out, given.grad, *gradients]))
    ours = "_ProductBackward" if len(layers) == 1 else "_TwoProductsBackward"
    assert [name for name, _ in results] == [ours, "AddmmBackward0"]
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("few", [64, 4])
@pytest.mark.parametrize("sizes", [(24, 10), (24, 40, 10)])
def test_gradients_are_added_in_place(
    sizes: tuple[int, ...], few: int, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ONEDNN", onednn and torch.backends.mkldnn.is_available())
    monkeypatch.setattr(linear, "_FEW_ROWS", few)
    monkeypatch.setattr(linear, "_OUTPUTS", 4)
    torch.manual_seed(0)
    x, ours = torch.randn(17, 24), [linear.Linear(a, b, in_place=True) for a, b in pairwise(sizes)]
    theirs, seen, buffers = copy.deepcopy(ours), list[Any](), list[torch.Tensor]()
    for layer in ours:
        layer.weight.grad = torch.ones_like(layer.weight)
        buffers.append(layer.weight.grad)
        layer.weight.register_hook(seen.append)
    for part in (x, 2 * x):
        _layers(part, ours).cos().sum().backward()
        _torchs_layers(part, theirs).cos().sum().backward()
    assert seen == [None, None] * len(ours)
    for layer, other, buffer in zip(ours, theirs, buffers, strict=True):
        assert layer.weight.grad is buffer
        assert other.weight.grad is not None and layer.bias.grad is not None and other.bias.grad is not None
        assert torch.allclose(buffer, other.weight.grad + 1, atol=1e-4)
        assert torch.allclose(layer.bias.grad, other.bias.grad, atol=1e-5)
