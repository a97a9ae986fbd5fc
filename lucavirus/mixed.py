"""Linear layers in 16 bits on GPUs, whose backward pass adds gradients up in 32 bits within its products.

Made in 16 bits, widened and added, a gradient would be rounded, and go through memory three times.
Shapes: M rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows of a matrix must begin at multiples of 16 bytes for the fast kernels.
ALIGNMENT = 8


class Sums(NamedTuple):
    """Where the gradients of a layer, or of several, are added up, float32 (O, I) and (O,)."""

    of_weight: Tensor
    of_bias: Tensor


def products(x: Tensor, layers: Sequence[nn.Linear], sums: Sums) -> tuple[Tensor, ...]:
    """x W^T + b of each layer in autocast's precision, (M, I) to (M, O); autograd gets the gradient of `x` alone.

    The gradients of several layers, added up one below the other in `sums`, are made together; all but the last layer
    must have a multiple of 8 outputs.
    """
    parameters = (parameter for layer in layers for parameter in (layer.weight, layer.bias))
    *out, last = _Products.apply(x, *sums, *parameters)  # type: ignore[no-untyped-call]
    return *out, _first(last, len(layers[-1].bias))


class _Products(torch.autograd.Function):
    """The last one with so many outputs more, zeros, that their number is a multiple of 8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, of_weight: Tensor, of_bias: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        # Numbers from parameters alone: sizes of other tensors are unknown to code compiled for all of them.
        outputs = [len(weight) for weight in parameters[::2]]
        ctx.dtype, ctx.outputs = x.dtype, sum(outputs)
        dtype, missing = torch.get_autocast_dtype(x.device.type), -ctx.outputs % ALIGNMENT
        weight, bias = (_one_below_the_other(parts, dtype, missing) for parts in (parameters[::2], parameters[1::2]))
        x = x.to(dtype)
        ctx.save_for_backward(x, weight, of_weight, of_bias)
        outputs[-1] += missing
        both = zip(torch.split(weight, outputs), torch.split(bias, outputs), strict=True)
        return tuple(F.linear(x, *part) for part in both)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, of_weight, of_bias = ctx.saved_tensors
        gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients, dim=1)
        add_gradients(of_weight, of_bias, _first(gradient, ctx.outputs), x)
        return (gradient @ weight).to(ctx.dtype), None, None, *(None for _ in range(2 * len(gradients)))


def _one_below_the_other(parts: Sequence[Tensor], dtype: torch.dtype, missing: int) -> Tensor:
    parts = [part.to(dtype) for part in parts]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts)
    return F.pad(joined, (*(0, 0) * (joined.dim() - 1), 0, missing)) if missing else joined


def _first(rows: Tensor, outputs: int) -> Tensor:
    return rows if rows.shape[1] == outputs else rows[:, :outputs]


@torch.library.custom_op("lucavirus::add_gradients", mutates_args=("of_weight", "of_bias"), device_types="cuda")
def add_gradients(of_weight: Tensor, of_bias: Tensor, gradient: Tensor, x: Tensor) -> None:
    """Add G^T x and the sums of G's columns, G (M, O) the `gradient` of the outputs."""
    torch.addmm(of_weight, gradient.t(), x, out_dtype=torch.float32, out=of_weight)
    sums, ones = of_bias[None], gradient.new_ones((1, len(gradient)))
    torch.addmm(sums, ones, gradient, out_dtype=torch.float32, out=sums)
