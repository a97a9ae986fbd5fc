"""A training that is going on, here or on Slurm, or another stage, is refused before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lucavirus.guard import only_owner, only_start
from tests.workflow.conftest import Snakemake


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in of squeue says."""
    squeue, says = tmp_path / "squeue", tmp_path / "says"
    squeue.write_text(f"#!/bin/sh\nexec cat {says}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    return says


def test_a_training_in_the_queue_is_told_and_nothing_starts(snakemake: Snakemake, tree: Path, queue: Path) -> None:
    line = "12|RUNNING|node[1-2]|rule_train_wildcards_full|"
    queue.write_text(f"{line}{tree}\n")
    run = snakemake("train_full")
    assert run.returncode == 1
    assert "run full is trained by Slurm job 12 (RUNNING on node[1-2])" in run.stderr
    assert "scancel" in run.stderr and "Traceback" not in run.stderr
    assert not (tree / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_the_log_of_a_stage_that_is_going_on_stays(
    training: bool, snakemake: Snakemake, tree: Path, queue: Path
) -> None:
    """Snakemake's own lock goes with the first of several that end, and a log is cleared away before its job starts."""
    if training:
        queue.touch()  # an empty one; without, Slurm does not answer
    log = tree / f"results/demo/logs/{'train/full' if training else 'split'}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("going on")
    # Of a training on another node, where no lock reaches; Slurm may not answer who only looks.
    lock = tree / "work/demo/full/lock"
    if not training:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.write_text(name := '{"job": "7"}')
    with only_owner(tree / "work/demo/full") if training else only_start(log, patience=0):
        run = snakemake("train_full", "--quiet")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    what = "training of this run" if training else "start of this stage"
    assert f"another {what} is going on: process {os.getpid()} on " in run.stderr
    assert ("Slurm does not say which trainings it has" in run.stderr) is not training
    assert training or lock.read_text() == name
    assert log.read_text() == "going on" and not (tree / "results/demo/input").exists()


def test_the_command_is_for_the_clone(snakemake: Snakemake, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "config").symlink_to(tree / "config")
    told = f"type the command in {tree}, or add `--directory {tree}`"
    assert told in snakemake("-n", "split", "--directory", str(tmp_path)).stdout
