"""One optimizer update: losses and gradients of its packs, one reduction, clipping, AdamW."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch

from lucavirus.config import Run
from lucavirus.distributed import Ranks
from lucavirus.evaluate import Compute
from lucavirus.losses import sequence_losses
from lucavirus.model import LucaVirus
from lucavirus.optimizer import Gradients, learning_rate, make_optimizer
from lucavirus.packing import Pack
from lucavirus.state import PLACE, STATISTICS


class Updater:
    """A model with its optimizer, on one rank; `compute` and `max_steps` are the resolved values of the run."""

    def __init__(self, model: LucaVirus, run: Run, compute: Compute, max_steps: int, ranks: Ranks) -> None:
        self.model, self.run, self.compute, self.max_steps, self.ranks = model, run, compute, max_steps, ranks
        self.optimizer = make_optimizer(model, run)
        self.reduce_seconds = 0.0
        self._gradients = Gradients(model.parameters(), len(STATISTICS))

    def learning_rate(self, update: int) -> float:
        """Rate of update `update`, counted from 1."""
        warmup = self.run.warmup_steps / self.run.gradient_accumulation_steps
        return learning_rate(update, self.run.learning_rate, warmup, self.max_steps)

    def step(self, update: int, packs: Sequence[Pack], wishes: Mapping[str, bool]) -> tuple[list[float], float]:
        """Do update `update` (from 1) on this rank's packs; returns the statistics over all ranks, and the norm.

        `wishes` (stop, save) of each rank are added up too, so that ranks agree on them. Weights and moments stay as
        they were when the norm is not finite.
        """
        self._gradients.clear()
        for pack in packs:
            self._backward(pack.to(self.ranks.device))
        statistics = self._gradients.statistics
        for wish, there in wishes.items():
            statistics[PLACE[wish]] = float(there)
        started = time.perf_counter()
        self._gradients.reduce(self.ranks)
        self.reduce_seconds += time.perf_counter() - started
        norm = self._gradients.clip(self.run.max_grad_norm).item()
        if not math.isfinite(norm):
            return statistics.tolist(), norm
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(update)
        self.optimizer.step()
        return statistics.tolist(), norm

    def _backward(self, pack: Pack) -> None:
        statistics = self._gradients.statistics
        total = torch.zeros((), device=self.ranks.device)
        with self.compute.autocast():
            hidden = self.compute.hidden(self.model, pack)
            for task, labels in pack.labels.items():
                losses = sequence_losses(self.model.logits(task, hidden[labels.positions]), labels)
                total = total + self.run.task_weight(task) * losses.sum()
                statistics[PLACE[f"loss of {task}"]] += losses.detach().sum()
                statistics[PLACE[f"sequences with {task}"]] += len(losses)
        if pack.labels:
            (total / self.run.sequences_per_update).backward()  # type: ignore[no-untyped-call]
        statistics[PLACE["loss"]] += total.detach()
        statistics[PLACE["sequences"]] += len(pack.samples)
        statistics[PLACE["tokens"]] += len(pack.tokens)
