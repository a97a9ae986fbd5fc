"""Loss and metrics of a model on a split: work shared by ranks, every sample once, the same numbers for any ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lucavirus import alphabet
from lucavirus.compute import Compute
from lucavirus.config import Run
from lucavirus.dataset import Dataset
from lucavirus.distributed import Ranks
from lucavirus.loader import evaluation_pack, evaluation_packs
from lucavirus.losses import sequence_losses
from lucavirus.metrics import Confusion, masked_token_metrics, multi_class_metrics, multi_label_metrics
from lucavirus.model import LucaVirus
from lucavirus.packs import TaskLabels
from lucavirus.sharding import reshard
from lucavirus.tasks import TASKS


class _Collected:
    """What the packs of this rank gave: per sample and task a loss and a label count, and what the metrics need."""

    def __init__(self, samples: int, tasks: list[str], classes: Mapping[str, int], metrics: bool) -> None:
        self.tasks, self.metrics = tasks, metrics
        self.losses = np.zeros((len(tasks), samples))
        self.counts = np.zeros((len(tasks), samples), np.int64)
        # For the metrics: probabilities and truth (n, K), or pairs of classes and how often they occur; in any order.
        self.columns: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
        for task in tasks:
            many = TASKS[task].multi_label
            shape, kinds = ((0, classes[task]), (np.float32, np.int8)) if many else ((0,), (np.int64, np.int64))
            self.columns[task] = [(np.empty(shape, kinds[0]), np.empty(shape, kinds[1]))]

    def add(self, task: str, samples: NDArray[np.int64], logits: Tensor, labels: TaskLabels) -> None:
        number = self.tasks.index(task)
        self.losses[number, samples] = sequence_losses(logits, labels).double().cpu().numpy()
        labelled = int(labels.counts.sum())  # what follows fills the rows
        targets, logits = labels.targets[:labelled].cpu().numpy(), logits[:labelled]
        self.counts[number, samples] = (targets == 1).sum(1) if TASKS[task].multi_label else labels.counts.cpu().numpy()
        if not self.metrics:
            return
        if TASKS[task].multi_label:
            self.columns[task].append((logits.float().sigmoid().cpu().numpy(), targets))
        else:
            pairs = targets * logits.shape[1] + logits.argmax(1).cpu().numpy()
            self.columns[task].append(np.unique(pairs, return_counts=True))

    def gathered(self, task: str, ranks: Ranks) -> list[NDArray[Any]]:
        """The columns of a task from all ranks, on the first rank; none elsewhere."""
        mine = [np.concatenate(parts) for parts in zip(*self.columns[task], strict=True)]
        everyone = [ranks.gather(column) for column in mine]
        return [np.concatenate(parts) for parts in everyone if parts]


@torch.no_grad()
def evaluate_split(
    model: LucaVirus,
    dataset: Dataset,
    run: Run,
    classes: dict[str, int],
    compute: Compute,
    ranks: Ranks,
    *,
    metrics: bool,
    bar: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model on all samples of a dataset, with fixed masks and the training weights of the tasks.

    Returns {"loss": mean over sequences, "tasks": {task: {"loss", metrics, "baseline", "n_sequences", "n_labels"}}};
    tasks without a label there are left out, and metrics are the first rank's alone. Packs do not depend on the ranks,
    each sample is computed by one rank, and sums run in the order of samples: the numbers are the same for any ranks.
    `bar` is the name of a progress bar.
    """
    tasks: list[str] = [task for task in run.tasks if not TASKS[task].supervised or task in classes]
    collected = _Collected(len(dataset), tasks, classes, metrics)
    packs = evaluation_packs(dataset, compute.capacity)
    mine = ranks.mine(len(packs))
    hidden_bar = bar is None or not ranks.first
    for number in tqdm(mine, bar, unit="pack", file=sys.stderr, mininterval=1.0, ncols=110, disable=hidden_bar):
        pack = evaluation_pack(dataset, packs[number], run, classes, compute.capacity).to(compute.device)
        with compute.autocast():
            hidden = compute.hidden(model, pack)
            for task, labels in pack.labels.items():
                samples = np.asarray(pack.samples)[labels.sequences.cpu().numpy()]
                collected.add(task, samples, model.logits(task, hidden[pack.places(labels)]), labels)
    if compute.parallel == "fsdp":  # every rank must take part in as many passes as the first
        nothing = evaluation_pack(dataset, np.empty(0, np.int64), run, classes, compute.capacity).to(compute.device)
        for _ in range(len(mine), -(-len(packs) // ranks.world_size)):
            with compute.autocast():
                compute.hidden(model, nothing)
        reshard(model)
    return _summarise(collected, run, classes, ranks)


def _summarise(collected: _Collected, run: Run, classes: dict[str, int], ranks: Ranks) -> dict[str, Any]:
    losses, counts = _everywhere(collected.losses, ranks), _everywhere(collected.counts, ranks)
    weights = np.array([run.task_weight(task) for task in collected.tasks])
    total = float((weights[:, None] * losses).sum(0).mean()) if losses.shape[1] else 0.0
    summaries = {}
    for number, task in enumerate(collected.tasks):
        labelled = counts[number] > 0
        found = _task_metrics(collected, task, classes, losses[number], counts[number], ranks)
        if labelled.any():
            summaries[task] = {
                "loss": float(losses[number][labelled].mean()),
                **found,
                "n_sequences": int(labelled.sum()),
                "n_labels": int(counts[number].sum()),
            }
    return {"loss": total, "tasks": summaries}


def _task_metrics(
    collected: _Collected,
    task: str,
    classes: dict[str, int],
    losses: NDArray[np.float64],
    counts: NDArray[np.int64],
    ranks: Ranks,
) -> dict[str, Any]:
    if not collected.metrics or not counts.any() or not (columns := collected.gathered(task, ranks)):
        return {}
    if TASKS[task].multi_label:
        scores, truth = columns
        metrics, baseline = multi_label_metrics(np.nan_to_num(scores), truth)
    else:
        pairs, times = columns
        confusion = _confusion(pairs, times, classes.get(task, len(alphabet.TOKENS)))
        if TASKS[task].level == "token":
            metrics, baseline = masked_token_metrics(confusion, float((losses * counts).sum() / counts.sum()))
        else:
            metrics, baseline = multi_class_metrics(confusion)
    if not np.isfinite(losses).all():  # such answers would count as the first class, which may be the most frequent
        metrics = dict.fromkeys(metrics, math.nan)
    return {**metrics, "baseline": baseline}


def _everywhere(mine: NDArray[Any], ranks: Ranks) -> NDArray[Any]:
    # Each element is non-zero on one rank only, so that the sum is exact.
    tensor = torch.from_numpy(mine).to(ranks.device)
    ranks.sum_(tensor)
    return tensor.cpu().numpy()


def _confusion(pairs: NDArray[np.int64], times: NDArray[np.int64], classes: int) -> Confusion:
    pairs, inverse = np.unique(pairs, return_inverse=True)
    counts = np.zeros(len(pairs), np.int64)
    np.add.at(counts, inverse, times)
    return Confusion(pairs // classes, pairs % classes, counts)
