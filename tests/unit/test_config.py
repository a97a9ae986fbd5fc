"""The settings: mistakes told at once with file and line, overlays, what is generated from the models."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lucavirus import config_docs
from lucavirus.config import EXTENSIBLE, OPERATIONAL, Run, Settings
from lucavirus.config_load import chosen_run, load_settings, read_settings
from lucavirus.demo import FILES
from lucavirus.errors import UserError
from lucavirus.tasks import SUPERVISED, TASKS

REPAIR = "run: make docs"
MADE = [f"results/demo/input/{name}" for name in FILES]


def merged(base: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """As Snakemake merges configuration files: groups key by key, everything else replaced."""
    for key, value in overlay.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        base[key] = merged(base[key], value) if both else value
    return base


@pytest.fixture
def shipped(root: Path) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load((root / "config/config.yaml").read_text())
    return raw


@pytest.fixture
def full_size(root: Path, shipped: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    raw = merged(shipped, yaml.safe_load((root / "config/openvirus.yaml").read_text()))
    monkeypatch.chdir(tmp_path)
    names = [f"data/openvirus/{split}/part_0.csv.gz" for split in ("train", "dev", "test")]
    for name in [*names, *raw["vocabularies"].values()]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return load_settings(raw)


def mistakes(raw: dict[str, Any], *files: str) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(raw, files=files, made=MADE)
    return str(caught.value)


# -- the configurations that are shipped -----------------------------------------------------------------------------


def test_the_shipped_configuration_is_valid(shipped: dict[str, Any]) -> None:
    settings = load_settings(shipped, made=MADE)
    assert list(settings.runs) == ["full", "mask_only", "gene_only", "prot_only", "single"]
    assert settings.runs["full"].model.head_width("prot_domain") == 32
    assert all(run.gpus == 1 for run in settings.runs.values())


def test_runs_are_at_most_six_lines_each(root: Path) -> None:
    text = (root / "config/config.yaml").read_text().split("\nruns:\n")[1].split("\n\n")[0]
    for run in re.split(r"\n(?=  \w)", text):
        assert len(run.splitlines()) <= 6, run


def test_the_full_size_recipe_has_the_numbers_of_the_original(full_size: Settings) -> None:
    recipe = {
        name: (run.gpus, run.max_steps, run.save_steps, len(run.tasks), run.molecules)
        for name, run in full_size.runs.items()
    }
    assert recipe == {
        "full": (8, 1_000_000, 200_000, 9, ("gene", "prot")),
        "mask_only": (8, 1_000_000, 200_000, 2, ("gene", "prot")),
        "gene_only": (8, 700_000, 200_000, 3, ("gene",)),
        "prot_only": (8, 400_000, 100_000, 6, ("prot",)),
        "single": (1, 8_000_000, 200_000, 9, ("gene", "prot")),
    }
    run = full_size.runs["full"]
    assert (run.model.hidden_size, run.model.num_attention_layers, run.model.num_attention_heads) == (2560, 12, 20)
    assert (run.model.max_length, run.batch_size, run.gradient_accumulation_steps) == (3074, 1, 32)
    assert (run.learning_rate, run.warmup_steps, run.max_epochs, run.seed, run.worker_num) == (2e-4, 32000, 4, 1111, 8)
    assert (run.loss_logging_steps, run.logging_steps, run.final_learning_rate) == (1000, 1000, None)
    assert run.sequences_per_update == 256
    assert {task: run.model.head_width(task) for task in SUPERVISED} == {t: TASKS[t].head_size for t in SUPERVISED}
    assert [source.split for source in full_size.sources] == ["train", "dev", "test"]
    assert all(source.is_csv for source in full_size.sources)


def test_missing_data_of_the_recipe_are_told_one_a_line(
    root: Path, shipped: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = str(root / "config/openvirus.yaml")
    raw = merged(shipped, yaml.safe_load(Path(overlay).read_text()))
    monkeypatch.chdir(tmp_path)
    first, *lines = mistakes(raw, str(root / "config/config.yaml"), overlay).splitlines()
    assert first == "the configuration has 10 mistakes:"
    assert lines[0].startswith(f"  sources.0.files ({overlay}:10): no such file: data/openvirus/train/*.csv* (put it")
    text = Path(overlay).read_text().splitlines()
    for line in lines:
        name, number = re.search(r"yaml:(\d+)\): no such file: (\S+)", line).group(2, 1)  # type: ignore[union-attr]
        assert name in text[int(number) - 1]


def test_the_example_names_only_files_to_fill_in(root: Path, shipped: dict[str, Any]) -> None:
    raw = merged(shipped, yaml.safe_load((root / "config/example_viruses.yaml").read_text()))
    found = mistakes(raw).splitlines()[1:]
    assert len(found) == 5
    assert all("no such file: my_data/" in line for line in found)


def one_source(**own: Any) -> dict[str, Any]:
    return {"sources": [{"name": "a", "files": MADE[:1], "kind": "gene", **own}]}


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"hiden_size": 3}}, "model.hiden_size: is not a setting; did you mean hidden_size?"),
        ({"trainning": {}}, "trainning: is not a setting; did you mean training?"),
        ({"runs": {"full": {"seeds": 1}}}, "runs.full.seeds: is not a setting; did you mean seed?"),
        ({"model": {"num_attention_heads": 5}}, "model: num_attention_heads (5) must divide hidden_size (64)"),
        ({"runs": {"full": {"tasks": ["gene_tpye"]}}}, "runs.full.tasks.0: input should be 'gene_mask'"),
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
        ({"run": "ful"}, "run names ful, which is not in runs"),
        ({"run": "full", "model_dirpath": "config"}, "model_dirpath needs trained_checkpoint"),
        ({"project": "a/b"}, "project: string should match pattern"),
        ({"sources": []}, "sources: tuple should have at least 1 item"),
        ({"model": 3}, "model: must be a group of settings"),
        # An overlay's `training:` with nothing below it replaces the whole group.
        ({"training": None}, "training: is empty: put settings below it, or remove the line"),
        ({"model": None}, "model: is empty: put settings below it, or remove the line"),
        ({"model": {"num_attention_heads": 64}}, "hidden_size / num_attention_heads must be even"),
        ({"runs": {"full": {"model": {"hiden_size": 3}}}}, "full.model.hiden_size: is not a setting; did you mean hid"),
        ({"training": {"warmup_steps": 400, "max_steps": 100, "final_learning_rate": None}}, "is 100 updates of warm-"),
        ({"training": {"final_learning_rate": 0.002}}, "final_learning_rate must be below learning_rate"),
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
        ({"sources": [3]}, "has 1 mistake:\n  sources.0: input should be a valid dictionary"),
        (one_source(name=5), "has 1 mistake:\n  sources.0.name: input should be a valid string"),
        (one_source(window_size=64, window_overlap=64), "sources.0: window_overlap must be smaller than window_size"),
        (one_source(kind=None), "a FASTA source needs `kind: gene` or `kind: prot`"),
        (one_source(files=["a.csv", "a.fasta"]), "sources.0: one source cannot have both FASTA and CSV files"),
        (one_source(files=["a.csv.gz"]), "a CSV says the kind of each row itself; remove `kind`"),
        (one_source(files=["*.csv*"], kind=None, annotations=MADE[1:2]), "the labels of a CSV are in the CSV"),
        ({"training": {"compile": "yes"}}, "training.compile: input should be 'auto', 'on' or 'off' (given: 'yes')"),
    ],
)
def test_a_mistake_is_told(shipped: dict[str, Any], change: dict[str, Any], message: str) -> None:
    assert message in mistakes(merged(shipped, change))


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"max_tokens_per_pack": 258}}, {"split": {"dev": 0, "test": 100}},
        {"split": {"dev": 600, "test": 600}}, one_source(window_size=64, window_overlap=63),
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
    ],
    ids=str,
)  # fmt: skip
def test_nothing_is_said_of_the_default_that_stands_in_for_a_wrong_setting(
    shipped: dict[str, Any], wrong: dict[str, Any]
) -> None:
    assert "has 1 mistake:" in mistakes(merged(shipped, wrong))


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


def test_numbers_in_scientific_notation_are_numbers(shipped: dict[str, Any]) -> None:
    raw = merged(shipped, yaml.safe_load("training: {learning_rate: 1e-3, final_learning_rate: 1e-4}"))
    assert load_settings(raw, made=MADE).runs["full"].learning_rate == 0.001


def test_a_run_changes_single_settings_of_what_all_share(shipped: dict[str, Any]) -> None:
    own = {"seed": 7, "model": {"num_attention_layers": 5}}
    settings = load_settings(merged(shipped, {"runs": {"mine": own}}), made=MADE)
    mine, full = settings.runs["mine"], settings.runs["full"]
    assert (mine.seed, mine.model.num_attention_layers, mine.model.hidden_size) == (7, 5, 64)
    assert mine.model_copy(update={"seed": full.seed, "model": full.model}) == full


def test_a_run_changes_single_settings_of_groups_within_what_all_share(shipped: dict[str, Any]) -> None:
    own = {"model": {"head_size": {"gene_type": 64}}, "task_weights": {"gene_type": 1.0}, "stop_after": {"updates": 5}}
    shared = {"training": {"task_weights": {"prot_site": 0.5}, "stop_after": {"minutes": 3}}, "runs": {"mine": own}}
    runs = load_settings(merged(shipped, shared), made=MADE).runs
    assert runs["mine"].model.head_size == runs["full"].model.head_size | {"gene_type": 64}
    assert set(runs["full"].model.head_size.values()) == {32} and len(runs["full"].model.head_size) == 7
    assert runs["mine"].task_weights == {"prot_site": 0.5, "gene_type": 1.0}
    assert (runs["mine"].stop_after.updates, runs["mine"].stop_after.minutes) == (5, 3)


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_a_switch_may_be_written_as_yaml_reads_it(shipped: dict[str, Any], written: str, meant: str) -> None:
    raw = merged(shipped, yaml.safe_load(f"training: {{compile: {written}}}"))
    assert load_settings(raw, made=MADE).runs["full"].compile == meant


def test_home_folders_and_empty_parts_of_paths(
    shipped: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    for name in ("a.fasta", "b.fasta", "c[1].fasta", "x{run}.fasta", "x<1.fasta", "types.txt"):
        (tmp_path / name).touch()
    source = {"name": "s", "files": ["~/?.fasta", f"{tmp_path}//c[1].fasta"], "kind": "gene"}
    own = {"sources": [source], "model_dirpath": "~/m", "run": "full", "vocabularies": {"gene_type": "~/types.txt"}}
    raw = merged(shipped, own | {"training": {"model_dirpath": "~/m"}, "trained_checkpoint": 1})
    settings = load_settings(raw, made=MADE)
    assert settings.sources[0].files == (f"{tmp_path}/a.fasta", f"{tmp_path}/b.fasta", f"{tmp_path}/c[1].fasta")
    assert settings.vocabularies == {"gene_type": f"{tmp_path}/types.txt"}
    assert settings.model_dirpath == settings.runs["full"].model_dirpath == f"{tmp_path}/m"
    # One file is no pattern, and Snakemake cannot take every name.
    source["files"] = "~/x*.fasta"
    told = mistakes(raw | {"vocabularies": {"gene_type": "~/type?.txt"}})
    assert f"vocabularies.gene_type: no such file: {tmp_path}/type?.txt" in told
    for name in ("x{run}.fasta", "x<1.fasta"):
        assert f"Snakemake takes {{ }} < > in a path for its own: {tmp_path}/{name} (rename it" in told


def test_patterns_give_files_in_sorted_order(shipped: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucavirus.config_load.glob.glob", lambda _: MADE[::-1])
    settings = load_settings(merged(shipped, one_source(files=["*"])), made=MADE)
    assert settings.sources[0].files == tuple(sorted(MADE))


def test_the_stages_read_what_was_written(shipped: dict[str, Any], tmp_path: Path) -> None:
    settings = load_settings(shipped, made=MADE)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    assert read_settings(tmp_path / "settings.json") == settings


def test_settings_cut_short_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"project": "x", ')
    with pytest.raises(UserError, match="cannot be read"):
        read_settings(tmp_path / "settings.json")


def test_what_a_change_reruns_is_told_as_it_is(root: Path) -> None:
    section = (root / "config/README.md").read_text().split("## What a change reruns\n")[1].split("\n## ")[0]
    told = {
        cells[2].strip(): cells[1].split(";")[0]
        for cells in (line.split("|") for line in section.splitlines() if line[:1] == "|")
    }

    def named(outcome: str) -> set[str]:
        names = re.findall(r"`([a-z_*]+)`", next(names for text, names in told.items() if text.startswith(outcome)))
        found = {name: fnmatch.filter(Run.model_fields, name) for name in names}
        assert all(found.values())
        return {field for fields in found.values() for field in fields}

    assert named("nothing") == OPERATIONAL
    assert named("the training goes on") == EXTENSIBLE
    assert set(Run().meaning()) == set(Run.model_fields) - OPERATIONAL - EXTENSIBLE | {"order of samples"}


# -- what is generated from the models -------------------------------------------------------------------------------


def comments(text: str) -> dict[tuple[str, ...], str]:
    """The comment above each setting of a YAML file, `#name:` included, by its place; of a list, the first item."""
    found: dict[tuple[str, ...], str] = {}
    place: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        setting = re.match(r"^(\s*)(- )?#?([a-z_0-9]+):(\s|$)", line)
        if setting:
            indent = len(setting[1]) + len(setting[2] or "")
            place = [(depth, name) for depth, name in place if depth < indent] + [(indent, setting[3])]
            found.setdefault(tuple(name for _, name in place), " ".join(above))
        comment = re.match(r"^\s*# (.*)", line)
        above = [*above, comment[1]] if comment else []
    return found


def test_every_setting_is_in_the_file_with_its_description(root: Path) -> None:
    found = comments((root / "config/config.yaml").read_text())
    for setting in config_docs.settings():
        assert setting.path in found, f"config/config.yaml lacks {setting.name}: add it, with its comment above it"
        assert found[setting.path] == setting.description, (
            f"the comment of {setting.name} in config/config.yaml and its description in lucavirus/config.py differ: "
            "change one to equal the other"
        )


def test_a_description_is_written_for_every_setting() -> None:
    settings = list(config_docs.settings())
    assert all(setting.description for setting in settings)
    assert len({setting.path for setting in settings}) == len(settings) > 50


def test_the_schema_is_up_to_date(root: Path) -> None:
    assert (root / "config/schema.json").read_text() == config_docs.schema(), REPAIR


def test_the_table_is_up_to_date(root: Path) -> None:
    text = (root / "config/README.md").read_text()
    assert text == config_docs.readme(text), REPAIR


def test_make_docs_writes_both(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.yaml", "openvirus.yaml"):
        (tmp_path / name).write_text((root / "config" / name).read_text())
    (tmp_path / "README.md").write_text(f"above\n{config_docs.BEGIN}old\n{config_docs.END}below\n")
    monkeypatch.setattr(config_docs, "FOLDER", tmp_path)
    config_docs.main()
    written = (tmp_path / "README.md").read_text()
    assert written == f"above\n{config_docs.BEGIN}{config_docs.table()}{config_docs.END}below\n"
    assert (tmp_path / "schema.json").read_text() == config_docs.schema()
