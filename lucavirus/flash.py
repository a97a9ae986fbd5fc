"""FlashAttention 4 (package flash-attn-4) as an operator of torch, with a gradient and known to torch's compiler.

torch has a binding of its own, a prototype, which expects what an earlier version of the package returned.
Shapes: R tokens that attend, T attended to, H heads, D head size.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lucavirus.errors import UserError

# The largest relative error of the check at the start: that of 16 bits is 0.003.
_ERROR = 0.02
# Lengths of its sequences; those that fill a list of boundaries have none.
_LENGTHS = [130, 257, 0, 0]


def is_installed() -> bool:
    """True where the package is; not imported, because the folder is also that of earlier versions."""
    found = find_spec("flash_attn")
    return found is not None and any(Path(folder, "cute").is_dir() for folder in found.submodule_search_locations or ())


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


def check(device: torch.device, dtype: torch.dtype, head_size: int) -> None:
    """Compute a few sequences forward and backward, as a training will; its kernels are compiled here (5 to 7 s).

    Raises UserError where the package cannot, or computes something else than torch in fp32.
    """
    generator = torch.Generator(device).manual_seed(0)
    shape = (4, sum(_LENGTHS), 2, head_size)
    *inputs, gradient = torch.randn(shape, generator=generator, device=device, dtype=dtype).unbind()
    edges = torch.tensor([0, *_LENGTHS], device=device).cumsum(0, dtype=torch.int32)
    try:
        with warnings.catch_warnings(action="ignore"):  # of the package about itself
            found = _with_gradients(lambda q, k, v: attend(q, k, v, edges, edges), inputs, gradient)
    except Exception as error:
        raise _unusable(f"cannot compute here ({type(error).__name__}: {str(error)[:300]})") from error
    wanted = _with_gradients(_plain, [x.float() for x in inputs], gradient.float())
    errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
    if not all(error < _ERROR for error in errors):  # NaN is not
        shown = ", ".join(f"{error:.2g}" for error in errors)
        raise _unusable(f"computes something else than torch in fp32 (relative errors {shown})")


def _with_gradients(attention: Any, inputs: list[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        out = attention(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, gradient)


def _plain(*inputs: Tensor) -> Tensor:
    parts = zip(*(torch.split(x.transpose(0, 1), _LENGTHS, 1) for x in inputs), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts], 1).transpose(0, 1)


def _unusable(what: str) -> UserError:
    return UserError(
        f"FlashAttention 4 is installed, but {what}",
        where=f"flash-attn-4 beside torch {torch.__version__}",
        hint="install the version that docs/cluster.md names, or `pip uninstall flash-attn-4`: FlashAttention 2, which "
        "torch brings, is used then",
    )
