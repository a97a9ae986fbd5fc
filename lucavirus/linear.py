"""Linear layers that use the whole width of the processor, and keep less: fp32 products by oneDNN on CPUs.

On processors that are not Intel's, MKL leaves AVX-512 unused; oneDNN reached 2.3 times its speed (docs/benchmarks.md).
On other devices and in other precisions both functions are torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVAILABLE: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]

# Up to so many rows MKL adds a gradient up in place faster than oneDNN makes it; above, oneDNN makes it in parts of so
# many outputs, which cost no time and little memory.
_FEW_ROWS, _OUTPUTS = 64, 512


class Linear(nn.Linear):
    """nn.Linear with the same parameters and the same result, up to the order of sums.

    With `in_place` the weight's gradient is added to `weight.grad`, where it exists, by the backward pass itself: a
    large one is never made beside it. Hooks of autograd get None then.
    """

    def __init__(self, inputs: int, outputs: int, *, in_place: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        """`x` (M, in) to (M, out)."""
        if _is_ours(x):
            return _Product.apply(x, self.weight, self.bias, self.in_place)  # type: ignore[no-any-return, no-untyped-call]
        return F.linear(x, self.weight, self.bias)

    def after_gelu(self, x: Tensor) -> Tensor:
        """The layer on gelu(x), `x` (M, in) to (M, out); gelu(x) is made anew for the gradient, not kept."""
        if _is_ours(x):
            return _ProductOfGelu.apply(x, self.weight, self.bias, self.in_place)  # type: ignore[no-any-return, no-untyped-call]
        return F.linear(F.gelu(x), self.weight, self.bias)


def _is_ours(x: Tensor) -> bool:
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return AVAILABLE and plain and len(x) > 0


class _Product(torch.autograd.Function):
    """x W^T + b, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, in_place: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.in_place = in_place
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        return of_x, _of_weight(gradient, x, weight, ctx.in_place), gradient.sum(0), None


class _ProductOfGelu(torch.autograd.Function):
    """gelu(x) W^T + b, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, in_place: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.in_place = in_place
        return _product(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_weight = _of_weight(gradient, F.gelu(x), weight, ctx.in_place)
        of_x = torch.ops.aten.gelu_backward(_product(gradient, weight.t()), x)
        return of_x, of_weight, gradient.sum(0), None


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor, in_place: bool) -> Tensor | None:
    """The gradient of the weight; None when it was added to what the weight has."""
    if not in_place or weight.grad is None:
        return _product(gradient.t(), x.t())
    if len(x) <= _FEW_ROWS:
        weight.grad.addmm_(gradient.t(), x)
        return None
    gradient, x = gradient.t().contiguous(), x.t().contiguous()
    for part, sums in zip(torch.split(gradient, _OUTPUTS), torch.split(weight.grad, _OUTPUTS), strict=True):
        sums += _product(part, x)
    return None


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """A B^T + bias. The op has no name of its own in torch.nn; torch's compiler calls it for the same purpose."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product
