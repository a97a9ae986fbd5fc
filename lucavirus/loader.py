"""Packed batches of each update, made ahead by worker processes; without state, so any number gives the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lucavirus.config import Run
from lucavirus.dataset import Dataset
from lucavirus.masking import EVALUATION_EPOCH
from lucavirus.packing import Pack, empty_pack, fill, make_pack
from lucavirus.parcels import Parcel
from lucavirus.plan import Indices, Plan, pack, sequence_costs, share

# Sequences from which the packs of an evaluation are chosen together.
_EVALUATION_POOL = 512


@dataclass(frozen=True)
class Batches(TorchDataset[Parcel]):
    """The packs of one rank, by update: item u depends on nothing but u.

    With `equal_packs` every rank has the same number of packs in an update; some may be empty.
    """

    dataset: Dataset
    run: Run
    plan: Plan
    classes: dict[str, int]
    capacity: int
    rank: int
    world_size: int
    equal_packs: bool = False

    def __getitem__(self, update: int) -> Parcel:
        return Parcel.of(self.packs(update))

    def packs(self, update: int) -> list[Pack]:
        """The packs of an update, the fullest last: the reduction hides behind its backward pass."""
        samples = self.plan.update_samples(update)
        lengths = self.dataset.lengths(samples)
        shares = share(sequence_costs(lengths, self.run.model.hidden_size), self.world_size)
        mine, epoch = shares[self.rank], self.plan.position(update).epoch
        groups = sorted(pack(lengths[mine], self.capacity), key=lambda members: int(lengths[mine][members].sum()))
        packs = [self._pack(samples[mine[members]], epoch) for members in groups]
        if self.equal_packs:
            most = max(len(pack(lengths[theirs], self.capacity)) for theirs in shares)
            packs = [empty_pack()] * (most - len(packs)) + packs
        return packs

    def _pack(self, samples: Indices, epoch: int) -> Pack:
        return read_pack(self.dataset, samples, self.run, self.classes, epoch, self.capacity)


def read_pack(dataset: Dataset, samples: Indices, run: Run, classes: dict[str, int], epoch: int, capacity: int) -> Pack:
    """Read samples and make one pack of them, of one of few shapes."""
    made = make_pack([dataset.sample(int(index)) for index in samples], run, classes, epoch)
    return fill(made, capacity, max(capacity, run.model.max_length))


def updates(batches: Batches, first: int, last: int, device: torch.device) -> Iterator[list[Pack]]:
    """The packs of updates first..last-1, in order, prepared by `worker_num` processes; pinned for a GPU."""
    workers = batches.run.worker_num
    options: dict[str, Any] = {"pin_memory": device.type == "cuda"}
    if workers:
        options |= {"prefetch_factor": 4, "worker_init_fn": _ignore_signals, "multiprocessing_context": "fork"}
    loader = DataLoader(
        batches, batch_size=None, sampler=range(first, last), num_workers=workers, **options
    )  # fmt: skip
    for parcel in loader:
        yield parcel.open(device)


def _ignore_signals(_: int) -> None:
    # A signal to the whole group asks the trainer to save; it must find its workers alive until then.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def evaluation_packs(dataset: Dataset, capacity: int) -> list[Indices]:
    """The samples of each pack of an evaluation: every sample once, the same packs for any number of ranks."""
    packs = []
    for start in range(0, len(dataset), _EVALUATION_POOL):
        samples = np.arange(start, min(start + _EVALUATION_POOL, len(dataset)), dtype=np.int64)
        packs += [samples[members] for members in pack(dataset.lengths(samples), capacity)]
    return packs


def evaluation_pack(dataset: Dataset, samples: Indices, run: Run, classes: dict[str, int], capacity: int) -> Pack:
    """One pack of an evaluation, with the masks that all evaluations of the run share."""
    return read_pack(dataset, samples, run, classes, EVALUATION_EPOCH, capacity)
