"""Mistakes in settings: told at once, each where it stands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from lucavirus.config_load import chosen_run, chosen_source, load_settings
from lucavirus.errors import UserError
from lucavirus.tasks import SUPERVISED
from tests.changed_settings import MADE, merged, mistakes, one_source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"hiden_size": 3}}, "model.hiden_size: is not a setting; did you mean hidden_size?"),
        ({"trainning": {}}, "trainning: is not a setting; did you mean training?"),
        ({"runs": {"full": {"seeds": 1}}}, "runs.full.seeds: is not a setting; did you mean seed?"),
        ({"model": {"num_attention_heads": 5}}, "model: num_attention_heads (5) must divide hidden_size (64)"),
        ({"runs": {"full": {"tasks": ["gene_tpye"]}}}, "(given: 'gene_tpye'); did you mean gene_type?"),
        ({"runs": {"full": {"tasks": "gene_type"}}}, "runs.full.tasks: must be a list, as [a, b] (given: 'gene_type')"),
        ({"runs": {"full": {"molecules": ["gene"]}}}, "need a molecule that is not in `molecules`"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate: input should be greater than 0 (given: -1)"),
        ({"training": {"final_learning_rate": None}}, "`max_steps: auto` needs final_learning_rate"),
        (
            {"training": {"max_tokens_per_pack": "abc"}},
            "has 1 mistake:\n  training.max_tokens_per_pack: must be auto, or a whole number from 1 to 2147483647 "
            "(given: 'abc')",
        ),
        ({"training": {"max_tokens_per_pack": 0}}, "from 1 to 2147483647 (given: 0)"),
        ({"training": {"max_tokens_per_pack": 2**31}}, "from 1 to 2147483647 (given: 2147483648)"),
        ({"model": {"max_length": 200}}, "source genomes has windows of 256, but run full reads at most 198"),
        ({"vocabularies": {"gene_type": "no.txt"}}, "vocabularies.gene_type: no such file: no.txt"),
        ({"training": {"model_dirpath": "nowhere"}}, "no such file: nowhere"),
        ({"max_epochs": 5}, "max_epochs: is not a setting here; it belongs under `training`"),
        ({"runs": {"full": {"hidden_size": 8}}}, "full.hidden_size: is not a setting here; it belongs under `model`"),
        ({"split": {"model": {}}}, "has 1 mistake:\n  split.model: is not a setting here; `model` stands by itself"),
        (
            {"training": {"model": {}}},
            "has 1 mistake:\n  training.model: is not a setting here; `model` stands by itself",
        ),
        (one_source(files=["config/*.yaml", "config/config.yaml"]), "files: names a file twice: config/config.yaml"),
        (one_source(annotations=[MADE[1], f"./{MADE[1]}"]), f"annotations: names a file twice: {MADE[1]}"),
        (
            one_source(files=["tests"]),
            "has 1 mistake:\n  sources.0.files: is a folder: tests (name its files: tests/*)",
        ),
        (one_source(files=[""]), "has 1 mistake:\n  sources.0.files: no such file:  ("),
        *(
            ({"runs": {"full": {"model_dirpath": own}}}, f"run full begins with weights in its own {folder}/demo/")
            for own, folder in (("results/demo/runs/full/model", "results"), ("work/demo/full/best/step-4", "work"))
        ),
        ({"run": "ful"}, "run names ful, which is not in runs"),
        ({"run": "full", "model_dirpath": "config"}, "model_dirpath needs trained_checkpoint"),
        ({"project": "a/b"}, "project: must begin with a letter and have letters, digits and _ only (given: 'a/b')"),
        ({"sources": []}, "has 1 mistake:\n  sources: must have at least one item"),
        ({"model": 3}, "model: must be a group of settings"),
        # An overlay's `training:` with nothing below it replaces the whole group.
        ({"training": None}, "training: is empty: put settings below it, or remove the line"),
        ({"model": None}, "model: is empty: put settings below it, or remove the line"),
        ({"model": {"num_attention_heads": 64}}, "hidden_size / num_attention_heads must be even"),
        ({"runs": {"full": {"model": {"hiden_size": 3}}}}, "full.model.hiden_size: is not a setting; did you mean hid"),
        ({"training": {"warmup_steps": 400, "max_steps": 100, "final_learning_rate": None}}, "is 100 updates of warm-"),
        ({"training": {"final_learning_rate": 0.002}}, "(0.002) must be below learning_rate (0.002)"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate: input should be a finite number"),
        ({"training": {"gpus": 2, "nodes": 4}}, "nodes (4) must divide gpus (2)"),
        ({"training": {"max_tokens_per_pack": 257}}, "max_tokens_per_pack must be at least the model's max_length"),
        ({"training": {"molecules": ["gene", "prot", "gene"]}}, "molecules names one of them twice: gene, prot, gene"),
        ({"runs": {"full": {"tasks": ["gene_mask"]}}}, "molecules has prot, but no task of the run learns from it"),
        ({"model": {"max_length": 257}}, "source genomes has windows of 256, but run full reads at most 255"),
        ({"vocabularies": {"gene_mask": MADE[0]}}, "vocabularies has gene_mask, which has no labels"),
        ({"trained_checkpoint": 5}, "say how to continue `run`, which is not given"),
        ({"model_dirpath": "config"}, "say how to continue `run`, which is not given"),
        (
            {"restart": "full", "run": "full", "trained_checkpoint": 5},
            "restart begins full anew: there is no step 5 to go back to",
        ),
        ({"restart": "fool"}, "restart names fool, which is not in runs"),
        ({"split": {"dev": 0.5, "test": 0.5}}, "split: dev + test leave nothing to train on"),
        ({"split": {"dev": 10, "test": 10.5}}, "split: 10.5 is neither a fraction below 1 nor a number of sequences"),
        ({"split": {"dev": 0.1, "test": 100}}, "dev and test must both be fractions or both be numbers of sequences"),
        ({"sources": 2 * one_source()["sources"]}, "two sources are named a"),
        ({"sources": [3]}, "has 1 mistake:\n  sources.0: must be a group of settings"),
        (one_source(name=5), "has 1 mistake:\n  sources.0.name: input should be a valid string"),
        (one_source(window_size=64, window_overlap=64), "sources.0: window_overlap must be smaller than window_size"),
        (one_source(window_overlap=8), "has 1 mistake:\n  sources.0: window_overlap goes only with window_size"),
        (
            {"report_runs": ["full", "full"]},
            "has 1 mistake:\n  configuration: report_runs names one of them twice: full",
        ),
        (
            {"runs": {"full": {"tasks": ["gene_mask", "prot_mask"], "task_weights": {"gene_mask": 0, "prot_mask": 0}}}},
            "has 1 mistake:\n  runs.full: task_weights are 0 for all tasks of the run",
        ),
        (one_source(kind=None), "a FASTA source needs `kind: gene` or `kind: prot`"),
        (one_source(files=["a.csv", "a.fasta"]), "sources.0: one source cannot have both FASTA and CSV files"),
        (one_source(files=["a.csv.gz"]), "a CSV says the kind of each row itself; remove `kind`"),
        (one_source(files=["*.csv*"], kind=None, annotations=MADE[1:2]), "the labels of a CSV are in the CSV"),
        # What is no group is none, though it is empty; a switch is no number, though pydantic takes it for 1.
        ({"training": []}, "has 1 mistake:\n  training: must be a group of settings"),
        ({"model": False}, "has 1 mistake:\n  model: must be a group of settings"),
        ({"training": {"stop_after": False}}, "has 1 mistake:\n  training.stop_after: must be a group of set"),
        ({"training": {"keep_every": True}}, "has 1 mistake:\n  training.keep_every: must be a number (given: True)"),
        ({"training": {"max_tokens_per_pack": True}}, "training.max_tokens_per_pack: must be a number (given: True)"),
        ({"split": {"dev": True, "test": 100}}, "has 1 mistake:\n  split.dev: must be a number (given: True)"),
        ({"split": {"dev": 10.5, "test": 10}}, "split: 10.5 is neither a fraction below 1 nor a number of sequences"),
        ({"runs": {"full": {"model_dirpath": "config/{x}"}}}, "no such file: config/{x}"),
        ({"training": {"compile": "yes"}}, "training.compile: input should be 'auto', 'on' or 'off' (given: 'yes')"),
    ],
)
def test_a_mistake_is_told(shipped: dict[str, Any], change: dict[str, Any], message: str) -> None:
    assert message in mistakes(merged(shipped, change))


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"max_tokens_per_pack": 258}}, {"split": {"dev": 0, "test": 100}},
        {"split": {"dev": 100, "test": 0}}, {"training": {"model_dirpath": MADE[0]}},
        {"split": {"dev": 600, "test": 600}}, one_source(window_size=64, window_overlap=63),
        {"runs": {"full": {"task_weights": dict.fromkeys(SUPERVISED, 0) | {"gene_mask": 0}}}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_just_within_the_limits_is_right(shipped: dict[str, Any], change: dict[str, Any]) -> None:
    assert load_settings(merged(shipped, change), made=MADE)


@pytest.mark.parametrize(
    ("no", "none", "yes"), [("false", "null", "true"), ("False", "None", "True"), ("no", "~", "on")]
)
def test_words_of_yaml_on_the_command_line_are_read(shipped: dict[str, Any], no: str, none: str, yes: str) -> None:
    typed = {"runs": {"single": no}, "training": {"keep_every": none, "compile": yes}}
    settings = load_settings(merged(shipped, typed), made=MADE, typed=typed)
    assert "single" not in settings.runs
    assert (settings.runs["full"].keep_every, settings.runs["full"].compile) == (None, "on")
    typed["runs"]["mine"] = {"model_dirpath": "results/demo/runs/single/model"}
    with pytest.raises(UserError, match="no such file: results/demo/runs/single/model"):
        load_settings(merged(shipped, typed), made=MADE, typed=typed)


def test_a_file_whose_name_is_no_text_is_told(shipped: dict[str, Any], tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/la\xe4tin.fasta", "w"):
        pass
    found = mistakes(merged(shipped, one_source(files=[f"{tmp_path}/la*tin.fasta"])))
    assert "has 1 mistake:\n  sources.0.files: the name is not UTF-8: '" in found


def test_a_runs_own_model_is_refused_by_any_path(
    shipped: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results on another disk; what the run has set aside stays as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk/demo/runs/full/model").mkdir(parents=True)
    (tmp_path / "work/demo/full/set-aside/001/best/step-4").mkdir(parents=True)
    (tmp_path / "results").symlink_to("disk")
    for folder in ("disk/demo/runs/full/model", "results/demo/runs/full/model"):
        raw = merged(shipped, {"runs": {"full": {"model_dirpath": f"{tmp_path}/{folder}"}}})
        assert "run full begins with weights in its own results/demo" in mistakes(raw)
    raw = merged(shipped, {"runs": {"full": {"model_dirpath": "work/demo/full/set-aside/001/best/step-4"}}})
    assert load_settings(raw, made=MADE).runs["full"].model_dirpath is not None


@pytest.mark.parametrize("form", ["dangling.fa", "d*.fa"])
def test_a_link_to_nothing_is_no_file(shipped: dict[str, Any], tmp_path: Path, form: str) -> None:
    (tmp_path / "dangling.fa").symlink_to("nothing")
    told = mistakes(merged(shipped, one_source(files=[str(tmp_path / form)])))
    assert f"sources.0.files: no such file: {tmp_path}/dangling.fa" in told


def test_a_file_of_two_sources_has_one_name(shipped: dict[str, Any], tmp_path: Path) -> None:
    """Its labels are looked up by it."""
    (tmp_path / "labels.tsv").touch()
    changed = merged(shipped, {})
    for source, path in zip(changed["sources"], (tmp_path, tmp_path / ".." / tmp_path.name), strict=True):
        source["annotations"] = [f"{path}/labels.tsv"]
    found = load_settings(changed, files=["config/config.yaml"], made=MADE)
    assert [source.annotations for source in found.sources] == [(f"{tmp_path}/labels.tsv",)] * 2


def test_a_run_that_is_false_is_none(shipped: dict[str, Any]) -> None:
    assert list(load_settings(merged(shipped, {"runs": {"single": False, "mine": None}}), made=MADE).runs) == [
        "full", "mask_only", "gene_only", "prot_only", "mine",
    ]  # fmt: skip
    none = {"runs": dict.fromkeys(shipped["runs"], False), "report_runs": []}
    assert mistakes(merged(shipped, none)).splitlines()[1:] == ["  runs: must have at least one item"]


def test_each_of_several_contradictions_has_a_line(shipped: dict[str, Any]) -> None:
    (first, second, third, fourth) = mistakes(merged(shipped, {"model": {"max_length": 20}})).splitlines()[1:]
    for line, run in zip((first, second, third, fourth), ("full", "mask_only", "gene_only", "single"), strict=True):
        told = f"source genomes has windows of 256, but run {run} reads at most 18 (model.max_length - 2)"
        hint = f"change one of them, or leave the run out (`runs: {{{run}: false}}`, and not in report_runs)"
        assert line == f"  configuration: {told}: {hint}"


@pytest.mark.parametrize("form", ["{}/", "./{}", "{here}/{}", "{link}/{}", "results//demo/runs/full/model"])
def test_what_a_rule_makes_is_known_however_it_is_written(shipped: dict[str, Any], form: str, tmp_path: Path) -> None:
    model, link = "results/demo/runs/full/model", tmp_path / "clone"
    link.symlink_to(os.getcwd())
    given = form.format(model, here=os.getcwd(), link=link)
    raw = merged(shipped, {"runs": {"mine": {"model_dirpath": given}}})
    assert load_settings(raw, made=[*MADE, model]).runs["mine"].model_dirpath == model


def test_a_run_may_be_shorter_than_windows_that_it_does_not_read(shipped: dict[str, Any]) -> None:
    runs = {"prot_only": {"model": {"max_length": 200}}}
    assert load_settings(merged(shipped, {"runs": runs}), made=MADE).runs["prot_only"].model.max_length == 200


def test_a_run_may_change_nothing(shipped: dict[str, Any]) -> None:
    raw = merged(shipped, {"runs": {"mine": None, "other": {"model": None, "stop_after": None}}})
    settings = load_settings(raw, made=MADE)
    assert settings.runs["mine"] == settings.runs["other"] == settings.runs["full"] == chosen_run(settings, "mine")
    with pytest.raises(UserError, match="there is no run yours"):
        chosen_run(settings, "yours")
    with pytest.raises(UserError, match="there is no source yours"):
        chosen_source(settings, "yours")


def test_what_goes_together_is_looked_at_beside_wrong_settings(shipped: dict[str, Any]) -> None:
    raw = merged(
        shipped,
        yaml.safe_load("""
model: {hiden_size: 3, num_attention_heads: 5}
training: {learning_rate: -1, tasks: [gene_mask, gene_mask, prot_mask], warmup_steps: 4000, max_steps: 100}
report_runs: [fool]
run: nobody
vocabularies: [a]
"""),
    )
    raw["sources"][0] |= {"window_size": 512, "window_overlap": 600}
    found = mistakes(raw)
    for text in (
        "model.hiden_size: is not a setting; did you mean hidden_size?",
        "num_attention_heads (5) must divide hidden_size (64)",
        "training.learning_rate: input should be greater than 0",
        "tasks names one of them twice",
        "window_overlap must be smaller than window_size",
    ):
        assert text in found, found
    assert "Traceback" not in found


@pytest.mark.parametrize(
    "wrong",
    [
        {"training": {"learning_rate": -1}}, {"training": {"final_learning_rate": "x"}},
        {"training": {"gpus": "x", "nodes": 3}}, {"model": {"hidden_size": None, "num_attention_heads": 6}},
        {"model": {"max_length": 2}, "training": {"max_tokens_per_pack": 300}},
        {"sources": [{"name": "a", "files": MADE[:1], "kind": "genes"}]},
        one_source(window_size=0, window_overlap=4),
    ],
    ids=str,
)  # fmt: skip
def test_nothing_is_said_of_the_default_that_stands_in_for_a_wrong_setting(
    shipped: dict[str, Any], wrong: dict[str, Any]
) -> None:
    assert "has 1 mistake:" in mistakes(merged(shipped, wrong))


def test_a_wrong_setting_of_one_run_hides_nothing_in_another(shipped: dict[str, Any]) -> None:
    found = mistakes(merged(shipped, {"runs": {"full": {"gpus": "x"}, "single": {"gpus": 2, "nodes": 3, "seed": -1}}}))
    assert "has 3 mistakes:" in found and "runs.single: nodes (3) must divide gpus (2)" in found


def test_what_goes_together_is_looked_at_beside_an_empty_setting(shipped: dict[str, Any]) -> None:
    found = mistakes(merged(shipped, {"training": {"seed": None}, "report_runs": ["fool"]}))
    assert "has 2 mistakes:" in found and "report_runs names fool, which is not in runs" in found


@pytest.mark.parametrize(
    "wrong",
    [
        {"sources": 5}, {"sources": [3]}, {"sources": [{"name": "a", "kind": "gene", "files": 5}]},
        {"sources": [{"name": "a", "kind": "gene", "files": [None]}]}, {"vocabularies": ["a"]},
        {"vocabularies": {"gene_type": 5}}, {"runs": {"full": {"model": 5}}}, {"runs": {"full": {"model_dirpath": 5}}},
        {"runs": {"full": 3}}, {"runs": {"a b": {}}}, {"training": 3}, {"model": "big"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_type_is_a_mistake_like_any_other(shipped: dict[str, Any], wrong: dict[str, Any]) -> None:
    found = mistakes({**shipped, **wrong} if "runs" not in wrong else merged(shipped, wrong))
    assert next(iter(wrong)) in found
