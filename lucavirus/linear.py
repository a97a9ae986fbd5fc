"""Linear layers that use the whole width of the processor: fp32 products by oneDNN instead of MKL on CPUs.

On processors that are not Intel's, MKL leaves AVX-512 unused; oneDNN reached 2.3 times its speed (docs/benchmarks.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_AVAILABLE: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


class Linear(nn.Linear):
    """nn.Linear with the same parameters and the same result, up to the order of sums."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` (M, in) to (M, out)."""
        half = torch.is_autocast_enabled(x.device.type)
        if _AVAILABLE and x.device.type == "cpu" and x.dtype == torch.float32 and not half and len(x):
            return _Product.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]
        return F.linear(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """x W^T + b, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        return of_x, _product(gradient.t(), x.t()), gradient.sum(0)


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """A B^T + bias. The op has no name of its own in torch.nn; torch's compiler calls it for the same purpose."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product
