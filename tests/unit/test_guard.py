"""The lock of a run: who holds it is told, a dead owner does not block, patience waits."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lucavirus.errors import UserError
from lucavirus.guard import only_owner
from lucavirus.launch import launch

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
    [("RUNNING", "", True), ("COMPLETING", "8", True), ("RUNNING", "7", False), ("PENDING", "", False)],
)
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
