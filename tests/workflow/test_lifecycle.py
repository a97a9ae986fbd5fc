"""The whole workflow on the demo, as a user runs it: from a fresh copy, through Snakemake and torchrun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lucavirus.dataset import FORMAT, VERSION
from lucavirus.shards import map_arrays

pytestmark = pytest.mark.slow
# A model and a training as small as can be; the rest as shipped.
OVERLAY = """
model: {hidden_size: 16, num_attention_layers: 1, num_attention_heads: 2}
training: {max_epochs: 2, save_steps: 20, loss_logging_steps: 8}
runs:
  mine:
    molecules: [gene]
    tasks: [gene_mask, gene_taxonomy]
    learning_rate: 0.001
    stop_after: {updates: 3}
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", *arguments, "--configfile", "tiny.yaml"]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True)


def training_processes(folder: Path) -> list[str]:
    """Processes that train in this tree."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder and b"workflow_scripts/train.py" in (
                process / "cmdline"
            ).read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def done(tree: Path) -> Path:
    """A tree in which the run `full` was trained, evaluated and reported."""
    (tree / "tiny.yaml").write_text(OVERLAY)
    ended = run(tree, "train_full", "evaluate_full", "report_full")
    assert ended.returncode == 0, ended.stderr[-4000:] + ended.stdout[-4000:]
    return tree


def test_what_others_read(done: Path) -> None:
    results = done / "results/demo/runs/full"
    evaluation = json.loads((results / "evaluation.json").read_text())
    assert evaluation["run"] == "full" and set(evaluation["splits"]) == {"dev", "test"}
    keyword = evaluation["splits"]["test"]["prot_keyword"]
    assert set(keyword) == {"loss", "average_precision", "f1", "baseline", "n_sequences", "n_labels"}
    assert set(keyword["baseline"]) == {"average_precision", "f1"}
    events = [json.loads(line) for line in (results / "metrics.jsonl").read_text().splitlines()]
    assert {event["event"] for event in events} == {"train", "dev", "test", "save"}
    fields = {"update", "step", "epoch", "loss", "losses", "lr", "sequences", "tokens", "tokens_per_s", "time"}
    assert all(fields <= set(event) for event in events)
    training = json.loads((results / "training.json").read_text())
    training_sets = [done / "results/demo/datasets" / molecule / "train.h5" for molecule in ("gene", "prot")]
    rows = sum(len(map_arrays(path, FORMAT, VERSION)[0]["row"]) for path in training_sets)
    assert rows > 1000 and training["epochs"] == 2 and training["sequences"] == 2 * rows
    names = {path.name for path in (results / "model/labels").iterdir()}
    assert len(names) == 7 and (results / "model/last/model.safetensors").exists()
    assert list((results / "tensorboard").glob("events.*")) and (results / "report/summary.md").exists()


def test_a_second_run_has_nothing_to_do(done: Path) -> None:
    ended = run(done, "train_full", "evaluate_full", "report_full")
    assert ended.returncode == 0 and "Nothing to be done" in ended.stderr


def test_touched_files_retrain_nothing(done: Path) -> None:
    for name in ("lucavirus/plots.py", "Snakefile", "config/config.yaml", "workflow_scripts/train.py"):
        (done / name).touch()
    (done / "results/demo/input/genomes.fasta").touch()
    assert "Nothing to be done" in run(done, "-n", "train_full").stdout


def test_a_changed_run_is_refused_before_anything_is_deleted(done: Path) -> None:
    change = ["--config", 'training={"learning_rate": 0.5}']
    for words in (["-n"], []):
        ended = run(done, *words, "train_full", *change)
        said = ended.stdout + ended.stderr
        assert ended.returncode != 0 and "learning_rate: 0.002 -> 0.5" in said and "restart=full" in said, said
    assert (done / "results/demo/runs/full/model/model.safetensors").exists()
    planned = run(done, "-n", "train_full", *change, "restart=full")
    assert planned.returncode == 0 and "rule train:" in planned.stdout


def test_deleted_results_come_back_without_training(done: Path) -> None:
    results, work = done / "results/demo/runs/full", done / "work/demo/full"
    weights, history = (results / "model/model.safetensors").read_bytes(), (work / "metrics.jsonl").read_bytes()
    shutil.rmtree(results / "model")
    ended = run(done, "train_full")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (results / "model/model.safetensors").read_bytes() == weights
    assert (work / "metrics.jsonl").read_bytes() == history


def test_the_report_is_one_page_with_captions(done: Path) -> None:
    ended = run(done, "report_full", "--report", "report.html")
    assert ended.returncode == 0, ended.stderr[-3000:]
    page = (done / "report.html").read_text()
    front = "LucaVirus: training on viral genomes and proteins"
    for name in ("curves.svg", "tasks.svg", "lengths.svg", "settings.json", front):
        assert name in page


def test_resume_goes_back_to_an_older_checkpoint(done: Path) -> None:
    nothing = run(done, "resume", "--config", "run=single")
    assert nothing.returncode != 0 and "nothing to resume. Start it: the same command" in nothing.stderr
    work, results = done / "work/demo/full", done / "results/demo/runs/full"
    *_, older, newest = sorted(int(path.name[5:]) for path in (work / "checkpoints").iterdir())
    weights = (results / "model/model.safetensors").read_bytes()
    words = ["resume", "--config", "run=full", f"trained_checkpoint={older}"]
    ended = run(done, *words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert f"back at step {older}" in (work / "train.log").read_text()
    assert (work / f"set-aside/001/checkpoints/step-{newest}").is_dir()
    assert (results / "model/model.safetensors").read_bytes() == weights
    assert "Nothing to be done" in (again := run(done, *words)).stdout + again.stderr


def test_a_run_of_ones_own_in_a_few_lines(done: Path) -> None:
    ended = run(done, "train_mine", "evaluate_mine")
    assert ended.returncode == 0, ended.stderr[-3000:]
    training = json.loads((done / "results/demo/runs/mine/training.json").read_text())
    assert (training["updates"], training["reason"]) == (3, "stop_after")
    evaluation = json.loads((done / "results/demo/runs/mine/evaluation.json").read_text())
    assert set(evaluation["splits"]["dev"]) == {"gene_mask", "gene_taxonomy"}


def test_bad_input_is_one_message(done: Path) -> None:
    (done / "bad.fasta").write_text(">a\nACGTACGTACGTACGTACGTACGT\n>a\nACGT\n")
    (done / "tiny2.yaml").write_text(
        "project: bad\nsources:\n  - {name: s, files: [bad.fasta], kind: gene}\nreport_runs: []\n"
    )
    ended = subprocess.run(command("tokenize", "-q") + ["tiny2.yaml"], cwd=done, capture_output=True, text=True)
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0
    message = "error: bad.fasta:3: the id a was used before, at bad.fasta:1"
    assert message in said and "Traceback" not in said and "ChildFailedError" not in said
    assert (done / "results/bad/logs/tokenize/s.log").read_text().count(message) == 1
    assert said.count(message) == 1
    assert [path for path in (done / "results/bad/shards").rglob("*") if path.is_file()] == []


def test_killed_with_snakemake_it_goes_on(done: Path) -> None:
    work = done / "work/demo/gene_only"
    process = subprocess.Popen(
        command("train_gene_only"),
        cwd=done,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((work / "checkpoints").glob("step-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # The launcher sees that Snakemake is gone; training saves and ends by itself.
    deadline = time.monotonic() + 60
    while training_processes(done):
        assert time.monotonic() < deadline, "the training outlived Snakemake"
        time.sleep(0.1)
    # Neither --unlock nor --rerun-incomplete is needed.
    ended = run(done, "train_gene_only")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "going on from" in (work / "train.log").read_text()
