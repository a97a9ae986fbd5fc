"""Attention over packed sequences of different lengths: CPU and GPU back-ends behind one function.

Shapes: T tokens of the pack, H heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Neighbouring sequences are computed together, with a block-diagonal mask, while they hold this many tokens in all:
# below it the cost of a call exceeds that of the masked products.
_GROUP_TOKENS = 256


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a pack lie; built once a pack, used by every layer.

    `groups` are (start, end, mask), mask None for a single sequence. The GPU kernel for variable lengths needs none of
    them (None), but `cu_seqlens` int32 on the device, in which the last offset may be repeated, and a bound of the
    longest sequence.
    """

    cu_seqlens: Tensor
    longest: int
    groups: tuple[tuple[int, int, Tensor | None], ...] | None


def has_varlen_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """True where torch's FlashAttention for variable lengths runs: 16 bits, on an A100 or newer."""
    return device.type == "cuda" and dtype != torch.float32 and torch.cuda.get_device_capability(device) >= (8, 0)


def make_layout(offsets: list[int], device: torch.device) -> Layout:
    """Describe a pack whose sequence i is tokens[offsets[i]:offsets[i+1]], for the back-end without kernel."""
    longest = max(end - start for start, end in zip(offsets, offsets[1:], strict=False))
    return Layout(torch.tensor(offsets, dtype=torch.int32, device=device), longest, tuple(_groups(offsets, device)))


def _groups(offsets: list[int], device: torch.device) -> list[tuple[int, int, Tensor | None]]:
    groups = []
    first = 0
    for last in range(1, len(offsets)):
        if last + 1 == len(offsets) or offsets[last + 1] - offsets[first] > _GROUP_TOKENS:
            groups.append((offsets[first], offsets[last], _block_mask(offsets[first : last + 1], device)))
            first = last
    return groups


def _block_mask(offsets: list[int], device: torch.device) -> Tensor | None:
    if len(offsets) == 2:
        return None
    lengths = torch.tensor([end - start for start, end in zip(offsets, offsets[1:], strict=False)])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return (owner[:, None] == owner[None, :]).to(device)


def attend(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: Layout) -> Tensor:
    """Bidirectional softmax attention within each sequence, scaled by D^-0.5; returns (T, H, D)."""
    if layout.groups is None:
        # Here, because the import costs each process on a CPU a second and 70 MB for nothing.
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(
            q_THD, k_THD, v_THD, layout.cu_seqlens, layout.cu_seqlens, layout.longest, layout.longest
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out
    parts = [
        F.scaled_dot_product_attention(
            q_THD[start:end].transpose(0, 1)[None],
            k_THD[start:end].transpose(0, 1)[None],
            v_THD[start:end].transpose(0, 1)[None],
            attn_mask=mask,
        )[0].transpose(0, 1)
        for start, end, mask in layout.groups
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
