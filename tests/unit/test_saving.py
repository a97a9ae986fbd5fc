"""Saving in the background: whole copies, told failures, and what is kept."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lucavirus import checkpoint, patience
from lucavirus.config import Run
from lucavirus.errors import UserError
from lucavirus.evaluate_run import load_model
from lucavirus.model import LucaVirus
from lucavirus.optimizer import make_optimizer
from lucavirus.publish import model_files, publish_history, publish_model
from lucavirus.state import PLACE, STATISTICS, Checkpoints, State, read_fingerprint, read_state, restore_moments
from lucavirus.train import Trainer
from tests.made_up import ARCHITECTURE, CLASSES
from tests.tiny import ALONE


def _save(place: Checkpoints, step: int, model: torch.nn.Module, best: int | None = None) -> None:
    state = State(update=step, best={"step": best} if best else None)
    place.save(step, model, make_optimizer(model, Run()), state, {"seed": 1}, Run(keep_last=2))


def test_a_save_waits_for_the_one_before_it_whose_copy_it_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.save_checkpoint

    def slowly(*arguments: Any) -> Path:
        time.sleep(0.2)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "save_checkpoint", slowly)
    place, model = Checkpoints(tmp_path, {}), torch.nn.Linear(2, 1, bias=False)
    for step in (1, 2):
        torch.nn.init.constant_(model.weight, step)
        _save(place, step, model)
    torch.nn.init.constant_(model.weight, 3)
    place.save_best(model, {"step": 3, "loss": 0.5})
    torch.nn.init.constant_(model.weight, 4)
    place.finish()
    for path, value in (("checkpoints/step-1", 1), ("checkpoints/step-2", 2), ("best/step-3", 3)):
        assert load_file(tmp_path / path / "model.safetensors")["weight"].tolist() == [[value, value]]
    assert read_state(tmp_path / "checkpoints/step-2").update == 2
    assert read_fingerprint(tmp_path / "checkpoints/step-2") == {"seed": 1}


def test_a_save_that_failed_is_told_once_by_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSES", ())

    def fail(*_: Any) -> Path:
        raise UserError("no space")

    place, model = Checkpoints(tmp_path, {}), torch.nn.Linear(2, 1)
    monkeypatch.setattr(checkpoint, "save_checkpoint", fail)
    for again in (lambda: _save(place, 2, model), lambda: place.save_best(model, {"step": 2}), place.finish):
        _save(place, 1, model)
        with pytest.raises(UserError, match="no space"):
            again()
        place.finish()


def test_what_is_saved_is_the_state_of_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, model, state = Checkpoints(tmp_path, {}), torch.nn.Linear(2, 1), State(update=1)
    released, write = threading.Event(), checkpoint.save_checkpoint
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda *all_: (released.wait(10), write(*all_))[1])
    place.save(1, model, make_optimizer(model, Run()), state, {}, Run())
    state.update, state.window[0] = 2, 7.0
    released.set()
    place.finish()
    assert read_state(place.at(1)) == State(update=1)


def test_one_checkpoint_of_each_stretch_stays(tmp_path: Path) -> None:
    place, model = Checkpoints(tmp_path, {}), torch.nn.Linear(2, 1)
    for step in range(1, 6):
        place.save(step, model, make_optimizer(model, Run()), State(), {}, Run(keep_last=1, keep_every=2))
    place.finish()
    assert {path.name for path in place.folder.iterdir()} == {"step-2", "step-4", "step-5"}


def test_other_ranks_neither_write_nor_copy_nor_rename(tmp_path: Path) -> None:
    place, model = Checkpoints(tmp_path, {}, writes=False), torch.nn.Linear(2, 1)
    _save(place, 1, model)
    place.save_best(model, {"step": 1})
    place.finish()
    assert list(tmp_path.iterdir()) == [] and place._copies == {}
    place.at(2).mkdir(parents=True)
    place.newest(replace(ALONE, rank=1), [])
    assert place.at(2).exists()


def test_best_weights_stay_while_a_checkpoint_speaks_of_them(tmp_path: Path) -> None:
    place, model = Checkpoints(tmp_path, {}), torch.nn.Linear(2, 1)

    def there(folder: str) -> list[int]:
        return sorted(int(path.name[5:]) for path in (tmp_path / folder).iterdir())

    found = []
    for step, best in ((1, 1), (2, 1), (3, 3), (4, 3)):
        if step == best:
            place.save_best(model, {"step": step})
        _save(place, step, model, best)
        place.finish()
        found.append((there("checkpoints"), there("best")))
    assert found == [([1], [1]), ([1, 2], [1]), ([2, 3], [1, 3]), ([3, 4], [3])]
    assert place.best(read_state(place.at(4)), place.at(4)) == tmp_path / "best/step-3"
    assert place.best(State(), place.at(4)) == place.at(4) == place.newest(ALONE, [])


def test_best_weights_stay_while_a_checkpoint_cannot_say_whether_it_speaks_of_them(tmp_path: Path) -> None:
    place, model = Checkpoints(tmp_path, {}), torch.nn.Linear(2, 1)
    for step in (1, 2):
        place.save_best(model, {"step": step})
        _save(place, step, model, step)
    place.finish()
    (place.at(2) / "state.json").write_text("")
    _save(place, 3, model, 2)
    place.finish()
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"step-1", "step-2"}


def test_a_save_that_failed_is_told_by_the_next_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the next save, which may be days later."""
    monkeypatch.setattr(patience, "PAUSES", ())
    place, may_fail = Checkpoints(tmp_path, {}), threading.Event()

    def fail(*arguments: Any) -> Path:
        assert may_fail.wait(20)
        raise UserError("no room")

    monkeypatch.setattr(checkpoint, "save_checkpoint", fail)
    _save(place, 1, torch.nn.Linear(2, 1))
    place.look()  # waits for nothing
    may_fail.set()
    trainer: Any = SimpleNamespace(checkpoints=place)
    assert place._background._pending[0].exception(20)
    with pytest.raises(UserError, match="no room"):
        Trainer._update_and_save(trainer, iter(()))
    place.finish()


def failing(times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the first so many saves fail; returns the steps that are tried."""
    write, tried = checkpoint.save_checkpoint, list[int]()

    def save(folder: Path, step: int, *arguments: Any) -> Path:
        tried.append(step)
        if len(tried) <= times:
            raise UserError(f"step {step}: no room", where="work")
        return write(folder, step, *arguments)

    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    return tried


def test_a_save_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a file server is away for a minute: the weights of then are saved, and nobody is told of an error."""
    monkeypatch.setattr(patience, "PAUSES", (0, 0.2))
    place, model, said = Checkpoints(tmp_path, {}), torch.nn.Linear(2, 1, bias=False), list[str]()
    place.say = said.append
    tried = failing(2, monkeypatch)
    torch.nn.init.constant_(model.weight, 7)
    begin = time.monotonic()
    _save(place, 1, model)
    torch.nn.init.constant_(model.weight, 8)
    place.finish()
    assert time.monotonic() - begin >= 0.2
    assert tried == [1, 1, 1]
    assert load_file(place.at(1) / "model.safetensors")["weight"].tolist() == [[7, 7]]
    assert said == [f"warning: work: step 1: no room; it is tried again in {pause} s" for pause in (0, 0.2)]


def test_a_save_that_goes_on_failing_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSES", (0, 0))
    tried = failing(9, monkeypatch)
    place = Checkpoints(tmp_path, {})
    _save(place, 1, torch.nn.Linear(2, 1))
    with pytest.raises(UserError, match="no room"):
        place.finish()
    assert tried == [1, 1, 1]


@pytest.mark.parametrize(("asked_after", "tries"), [(1, 1), (2, 2)])
def test_who_is_asked_to_end_does_not_wait_for_another_try(
    asked_after: int, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the pause, and in it: there one last try is made at once."""
    monkeypatch.setattr(patience, "PAUSES", (600,))
    tried, looks = failing(9, monkeypatch), list[int]()
    place = Checkpoints(tmp_path, {}, asked_to_end=lambda: looks.append(1) or len(looks) >= asked_after)  # type: ignore[func-returns-value]
    _save(place, 1, torch.nn.Linear(2, 1))
    with pytest.raises(UserError, match="no room"):
        place.finish()
    assert len(tried) == tries


def test_moments_come_back_where_they_were(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    optimizer = make_optimizer(model, Run())
    model[0](torch.randn(4, 3)).square().sum().backward()  # the second layer has no gradient, and no moments
    optimizer.step()
    place = Checkpoints(tmp_path, {})
    place.save(1, model, optimizer, State(), {}, Run())
    place.finish()
    other = make_optimizer(model, Run())
    restore_moments(place.at(1), model, other)
    assert set(other.state) == set(optimizer.state) == set(model[0].parameters())
    for parameter, moments in optimizer.state.items():
        assert all(torch.equal(other.state[parameter][key], moments[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_an_update_is_counted_and_one_skipped_is_not_averaged() -> None:
    state, statistics = State(), [0.0] * len(STATISTICS)
    statistics[PLACE["sequences"]], statistics[PLACE["tokens"]], statistics[PLACE["loss"]] = 4.0, 90.0, 2.0
    for skipped in (False, True, True):
        state.add(statistics, skipped=skipped)
    assert (state.update, state.sequences, state.tokens, state.skipped) == (3, 12, 270, 2)
    assert state.window == statistics
    state.add(statistics, skipped=False)
    assert state.skipped == 0 and state.window[PLACE["loss"]] == 4.0


def test_what_is_saved_is_a_model_that_can_be_used_by_itself(tmp_path: Path) -> None:
    for task, count in CLASSES.items():
        (tmp_path / f"{task}.txt").write_text("".join(f"{task} {number}\n" for number in range(count)))
    model = LucaVirus(ARCHITECTURE, seed=3)
    place = Checkpoints(tmp_path, model_files(ARCHITECTURE, tmp_path))
    _save(place, 4, model)
    place.save_best(model, {"step": 4})
    place.finish()
    for folder in (tmp_path / "checkpoints/step-4", tmp_path / "best/step-4"):
        used = load_model(folder)
        assert used.architecture == ARCHITECTURE
        for name, weight in model.state_dict().items():
            assert torch.equal(used.state_dict()[name], weight)
        for task in ARCHITECTURE.heads:
            assert (folder / f"labels/{task}.txt").read_text() == (tmp_path / f"{task}.txt").read_text()
        assert checkpoint.damage(folder) is None
        (folder / "labels/gene_type.txt").write_text("renamed\n")
        assert checkpoint.damage(folder) == "labels/gene_type.txt does not match its checksum"


def _made(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def _found(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_is_published_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    out = _made(tmp_path / "out", {f"{name}/labels/old.txt": "" for name in ("model", ".model.tmp", ".model.old")})
    best, last = (_made(tmp_path / name, {"model.safetensors": name}) for name in ("best", "last"))
    beside = {"config.json": "{}", "labels/gene_type.txt": "CDS"}
    publish_model(best, last, beside, out)
    assert _found(out) == {
        **{f"model/{name}": text for name, text in (beside | {"model.safetensors": "best"}).items()},
        **{f"model/last/{name}": text for name, text in (beside | {"model.safetensors": "last"}).items()},
    }


def test_no_history_of_a_run_before_is_published(tmp_path: Path) -> None:
    history = {"metrics.jsonl": "new", "tensorboard/new": "1"}
    out = _made(tmp_path / "out", {"metrics.jsonl": "old", "tensorboard/old": "2"})
    publish_history(_made(tmp_path / "work", {**history, "train.log": ""}), out)
    assert _found(out) == history
