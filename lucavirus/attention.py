"""Attention over packed sequences of different lengths: CPU and GPU back-ends behind one function.

Shapes: T tokens of the pack, R of them that attend (all of them, or those wanted), H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lucavirus import flash

# Neighbouring sequences are computed together, with a block-diagonal mask, while they hold this many tokens in all:
# below it the cost of a call exceeds that of the masked products.
_GROUP_TOKENS = 256
# What computes attention: torch's plain function, or one of two kernels for variable lengths.
PLAIN, FLASH_2, FLASH_4 = "scaled_dot_product_attention", "FlashAttention 2", "FlashAttention 4"


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a pack lie, among the tokens that attend and among those attended to.

    Built once a pack, used by every layer. The kernels for variable lengths need no `groups`, but the boundaries
    `queries` and `keys`, int32 on the device, whose last one may be repeated, and a bound of the longest sequence.
    """

    kernel: str
    queries: Tensor
    keys: Tensor
    longest: int
    groups: tuple[Group, ...] = ()


class Group(NamedTuple):
    """Neighbouring sequences computed together: so many tokens, from where the group before ends, attend to so many.

    `mask` is None for a single sequence.
    """

    queries: int
    keys: int
    mask: Tensor | None


def make_layout(offsets: list[int], device: torch.device, wanted: Tensor | None = None) -> Layout:
    """Describe a pack whose sequence i is tokens[offsets[i]:offsets[i+1]], for the back-end without kernel.

    With `wanted`, int64 (R,) ascending, only these tokens attend.
    """
    keys = torch.tensor(offsets, dtype=torch.int32, device=device)
    queries = keys if wanted is None else boundaries(wanted, keys)
    longest = max(end - start for start, end in pairwise(offsets))
    return Layout(PLAIN, queries, keys, longest, tuple(_groups(queries.tolist(), offsets, wanted, device)))


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
    if layout.kernel == FLASH_4:
        return flash.attend(q_RHD, k_THD, v_THD, layout.queries, layout.keys)
    if layout.kernel == FLASH_2:
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
