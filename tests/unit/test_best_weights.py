"""What a training makes of an evaluation and of a window of updates, without a training."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from lucavirus.state import PLACE, STATISTICS, State
from lucavirus.train import Trainer


@pytest.mark.parametrize(("losses", "best"), [((3.0, 2.0, 2.5), 2), ((None, None, None), None), ((None, 2.0, 3.0), 2)])
def test_the_best_weights_have_the_lowest_loss_that_is_known(
    losses: tuple[float | None, ...], best: int | None
) -> None:
    saved: list[int] = []
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(best=None, update=0, evaluated=0), model=None,
        prepared=SimpleNamespace(dev=[1], test=[]), plan=SimpleNamespace(position=lambda u: SimpleNamespace(step=u)),
        checkpoints=SimpleNamespace(save_best=lambda _, found: saved.append(found["update"])),
        _evaluate_on=lambda *_, **__: losses[trainer.state.update - 1],
    )  # fmt: skip
    for trainer.state.update in (1, 2, 3):
        Trainer._evaluate(trainer)
        assert trainer.state.evaluated == trainer.state.update
    assert (trainer.state.best and trainer.state.best["update"]) == best
    assert saved[-1:] == ([best] if best else [])


def test_a_loss_that_is_not_finite_is_not_the_best_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"loss": float("nan"), "tasks": {"gene_mask": {"loss": float("nan")}}}
    monkeypatch.setattr("lucavirus.train.evaluate_split", lambda *_, **__: result)
    trainer: Any = SimpleNamespace(
        model=None, run=None, prepared=SimpleNamespace(classes={}), compute=None, ranks=None, state=State(),
        history=SimpleNamespace(say=lambda _: None, event=lambda *_: None), _record=lambda *_: {},
    )  # fmt: skip
    assert Trainer._evaluate_on(trainer, "dev", [], metrics=False) is None  # type: ignore[arg-type]


def test_the_speed_is_that_of_all_updates_since_the_last_record_also_those_before_a_start() -> None:
    window = [0.0] * len(STATISTICS)
    window[PLACE["sequences"]], window[PLACE["tokens"]], window[PLACE["loss"]] = 2.0, 100.0, 6.0
    events: list[dict[str, Any]] = []
    trainer: Any = SimpleNamespace(
        state=State(**json.loads(json.dumps(asdict(State(window=window, window_seconds=4.0))))),
        history=SimpleNamespace(event=lambda record, _: events.append(record)), run=SimpleNamespace(logging_steps=8),
        _record=lambda event, loss, losses: {"loss": loss, "lr": 0.1}, _log_is_due=lambda _: False,
    )  # fmt: skip
    Trainer._log(trainer, norm=1.0)
    assert events == [{"loss": 3.0, "lr": 0.1, "tokens_per_s": 25.0}]
    assert trainer.state.window_seconds == 0 == sum(trainer.state.window)


def test_no_loss_is_known_where_nothing_has_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lucavirus.train.evaluate_split", lambda *_, **__: {"loss": 0.0, "tasks": {}})
    trainer: Any = SimpleNamespace(
        model=None, run=None, prepared=SimpleNamespace(classes={}), compute=None, ranks=None,
        history=SimpleNamespace(say=said.append),
    )  # fmt: skip
    assert Trainer._evaluate_on(trainer, "dev", [], metrics=False) is None  # type: ignore[arg-type]
    assert said == ["warning: no sequence of dev has a label of the run's tasks; no loss is known there"]
