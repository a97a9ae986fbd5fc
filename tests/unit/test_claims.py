"""GPUs held by trainings that do not know of each other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from lucavirus import claims
from lucavirus.claims import claimed_gpus, visible_gpus
from lucavirus.errors import UserError
from lucavirus.guard import only_owner
from tests.launching import wait_for

HOLD = "import os, sys; from lucavirus.claims import claimed_gpus\n"
HOLD += (
    "with claimed_gpus(2, print, os.getppid()) as env: print(env['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
)


def never(text: str) -> None:
    raise AssertionError(text)


def named(names: str) -> str:
    """Names of GPUs that only these tests have: a claim is the machine's, and others may run their tests on it."""
    return re.sub(r"[a-z]\d", rf"\g<0>-{os.getpid()}", names)


def test_visible_gpus_are_those_of_the_variable() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-77,-1,1"}) == ["3", "GPU-77"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1,00,1,GPU-7"}) == ["0", "1", "GPU-7"]
    for none in ("", "NoDevFiles"):
        assert visible_gpus({"CUDA_VISIBLE_DEVICES": none}) == []


def test_two_never_share_and_a_dead_holder_frees_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named("t0,t1,t2,t3"))
    monkeypatch.setattr(claims, "PAUSE_SECONDS", 0.05)
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", HOLD], cwd=root, stdin=pipe, stdout=pipe, text=True)
    assert other.stdout is not None and other.stdout.readline() == named("t0,t1\n")
    said = []

    def end_other(text: str) -> None:
        said.append(text)
        other.kill()
        other.wait()

    with claimed_gpus(2, never, os.getppid()) as mine:
        assert mine == {"CUDA_VISIBLE_DEVICES": named("t2,t3")}
    with claimed_gpus(3, end_other, os.getppid()) as mine:
        assert mine == {"CUDA_VISIBLE_DEVICES": named("t0,t1,t2")}
    assert said == ["waits until 3 GPUs are free: only 2 are, others are held by other trainings here"]


def test_without_gpus_nothing_changes() -> None:
    with claimed_gpus(0, never, os.getppid()) as mine:
        assert mine == {}


def test_who_waits_ends_with_the_process_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named("t8,t9"))
    monkeypatch.setattr(claims, "PAUSE_SECONDS", 0.01)
    with (
        claimed_gpus(1, never, os.getppid()),
        pytest.raises(UserError, match="Snakemake is gone; nothing was started"),
        claimed_gpus(2, print, os.getppid() + 1),
    ):
        pass


def test_nobody_waits_for_what_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named("s0,s0,-1,s1"))
    told = "2 GPUs are asked for, and this machine offers 1\n"
    with pytest.raises(UserError, match=told), claimed_gpus(2, never, os.getppid()):
        pass


def test_who_waits_holds_none_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named("u0,u1"))
    said, free = list[str](), list[int]()

    def wait(_: float) -> None:
        with ExitStack() as mine:
            free.append(len(claims._hold([named("u0")], 1, mine)))
        if len(free) == 3:
            others.close()

    monkeypatch.setattr(claims.time, "sleep", wait)
    with ExitStack() as others:
        claims._hold([named("u1")], 1, others)
        with claimed_gpus(2, said.append, os.getppid()) as mine:
            assert mine == {"CUDA_VISIBLE_DEVICES": named("u0,u1")}
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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named("r0"))
    pipe, log = subprocess.PIPE, str(tmp_path / "log")
    words = (sys.executable, "workflow_scripts/launch.py", "--log", log, "--gpus", "1", "true")
    with claimed_gpus(1, never, os.getppid()):
        # In the background of a script SIGINT is ignored, by whatever is started there too.
        waiting = subprocess.Popen(
            words, cwd=root, stdout=pipe, stderr=pipe, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        assert waiting.stdout is not None and waiting.stdout.readline().startswith("waits until 1 GPUs are free")
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate(timeout=20) == ("", "") and waiting.returncode == 130


def test_ctrl_c_while_another_holds_the_folder_is_no_bug(root: Path, tmp_path: Path) -> None:
    pipe, work, log = subprocess.PIPE, str(tmp_path / "work"), tmp_path / "logs/log"
    words = (sys.executable, "workflow_scripts/launch.py", "--log", str(log), "--guard", work, "true")
    with only_owner(tmp_path / "work"):
        waiting = subprocess.Popen(
            words, cwd=root, stdout=pipe, stderr=pipe, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        assert wait_for(log.parent.exists, 20)
        time.sleep(0.3)  # from there to the folder's lock
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate(timeout=20) == ("", "") and waiting.returncode == 130
