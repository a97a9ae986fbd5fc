"""The settings that are shipped, overlays and runs of one's own, and what the stages read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lucavirus.config import Settings
from lucavirus.config_load import load_settings, read_settings
from lucavirus.errors import UserError
from lucavirus.tasks import SUPERVISED, TASKS
from tests.changed_settings import MADE, merged, mistakes, one_source


@pytest.fixture
def full_size(root: Path, shipped: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    raw = merged(shipped, yaml.safe_load((root / "config/openvirus.yaml").read_text()))
    monkeypatch.chdir(tmp_path)
    names = [f"data/openvirus/{split}/part_0.csv.gz" for split in ("train", "dev", "test")]
    for name in [*names, *raw["vocabularies"].values()]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return load_settings(raw)


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
    for name in ("a.fasta", "b.fasta", "c[1].fasta", "x{run}.fasta", "x<1.fasta", "x}.fasta", "x>.fasta", "types.txt"):
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
    for name in ("x{run}.fasta", "x<1.fasta", "x}.fasta", "x>.fasta"):
        assert f"Snakemake takes {{ }} < > in a path for its own: {tmp_path}/{name} (rename it" in told
    told = mistakes(raw | {"vocabularies": {"gene_type": "~/x>.fasta"}})
    assert f"vocabularies.gene_type: Snakemake takes {{ }} < > in a path for its own: {tmp_path}/x>.fasta" in told


def test_patterns_give_files_in_sorted_order(shipped: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucavirus.config_files.glob.glob", lambda _: MADE[::-1])
    settings = load_settings(merged(shipped, one_source(files=["*"])), made=MADE)
    assert settings.sources[0].files == tuple(sorted(MADE))


def test_the_stages_read_what_was_written(shipped: dict[str, Any], tmp_path: Path) -> None:
    settings = load_settings(shipped, made=MADE)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    assert read_settings(tmp_path / "settings.json") == settings


def test_settings_cut_short_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"project": "x", ')
    for name in ("settings.json", "absent.json"):
        with pytest.raises(UserError, match="cannot be read"):
            read_settings(tmp_path / name)
