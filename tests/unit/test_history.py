"""What a training says, to nobody."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


def test_a_history_goes_on_where_its_checkpoint_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boards: list[Any] = []
    monkeypatch.setattr(
        "lucavirus.history.SummaryWriter",
        lambda folder, purge_step: (
            boards.append(purge_step)
            or SimpleNamespace(add_scalar=lambda *point: boards.append(point), close=lambda: None)
        ),
    )
    first = History(tmp_path, ALONE, 0, 0)
    first.say("begun")
    first.event({"event": "train", "update": 4, "step": 16}, {"loss": 2.0})
    kept = first.flushed_size()
    first.event({"event": "train", "update": 5, "step": 20}, {})
    second = History(tmp_path, ALONE, kept, 4)
    second.say("going on")
    second.close()
    assert [json.loads(line)["update"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4]
    assert [line[20:] for line in (tmp_path / "train.log").read_text().splitlines()] == ["begun", "going on"]
    assert boards == [1, ("loss", 2.0, 4), 5]
    (tmp_path / "metrics.jsonl").unlink()  # nothing is made up for what is gone
    History(tmp_path, ALONE, kept, 4).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
