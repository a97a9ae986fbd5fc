"""What follows from how a Slurm job ended, whose job trains what, and one node's torchrun."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lucavirus import restarts, slurm
from lucavirus.errors import TIME_LIMIT, UserError
from lucavirus.node import node_command
from lucavirus.restarts import Ending, Restarts, ending
from lucavirus.slurm import FIRST_PORT, PORTS, Job, meeting_point, parse_trainings


@pytest.mark.parametrize(
    ("status", "message", "told", "expected"),
    [
        (0, "", False, Ending.DONE),
        (1, f"preempted: saved\n{TIME_LIMIT}", False, Ending.TIME_LIMIT),
        (1, f"preempted: saved\n{TIME_LIMIT}", True, Ending.ASKED),  # scancel: srun passes TERM on as USR1
        (1, "preempted: saved", False, Ending.ASKED),
        (1, "error: a mistake", False, Ending.REFUSED),
        (1, "", True, Ending.ASKED),
        (137, "", False, Ending.CRASHED),
    ],
)
def test_endings(status: int, message: str, told: bool, expected: Ending) -> None:
    assert ending(status, message, told=told) is expected


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Numbers of the jobs that were given back."""
    numbers: list[str] = []
    monkeypatch.setattr(slurm, "requeue", numbers.append)
    monkeypatch.setattr(slurm, "being_preempted", lambda number: False)
    monkeypatch.setattr(restarts, "_GIVEN_BACK_SECONDS", 0)
    return numbers


def test_crashes_without_progress_come_to_an_end(tmp_path: Path, requeued: list[str]) -> None:
    job = Restarts(tmp_path / "count", None, "7")
    for _ in range(5):
        job.follow_up(Ending.CRASHED, lambda text: None)
    assert requeued == ["7", "7"]


def test_the_time_limit_never_counts_and_others_end(tmp_path: Path, requeued: list[str]) -> None:
    job = Restarts(tmp_path / "count", None, "7")
    for _ in range(9):
        job.follow_up(Ending.TIME_LIMIT, lambda text: None)
    assert requeued == ["7"] * 9
    for end in (Ending.DONE, Ending.REFUSED, Ending.ASKED):
        job.follow_up(end, lambda text: None)
    Restarts(tmp_path / "count", None, "").follow_up(Ending.CRASHED, lambda text: None)  # not in a job
    assert len(requeued) == 9


def test_trainings_of_a_run_in_a_folder() -> None:
    answer = (
        "3|RUNNING|node[1-2]|rule_train_wildcards_full|/a/b\n"
        "4|PENDING||rule_train_wildcards_full|/a/b\n"
        "5|RUNNING|node3|rule_train_wildcards_full_2|/a/b\n"
        "6|RUNNING|node3|rule_train_wildcards_full|/a/c\n"
        "7|RUNNING|node3|rule_evaluate_wildcards_full|/a/b\n"
    )
    found = parse_trainings(answer, "full", Path("/a/b"))
    assert found == [Job("3", "RUNNING", "node[1-2]"), Job("4", "PENDING", "")]
    assert str(found[0]) == "Slurm job 3 (RUNNING on node[1-2])"


def test_a_port_that_is_taken_is_passed_over() -> None:
    _, port = meeting_point("12345")
    assert FIRST_PORT <= port < FIRST_PORT + PORTS
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("", port))
        assert meeting_point("12345")[1] == port + 1
    assert meeting_point("12345")[1] == port != meeting_point("12346")[1]


def test_a_node_starts_a_process_for_each_gpu_it_got() -> None:
    words = ["--master-addr", "n1", "--master-port", "20007", "--nproc-per-node", "3", "train.py", "--settings", "s"]
    step = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_CPUS_PER_TASK": "24"}
    command, variables = node_command(words, step | {"SLURM_GPUS_ON_NODE": "4"})
    assert command[-3:] == ["train.py", "--settings", "s"]
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=n1", "--master-port=20007", "--nproc-per-node=4"} <= set(
        command
    )
    assert variables["OMP_NUM_THREADS"] == "6"
    assert "--nproc-per-node=3" in node_command(words, step)[0]


def test_without_slurm_nobody_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.trainings("full", Path(os.curdir)) == []
    with pytest.raises(UserError, match="is not installed here"):
        slurm.fields("7")
