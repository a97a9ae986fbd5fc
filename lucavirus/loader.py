"""Packed batches of each update, made ahead by worker processes; without state: any number gives the same batches."""

from __future__ import annotations

import signal
from collections.abc import Generator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch.utils.data import DataLoader

from lucavirus import memory
from lucavirus.compute import Compute
from lucavirus.config import Run
from lucavirus.dataset import Dataset
from lucavirus.distributed import Ranks
from lucavirus.handover import AHEAD, Handover
from lucavirus.masking import EVALUATION_EPOCH
from lucavirus.packing import Fill, make_pack, make_parcel
from lucavirus.packs import Pack
from lucavirus.parcels import Parcel
from lucavirus.plan import Indices, Plan, pack, sequence_costs, share
from lucavirus.prepare import Prepared

# Sequences from which the packs of an evaluation are chosen together.
_EVALUATION_POOL = 512


@dataclass(frozen=True)
class Batches:
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

    @classmethod
    def of(cls, prepared: Prepared, compute: Compute, ranks: Ranks) -> Self:
        """The packs of a training for this rank."""
        return cls(
            prepared.train, prepared.run, prepared.plan, prepared.classes, compute.capacity,
            ranks.rank, ranks.world_size, equal_packs=compute.parallel == "fsdp",
        )  # fmt: skip

    def __getitem__(self, update: int) -> Parcel:
        """The packs of an update, the fullest last: the reduction hides behind its backward pass."""
        samples = self.plan.update_samples(update)
        lengths = self.dataset.lengths(samples)
        shares = share(sequence_costs(lengths, self.run.model.hidden_size), self.world_size)
        mine = samples[shares[self.rank]]
        sizes = lengths[shares[self.rank]]
        groups = sorted(pack(sizes, self.capacity), key=lambda members: int(sizes[members].sum()))
        if self.equal_packs:
            most = max(len(pack(lengths[theirs], self.capacity)) for theirs in shares)
            groups = [np.empty(0, np.int64)] * (most - len(groups)) + groups
        read = self.dataset.samples(mine)
        packed = [[read[member] for member in members.tolist()] for members in groups]
        epoch = self.plan.position(update).epoch
        return make_parcel(packed, self.run, self.classes, epoch, _fill(self.run, self.capacity))

    def packs(self, update: int) -> list[Pack]:
        """The packs of an update, in this process."""
        return self[update].open(torch.device("cpu"))


def _fill(run: Run, capacity: int) -> Fill:
    return Fill(capacity, max(capacity, run.model.max_length))


def updates(batches: Batches, first: int, last: int, device: torch.device) -> Generator[list[Pack], None, None]:
    """The packs of updates first..last-1, in order, made ahead by `worker_num` processes; here where that is 0."""
    workers = batches.run.worker_num
    if not workers:
        for update in range(first, last):
            yield batches[update].open(device)
        return
    handover = Handover(batches.__getitem__, workers)
    loader = DataLoader(
        handover, batch_size=None, sampler=range(first, last), num_workers=workers, prefetch_factor=AHEAD,
        worker_init_fn=_begin, multiprocessing_context="fork",
    )  # fmt: skip
    made = iter(loader)
    try:
        for handed in made:
            yield handover.take(handed).open(device)
    finally:
        # What was raised holds the iterator, which would go on holding its workers; and these, which ignore signals,
        # or are stuck in a read, would hold this process at its end.
        made._shutdown_workers()  # type: ignore[attr-defined]
        for worker in made._workers:  # type: ignore[attr-defined]
            worker.kill()


def _begin(_: int) -> None:
    memory.keep_blocks()
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
    """One pack of an evaluation, with the masks that all evaluations of the run share; `samples` may be none."""
    return make_pack(dataset.samples(samples), run, classes, EVALUATION_EPOCH, _fill(run, capacity))
