"""The packs of an update as one buffer: one piece of shared memory from a worker, one copy to a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lucavirus.packing import Pack

# Where a tensor of any of our types may begin.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Parcel:
    """Packs whose tensors lie in `buffer`, uint8: `places` are their first bytes, types and shapes, in order.

    `skeletons` are the packs without their tensors. A tensor by itself would take a file descriptor on its way from a
    worker; there are dozens in a pack.
    """

    buffer: Tensor
    places: tuple[tuple[int, torch.dtype, tuple[int, ...]], ...]
    skeletons: tuple[Pack, ...]

    @classmethod
    def of(cls, packs: Sequence[Pack]) -> Self:
        """Copy the tensors of packs into one buffer."""
        parts, places = list[NDArray[np.uint8]](), list[tuple[int, torch.dtype, tuple[int, ...]]]()
        size = 0

        def store(tensor: Tensor) -> Tensor:
            nonlocal size
            data = tensor.contiguous().numpy().reshape(-1).view(np.uint8)
            places.append((size, tensor.dtype, tuple(tensor.shape)))
            parts.extend((data, np.zeros(-len(data) % _ALIGNMENT, np.uint8)))
            size += len(data) + len(parts[-1])
            return cast(Tensor, None)

        skeletons = tuple(pack.map(store) for pack in packs)
        return cls(torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *parts])), tuple(places), skeletons)

    def pin_memory(self) -> Self:
        """Copy to pinned memory; the data loader calls it by this name."""
        return type(self)(self.buffer.pin_memory(), self.places, self.skeletons)

    def open(self, device: torch.device) -> list[Pack]:
        """The packs, on a device."""
        buffer = self.buffer.to(device, non_blocking=True)
        places = iter(self.places)

        def load(_: Tensor) -> Tensor:
            start, dtype, shape = next(places)
            size = int(np.prod(shape)) * dtype.itemsize
            return buffer[start : start + size].view(dtype).view(shape)

        return [skeleton.map(load) for skeleton in self.skeletons]
