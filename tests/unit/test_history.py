"""What a training says, to nobody."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lucavirus.files import replace_json
from lucavirus.history import History
from lucavirus.plan import Position
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
    second.say("ended")
    assert (tmp_path / "train.log").read_text().endswith(" ended\n")
    (tmp_path / "metrics.jsonl").unlink()  # nothing is made up for what is gone
    History(tmp_path, ALONE, kept, 4).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_updates_that_are_done_again_are_not_told_twice(tmp_path: Path) -> None:
    """One skipped before the checkpoint stays, one after it will be skipped again; the last line was cut short."""
    at = Position(update=4, epoch=0, index=4, step=16)
    first = History(tmp_path, ALONE, 0, 0)
    for update in (3, 4):
        path = first.not_finite(replace(at, update=update), math.inf, {"gene_mask": math.nan}, ["a", "ü"])
    first.close()
    with open(path, "a") as file:
        file.write('{"update": 1, "st')
    History(tmp_path, ALONE, 0, 4).close()
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "update": 4, "step": 16, "epoch": 0, "gradient_norm": "inf", "losses": {"gene_mask": "nan"},
        "samples": ["a", "ü"],
    }  # fmt: skip


def test_what_json_has_no_word_for_is_null(tmp_path: Path) -> None:
    history = History(tmp_path, ALONE, 0, 0)
    history.event({"event": "dev", "update": 1, "loss": math.nan, "losses": {"a": -math.inf, "b": 1.5}}, {})
    history.close()

    def no_number(word: str) -> None:
        raise AssertionError(word)

    found = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=no_number)
    assert (found["loss"], found["losses"]) == (None, {"a": None, "b": 1.5})
    replace_json(tmp_path / "a.json", {"x": [math.inf, (math.nan, 2)], "n": 3})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, [None, 2]], "n": 3}
