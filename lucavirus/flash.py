"""FlashAttention 4 (package flash-attn-4) as an operator of torch, with a gradient and known to torch's compiler.

torch has a binding of its own, a prototype, which expects what an earlier version of the package returned.
Shapes: R tokens that attend, T attended to, H heads, D head size.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor


def is_installed() -> bool:
    """True where the package is; not asked by its folder, which earlier versions have too."""
    try:
        version("flash-attn-4")
    except PackageNotFoundError:
        return False
    return True


def runs_on(capability: tuple[int, int], head_size: int) -> bool:
    """True for H100, H200 and, up to a head size of 128, B200.

    Of other head sizes than multiples of 32 the gradient of queries was wrong on an H100: 8, 16, 40, 48, 80.
    """
    return head_size % 32 == 0 and head_size <= {9: 256, 10: 128}.get(capability[0], 0)


def attend(q_RHD: Tensor, k_THD: Tensor, v_THD: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Bidirectional softmax attention within each sequence, scaled by D^-0.5; returns (R, H, D).

    `queries` and `keys` int32 (sequences + 1,) are the sequences' boundaries, of which the last may be repeated.
    """
    out: Tensor = torch.ops.lucavirus.flash_attention_4(q_RHD, k_THD, v_THD, queries, keys)[0]
    return out


@torch.library.custom_op("lucavirus::flash_attention_4", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd

    out, sums = _flash_attn_fwd(q, k, v, cu_seqlens_q=queries, cu_seqlens_k=keys, return_lse=True)[:2]
    return out, sums


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("lucavirus::flash_attention_4_backward", mutates_args=())
def _backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, queries: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    of_q, of_k, of_v = _flash_attn_bwd(q, k, v, out, gradient, sums, cu_seqlens_q=queries, cu_seqlens_k=keys)[:3]
    return of_q, of_k, of_v


@_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, queries: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, queries, keys = inputs
    ctx.save_for_backward(q, k, v, *output, queries, keys)


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.lucavirus.flash_attention_4_backward(gradient, *ctx.saved_tensors), None, None


_forward.register_autograd(_gradients, setup_context=_keep)
