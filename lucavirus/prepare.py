"""A run made ready: data opened, tasks and values resolved, and the fingerprint of all that gives it its meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lucavirus.config import OPERATIONAL, Run
from lucavirus.dataset import Dataset, classes_of, require_samples
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.evaluate import Compute
from lucavirus.model import Architecture, LucaVirus, count_parameters
from lucavirus.plan import Plan, automatic_max_steps
from lucavirus.tasks import SUPERVISED
from lucavirus.vocabularies import read_vocabularies

# What a finished run may be given more of; a new start goes on then.
_EXTENSIBLE = frozenset({"max_epochs", "stop_after"})
_CPU_PACK = 4096
# Activations that a layer keeps for its backward pass, in multiples of the width: measured on pre-LN layers by
# Korthikanti et al. (2022) as 34 bytes a token in 16 bits, without the attention matrix.
_ACTIVATIONS = 17


@dataclass(frozen=True)
class Prepared:
    """Everything a training needs to know, the same on every rank."""

    name: str
    run: Run
    classes: dict[str, int]
    architecture: Architecture
    plan: Plan
    train: Dataset
    dev: Dataset
    test: Dataset
    dropped: tuple[str, ...]
    fingerprint: dict[str, Any]

    def max_steps(self) -> int:
        """Updates after which the learning rate would be 0."""
        if self.run.max_steps != "auto":
            return self.run.max_steps
        assert self.run.final_learning_rate is not None
        return automatic_max_steps(
            len(self.train), self.run.max_epochs, self.plan.sequences_per_update,
            self.run.learning_rate, self.run.final_learning_rate,
        )  # fmt: skip


def prepare(name: str, run: Run, data: Path) -> Prepared:
    """Open the data of a run; tasks without any label are dropped. Raises UserError where nothing can be learned."""
    vocabularies = read_vocabularies(data / "vocabularies")
    dropped = tuple(task for task in run.tasks if task in SUPERVISED and not vocabularies[task])
    tasks = tuple(task for task in run.tasks if task not in dropped)
    if not tasks:
        raise UserError(f"no task of run {name} has a label", hint="give annotations, or add a mask task to its tasks")
    run = run.model_copy(update={"tasks": tasks})
    classes = classes_of(vocabularies, tasks)
    train, dev, test = (
        Dataset(data, run.molecules, split, run.model.max_length, tasks) for split in ("train", "dev", "test")
    )
    require_samples(train, f"run {name}")
    return Prepared(
        name, run, classes, Architecture.of(run, {task: classes.get(task, 0) for task in SUPERVISED}),
        Plan.of(run, len(train)), train, dev, test, dropped,
        _fingerprint(run, vocabularies, train.fingerprint + dev.fingerprint + test.fingerprint),
    )  # fmt: skip


def _fingerprint(run: Run, vocabularies: Mapping[str, Sequence[str]], data: list[str]) -> dict[str, Any]:
    meaning: dict[str, Any] = {
        k: v for k, v in run.model_dump(mode="json").items() if k not in OPERATIONAL | _EXTENSIBLE
    }
    for task in run.tasks:
        if task in SUPERVISED:
            names = "\n".join(vocabularies[task])
            meaning[f"vocabulary of {task}"] = hashlib.sha256(names.encode()).hexdigest()[:16]
    meaning["sequences and labels"] = data
    return meaning


def check_fingerprint(saved: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise UserError, naming each differing setting with both values, unless a checkpoint belongs to this run."""
    differing = [key for key in {**saved, **now} if saved.get(key) != now.get(key)]
    if not differing:
        return
    lines = [f"    {key}: {saved.get(key)!r} -> {now.get(key)!r}" for key in differing]
    raise UserError(
        "this checkpoint was made with other settings:\n" + "\n".join(lines),
        where=str(checkpoint),
        hint="set them back; or give the changed run a new name under `runs`; or move the folder "
        f"{checkpoint.parents[1]} away to start this run anew",
    )


def resolve_compute(run: Run, model: LucaVirus, ranks: Ranks) -> Compute:
    """Precision and pack size of a run, the same on every rank."""
    device = ranks.device
    on_gpu = device.type == "cuda"
    half = run.precision == "bf16" or (run.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported())
    dtype = torch.bfloat16 if half else torch.float32
    if run.max_tokens_per_pack != "auto":
        return Compute(device, dtype, run.max_tokens_per_pack)
    capacity = torch.tensor([_CPU_PACK], device=device)
    if on_gpu:
        # Weights, gradients and two moments in float32 are not there yet.
        free = torch.cuda.mem_get_info(device)[0] - 16 * count_parameters(model)
        width = model.architecture.layers * model.architecture.hidden_size
        capacity[0] = int(0.7 * free / (_ACTIVATIONS * dtype.itemsize * width)) // 1024 * 1024
    ranks.broadcast_(capacity)
    return Compute(device, dtype, max(int(capacity), run.model.max_length))
