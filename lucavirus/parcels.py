"""The packs of an update as one buffer: one piece of memory from a worker, one copy to a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lucavirus.packs import Pack, TaskLabels

# Where a tensor may begin: GPU kernels read 16 bytes at once.
_ALIGNMENT = 16

_TYPES = {np.dtype(name): getattr(torch, name) for name in ("uint8", "int8", "int16", "int32", "int64", "float32")}
# The task, "" for the pack itself, and the field of TaskLabels or Pack.
Name = tuple[str, str]


class Column(NamedTuple):
    """A field of all packs end to end: of each `sizes[i]` rows; `dtype` is its type in the packs.

    Integers are in a narrow type: each page of new memory costs a worker more than what is on it.
    """

    rows: NDArray[Any]
    dtype: torch.dtype
    sizes: Sequence[int]


class Place(NamedTuple):
    """Where a column lies in the buffer, and its type and shape there."""

    name: Name
    start: int
    end: int
    stored: torch.dtype
    shape: tuple[int, ...]
    dtype: torch.dtype
    sizes: list[int]


@dataclass(frozen=True)
class Parcel:
    """Packs whose tensors lie in `buffer`, uint8, column by column; `offsets` and `samples` are those of each pack.

    A tensor by itself would take memory and a copy of its own on its way, and a pack has dozens.
    """

    buffer: Tensor
    places: list[Place]
    offsets: list[list[int]]
    samples: list[list[int]]

    @classmethod
    def of(cls, columns: Mapping[Name, Column], offsets: list[list[int]], samples: list[list[int]]) -> Self:
        """Copy columns into one buffer."""
        places, end = list[Place](), 0
        for name, (rows, dtype, sizes) in columns.items():
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + rows.nbytes
            stored = _TYPES[rows.dtype]
            places.append(Place(name, start, end, stored, rows.shape, dtype, list(sizes)))
        buffer = torch.empty(end, dtype=torch.uint8)
        array = buffer.numpy()
        for place, column in zip(places, columns.values(), strict=True):
            array[place.start : place.end] = column.rows.reshape(-1).view(np.uint8)
        return cls(buffer, places, offsets, samples)

    def open(self, device: torch.device) -> list[Pack]:
        """The packs, on a device; through pinned memory to a GPU, so that it does not wait for them."""
        if not self.offsets:  # and so no bytes: an update may have fewer samples than there are ranks
            return []
        buffer = self.buffer.pin_memory() if device.type == "cuda" else self.buffer
        buffer = buffer.to(device, non_blocking=True)
        tasks = dict[str, dict[str, Sequence[Tensor]]]()
        for place in self.places:
            column = buffer[place.start : place.end].view(place.stored).view(place.shape).to(place.dtype)
            tasks.setdefault(place.name[0], {})[place.name[1]] = torch.split(column, place.sizes)
        rows = tasks.pop("")
        return [
            Pack(
                **{field: parts[number] for field, parts in rows.items()}, offsets=offsets, samples=samples,
                labels={
                    task: TaskLabels(**{field: parts[number] for field, parts in fields.items()})
                    for task, fields in tasks.items() if len(fields["sequences"][number])
                },
            )
            for number, (offsets, samples) in enumerate(zip(self.offsets, self.samples, strict=True))
        ]  # fmt: skip
