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
            "has 1 mistake:\n  training.max_tokens_per_pack: must be auto, or a whole number greater than 0 (given: 'a",
        ),
        ({"training": {"max_tokens_per_pack": 0}}, "greater than 0 (given: 0)"),
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


def test_all_mistakes_come_at_once_each_with_its_line(shipped: dict[str, Any], tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.yaml", tmp_path / "overlay.yaml"
    base.write_text(yaml.safe_dump(shipped))
    overlay.write_text("training:\n  seed: x\n  batchsize: 3\n  tasks:\n    - gene_mask\n    - prot_musk\n")
    found = mistakes(merged(shipped, yaml.safe_load(overlay.read_text())), str(base), str(overlay))
    assert found.splitlines()[0] == "the configuration has 3 mistakes:"
    assert f"training.seed ({overlay}:2): " in found and f"training.tasks.1 ({overlay}:6): " in found
    assert f"training.batchsize ({overlay}:3): is not a setting; did you mean batch_size?" in found


def test_what_a_replaced_list_lacks_is_told_in_the_file_that_replaces_it(
    shipped: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("project: demo\nsources:\n  - name: a\n    kind: gene\n")
    raw = merged(shipped, yaml.safe_load(overlay.read_text()))
    found = mistakes(raw, str(root / "config/config.yaml"), str(overlay))
    assert found.splitlines()[1:] == [f"  sources.0.files ({overlay}:3): is missing"]


def test_a_group_is_at_the_line_of_its_name_in_the_file_that_has_most_of_it(
    shipped: dict[str, Any], tmp_path: Path
) -> None:
    base, overlay = tmp_path / "base.yaml", tmp_path / "overlay.yaml"
    base.write_text("\ntraining:\n  seed: x\nmodel:\n  num_attention_heads: 5\n")
    overlay.write_text("training:\n  max_epochs: 3\n")
    raw = merged(shipped, yaml.safe_load(base.read_text()))
    found = mistakes(raw, str(base), str(overlay))
    assert f"  training.seed ({base}:3): " in found and f"  model ({base}:4): num_attention_heads" in found


def test_what_the_command_line_gives_is_not_told_with_the_line_that_it_replaces(
    shipped: dict[str, Any], tmp_path: Path
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("training:\n  seed: 1\n  max_epochs: x\n")
    typed = {"training": {"seed": "y"}}
    with pytest.raises(UserError) as caught:
        load_settings(merged(merged(shipped, yaml.safe_load(base.read_text())), typed), [str(base)], MADE, typed)
    assert "  training.seed (--config): " in str(caught.value)
    assert f"  training.max_epochs ({base}:3): " in str(caught.value)


@pytest.mark.parametrize(("typed", "place"), [({"seed": 5}, "base.yaml:1"), ({"nodes": 2}, "--config")])
def test_what_does_not_go_together_is_told_of_the_command_line_where_that_has_a_part_in_it(
    shipped: dict[str, Any], tmp_path: Path, typed: dict[str, Any], place: str
) -> None:
    (tmp_path / "base.yaml").write_text("training:\n  gpus: 3\n")
    raw = merged(shipped, {"training": {"gpus": 3, "nodes": 2, **typed}})
    with pytest.raises(UserError) as caught:
        load_settings(raw, [str(tmp_path / "base.yaml")], MADE, {"training": typed})
    (told,) = str(caught.value).splitlines()[1:]
    assert f"{place}): nodes (2) must divide gpus (3)" in told


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


def test_json_with_tabs_has_no_lines(shipped: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n\t"training": {\n\t\t"seed": "x"}}')
    found = mistakes(merged(shipped, {"training": {"seed": "x"}}), str(tmp_path / "a.json"))
    assert found.splitlines()[1].startswith("  training.seed: input should be")


def test_a_file_whose_name_is_no_text_is_told(shipped: dict[str, Any], tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/la\xe4tin.fasta", "w"):
        pass
    found = mistakes(merged(shipped, one_source(files=[f"{tmp_path}/la*tin.fasta"])))
    assert "has 1 mistake:\n  sources.0.files: the name is not UTF-8: '" in found


def test_what_stands_three_times_is_told_with_neighbouring_lines(shipped: dict[str, Any], tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("project: a\nproject: b\nproject: c\n")
    told = [line.split("on both ")[1] for line in mistakes(shipped, str(overlay)).splitlines()[1:]]
    assert told == [f"lines 1 and 2 of {overlay}", f"lines 2 and 3 of {overlay}"]


def test_what_is_wrong_in_some_runs_alike_is_told_once(shipped: dict[str, Any]) -> None:
    own = {"max_steps": 1000, "final_learning_rate": None}
    raw = merged(shipped, {"training": {"max_steps": 50}, "runs": {"mine": own, "prot_only": own}})
    (told,) = mistakes(raw).splitlines()[1:]
    assert told.startswith("  training: final_learning_rate goes only with `max_steps: auto`")
    assert told.endswith(" (runs full, mask_only, gene_only, single)")


@pytest.mark.parametrize(
    ("own", "told"), [({"gpus": 3, "nodes": 2}, "nodes (2) must divide gpus (3)"), ("x", "must be a group of settings")]
)
def test_what_runs_have_of_their_own_is_told_in_each(shipped: dict[str, Any], own: object, told: str) -> None:
    lines = mistakes(merged(shipped, {"runs": {"single": own, "mask_only": own}})).splitlines()[1:]
    assert sorted(line.split(told)[0] for line in lines) == ["  runs.mask_only: ", "  runs.single: "]


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


def test_what_is_wrong_in_one_run_is_told_there_beside_other_mistakes(shipped: dict[str, Any]) -> None:
    """Pydantic is asked once more without the wrong settings, and says what it said before."""
    found = mistakes(merged(shipped, {"runs": {"mine": {"learning_rate": 0.0001}, "other": {"hidden_size": 4}}}))
    assert [line.split(": ")[0] for line in found.splitlines()[1:]] == ["  runs.mine", "  runs.other.hidden_size"]


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


def test_what_is_wrong_in_the_only_run_is_told_there(shipped: dict[str, Any]) -> None:
    found = mistakes({**shipped, "report_runs": [], "runs": {"mine": {"max_steps": 1000}}})
    assert found.splitlines()[1].startswith("  runs.mine: final_learning_rate goes only with")


def test_what_is_wrong_in_one_way_in_each_run_by_itself_is_told_in_each(shipped: dict[str, Any]) -> None:
    runs = {name: {"seed": -1} for name in shipped["runs"]}
    _, *lines = mistakes(merged(shipped, {"runs": runs})).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == [f"runs.{name}.seed" for name in runs]


def test_what_no_line_has_is_told_without_a_place(shipped: dict[str, Any], root: Path) -> None:
    found = mistakes(shipped | {"run": "fool"}, str(root / "config/config.yaml"))
    assert found.splitlines()[1].startswith("  configuration: run names fool, which is not in runs")


def test_what_stands_twice_in_a_file_is_a_mistake(shipped: dict[str, Any], root: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("training:\n  seed: 2\nmodel: {hidden_size: 64}\ntraining:\n  max_epochs: 3\n  max_epochs: 4\n"
                       "tokenize: {}\nreport_runs: [full, {a: 1, a: 2}]\n")  # fmt: skip
    raw = merged(shipped, yaml.safe_load(overlay.read_text())) | {"report_runs": []}
    base = str(root / "config/config.yaml")
    first, *lines = mistakes(raw, str(overlay), base).splitlines()
    assert first == "the configuration has 3 mistakes:"
    for place, numbers in (("training", "1 and 4"), ("training.max_epochs", "5 and 6"), ("report_runs.1.a", "8 and 8")):
        line = next(line for line in lines if line.startswith(f"  {place} ("))
        assert line.endswith(f": must stand once, not on both lines {numbers} of {overlay}")


def test_a_mistake_that_all_runs_share_is_one_mistake_at_its_own_place(shipped: dict[str, Any]) -> None:
    raw = merged(shipped, {"model": {"hiden_size": 3, "max_length": "x"}, "training": {"sed": 1}})
    first, *lines = mistakes(raw).splitlines()
    assert first == "the configuration has 3 mistakes:"
    assert sorted(line.split(":")[0].strip() for line in lines) == [
        "model.hiden_size",
        "model.max_length",
        "training.sed",
    ]


@pytest.mark.parametrize(
    ("shared", "own", "place"),
    [
        ({"training": {"task_weights": {"gene_type": -1}}}, {"task_weights": {"prot_site": 1}}, "training.task_w"),
        ({"training": {"stop_after": {"minutes": -1}}}, {"stop_after": {"updates": 5}}, "training.stop_after.minutes"),
        ({"model": {"head_size": {"prot_site": 0}}}, {"model": {"head_size": {"gene_type": 5}}}, "model.head_size"),
        ({"model": {"hidden_size": "x"}}, {"model": None}, "model.hidden_size"),
        ({"model": {"num_attention_heads": 5}}, {"model": None}, "model: num_attention_heads (5) must divide"),
        ({}, {"stop_after": {"updates": 0}}, "runs.full.stop_after.updates"),
        ({"training": {"model_dirpath": "nowhere"}}, {}, "training.model_dirpath: no such file"),
        ({}, {"model_dirpath": "nowhere"}, "runs.full.model_dirpath: no such file"),
        (
            {"training": {"task_weights": {"gene_tpye": 1}}},
            {},
            "training.task_weights.gene_tpye: input should be 'gene",
        ),
        ({"model": {"head_size": {"gene_tpye": 1}}}, {}, "model.head_size.gene_tpye: input should be 'gene"),
        ({}, {"task_weights": {"gene_tpye": 1}}, "runs.full.task_weights.gene_tpye: input should be 'gene"),
        ({"vocabularies": {"gene_tpye": MADE[0]}}, {}, "vocabularies.gene_tpye: input should be 'gene"),
        ({"split": {"tets": 1}}, {}, "split.tets: is not a setting; did you mean test?"),
        (one_source(annotation=[]), {}, "sources.0.annotation: is not a setting; did you mean annotations?"),
        ({}, {"stop_after": {"minute": 3}}, "runs.full.stop_after.minute: is not a setting; did you mean minutes?"),
        ({}, {"tasks": ["gene_musk"]}, "runs.full.tasks.0"),
    ],
)
def test_a_mistake_within_a_group_is_told_where_it_stands(
    shipped: dict[str, Any], shared: dict[str, Any], own: dict[str, Any], place: str
) -> None:
    _, *lines = mistakes(merged(shipped, {**shared, "runs": {"full": own}})).splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"  {place}")


def test_a_run_may_be_shorter_than_windows_that_it_does_not_read(shipped: dict[str, Any]) -> None:
    runs = {"prot_only": {"model": {"max_length": 200}}}
    assert load_settings(merged(shipped, {"runs": runs}), made=MADE).runs["prot_only"].model.max_length == 200


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"training": {"max_steps": 1000}}, "training"),
        ({"runs": {"full": {"max_steps": 1000}}}, "runs.full"),
    ],
)
def test_settings_that_do_not_go_together_are_one_mistake_where_they_stand(
    shipped: dict[str, Any], change: dict[str, Any], place: str
) -> None:
    assert mistakes(merged(shipped, change)).splitlines() == [
        "the configuration has 1 mistake:",
        f"  {place}: final_learning_rate goes only with `max_steps: auto`: add `final_learning_rate: null` here",
    ]


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
