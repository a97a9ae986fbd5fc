"""What a change of the settings runs again, asked of finished runs whose files are stand-ins."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow.conftest import Snakemake, jobs

TARGETS = ("evaluate_full", "evaluate_gene_only")
REPORT = "report_full"
TRAINED = {"train": 2, "evaluate": 2}


@pytest.fixture(scope="module")
def finished(snakemake: Snakemake, tree: Path) -> Snakemake:
    """Dry runs on a tree in which the targets are finished: their files exist, and Snakemake has recorded them."""
    plan = snakemake("-n", *TARGETS, REPORT).stdout
    for name in ", ".join(re.findall(r"^    (?:output|benchmark): (.*)", plan, re.MULTILINE)).split(", "):
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.name == "model":
            file.mkdir()
        else:
            file.write_text(f"{name}\n")
    run = snakemake("--touch", "--forceall", *TARGETS, REPORT)
    assert run.returncode == 0, run.stderr
    return snakemake


def reruns(snakemake: Snakemake, settings: dict[str, object], *words: str) -> dict[str, int]:
    config = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    found = jobs(snakemake("-n", *TARGETS, *words, *(["--config", *config] if config else [])))
    return {rule: number for rule, number in found.items() if rule not in TARGETS}


def test_a_second_run_has_nothing_to_do(finished: Snakemake) -> None:
    run = finished("-n", *TARGETS)
    assert "Nothing to be done" in run.stdout + run.stderr
    assert reruns(finished, {}) == {}


def test_the_settings_are_written_for_the_stages(finished: Snakemake, tree: Path) -> None:
    written = json.loads((tree / "results/demo/settings.json").read_text())
    assert written["runs"]["full"]["model"]["hidden_size"] == 64
    assert list((tree / "results/demo").glob(".settings*")) == []


def test_a_start_with_other_settings_leaves_those_of_another_start_as_they_are(
    finished: Snakemake, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ("--config", 'training={"learning_rate": 0.05}')

    def settings_of_training(*words: str) -> str:
        (found,) = re.findall(
            r"train.py --settings (\S+)", finished("train_full", "-n", "-p", *words, "--forcerun", "train").stdout
        )
        return str(found)

    def learning_rate(file: str) -> float:
        return float(json.loads((tree / file).read_text())["runs"]["full"]["learning_rate"])

    mine, theirs = settings_of_training(), settings_of_training(*other)
    for words in ((), other):
        assert finished("results/demo/report/settings.json", *words).returncode == 0
    assert (learning_rate(mine), learning_rate(theirs)) == (0.002, 0.05)
    # A job on a cluster has those that it was submitted with, though the configuration says others by now.
    monkeypatch.setenv("LUCAVIRUS_SETTINGS", mine)
    assert settings_of_training(*other, "--mode", "remote") == mine
    assert settings_of_training(*other) == theirs


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"training": {"learning_rate": 0.003}}, TRAINED),
        ({"training": {"max_epochs": 3}}, TRAINED),
        ({"training": {"stop_after": {"updates": 9}}}, TRAINED),
        ({"model": {"num_attention_layers": 3}}, TRAINED),
        ({"runs": {"full": {"seed": 1}}}, {"train": 1, "evaluate": 1}),
        ({"runs": {"mask_only": {"seed": 1}}}, {}),
        ({"split": {"dev": 0.2}}, {"split": 1, **TRAINED}),
        ({"tokenize": {"unit_mb": 3}}, {"tokenize_source": 2, "split": 1, **TRAINED}),
        ({"gff3_types": {"mRNA": None}}, {"vocabularies": 1, "tokenize_source": 2, "split": 1, **TRAINED}),
    ],
    ids=str,
)
def test_a_setting_reruns_what_depends_on_it(
    finished: Snakemake, settings: dict[str, object], expected: dict[str, int]
) -> None:
    assert reruns(finished, settings) == expected


def test_two_settings_that_swap_their_values_rerun(finished: Snakemake) -> None:
    assert reruns(finished, {"training": {"batch_size": 4, "gradient_accumulation_steps": 8}}) == TRAINED


@pytest.mark.parametrize(
    "settings",
    [
        {"training": {"worker_num": 3}},
        {"training": {"cpu_ranks": 2}},
        {"training": {"device": "cpu"}},
        {"training": {"save_steps": 80, "keep_last": 1, "logging_steps": 4, "loss_logging_steps": 4}},
        {"training": {"max_tokens_per_pack": 4096}},
        {"report_runs": ["full", "single"]},
        {"run": "full"},
    ],
    ids=str,
)
def test_how_a_run_is_carried_out_reruns_nothing(finished: Snakemake, settings: dict[str, object]) -> None:
    assert reruns(finished, settings) == {}


def test_the_number_of_cores_or_gpus_reruns_nothing(finished: Snakemake) -> None:
    assert reruns(finished, {}, "--cores", "1") == {}
    assert jobs(finished("-n", *TARGETS, gpus="0,1")) == {}


def test_one_source_changed_leaves_the_other(finished: Snakemake, tree: Path) -> None:
    overlay = tree / "window.yaml"
    text = (tree / "config/config.yaml").read_text()
    sources = text[text.index("sources:") : text.index("# label files")]
    overlay.write_text(sources.replace("window_size: 256", "window_size: 128"))
    found = finished("-n", *TARGETS, "--configfile", "window.yaml")
    assert jobs(found)["tokenize_source"] == 1
    assert "--source genomes" in found.stdout


def test_a_run_that_begins_with_another_one_is_trained_in_the_same_start(finished: Snakemake) -> None:
    begins = {"mask_only": False, "second": {"model_dirpath": "results/demo/runs/full/model"}}
    found = finished("-n", "train_second", "--config", f"runs={json.dumps(begins)}", 'training={"max_epochs": 3}')
    assert jobs(found)["train"] == 2


@pytest.mark.parametrize(
    ("missing", "targets", "expected"),
    [
        ("runs/full/model", ("evaluate_full", "report_full"), {"train": 1, "evaluate": 1}),
        ("runs/full/evaluation.json", ("report_full",), {"evaluate": 1}),
        ("datasets/summary.tsv", ("train_full", "evaluate_full", "report_full"), {"split": 1, "train": 1}),
        ("shards/genomes/index.json", ("tokenize", "train_full", "report_full"), {"tokenize_source": 1}),
        ("vocabularies/gene_type.txt", ("tokenize", "train_full"), {"vocabularies": 1, "tokenize_source": 2}),
    ],
    ids=str,
)
def test_what_is_missing_is_made_anew(
    finished: Snakemake, tree: Path, missing: str, targets: tuple[str, ...], expected: dict[str, int]
) -> None:
    """A stage that failed has left it so: whatever is asked for then stands for it."""
    path = tree / "results/demo" / missing
    path.rename(tree / "moved")
    try:
        for target in targets:
            assert expected.items() <= jobs(finished("-n", target)).items()
    finally:
        (tree / "moved").rename(path)


def test_changed_sequences_rerun_and_a_touched_file_does_not(finished: Snakemake, tree: Path) -> None:
    labels, backup = tree / "results/demo/input/labels.tsv", tree / "labels"
    shutil.copy2(labels, backup)
    try:
        labels.touch()
        assert reruns(finished, {}) == {}
        labels.write_text("changed\n")
        assert reruns(finished, {}) == {"vocabularies": 1, "tokenize_source": 2, "split": 1, **TRAINED}
    finally:
        shutil.move(backup, labels)


@pytest.fixture
def restored(tree: Path, tmp_path: Path) -> Iterator[None]:
    """What the test does to the finished project is undone."""
    kept = {tree / name: tmp_path / str(number) for number, name in enumerate(("results", ".snakemake/metadata"))}
    for folder, copy in kept.items():
        shutil.copytree(folder, copy)
    yield
    for folder, copy in kept.items():
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("settings", "failing", "target"),
    [
        ({"gff3_types": {"mRNA": None}}, "vocabularies", "results/demo/runs/full/model"),
        ({"tokenize": {"unit_mb": 3}}, "tokenize_source", "results/demo/runs/full/evaluation.json"),
        ({"split": {"dev": 0.2}}, "split", "results/demo/runs/full/training.json"),
        ({"split": {"dev": 0.2}}, "split", "results/demo/report/data.html"),
        ({"training": {"max_epochs": 3}}, "train", "results/demo/runs/full/evaluation.tsv"),
    ],
    ids=str,
)
def test_a_stage_that_fails_after_a_change_is_started_again(
    finished: Snakemake, settings: dict[str, object], failing: str, target: str
) -> None:
    """Snakemake has recorded its params by then, and does not miss what is between the input and a file asked for."""
    words = [target, "--config", *(f"{name}={json.dumps(value)}" for name, value in settings.items())]
    planned = jobs(finished("-n", *words))
    run = finished(*words)
    assert run.returncode == 1 and f"Error in rule {failing}" in run.stdout + run.stderr
    assert planned[failing] and jobs(finished("-n", *words)) == planned


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("target", ["tokenize", "split", "train_full"])
def test_a_stage_that_fails_after_a_file_has_changed_is_started_again(
    finished: Snakemake, tree: Path, target: str
) -> None:
    """Of small files Snakemake has recorded the checksums by then."""
    (tree / "results/demo/input/labels.tsv").write_text("changed\n")
    planned = jobs(finished("-n", target))
    run = finished(target)
    assert run.returncode == 1 and "Error in rule vocabularies" in run.stdout + run.stderr
    assert planned["tokenize_source"] == 2 and jobs(finished("-n", target)) == planned


@pytest.mark.usefixtures("restored")
def test_a_given_vocabulary_that_has_changed_is_not_missed_either(finished: Snakemake, tree: Path) -> None:
    (tree / "sites.txt").write_text("A\n")
    words = ("split", "--config", 'vocabularies={"prot_site": "sites.txt"}')
    assert finished("--touch", "--forceall", *words).returncode == 0 and jobs(finished("-n", *words)) == {}
    (tree / "sites.txt").write_text("A\nB\n")
    planned = jobs(finished("-n", *words))
    assert finished(*words).returncode == 1
    assert planned["tokenize_source"] == 2 and jobs(finished("-n", *words)) == planned


@pytest.mark.usefixtures("restored")
def test_shards_that_could_not_be_made_of_a_changed_file_are_not_missed_by_split(
    finished: Snakemake, tree: Path
) -> None:
    given = tree / "results/demo/input"
    (given / "labels.tsv").write_text("seq_id\ttask\tstart\tend\tlabel\n")
    (given / "genomes.gff3").write_text("##gff-version 3\n")
    assert finished("--touch", "--forceall", "split").returncode == 0 and jobs(finished("-n", "split")) == {}
    (given / "genomes.fasta").write_text("changed\n")
    run = finished("split", "--keep-going")  # the other source, a stand-in, fails as well
    assert (run.stdout + run.stderr).count("Error in rule tokenize_source") == 2
    left = jobs(finished("-n", "split"))
    assert left["tokenize_source"] == 2 and left["split"] == 1
