"""The launcher: output, errors, exit status, environment. The children are tiny programs."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

from lucavirus.errors import Preempted, UserError, run_stage
from lucavirus.launch import environment, launch, program
from lucavirus.node import node_command
from tests.launching import Start, run

REPORT = "from lucavirus.errors import UserError, run_stage\n"


def test_output_goes_to_the_screen_and_the_log(start: Start, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    status, screen = run(start("import sys; print('out'); print('err', file=sys.stderr); print('last', end='')"))
    assert status == 0
    assert screen == "out\nerr\nlast\n"
    assert (tmp_path / "log").read_text() == "before\nout\nerr\nlast\n"


@pytest.mark.parametrize(
    ("text", "status"), [("exit(0)", 0), ("exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_exit_status_is_the_childs(start: Start, text: str, status: int) -> None:
    assert run(start(text))[0] == status


def test_a_user_error_is_shown_once_without_traceback(start: Start, tmp_path: Path) -> None:
    failing = "print('working')\n    raise UserError('is bad', where='a:3', hint='mend it')"
    text = f"{REPORT}def main():\n    {failing}\nrun_stage(main)"
    status, screen = run(start(text))
    assert (status, screen) == (1, "working\nerror: a:3: is bad\n  What to do: mend it\n")
    assert (tmp_path / "log").read_text() == screen
    assert not (tmp_path / "log.errors").exists()


def failing(error: Exception) -> object:
    """The exit status of a stage that fails."""

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_stage(fail)
    return ended.value.code


def test_a_full_disk_is_told_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(SystemExit, match="1"):
        run_stage(partial(full.write, b"x"))
    assert failing(OSError(errno.EDQUOT, "Disk quota exceeded", "work/demo/x")) == 1
    hint = "make room (`df -h` tells which disk is full, `quota` what is yours), then start the same command again"
    told = ("a file: cannot be written: No space left on device", "work/demo/x: cannot be written: Disk quota exceeded")
    assert capsys.readouterr().err == "".join(f"error: {what}\n  What to do: {hint}\n" for what in told)
    hint = "No space left on device: 'a'"
    assert failing(shutil.Error([("a", "b", f"[Errno 28] {hint}")])) == 1
    assert ": cannot be written: No space left on device\n" in capsys.readouterr().err
    for other in (PermissionError(13, "Permission denied"), shutil.Error([("a", "b", "[Errno 13] Permission denied")])):
        with pytest.raises(type(other)):
            failing(other)


def test_an_error_that_a_full_disk_does_not_take_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LUCAVIRUS_ERROR_FILE", "/dev/full")
    assert failing(UserError("full")) == 1
    assert capsys.readouterr() == ("", "error: full\n")


def test_what_ranks_report_is_all_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUCAVIRUS_ERROR_FILE", str(tmp_path / "errors"))
    assert [failing(UserError("full", where="disk")), failing(Preempted("preempted: saved"))] == [1, 75]
    assert (tmp_path / "errors").read_text() == "error: disk: full\npreempted: saved\n"


def test_a_bug_shows_its_traceback(start: Start, tmp_path: Path) -> None:
    status, screen = run(start("raise RuntimeError('boom')"))
    assert status == 1
    assert screen.startswith("Traceback (most recent call last)")
    assert screen.endswith("RuntimeError: boom\n")
    assert (tmp_path / "log").read_text() == screen


def test_an_error_reported_by_an_earlier_run_is_forgotten(start: Start, tmp_path: Path) -> None:
    (tmp_path / "log.errors").write_text("old\n")
    assert "old" not in run(start("exit(1)"))[1]


@pytest.mark.slow
def test_ranks_of_torchrun_report_the_same_error_once(
    start: Start, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    text = f"{REPORT}def main():\n    raise UserError('is bad', where='a:3')\nrun_stage(main)"
    status, screen = run(start(text, "torchrun", "--standalone", "--nproc-per-node", "2"))
    assert (status, screen) == (1, "error: a:3: is bad\n")
    assert (tmp_path / "log").read_text() == screen
    assert not list(temporary.iterdir())  # torchrun leaves nothing behind


def test_torchrun_and_python_are_those_of_this_interpreter() -> None:
    assert program(["python", "x.py"]) == [sys.executable, "x.py"]
    assert program(["torchrun", "x.py"])[:3] == [sys.executable, "-m", "lucavirus.torchrun"]
    assert program(["true", "torchrun"]) == ["true", "torchrun"]


def test_torchrun_gives_its_ranks_the_time_that_saving_takes() -> None:
    step = {"SLURM_NNODES": "2", "SLURM_NODEID": "1"}
    words = ["--master-addr=n1", "--master-port=20007", "--nproc-per-node=3", "x.py"]
    for command, granted in ((program(["torchrun", "x.py"]), 300), (node_command(words, step)[0], 900)):
        assert f"--shutdown-timeout={granted}" in command[: command.index("x.py")]


@pytest.mark.parametrize(
    ("words", "threads"),
    [
        (["python", "x"], "8"),
        (["torchrun", "--nproc-per-node", "2", "x"], "4"),
        (["torchrun", "--nproc-per-node=3", "x"], "2"),
        (["torchrun", "--nproc-per-node", "16", "x"], "1"),
    ],
)
def test_ranks_share_the_cores_of_the_job(monkeypatch: pytest.MonkeyPatch, words: list[str], threads: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    found = environment(words, Path("errors"))
    assert {found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]} == {threads}


def test_the_environment_finds_the_package_and_shadows_no_module(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "theirs")
    for name in ("OMP_NUM_THREADS", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTHONUTF8", "LRU_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # of the user
    found = environment(["python"], Path("errors"))
    assert (found["GOMP_SPINCOUNT"], found["LRU_CACHE_CAPACITY"]) == ("7", "32")
    assert found["PYTHONPATH"] == f"{root}{os.pathsep}theirs"
    assert [found[f"PYTHON{name}"] for name in ("SAFEPATH", "UNBUFFERED", "UTF8")] == ["1", "1", "1"]
    assert found["LUCAVIRUS_ERROR_FILE"] == "errors"
    assert found["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert environment(["python"], Path("errors"))["GOMP_SPINCOUNT"] == "5000"


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (OSError(errno.EROFS, "Read-only file system", "out/model"), "out/model"),
        (shutil.Error([("a", "b", "[Errno 30] Read-only file system: 'b'")]), "a file"),
    ],
)
def test_a_disk_mounted_read_only_is_a_message(
    error: OSError, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LUCAVIRUS_ERROR_FILE", raising=False)

    def write() -> None:
        raise error

    with pytest.raises(SystemExit, match="1"):
        run_stage(write)
    told = capsys.readouterr().err
    assert told.startswith(f"error: {where}: cannot be written: Read-only file system\n")
    assert "have the disk mounted for writing" in told


def test_a_stage_starts_once_at_a_time(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucavirus.launch.GRACE_SECONDS", 0.3)
    first = start("import time; print('begun', flush=True); time.sleep(60)")
    assert first.stdout is not None and first.stdout.readline() == b"begun\n"
    (tmp_path / "log.errors").write_text("of the first")
    assert launch(["python", "-c", "print('twice')"], tmp_path / "log") == 1
    told = f"error: {tmp_path}/log: another start of this stage is going on: process {first.pid} on "
    assert told in (log := (tmp_path / "log").read_text()) and "twice" not in log
    assert (tmp_path / "log.errors").read_text() == "of the first"
    first.kill()
    first.wait()
    assert launch(["python", "-c", "print('again')"], tmp_path / "log") == 0


@pytest.mark.parametrize("also", ["", "error: another\\n"])
def test_what_was_done_when_the_signal_came_is_done_whatever_torchruns_status(
    start: Start, tmp_path: Path, also: str
) -> None:
    text = (
        f"from lucavirus.errors import DONE_BEFORE, report; report(DONE_BEFORE); open(E, 'a').write('{also}'); exit(1)"
    )
    text = f"import os; E = os.environ['LUCAVIRUS_ERROR_FILE']; {text}"
    status, screen = run(start(text))
    assert status == (1 if also else 0) and screen.startswith("all was done when the signal came\n")
