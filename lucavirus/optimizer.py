"""AdamW's parameter groups, the learning-rate schedule, and gradients in one flat buffer (SPEC section 4)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lucavirus.config import Run
from lucavirus.distributed import Ranks

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


class Gradients:
    """All gradients in one flat float32 buffer, with room for statistics: one reduction an update serves both.

    A parameter without gradient in an update (a head without labels) has a gradient of 0, on every rank alike.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], statistics: int) -> None:
        parameters = list(parameters)
        self._size = sum(parameter.numel() for parameter in parameters)
        device = parameters[0].device
        self._buffer = torch.zeros(self._size + statistics, dtype=torch.float32, device=device)
        start = 0
        for parameter in parameters:
            parameter.grad = self._buffer[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    @property
    def flat(self) -> Tensor:
        """All gradients, float32 (parameters,)."""
        return self._buffer[: self._size]

    @property
    def statistics(self) -> Tensor:
        """Numbers that are added up over ranks together with the gradients, float32."""
        return self._buffer[self._size :]

    def clear(self) -> None:
        """Set gradients and statistics to 0."""
        self._buffer.zero_()

    def reduce(self, ranks: Ranks) -> None:
        """Add up over ranks; the losses were divided by B already."""
        ranks.sum_(self._buffer)

    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradients to at most `max_norm`; returns the norm they had."""
        norm: Tensor = torch.linalg.vector_norm(self.flat)
        self.flat.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norm
