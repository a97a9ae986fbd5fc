"""Losses of SPEC section 2: a mean per sequence and task, independent of how sequences are packed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lucavirus.packs import IGNORED, TaskLabels


def row_losses(logits_MK: Tensor, targets: Tensor) -> Tensor:
    """Loss of each row of scores, float32 (M,); 0 where all its targets are ignored (-100).

    Cross-entropy for (M,) class targets; for (M, K) targets the mean binary cross-entropy over the classes that are not
    ignored.
    """
    logits_MK = logits_MK.float()
    if targets.ndim == 1:
        return F.cross_entropy(logits_MK, targets, ignore_index=IGNORED, reduction="none")
    known = targets != IGNORED
    entropy = F.binary_cross_entropy_with_logits(logits_MK, targets.clamp(min=0).float(), reduction="none")
    return (entropy * known).sum(1) / known.sum(1).clamp(min=1)


def sequence_losses(logits_MK: Tensor, labels: TaskLabels) -> Tensor:
    """Mean loss of each labelled sequence over its rows, float32 (n,)."""
    losses = row_losses(logits_MK, labels.targets)
    return torch.zeros_like(labels.counts).index_add(0, labels.rows, losses) / labels.counts
