"""One trainer a run at a time, and signals that ask it to save and end."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from lucavirus.distributed import Ranks
from lucavirus.errors import UserError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def only_trainer(work: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the lock of the run's work folder on the first rank; a dead owner's lock is free by itself."""
    if not ranks.first:
        yield
        return
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError("another training of this run is going on", where=str(work),
                            hint="wait for it or end it; two runs side by side need two names") from error  # fmt: skip
        yield


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
