"""A published model is scored by the classes that it was trained on, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors.torch import save_file

from lucavirus.config import Settings
from lucavirus.errors import UserError
from lucavirus.evaluate_run import _evaluate, evaluate_run, load_model, table
from lucavirus.model import LucaVirus
from lucavirus.tasks import SUPERVISED
from lucavirus.vocabularies import read_vocabularies
from tests.made_up import ARCHITECTURE, CLASSES, RUN
from tests.tiny import ALONE


def _vocabularies(folder: Path, turned: str = "") -> dict[str, tuple[str, ...]]:
    folder.mkdir(parents=True)
    for task in SUPERVISED:
        names = [f"{task} {n}\n" for n in range(CLASSES.get(task, 0))]
        (folder / f"{task}.txt").write_text("".join(names[:: -1 if task == turned else 1]))
    return read_vocabularies(folder)


def test_renamed_classes_are_refused_though_their_number_is_the_same(tmp_path: Path) -> None:
    labels = _vocabularies(tmp_path / "labels")
    _vocabularies(tmp_path / "vocabularies", turned="gene_type")
    with pytest.raises(UserError, match="the label vocabularies of gene_type have changed since the model was trained"):
        _evaluate(LucaVirus(ARCHITECTURE), labels, RUN, tmp_path, "dev", ALONE)


@pytest.mark.parametrize(("samples", "scored"), [([0], (CLASSES, True, "test")), ([], None)])
def test_labels_are_read_of_the_tasks_that_the_model_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: list[int], scored: Any
) -> None:
    labels, opened = _vocabularies(tmp_path / "labels"), []
    _vocabularies(tmp_path / "vocabularies")
    monkeypatch.setattr("lucavirus.evaluate_run.Dataset", lambda *asked: opened.append(asked) or samples)
    monkeypatch.setattr(
        "lucavirus.evaluate_run.evaluate_split",
        lambda _, __, ___, classes, *____, metrics, bar: (classes, metrics, bar),
    )
    run = RUN.model_copy(update={"tasks": ("gene_mask", "gene_type", "prot_homo")})
    assert _evaluate(LucaVirus(ARCHITECTURE), labels, run, tmp_path, "test", ALONE) == scored
    assert opened == [(tmp_path, RUN.molecules, "test", 400, ["gene_type"])]


def _config(**changes: Any) -> str:
    return json.dumps(ARCHITECTURE.to_json() | changes)


@pytest.mark.parametrize(
    "config",
    [
        "[]", "{}", '{"hidden_size": 16}', "no json",
        _config(hidden_size=None), _config(hidden_size="24"), _config(hidden_size=-8), _config(gene_type_label_num=0),
        _config(num_hidden_layers=0), _config(num_attention_heads=5), _config(max_position_embeddings=True),
        _config(tasks=["gene_mask"], gene_mask_classifier_output_size=8, gene_mask_label_num=39),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_published_model_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="is no published model"):
        load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="is no published model"):
        load_model(tmp_path)


def test_a_model_without_all_of_its_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURE.to_json()))
    weights = {name: tensor.clone() for name, tensor in LucaVirus(ARCHITECTURE).state_dict().items()}
    del weights["last_layer_norm.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="the weights lack last_layer_norm.bias"):
        load_model(tmp_path)


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "labels/gene_type.txt"])
def test_a_broken_published_model_can_be_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr("lucavirus.evaluate_run.chosen_run", lambda *_: RUN)
    folder = tmp_path / "model"
    _vocabularies(folder / "labels")
    (folder / "config.json").write_text(json.dumps(ARCHITECTURE.to_json()))
    save_file({name: tensor.clone() for name, tensor in LucaVirus(ARCHITECTURE).state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    (folder / broken).write_bytes(b"\xff")
    for published in (False, True):
        if published:
            (tmp_path / "training.json").touch()
        with pytest.raises(UserError) as caught:
            evaluate_run(cast(Settings, None), "full", tmp_path, folder, tmp_path / "evaluation.json")
        assert str(folder) in caught.value.where
        assert caught.value.hint.startswith(f"remove {folder} and type the same command again") is published


def test_the_table_has_each_metric_beside_its_baseline() -> None:
    found = {"loss": 1.5, "accuracy": 0.5, "mcc": 0.25, "baseline": {"accuracy": 0.125, "mcc": 0.0}}
    assert table({"dev": {"gene_type": found | {"n_sequences": 3, "n_labels": 7}}}).fillna(-1).to_numpy().tolist() == [
        ["dev", "gene_type", "loss", 1.5, -1, 3, 7],
        ["dev", "gene_type", "accuracy", 0.5, 0.125, 3, 7],
        ["dev", "gene_type", "mcc", 0.25, 0, 3, 7],
    ]


def test_a_split_without_any_label_has_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = {"dev": {"loss": 0.0, "tasks": {}}, "test": {"loss": 1.5, "tasks": {}}}
    found["test"]["tasks"] = {"prot_site": {"loss": 1.5, "n_sequences": 1, "n_labels": 2, "baseline": {}}}
    monkeypatch.setattr("lucavirus.evaluate_run.load_model", lambda _: LucaVirus(ARCHITECTURE))
    monkeypatch.setattr("lucavirus.evaluate_run._evaluate", lambda _, __, ___, ____, split, _____: found[split])
    monkeypatch.setattr("lucavirus.evaluate_run.chosen_run", lambda *_: RUN)
    _vocabularies(tmp_path / "model/labels")
    evaluate_run(cast(Settings, None), "full", tmp_path / "data", tmp_path / "model", tmp_path / "evaluation.json")
    told = {"run": "full", "checkpoint": str(tmp_path / "model"), "loss": {"test": 1.5}}
    told["splits"] = {split: result["tasks"] for split, result in found.items()}
    assert json.loads((tmp_path / "evaluation.json").read_text()) == told
    row = "test\tprot_site\tloss\t1.5\t\t1\t2\n"
    columns = "split\ttask\tmetric\tvalue\tbaseline\tn_sequences\tn_labels\n"
    assert (tmp_path / "evaluation.tsv").read_text() == columns + row
    assert "warning: no sequence of dev has a label of the run's tasks" in capsys.readouterr().err
