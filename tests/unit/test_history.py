"""What a training says, to nobody."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lucavirus.history import History
from tests.tiny import ALONE


class Closed:
    """A pipe whose reader has died."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_nobody_has_to_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Closed())
    history = History(tmp_path, ALONE, 0, 0)
    history.say("begun")
    history.start_bar(0, 9)
    history.advance(1.0, 0.1, 5.0)
    history.event({"event": "save", "update": 1}, {})
    history.close()
    assert "begun" in (tmp_path / "train.log").read_text()
    assert '"event": "save"' in (tmp_path / "metrics.jsonl").read_text()
