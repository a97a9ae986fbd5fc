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


def _launch(settings: Path, folder: str) -> subprocess.Popen[str]:
    """The training on two ranks as a rule starts it."""
    log = tiny.folder_of(settings, folder) / "log"
    words = tiny.train_command(settings, folder)[1:]
    launcher = [sys.executable, str(tiny.ROOT / "workflow_scripts/launch.py"), "--log", str(log)]
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
        ("torchrun-term", signal.SIGTERM, "torch.distributed.run"),
        ("torchrun-usr1", signal.SIGUSR1, "torch.distributed.run"),
        ("worker-term", signal.SIGTERM, "train.py"),
        ("worker-usr1", signal.SIGUSR1, "train.py"),
        ("launcher-int", signal.SIGINT, "launch.py"),
        ("launcher-killed", signal.SIGKILL, "launch.py"),
    ],
)
def test_all_ranks_save_and_end(settings: Path, name: str, number: signal.Signals, whom: str) -> None:
    folder = tiny.folder_of(settings, name)
    process = _launch(settings, name)
    deadline = time.monotonic() + 60
    while not (history := folder / "work/metrics.jsonl").exists() or '"update": 2,' not in history.read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    # Of the workers the last one: any rank may be the one that is told.
    os.kill(_processes(folder, whom)[-1], number)
    said, _ = process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while _processes(folder, "train.py") or _processes(folder, "torch.distributed.run"):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.1)
    if number != signal.SIGKILL:
        assert process.returncode == PREEMPTED
        assert said.count("start it again to continue") == 1 and "Traceback" not in said
    assert list((folder / "work/checkpoints").glob("step-*")) and not (folder / "out/training.json").exists()
    done = tiny.train(settings, name, ranks=2)
    assert "going on from" in done.stderr
    tiny.assert_equal_to_whole(settings, name)


def test_a_crash_ends_a_training_that_has_loader_workers(settings: Path) -> None:
    # Workers ignore SIGTERM, with which Python would end them at its exit: whoever leaves them behind waits for ever.
    command = tiny.train_command(settings, "crash")
    code = """
import runpy, sys
from lucavirus.update import Updater
def fail(*arguments):
    raise RuntimeError("the GPU fell off the bus")
Updater.step = fail
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    tiny.change_run(settings, worker_num=1)
    process = subprocess.Popen(
        [command[0], "-c", code, *command[1:]], env=tiny.environment(), stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=60)
    finally:
        tiny.change_run(settings, worker_num=0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1 and said.rstrip().endswith("RuntimeError: the GPU fell off the bus")
