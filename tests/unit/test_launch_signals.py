"""Signals through the launcher, and what happens to its child when somebody dies. The children are tiny programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lucavirus.errors import UserError
from lucavirus.launch import PASSED_ON, UNTOLD_END, UNTOLD_END_OF_TRAINING, Watch
from tests.launching import LAUNCHER, Start, alive, child_pid, counting, run, wait_for


@pytest.mark.slow
def test_torchrun_passes_usr1_on_to_the_ranks(start: Start, tmp_path: Path) -> None:
    text = (
        "import signal, sys, time\n"
        f"def stop(*_): open({str(tmp_path / 'told')!r}, 'w').close(); sys.exit(1)\n"
        "signal.signal(signal.SIGUSR1, stop)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(60)"
    )
    process = start(text, "torchrun", "--standalone", "--nproc-per-node=1")
    assert wait_for((tmp_path / "ready").exists, 30)
    process.send_signal(signal.SIGUSR1)
    assert run(process)[0] == 128 + signal.SIGUSR1
    assert (tmp_path / "told").exists()


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGUSR1, signal.SIGUSR1),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
def test_a_signal_reaches_the_child_once(start: Start, tmp_path: Path, sent: int, received: int) -> None:
    process = start(counting(tmp_path))
    child_pid(tmp_path)
    process.send_signal(sent)
    assert run(process)[0] == 5
    assert (tmp_path / "got").read_text() == str(int(received))


def test_who_typed_nohup_may_close_the_terminal(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(counting(tmp_path))
    words = [sys.executable, str(LAUNCHER), "--log", str(tmp_path / "log"), "python", str(script)]
    process = subprocess.Popen(["nohup", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    child_pid(tmp_path)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(10) == 5
    assert (tmp_path / "got").read_text() == str(int(signal.SIGUSR1))


def test_ctrl_c_of_the_terminal_reaches_the_child_once(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(counting(tmp_path))
    words = [sys.executable, str(LAUNCHER), "--log", str(tmp_path / "log"), "python", str(script)]
    process = subprocess.Popen(words, start_new_session=True)
    child_pid(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) == 5
    assert (tmp_path / "got").read_text() == "15"


def test_the_child_is_told_to_stop_when_snakemake_dies(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(counting(tmp_path))
    words = [sys.executable, str(LAUNCHER), "--log", str(tmp_path / "log"), "python", str(script)]
    parent = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({words!r})"])
    child = child_pid(tmp_path)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not alive(child))
    assert (tmp_path / "got").read_text() == "15"


def test_the_child_is_told_once_of_snakemakes_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal would disturb torchrun while its ranks save."""
    told: list[int] = []
    child: Any = SimpleNamespace(send_signal=told.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    watch = Watch(child, PASSED_ON, parent=-1)
    watch.check()
    watch.check()
    assert told == [signal.SIGTERM]


def test_the_child_is_told_once_that_a_later_start_waits_or_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    child: Any = SimpleNamespace(send_signal=told.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def taken_over() -> bool:
        raise UserError("another start has taken it over")

    for asked, expected in ((lambda: False, []), (lambda: True, [signal.SIGTERM]), (taken_over, [signal.SIGTERM])):
        told.clear()
        owner: Any = SimpleNamespace(asked_to_end=asked)
        watch = Watch(child, PASSED_ON, os.getppid(), owner)
        watch.check()
        watch.check()
        assert told == expected


def test_the_child_is_told_to_stop_when_the_launcher_is_killed(start: Start, tmp_path: Path) -> None:
    process = start(counting(tmp_path))
    child = child_pid(tmp_path)
    process.kill()
    assert wait_for(lambda: not alive(child))
    assert (tmp_path / "got").read_text() == "15"


def test_no_process_outlives_the_child(start: Start, tmp_path: Path) -> None:
    """As when torchrun is killed -9: its workers are in sessions of their own and hold the pipe."""
    worker = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    text = (
        "import os, pathlib, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {worker!r}], start_new_session=True)\n"
        f"pid = pathlib.Path({str(tmp_path / 'pid')!r})\n"
        "while not (pid.exists() and pid.read_text()): time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)"
    )
    begin = time.monotonic()
    assert run(start(text))[0] == 137
    assert not alive(child_pid(tmp_path))
    assert time.monotonic() - begin < 10


def test_a_process_that_does_not_heed_the_end_is_killed(tmp_path: Path, root: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    text = (
        "import subprocess, sys\n"
        "from lucavirus import launch\n"
        "launch.GRACE_SECONDS = 0.2\n"
        f"child = subprocess.Popen([sys.executable, '-c', {deaf!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "launch._end_leftovers()\n"
        "print(child.pid)"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=root, timeout=20, check=True, stdout=subprocess.PIPE)
    assert not alive(int(done.stdout))


def test_signals_after_the_first_do_not_disturb_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the third, amid its shutdown, torchrun would wait for ever; what they mean is remembered."""
    told: list[int] = []
    child: Any = SimpleNamespace(send_signal=told.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    watch = Watch(child, PASSED_ON, parent=os.getppid())
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        watch._forward(number, None)
    assert told == [signal.SIGUSR1]
    assert watch.told_to_end


@pytest.mark.slow
def test_ctrl_c_shows_no_traceback(start: Start, tmp_path: Path) -> None:
    text = (
        "import pathlib, os, time, torch.distributed\n"
        "torch.distributed.init_process_group('gloo')\n"
        f"(pathlib.Path({str(tmp_path)!r}) / os.environ['RANK']).touch()\n"
        "time.sleep(60)"
    )
    process = start(text, "torchrun", "--standalone", "--nproc-per-node=2")
    assert wait_for(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), 60)
    process.send_signal(signal.SIGINT)
    status, output = run(process)
    assert status == 128 + signal.SIGTERM
    assert "Traceback" not in output and output.endswith(f"{UNTOLD_END}\n")


@pytest.mark.parametrize(("training", "said"), [(True, UNTOLD_END_OF_TRAINING), (False, UNTOLD_END)])
def test_an_end_by_a_signal_without_a_word_is_explained(training: bool, said: str, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(counting(tmp_path))
    guard = ["--guard", str(tmp_path / "work")] if training else []
    words = [sys.executable, str(LAUNCHER), "--log", str(tmp_path / "log"), *guard, "python", str(script)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    child_pid(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert run(process) == (5, f"{said}\n")
    assert (tmp_path / "log").read_text() == f"{said}\n"
