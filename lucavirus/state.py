"""Where a training stands, and its checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lucavirus import checkpoint
from lucavirus.background import Background
from lucavirus.config import Run
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.optimizer import AdamW
from lucavirus.patience import patiently
from lucavirus.sharding import like, whole
from lucavirus.tasks import TASKS

# What is added up over the packs and ranks of an update, by place in one vector.
STATISTICS: tuple[str, ...] = (
    *(f"loss of {task}" for task in TASKS),
    *(f"sequences with {task}" for task in TASKS),
    "loss", "sequences", "tokens", "squares", "positions", "stop", "save",
)  # fmt: skip
PLACE: dict[str, int] = {name: place for place, name in enumerate(STATISTICS)}
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_WEIGHTS, _OPTIMIZER = "model.safetensors", "optimizer.safetensors"
Files = Mapping[str, Callable[[Path], object]]


def task_losses(statistics: Sequence[float]) -> dict[str, float]:
    """Mean loss of each task over the sequences that have it."""
    counts = {task: statistics[PLACE[f"sequences with {task}"]] for task in TASKS}
    return {task: statistics[PLACE[f"loss of {task}"]] / count for task, count in counts.items() if count}


@dataclass
class State:
    """Where a run stands; every number here survives JSON exactly.

    `update` counts the updates done, of which the original did the first `first` (in weights that the run began with);
    `evaluated` and `saved` are the last updates after which that was due and done; `sequences` and `tokens` were gone
    through; `seconds` is the time of training through all starts; `history_bytes` is the length of metrics.jsonl;
    `best` is the best evaluation; `skipped` counts the updates skipped in a row; `window` are the statistics since the
    last record, in `window_seconds` of training; `resolved` holds what was `auto`; `original` tells the folder and the
    step of the original's weights that the run was told to begin with.
    """

    update: int = 0
    first: int = 0
    evaluated: int = 0
    saved: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history_bytes: int = 0
    best: dict[str, Any] | None = None
    skipped: int = 0
    window: list[float] = field(default_factory=lambda: [0.0] * len(STATISTICS))
    window_seconds: float = 0.0
    resolved: dict[str, Any] = field(default_factory=dict)
    original: dict[str, Any] | None = None

    def add(self, statistics: list[float], *, skipped: bool) -> None:
        """Count one update; the losses of one that was skipped are not averaged."""
        self.update += 1
        self.sequences += int(statistics[PLACE["sequences"]])
        self.tokens += int(statistics[PLACE["tokens"]])
        self.skipped = self.skipped + 1 if skipped else 0
        if not skipped:
            self.window = [a + b for a, b in zip(self.window, statistics, strict=True)]


class Checkpoints:
    """The checkpoints of a run's work folder: `checkpoints/step-N` to go on from, `best/step-N` the best weights.

    Saving copies to memory and writes in the background, one checkpoint at a time, so that training goes on; what
    cannot be written is tried again for some minutes, unless the training is `asked_to_end`. Every rank must save,
    because parameters may be sharded; one of them `writes`. Texts that stand `beside` the weights
    (publish.model_files) make each of them a model that can be used by itself.
    """

    def __init__(
        self, work: Path, beside: Mapping[str, str], *, writes: bool = True,
        asked_to_end: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.work, self.beside, self.writes, self.asked_to_end = work, beside, writes, asked_to_end
        self.say: Callable[[str], object] = print  # until there is a history
        self._background = Background()
        self._copies: dict[str, Tensor] = {}

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

    def save(self, step: int, model: nn.Module, optimizer: AdamW, state: State, fingerprint: Any, run: Run) -> None:
        """Save everything, in the background; then remove what the settings do not keep.

        Only the copy in memory is made now. Raises UserError when the save before this one failed.
        """
        self.finish()
        files = self._files({_WEIGHTS: model.state_dict(), _OPTIMIZER: _moments(model, optimizer)})
        content = {"run": asdict(state), "fingerprint": fingerprint}
        self._in_background(lambda: self._write(step, files, content, run))

    def save_best(self, model: nn.Module, best: Mapping[str, Any]) -> None:
        """Save the weights of the best evaluation so far, in the background."""
        self.finish()
        files, content = self._files({_WEIGHTS: model.state_dict()}), dict(best)
        self._in_background(lambda: checkpoint.save_checkpoint(self.work / "best", best["step"], files, content))

    def look(self) -> None:
        """Raise UserError when what was saved could not be written, as soon as that is known; waits for nothing."""
        self._background.look()

    def finish(self) -> None:
        """Wait until what was saved is on disk. Raises UserError when it could not be written."""
        self._background.wait()

    def _files(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> Files:
        """What writes each file of a checkpoint: tensors as they are now, and the texts beside them."""
        texts = {name: partial(Path.write_text, data=text, encoding="utf-8") for name, text in self.beside.items()}
        return {**{name: self._copy(group) for name, group in tensors.items()}, **texts}

    def _copy(self, tensors: Mapping[str, Tensor]) -> Callable[[Path], None]:
        """Copy tensors to memory that is used again by the next save; returns what writes the copy."""
        copied = {}
        for name, part in tensors.items():
            tensor = whole(part)
            if not self.writes:
                continue
            if name not in self._copies:
                self._copies[name] = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
            copied[name] = self._copies[name].copy_(tensor)
        return lambda path: save_file(copied, path)

    def _in_background(self, write: Callable[[], object]) -> None:
        if self.writes:
            self._background.run(patiently, write, lambda text: self.say(text), self.asked_to_end)

    def _write(self, step: int, files: Files, content: Any, run: Run) -> None:
        checkpoint.save_checkpoint(self.folder, step, files, content)
        checkpoint.prune(self.folder, run.keep_last, run.keep_every)
        try:
            spoken = [read_state(path).best for path in checkpoint.checkpoints(self.folder)]
        except (OSError, ValueError, KeyError):  # an older one is damaged: what it speaks of is not known, and kept
            return
        checkpoint.keep_only(self.work / "best", {best["step"] for best in spoken if best})

    def require_space(self, model: nn.Module, keep_last: int) -> None:
        """Raise UserError unless the disk has room for the checkpoints that are kept, and one being written."""
        weights = 4 * sum(parameter.numel() for parameter in model.parameters())
        # A checkpoint has the weights and two moments; besides, the best weights, old and new.
        needed = 3 * weights * (keep_last + 1) + 2 * weights
        kept = [*checkpoint.checkpoints(self.folder)[:keep_last], *checkpoint.checkpoints(self.work / "best")]
        unfinished = self.work.glob("*/tmp-*")  # the next save removes them
        there = sum(file.stat().st_size for path in (*kept, *unfinished) for file in path.glob("*.safetensors"))
        free = shutil.disk_usage(self.work).free
        if free < needed - there:
            raise UserError(
                f"{(needed - there) / 1e6:,.0f} MB are needed for checkpoints, {free / 1e6:,.0f} MB are free",
                where=str(self.work),
                hint="make room, or lower keep_last; `work` may be a link to a larger disk",
            )


def _moments(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": optimizer.state[parameter][key].detach()
        for name, parameter in model.named_parameters()
        for key in _MOMENTS
        if parameter in optimizer.state
    }


def read_state(path: Path) -> State:
    """The state in a checkpoint."""
    return State(**checkpoint.read_state(path)["run"])


def read_fingerprint(path: Path) -> dict[str, Any]:
    """The fingerprint in a checkpoint."""
    fingerprint: dict[str, Any] = checkpoint.read_state(path)["fingerprint"]
    return fingerprint


def restore_weights(path: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint, before the model is brought to its devices."""
    model.load_state_dict(load_file(path / _WEIGHTS))


def restore_moments(path: Path, model: nn.Module, optimizer: AdamW) -> None:
    """Load the optimizer's moments of a checkpoint, to where the parameters are."""
    moments = load_file(path / _OPTIMIZER)
    for name, parameter in model.named_parameters():
        if f"{name}/step" in moments:
            found = {key: moments[f"{name}/{key}"] for key in _MOMENTS}
            averages = {key: like(value, parameter) for key, value in found.items() if value.ndim}
            # The count of steps is one number, on the device of the parameter.
            optimizer.state[parameter] = {"step": found["step"].to(parameter.device)} | averages
