"""One task at a time in a thread, while its caller goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self


class Background:
    """Runs tasks in a thread, one after the other; the next one is taken when the one before is done."""

    def __init__(self) -> None:
        self._pool, self._pending = ThreadPoolExecutor(1), list[Future[object]]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self.wait()

    def run(self, task: Callable[..., object], *arguments: Any) -> None:
        """Start a task; waits for the one before, and raises what that raised."""
        self.wait()
        self._pending.append(self._pool.submit(task, *arguments))

    def look(self) -> None:
        """Raise what the last task raised, if it has ended."""
        if self._pending and self._pending[0].done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing runs; raises what the last task raised."""
        while self._pending:
            self._pending.pop().result()
