"""One trainer a run at a time, told by a lock with its owner's name; and signals that ask it to save and end."""

from __future__ import annotations

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
from typing import IO

from lucavirus.errors import UserError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def only_owner(work: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a run's work folder; the kernel frees a dead owner's.

    Waits `patience` seconds for an owner that may be about to end; then raises UserError with its host and pid.
    """
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "a+") as lock:
        deadline = time.monotonic() + patience
        while not _taken(lock):
            if time.monotonic() >= deadline:
                raise UserError(
                    f"another training of this run is going on: {_owner(lock)}",
                    where=str(work),
                    hint="wait for it, or end it (it saves first); two runs side by side need two names",
                )
            time.sleep(0.2)
        lock.truncate(0)
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%F %T")}
        lock.write(json.dumps(me))
        lock.flush()
        yield


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
        self.came = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to SIGTERM, SIGINT and SIGUSR1 for a while."""
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)
