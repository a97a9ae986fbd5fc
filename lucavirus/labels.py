"""The labels of a task in some sequences, token by token: of masked tokens, of spans, of whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lucavirus.config import Run
from lucavirus.masking import corrupt, random_letters, sample_keys
from lucavirus.packs import IGNORED, Sample
from lucavirus.record_batches import bounds_of
from lucavirus.tasks import MOLECULES, TASKS


class Labelled(NamedTuple):
    """Labels of a task in some sequences, in their order.

    `owners` int64 (n,) are numbers of sequences, ascending; `counts` int64 (n,) how many labels each has; `places`
    int64 (M,) the tokens that are labelled, counted from the [CLS] of their sequence; `targets` (M,) or (M, K) as in
    TaskLabels.
    """

    owners: NDArray[np.int64]
    counts: NDArray[np.int64]
    places: NDArray[np.int64]
    targets: NDArray[Any]


def mask(
    samples: Sequence[Sample], task: str, run: Run, epoch: int
) -> tuple[Labelled, list[tuple[int, NDArray[np.uint8]]]]:
    """Corrupt the sequences of a task's molecule; returns its labels, and (number, corrupted body) of each."""
    molecule = MOLECULES.index(TASKS[task].molecule)
    owners = [number for number, sample in enumerate(samples) if sample.molecule == molecule]
    if not owners:
        return _none(), []
    bodies = [samples[number].tokens for number in owners]
    bounds, whole = bounds_of([len(body) for body in bodies]), np.concatenate(bodies)
    keys = sample_keys(run.seed, epoch, np.array([samples[number].index for number in owners]))
    letters = random_letters(TASKS[task].molecule, run.random_tokens)
    corrupted, chosen = corrupt(whole, bounds, keys, run.mask_probability, letters)
    found = _labelled(owners, bounds, np.flatnonzero(chosen), whole)
    return found, [
        (number, corrupted[start:end]) for number, (start, end) in zip(owners, pairwise(bounds.tolist()), strict=True)
    ]


def supervised(samples: Sequence[Sample], task: str, classes: int, keyword_negatives: bool) -> Labelled:
    """The labels of a supervised task with a vocabulary of `classes`."""
    owners = [number for number, sample in enumerate(samples) if len(sample.labels.get(task, ()))]
    if not owners:
        return _none()
    values = [samples[number].labels[task] for number in owners]
    if TASKS[task].level == "span":
        bounds = bounds_of([len(samples[number].tokens) for number in owners])
        painted = paint(values, bounds)
        return _labelled(owners, bounds, np.flatnonzero(painted != IGNORED), painted)
    if TASKS[task].multi_label:
        targets = np.stack([keyword_targets(keywords, classes, keyword_negatives) for keywords in values])
    else:
        targets = np.array([of_sequence[-1, 0] for of_sequence in values])
    numbers = np.array(owners, np.int64)
    return Labelled(numbers, np.ones_like(numbers), np.zeros_like(numbers), targets)


def paint(spans: Sequence[NDArray[np.int32]], bounds: NDArray[np.int64]) -> NDArray[np.int32]:
    """Class of each body position of neighbours, int32 (bounds[-1],), -100 where unlabelled.

    `spans` are (start, end, class) of each, ends included; later ones overwrite earlier ones, and what lies behind the
    end of its sequence is left out.
    """
    classes = np.full(bounds[-1], IGNORED, np.int32)
    edges = bounds.tolist()
    for rows, first, last in zip(spans, edges, edges[1:], strict=False):
        for start, end, label in rows.tolist():
            classes[first + start : min(first + end + 1, last)] = label
    return classes


def keyword_targets(keywords: NDArray[np.int32], size: int, negatives: bool) -> NDArray[np.int8]:
    """Multi-label target int8 (size,): 1 present; absent is 0, or -100 (ignored, as in the original)."""
    targets = np.full(size, 0 if negatives else IGNORED, np.int8)
    targets[keywords[:, 0]] = 1
    return targets


def _labelled(
    owners: Sequence[int], bounds: NDArray[np.int64], where: NDArray[np.int64], targets: NDArray[Any]
) -> Labelled:
    """The labels at `where`, ascending, in the bodies of `owners` put end to end."""
    counts = np.diff(np.searchsorted(where, bounds))
    places = where - np.repeat(bounds[:-1] - 1, counts)  # [CLS] comes before the body
    some = counts > 0
    return Labelled(np.array(owners, np.int64)[some], counts[some], places, targets[where])


def _none() -> Labelled:
    nothing = np.empty(0, np.int64)
    return Labelled(nothing, nothing, nothing, nothing)
