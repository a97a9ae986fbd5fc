"""One trainer a run at a time, told by a lock with its owner's name and job; signals that ask it to save and end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Self

from lucavirus import slurm
from lucavirus.errors import UserError

# States of a job in which its processes may still be there; one that waits in the queue again has none.
_HOLDING = ("RUNNING", "COMPLETING", "STOPPED", "SUSPENDED")
# What a file system without locks answers (some mounts of Lustre and NFS).
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_UNWRITABLE = (
    "whose folder is it, and is its disk mounted for writing and not full? `work` may be a link to another one"
)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def only_owner(work: Path, *, patience: float = 0.0, ask_slurm: bool = True) -> Iterator[None]:
    """Hold the lock of a run's work folder; the kernel frees a dead owner's.

    Locks may not reach other nodes: the owner's Slurm job, while it lives, holds the folder as well (unless not to
    `ask_slurm`). Waits `patience` seconds for an owner that may be about to end; then raises UserError with its host
    and pid, or its job.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = open(work / "lock", "a+")  # noqa: SIM115 (closed below)
    except (FileExistsError, NotADirectoryError) as error:
        hint = "`work` may be a link: is the disk that it leads to mounted?"
        raise UserError("cannot be made a folder", where=str(error.filename), hint=hint) from None
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(error.filename), hint=_UNWRITABLE) from None
    with lock:
        deadline = time.monotonic() + patience
        while owner := _owner(lock) if not _taken(lock) else _owning_job(lock) if ask_slurm else "":
            if time.monotonic() >= deadline:
                raise UserError(
                    f"another training of this run is going on: {owner}",
                    where=str(work),
                    hint="wait for it, or end it (it saves first); two runs side by side need two names",
                )
            time.sleep(0.2)
        me = {"host": socket.gethostname(), "pid": os.getpid(), "job": slurm.own_job(), "since": time.strftime("%F %T")}
        try:
            lock.truncate(0)
            os.write(lock.fileno(), json.dumps(me).encode())  # past the buffer, which closing would write once more
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror})", where=lock.name, hint=_UNWRITABLE) from None
        try:
            yield
        finally:
            lock.truncate(0)


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # the owner's job must do
        if error.errno not in NO_LOCKS:
            raise
    return True


def _owning_job(lock: IO[str]) -> str:
    """The Slurm job that an unlocked folder still belongs to, in words; empty where there is none."""
    lock.seek(0)
    try:
        number = str(json.loads(lock.read())["job"])
    except (ValueError, KeyError, TypeError):
        return ""
    job = slurm.living(number) if number and number != slurm.own_job() else None
    return str(job) if job and job.state in _HOLDING else ""


def _owner(lock: IO[str]) -> str:
    lock.seek(0)
    try:
        owner = json.loads(lock.read())
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "by an unknown process"


class StopRequest:
    """Remembers that a signal came; the training looks at `came` between updates, so that nothing is torn."""

    def __init__(self) -> None:
        self.came = self.time_limit = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        self.time_limit |= number == signal.SIGUSR1

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Listen to SIGTERM, SIGINT and SIGUSR1 for a while."""
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, old in before.items():
                signal.signal(number, old)
