"""The packs of an update as one buffer: one piece of shared memory from a worker, one copy to a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lucavirus.packing import Pack

# Where a tensor of any of our types may begin.
_ALIGNMENT = 8
# From so many numbers on it pays to look whether they fit into a smaller type.
_MANY = 1024
_NARROW = ((np.dtype(np.uint8), 0, 2**8 - 1), (np.dtype(np.int16), -(2**15), 2**15 - 1),
           (np.dtype(np.int32), -(2**31), 2**31 - 1))  # fmt: skip


class Place(NamedTuple):
    """Where a tensor lies in the buffer, and its type there and in the pack."""

    start: int
    end: int
    stored: torch.dtype
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Parcel:
    """Packs whose tensors lie in `buffer`, uint8; `places` are theirs, in order; `skeletons` the packs without them.

    A tensor by itself would take a file descriptor on its way from a worker; there are dozens in a pack. Integers
    travel in the smallest type that holds them: each page of new memory costs a worker more than what is on it.
    """

    buffer: Tensor
    places: tuple[Place, ...]
    skeletons: tuple[Pack, ...]

    @classmethod
    def of(cls, packs: Sequence[Pack]) -> Self:
        """Copy the tensors of packs into one buffer."""
        arrays, places = list[NDArray[Any]](), list[Place]()
        end = 0

        def take(tensor: Tensor) -> Tensor:
            nonlocal end
            arrays.append(array := _narrow(tensor.numpy()))
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + array.nbytes
            places.append(Place(start, end, torch.from_numpy(array).dtype, tensor.dtype, tensor.shape))
            return cast(Tensor, None)

        skeletons = tuple(pack.map(take) for pack in packs)
        buffer = np.zeros(end, np.uint8)
        for place, array in zip(places, arrays, strict=True):
            buffer[place.start : place.end] = array.reshape(-1).view(np.uint8)
        return cls(torch.from_numpy(buffer), tuple(places), skeletons)

    def pin_memory(self) -> Self:
        """Copy to pinned memory; the data loader calls it by this name."""
        return type(self)(self.buffer.pin_memory(), self.places, self.skeletons)

    def open(self, device: torch.device) -> list[Pack]:
        """The packs, on a device."""
        buffer = self.buffer.to(device, non_blocking=True)
        places = iter(self.places)

        def load(_: Tensor) -> Tensor:
            place = next(places)
            return buffer[place.start : place.end].view(place.stored).view(place.shape).to(place.dtype)

        return [skeleton.map(load) for skeleton in self.skeletons]


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    """Many int64 in the first of the narrow types that holds them all; all else as it is."""
    if array.dtype != np.int64 or array.size < _MANY:
        return array
    low, high = int(array.min()), int(array.max())
    for dtype, least, most in _NARROW:
        if least <= low and high <= most:
            return array.astype(dtype)
    return array
