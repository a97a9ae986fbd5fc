"""A run made ready: data opened, tasks and values resolved, and the fingerprint of all that gives it its meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucavirus.config import Run
from lucavirus.dataset import Dataset, classes_of, fingerprints, open_splits, require_samples
from lucavirus.errors import UserError
from lucavirus.model import Architecture
from lucavirus.plan import Plan, automatic_max_steps
from lucavirus.tasks import SUPERVISED
from lucavirus.vocabularies import read_vocabularies


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
    unlabelled: tuple[str, ...]
    fingerprint: dict[str, Any]

    def max_steps(self) -> int:
        """Updates after which the learning rate would be 0."""
        if self.run.max_steps != "auto":
            return self.run.max_steps
        assert self.run.final_learning_rate is not None
        return automatic_max_steps(self.plan.updates, self.run.learning_rate, self.run.final_learning_rate)


def prepare(name: str, run: Run, data: Path) -> Prepared:
    """Open the data of a run. Raises UserError where nothing can be learned.

    Tasks without a class are dropped. Those whose vocabulary was given, but without any label, keep their head, which
    only decays: that of weights that the run begins with may be wanted.
    """
    if not (data / "datasets").is_dir():
        raise UserError(
            "has no data sets", where=str(data), hint="`snakemake split` makes them; is it the right folder?"
        )
    vocabularies = read_vocabularies(data / "vocabularies")
    dropped = tuple(task for task in run.tasks if task in SUPERVISED and not vocabularies[task])
    tasks = tuple(task for task in run.tasks if task not in dropped)
    train, dev, test = open_splits(data, run, tasks)
    require_samples(train, f"run {name}")
    unlabelled = tuple(task for task in tasks if task in SUPERVISED and not train.has_labels(task))
    learned = [task for task in tasks if task not in unlabelled]
    if not learned:
        raise UserError(f"no task of run {name} has a label", hint="give annotations, or add a mask task to its tasks")
    if not any(map(run.task_weight, learned)):
        what = f"task_weights are 0 for all tasks of run {name} that have a label: {', '.join(learned)}"
        raise UserError(what, hint="give annotations for another task, or one of these a weight")
    fingerprint = run.meaning()  # with the tasks as configured: which of them have labels is up to the vocabularies
    run = run.model_copy(update={"tasks": tasks})
    classes = classes_of(vocabularies, tasks)
    return Prepared(
        name, run, classes, Architecture.of(run, classes),
        Plan.of(run, len(train)), train, dev, test, dropped, unlabelled,
        fingerprint | _data_fingerprint(run, vocabularies, fingerprints([train, dev, test])),
    )  # fmt: skip


def _data_fingerprint(run: Run, vocabularies: Mapping[str, Sequence[str]], data: list[str]) -> dict[str, Any]:
    meaning: dict[str, Any] = {"sequences and labels": data}
    for task in run.tasks:
        if task in SUPERVISED:
            names = "\n".join(vocabularies[task])
            meaning[f"vocabulary of {task}"] = hashlib.sha256(names.encode()).hexdigest()[:16]
    return meaning
