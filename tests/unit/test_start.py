"""What a start says where it does not do what one may have expected."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lucavirus.checkpoint import save_checkpoint
from lucavirus.config import Run
from lucavirus.start import _arrange, _early_end
from lucavirus.state import Checkpoints

AUTO = Run(max_epochs=12, max_steps="auto", final_learning_rate=1e-5)
GIVEN = Run(max_epochs=12, max_steps=30, warmup_steps=0)
END = "warning: with max_steps {} the run ends after {} of 12 epochs"
WHY = "; `auto` was computed at the first start, for its epochs: more of them need a run of another name"


@pytest.mark.parametrize(
    ("run", "last", "told"),
    [(AUTO, 24, [END.format(24, "6.00") + WHY]), (GIVEN, 30, [END.format(30, "7.50")]), (AUTO, 48, [])],
)
def test_a_schedule_that_ends_before_the_epochs_is_told(run: Run, last: int, told: list[str]) -> None:
    prepared = SimpleNamespace(run=run, plan=SimpleNamespace(updates=48, updates_per_epoch=4))
    started: Any = SimpleNamespace(prepared=prepared, updater=SimpleNamespace(max_steps=last))
    assert _early_end(started) == told


def test_a_restart_of_what_has_not_changed_is_told_and_sets_nothing_aside(tmp_path: Path) -> None:
    newest = save_checkpoint(tmp_path / "checkpoints", 4, {}, {"fingerprint": {"seed": 1}})
    prepared: Any = SimpleNamespace(fingerprint={"seed": 1})
    (told,) = _arrange(prepared, Checkpoints(tmp_path, {}), True, None)
    assert told == (
        f"restart: no setting has changed since {newest}; to train it again all the same, move {tmp_path} away"
    )
    assert newest.exists() and not (tmp_path / "set-aside").exists()
