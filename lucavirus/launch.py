"""Run a stage's command: its environment, its signals, its output and errors, and what follows from how it ended.

The launcher stands between Snakemake's shell and torchrun. It stays small and does not import torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from lucavirus import slurm
from lucavirus.claims import claimed_gpus
from lucavirus.errors import DONE_BEFORE, PREEMPTED, SAVED, UserError
from lucavirus.guard import EarlierStart, Owner, only_owner, only_start
from lucavirus.requeue import Ending, Requeue, TimeLimit, ending
from lucavirus.screen import Output

ROOT = Path(__file__).resolve().parent.parent
# The name may not be on PATH; USR1 is the schedulers' warning, which torchrun by itself would die of; saving a large
# model takes longer than the 30 s that torchrun grants; it would leave a folder for logs, empty, in /tmp at each start.
TORCHRUN = (
    *("-m", "lucavirus.torchrun"),
    "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    f"--log-dir={os.devnull}",
)
# Two saves of 12.6 GB, the one under way and the last, at 150 MB/s with their reading back.
SHUTDOWN = "--shutdown-timeout=300"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Set unless the user does (docs/benchmarks.md). Threads that wait for each other sleep after a while: to spin for
# milliseconds, OpenMP's default, slows a training many times over when anything else runs on its cores; to sleep at
# once costs it, when it is alone, a fifth (a third, if it is small) for being woken. Large tensors are on huge
# pages where there are. oneDNN and, above it, torch's wrapper (LRU_...) each keep code for up to 1,024 shapes of
# products, a megabyte or more each, and a training has thousands of shapes; made anew it takes a fraction of a
# millisecond. Either one alone still keeps it.
TUNING = {
    "GOMP_SPINCOUNT": "5000", "THP_MEM_ALLOC_ENABLE": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "32",
}  # fmt: skip
# What a signal to end has to be followed by, where the stage itself says nothing.
UNTOLD_END = "ended by a signal before it was done; the same command does this step anew"
UNTOLD_END_OF_TRAINING = (
    "ended by a signal, without a word that all is saved: it had not begun, or was done, or was killed before it had "
    "saved; the same command goes on from the newest checkpoint"
)
REPLACED = "ended: a later start of this Slurm job waits, and does the stage anew"
POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0
PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGTERM,  # of which Python would print a traceback of each process
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGHUP: signal.SIGTERM,  # the terminal was closed
}
# srun itself kills its tasks at the others, with SIGKILL.
PASSED_ON_BY_SRUN = dict.fromkeys(PASSED_ON, signal.SIGUSR1)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def launch(command: Sequence[str], log: Path, guard: Path | None = None, gpus: int = 0) -> int:
    """Run the command until it ends and return its exit status (128 + n when signal n ended it).

    It starts only when no other start of the stage is going on; of a training, with `guard`, that is one that holds the
    run's work folder. Refused here, before torchrun, it takes no time. A training whose Snakemake has died gets time to
    save and end. With `gpus` it first waits for so many GPUs of this machine that no other stage holds.
    """
    parent = os.getppid()
    log.parent.mkdir(parents=True, exist_ok=True)
    # The job is ours to give back where the workflow has submitted it (rules/common.smk), not in a user's own.
    job = slurm.own_job() if "LUCAVIRUS_OWN_JOB" in os.environ else ""
    start = slurm.restarts(job) if job else ""
    # Beside the log, because ranks on other nodes do not share /tmp. An earlier start of the job may still be ending.
    errors = Path(f"{log.resolve()}.errors{start}")
    requeue = Requeue(Path(f"{log.resolve()}.restarts"), guard, job, start)
    with contextlib.ExitStack() as held:
        output = Output(sys.stdout.buffer, held.enter_context(log.open("ab", buffering=0)), errors)
        owner = None
        try:
            if guard:  # its first rank takes it for itself
                with only_owner(guard, patience=GRACE_SECONDS, job=job, look=True):
                    pass
            else:
                owner = held.enter_context(only_start(log, patience=GRACE_SECONDS, job=job))
            chosen = held.enter_context(claimed_gpus(gpus, output.say, parent))
        except UserError as error:
            output.say(f"error: {error}")
            if isinstance(error, EarlierStart):
                requeue.follow_up(Ending.CRASHED, output.say)
            return 1
        except KeyboardInterrupt:  # while it waited: nothing was started
            return 128 + signal.SIGINT
        errors.unlink(missing_ok=True)
        _set_process_option(PR_SET_CHILD_SUBREAPER, 1)
        child = _start(command, environment(command, errors) | chosen)
        watch = Watch(child, PASSED_ON_BY_SRUN if command[0] == "srun" else PASSED_ON, parent, owner)
        if not _follow(child, watch, output, TimeLimit(job if guard else "")):
            errors.unlink(missing_ok=True)
            requeue.follow_up(Ending.TIME_IS_OVER, output.say)
            _end_leftovers()
            return 1
        _end_leftovers()
        output.end(failed=child.returncode != 0)
        message = output.message()
        status = 0 if message == DONE_BEFORE else child.returncode
        if watch.stopped and status and not message:
            output.say(REPLACED if watch.replaced else UNTOLD_END_OF_TRAINING if guard else UNTOLD_END)
        # A job that is given back ends below, and its next start has another name for this file.
        errors.unlink(missing_ok=True)
        if not watch.replaced:  # else a start waits for our lock: of no use what Slurm, maybe out of reach, says
            requeue.follow_up(ending(status, message, told=watch.told_to_end), output.say)
    if message.startswith(SAVED) and status:  # torchrun turns the ranks' status into 1
        return PREEMPTED
    return status if status >= 0 else 128 - status


def program(command: Sequence[str]) -> list[str]:
    """The command with `torchrun` and `python` replaced by those of this interpreter, below `srun` on each node."""
    if command[0] == "torchrun":
        return [sys.executable, *TORCHRUN, SHUTDOWN, *command[1:]]
    if command[0] == "srun":
        return slurm.across_nodes(command, sys.executable)
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
        "PYTHONUTF8": "1",  # what stages leave each other is UTF-8, whatever the user's locale
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


def _follow(child: subprocess.Popen[bytes], watch: Watch, output: Output, limit: TimeLimit) -> bool:
    """Pass on the child's output, and signals to it, until it has ended; False when the time limit comes before."""
    stream = _stdout(child)
    while child.poll() is None:
        watch.check()
        if limit.is_over():
            return False
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
    return True


def _stdout(child: subprocess.Popen[bytes]) -> IO[bytes]:
    assert child.stdout is not None
    return child.stdout


class Watch:
    """Passes the first signal on to the child, and stops it when nobody waits for it any more.

    That is when Snakemake has died (the rules `exec` the launcher), or when a later start of the Slurm job waits.
    """

    def __init__(
        self, child: subprocess.Popen[bytes], passed_on: Mapping[signal.Signals, signal.Signals], parent: int,
        owner: Owner | None = None,
    ) -> None:  # fmt: skip
        """Take over the signals of this process; `passed_on` says which signal the child gets for each.

        `parent` is the process that started this one, `owner` holds the stage's lock (a training looks by itself).
        """
        self.child, self.passed_on, self.parent, self.owner = child, passed_on, parent, owner
        self.stopped = self.told_to_end = self.replaced = False
        for number in passed_on:
            # Whoever typed nohup wants the training to outlive the terminal.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._forward)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.told_to_end |= number != signal.SIGUSR1
        if not self.stopped:  # the third one, while its ranks save, leaves torchrun waiting for ever
            self.child.send_signal(self.passed_on[signal.Signals(number)])
        self.stopped = True

    def check(self) -> None:
        """Stop the child, once, when nobody waits for its result any more."""
        if self.stopped:
            return
        self.replaced = self._later_start_waits()
        if self.replaced or os.getppid() != self.parent:
            self._forward(signal.SIGTERM, None)

    def _later_start_waits(self) -> bool:
        try:
            return self.owner is not None and self.owner.asked_to_end()
        except UserError:  # it has begun already, because the file system has no locks
            return True


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
