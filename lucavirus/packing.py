"""Samples -> one packed batch: all tokens in one row, and for each task the positions that have a label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lucavirus import alphabet
from lucavirus.config import Run
from lucavirus.masking import corrupt, sample_keys
from lucavirus.tasks import MOLECULES, TASKS

IGNORED = -100
_CLS, _SEP = (np.array([token], np.uint8) for token in (alphabet.CLS, alphabet.SEP))
# A pack has a multiple of these tokens, or more, and its `cu_seqlens` a multiple of these entries.
_FEWEST_TOKENS, _SEQUENCES = 32, 64


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
    labelled sequence; `sequences` int64 (n,) which sequences of the pack they are. Rows whose targets are all -100
    are filling (see `fill`).
    """

    positions: Tensor
    targets: Tensor
    rows: Tensor
    counts: Tensor
    sequences: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Change every tensor."""
        return type(self)(*(change(getattr(self, f.name)) for f in fields(self)))

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Positions, targets and weights (1 / labels of the sequence, float32) of at most `size` rows at a time."""
        weights = self.counts.reciprocal()[self.rows]
        return zip(*(torch.split(rows, size) for rows in (self.positions, self.targets, weights)), strict=True)


@dataclass(frozen=True)
class Pack:
    """One packed batch of N sequences and T tokens, [CLS] and [SEP] of each included.

    `tokens`, `types`, `positions` int64 (T,); `offsets` the N+1 boundaries, and one more where the pack is filled;
    `cu_seqlens` the same as int32, its last value repeated; `samples` the N sample numbers.
    """

    tokens: Tensor
    types: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    offsets: list[int]
    samples: list[int]
    labels: dict[str, TaskLabels]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, without what fills the pack."""
        return np.diff(self.offsets[: len(self.samples) + 1])

    def sizes(self) -> dict[str, float]:
        """What a pack adds to the counts of an update: sequences, tokens, squared lengths, computed positions."""
        lengths = self.lengths
        return {
            "sequences": len(lengths), "tokens": int(lengths.sum()), "squares": float((lengths**2).sum()),
            "positions": self.offsets[-1],
        }  # fmt: skip

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Change every tensor, in a fixed order."""
        labels = {task: labels.map(change) for task, labels in self.labels.items()}
        return type(self)(
            change(self.tokens), change(self.types), change(self.positions), change(self.cu_seqlens),
            self.offsets, self.samples, labels,
        )  # fmt: skip


def make_pack(samples: Sequence[Sample], run: Run, classes: dict[str, int], epoch: int) -> Pack:
    """Mask and label samples and put them in one row.

    `classes` are the vocabulary sizes of the tasks to label; the masks are those of `epoch`.
    """
    lengths = np.array([len(sample.tokens) for sample in samples])
    molecule = np.array([sample.molecule for sample in samples], np.uint8)
    body_offsets = np.concatenate([[0], np.cumsum(lengths)])
    offsets = np.concatenate([[0], np.cumsum(lengths + 2)])
    bodies = [sample.tokens for sample in samples]
    row = np.concatenate([part for body in bodies for part in (_CLS, body, _SEP)], dtype=np.int64)
    labels: dict[str, TaskLabels] = {}
    masked = [task for task in run.tasks if not TASKS[task].supervised]
    if masked:
        body = np.concatenate(bodies)
        keys = sample_keys(run.seed, epoch, np.array([sample.index for sample in samples]))
        corrupted, chosen = corrupt(body, molecule, body_offsets, keys, run.mask_probability, run.random_tokens)
        where = np.flatnonzero(chosen)
        owner = np.searchsorted(body_offsets, where, side="right") - 1
        place = where + 2 * owner + 1
        for task in masked:
            mine = molecule[owner] == MOLECULES.index(TASKS[task].molecule)
            row[place[mine]] = corrupted[where[mine]]
            if mine.any():
                labels[task] = _labels(place[mine], body[where[mine]].astype(np.int64), owner[mine])
    for supervised, size in classes.items():
        found = _supervised(samples, offsets, supervised, size, run.keyword_negatives)
        if found is not None:
            labels[supervised] = found
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths + 2)
    types = np.repeat(molecule.astype(np.int64), lengths + 2)
    return Pack(
        torch.from_numpy(row), torch.from_numpy(types), torch.from_numpy(positions),
        torch.from_numpy(offsets.astype(np.int32)), offsets.tolist(), [sample.index for sample in samples], labels,
    )  # fmt: skip


def fill(pack: Pack, capacity: int, most: int, at_least: int = 0) -> Pack:
    """Bring a pack to one of few shapes, so that compiled code and memory are used again.

    Its tokens become a multiple of `step_of_fill`, or `most`, the tokens of the largest pack there can be; what is
    added is one more sequence of [PAD] without labels. Label rows and `cu_seqlens` are rounded up too. No loss or
    gradient changes.
    """
    tokens = len(pack.tokens)
    added = max(0, min(most, _round_up(max(tokens, at_least), step_of_fill(capacity))) - tokens)
    offsets = [*pack.offsets, tokens + added] if added else pack.offsets
    cu_seqlens = np.full(_round_up(len(offsets), _SEQUENCES), offsets[-1], np.int32)
    cu_seqlens[: len(offsets)] = offsets
    return Pack(
        F.pad(pack.tokens, (0, added), value=alphabet.PAD), F.pad(pack.types, (0, added)),
        torch.cat([pack.positions, torch.arange(added)]), torch.from_numpy(cu_seqlens), offsets, pack.samples,
        {task: _fill_rows(labels) for task, labels in pack.labels.items()},
    )  # fmt: skip


def empty_pack() -> Pack:
    """A pack without any sequence, for a rank that must take part in a computation and has none."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return fill(Pack(nothing, nothing, nothing, nothing, [0], [], {}), 1, _FEWEST_TOKENS, at_least=1)


def step_of_fill(capacity: int) -> int:
    """Tokens of which a filled pack has a multiple; more than that is never added."""
    return max(_FEWEST_TOKENS, capacity // 128)


def _fill_rows(labels: TaskLabels) -> TaskLabels:
    rows = len(labels.positions)
    # At most 8 sizes between a power of two and the next.
    added = _round_up(rows, max(4, 1 << max(0, rows.bit_length() - 4))) - rows
    at_the_end = (0, 0) * (labels.targets.ndim - 1) + (0, added)
    return replace(
        labels, positions=F.pad(labels.positions, (0, added)), rows=F.pad(labels.rows, (0, added)),
        targets=F.pad(labels.targets, at_the_end, value=IGNORED),
    )  # fmt: skip


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


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
    counts = np.bincount(owners)
    sequences = np.flatnonzero(counts)
    rows = (np.cumsum(counts > 0) - 1)[owners]
    arrays = positions, targets, rows, counts[sequences].astype(np.float32), sequences
    return TaskLabels(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))
