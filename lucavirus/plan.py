"""Which samples make update u, on which rank, in which packs: pure functions of the run's settings."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lucavirus.config import Run
from lucavirus.counters import permute

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Position:
    """A place in the run: `update` updates done, `index` of them in `epoch` (from 0), after `step` steps."""

    update: int
    epoch: int
    index: int
    step: int


@dataclass(frozen=True)
class Plan:
    """The order of samples of a run: the same for any number of ranks, known at any update without history."""

    samples: int
    gpus: int
    batch_size: int
    accumulation: int
    seed: int
    epochs: int

    @classmethod
    def of(cls, run: Run, samples: int) -> Plan:
        """The plan of a run over `samples` training samples."""
        return cls(samples, run.gpus, run.batch_size, run.gradient_accumulation_steps, run.seed, run.max_epochs)

    @property
    def sequences_per_update(self) -> int:
        """B of SPEC section 2."""
        return self.gpus * self.batch_size * self.accumulation

    @property
    def updates_per_epoch(self) -> int:
        """The last update of an epoch has the remaining samples."""
        return -(-self.samples // self.sequences_per_update)

    @property
    def steps_per_epoch(self) -> int:
        """Micro-batches of batch_size sequences on every GPU of the recipe."""
        return -(-self.samples // (self.gpus * self.batch_size))

    @property
    def updates(self) -> int:
        """Updates of all epochs."""
        return self.epochs * self.updates_per_epoch

    def position(self, update: int) -> Position:
        """Where the run stands after `update` updates."""
        epoch, index = divmod(update, self.updates_per_epoch)
        step = epoch * self.steps_per_epoch + min(index * self.accumulation, self.steps_per_epoch)
        return Position(update, epoch, index, step)

    def update_samples(self, update: int) -> Indices:
        """Samples of update `update` (from 0), at most B, in the order of the epoch's permutation."""
        at = self.position(update)
        first = at.index * self.sequences_per_update
        places = np.arange(first, min(first + self.sequences_per_update, self.samples), dtype=np.int64)
        return permute(places, self.samples, self.seed, at.epoch)


def sequence_costs(lengths: NDArray[np.integer], hidden_size: int) -> NDArray[np.float64]:
    """Relative work of a training step on sequences of `lengths` tokens: matrix products, and attention's square."""
    tokens = lengths.astype(np.float64)
    return tokens * (6.0 * hidden_size + tokens)


def share(costs: NDArray[np.float64], ranks: int) -> list[Indices]:
    """Divide samples among ranks, the dearest first, each to the rank with the least work so far."""
    heap = [(0.0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    order = np.argsort(-costs, kind="stable")
    for sample, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        work, rank = heap[0]
        shares[rank].append(sample)
        heapq.heapreplace(heap, (work + cost, rank))
    return [np.array(sorted(part), dtype=np.int64) for part in shares]


def pack(lengths: NDArray[np.integer], capacity: int) -> list[Indices]:
    """Group sequences into packs of at most `capacity` tokens: the longest first, each into the fullest pack it fits.

    A sequence longer than that has a pack of its own. Within a pack the longest comes first, so that neighbours
    are of like length.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for sample in np.argsort(-lengths, kind="stable"):
        length = int(lengths[sample])
        fitting = [n for n, free in enumerate(room) if free >= length]
        if fitting:
            best = min(fitting, key=lambda n: (room[n], n))
        else:
            best = len(packs)
            packs.append([])
            room.append(max(capacity, length))
        packs[best].append(int(sample))
        room[best] -= length
    return [np.array(members, dtype=np.int64) for members in packs]


def crosses(before: int, after: int, interval: int) -> bool:
    """True when a multiple of `interval` steps lies in (before, after]."""
    return after // interval > before // interval


def automatic_max_steps(updates: Fraction | int, learning_rate: float, final_learning_rate: float) -> int:
    """Updates after which the rate would be 0, for `final_learning_rate` after `updates` (SPEC section 4).

    The seed counts 15,718,611 x 4 / 256 updates in its example, where 2e-4 and a difference of 5e-5 give its 982,413.
    An epoch's last update, a part of one, is a whole one here: with little data the rate would end far too low.
    """
    peak, final = Fraction(str(learning_rate)), Fraction(str(final_learning_rate))
    return int(updates * peak / (peak - final))
