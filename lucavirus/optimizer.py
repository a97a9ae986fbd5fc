"""AdamW with its parameter groups, and the learning-rate schedule (SPEC section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lucavirus.config import Run
from lucavirus.sharding import local

_BETAS, _EPS = (0.9, 0.99), 1e-8


def learning_rate(update: int, peak: float, warmup_updates: float, max_steps: int) -> float:
    """Rate of update `update`, counted from 1: linear from 0 to the peak over the warm-up, then to 0 at max_steps."""
    if update < warmup_updates:
        return peak * update / warmup_updates
    return peak * max(0.0, (max_steps - update) / max(1.0, max_steps - warmup_updates))


class AdamW:
    """torch's AdamW in its fused form, to the bit.

    torch's class imports the compiler with its first step, which costs each training on a CPU seconds and 70 MB.
    `param_groups` and `state` are as there: `state[parameter]` has `step` float32 () and the moments `exp_avg` and
    `exp_avg_sq`, shaped and placed as the parameter, from its first step with a gradient on.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        self.param_groups = [{**group, "lr": lr} for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, divisor: Tensor | None = None, skipped: Tensor | None = None) -> None:
        """Change the parameters that have a gradient; nothing is synchronised.

        On the device, float32 (): gradients are first divided by `divisor`; where `skipped` is 1 nothing changes.
        """
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in parameters]
            states = [self._state(parameter) for parameter in parameters]
            first, second, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
            adamw(
                _parts(parameters), _parts(gradients), _parts(first), _parts(second), [], steps,
                fused=True, grad_scale=divisor, found_inf=skipped, amsgrad=False, maximize=False,
                beta1=_BETAS[0], beta2=_BETAS[1], eps=_EPS, lr=group["lr"], weight_decay=group["weight_decay"],
            )  # fmt: skip

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]


def _parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [local(tensor) for tensor in tensors]


def make_optimizer(model: nn.Module, run: Run) -> AdamW:
    """AdamW with weight decay on all but biases and LayerNorm weights."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = name.endswith("bias") or name.endswith("layer_norm.weight")
        (others if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": run.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return AdamW(groups, lr=run.learning_rate)
