"""The lock of a run: who holds it is told, a dead owner does not block, patience waits."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import pytest

from lucavirus import guard, slurm
from lucavirus.errors import UserError
from lucavirus.guard import EarlierStart, Owner, StopRequest, only_owner, only_start
from lucavirus.launch import launch
from lucavirus.requeue import Ending

HOLD = "import sys, time; from pathlib import Path; from lucavirus.guard import only_owner\n"
HOLD += "with only_owner(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"


@pytest.fixture
def holder(tmp_path: Path, root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_with_the_owner_named(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    try:
        with pytest.raises(UserError, match=rf"process {holder.pid} on .*, since 20"), only_owner(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    # The kernel frees the lock of the dead.
    with only_owner(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("lucavirus.guard.os.write", refuse)
        with pytest.raises(UserError, match="lock: cannot be written .No space left on device"), only_owner(tmp_path):
            pass
    with only_owner(tmp_path):
        pass


def test_patience_waits_for_an_owner_that_ends(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    threading.Timer(0.5, holder.kill).start()
    started = time.monotonic()
    with only_owner(tmp_path, patience=20):
        assert 0.3 < time.monotonic() - started < 15
    holder.wait()


def test_the_launcher_refuses_before_it_starts_anything(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lucavirus.launch.GRACE_SECONDS", 0.3)
    started = tmp_path / "started"
    try:
        status = launch(["python", "-c", f"open({str(started)!r}, 'w')"], tmp_path / "log", guard=tmp_path)
    finally:
        holder.kill()
        holder.wait()
    assert status == 1 and not started.exists()
    assert f"going on: process {holder.pid} on" in (tmp_path / "log").read_text()


def test_the_launcher_counts_an_earlier_start_that_does_not_end_as_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed_up: list[Ending] = []
    monkeypatch.setattr(guard, "_EARLIER_SECONDS", 0.3)
    monkeypatch.setattr("lucavirus.launch.Requeue.follow_up", lambda self, end, say: followed_up.append(end))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("LUCAVIRUS_OWN_JOB", "1")
    with only_owner(tmp_path / "work"):
        assert launch(["python", "-c", "print('began')"], tmp_path / "log", guard=tmp_path / "work") == 1
    assert "another training of this run is going on" in (log := (tmp_path / "log").read_text()) and "began" not in log
    assert followed_up == [Ending.CRASHED]


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in of squeue says."""
    squeue, says = tmp_path / "bin/squeue", tmp_path / "says"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\nexec cat {says}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(squeue.parent), os.environ["PATH"]]))
    return says


@pytest.mark.parametrize(
    ("state", "own", "refused"),
    [
        ("RUNNING", "", True), ("COMPLETING", "8", True), ("STOPPED", "", True), ("SUSPENDED", "", True),
        ("RUNNING", "7", False), ("PENDING", "", False),
    ],
)  # fmt: skip
def test_a_job_on_another_node_holds_the_folder_where_no_lock_reaches(
    tmp_path: Path, queue: Path, monkeypatch: pytest.MonkeyPatch, state: str, own: str, refused: bool
) -> None:
    (tmp_path / "lock").write_text(json.dumps({"host": "far", "pid": 1, "job": "7", "since": "then"}))
    queue.write_text(f"7|{state}|node[1-2]\n")
    monkeypatch.setenv("SLURM_JOB_ID", own)
    if refused:
        with pytest.raises(UserError, match=rf"Slurm job 7 \({state} on node\[1-2\]\)"), only_owner(tmp_path):
            pass
    else:
        with only_owner(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["job"] == own
        assert (tmp_path / "lock").read_text() == ""


def test_a_work_folder_on_a_disk_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "work").symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match="is the disk that it leads to mounted"), only_owner(tmp_path / "work/p/r"):
        pass


def test_a_work_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "work"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(UserError, match=r"work: cannot be written \(Read-only file system\)"),
        only_owner(tmp_path / "work"),
    ):
        pass


def test_a_file_system_without_locks_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [*guard.NO_LOCKS, errno.EIO]

    def refuse(*_: object) -> None:
        raise OSError(answers[0], os.strerror(answers[0]))

    monkeypatch.setattr(fcntl, "flock", refuse)
    while answers[0] != errno.EIO:
        with only_owner(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
        answers.pop(0)
    with pytest.raises(OSError, match="Input/output error"), only_owner(tmp_path):
        pass


def test_who_holds_the_lock_without_a_name_is_told_too(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as other:  # it has the lock already, or still, but no name in it
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="by an unknown process"), only_owner(tmp_path):
            pass


def test_the_time_limit_is_remembered_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest().listening() as asked:
        assert not asked.came
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.came and not asked.time_limit
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.time_limit
    assert signal.getsignal(signal.SIGUSR1) is before


def test_where_slurm_gives_no_answer_the_lock_alone_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: subprocess.Popen[str]
) -> None:
    monkeypatch.setattr("lucavirus.guard.slurm.living", lambda _: pytest.fail("asked"))
    with pytest.raises(UserError, match=f"process {holder.pid}"), only_owner(tmp_path, ask_slurm=False):
        pass
    holder.kill()
    holder.wait()
    (tmp_path / "lock").write_text('{"job": "7"}')
    with only_owner(tmp_path, ask_slurm=False):
        pass


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners look at their lock each time."""
    monkeypatch.setattr(guard, "_LOOK_SECONDS", 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")


def test_an_earlier_start_of_the_own_job_is_asked_to_end_and_waited_for(tmp_path: Path, at_once: None) -> None:
    """As one on a node that Slurm has lost, and whose processes train on."""
    with only_owner(tmp_path) as owner:
        assert not owner.asked_to_end()
        later = threading.Thread(target=lambda: waited(only_owner(tmp_path, job="7")))
        later.start()
        while not owner.asked_to_end():
            time.sleep(0.01)
        assert later.is_alive()
    later.join(10)
    assert not later.is_alive() and (tmp_path / "lock").read_text() == ""


def waited(lock: AbstractContextManager[Owner]) -> None:
    with lock as owner:
        assert not owner.asked_to_end()


def test_an_earlier_start_that_does_not_end_is_told(
    tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_EARLIER_SECONDS", 0.3)
    with only_owner(tmp_path) as owner:
        with pytest.raises(EarlierStart, match=f"going on: process {os.getpid()} on"), only_owner(tmp_path, job="7"):
            pass
        assert owner.asked_to_end()


@pytest.mark.parametrize("job", ["", "8"])
def test_nobody_else_asks_an_owner_to_end(tmp_path: Path, at_once: None, job: str) -> None:
    with only_owner(tmp_path) as owner:
        with pytest.raises(UserError, match="going on") as told, only_owner(tmp_path, job=job):
            pass
        assert not isinstance(told.value, EarlierStart) and not owner.asked_to_end()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_where_no_lock_reaches_the_earlier_start_sees_that_nothing_is_its_own_any_more(
    tmp_path: Path, at_once: None, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with only_owner(tmp_path) as owner:
        for nothing in ("", '{"job": "8"}\nanother waits', "{"):  # of a mere look, of another job, half written
            (tmp_path / "lock").write_text(nothing)
            assert not owner.asked_to_end()
        (tmp_path / "lock").unlink()
        assert not owner.asked_to_end()
        monkeypatch.setattr(guard.os, "getpid", lambda: 1)
        with only_owner(tmp_path, job="7") as later:
            assert not later.asked_to_end()
            with pytest.raises(UserError, match="another start has taken it over"):
                owner.asked_to_end()


def test_a_look_leaves_the_owners_name_where_no_lock_reaches(tmp_path: Path, no_locks: None, queue: Path) -> None:
    """Slurm may not answer who only looks, and answer the one that begins."""
    queue.write_text("7|RUNNING|node1\n")
    (tmp_path / "lock").write_text('{"job": "7"}')
    (tmp_path / ".a.log.lock").write_text('{"job": "7"}')
    with (
        only_owner(tmp_path, ask_slurm=False, look=True),
        only_start(tmp_path / "a.log", patience=0, ask_slurm=False, look=True),
    ):
        pass
    assert (tmp_path / ".a.log.lock").read_text() == '{"job": "7"}'
    with pytest.raises(UserError, match=r"Slurm job 7 \(RUNNING on node1\)"), only_owner(tmp_path):
        pass


def test_the_launcher_leaves_the_name_of_a_training_that_goes_on_elsewhere(
    tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lock").write_text('{"job": "7"}')
    monkeypatch.setattr(slurm, "living", lambda _: None)  # Slurm does not answer for a moment
    monkeypatch.setattr("lucavirus.launch.claimed_gpus", _refuse_gpus)
    assert launch(["python", "-c", "print('began')"], tmp_path / "log", guard=tmp_path) == 1
    assert (tmp_path / "log").read_text() == "error: no GPU is free\n"  # it had looked
    assert (tmp_path / "lock").read_text() == '{"job": "7"}'


def _refuse_gpus(*_: object) -> NoReturn:
    raise UserError("no GPU is free")


def test_who_was_taken_over_leaves_the_new_owners_name(
    tmp_path: Path, at_once: None, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with only_owner(tmp_path):
        monkeypatch.setattr(guard.os, "getpid", lambda: 1)
        later = only_owner(tmp_path, job="7")
        name = later.__enter__().line
    assert (tmp_path / "lock").read_text() == name
    later.__exit__(None, None, None)
    assert (tmp_path / "lock").read_text() == ""


def test_a_stage_is_named_by_its_log(tmp_path: Path) -> None:
    with only_start(tmp_path / "a.log", patience=0):
        with only_start(tmp_path / "b.log", patience=0):
            pass
        with (
            pytest.raises(UserError, match=rf"^{tmp_path}/a.log: another start of this stage is going on"),
            only_start(tmp_path / "a.log", patience=0),
        ):
            pass


def test_an_owner_looks_from_time_to_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    with only_owner(tmp_path) as owner:
        (tmp_path / "lock").write_text(f"{owner.line}\na later start waits")
        assert not owner.asked_to_end()
        now[0] += 11
        assert owner.asked_to_end()
        assert not owner.asked_to_end()


def test_outside_of_slurm_another_name_in_the_lock_ends_nobody(
    tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    with only_owner(tmp_path) as owner:
        (tmp_path / "lock").write_text('{"job": ""}')
        assert not owner.asked_to_end()
