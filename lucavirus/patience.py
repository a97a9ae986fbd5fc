"""Trying again what could not be written: someone makes room, a file server comes back."""

from __future__ import annotations

import time
from collections.abc import Callable

from lucavirus.errors import UserError

# Seconds after which it is tried again.
PAUSES: tuple[float, ...] = (10, 30, 60, 120, 300)


def patiently(write: Callable[[], object], say: Callable[[str], object], asked_to_end: Callable[[], bool]) -> None:
    """Write, and again after each of PAUSES where that raised UserError; raises what the last time raised.

    Each failure is told through `say`. Whoever is asked to end has no time for that: then once more, at once.
    """
    for pause in PAUSES:
        try:
            write()
            return
        except UserError as error:
            if asked_to_end():
                raise
            say(f"warning: {error.where}: {error.what}; it is tried again in {pause} s")
        again = time.monotonic() + pause
        while time.monotonic() < again and not asked_to_end():
            time.sleep(0.1)
    write()
