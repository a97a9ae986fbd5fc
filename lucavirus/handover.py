"""Parcels on their way from loader workers: through memory that is shared with them, made once and used again.

torch's own way, new shared memory for each parcel with a file descriptor to pass, costs a worker a third of its time.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from lucavirus.errors import UserError
from lucavirus.parcels import Parcel, Place

# Updates that a worker makes ahead. It has one slot more: one of its parcels is being taken while it makes the last.
AHEAD = 4
_SLOTS = AHEAD + 1
# Bytes of a slot, ten times the full-size recipe's parcels. A larger parcel goes torch's way.
_ROOM = 4 * 2**20


@dataclass(frozen=True)
class Handed:
    """A parcel without its buffer, which lies in a slot: `size` bytes."""

    update: int
    worker: int
    slot: int
    size: int
    places: list[Place]
    offsets: list[list[int]]
    samples: list[list[int]]


class Handover(Dataset[Handed | Parcel | UserError]):
    """What `make` makes of each update, in forked workers of a DataLoader whose `prefetch_factor` is AHEAD.

    Item u is the parcel of update u; the receiver must `take` each item before it asks for the next one. A UserError
    is handed over too: raised in a worker, it would come with the worker's traceback as its message.
    """

    def __init__(self, make: Callable[[int], Parcel], workers: int) -> None:
        self._make = make
        # Anonymous: it has no name to clean up and is not part of /dev/shm, which containers keep small.
        memory = np.frombuffer(mmap.mmap(-1, workers * _SLOTS * _ROOM), np.uint8)
        self._slots = memory.reshape(workers, _SLOTS, _ROOM)
        # Which update's parcel lies in each slot.
        self._owners = np.frombuffer(mmap.mmap(-1, 8 * workers * _SLOTS), np.int64).reshape(workers, _SLOTS)
        self._made = 0  # by this worker

    def __getitem__(self, update: int) -> Handed | Parcel | UserError:
        try:
            parcel = self._make(update)
        except UserError as error:
            return error
        size = len(parcel.buffer)
        if size > _ROOM:
            return parcel
        info = get_worker_info()
        assert info is not None, "handed over outside of a worker"
        worker, slot = info.id, self._made % _SLOTS
        self._made += 1
        self._owners[worker, slot] = update
        self._slots[worker, slot, :size] = parcel.buffer.numpy()
        return Handed(update, worker, slot, size, parcel.places, parcel.offsets, parcel.samples)

    def take(self, handed: Handed | Parcel | UserError) -> Parcel:
        """The parcel, its buffer copied from the slot; raises the UserError of its worker."""
        if isinstance(handed, UserError):
            raise handed
        if isinstance(handed, Parcel):
            return handed
        buffer = torch.from_numpy(self._slots[handed.worker, handed.slot, : handed.size].copy())
        # Else the worker was more than AHEAD ahead, and the copy may hold two parcels' bytes.
        assert self._owners[handed.worker, handed.slot] == handed.update, "a slot was used again too early"
        return Parcel(buffer, handed.places, handed.offsets, handed.samples)
