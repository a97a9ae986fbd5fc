"""Rotary positions (SPEC section 2): pairs of numbers of each head, turned by angles that grow with the position.

Shapes: T tokens of a pack, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lucavirus import linear

_BASE = 10000.0
Angles = tuple[Tensor, Tensor]


def angles(positions_T: Tensor, size: int) -> Angles:
    """Cosines and sines for head size `size`, float32 (T, 1, D); built once a pack, used by every layer."""
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=positions_T.device) / size
    turns = torch.outer(positions_T.float(), _BASE**-exponents)
    turns = torch.cat((turns, turns), dim=-1)[:, None, :]
    return turns.cos(), turns.sin()


def rotate(x_THD: Tensor, by: Angles) -> Tensor:
    """Turn number i of each head with number i + D/2; keeps the dtype."""
    if linear.is_ours(x_THD):
        return _Rotation.apply(x_THD, *by)  # type: ignore[no-any-return, no-untyped-call]
    cos, sin = by
    first, second = x_THD.chunk(2, dim=-1)
    return (x_THD * cos + torch.cat((-second, first), dim=-1) * sin).to(x_THD.dtype)


class _Rotation(torch.autograd.Function):
    """The same in one new tensor, not in six; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    turned = x * cos
    first, second = x.chunk(2, dim=-1)
    of_first, of_second = turned.chunk(2, dim=-1)
    half = sin.chunk(2, dim=-1)[0]
    of_first.addcmul_(second, half, value=-direction)
    of_second.addcmul_(first, half, value=direction)
    return turned
