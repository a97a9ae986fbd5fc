"""What follows from how a Slurm job ended, whose job trains what, and one node's torchrun."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lucavirus import requeue, slurm
from lucavirus.errors import TIME_LIMIT, UserError
from lucavirus.launch import TORCHRUN
from lucavirus.node import main, node_command
from lucavirus.requeue import Ending, Requeue, TimeLimit, ending
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


def test_the_time_limit_is_known_whatever_form_of_times_the_user_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\n[ $SLURM_TIME_FORMAT = standard ] && echo EndTime=2026-11-26T12:00:00\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    assert slurm.end_time("5") == datetime(2026, 11, 26, 12).timestamp()


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Numbers of the jobs that were given back."""
    numbers: list[str] = []
    monkeypatch.setattr(slurm, "requeue", numbers.append)
    monkeypatch.setattr(slurm, "being_preempted", lambda number: False)
    monkeypatch.setattr(requeue, "_GIVEN_BACK_SECONDS", 0)
    return numbers


def test_crashes_without_progress_come_to_an_end(tmp_path: Path, requeued: list[str]) -> None:
    job = Requeue(tmp_path / "count", None, "7")
    for _ in range(5):
        job.follow_up(Ending.CRASHED, lambda text: None)
    assert requeued == ["7", "7"]
    Requeue(tmp_path / "count", None, "8").follow_up(Ending.CRASHED, lambda text: None)
    assert requeued == ["7", "7", "8"]
    job.follow_up(Ending.DONE, lambda text: None)
    assert not (tmp_path / "count").exists()


def test_who_has_given_a_job_back_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake would take the exit of a job that Slurm has not ended yet for a failure."""
    happened: list[Any] = []
    monkeypatch.setattr(slurm, "requeue", happened.append)
    monkeypatch.setattr(requeue.time, "sleep", happened.append)
    job = Requeue(tmp_path / "count", None, "7")
    job.follow_up(Ending.TIME_LIMIT, lambda text: None)
    assert happened == ["7", 300]

    def refused(number: str) -> None:
        raise UserError("requeueing is disabled", where="scontrol")

    monkeypatch.setattr(slurm, "requeue", refused)
    job.follow_up(Ending.TIME_LIMIT, happened.append)
    assert happened[3:] == ["error: the job could not be given back to the queue: scontrol: requeueing is disabled"]


def test_the_time_limit_never_counts_and_others_end(tmp_path: Path, requeued: list[str]) -> None:
    job = Requeue(tmp_path / "count", None, "7")
    for _ in range(9):
        job.follow_up(Ending.TIME_LIMIT, lambda text: None)
    assert requeued == ["7"] * 9
    for end in (Ending.DONE, Ending.REFUSED, Ending.ASKED):
        job.follow_up(end, lambda text: None)
    Requeue(tmp_path / "count", None, "").follow_up(Ending.CRASHED, lambda text: None)  # not in a job
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


def test_a_comment_with_a_line_break_hides_no_training() -> None:
    answer = "1|RUNNING|node1|first\nsecond|/a/b\n3|RUNNING|node2|rule_train_wildcards_full|/a/b"
    assert parse_trainings(answer, "full", Path("/a/b")) == [Job("3", "RUNNING", "node2")]


def test_a_port_that_is_taken_is_passed_over() -> None:
    _, port = meeting_point("12345")
    assert FIRST_PORT <= port < FIRST_PORT + PORTS
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("", port))
        assert meeting_point("12345")[1] == port + 1
    assert meeting_point("12345")[1] == port != meeting_point("12346")[1]


def test_a_port_is_found_where_the_kernel_has_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int = socket.AF_INET, *arguments: Any, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *arguments, **more)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    _, port = meeting_point("12345")
    with real(socket.AF_INET) as other:
        other.bind(("", port))
        assert meeting_point("12345")[1] == port + 1


def test_a_node_starts_a_process_for_each_gpu_it_got() -> None:
    words = ["--master-addr", "n1", "--master-port", "20007", "--nproc-per-node", "3", "train.py", "--settings", "s"]
    step = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_CPUS_PER_TASK": "24"}
    command, variables = node_command(words, step | {"SLURM_GPUS_ON_NODE": "4"})
    assert command[-3:] == ["train.py", "--settings", "s"]
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=n1", "--master-port=20007", "--nproc-per-node=4"} <= set(
        command
    )
    assert variables["OMP_NUM_THREADS"] == "6"
    for none in ({}, {"SLURM_GPUS_ON_NODE": "0"}):
        assert "--nproc-per-node=3" in node_command(words, step | none)[0]
    few = {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "2"}
    assert node_command(words, step | few)[1]["OMP_NUM_THREADS"] == "1"


def test_a_node_becomes_a_torchrun_that_passes_signals_on(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: became.extend(given))
    monkeypatch.setattr(sys, "argv", ["node", "--master-addr=n1", "--master-port=1", "--nproc-per-node=2", "train.py"])
    for name, value in {"NNODES": "2", "NODEID": "0", "CPUS_PER_TASK": "6", "GPUS_ON_NODE": ""}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    main()
    program, command, variables = became
    assert command[: len(TORCHRUN) + 1] == [program, *TORCHRUN]
    assert (variables["OMP_NUM_THREADS"], variables["SLURM_NNODES"]) == ("3", "2")


def test_srun_starts_our_program_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    host, port = meeting_point("12345")
    meeting = ["--master-addr", host, "--master-port", str(port)]
    command = slurm.across_nodes(["srun", "--wait=60", "torchrun", "--nproc-per-node=2", "train.py"], "python3")
    assert command == [
        *("srun", "--wait=60", "python3", "-m", "lucavirus.node"), *meeting, "--nproc-per-node=2", "train.py"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("says", "preempted", "ends"),
    [
        ("PreemptTime=None EndTime=2026-01-02T03:04:05", False, datetime(2026, 1, 2, 3, 4, 5).timestamp()),
        ("PreemptTime=2026-01-02T03:04:05 EndTime=Unknown", True, float("inf")),
        ("PreemptTime=N/A", False, float("inf")),
        ("", False, float("inf")),
    ],
)
def test_what_scontrol_says_of_a_job(monkeypatch: pytest.MonkeyPatch, says: str, preempted: bool, ends: float) -> None:
    monkeypatch.setattr(slurm, "_ask", lambda *_: f"JobId=7 Comment=a=b c {says} StartTime=2025-01-01T00:00:00\n")
    assert slurm.fields("7")["Comment"] == "a=b"
    assert (slurm.being_preempted("7"), slurm.end_time("7")) == (preempted, ends)


def test_a_preempted_job_is_given_back_though_the_controller_is_away_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([UserError("away"), UserError("away")])
    monkeypatch.setattr(slurm, "PAUSE_SECONDS", 0)

    def ask(*_: str) -> str:
        if error := next(answers, None):
            raise error
        return "PreemptTime=2026-01-02T03:04:05"

    monkeypatch.setattr(slurm, "_ask", ask)
    assert slurm.being_preempted("7")


def test_a_command_that_fails_or_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = program(tmp_path / "bin/scontrol", "echo 'Invalid job id' >&2; exit 1")
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
    with pytest.raises(UserError, match="^scontrol --oneliner show job 7: Invalid job id$"):
        slurm.fields("7")
    program(folder / "scontrol", "exec sleep 20")
    monkeypatch.setattr(slurm, "_QUERY_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"scontrol: no answer within 0\.1 s"):
        slurm.fields("7")


def test_without_slurm_nobody_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.trainings("full", Path(os.curdir)) == []
    with pytest.raises(UserError, match="is not installed here"):
        slurm.fields("7")


def program(file: Path, text: str) -> Path:
    """A stand-in of one of Slurm's commands."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file.parent


def test_a_controller_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "PAUSE_SECONDS", 0.01)
    asked = f"echo x >> {tmp_path}/asked; test $(wc -l < {tmp_path}/asked) -gt 2 || exit 1"
    folder = program(tmp_path / "bin/squeue", f"{asked}; echo '6|PENDING|'; echo '7|RUNNING|node1'")
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
    assert slurm.living("7") == Job("7", "RUNNING", "node1")
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 0.0)
    (tmp_path / "asked").unlink()
    with pytest.raises(UserError, match="squeue"):
        slurm.living("7")


@pytest.mark.parametrize(
    ("real", "status", "says"),
    [
        ("echo '7|RUNNING'", 0, "7|RUNNING\n"),
        ("echo 'Slurm accounting storage is disabled' >&2; exit 1", 0, "squeue of abc\n"),
        ("echo 'the database is away' >&2; exit 3", 3, ""),
        (None, 0, "squeue of abc\n"),
    ],
)
def test_without_accounting_squeue_answers_for_sacct(
    root: Path, tmp_path: Path, real: str | None, status: int, says: str
) -> None:
    ours = root / "profiles/slurm/bin"
    theirs = program(tmp_path / "bin/squeue", 'for name; do true; done; echo "squeue of $name"')
    if real:
        program(theirs / "sacct", real)
    (theirs / "bash").symlink_to(str(shutil.which("bash")))
    path = os.pathsep.join(map(str, (ours, ours, theirs)))
    asked = [str(ours / "sacct"), "-X", "--format=JobIdRaw,State", "--name", "abc"]
    done = subprocess.run(asked, env={"PATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, says)
    assert ("database is away" in done.stderr) == (status == 3)


def test_a_newer_checkpoint_makes_the_count_begin_anew(tmp_path: Path, requeued: list[str]) -> None:
    job = Requeue(tmp_path / "count", tmp_path, "7")
    for step in (1, 2, 3):
        (tmp_path / f"checkpoints/step-{step}").mkdir(parents=True)
        for _ in range(2):
            job.follow_up(Ending.TIME_IS_OVER, lambda text: None)
    assert len(requeued) == 6
    job.follow_up(Ending.CRASHED, lambda text: None)
    assert len(requeued) == 6


def test_the_last_call_before_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now, end = [1000.0], [2000.0]
    monkeypatch.setattr(requeue.time, "time", lambda: now[0])
    monkeypatch.setattr(slurm, "end_time", lambda number: end[0])
    limit = TimeLimit("7")
    assert not limit.is_over()
    now[0], end[0] = 1971.0, 5000.0  # the operator has put it off
    assert not limit.is_over()
    now[0] = 4971.0
    assert limit.is_over()
    assert not TimeLimit("").is_over()


def test_a_controller_that_is_away_at_the_last_call_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(number: str) -> float:
        raise UserError("no answer")

    now = [1000.0]
    monkeypatch.setattr(requeue.time, "time", lambda: now[0])
    monkeypatch.setattr(slurm, "end_time", away)
    limit = TimeLimit("7")
    assert not limit.is_over()
    monkeypatch.setattr(slurm, "end_time", lambda number: 1040.0)
    now[0] = 1059.0
    assert not limit.is_over()  # not asked yet
    now[0] = 1061.0
    assert limit.is_over()


def test_a_job_that_was_cancelled_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    states = iter(["COMPLETING", "RUNNING"])
    monkeypatch.setattr(slurm, "PAUSE_SECONDS", 0.0)

    def answer(*words: str) -> str:
        asked.append(words)
        if len(asked) in (1, 3):  # the controller is away for a moment
            raise UserError("no answer")
        return f"JobId=7 JobState={next(states)} Comment=x" if words[:2] == ("scontrol", "--oneliner") else ""

    monkeypatch.setattr(slurm, "_ask", answer)
    slurm.requeue("7")
    assert ("scontrol", "requeue", "7") not in asked
    slurm.requeue("7")
    assert asked[-1] == ("scontrol", "requeue", "7")


def test_without_slurm_no_job_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 0.0)
    assert slurm.living("7") is None
