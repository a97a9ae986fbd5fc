"""The training loop without a model: the best weights, what is due between updates, how it ends."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lucavirus.checkpoint import save_checkpoint
from lucavirus.errors import TIME_LIMIT, Preempted, UserError
from lucavirus.guard import only_owner
from lucavirus.plan import Plan
from lucavirus.state import PLACE, STATISTICS, Checkpoints, State
from lucavirus.train import Trainer, train
from tests.made_up import ARCHITECTURE
from tests.tiny import ALONE, RUN


@pytest.mark.parametrize(("losses", "best"), [((3.0, 2.0, 2.0), 2), ((None, None, None), None), ((None, 2.0, 3.0), 2)])
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


@pytest.mark.parametrize(
    ("stop", "save", "saved", "expected"),
    [
        (False, False, 0, ["what is due"]),
        (False, True, 0, ["what is due", "saved"]),
        (False, True, 7, ["what is due"]),
        (True, False, 0, ["saved", "on disk", "met the others", "ended"]),
    ],
)
@pytest.mark.parametrize("limit", [True, False])
def test_who_is_asked_to_end_saves_and_meets_the_others_and_does_nothing_else(
    stop: bool, save: bool, saved: int, expected: list[str], limit: bool
) -> None:
    happened: list[str] = []
    trainer: Any = SimpleNamespace(
        _update=lambda _: {"stop": stop, "save": save}, _boundary=lambda: happened.append("what is due"),
        _save=lambda scheduled: happened.append("scheduled" if scheduled else "saved"),
        checkpoints=SimpleNamespace(look=lambda: None, finish=lambda: happened.append("on disk")),
        ranks=SimpleNamespace(barrier=lambda: happened.append("met the others")),
        state=State(update=7, saved=saved), stop_request=SimpleNamespace(time_limit=limit, came=False),
    )  # fmt: skip
    try:
        Trainer._update_and_save(trainer, iter(()))
    except Preempted as end:
        happened.append("ended")
        assert str(end).startswith("preempted: saved at update 7;") and (TIME_LIMIT in str(end)) is limit
    assert happened == expected


def test_another_ranks_wish_to_end_is_heard_by_a_save_that_is_tried_again() -> None:
    trainer: Any = SimpleNamespace(
        _update=lambda _: {"stop": True, "save": False}, _save=lambda scheduled: None, state=State(update=7, saved=7),
        checkpoints=SimpleNamespace(look=lambda: None, finish=lambda: None), ranks=ALONE,
        stop_request=SimpleNamespace(time_limit=False, came=False),
    )  # fmt: skip
    with pytest.raises(Preempted):
        Trainer._update_and_save(trainer, iter(()))
    assert trainer.stop_request.came


def test_a_failure_is_not_hidden_by_that_of_the_save_under_way() -> None:
    """Nor does it wait for another try of it."""
    said: list[str] = []

    def fail() -> None:
        assert trainer.stop_request.came
        raise UserError("no room", where="work", hint="make room")

    trainer: Any = SimpleNamespace(
        checkpoints=SimpleNamespace(finish=fail), history=SimpleNamespace(say=said.append),
        stop_request=SimpleNamespace(came=False),
    )  # fmt: skip
    Trainer.end_saving(trainer)
    assert said == ["warning: work: no room"]


def test_a_training_that_fails_ends_with_its_own_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the save under way; one that ends well waits for it, and tells of its failure."""
    happened, ends = list[str](), iter([RuntimeError("CUDA error"), None])

    def finish() -> None:
        raise UserError("no room", where="work")

    def run_to_end() -> None:
        if error := next(ends):
            raise error

    trainer: Any = SimpleNamespace(
        run_to_end=run_to_end, checkpoints=SimpleNamespace(finish=finish), stop_request=SimpleNamespace(came=False),
        history=SimpleNamespace(say=happened.append, close=lambda: happened.append("closed")),
    )  # fmt: skip
    trainer.end_saving = lambda: Trainer.end_saving(trainer)
    monkeypatch.setattr("lucavirus.train.start", lambda *_: None)
    monkeypatch.setattr("lucavirus.train.Trainer", lambda *_: trainer)
    settings: Any = SimpleNamespace(runs={"full": RUN.model_copy(update={"device": "cpu"})})
    for told in (RuntimeError, UserError):
        with pytest.raises(told):
            train(settings, "full", tmp_path, tmp_path / "work", tmp_path / "out")
    assert happened == ["warning: work: no room", "closed", "closed"]


@pytest.mark.parametrize(("first", "seconds", "over"), [(True, 125, True), (True, 110, False), (False, 125, False)])
def test_the_first_ranks_clock_says_when_to_save(first: bool, seconds: int, over: bool) -> None:
    trainer: Any = SimpleNamespace(
        ranks=SimpleNamespace(first=first), run=SimpleNamespace(save_minutes=2), _last_save=time.monotonic() - seconds
    )
    assert Trainer._save_minutes_are_over(trainer) is over


@pytest.mark.parametrize(
    ("epochs", "max_steps", "reason"), [(1, 9, "all epochs done"), (2, 2, "max_steps"), (2, 9, "stop_after")]
)
def test_the_last_weights_are_published_where_the_best_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, max_steps: int, reason: str
) -> None:
    published, said = list[tuple[Path, Path]](), list[str]()
    monkeypatch.setattr("lucavirus.train.publish_model", lambda best, last, *_: published.append((best, last)))
    monkeypatch.setattr("lucavirus.train.publish_history", lambda *_: None)
    place = Checkpoints(tmp_path, {})
    best, last = save_checkpoint(tmp_path / "best", 4, {}, {}), save_checkpoint(place.folder, 8, {}, {})
    trainer: Any = SimpleNamespace(
        state=State(update=2, best={"step": 4}), plan=Plan(8, 1, 1, 4, 0, epochs), checkpoints=place,
        prepared=SimpleNamespace(name="full"), updater=SimpleNamespace(max_steps=max_steps),
        run=SimpleNamespace(sequences_per_update=4), ranks=ALONE, model=torch.nn.Linear(2, 1),
        history=SimpleNamespace(say=said.append),
    )  # fmt: skip
    for known in ({"step": 4}, None):
        Trainer.publish(trainer, tmp_path, tmp_path / "out")
        told = json.loads((tmp_path / "out/training.json").read_text())
        # The loss of weights that are lost is not that of those that are published.
        assert (told["reason"], told["best"]) == (reason, known)
        (best / "state.json").unlink(missing_ok=True)
    assert published == [(best, last), (last, last)]
    assert len(said) == 1 and said[0].startswith(f"warning: {best} is damaged (state.json is missing); the last weigh")


def test_the_work_of_all_gpus_is_beside_the_peak_of_all() -> None:
    window = [0.0] * len(STATISTICS)
    window[PLACE["tokens"]], window[PLACE["squares"]] = 1e12, 1e14

    def utilization(gpus: int) -> float:
        trainer: Any = SimpleNamespace(
            compute=SimpleNamespace(device_name="NVIDIA H100 80GB HBM3"), ranks=SimpleNamespace(world_size=gpus),
            prepared=SimpleNamespace(architecture=ARCHITECTURE),
        )  # fmt: skip
        return Trainer._model_flops_utilization(trainer, window, 1.0) or 0.0

    assert utilization(1) == pytest.approx(4 * utilization(4), rel=0.01) and utilization(4) > 0.1


def test_records_are_due_where_steps_and_updates_meet() -> None:
    trainer: Any = SimpleNamespace(run=SimpleNamespace(gradient_accumulation_steps=4), _at_interval=lambda steps: steps)
    assert Trainer._log_is_due(trainer, 6) == 12


@pytest.mark.parametrize(
    ("index", "done", "evaluated", "saved", "old", "expected"),
    [
        (1, True, 0, 0, False, ["evaluated", "saved as due"]),  # `stop_after` amid an epoch
        (1, True, 3, 0, True, ["saved as due"]),
        (0, False, 0, 0, True, ["saved", "evaluated"]),
        (0, False, 3, 0, True, []),
        (1, False, 0, 0, True, []),
        (1, True, 3, 3, True, []),
    ],
)
def test_what_is_due_between_updates(
    index: int, done: bool, evaluated: int, saved: int, old: bool, expected: list[str]
) -> None:
    happened: list[str] = []
    trainer: Any = SimpleNamespace(
        state=State(update=3, evaluated=evaluated, saved=saved), done=done, ranks=ALONE,
        plan=SimpleNamespace(position=lambda _: SimpleNamespace(index=index)), run=SimpleNamespace(save_steps=1),
        _last_save=time.monotonic() - 100 * old, _at_interval=lambda _: False,
        _save=lambda scheduled: happened.append("saved as due" if scheduled else "saved"),
        _evaluate=lambda: happened.append("evaluated"),
    )  # fmt: skip
    Trainer._boundary(trainer)
    assert happened == expected


def test_who_looks_whether_the_folder_is_free_refuses_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each start of Snakemake does; for that moment it holds the lock."""
    looking, begun = threading.Event(), list[Path]()

    def look() -> None:
        with only_owner(tmp_path / "work"):
            looking.set()
            time.sleep(0.3)

    def begin(data: Path, _: object) -> Path:
        begun.append(data)
        raise UserError("far enough")

    monkeypatch.setattr("lucavirus.train.staged", begin)
    settings: Any = SimpleNamespace(runs={"full": RUN.model_copy(update={"device": "cpu"})})
    looker = threading.Thread(target=look)
    looker.start()
    looking.wait()
    with pytest.raises(UserError, match="far enough"):
        train(settings, "full", tmp_path, tmp_path / "work", tmp_path / "out")
    looker.join()
    assert begun == [tmp_path]
