"""The one error a user sees: what is wrong, where, and what to do."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterable

# Exit status of a stage that was asked to end, saved its work, and goes on at the next start (EX_TEMPFAIL).
PREEMPTED = 75
# How the message of a stage begins that was asked to end and has saved.
SAVED = "preempted"
# The whole message of one that was asked to end when nothing was left to do: torchrun fails of the signal all the same.
DONE_BEFORE = "all was done when the signal came"
# In that of a stage that was asked to end by SIGUSR1, which is how schedulers are told to warn.
TIME_LIMIT = "(SIGUSR1 came: the time limit is near)"
# What the system says when no more can be written, wherever that happens.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Preempted(Exception):
    """A stage was asked to end before it was done; all its work is saved."""


class UserError(Exception):
    """A mistake the user can mend.

    `what` is one sentence, `where` a `file:line` or the name of a setting, `hint` what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  What to do: {self.hint}" if self.hint else head


def close_to(name: str, known: Iterable[str]) -> str:
    """Give '; did you mean X?' where one of the known names is close to this one, else nothing."""
    guess = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {guess[0]}?" if guess else ""


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main`: a UserError or an unwritable disk is one message and exit status 1, Preempted 75.

    The message also goes to the file that the launcher names in `LUCAVIRUS_ERROR_FILE`, so that the launcher
    can show it once, whatever number of ranks met the same problem.
    """
    try:
        main()
    except Preempted as stop:
        report(str(stop))
        sys.exit(PREEMPTED)
    except UserError as error:
        report(f"error: {error}")
        sys.exit(1)
    except OSError as error:
        why = next((os.strerror(number) for number in _UNWRITABLE if _is(number, error)), "")
        if not why:
            raise
        what, where = f"cannot be written: {why}", str(error.filename or "a file")
        hint = "make room (`df -h` tells which disk is full, `quota` what is yours), then start the same command again"
        if _is(errno.EROFS, error):
            hint = "have the disk mounted for writing, then start the same command again"
        report(f"error: {UserError(what, where=where, hint=hint)}")
        sys.exit(1)


def _is(number: int, error: OSError) -> bool:
    """True where the system gave this number; what copies a folder tells it in words only."""
    return error.errno == number or isinstance(error, shutil.Error) and os.strerror(number) in str(error)


def report(text: str) -> None:
    """Tell the launcher, which shows it once at the end; without one it is shown here."""
    file_name = os.environ.get("LUCAVIRUS_ERROR_FILE")
    if file_name:
        # The disk may be full, and that the very error.
        with contextlib.suppress(OSError), open(file_name, "a") as file:
            file.write(f"{text}\n")
            file.flush()
            return
    print(text, file=sys.stderr)
