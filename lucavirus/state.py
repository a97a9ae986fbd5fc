"""Where a training stands, and its checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lucavirus import checkpoint
from lucavirus.distributed import Ranks
from lucavirus.tasks import TASKS
from lucavirus.weights import export_weights

# What is added up over the packs and ranks of an update, by place in one vector.
STATISTICS: tuple[str, ...] = (
    *(f"loss of {task}" for task in TASKS),
    *(f"sequences with {task}" for task in TASKS),
    "loss", "sequences", "tokens", "stop",
)  # fmt: skip
PLACE: dict[str, int] = {name: place for place, name in enumerate(STATISTICS)}
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class State:
    """Where a run stands; every number here survives JSON exactly.

    `update` counts the updates done; `evaluated` and `saved` are the last updates after which that was due and done;
    `sequences` and `tokens` were gone through; `seconds` is the time of training through all starts; `history_bytes` is
    the length of metrics.jsonl; `best` is the best evaluation; `window` are the statistics since the last record;
    `resolved` holds what was `auto`.
    """

    update: int = 0
    evaluated: int = 0
    saved: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history_bytes: int = 0
    best: dict[str, Any] | None = None
    window: list[float] = field(default_factory=lambda: [0.0] * len(STATISTICS))
    resolved: dict[str, Any] = field(default_factory=dict)

    def add(self, statistics: list[float]) -> None:
        """Count one update."""
        self.update += 1
        self.sequences += int(statistics[PLACE["sequences"]])
        self.tokens += int(statistics[PLACE["tokens"]])
        self.window = [a + b for a, b in zip(self.window, statistics, strict=True)]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run's work folder: `checkpoints/step-N` to go on from, `best/step-N` the best weights."""

    work: Path

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return self.work / "checkpoints"

    def newest(self, ranks: Ranks, warnings: list[str]) -> Path | None:
        """The newest whole checkpoint, the same on every rank; damaged ones are told in `warnings`."""
        step = torch.full((1,), -1, dtype=torch.int64, device=ranks.device)
        if ranks.first and (found := checkpoint.newest_complete(self.folder, warnings.append)):
            step[0] = checkpoint.step_of(found)
        ranks.broadcast_(step)
        return self.at(int(step.item())) if step.item() >= 0 else None

    def at(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.folder / f"step-{step}"

    def best(self, state: State, last: Path) -> Path:
        """The best weights that a state speaks of; without an evaluation the last ones."""
        return self.work / "best" / f"step-{state.best['step']}" if state.best else last

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, fingerprint: Any, keep: int
    ) -> None:
        """Save everything; then remove checkpoints beyond the newest `keep`, and best weights none speaks of."""
        moments = {
            f"{name}/{key}": optimizer.state[parameter][key]
            for name, parameter in model.named_parameters()
            for key in _MOMENTS
            if parameter in optimizer.state
        }
        tensors = {"model": export_weights(model), "optimizer": moments}
        checkpoint.save_checkpoint(self.folder, step, tensors, {"run": asdict(state), "fingerprint": fingerprint})
        checkpoint.prune(self.folder, keep)
        spoken = [read_state(path).best for path in checkpoint.checkpoints(self.folder)]
        checkpoint.keep_only(self.work / "best", {best["step"] for best in spoken if best})

    def save_best(self, model: nn.Module, best: Mapping[str, Any]) -> None:
        """Save the weights of the best evaluation so far."""
        checkpoint.save_checkpoint(self.work / "best", best["step"], {"model": export_weights(model)}, best)


def read_state(path: Path) -> State:
    """The state in a checkpoint."""
    return State(**checkpoint.read_state(path)["run"])


def read_fingerprint(path: Path) -> dict[str, Any]:
    """The fingerprint in a checkpoint."""
    fingerprint: dict[str, Any] = checkpoint.read_state(path)["fingerprint"]
    return fingerprint


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimizer moments from a checkpoint."""
    model.load_state_dict(checkpoint.read_tensors(path, "model"))
    moments = checkpoint.read_tensors(path, "optimizer")
    for name, parameter in model.named_parameters():
        if f"{name}/step" in moments:
            optimizer.state[parameter] = {key: moments[f"{name}/{key}"].to(parameter.device) for key in _MOMENTS}
