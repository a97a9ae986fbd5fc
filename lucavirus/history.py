"""What the first rank of a training says while it runs: metrics.jsonl, TensorBoard events, log, progress bar."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.files import replace_text, to_json
from lucavirus.patience import patiently
from lucavirus.plan import Position

# A whole line of metrics.jsonl, or of non_finite.jsonl.
_LINE = re.compile(rb'^{.*?"update": (\d+),.*}\n', re.MULTILINE)

# The launcher that shows our lines may have died, or the disk be full; a training must not die of that.
_WHOEVER_READS_IT = suppress(OSError)


class History:
    """Writes on the first rank and is silent on the others.

    `kept_bytes` is the length of metrics.jsonl at the checkpoint that the run goes on from, at `first_update`: what was
    written after it will be written again, so it is cut off. Where no line can be added, the training waits some
    minutes for room, unless it is `asked_to_end`.
    """

    def __init__(
        self, work: Path, ranks: Ranks, kept_bytes: int, first_update: int, asked_to_end: Callable[[], bool]
    ) -> None:
        self.path = work / "metrics.jsonl"
        self._first, self._asked_to_end = ranks.first, asked_to_end
        self._bar: tqdm[Any] | None = None
        if not self._first:
            return
        found = self.path.read_bytes() if self.path.exists() else b""
        kept = found[:kept_bytes]
        changed = len(kept) < kept_bytes or kept != _lines_until(first_update, kept)
        if changed:  # cut short, deleted or damaged: its bytes are no longer those that the checkpoint has counted
            _keep_until(first_update, self.path, found)
            self.say(f"warning: lines of {self.path}, written before this checkpoint, are gone")
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - open for the whole run
        if not changed:
            self._file.truncate(kept_bytes)
        if self._skips.exists():
            _keep_until(first_update, self._skips, self._skips.read_bytes())
        self._board: SummaryWriter | None = _open_board(work, first_update + 1)

    def flushed_size(self) -> int:
        """Bytes of metrics.jsonl so far, all of them on disk; 0 on other ranks."""
        if not self._first:
            return 0
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def say(self, text: str) -> None:
        """A line for people: on the screen above the progress bar, and in the trainer's own log; also after the end."""
        if self._first:
            # Each by itself: the disk may be full, and that be the very text.
            with _WHOEVER_READS_IT, open(self.path.with_name("train.log"), "a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%F %T')} {text}\n")
            with _WHOEVER_READS_IT:
                tqdm.write(text, file=sys.stderr)

    def event(self, record: dict[str, Any], scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl, and scalars for TensorBoard at the record's update."""
        if not self._first:
            return
        self._add(self._file, to_json({**record, "time": round(time.time(), 3)}))
        with self._whatever_happens_to_the_board():
            self._board = self._board or _open_board(self.path.parent, record["update"])
            for name, value in scalars.items():
                self._board.add_scalar(name, value, record["update"])

    def not_finite(self, at: Position, norm: float, losses: dict[str, float], samples: list[str]) -> Path:
        """Write down the update after `at`, whose gradient is not finite, with the ids of its samples."""
        if self._first:
            # JSON has no word for such numbers.
            told = {"gradient_norm": repr(norm), "losses": {task: repr(loss) for task, loss in losses.items()}}
            place = {"update": at.update + 1, "step": at.step, "epoch": at.epoch}
            with open(self._skips, "a+b", buffering=0) as file:
                self._add(file, json.dumps({**place, **told, "samples": samples}))
        return self._skips

    @contextmanager
    def _whatever_happens_to_the_board(self) -> Iterator[None]:
        """It is a copy: where it cannot be written the training goes on, and it is opened anew."""
        try:
            yield
        except OSError as error:
            self._board = None
            self.say(f"warning: TensorBoard's events cannot be written ({error}): some are missing; see metrics.jsonl")

    def _add(self, file: FileIO, line: str) -> None:
        patiently(lambda: _append(file, f"{line}\n".encode()), self.say, self._asked_to_end)

    @property
    def _skips(self) -> Path:
        return self.path.with_name("non_finite.jsonl")

    def start_bar(self, done: int, total: int) -> None:
        """Show the progress bar, counted in updates."""
        if self._first:
            with _WHOEVER_READS_IT:
                self._bar = tqdm(initial=done, total=total, unit="update", file=sys.stderr, mininterval=1.0, ncols=110)

    def advance(self, loss: float, rate: float, tokens_per_s: float) -> None:
        """Move the progress bar on by one update."""
        if self._bar is not None:
            shown = f"loss {loss:.3f} lr {rate:.2e} {tokens_per_s:,.0f} tokens/s"
            self._bar.set_postfix_str(shown, refresh=False)
            with _WHOEVER_READS_IT:
                self._bar.update()

    def close(self) -> None:
        """Flush everything to disk."""
        if not self._first:
            return
        if self._bar is not None:
            with _WHOEVER_READS_IT:
                self._bar.close()
        with self._whatever_happens_to_the_board():
            if self._board:
                self._board.close()
        self.flushed_size()
        self._file.close()


def _open_board(work: Path, first_update: int) -> SummaryWriter:
    """TensorBoard's events, anew from an update on."""
    return SummaryWriter(str(work / "tensorboard"), purge_step=first_update)


def _lines_until(update: int, text: bytes) -> bytes:
    """The whole lines about updates up to this one: a fault may have cut one short, later updates are done again."""
    return b"".join(line[0] for line in _LINE.finditer(text) if int(line[1]) <= update)


def _keep_until(update: int, path: Path, text: bytes) -> None:
    replace_text(path, _lines_until(update, text).decode(errors="replace"))


def _append(file: FileIO, line: bytes) -> None:
    """Add a line to a file, whole or not at all. Raises UserError."""
    end, rest = file.seek(0, os.SEEK_END), line
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        file.truncate(end)
        hint = "make room, then start the same command again"
        raise UserError(f"cannot be written: {error.strerror}", where=str(file.name), hint=hint) from error
