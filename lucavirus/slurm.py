"""What we ask of Slurm: who trains what, whether our job is being preempted, and to start our job again.

Imports no torch: Snakemake and the launcher ask too.
"""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lucavirus.errors import UserError

# Below the ports that the kernel gives to outgoing connections (32768 and above), so that none of those takes ours.
FIRST_PORT, PORTS = 20000, 12768
# A controller may be away for minutes; who was asked to save has that time before the limit.
PATIENCE_SECONDS, PAUSE_SECONDS = 600.0, 5.0
_QUERY_SECONDS = 60
# In what Slurm says where asking again is of no use: `Requested operation is presently disabled` and the like.
_REFUSALS = ("disabled", "denied", "not permitted", "Invalid job id")
_PLAIN_TIMES = {"SLURM_TIME_FORMAT": "standard"}  # a user may have set another one, which we could not read

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A job of the queue."""

    number: str
    state: str
    nodes: str

    def __str__(self) -> str:
        where = f" on {self.nodes}" if self.nodes else ""
        return f"Slurm job {self.number} ({self.state}{where})"


def own_job() -> str:
    """The number of the Slurm job that this process is in; empty outside of one."""
    return os.environ.get("SLURM_JOB_ID", "")


def _ask(*words: str) -> str:
    """What a Slurm command says. Raises UserError when it fails or does not answer."""
    try:
        done = subprocess.run(
            words, env=os.environ | _PLAIN_TIMES, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"no answer within {_QUERY_SECONDS} s", where=words[0]) from None
    except FileNotFoundError:  # inside an image
        raise UserError("is not installed here", where=words[0]) from None
    if done.returncode:
        raise UserError(done.stderr.strip() or f"exit status {done.returncode}", where=" ".join(words))
    return done.stdout


def _patiently(ask: Callable[[], T], patience: float | None = None) -> T:
    """What `ask` returns; asked again while it raises UserError, because a controller that is away may come back.

    Not where it answers that it will not.
    """
    deadline = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
    while True:
        try:
            return ask()
        except UserError as error:
            if time.monotonic() > deadline or any(word in error.what for word in _REFUSALS):
                raise
            time.sleep(PAUSE_SECONDS)


def queue() -> str:
    """The user's jobs, waiting or running: lines `id|state|nodes|comment|folder`; none without Slurm."""
    if shutil.which("squeue") is None:
        return ""
    return _ask("squeue", "--me", "--noheader", "--format=%i|%T|%N|%k|%Z")


def trainings(queue: str, run: str, folder: Path) -> list[Job]:
    """The jobs of a queue that train `run` and were submitted from `folder`; Snakemake's comments name rule and run."""
    jobs = []
    for line in queue.splitlines():
        fields = line.strip().split("|", 4)
        if len(fields) < 5:  # a comment of somebody's with a line break in it
            continue
        number, state, nodes, comment, at = fields
        if comment == f"rule_train_wildcards_{run}" and Path(at) == folder:
            jobs.append(Job(number, state, nodes))
    return jobs


def living(number: str) -> Job | None:
    """The job of this number if it still waits, runs or ends; None when it is gone, or this machine has no Slurm.

    Waits for a controller that does not answer, then raises UserError.
    """
    if shutil.which("squeue") is None:
        return None
    # Without --jobs: squeue fails on a number that it has forgotten.
    answer = _patiently(lambda: _ask("squeue", "--me", "--noheader", "--format=%i|%T|%N"))
    for line in answer.splitlines():
        found, state, nodes = line.strip().split("|")
        if found == number:
            return Job(number, state, nodes)
    return None


def fields(number: str) -> dict[str, str]:
    """What `scontrol show job` says of a job."""
    words = _ask("scontrol", "--oneliner", "show", "job", number).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def being_preempted(number: str, patience: float | None = None) -> bool:
    """True when Slurm is about to take a job's nodes away for a more urgent one; waits for an answer."""
    found = _patiently(lambda: fields(number), patience)
    return found.get("PreemptTime", "None") not in ("None", "Unknown", "N/A")


def end_time(number: str) -> float:
    """When Slurm will end the job, as seconds since the epoch; infinity without limit."""
    try:
        return datetime.datetime.fromisoformat(fields(number).get("EndTime", "Unknown")).timestamp()
    except ValueError:  # Unknown
        return float("inf")


def restarts(number: str) -> str:
    """How often Slurm has started the own job again: which start of it this one is.

    The environment is asked where Slurm does not answer, not first: that of who submitted the job may be left in it.
    """
    here = os.environ.get("SLURM_RESTART_COUNT", "0")
    try:
        return fields(number).get("Restarts", here)
    except UserError:
        return here


def later_start_runs(number: str, start: str) -> bool:
    """True where Slurm has started the job again since `start`, elsewhere, because it has lost that node.

    Raises UserError where it does not answer.
    """
    return _is_later(fields(number), start)


def _is_later(found: dict[str, str], start: str) -> bool:
    return int(found.get("Restarts", start)) > int(start)


def requeue(number: str, start: str) -> bool:
    """Give the own job back to the queue, which ends it here and starts it again later under the same number.

    Waits for a controller that does not answer. A job that was cancelled meanwhile stays cancelled. False where a later
    start than `start` runs: that one goes on. Raises UserError where Slurm refuses.
    """

    def once() -> bool:
        found = fields(number)
        if _is_later(found, start):
            return False
        if found.get("JobState") == "RUNNING":
            _ask("scontrol", "requeue", number)
        return True

    return _patiently(once)


def meeting_point(number: str) -> tuple[str, int]:
    """Host and port at which the job's nodes find each other; to be called on the first of them.

    Jobs that share a node have different numbers, so that they try different ports; what else holds a port is seen.
    """
    first = int(number) % PORTS
    for offset in range(PORTS):
        port = FIRST_PORT + (first + offset) % PORTS
        # Asked of the kernel: it may have been started without IPv6.
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        with socket.socket(family) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return socket.gethostname(), port
    raise UserError(f"no free port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}", where=socket.gethostname(),
                    hint="too many programs listen on this node; ss -ltnp lists them")  # fmt: skip


def across_nodes(command: Sequence[str], python: str) -> list[str]:
    """`srun OPTIONS torchrun ARGUMENTS` with our node program, which needs the meeting point, in torchrun's place."""
    at = list(command).index("torchrun")
    host, port = meeting_point(own_job())
    node = [python, "-m", "lucavirus.node", "--master-addr", host, "--master-port", str(port)]
    return [*command[:at], *node, *command[at + 1 :]]
