"""Samples -> one packed batch: all tokens in one row, and for each task the positions that have a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lucavirus import alphabet
from lucavirus.config import Run
from lucavirus.masking import corrupt, sample_keys
from lucavirus.tasks import MOLECULES, TASKS

IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """One sequence as the model reads it: body tokens uint8 (already cut to the run's length) and its labels."""

    index: int
    molecule: int
    tokens: NDArray[np.uint8]
    labels: dict[str, NDArray[np.int32]]


@dataclass(frozen=True)
class TaskLabels:
    """Labels of one task in a pack.

    `positions` int64 (M,) in the row of tokens; `targets` int64 (M,) classes, or int8 (M, K) of 0, 1, -100 for
    multi-label tasks; `rows` int64 (M,) the labelled sequence (0..n-1) of each; `counts` float32 (n,) labels of each
    labelled sequence; `sequences` int64 (n,) which sequences of the pack they are.
    """

    positions: Tensor
    targets: Tensor
    rows: Tensor
    counts: Tensor
    sequences: Tensor

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        return type(self)(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


@dataclass(frozen=True)
class Pack:
    """One packed batch of N sequences and T tokens, [CLS] and [SEP] of each included.

    `tokens`, `types`, `positions` int64 (T,); `offsets` the N+1 boundaries; `samples` the N sample numbers.
    """

    tokens: Tensor
    types: Tensor
    positions: Tensor
    offsets: list[int]
    samples: list[int]
    labels: dict[str, TaskLabels]

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        tokens, types, positions = (
            tensor.to(device, non_blocking=True) for tensor in (self.tokens, self.types, self.positions)
        )
        labels = {task: labels.to(device) for task, labels in self.labels.items()}
        return type(self)(tokens, types, positions, self.offsets, self.samples, labels)


def make_pack(samples: Sequence[Sample], run: Run, classes: dict[str, int], epoch: int) -> Pack:
    """Mask and label samples and put them in one row.

    `classes` are the vocabulary sizes of the tasks to label; the masks are those of `epoch`.
    """
    lengths = np.array([len(sample.tokens) for sample in samples])
    molecule = np.array([sample.molecule for sample in samples], np.uint8)
    body_offsets = np.concatenate([[0], np.cumsum(lengths)])
    offsets = np.concatenate([[0], np.cumsum(lengths + 2)])
    place = np.arange(body_offsets[-1]) + np.repeat(2 * np.arange(len(samples)) + 1, lengths)
    body = np.concatenate([sample.tokens for sample in samples])

    row = np.empty(offsets[-1], np.int64)
    row[offsets[:-1]], row[offsets[1:] - 1], row[place] = alphabet.CLS, alphabet.SEP, body
    labels: dict[str, TaskLabels] = {}
    masked = [task for task in run.tasks if not TASKS[task].supervised]
    if masked:
        keys = sample_keys(run.seed, epoch, np.array([sample.index for sample in samples]))
        corrupted, chosen = corrupt(body, molecule, body_offsets, keys, run.mask_probability, run.random_tokens)
        owner = np.repeat(np.arange(len(samples)), lengths)
        for task in masked:
            mine = chosen & (molecule == MOLECULES.index(TASKS[task].molecule))[owner]
            row[place[mine]] = corrupted[mine]
            if mine.any():
                labels[task] = _labels(place[mine], body[mine].astype(np.int64), owner[mine])
    for supervised, size in classes.items():
        found = _supervised(samples, offsets, supervised, size, run.keyword_negatives)
        if found is not None:
            labels[supervised] = found
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths + 2)
    types = np.repeat(molecule.astype(np.int64), lengths + 2)
    return Pack(
        torch.from_numpy(row), torch.from_numpy(types), torch.from_numpy(positions),
        offsets.tolist(), [sample.index for sample in samples], labels,
    )  # fmt: skip


def span_classes(spans: NDArray[np.int32], length: int) -> NDArray[np.int64]:
    """Class of each body position, int64 (length,), -100 where unlabelled; later spans overwrite earlier ones."""
    classes = np.full(length, IGNORED, np.int64)
    for start, end, label in spans.tolist():
        classes[start : end + 1] = label
    return classes


def keyword_targets(keywords: NDArray[np.int32], size: int, negatives: bool) -> NDArray[np.int8]:
    """Multi-label target int8 (size,): 1 present; absent is 0, or -100 (ignored, as in the original)."""
    targets = np.full(size, 0 if negatives else IGNORED, np.int8)
    targets[keywords[:, 0]] = 1
    return targets


def _supervised(
    samples: Sequence[Sample], offsets: NDArray[np.int64], task: str, size: int, negatives: bool
) -> TaskLabels | None:
    positions: list[Any] = []
    targets: list[Any] = []
    owners: list[Any] = []
    for number, sample in enumerate(samples):
        values = sample.labels.get(task)
        if values is None or not len(values):
            continue
        if TASKS[task].level == "span":
            classes = span_classes(values, len(sample.tokens))
            known = np.flatnonzero(classes != IGNORED)
            positions.append(offsets[number] + 1 + known)
            targets.append(classes[known])
            owners.append(np.full(len(known), number))
        else:
            multi = TASKS[task].multi_label
            targets.append(keyword_targets(values, size, negatives)[None] if multi else values[-1].astype(np.int64))
            positions.append(offsets[number : number + 1])
            owners.append(np.array([number]))
    if not sum(map(len, positions)):
        return None
    return _labels(np.concatenate(positions), np.concatenate(targets), np.concatenate(owners))


def _labels(positions: NDArray[np.int64], targets: NDArray[Any], owners: NDArray[np.int64]) -> TaskLabels:
    sequences, rows, counts = np.unique(owners, return_inverse=True, return_counts=True)
    arrays = positions, targets, rows.astype(np.int64), counts.astype(np.float32), sequences.astype(np.int64)
    return TaskLabels(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
