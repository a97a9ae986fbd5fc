"""The launcher: output, errors, exit status, environment, signals, no orphans. The children are tiny programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lucavirus.errors import Preempted, UserError, run_stage
from lucavirus.launch import PASSED_ON, Output, Watch, environment, program
from lucavirus.node import node_command

LAUNCHER = Path(__file__).resolve().parents[2] / "workflow_scripts" / "launch.py"
REPORT = "from lucavirus.errors import UserError, run_stage\n"

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """A closed terminal's signal as it is by itself: the tests may run under nohup, which their programs would heed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the launcher on a program given as text; its log is tmp_path/log."""
    started = []

    def run(text: str, *before: str) -> subprocess.Popen[bytes]:
        script = tmp_path / "child.py"
        script.write_text(text)
        words = [sys.executable, str(LAUNCHER), "--log", str(tmp_path / "log"), *(before or ("python",)), str(script)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def run(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.decode()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


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
    assert run(process)[0] == 1
    assert (tmp_path / "told").exists()


class Terminal:
    """Collects what is shown, once it is flushed, or fails like a terminal that was closed."""

    def __init__(self, *, closed: bool = False) -> None:
        self.text, self.written, self.closed = b"", b"", closed

    def write(self, data: bytes) -> int:
        if self.closed:
            raise BrokenPipeError
        self.written += data
        return len(data)

    def flush(self) -> None:
        self.text = self.written


def fed(
    tmp_path: Path, *chunks: bytes, errors: str = "", failed: bool = False, closed: bool = False
) -> tuple[bytes, bytes]:
    terminal = Terminal(closed=closed)
    (tmp_path / "errors").write_text(errors)
    with (tmp_path / "log").open("wb", buffering=0) as log:
        output = Output(terminal, log, tmp_path / "errors")  # type: ignore[arg-type]
        for chunk in chunks:
            output.feed(chunk)
        output.end(failed=failed)
    return terminal.text, (tmp_path / "log").read_bytes()


def test_a_log_on_a_full_disk_is_not_the_end(tmp_path: Path) -> None:
    terminal = Terminal()
    output = Output(terminal, Terminal(closed=True), tmp_path / "errors")  # type: ignore[arg-type]
    output.feed(b"one\ntwo")
    output.end(failed=False)
    assert terminal.text == b"one\ntwo\n"


def test_a_progress_bar_redraws_at_once_and_leaves_its_last_state(tmp_path: Path) -> None:
    terminal = Terminal()
    with (tmp_path / "log").open("wb", buffering=0) as log:
        output = Output(terminal, log, tmp_path / "errors")  # type: ignore[arg-type]
        for chunk, shown in [(b"\r 1%", b"\r 1%"), (b"\r 2%", b"\r 1%\r 2%"), (b"5", b"\r 1%\r 2%5")]:
            output.feed(chunk)
            assert terminal.text == shown
        output.feed(b"\r100%\nnext\n")
        output.end(failed=False)
    assert terminal.text == b"\r 1%\r 2%5\r100%\nnext\n"
    assert (tmp_path / "log").read_bytes() == b"100%\nnext\n"


def test_lines_cut_anywhere_come_out_whole(tmp_path: Path) -> None:
    shown, logged = fed(tmp_path, b"on", b"e\ntw", b"o\n", b"three")
    assert shown == logged == b"one\ntwo\nthree\n"
    redrawn = b" 1%\r 2%\r100%\r\nnext\r\n"
    bytewise = fed(tmp_path, *(redrawn[at : at + 1] for at in range(len(redrawn))))
    assert bytewise == fed(tmp_path, redrawn) == (redrawn, b"100%\nnext\n")


NOISE = (
    b"E1123 10:00:00.000000 7 torch/x.py:1] failed (exitcode: 1)\nTraceback (most recent call last):\n  more\nError\n"
)


@pytest.mark.parametrize(
    "first",
    [
        NOISE,
        b"W1123 10:00:00.000000 7 torch/x.py:1] Sending process 8 closing signal\n",
        b"Traceback (most recent call last):\n",
        b"[rank1]: Traceback (most recent call last):\n",
        b"[rank1]:W1123 10:00:00.000000 7 torch/x.py:1] still there\n",
        b"\r 50%\rTraceback (most recent call last):\n",
    ],
)
def test_noise_after_a_user_error_is_left_out(tmp_path: Path, first: bytes) -> None:
    start, errors = b"started, no W1123 10:00:00\n", "error: bad\nhint\n" * 2
    shown, logged = fed(tmp_path, start, first, b"more\n\r 1%", b"\r 2%\nend", errors=errors, failed=True)
    assert shown == logged == start + b"error: bad\nhint\n"


def test_noise_without_a_user_error_is_shown_at_once(tmp_path: Path) -> None:
    terminal, log = Terminal(), Terminal()
    output = Output(terminal, log, tmp_path / "errors")  # type: ignore[arg-type]
    output.feed(NOISE)
    assert terminal.text == log.written == NOISE
    output.end(failed=True)
    assert terminal.text == log.written == NOISE


def test_what_was_held_back_is_shown_when_all_ended_well(tmp_path: Path) -> None:
    shown, logged = fed(tmp_path, NOISE, errors="bad\n", failed=False)
    assert shown == logged == NOISE


def test_a_closed_terminal_does_not_stop_the_log(tmp_path: Path) -> None:
    assert fed(tmp_path, b"one\n", b"two\n", closed=True) == (b"", b"one\ntwo\n")


def test_torchrun_and_python_are_those_of_this_interpreter() -> None:
    assert program(["python", "x.py"]) == [sys.executable, "x.py"]
    assert program(["torchrun", "x.py"])[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert program(["true", "torchrun"]) == ["true", "torchrun"]


def test_torchrun_gives_its_ranks_the_time_that_saving_takes() -> None:
    step = {"SLURM_NNODES": "2", "SLURM_NODEID": "1"}
    words = ["--master-addr=n1", "--master-port=20007", "--nproc-per-node=3", "x.py"]
    for command, granted in ((program(["torchrun", "x.py"]), 120), (node_command(words, step)[0], 900)):
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


def counting(tmp_path: Path) -> str:
    """A child that writes its pid, counts the signals it gets and ends 0.3 s after the first, with status 5."""
    return (
        "import os, pathlib, signal, time\n"
        "got = []\n"
        "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): signal.signal(n, lambda n, _: got.append(n))\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "while not got: time.sleep(0.01)\n"
        "end = time.monotonic() + 0.3\n"
        "while time.monotonic() < end: time.sleep(0.01)\n"
        f"pathlib.Path({str(tmp_path / 'got')!r}).write_text(' '.join(map(str, map(int, got))))\n"
        "raise SystemExit(5)"
    )


def child_pid(tmp_path: Path) -> int:
    assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    return int((tmp_path / "pid").read_text())


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
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
    assert (tmp_path / "got").read_text() == "2"


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
        "launch._end_leftovers()"
    )
    subprocess.run([sys.executable, "-c", text], cwd=root, timeout=20, check=True)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Job 7 of the workflow; what a stand-in of scontrol says of it, which ends the launcher that gives it back."""
    says, folder = tmp_path / "says", tmp_path / "bin"
    says.write_text("JobState=RUNNING EndTime=Unknown PreemptTime=None")
    given_back = f"echo $2 >> {tmp_path}/given_back; kill -KILL $PPID"
    folder.mkdir()
    for name, text in (
        ("scontrol", f"test $1 = requeue || exec cat {says}; {given_back}"),
        ("srun", f'for script; do true; done; exec {sys.executable} "$script"'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("LUCAVIRUS_OWN_JOB", "1")
    return says


def given_back(tmp_path: Path) -> bool:
    file = tmp_path / "given_back"
    return file.exists() and file.read_text() == "7\n"


@pytest.mark.parametrize("own", [True, False])
def test_after_a_crash_the_workflows_job_is_given_back_but_no_users(
    start: Start, tmp_path: Path, job: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    if not own:
        monkeypatch.delenv("LUCAVIRUS_OWN_JOB")
    assert run(start("exit(3)"))[0] == (-signal.SIGKILL if own else 3)
    assert given_back(tmp_path) is own
    told = "failed (start 1 of 2 after a failure): Slurm job 7 waits in the queue again and goes on by itself\n"
    assert (tmp_path / "log").read_text() == (told if own else "")


@pytest.mark.parametrize(
    ("sent", "preempted", "goes_on"),
    [
        (signal.SIGTERM, "None", False),
        (signal.SIGINT, "None", False),
        (signal.SIGHUP, "None", False),
        (signal.SIGTERM, "2026-01-01T00:00:00", True),
        (signal.SIGUSR1, "None", True),
    ],
)
def test_srun_gets_the_one_signal_it_survives_and_the_job_goes_on_unless_someone_ended_it(
    start: Start, tmp_path: Path, job: Path, sent: int, preempted: str, goes_on: bool
) -> None:
    job.write_text(f"JobState=RUNNING EndTime=Unknown PreemptTime={preempted}")
    process = start(counting(tmp_path), "srun", "torchrun")
    child_pid(tmp_path)
    process.send_signal(sent)
    assert run(process)[0] == (-signal.SIGKILL if goes_on else 5)
    assert (tmp_path / "got").read_text() == str(int(signal.SIGUSR1))
    assert given_back(tmp_path) is goes_on


@pytest.mark.parametrize("failures", [0, 2])
def test_a_training_that_has_not_ended_at_the_time_limit_is_given_back_or_ended(
    start: Start, tmp_path: Path, job: Path, failures: int
) -> None:
    job.unlink()
    os.mkfifo(job)
    counted = {"job": "7", "checkpoint": [], "crashes": failures}
    (tmp_path / "log.restarts").write_text(json.dumps(counted))
    process = start(counting(tmp_path), "--guard", str(tmp_path / "work"), "python")
    child = child_pid(tmp_path)
    with job.open("w") as answer:  # who asks waits for it, until the child is there
        job.unlink()
        job.write_text("JobState=RUNNING EndTime=2020-01-01T00:00:00 PreemptTime=None")
        answer.write(job.read_text())
    status, screen = run(process)
    if failures:
        assert status == 1 and (tmp_path / "got").read_text() == str(int(signal.SIGTERM)) and not alive(child)
    else:
        assert status == -signal.SIGKILL
        assert screen.startswith("the time limit came before all was saved (start 1 of 2 after a failure): Slurm job 7")
    assert given_back(tmp_path) == (not failures)


def test_no_other_stage_is_ended_before_its_time_limit(start: Start, tmp_path: Path, job: Path) -> None:
    job.write_text("JobState=RUNNING EndTime=2020-01-01T00:00:00 PreemptTime=None")
    assert run(start("exit(0)"))[0] == 0


def test_a_stage_that_has_saved_tells_snakemake_so_whatever_torchruns_status(start: Start, tmp_path: Path) -> None:
    text = "import os; open(os.environ['LUCAVIRUS_ERROR_FILE'], 'a').write('preempted: saved\\n'); exit({})"
    assert run(start(text.format(1))) == (75, "preempted: saved\n")
    assert run(start(text.format(0)))[0] == 0
