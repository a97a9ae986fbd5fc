"""A run made ready: data opened, tasks and values resolved, and the fingerprint of all that gives it its meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lucavirus.config import Run
from lucavirus.dataset import Dataset, classes_of, require_samples
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.evaluate import Compute
from lucavirus.model import Architecture, LucaVirus, count_parameters
from lucavirus.plan import Plan, automatic_max_steps
from lucavirus.tasks import SUPERVISED
from lucavirus.vocabularies import read_vocabularies

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
        formula = automatic_max_steps(
            len(self.train), self.run.max_epochs, self.plan.sequences_per_update,
            self.run.learning_rate, self.run.final_learning_rate,
        )  # fmt: skip
        # The formula leaves out that each epoch's last update is a part of one; the run must not end before its epochs.
        return max(formula, self.plan.updates)


def prepare(name: str, run: Run, data: Path) -> Prepared:
    """Open the data of a run; tasks without any label are dropped. Raises UserError where nothing can be learned."""
    vocabularies = read_vocabularies(data / "vocabularies")
    dropped = tuple(task for task in run.tasks if task in SUPERVISED and not vocabularies[task])
    tasks = tuple(task for task in run.tasks if task not in dropped)
    if not tasks:
        raise UserError(f"no task of run {name} has a label", hint="give annotations, or add a mask task to its tasks")
    fingerprint = run.meaning()  # with the tasks as configured: which of them have labels is up to the vocabularies
    run = run.model_copy(update={"tasks": tasks})
    classes = classes_of(vocabularies, tasks)
    train, dev, test = (
        Dataset(data, run.molecules, split, run.model.max_length, tasks) for split in ("train", "dev", "test")
    )
    require_samples(train, f"run {name}")
    return Prepared(
        name, run, classes, Architecture.of(run, {task: classes.get(task, 0) for task in SUPERVISED}),
        Plan.of(run, len(train)), train, dev, test, dropped,
        fingerprint | _data_fingerprint(run, vocabularies, train.fingerprint + dev.fingerprint + test.fingerprint),
    )  # fmt: skip


def _data_fingerprint(run: Run, vocabularies: Mapping[str, Sequence[str]], data: list[str]) -> dict[str, Any]:
    meaning: dict[str, Any] = {"sequences and labels": data}
    for task in run.tasks:
        if task in SUPERVISED:
            names = "\n".join(vocabularies[task])
            meaning[f"vocabulary of {task}"] = hashlib.sha256(names.encode()).hexdigest()[:16]
    return meaning


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
