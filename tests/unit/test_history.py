"""What a training says, to nobody."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lucavirus import patience
from lucavirus.errors import UserError
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


def begin(work: Path, kept_bytes: int = 0, first_update: int = 0, asked: Callable[[], bool] = lambda: False) -> History:
    return History(work, ALONE, kept_bytes, first_update, asked)


def test_nobody_has_to_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Closed())
    history = begin(tmp_path)
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
    first = begin(tmp_path)
    first.say("begun")
    first.event({"event": "train", "update": 4, "step": 16}, {"loss": 2.0})
    kept = first.flushed_size()
    first.event({"event": "train", "update": 5, "step": 20}, {})
    second = begin(tmp_path, kept, 4)
    second.say("going on")
    second.close()
    assert [json.loads(line)["update"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4]
    assert [line[20:] for line in (tmp_path / "train.log").read_text().splitlines()] == ["begun", "going on"]
    assert boards == [1, ("loss", 2.0, 4), 5]
    second.say("ended")
    assert (tmp_path / "train.log").read_text().endswith(" ended\n")
    (tmp_path / "metrics.jsonl").unlink()  # nothing is made up for what is gone
    begin(tmp_path, kept, 4).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    (told,) = [line[20:] for line in (tmp_path / "train.log").read_text().splitlines()[3:]]
    assert told == f"warning: lines of {tmp_path}/metrics.jsonl, written before this checkpoint, are gone"


def test_a_line_that_somebody_has_cut_short_is_not_gone_on_from(tmp_path: Path) -> None:
    first = begin(tmp_path)
    for update in (1, 2):
        first.event({"event": "train", "update": update}, {})
    kept, path = first.flushed_size(), tmp_path / "metrics.jsonl"
    with path.open("r+b") as file:
        file.truncate(kept - 5)
    second = begin(tmp_path, kept, 2)
    second.event({"event": "train", "update": 3}, {})
    second.close()
    assert [json.loads(line)["update"] for line in path.read_text().splitlines()] == [1, 3]
    assert (tmp_path / "train.log").read_text().count("are gone") == 1


@pytest.mark.parametrize("later", [3, 40])
def test_a_history_that_was_deleted_holds_no_update_twice(tmp_path: Path, later: int) -> None:
    """Begun anew, it is shorter or longer than it was at the checkpoint, from which the run goes on once more."""
    path, first = tmp_path / "metrics.jsonl", begin(tmp_path)
    for update in range(1, 11):
        first.event({"event": "train", "update": update}, {})
    kept = first.flushed_size()
    path.unlink()
    for _ in range(2):
        again = begin(tmp_path, kept, 10)
        for update in range(11, 11 + later):
            again.event({"event": "train", "update": update, "more": "x" * update}, {})
    assert [json.loads(line)["update"] for line in path.read_text().splitlines()] == list(range(11, 11 + later))
    begin(tmp_path, 10, 12).close()
    assert [json.loads(line)["update"] for line in path.read_text().splitlines()] == [11, 12]


def test_updates_that_are_done_again_are_not_told_twice(tmp_path: Path) -> None:
    """One skipped before the checkpoint stays, one after it will be skipped again; the last line was cut short."""
    at = Position(update=4, epoch=0, index=4, step=16)
    first = begin(tmp_path)
    for update in (3, 4):
        path = first.not_finite(replace(at, update=update), math.inf, {"gene_mask": math.nan}, ["a", "ü"])
    first.close()
    with open(path, "ab") as file:
        file.write(b'a line of another\xe4 program\n{"update": 1, "st')
    begin(tmp_path, 0, 4).close()
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "update": 4, "step": 16, "epoch": 0, "gradient_norm": "inf", "losses": {"gene_mask": "nan"},
        "samples": ["a", "ü"],
    }  # fmt: skip


def test_what_json_has_no_word_for_is_null(tmp_path: Path) -> None:
    history = begin(tmp_path)
    history.event({"event": "dev", "update": 1, "loss": math.nan, "losses": {"a": -math.inf, "b": 1.5}}, {})
    history.close()

    def no_number(word: str) -> None:
        raise AssertionError(word)

    found = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=no_number)
    assert (found["loss"], found["losses"]) == (None, {"a": None, "b": 1.5})
    replace_json(tmp_path / "a.json", {"x": [math.inf, (math.nan, 2)], "n": 3})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, [None, 2]], "n": 3}


@contextmanager
def no_file_longer_than(size: int) -> Iterator[Callable[[], None]]:
    """A write across the limit writes a part, the next one fails, as on a full disk; gives what lifts the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    lift = partial(resource.setrlimit, resource.RLIMIT_FSIZE, before)
    try:
        yield lift
    finally:
        lift()


def tell(history: History, file: str, update: int) -> None:
    if file == "metrics.jsonl":
        history.event({"event": "train", "update": update}, {})
    else:
        history.not_finite(Position(update - 1, 0, 0, 0), math.inf, {}, ["x" * 1000])


@pytest.mark.parametrize("file", ["metrics.jsonl", "non_finite.jsonl"])
@pytest.mark.parametrize("room_comes", [True, False])
def test_a_line_that_cannot_be_written_is_tried_again(
    room_comes: bool, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line is there whole and once; a training that is asked to end does not wait."""
    monkeypatch.setattr(patience, "PAUSES", (0, 0))
    monkeypatch.setattr("lucavirus.history.SummaryWriter", lambda *_, **__: SimpleNamespace(close=lambda: None))
    history = begin(tmp_path)
    tell(history, file, 1)
    path = tmp_path / file
    first = path.read_bytes()
    with no_file_longer_than(len(first) + 10) as lift:
        history._asked_to_end = (lambda: lift() or False) if room_comes else (lambda: True)  # type: ignore[func-returns-value]
        if room_comes:
            tell(history, file, 2)
        else:
            with pytest.raises(UserError, match="File too large") as caught:
                tell(history, file, 2)
            assert (caught.value.where, caught.value.hint) == (
                str(path), "make room, then start the same command again",
            )  # fmt: skip
            assert path.read_bytes() == first
            return
    history.close()
    assert path.read_bytes().startswith(first)
    assert [json.loads(line)["update"] for line in path.read_text().splitlines()] == [1, 2]
    warning = f"warning: {path}: cannot be written: File too large; it is tried again in 0 s"
    assert capsys.readouterr().err.splitlines() == [warning]
    assert (tmp_path / "train.log").read_text()[20:] == f"{warning}\n"


def test_a_log_that_cannot_be_written_hides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").mkdir()
    begin(tmp_path).say("begun")
    assert capsys.readouterr().err == "begun\n"


def test_what_tensorboard_cannot_be_told_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its events are begun anew from the next record on, as soon as that can be done."""
    full, told = {"disk": False}, list[Any]()

    class Board:
        def __init__(self, folder: str, purge_step: int) -> None:
            self._do("open", purge_step)

        def add_scalar(self, *point: Any) -> None:
            self._do(*point)

        def close(self) -> None:
            self._do("close")

        def _do(self, *what: Any) -> None:
            if full["disk"]:
                raise OSError("full")
            told.append(what)

    monkeypatch.setattr("lucavirus.history.SummaryWriter", Board)
    history = begin(tmp_path)
    for update in range(1, 6):
        full["disk"] = update in (2, 3, 5)
        history.event({"event": "train", "update": update}, {"loss": 1.0})
    history.close()
    full["disk"] = False
    assert told == [("open", 1), ("loss", 1.0, 1), ("open", 4), ("loss", 1.0, 4)]
    assert [json.loads(line)["update"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip
    warnings = capsys.readouterr().err.splitlines()
    assert (
        warnings == ["warning: TensorBoard's events cannot be written (full): some are missing; see metrics.jsonl"] * 3
    )
