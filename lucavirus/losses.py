"""Losses of SPEC section 2: a mean per sequence and task, independent of how sequences are packed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lucavirus.packing import IGNORED, TaskLabels


def sequence_losses(logits_MK: Tensor, labels: TaskLabels) -> Tensor:
    """Mean loss of each labelled sequence, float32 (n,).

    Cross-entropy over its labelled positions for (M,) class targets; binary cross-entropy over the classes that are
    not ignored (-100) for (M, K) targets, one row a sequence.
    """
    logits_MK = logits_MK.float()
    if labels.targets.ndim == 2:
        known = labels.targets != IGNORED
        entropy = F.binary_cross_entropy_with_logits(logits_MK, labels.targets.clamp(min=0).float(), reduction="none")
        return (entropy * known).sum(1) / known.sum(1)
    entropy = F.cross_entropy(logits_MK, labels.targets, reduction="none")
    return torch.zeros_like(labels.counts).index_add(0, labels.rows, entropy) / labels.counts
