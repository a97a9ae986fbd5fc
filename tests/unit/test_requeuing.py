"""What follows from how a Slurm job ended, and the last call before its time limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lucavirus import requeue, slurm
from lucavirus.errors import TIME_LIMIT, UserError
from lucavirus.requeue import Ending, Requeue, TimeLimit, ending


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
    monkeypatch.setattr(slurm, "requeue", lambda number, start: numbers.append(number) or True)
    monkeypatch.setattr(slurm, "being_preempted", lambda number, patience=None: False)
    monkeypatch.setattr(slurm, "fields", lambda number: {})
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


@pytest.mark.parametrize("end", [Ending.CRASHED, Ending.REFUSED, Ending.TIME_LIMIT, Ending.ASKED])
def test_a_start_that_slurm_has_lost_leaves_all_to_the_later_one(
    end: Ending, tmp_path: Path, requeued: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "fields", lambda number: {"Restarts": "1"})
    said: list[str] = []
    Requeue(tmp_path / "count", None, "7", "1").follow_up(Ending.CRASHED, said.append)
    counted = (tmp_path / "count").read_text()
    assert (requeued, len(said)) == (["7"], 1)
    Requeue(tmp_path / "count", None, "7", "0").follow_up(end, said.append)
    assert (tmp_path / "count").read_text() == counted and (requeued, len(said)) == (["7"], 1)


def test_who_has_given_a_job_back_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake would take the exit of a job that Slurm has not ended yet for a failure."""
    happened: list[Any] = []
    monkeypatch.setattr(requeue.time, "sleep", happened.append)
    monkeypatch.setattr(slurm, "fields", lambda number: {})
    job = Requeue(tmp_path / "count", None, "7")
    for later_start in (True, False):
        monkeypatch.setattr(
            slurm, "requeue", lambda number, start, later=later_start: happened.append(number) or not later
        )
        job.follow_up(Ending.TIME_LIMIT, lambda text: None)
    assert happened == ["7", "7", 300]

    def refused(number: str, start: str) -> None:
        raise UserError("requeueing is disabled", where="scontrol")

    monkeypatch.setattr(slurm, "requeue", refused)
    job.follow_up(Ending.TIME_LIMIT, happened.append)
    assert happened[3:] == [
        "the time limit is near, all is saved: Slurm job 7 is being given back to the queue, to go on by itself",
        "error: the job could not be given back to the queue: scontrol: requeueing is disabled",
        "all is saved: the same command goes on",
    ]


def test_a_preemption_is_no_crash_and_never_counts(
    tmp_path: Path, requeued: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(slurm, "being_preempted", lambda number, patience=None: True)
    for end in (Ending.CRASHED, Ending.CRASHED, Ending.CRASHED, Ending.ASKED):
        Requeue(tmp_path / "count", tmp_path, "7").follow_up(end, said.append)
    back = "Slurm job 7 is being given back to the queue, to go on by itself"
    assert said == [f"a more urgent job takes the nodes: {back}"] * 4 and requeued == ["7"] * 4
    assert not (tmp_path / "count").exists()


@pytest.mark.parametrize(
    ("training", "preempted", "again"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_a_stage_that_is_done_while_preempted_starts_again_because_snakemake_deletes_its_results(
    training: bool, preempted: bool, again: bool, tmp_path: Path, requeued: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "being_preempted", lambda number, patience: preempted and patience == 0)
    said: list[str] = []
    job = Requeue(tmp_path / "count", tmp_path if training else None, "7")
    job.follow_up(Ending.DONE, said.append)
    assert (requeued == ["7"], len(said)) == (again, again)

    def refused(number: str, start: str) -> bool:
        raise UserError("requeueing is disabled", where="scontrol")

    monkeypatch.setattr(slurm, "requeue", refused)
    job.follow_up(Ending.DONE, said.append)
    told = "error: the job could not be given back to the queue: scontrol: requeueing is disabled"
    assert (said[-1:] == [told]) is again


def test_a_stage_that_is_done_is_done_though_slurm_does_not_answer(
    tmp_path: Path, requeued: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(number: str, patience: float) -> bool:
        raise UserError("no answer")

    monkeypatch.setattr(slurm, "being_preempted", away)
    said: list[str] = []
    Requeue(tmp_path / "count", None, "7").follow_up(Ending.DONE, said.append)
    assert (requeued, said) == ([], [])


def test_the_time_limit_never_counts_and_others_end(tmp_path: Path, requeued: list[str]) -> None:
    job = Requeue(tmp_path / "count", None, "7")
    for _ in range(9):
        job.follow_up(Ending.TIME_LIMIT, lambda text: None)
    assert requeued == ["7"] * 9
    for end in (Ending.DONE, Ending.REFUSED, Ending.ASKED):
        job.follow_up(end, lambda text: None)
    Requeue(tmp_path / "count", None, "").follow_up(Ending.CRASHED, lambda text: None)  # not in a job
    assert len(requeued) == 9


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
