"""Which weights count as the best ones, without a training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lucavirus.train import Trainer


@pytest.mark.parametrize(("losses", "best"), [((3.0, 2.0, 2.5), 2), ((None, None, None), None), ((None, 2.0, 3.0), 2)])
def test_the_best_weights_have_the_lowest_loss_that_is_known(
    losses: tuple[float | None, ...], best: int | None
) -> None:
    saved: list[int] = []
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(best=None, update=0, evaluated=0), model=None, _window_start=0.0,
        prepared=SimpleNamespace(dev=[1], test=[]), plan=SimpleNamespace(position=lambda u: SimpleNamespace(step=u)),
        checkpoints=SimpleNamespace(save_best=lambda _, found: saved.append(found["update"])),
        _evaluate_on=lambda *_, **__: losses[trainer.state.update - 1],
    )  # fmt: skip
    for trainer.state.update in (1, 2, 3):
        Trainer._evaluate(trainer)
        assert trainer.state.evaluated == trainer.state.update
    assert (trainer.state.best and trainer.state.best["update"]) == best
    assert saved[-1:] == ([best] if best else [])


def test_no_loss_is_known_where_nothing_has_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lucavirus.train.evaluate_split", lambda *_, **__: {"loss": 0.0, "tasks": {}})
    trainer: Any = SimpleNamespace(
        model=None, run=None, prepared=SimpleNamespace(classes={}), compute=None, ranks=None,
        history=SimpleNamespace(say=said.append),
    )  # fmt: skip
    assert Trainer._evaluate_on(trainer, "dev", [], metrics=False) is None  # type: ignore[arg-type]
    assert said == ["warning: no sequence of dev has a label of the run's tasks; no loss is known there"]
