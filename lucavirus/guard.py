"""One trainer a run, one start of a stage at a time, by a lock with its owner's name; signals to save and end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
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
# For an earlier start of the same job, whose node Slurm has lost and which may still train there; how often an owner
# looks whether it is asked to end.
_EARLIER_SECONDS, _LOOK_SECONDS = 600.0, 10.0


class EarlierStart(UserError):
    """What holds a lock is an earlier start of our own Slurm job; it does not end."""


class Owner:
    """Who holds a lock, told in its first line; whoever asks it to end adds another."""

    def __init__(self, lock: Path) -> None:
        self.lock, self.job = lock, slurm.own_job()
        me = {"host": socket.gethostname(), "pid": os.getpid(), "job": self.job, "since": time.strftime("%F %T")}
        self.line = json.dumps(me)
        self._look_at = time.monotonic() + _LOOK_SECONDS

    def asked_to_end(self) -> bool:
        """True where a later start of our Slurm job waits for the lock; looks from time to time only.

        Raises UserError where it has taken it, because the file system has no locks: nothing is ours any more.
        """
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + _LOOK_SECONDS
        try:
            first, *more = self.lock.read_text().split("\n")
        except OSError:  # somebody's rm, or a file server that is away: no training ends of a look
            return False
        if first != self.line and self.job and _told(first).get("job") == self.job:
            hint = "nothing: that one goes on"
            raise UserError("another start has taken it over", where=str(self.lock.parent), hint=hint)
        return first == self.line and bool(more)


@contextmanager
def only_owner(
    folder: Path, *, patience: float = 0.0, ask_slurm: bool = True, job: str = "", look: bool = False,
    name: str = "lock", what: str = "training of this run", where: Path | None = None,
) -> Iterator[Owner]:  # fmt: skip
    """Hold the lock of a run's work folder, or another lock; the kernel frees a dead owner's.

    `name` is the lock's file in the folder, `what` is what it lets nobody begin, `where` is named in errors. Locks may
    not reach other nodes: the owner's Slurm job, while it lives, holds the folder as well (unless not to `ask_slurm`).
    Waits `patience` seconds for an owner that may be about to end; then raises UserError with its host and pid, or its
    job. An earlier start of `job`, the Slurm job that this process has for itself, is asked to end and waited for
    longer. Who only has a `look` leaves no name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / name, "a+")  # noqa: SIM115 (closed below)
    except (FileExistsError, NotADirectoryError) as error:
        hint = "`work` may be a link: is the disk that it leads to mounted?"
        raise UserError("cannot be made a folder", where=str(error.filename), hint=hint) from None
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(error.filename), hint=_UNWRITABLE) from None
    with lock:
        deadline, earlier = time.monotonic() + patience, False
        while owner := _owner(lock) if not _taken(lock) else _owning_job(lock) if ask_slurm else "":
            if job and not earlier and _told(_first_line(lock)).get("job") == job:
                deadline, earlier = time.monotonic() + _EARLIER_SECONDS, True
                with suppress(OSError):  # the disk may be full: then it is only waited for
                    os.write(lock.fileno(), b"\na later start of the job waits")
            if time.monotonic() >= deadline:
                raise (EarlierStart if earlier else UserError)(
                    f"another {what} is going on: {owner}",
                    where=str(where or folder),
                    hint="wait for it, or end it (a training saves first); two runs side by side need two names",
                )
            time.sleep(0.2)
        me = Owner(folder / name)
        if look:  # nor takes away that of an owner whose lock does not reach us
            yield me
            return
        try:
            lock.truncate(0)
            os.write(lock.fileno(), me.line.encode())  # past the buffer, which closing would write once more
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror})", where=lock.name, hint=_UNWRITABLE) from None
        try:
            yield me
        finally:
            if _first_line(lock).rstrip("\n") == me.line:  # not that of a later start, where there are no locks
                lock.truncate(0)


def stage_lock(log: Path) -> Path:
    """The lock of a stage, which is known by its log."""
    return log.with_name(f".{log.name}.lock")


def only_start(
    log: Path, *, patience: float, ask_slurm: bool = True, job: str = "", look: bool = False
) -> AbstractContextManager[Owner]:
    """Hold the lock of a stage, because two starts of it would write the same files; see only_owner."""
    lock = stage_lock(log)
    return only_owner(
        lock.parent, patience=patience, ask_slurm=ask_slurm, job=job, look=look,
        name=lock.name, what="start of this stage", where=log,
    )  # fmt: skip


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
    number = str(_told(_first_line(lock)).get("job", ""))
    job = slurm.living(number) if number and number != slurm.own_job() else None
    return str(job) if job and job.state in _HOLDING else ""


def _owner(lock: IO[str]) -> str:
    owner = _told(_first_line(lock))
    if not {"pid", "host", "since"} <= owner.keys():
        return "by an unknown process"
    return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"


def _told(line: str) -> dict[str, object]:
    """What an owner has written about itself; nothing where it has not yet, or no more."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _first_line(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.readline()


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
