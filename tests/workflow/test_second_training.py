"""A training that Slurm has already is refused before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
