"""Metrics of each task beside the best constant answer, from counts and scores of a whole split.

scikit-learn is imported where it is used: trainings need it only for the test set, and it takes 100 MB a process.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Metrics = dict[str, float]


@dataclass(frozen=True)
class Confusion:
    """How often each (true, predicted) pair of classes occurred; three int64 (pairs,) arrays."""

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    count: NDArray[np.int64]

    def majority(self) -> Confusion:
        """The same truth, answered with its most frequent class."""
        classes, inverse = np.unique(self.true, return_inverse=True)
        totals = np.bincount(inverse, weights=self.count).astype(np.int64)
        return Confusion(classes, np.full_like(classes, classes[np.argmax(totals)]), totals)


def masked_token_metrics(confusion: Confusion, mean_entropy: float) -> tuple[Metrics, Metrics]:
    """Accuracy and perplexity of a mask task, and of the constant answer.

    `mean_entropy` is the mean cross-entropy over masked tokens, in nats. The constant answer is the most frequent token
    for the accuracy, and the frequencies of the tokens for the perplexity.
    """
    base = confusion.majority()
    frequencies = base.count / base.count.sum()
    metrics = {"accuracy": _accuracy(confusion), "perplexity": math.exp(min(mean_entropy, 700.0))}
    baseline = {"accuracy": _accuracy(base), "perplexity": math.exp(-float((frequencies * np.log(frequencies)).sum()))}
    return metrics, baseline


def multi_class_metrics(confusion: Confusion) -> tuple[Metrics, Metrics]:
    """Accuracy, macro F1 (over the classes that occur) and Matthews correlation, and those of the majority class."""
    return _classification(confusion), _classification(confusion.majority())


def multi_label_metrics(scores: NDArray[np.float32], truth: NDArray[np.int8]) -> tuple[Metrics, Metrics]:
    """Average precision and F1 (micro, at probability 0.5), and those of the best constant answers.

    `scores` (n, K) are probabilities, `truth` (n, K) 0, 1, or -100 for ignored. For the average precision each class is
    answered with its frequency; for F1 the most frequent classes are, as many as are best.
    """
    known = truth >= 0
    present, asked = np.where(known, truth, 0).sum(0), known.sum(0)
    frequencies = present / np.maximum(asked, 1)
    constant = np.broadcast_to(frequencies, scores.shape)
    order = np.argsort(-frequencies, kind="stable")
    found, answered = np.cumsum(present[order]), np.cumsum(asked[order])
    baseline = {
        "average_precision": _average_precision(constant[known], truth[known]),
        "f1": float((2 * found / np.maximum(answered + present.sum(), 1)).max()),
    }
    metrics = {
        "average_precision": _average_precision(scores[known], truth[known]),
        "f1": _f1(scores[known], truth[known]),
    }
    return metrics, baseline


def _accuracy(confusion: Confusion) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(confusion.true, confusion.predicted, sample_weight=confusion.count))


def _classification(confusion: Confusion) -> Metrics:
    from sklearn.metrics import f1_score, matthews_corrcoef

    true, predicted, count = confusion.true, confusion.predicted, confusion.count
    with warnings.catch_warnings():  # scikit-learn warns where only one class occurs; 0 is what we want there
        warnings.simplefilter("ignore")
        f1 = f1_score(true, predicted, labels=np.unique(true), average="macro", sample_weight=count, zero_division=0)
        mcc = matthews_corrcoef(true, predicted, sample_weight=count)
    return {"accuracy": _accuracy(confusion), "macro_f1": float(f1), "mcc": float(mcc)}


def _average_precision(scores: NDArray[np.floating], truth: NDArray[np.int8]) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, scores)) if truth.any() else 0.0


def _f1(scores: NDArray[np.floating], truth: NDArray[np.int8]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, scores > 0.5, zero_division=0)) if truth.any() else 0.0
