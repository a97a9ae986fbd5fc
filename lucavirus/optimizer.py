"""AdamW's parameter groups, and the learning-rate schedule (SPEC section 4)."""

from __future__ import annotations

import torch
from torch import nn

from lucavirus.config import Run

_BETAS, _EPS = (0.9, 0.99), 1e-8


def learning_rate(update: int, peak: float, warmup_updates: float, max_steps: int) -> float:
    """Rate of update `update`, counted from 1: linear from 0 to the peak over the warm-up, then to 0 at max_steps."""
    if update < warmup_updates:
        return peak * update / warmup_updates
    return peak * max(0.0, (max_steps - update) / max(1.0, max_steps - warmup_updates))


def make_optimizer(model: nn.Module, run: Run) -> torch.optim.AdamW:
    """AdamW with weight decay on all but biases and LayerNorm weights."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = name.endswith("bias") or name.endswith("layer_norm.weight")
        (others if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": run.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=run.learning_rate, betas=_BETAS, eps=_EPS, fused=True)
