"""Linear layers that keep less in fp32 on CPUs, and use the whole width of the processor there.

On processors with AVX-512 that are not Intel's, MKL leaves it unused, and oneDNN reached 2.3 times its speed; without
AVX-512, MKL is faster (docs/benchmarks.md). On GPUs in 16 bits there is mixed.py, with FSDP2 and else the layers
are torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lucavirus import mixed

ONEDNN: bool = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
)

# Numbers between two layers that are made at once. MKL's stay below malloc's bound for mapped blocks (memory.py), so
# that they stay in the cache and take no new pages; oneDNN, which makes code for each new shape, gets four times as
# many. With fewer rows than `_FEWEST`, adding up the weights' gradients costs more.
_BETWEEN, _BETWEEN_BY_ONEDNN, _FEWEST = 245_000, 980_000, 128
# Where oneDNN is used. Up to so many rows MKL adds a gradient up in place faster than oneDNN makes it; above, oneDNN
# makes it in parts of so many outputs, which cost no time and little memory.
_FEW_ROWS, _OUTPUTS = 64, 512
# With more outputs than these, MKL too is faster in parts of `_OUTPUTS`: up to 1.6 times for the layers of wide heads.
_WIDE = 1024


class Linear(nn.Linear):
    """nn.Linear with the same parameters and the same result, up to the order of sums.

    With `in_place`, in fp32 on CPUs, the weight's gradient is added to `weight.grad`, where it exists, by the backward
    pass itself: a large one is never made beside it. Hooks of autograd get None then.
    """

    def __init__(self, inputs: int, outputs: int, *, in_place: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.in_place = in_place
        self.sums: mixed.Sums | None = None  # set by gradients.py on GPUs in 16 bits

    def forward(self, x: Tensor) -> Tensor:
        """`x` (M, in) to (M, out)."""
        if is_ours(x):
            return _Product.apply(x, self.weight, self.bias, self.in_place)  # type: ignore[no-any-return, no-untyped-call]
        if self.sums is not None and torch.is_grad_enabled():
            return mixed.products(x, [self], self.sums)[0]
        return F.linear(x, self.weight, self.bias)


def two_layers(first: Linear, second: Linear, x: Tensor) -> Tensor:
    """second(gelu(first(x))), `x` (M, in) to (M, out); what lies between is made anew for the gradient, not kept."""
    if is_ours(x):
        parameters = (first.weight, first.bias, second.weight, second.bias)
        in_place = (first.in_place, second.in_place)
        return _TwoProducts.apply(x, *parameters, in_place)  # type: ignore[no-any-return, no-untyped-call]
    return second(F.gelu(first(x)))  # type: ignore[no-any-return]


def is_ours(x: Tensor) -> bool:
    """True where products and rotations of `x` are this package's own: in fp32 on CPUs."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and len(x) > 0


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


class _TwoProducts(torch.autograd.Function):
    """gelu(x V^T + a) W^T + b, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, a: Tensor, w: Tensor, b: Tensor, in_place: tuple[bool, bool]) -> Tensor:
        ctx.save_for_backward(x, v, a, w)
        ctx.in_place = in_place
        parts = [_product(F.gelu(_product(part, v, a)), w, b) for part in torch.tensor_split(x, _parts(x, v, in_place))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, v, a, w = ctx.saved_tensors
        of_x, of_a = list[Tensor](), torch.zeros_like(a)
        of_v: Tensor | None = None
        of_w: Tensor | None = None
        number = _parts(x, v, ctx.in_place)
        for part, of_part in zip(torch.tensor_split(x, number), torch.tensor_split(gradient, number), strict=True):
            between = _product(part, v, a)
            of_w = _of_weight(of_part, F.gelu(between), w, ctx.in_place[1], of_w)
            of_between = _product(of_part, w.t())
            torch.ops.aten.gelu_backward.grad_input(of_between, between, grad_input=of_between)  # in place: it is wide
            of_v = _of_weight(of_between, part, v, ctx.in_place[0], of_v)
            of_a += of_between.sum(0)
            of_x.append(_product(of_between, v.t()))
        return of_x[0] if len(of_x) == 1 else torch.cat(of_x), of_v, of_a, of_w, gradient.sum(0), None


def _parts(x: Tensor, v: Tensor, in_place: tuple[bool, bool]) -> int:
    """In how many parts the rows of `x` are taken through two layers, `v` (width, in) the first one's weight.

    In one where gradients are added in place (heads, which are given few rows), and where the layer is wide.
    """
    rows = (_BETWEEN_BY_ONEDNN if ONEDNN else _BETWEEN) // len(v)
    return 1 if any(in_place) or rows < _FEWEST else -(-len(x) // rows)


def _of_weight(
    gradient: Tensor, x: Tensor, weight: Tensor, in_place: bool, before: Tensor | None = None
) -> Tensor | None:
    """The gradient of the weight, added to that of the rows `before`; None when it was added to what the weight has."""
    if before is not None:
        return before.addmm_(gradient.t(), x)
    if not in_place or weight.grad is None:
        return _product(gradient.t(), x.t())
    if not ONEDNN or len(x) <= _FEW_ROWS:
        weight.grad.addmm_(gradient.t(), x)
        return None
    gradient, x = gradient.t().contiguous(), x.t().contiguous()
    for part, sums in zip(torch.split(gradient, _OUTPUTS), torch.split(weight.grad, _OUTPUTS), strict=True):
        sums += _product(part, x)
    return None


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """A B^T + bias. oneDNN's has no name of its own in torch.nn; torch's compiler calls it for the same purpose."""
    product: Tensor
    if ONEDNN:
        product = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return product
    if len(b) <= _WIDE:
        return F.linear(a, b, bias)
    product = a.new_empty(len(a), len(b))
    for out, part in zip(torch.split(product, _OUTPUTS, 1), torch.split(b, _OUTPUTS), strict=True):
        torch.mm(a, part.t(), out=out)
    return product if bias is None else product.add_(bias)
