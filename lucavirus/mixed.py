"""Linear layers in 16 bits on GPUs, whose backward pass adds gradients up in 32 bits within its products.

Made in 16 bits, widened and added, a gradient would be rounded, and go through memory three times.
Shapes: M rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of a matrix must begin at multiples of 16 bytes for the fast kernels.
_ALIGNMENT = 8


class Sums(NamedTuple):
    """Where the gradients of a layer are added up, float32 (O, I) and (O,)."""

    of_weight: Tensor
    of_bias: Tensor


def product(x: Tensor, weight: Tensor, bias: Tensor, sums: Sums) -> Tensor:
    """x W^T + b in autocast's precision, (M, I) to (M, O); autograd gets the gradient of `x` alone."""
    out: Tensor = _Product.apply(x, weight, bias, *sums)  # type: ignore[no-untyped-call]
    return _first(out, len(weight))


class _Product(torch.autograd.Function):
    """With so many outputs more, zeros, that their number is a multiple of 8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, of_weight: Tensor, of_bias: Tensor) -> Tensor:
        dtype, missing = torch.get_autocast_dtype(x.device.type), -len(weight) % _ALIGNMENT
        ctx.dtype = x.dtype
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        if missing:
            weight, bias = F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing))
        ctx.save_for_backward(x, weight, of_weight, of_bias)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, of_weight, of_bias = ctx.saved_tensors
        add_gradients(of_weight, of_bias, _first(gradients[0], len(of_weight)), x)
        return (gradients[0] @ weight).to(ctx.dtype), None, None, None, None


def _first(rows: Tensor, outputs: int) -> Tensor:
    return rows if rows.shape[1] == outputs else rows[:, :outputs]


@torch.library.custom_op("lucavirus::add_gradients", mutates_args=("of_weight", "of_bias"), device_types="cuda")
def add_gradients(of_weight: Tensor, of_bias: Tensor, gradient: Tensor, x: Tensor) -> None:
    """Add G^T x and the sums of G's columns, G (M, O) the `gradient` of the outputs."""
    torch.addmm(of_weight, gradient.t(), x, out_dtype=torch.float32, out=of_weight)
    sums, ones = of_bias[None], gradient.new_ones((1, len(gradient)))
    torch.addmm(sums, ones, gradient, out_dtype=torch.float32, out=sums)
