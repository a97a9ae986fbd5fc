"""What the first rank of a training says while it runs: metrics.jsonl, TensorBoard events, log, progress bar."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lucavirus.distributed import Ranks
from lucavirus.files import replace_text, to_json
from lucavirus.plan import Position

# The launcher that shows our lines may have died; a training must not, before it has saved.
_WHOEVER_READS_IT = contextlib.suppress(OSError)


class History:
    """Writes on the first rank and is silent on the others.

    `kept_bytes` is the length of metrics.jsonl at the checkpoint that the run goes on from: what was written after it
    will be written again, so it is cut off.
    """

    def __init__(self, work: Path, ranks: Ranks, kept_bytes: int, first_update: int) -> None:
        self.path = work / "metrics.jsonl"
        self._first = ranks.first
        self._bar: tqdm[Any] | None = None
        if not self._first:
            return
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - open for the whole run
        self._file.truncate(min(kept_bytes, self.path.stat().st_size))
        self._forget_skips_after(first_update)
        self._board = SummaryWriter(str(work / "tensorboard"), purge_step=first_update + 1)

    def flushed_size(self) -> int:
        """Bytes of metrics.jsonl so far, all of them on disk; 0 on other ranks."""
        if not self._first:
            return 0
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def say(self, text: str) -> None:
        """A line for people: on the screen above the progress bar, and in the trainer's own log; also after the end."""
        if self._first:
            with open(self.path.with_name("train.log"), "a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%F %T')} {text}\n")
            with _WHOEVER_READS_IT:
                tqdm.write(text, file=sys.stderr)

    def event(self, record: dict[str, Any], scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl, and scalars for TensorBoard at the record's update."""
        if not self._first:
            return
        self._file.write((to_json({**record, "time": round(time.time(), 3)}) + "\n").encode())
        for name, value in scalars.items():
            self._board.add_scalar(name, value, record["update"])

    def not_finite(self, at: Position, norm: float, losses: dict[str, float], samples: list[str]) -> Path:
        """Write down the update after `at`, whose gradient is not finite, with the ids of its samples."""
        if self._first:
            # JSON has no word for such numbers.
            told = {"gradient_norm": repr(norm), "losses": {task: repr(loss) for task, loss in losses.items()}}
            place = {"update": at.update + 1, "step": at.step, "epoch": at.epoch}
            with open(self._skips, "a", encoding="utf-8") as file:
                file.write(json.dumps({**place, **told, "samples": samples}) + "\n")
        return self._skips

    @property
    def _skips(self) -> Path:
        return self.path.with_name("non_finite.jsonl")

    def _forget_skips_after(self, update: int) -> None:
        """Updates that will be done again will be written down again."""
        if self._skips.exists():
            # Of lines that are whole: a fault may have cut one short.
            lines = re.finditer(r'^{"update": (\d+),.*}\n', self._skips.read_text(encoding="utf-8"), re.MULTILINE)
            replace_text(self._skips, "".join(line[0] for line in lines if int(line[1]) <= update))

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
        self._board.close()
        self.flushed_size()
        self._file.close()
