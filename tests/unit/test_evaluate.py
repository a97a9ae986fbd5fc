"""An evaluation beside plain torch and scikit-learn, one sequence at a time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from lucavirus.compute import make_compute
from lucavirus.evaluate import evaluate_split
from lucavirus.masking import EVALUATION_EPOCH
from lucavirus.metrics import multi_label_metrics
from lucavirus.model import LucaVirus
from lucavirus.packing import make_pack
from lucavirus.packs import Sample
from tests.made_up import ARCHITECTURE, CLASSES, RUN, made_samples
from tests.tiny import ALONE

MODEL = LucaVirus(ARCHITECTURE, seed=5)
WEIGHED = RUN.model_copy(update={"task_weights": {"gene_type": 0.5, "prot_keyword": 3.0}})
COMPUTE = make_compute(WEIGHED, ALONE.device).with_capacity(500)


class Made:
    """Samples in memory, asked as a Dataset is."""

    def __init__(self, made: list[Sample]) -> None:
        self.made = made

    def __len__(self) -> int:
        return len(self.made)

    def lengths(self, samples: Any) -> Any:
        return np.array([len(self.made[n].tokens) + 2 for n in samples])

    def samples(self, samples: Any) -> list[Sample]:
        return [self.made[n] for n in samples]


def _evaluate(made: list[Sample], *, metrics: bool = True) -> dict[str, Any]:
    return evaluate_split(MODEL, Made(made), WEIGHED, CLASSES, COMPUTE, ALONE, metrics=metrics)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made() -> list[Sample]:
    made = made_samples(12)
    made[3], made[4] = replace(made[3], labels={}), replace(made[4], labels={})
    made[7] = replace(made[7], labels=made[7].labels | {"prot_keyword": np.array([[0], [2]], np.int32)})
    return made


@torch.no_grad()
def _by_hand(made: list[Sample]) -> tuple[dict[str, list[Any]], ...]:
    """By task: the sequences' losses, the answers, the truth, and the entropy of each answer."""
    losses, answers, targets, entropies = (defaultdict[str, list[Any]](list) for _ in range(4))
    for sample in made:
        pack = make_pack([sample], WEIGHED, CLASSES, EVALUATION_EPOCH)
        hidden = COMPUTE.hidden(MODEL, pack)
        for task, labels in pack.labels.items():
            logits, truth = MODEL.logits(task, hidden[pack.places(labels)]), labels.targets
            if task == "prot_keyword":
                losses[task].append(float(F.binary_cross_entropy_with_logits(logits, truth.float())))
                answers[task] += logits.sigmoid().tolist()
            else:
                losses[task].append(float(F.cross_entropy(logits, truth)))
                entropies[task] += F.cross_entropy(logits, truth, reduction="none").tolist()
                answers[task] += logits.argmax(1).tolist()
            targets[task] += truth.tolist()
    return losses, answers, targets, entropies


def test_an_evaluation_by_hand(made: list[Sample]) -> None:
    found, (losses, answers, targets, entropies) = _evaluate(made), _by_hand(made)
    assert set(found["tasks"]) == set(WEIGHED.tasks) == set(losses)
    total = sum(WEIGHED.task_weight(task) * sum(of_task) for task, of_task in losses.items())
    assert found["loss"] == pytest.approx(total / 12, rel=1e-5)
    for task, summary in found["tasks"].items():
        assert summary["loss"] == pytest.approx(np.mean(losses[task]), rel=1e-5)
        assert summary["n_sequences"] == len(losses[task])
        if task == "prot_keyword":
            scores, truth = np.array(answers[task], np.float32), np.array(targets[task], np.int8)
            metrics, baseline = multi_label_metrics(scores, truth)
            assert {name: summary[name] for name in metrics} == pytest.approx(metrics)
            assert summary["baseline"] == baseline and summary["n_labels"] == int(truth.sum()) == 6
            continue
        assert summary["n_labels"] == len(targets[task])
        assert summary["accuracy"] == pytest.approx(np.mean(np.equal(answers[task], targets[task])))
        assert summary["baseline"]["accuracy"] == pytest.approx(np.bincount(targets[task]).max() / len(targets[task]))
        if task.endswith("_mask"):
            assert summary["perplexity"] == pytest.approx(np.exp(np.mean(entropies[task])), rel=1e-5)
        else:
            classes = np.unique(targets[task])
            wanted = f1_score(targets[task], answers[task], labels=classes, average="macro", zero_division=0)
            assert summary["macro_f1"] == pytest.approx(wanted)


def test_an_evaluation_without_metrics_has_the_same_losses(made: list[Sample]) -> None:
    plain = _evaluate(made, metrics=False)
    assert plain["loss"] == _evaluate(made)["loss"]
    assert set(plain["tasks"]["gene_mask"]) == {"loss", "n_sequences", "n_labels"}


def test_an_evaluation_of_nothing() -> None:
    assert _evaluate([]) == {"loss": 0.0, "tasks": {}}


@pytest.mark.parametrize(("rank", "bar", "shown"), [(0, "dev", True), (1, "dev", False), (0, None, False)])
def test_the_first_rank_shows_how_far_it_is(
    made: list[Sample], capsys: pytest.CaptureFixture[str], rank: int, bar: str | None, shown: bool
) -> None:
    ranks = replace(ALONE, rank=rank)
    evaluate_split(MODEL, Made(made), WEIGHED, CLASSES, COMPUTE, ranks, metrics=False, bar=bar)  # type: ignore[arg-type]
    assert ("dev: 100%" in capsys.readouterr().err) == shown


def test_a_model_that_answers_with_no_number_has_no_metrics(made: list[Sample]) -> None:
    """As the class that comes first it would be as good as the best constant answer; scikit-learn takes no NaN."""
    broken = LucaVirus(ARCHITECTURE, seed=5)
    for parameter in broken.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    found = evaluate_split(broken, Made(made), WEIGHED, CLASSES, COMPUTE, ALONE, metrics=True)  # type: ignore[arg-type]
    whole = _evaluate(made)
    assert np.isnan(found["loss"])
    for task, score in found["tasks"].items():
        assert score["baseline"] == whole["tasks"][task]["baseline"]
        assert all(np.isnan(score[name]) for name in ("loss", *score["baseline"]))
        assert score["n_labels"] == whole["tasks"][task]["n_labels"]
