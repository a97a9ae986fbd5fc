"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lucavirus.metrics import Confusion, masked_token_metrics, multi_class_metrics, multi_label_metrics


def _confusion(*rows: tuple[int, int, int]) -> Confusion:
    true, predicted, count = np.array(rows).T
    return Confusion(true, predicted, count)


def test_multi_class() -> None:
    # Class 0: 3 right, 1 taken for 1. Class 1: 2 right, 2 taken for 0.
    metrics, baseline = multi_class_metrics(_confusion((0, 0, 3), (0, 1, 1), (1, 1, 2), (1, 0, 2)))
    assert metrics["accuracy"] == 5 / 8
    assert metrics["macro_f1"] == pytest.approx((2 * 3 / (2 * 3 + 1 + 2) + 2 * 2 / (2 * 2 + 2 + 1)) / 2)
    assert metrics["mcc"] == pytest.approx((3 * 2 - 2 * 1) / math.sqrt(5 * 4 * 4 * 3))
    assert baseline == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3), "mcc": 0}


def test_macro_f1_is_over_the_classes_that_occur() -> None:
    # Class 7 is never true: answering it costs recall of class 0, but is no class of its own.
    metrics, _ = multi_class_metrics(_confusion((0, 0, 1), (0, 7, 1)))
    assert metrics["macro_f1"] == pytest.approx(2 / 3)


def test_masked_tokens() -> None:
    metrics, baseline = masked_token_metrics(_confusion((5, 5, 6), (6, 5, 2)), mean_entropy=math.log(3))
    assert metrics == {"accuracy": 0.75, "perplexity": pytest.approx(3)}
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert baseline == {"accuracy": 0.75, "perplexity": pytest.approx(math.exp(entropy))}
    assert masked_token_metrics(_confusion((5, 5, 1)), mean_entropy=1e4)[0]["perplexity"] == pytest.approx(
        math.exp(700)
    )


def test_multi_label() -> None:
    truth = np.array([[1, 0], [1, 1], [0, -100]], np.int8)
    scores = np.array([[0.9, 0.6], [0.8, 0.4], [0.1, 1.0]], np.float32)
    metrics, baseline = multi_label_metrics(scores, truth)
    # In order of score: 0.9 yes, 0.8 yes, 0.6 no, 0.4 yes, 0.1 no; the ignored one does not count.
    assert metrics["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert metrics["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # Frequencies 2/3 and 1/2: three answers of the first come first, two of them right; then two of the second.
    assert baseline["average_precision"] == pytest.approx((2 * 2 / 3 + 3 / 5) / 3)
    # The best constant answer is both classes: three of the five that are known are right, and none is missed.
    assert baseline["f1"] == pytest.approx(2 * 3 / (2 * 3 + 2))


def test_constant_answers_follow_the_frequency_among_what_is_known() -> None:
    # Two of ten, and the only one that is known.
    truth = np.array([[1, 1], [1, -100], *[[0, -100]] * 8], np.int8)
    _, baseline = multi_label_metrics(np.zeros((10, 2), np.float32), truth)
    assert baseline["average_precision"] == pytest.approx((1 + 2 * 3 / 11) / 3)
    assert baseline["f1"] == pytest.approx(2 * 1 / (1 + 3))


def test_the_best_constant_answer_leaves_rare_classes_out() -> None:
    truth = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]], np.int8)
    _, baseline = multi_label_metrics(np.zeros((4, 3), np.float32), truth)
    # One class: 4 / (4 + 5); two: 8 / (8 + 5); all three: 10 / (12 + 5).
    assert baseline["f1"] == pytest.approx(8 / 13)
    assert multi_label_metrics(np.zeros((2, 1), np.float32), np.zeros((2, 1), np.int8))[1]["f1"] == 0
