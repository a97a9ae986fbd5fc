"""The output of a stage's processes: on the screen and in a log, a reported error once instead of torchrun's noise."""

from __future__ import annotations

import contextlib
import re
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

# What torchrun prints once a rank has failed or a signal has come: its own log lines, then a traceback and a table.
NOISE = re.compile(rb"(\[rank\d+\]: ?)?([WE]\d{4} \d\d:\d\d:\d\d|Traceback \(most recent call last\))")


class Output:
    """The command's output: raw on the terminal, finished lines in the log, without torchrun's noise on a UserError."""

    def __init__(self, terminal: BinaryIO, log: RawIOBase, errors: Path) -> None:
        """Write to both; `log` is not buffered, and `errors` has text as soon as a process has reported a UserError."""
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
            self.line = rest[max(rest.rfind(b"\r", 0, -1), 0) :]  # the last one may belong to a line end
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
        with contextlib.suppress(OSError):  # the disk of the log may be full
            self.log.write(_last_state(line))

    def _show(self, data: bytes) -> None:
        # The terminal may be gone; the training must not die of it.
        with contextlib.suppress(OSError):
            self.terminal.write(data)
            self.terminal.flush()


def _last_state(line: bytes) -> bytes:
    """A finished line as it looks in the end: what follows its last carriage return."""
    return line.rstrip(b"\r\n").rpartition(b"\r")[2] + b"\n"
