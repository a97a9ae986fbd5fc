"""What Slurm is asked, and what it says: of a job, of trainings, and nothing for a while."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from lucavirus import slurm
from lucavirus.errors import UserError
from lucavirus.slurm import Job, trainings


def test_the_time_limit_is_known_whatever_form_of_times_the_user_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\n[ $SLURM_TIME_FORMAT = standard ] && echo EndTime=2026-11-26T12:00:00\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    assert slurm.end_time("5") == datetime(2026, 11, 26, 12).timestamp()


def test_trainings_of_a_run_in_a_folder() -> None:
    answer = (
        "3|RUNNING|node[1-2]|rule_train_wildcards_full|/a/b\n"
        "4|PENDING||rule_train_wildcards_full|/a/b\n"
        "5|RUNNING|node3|rule_train_wildcards_full_2|/a/b\n"
        "6|RUNNING|node3|rule_train_wildcards_full|/a/c\n"
        "7|RUNNING|node3|rule_evaluate_wildcards_full|/a/b\n"
    )
    found = trainings(answer, "full", Path("/a/b"))
    assert found == [Job("3", "RUNNING", "node[1-2]"), Job("4", "PENDING", "")]
    assert str(found[0]) == "Slurm job 3 (RUNNING on node[1-2])"


def test_a_comment_with_a_line_break_hides_no_training() -> None:
    answer = "1|RUNNING|node1|first\nsecond|/a/b\n3|RUNNING|node2|rule_train_wildcards_full|/a/b"
    assert trainings(answer, "full", Path("/a/b")) == [Job("3", "RUNNING", "node2")]


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
    assert slurm.queue() == ""
    with pytest.raises(UserError, match="is not installed here"):
        slurm.fields("7")
    assert slurm.restarts("7") == "0"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert slurm.restarts("7") == "2"


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


def test_which_start_of_a_job_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment may be that of the job in which somebody typed the command."""
    monkeypatch.setattr(slurm, "_ask", lambda *_: "JobId=7 Restarts=1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert slurm.restarts("7") == "1"
    assert [slurm.later_start_runs("7", start) for start in ("0", "1", "2")] == [True, False, False]


def test_a_job_that_was_cancelled_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    states = iter(["COMPLETING Restarts=1", "RUNNING Restarts=2", "RUNNING Restarts=1"])
    monkeypatch.setattr(slurm, "PAUSE_SECONDS", 0.0)

    def answer(*words: str) -> str:
        asked.append(words)
        if len(asked) in (1, 3):  # the controller is away for a moment
            raise UserError("no answer")
        return f"JobId=7 JobState={next(states)} Comment=x" if words[:2] == ("scontrol", "--oneliner") else ""

    monkeypatch.setattr(slurm, "_ask", answer)
    assert slurm.requeue("7", "1")
    assert ("scontrol", "requeue", "7") not in asked
    assert not slurm.requeue("7", "1")  # a later start of it, elsewhere
    assert ("scontrol", "requeue", "7") not in asked
    assert slurm.requeue("7", "1")
    assert asked[-1] == ("scontrol", "requeue", "7")


@pytest.mark.parametrize(
    "refusal",
    ["Requested operation is presently disabled", "Access/permission denied", "Invalid job id specified"],
)
def test_who_is_refused_does_not_ask_again(refusal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: str) -> str:
        raise UserError(f"slurm_requeue error: {refusal}")

    monkeypatch.setattr(slurm, "_ask", refuse)
    monkeypatch.setattr(slurm.time, "sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(UserError, match=refusal):
        slurm.requeue("7", "1")


def test_without_slurm_no_job_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(slurm, "PATIENCE_SECONDS", 0.0)
    assert slurm.living("7") is None
