"""A published model is scored by the classes that it was trained on, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from lucavirus.config import Settings
from lucavirus.errors import UserError
from lucavirus.evaluate_run import _evaluate, evaluate_run, load_model
from lucavirus.model import LucaVirus
from lucavirus.tasks import SUPERVISED
from tests.made_up import ARCHITECTURE, CLASSES, RUN
from tests.tiny import ALONE


def test_renamed_classes_are_refused_though_their_number_is_the_same(tmp_path: Path) -> None:
    names = {task: [f"{task} {n}" for n in range(CLASSES.get(task, 0))] for task in SUPERVISED}
    labels, vocabularies = tmp_path / "labels", tmp_path / "vocabularies"
    for folder, order in ((labels, 1), (vocabularies, -1)):
        folder.mkdir()
        for task, classes in names.items():
            chosen = classes[::order] if task == "gene_type" else classes
            (folder / f"{task}.txt").write_text("".join(f"{name}\n" for name in chosen))
    with pytest.raises(UserError, match="the label vocabularies of gene_type have changed since the model was trained"):
        _evaluate(LucaVirus(ARCHITECTURE), labels, RUN, tmp_path, "dev", ALONE)


@pytest.mark.parametrize("config", ["[]", "{}", '{"hidden_size": 16}', "no json"])
def test_a_folder_that_is_no_published_model_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="is no published model"):
        load_model(tmp_path)


def test_a_split_without_any_label_has_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = {"dev": {"loss": 0.0, "tasks": {}}, "test": {"loss": 1.5, "tasks": {}}}
    found["test"]["tasks"] = {"prot_site": {"loss": 1.5, "n_sequences": 1, "n_labels": 2, "baseline": {}}}
    monkeypatch.setattr("lucavirus.evaluate_run.load_model", lambda _: LucaVirus(ARCHITECTURE))
    monkeypatch.setattr("lucavirus.evaluate_run._evaluate", lambda _, __, ___, ____, split, _____: found[split])
    monkeypatch.setattr("lucavirus.evaluate_run.chosen_run", lambda *_: RUN)
    evaluate_run(cast(Settings, None), "full", tmp_path, tmp_path, tmp_path / "evaluation.json")
    assert json.loads((tmp_path / "evaluation.json").read_text())["loss"] == {"test": 1.5}
    assert "warning: no sequence of dev has a label of the run's tasks" in capsys.readouterr().err
