"""Signals to torchrun, to one worker, to the launcher, and the launcher's death: saved, ended, no orphans, gone on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lucavirus.errors import PREEMPTED
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny.make_project(tmp_path_factory.mktemp("signals"))
    tiny.train(path, "whole", ranks=2)
    return path


def _launch(settings: Path, folder: str, script: Path | None = None) -> subprocess.Popen[str]:
    """The training on two ranks as a rule starts it; `script` in the place of the stage's is given that first."""
    log, work = (tiny.folder_of(settings, folder) / name for name in ("log", "work"))
    words = [*([str(script)] if script else []), *tiny.train_command(settings, folder)[1:]]
    launcher = [sys.executable, str(tiny.ROOT / "workflow_scripts/launch.py"), "--log", str(log), "--guard", str(work)]
    return subprocess.Popen(
        [*launcher, "torchrun", "--standalone", "--nproc-per-node", "2", *words],
        env={**tiny.environment(), "OMP_NUM_THREADS": "2"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _processes(folder: Path, script: str) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(str(folder).encode() in word for word in words) and any(script.encode() in word for word in words[:4]):
            found.append(int(process.name))
    return sorted(found)


@pytest.mark.parametrize(
    ("name", "number", "whom"),
    [
        ("torchrun-term", signal.SIGTERM, "lucavirus.torchrun"),
        ("torchrun-usr1", signal.SIGUSR1, "lucavirus.torchrun"),
        ("worker-term", signal.SIGTERM, "train.py"),
        ("worker-usr1", signal.SIGUSR1, "train.py"),
        ("launcher-int", signal.SIGINT, "launch.py"),
        ("launcher-killed", signal.SIGKILL, "launch.py"),
    ],
)
def test_all_ranks_save_and_end(settings: Path, name: str, number: signal.Signals, whom: str) -> None:
    folder = tiny.folder_of(settings, name)
    process = _launch(settings, name)
    tiny.wait_for(folder / "work/metrics.jsonl", '"update": 2,', process)
    # Of the workers the last one: any rank may be the one that is told.
    os.kill(_processes(folder, whom)[-1], number)
    said, _ = process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while _processes(folder, "train.py") or _processes(folder, "lucavirus.torchrun"):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.1)
    if number != signal.SIGKILL:
        assert process.returncode == PREEMPTED
        assert said.count("start it again to continue") == 1 and "Traceback" not in said
        assert "ended by a signal" not in said  # it has spoken for itself
    assert list((folder / "work/checkpoints").glob("step-*")) and not (folder / "out/training.json").exists()
    done = tiny.train(settings, name, ranks=2)
    assert "going on from" in done.stderr
    tiny.assert_equal_to_whole(settings, name)


def test_a_crash_ends_a_training_that_has_loader_workers(settings: Path, tmp_path: Path) -> None:
    # Workers ignore SIGTERM, with which Python would end them at its exit: whoever leaves them behind waits for ever.
    command = tiny.train_command(settings, "crash")
    alteration = """
from lucavirus.update import Updater
def fail(*arguments):
    raise RuntimeError("the GPU fell off the bus")
Updater.step = fail
"""
    script = str(tiny.altered(tmp_path / "fails.py", alteration))
    tiny.change_run(settings, worker_num=1)
    process = subprocess.Popen(
        [command[0], script, *command[1:]], env=tiny.environment(), stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=60)
    finally:
        tiny.change_run(settings, worker_num=0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1 and said.rstrip().endswith("RuntimeError: the GPU fell off the bus")


SLOW_TO_PUBLISH = """
import time
from lucavirus import train
publish = train.Trainer.publish
def slowly(self, work, out):
    (work / "publishing").touch()
    time.sleep(2)
    publish(self, work, out)
train.Trainer.publish = slowly
"""


def test_a_signal_while_the_model_is_published_undoes_nothing(settings: Path, tmp_path: Path) -> None:
    process = _launch(settings, "published", tiny.altered(tmp_path / "slow.py", SLOW_TO_PUBLISH))
    tiny.wait_for(tiny.folder_of(settings, "published") / "work/publishing", "", process)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "all was done when the signal came" in said and "Traceback" not in said
    tiny.assert_equal_to_whole(settings, "published")


def test_a_later_start_of_the_job_has_the_earlier_one_save_and_goes_on(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose node Slurm has lost, while its processes train on."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("LUCAVIRUS_OWN_JOB", "1")
    scontrol, restarts = tmp_path / "bin/scontrol", tmp_path / "restarts"
    scontrol.parent.mkdir()
    restarts.write_text("0")
    scontrol.write_text(
        f"#!/bin/sh\necho JobState=RUNNING Restarts=$(cat {restarts}) PreemptTime=None EndTime=Unknown\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(scontrol.parent), os.environ["PATH"]]))
    often = tiny.altered(tmp_path / "often.py", "from lucavirus import guard\nguard._LOOK_SECONDS = 0.1")
    earlier = _launch(settings, "lost", often)
    tiny.wait_for(tiny.folder_of(settings, "lost") / "work/metrics.jsonl", '"update": 2,', earlier)
    restarts.write_text("1")
    later = _launch(settings, "lost")
    assert "start it again to continue" in earlier.communicate(timeout=60)[0]
    said, _ = later.communicate(timeout=120)
    assert later.returncode == 0 and "going on from" in said, said
    tiny.assert_equal_to_whole(settings, "lost")
