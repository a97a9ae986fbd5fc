"""One optimizer update: losses and gradients of its packs, one reduction, clipping, AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lucavirus.compute import Compute
from lucavirus.config import Run
from lucavirus.distributed import Ranks, Stopwatch, fetch
from lucavirus.gradients import FlatGradients, Gradients, ShardedGradients, divisor
from lucavirus.losses import row_losses
from lucavirus.model import LucaVirus
from lucavirus.optimizer import learning_rate, make_optimizer
from lucavirus.packs import Pack
from lucavirus.state import PLACE, STATISTICS


class Updater:
    """A model with its optimizer, on one rank; `compute` and `max_steps` are the resolved values of the run.

    The model is where it computes, whole or sharded (sharding.place).
    """

    def __init__(self, model: LucaVirus, run: Run, compute: Compute, max_steps: int, ranks: Ranks) -> None:
        self.model, self.run, self.compute, self.max_steps, self.ranks = model, run, compute, max_steps, ranks
        self.optimizer = make_optimizer(model, run)
        self.reduce_watch = Stopwatch(ranks.device)
        self._gradients: Gradients
        if compute.parallel == "fsdp":
            self._gradients = ShardedGradients(model, ranks, len(STATISTICS))
        else:
            mixed = ranks.device.type == "cuda" and compute.dtype != torch.float32
            self._gradients = FlatGradients(model, ranks, len(STATISTICS), mixed=mixed)

    def learning_rate(self, update: int) -> float:
        """Rate of update `update`, counted from 1."""
        warmup = self.run.warmup_steps / self.run.gradient_accumulation_steps
        return learning_rate(update, self.run.learning_rate, warmup, self.max_steps)

    def step(self, update: int, packs: Sequence[Pack], wishes: Mapping[str, bool]) -> tuple[list[float], float]:
        """Do update `update` (from 1) on this rank's packs; returns the statistics over all ranks, and the norm.

        `wishes` (stop, save) of each rank are added up too, so that ranks agree on them. Weights and moments stay as
        they were when the norm is not finite. A GPU is waited for once, to read both; it makes the optimizer's step
        meanwhile.
        """
        self._gradients.clear()
        self._forward_and_backward(packs)
        statistics = self._gradients.statistics
        for wish, there in wishes.items():
            statistics[PLACE[wish]] = float(there)
        with self.reduce_watch:
            self._gradients.reduce()
        norm = self._gradients.norm()
        read = fetch(torch.cat([statistics, norm[None]]))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(update)
        self.optimizer.step(divisor(norm, self.run.max_grad_norm), (~norm.isfinite()).float())
        *found, its_norm = read()
        return found, its_norm

    def rehearse(self, pack: Pack) -> None:
        """Compute the gradients of a pack on this rank, and forget them; only memory is touched."""
        self._gradients.clear()
        self._gradients.expect(last=False)  # nothing is reduced: a rank that runs out of memory leaves no other waiting
        try:
            self._backward(pack.to(self.ranks.device), ())
        finally:
            self._gradients.clear()

    def _forward_and_backward(self, packs: Sequence[Pack]) -> None:
        for number, pack in enumerate(packs):
            self._gradients.expect(last=number == len(packs) - 1)
            # Sharded gradients are reduced together: each parameter must have one on every rank, and from the first
            # pack on, because it is in fp32 when it is a sum over packs, and else in the precision of the computation.
            untouched = _heads(self.run) - set(pack.labels) if self.compute.parallel == "fsdp" and not number else ()
            self._backward(pack.to(self.ranks.device), sorted(untouched))

    def _backward(self, pack: Pack, untouched: Sequence[str]) -> None:
        with self.compute.autocast():
            hidden = self.compute.hidden(self.model, pack)
        gradient = torch.zeros_like(hidden)
        # A head's rows, part by part, with their backward pass at once: its wide layers are in memory one at a time.
        for task, labels in pack.labels.items():
            total = torch.zeros((), device=self.ranks.device)
            for places, targets, weights in labels.parts(pack.places(labels), self.compute.head_rows):
                total += self._head(task, hidden.detach(), gradient, places, targets, weights)
            self._count(task, total, len(labels.sequences))
        for task in untouched:
            with self.compute.autocast():
                nothing = self.model.logits(task, hidden.detach()[:0]).sum()
            nothing.backward()  # type: ignore[no-untyped-call]
        hidden.backward(gradient)  # type: ignore[no-untyped-call]
        for name, value in pack.sizes().items():
            self._gradients.statistics[PLACE[name]] += value

    def _head(
        self, task: str, hidden: Tensor, gradient: Tensor, places: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        """Add the gradient of some rows' loss to `gradient` (R, C); returns the sum of the weighted losses."""
        rows = hidden[places].requires_grad_()
        with self.compute.autocast():
            loss = (row_losses(self.model.logits(task, rows), targets) * weights).sum()
        scale = self.run.task_weight(task) * self._gradients.loss_scale / self.run.sequences_per_update
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        assert rows.grad is not None
        gradient.index_add_(0, places, rows.grad)
        return loss.detach()

    def _count(self, task: str, total: Tensor, sequences: int) -> None:
        statistics = self._gradients.statistics
        statistics[PLACE[f"loss of {task}"]] += total
        statistics[PLACE["loss"]] += self.run.task_weight(task) * total
        statistics[PLACE[f"sequences with {task}"]] += sequences


def _heads(run: Run) -> set[str]:
    """Tasks that together reach every head: the LM head is there in a run without masks too."""
    return {*run.tasks, "gene_mask"}
