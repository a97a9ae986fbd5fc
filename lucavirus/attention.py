"""Attention over packed sequences of different lengths: CPU and GPU back-ends behind one function.

Shapes: T tokens of the pack, R of them that attend (all of them, or those wanted), H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lucavirus.errors import UserError

# Neighbouring sequences are computed together, with a block-diagonal mask, while they hold this many tokens in all:
# below it the cost of a call exceeds that of the masked products.
_GROUP_TOKENS = 256
# The package of FlashAttention 3, by the name under which torch looks for it.
_FLASH_ATTENTION_3 = "flash_attn_interface"
# What computes attention where there is no kernel for variable lengths.
PLAIN = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a pack lie, among the tokens that attend and among those attended to.

    Built once a pack, used by every layer. The GPU kernel for variable lengths needs no `groups` (None), but the
    boundaries `queries` and `keys`, int32 on the device, whose last one may be repeated, and a bound of the longest
    sequence.
    """

    queries: Tensor
    keys: Tensor
    longest: int
    groups: tuple[Group, ...] | None


class Group(NamedTuple):
    """Neighbouring sequences computed together: so many tokens, from where the group before ends, attend to so many.

    `mask` is None for a single sequence.
    """

    queries: int
    keys: int
    mask: Tensor | None


def has_varlen_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """True where torch's FlashAttention for variable lengths runs: 16 bits, on an A100 or newer, some head sizes."""
    if device.type != "cuda" or dtype == torch.float32:
        return False
    return head_size % 8 == 0 and head_size <= 256 and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """Have the fastest kernel there is compute `attend`, in all of this process; returns its name.

    That is FlashAttention 3 on Hopper GPUs (H100, H200) where its package is installed; torch brings version 2.
    Raises UserError for a package that torch cannot use.
    """
    if not has_varlen_kernel(device, dtype, head_size):
        return PLAIN
    if torch.cuda.get_device_capability(device)[0] != 9 or find_spec(_FLASH_ATTENTION_3) is None:
        return "FlashAttention 2"
    # Here: a prototype of torch's, of no use to most processes.
    from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

    try:
        if current_flash_attention_impl() != "FA3":
            activate_flash_attention_impl("FA3")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"FlashAttention 3 is installed, but torch {torch.__version__} cannot use it ({error})",
            where=_FLASH_ATTENTION_3,
            hint="install a build of flash-attn-3 for this torch and CUDA (docs/cluster.md), or `pip uninstall "
            "flash-attn-3`: FlashAttention 2, which torch brings, is used then",
        ) from error
    return "FlashAttention 3"


def make_layout(offsets: list[int], device: torch.device, wanted: Tensor | None = None) -> Layout:
    """Describe a pack whose sequence i is tokens[offsets[i]:offsets[i+1]], for the back-end without kernel.

    With `wanted`, int64 (R,) ascending, only these tokens attend.
    """
    keys = torch.tensor(offsets, dtype=torch.int32, device=device)
    queries = keys if wanted is None else boundaries(wanted, keys)
    longest = max(end - start for start, end in pairwise(offsets))
    return Layout(queries, keys, longest, tuple(_groups(queries.tolist(), offsets, wanted, device)))


def boundaries(wanted: Tensor, offsets: Tensor) -> Tensor:
    """Where each sequence's tokens begin and end among the wanted ones, int32 as `offsets`."""
    return torch.searchsorted(wanted, offsets.to(wanted.dtype), out_int32=True)


def _groups(
    queries: Sequence[int], offsets: Sequence[int], wanted: Tensor | None, device: torch.device
) -> Iterator[Group]:
    first = 0
    for last in range(1, len(offsets)):
        if last + 1 == len(offsets) or offsets[last + 1] - offsets[first] > _GROUP_TOKENS:
            mask = None
            if last - first > 1:
                owner = _owners(offsets[first : last + 1]).to(device)
                own = owner if wanted is None else owner[wanted[queries[first] : queries[last]] - offsets[first]]
                mask = own[:, None] == owner[None, :]
            yield Group(queries[last] - queries[first], offsets[last] - offsets[first], mask)
            first = last


def _owners(offsets: Sequence[int]) -> Tensor:
    lengths = torch.tensor([end - start for start, end in pairwise(offsets)])
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def attend(q_RHD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: Layout) -> Tensor:
    """Bidirectional softmax attention within each sequence, scaled by D^-0.5; returns (R, H, D)."""
    if layout.groups is None:
        # Here, because the import costs each process on a CPU a second and 70 MB for nothing.
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(q_RHD, k_THD, v_THD, layout.queries, layout.keys, layout.longest, layout.longest)
        assert isinstance(out, Tensor)
        return out
    if len(layout.groups) == 1:
        return _attend_group(q_RHD, k_THD, v_THD, layout.groups[0].mask)
    # Split, not sliced: the gradient of each slice would be as long as the pack.
    q = torch.split(q_RHD, [group.queries for group in layout.groups])
    k, v = (torch.split(x, [group.keys for group in layout.groups]) for x in (k_THD, v_THD))
    masks = (group.mask for group in layout.groups)
    return torch.cat([_attend_group(*group) for group in zip(q, k, v, masks, strict=True)])


def _attend_group(q_RHD: Tensor, k_THD: Tensor, v_THD: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q_RHD, k_THD, v_THD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)
