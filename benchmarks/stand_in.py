"""A plain stand-in of the original's training step: one sequence at a time, each of its heads at every position.

The losses and gradients are those of the package (SPEC section 2); only the way to them is the original's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lucavirus.attention import make_layout
from lucavirus.config import Run
from lucavirus.model import LucaVirus
from lucavirus.packs import IGNORED, Pack, TaskLabels
from lucavirus.tasks import MOLECULES, TASKS


class StandIn:
    """A model with its optimizer; `step` does one update."""

    def __init__(self, model: LucaVirus, run: Run, tasks: Sequence[str]) -> None:
        self.model, self.run, self.tasks = model, run, tasks
        decayed = [p for name, p in model.named_parameters() if p.ndim > 1]
        others = [p for name, p in model.named_parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": run.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=run.learning_rate, betas=(0.9, 0.99))

    def step(self, packs: Sequence[Pack]) -> float:
        """One update on packs of one sequence each; returns the loss."""
        total = 0.0
        for pack in packs:
            loss = self._loss(pack) / self.run.sequences_per_update
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.run.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def _loss(self, pack: Pack) -> Tensor:
        layout = make_layout(pack.offsets, torch.device("cpu"))
        hidden = self.model(pack.tokens, pack.types, pack.positions, layout)
        total = hidden.sum() * 0.0
        molecule = MOLECULES[int(pack.types[0])]
        for task in (task for task in self.tasks if TASKS[task].molecule == molecule):
            level = TASKS[task].level
            logits = self.model.logits(task, hidden[:1] if level == "sequence" else hidden)
            if (labels := pack.labels.get(task)) is None:
                total = total + logits.sum() * 0.0  # the original computes it, and has nothing to compare it with
            else:
                total = total + self.run.task_weight(task) * self._task_loss(logits, labels)
        return total

    def _task_loss(self, logits: Tensor, labels: TaskLabels) -> Tensor:
        if labels.targets.ndim == 2:
            known = labels.targets != IGNORED
            targets = labels.targets.clamp(min=0).float()
            return F.binary_cross_entropy_with_logits(logits[known], targets[known])
        targets = torch.full((len(logits),), IGNORED)
        targets[labels.positions] = labels.targets
        return F.cross_entropy(logits, targets, ignore_index=IGNORED)
