"""Which kernel computes attention: the fastest that there is, seen to compute what it should before it is used."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from lucavirus import flash
from lucavirus.attention import FLASH_2, FLASH_4, PLAIN, Layout, attend, make_layout
from lucavirus.errors import UserError

# The largest relative error of the check at the start: that of 16 bits is 0.003.
_ERROR = 0.02
_HINTS = {
    FLASH_2: "install the versions of requirements.lock, or set `precision: fp32`, which computes without it",
    FLASH_4: "install the version that docs/cluster.md names, or `pip uninstall flash-attn-4`: FlashAttention 2, which "
    "torch brings, is used then",
}


def choose_kernel(device: torch.device, dtype: torch.dtype, head_size: int, deterministic: bool = False) -> str:
    """The fastest way to compute attention; the kernels need 16 bits, an A100 or newer, and some head sizes.

    That is FlashAttention 4 on H100, H200 and B200 where its package is installed; torch brings version 2, which alone
    is known to repeat its bits. Raises UserError where it does not compute what it should.
    """
    if device.type != "cuda" or dtype == torch.float32 or head_size % 8 or head_size > 256:
        return PLAIN
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return PLAIN
    kernel = FLASH_2
    if not deterministic and flash.runs_on(capability, head_size) and flash.is_installed():
        kernel = FLASH_4
    check(kernel, device, dtype, head_size)
    return kernel


def advice(device: torch.device, kernel: str, head_size: int, deterministic: bool) -> str | None:
    """What would make attention faster here, if anything."""
    if kernel != FLASH_2 or deterministic or not flash.runs_on(torch.cuda.get_device_capability(device), head_size):
        return None
    return "hint: FlashAttention 4 made a training of full size 1.12 times as fast on an H100 (docs/cluster.md, step 4)"


def check(kernel: str, device: torch.device, dtype: torch.dtype, head_size: int) -> None:
    """Compute attention of two sequences, forward and backward, as the last layer of a training will.

    The kernels of FlashAttention 4 are compiled here (some 10 s). Raises UserError where the kernel fails or computes
    something else than torch does in fp32.
    """
    wanted = torch.cat([torch.arange(90), torch.arange(200, 387)]).to(device)
    plain = make_layout([0, 130, 387], device, wanted)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, gradient = (
        torch.randn(rows, 2, head_size, generator=generator, device=device, dtype=dtype)
        for rows in (len(wanted), 387, 387, len(wanted))
    )
    right = _with_gradients(q.float(), k.float(), v.float(), gradient.float(), plain)
    # Boundaries that fill up, as in a pack; FlashAttention 4 has other kernels for more than 256 sequences.
    for filling in (9, 300):
        queries, keys = (torch.cat([edges, edges[-1:].expand(filling)]) for edges in (plain.queries, plain.keys))
        try:
            with warnings.catch_warnings(action="ignore"):  # of the package about itself
                found = _with_gradients(q, k, v, gradient, Layout(kernel, queries, keys, 387))
        except Exception as error:
            raise _refusal(kernel, f"cannot compute here ({type(error).__name__}: {str(error)[:300]})") from error
        errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, right, strict=True)]
        if not all(error < _ERROR for error in errors):  # NaN is not
            shown = ", ".join(f"{error:.2g}" for error in errors)
            raise _refusal(kernel, f"computes something else than torch in fp32 (relative errors {shown})")


def _with_gradients(q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    inputs = [x.requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        out = attend(q, k, v, layout)
    return out.detach(), *torch.autograd.grad(out, inputs, gradient)


def _refusal(kernel: str, what: str) -> UserError:
    return UserError(f"{kernel} {what}", where=f"attention with torch {torch.__version__}", hint=_HINTS[kernel])
