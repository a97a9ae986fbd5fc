"""GPUs held by trainings that do not know of each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from lucavirus import claims
from lucavirus.claims import claimed_gpus, visible_gpus
from lucavirus.errors import UserError

HOLD = "import os, sys; from lucavirus.claims import claimed_gpus\n"
HOLD += (
    "with claimed_gpus(2, print, os.getppid()) as env: print(env['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
)


def never(text: str) -> None:
    raise AssertionError(text)


def test_visible_gpus_are_those_of_the_variable() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-77,-1,1"}) == ["3", "GPU-77"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1,00,1,GPU-7"}) == ["0", "1", "GPU-7"]
    for none in ("", "NoDevFiles"):
        assert visible_gpus({"CUDA_VISIBLE_DEVICES": none}) == []


def test_two_never_share_and_a_dead_holder_frees_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "t0,t1,t2,t3")
    monkeypatch.setattr(claims, "PAUSE_SECONDS", 0.05)
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", HOLD], cwd=root, stdin=pipe, stdout=pipe, text=True)
    assert other.stdout is not None and other.stdout.readline() == "t0,t1\n"
    said = []

    def end_other(text: str) -> None:
        said.append(text)
        other.kill()
        other.wait()

    with claimed_gpus(2, never, os.getppid()) as mine:
        assert mine == {"CUDA_VISIBLE_DEVICES": "t2,t3"}
    with claimed_gpus(3, end_other, os.getppid()) as mine:
        assert mine == {"CUDA_VISIBLE_DEVICES": "t0,t1,t2"}
    assert said == ["waits until 3 GPUs are free: only 2 are, others are held by other trainings here"]


def test_without_gpus_nothing_changes() -> None:
    with claimed_gpus(0, never, os.getppid()) as mine:
        assert mine == {}


def test_who_waits_ends_with_the_process_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "t8,t9")
    monkeypatch.setattr(claims, "PAUSE_SECONDS", 0.01)
    with (
        claimed_gpus(1, never, os.getppid()),
        pytest.raises(UserError, match="Snakemake is gone; nothing was started"),
        claimed_gpus(2, print, os.getppid() + 1),
    ):
        pass


def test_nobody_waits_for_what_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "s0,s0,-1,s1")
    told = "2 GPUs are asked for, and this machine offers 1\n"
    with pytest.raises(UserError, match=told), claimed_gpus(2, never, os.getppid()):
        pass


def test_who_waits_holds_none_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "u0,u1")
    said, free = list[str](), list[int]()

    def wait(_: float) -> None:
        with ExitStack() as mine:
            free.append(len(claims._hold(["u0"], 1, mine)))
        if len(free) == 3:
            others.close()

    monkeypatch.setattr(claims.time, "sleep", wait)
    with ExitStack() as others:
        claims._hold(["u1"], 1, others)
        with claimed_gpus(2, said.append, os.getppid()) as mine:
            assert mine == {"CUDA_VISIBLE_DEVICES": "u0,u1"}
    assert free == [1, 1, 1] and len(said) == 1


def test_without_the_variable_gpus_are_numbered_and_nothing_else_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / name).touch()
    monkeypatch.setattr(claims, "Path", lambda _: tmp_path)
    assert visible_gpus({}) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_ctrl_c_while_it_waits_is_no_bug(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "r0")
    pipe, log = subprocess.PIPE, str(tmp_path / "log")
    words = (sys.executable, "workflow_scripts/launch.py", "--log", log, "--gpus", "1", "true")
    with claimed_gpus(1, never, os.getppid()):
        waiting = subprocess.Popen(words, cwd=root, stdout=pipe, stderr=pipe, text=True)
        assert waiting.stdout is not None and waiting.stdout.readline().startswith("waits until 1 GPUs are free")
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate(timeout=20) == ("", "") and waiting.returncode == 130
