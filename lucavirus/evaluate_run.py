"""The evaluate stage: a published model on dev and test, as evaluation.json and a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from lucavirus import memory
from lucavirus.capacity import evaluation_capacity
from lucavirus.compute import make_compute
from lucavirus.config import Run, Settings
from lucavirus.config_data import HELD_OUT, HeldOut
from lucavirus.config_load import chosen_run
from lucavirus.dataset import Dataset
from lucavirus.distributed import Ranks, joined
from lucavirus.errors import UserError
from lucavirus.evaluate import evaluate_split
from lucavirus.files import replace_json, replace_text
from lucavirus.model import Architecture, LucaVirus
from lucavirus.staging import staged
from lucavirus.vocabularies import read_vocabularies, read_vocabulary
from lucavirus.weights import import_weights


def evaluate_run(settings: Settings, name: str, data: Path, model_folder: Path, out: Path) -> None:
    """Evaluate a run's published model on dev and test and write `out` (JSON) and the same as a table (.tsv)."""
    run = chosen_run(settings, name)
    with joined(run.device, announce=True) as ranks:
        data = staged(data, run.stage_shards_to)
        with _way_out(model_folder):
            model = load_model(model_folder).to(ranks.device)
            labels = {task: read_vocabulary(model_folder / f"labels/{task}.txt") for task in model.architecture.heads}
        splits = {split: _evaluate(model, labels, run, data, split, ranks) for split in HELD_OUT}
        if ranks.first:
            tasks = {split: found["tasks"] for split, found in splits.items() if found}
            losses = {split: found["loss"] for split, found in splits.items() if found and found["tasks"]}
            for split in tasks.keys() - losses.keys():
                print(
                    f"warning: no sequence of {split} has a label of the run's tasks; no loss is known there",
                    file=sys.stderr,
                )
            replace_text(out.with_suffix(".tsv"), table(tasks).to_csv(sep="\t", index=False))
            replace_json(out, {"run": name, "checkpoint": str(model_folder), "loss": losses, "splits": tasks})
        ranks.barrier()


@contextmanager
def _way_out(model_folder: Path) -> Iterator[None]:
    """What to do about a mistake in a run's published model: Snakemake, which made it, does not look into it."""
    try:
        yield
    except UserError as error:
        if not (model_folder.parent / "training.json").exists():  # somebody else's
            raise
        hint = f"remove {model_folder} and type the same command again; it is made anew from the checkpoints"
        raise UserError(error.what, where=error.where, hint=hint) from None


def load_model(folder: Path | str) -> LucaVirus:
    """A published model, all of its weights found."""
    folder = Path(folder)
    try:
        architecture = Architecture.from_json(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"is no published model ({error})", where=str(folder), hint="train the run first") from error
    memory.prepare_for_model(architecture.weights)
    model = LucaVirus(architecture)
    left = import_weights(model, folder).left
    if left:
        raise UserError(f"the weights lack {', '.join(left)}", where=str(folder), hint="publish the model again: "
                        "run the training's target once more")  # fmt: skip
    return model.eval()


def _evaluate(
    model: LucaVirus, labels: Mapping[str, Sequence[str]], run: Run, data: Path, split: str, ranks: Ranks
) -> dict[str, Any] | None:
    # The vocabularies of now, not of the time of training: a model of other classes must not be scored by them.
    names = read_vocabularies(data / "vocabularies")
    classes = {task: classes for task, (_, classes) in model.architecture.heads.items()}
    changed = [task for task in classes if names[task] != labels[task]]
    if changed:
        raise UserError(f"the label vocabularies of {', '.join(changed)} have changed since the model was trained",
                        hint="train the run again under a new name, or bring the old labels back")  # fmt: skip
    tasks = [task for task in run.tasks if task in classes]
    dataset = Dataset(data, run.molecules, split, run.model.max_length, tasks)
    if not len(dataset):
        return None
    compute = make_compute(run, ranks.device).with_capacity(evaluation_capacity(model.architecture, run, ranks.device))
    return evaluate_split(model, dataset, run, classes, compute, ranks, metrics=True, bar=split)


def table(splits: Mapping[HeldOut, dict[str, Any]]) -> pd.DataFrame:
    """One row a split, task and metric: value and baseline (the best constant answer)."""
    rows = []
    for split, tasks in splits.items():
        for task, found in tasks.items():
            size = {"n_sequences": found["n_sequences"], "n_labels": found["n_labels"]}
            rows.append({"split": split, "task": task, "metric": "loss", "value": found["loss"], **size})
            for metric, baseline in found["baseline"].items():
                value = {"value": found[metric], "baseline": baseline}
                rows.append({"split": split, "task": task, "metric": metric, **value, **size})
    return pd.DataFrame(rows, columns=["split", "task", "metric", "value", "baseline", "n_sequences", "n_labels"])
