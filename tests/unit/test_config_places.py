"""Where a mistake in the settings is told: file and line, shared group or run, command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lucavirus.config_load import load_settings
from lucavirus.errors import UserError
from tests.changed_settings import MADE, merged, mistakes, one_source


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


def test_json_with_tabs_has_no_lines(shipped: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n\t"training": {\n\t\t"seed": "x"}}')
    found = mistakes(merged(shipped, {"training": {"seed": "x"}}), str(tmp_path / "a.json"))
    assert found.splitlines()[1].startswith("  training.seed: input should be")


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


def test_what_is_wrong_in_one_run_is_told_there_beside_other_mistakes(shipped: dict[str, Any]) -> None:
    """Pydantic is asked once more without the wrong settings, and says what it said before."""
    found = mistakes(merged(shipped, {"runs": {"mine": {"learning_rate": 0.0001}, "other": {"hidden_size": 4}}}))
    assert [line.split(": ")[0] for line in found.splitlines()[1:]] == ["  runs.mine", "  runs.other.hidden_size"]


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
