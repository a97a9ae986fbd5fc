"""Run a stage's command: its environment, its signals, its output on the screen and in a log, its errors once.

The launcher stands between Snakemake's shell and torchrun. It stays small and does not import torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, BinaryIO

from lucavirus.errors import PREEMPTED, UserError
from lucavirus.guard import only_owner

ROOT = Path(__file__).resolve().parent.parent
# The name may not be on PATH; USR1 is the schedulers' warning, which torchrun by itself would die of; saving a large
# model takes longer than the 30 s that torchrun grants.
TORCHRUN = (
    *("-m", "torch.distributed.run"),
    "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "--shutdown-timeout=120",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Set unless the user does (docs/benchmarks.md). Threads that wait for each other soon sleep: to spin for milliseconds,
# OpenMP's default, slows a training many times over when anything else runs on its cores. Large tensors are mapped, on
# huge pages where there are: in the heap of malloc their holes add up to half as much memory again.
TUNING = {"GOMP_SPINCOUNT": "1000", "MALLOC_MMAP_THRESHOLD_": "1000000", "THP_MEM_ALLOC_ENABLE": "1"}
POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0
# What torchrun prints once a rank has failed or a signal has come: its own log lines, then a traceback and a table.
NOISE = re.compile(rb"(\[rank\d+\]: ?)?([WE]\d{4} \d\d:\d\d:\d\d|Traceback \(most recent call last\))")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def launch(command: Sequence[str], log: Path, guard: Path | None = None) -> int:
    """Run the command until it ends and return its exit status (128 + n when signal n ended it).

    With `guard`, a run's work folder, it starts only when no other training holds that folder: refused here, before
    torchrun, it takes no time. A training whose Snakemake has died gets time to save and end.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if guard and (refusal := _refusal(guard)):
        with log.open("ab") as log_file:
            Output(sys.stdout.buffer, log_file, log).say(refusal)
        return 1
    # Beside the log, because ranks on other nodes do not share /tmp.
    errors = Path(f"{log.resolve()}.errors")
    errors.unlink(missing_ok=True)
    with log.open("ab") as log_file:
        output = Output(sys.stdout.buffer, log_file, errors)
        _set_process_option(PR_SET_CHILD_SUBREAPER, 1)
        child = _start(command, environment(command, errors))
        _follow(child, output)
        _end_leftovers()
        output.end(failed=child.returncode != 0)
        preempted = output.message().startswith("preempted") and child.returncode != 0
    errors.unlink(missing_ok=True)
    if preempted:  # torchrun turns the ranks' status into 1
        return PREEMPTED
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _refusal(work: Path) -> str:
    try:
        with only_owner(work, patience=GRACE_SECONDS):
            return ""
    except UserError as error:
        return f"error: {error}"


def program(command: Sequence[str]) -> list[str]:
    """The command with `torchrun` and `python` replaced by those of this interpreter."""
    if command[0] == "torchrun":
        return [sys.executable, *TORCHRUN, *command[1:]]
    return [sys.executable if command[0] == "python" else command[0], *command[1:]]


def environment(command: Sequence[str], errors: Path) -> dict[str, str]:
    """The environment of the command; `errors` is where its processes report a UserError (see errors.run_stage)."""
    threads = str(max(1, _cores() // _ranks(command)))
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), path] if path else [str(ROOT)]),
        "PYTHONSAFEPATH": "1",  # a script must not shadow a module of the standard library
        "PYTHONUNBUFFERED": "1",
        "LUCAVIRUS_ERROR_FILE": str(errors),
        **dict.fromkeys(THREAD_VARIABLES, threads),
        **{name: value for name, value in TUNING.items() if name not in os.environ},
    }


def _cores() -> int:
    # Snakemake sets the variable to the threads of the job, all ranks together.
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _ranks(command: Sequence[str]) -> int:
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name == "--nproc-per-node":
            return int(value or following)
    return 1


def _start(command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: a Ctrl-C of the terminal then reaches torchrun once, through this process.
    return subprocess.Popen(
        program(command),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: _set_process_option(PR_SET_PDEATHSIG, signal.SIGTERM),
    )


def _set_process_option(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _follow(child: subprocess.Popen[bytes], output: Output) -> None:
    """Pass on the child's output, and signals to it, until it has ended."""
    watch = Watch(child)
    stream = _stdout(child)
    while child.poll() is None:
        watch.check()
        if not select.select([stream], [], [], POLL_SECONDS)[0]:
            continue
        chunk = os.read(stream.fileno(), 1 << 16)
        if chunk:
            output.feed(chunk)
        else:  # it ends, or has closed its output
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(POLL_SECONDS)
    # Not until the end of file: a process that outlived the child may still hold the pipe.
    while select.select([stream], [], [], 0)[0] and (chunk := os.read(stream.fileno(), 1 << 16)):
        output.feed(chunk)


def _stdout(child: subprocess.Popen[bytes]) -> IO[bytes]:
    assert child.stdout is not None
    return child.stdout


class Watch:
    """Passes signals on to the child, and stops it when Snakemake has died (the rules `exec` the launcher)."""

    FORWARDED = {
        signal.SIGTERM: signal.SIGTERM,
        signal.SIGINT: signal.SIGINT,
        signal.SIGUSR1: signal.SIGUSR1,
        signal.SIGHUP: signal.SIGTERM,  # the terminal was closed
    }

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        """Take over the signals of this process."""
        self.child = child
        self.stopped = False
        self.parent = os.getppid()
        for number in self.FORWARDED:
            signal.signal(number, self._forward)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        self.child.send_signal(self.FORWARDED[signal.Signals(number)])

    def check(self) -> None:
        """Stop the child, once, when Snakemake is gone: nobody waits for its result any more."""
        if not self.stopped and os.getppid() != self.parent:
            self._forward(signal.SIGTERM, None)


def _end_leftovers() -> None:
    """End processes that outlived the child: killing torchrun with -9 leaves its workers. SIGTERM first, to save."""
    for pid in _children():
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while children := _children():
        if time.monotonic() > deadline:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _children() -> list[int]:
    """Processes below this one, those that ended collected."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except (ChildProcessError, OSError):
        return []


class Output:
    """The command's output: raw on the terminal, finished lines in the log, without torchrun's noise on a UserError."""

    def __init__(self, terminal: BinaryIO, log: BinaryIO, errors: Path) -> None:
        """Write to both; `errors` has text as soon as a process has reported a UserError."""
        self.terminal, self.log, self.errors = terminal, log, errors
        self.line = b""
        self.shown = 0
        self.held: list[bytes] | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        *finished, rest = (self.line + chunk).split(b"\n")
        for line in finished:
            self._finish(line + b"\n")
        self.line = rest
        # A progress bar redraws its line, which ends only with the bar: show each state at once.
        if b"\r" in rest and self.held is None:
            self._show(rest[self.shown :])
            self.line = rest[rest.rindex(b"\r") :]
            self.shown = len(self.line)

    def end(self, *, failed: bool) -> None:
        """Write what is left; after a failure that a UserError explains, the error instead of what was held back."""
        if self.line:
            self._finish(self.line + b"\n")
        message = self.message() if failed else ""
        if message:
            self.say(message)
        else:
            for line in self.held or []:
                self._write(line)
        self.held = None

    def say(self, message: str) -> None:
        """Write a message of our own to both."""
        self._write(f"{message}\n".encode())

    def _finish(self, line: bytes) -> None:
        if self.held is None and NOISE.match(_last_state(line)) and self.message():
            self.held = []
        if self.held is not None:
            self.held.append(line)
        else:
            self._show(line[self.shown :])
            self._record(line)
        self.shown = 0

    def message(self) -> str:
        """The errors reported so far; ranks that met the same one have written the same lines."""
        try:
            return "\n".join(dict.fromkeys(self.errors.read_text().splitlines()))
        except FileNotFoundError:
            return ""

    def _write(self, line: bytes) -> None:
        self._show(line)
        self._record(line)

    def _record(self, line: bytes) -> None:
        self.log.write(_last_state(line))
        self.log.flush()

    def _show(self, data: bytes) -> None:
        # The terminal may be gone; the training must not die of it.
        with contextlib.suppress(OSError):
            self.terminal.write(data)
            self.terminal.flush()


def _last_state(line: bytes) -> bytes:
    """A finished line as it looks in the end: what follows its last carriage return."""
    return line.rstrip(b"\r\n").rpartition(b"\r")[2] + b"\n"
