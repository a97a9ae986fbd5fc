"""Checkpoints are whole or absent; damage is named and passed over."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from lucavirus.checkpoint import checkpoints, damage, keep_only, newest_complete, prune, read_state, save_checkpoint
from lucavirus.errors import UserError
from lucavirus.state import Checkpoints

FILES = {"model.safetensors": lambda path: path.write_bytes(b"weights" * 100), "b": lambda path: path.write_bytes(b"b")}


def _save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, FILES, {"step": step, "x": 0.1 + 0.2})


def test_comes_back_exactly(tmp_path: Path) -> None:
    _save(tmp_path, 10)
    newest = newest_complete(tmp_path, pytest.fail)
    assert newest == tmp_path / "step-10" and read_state(newest) == {"step": 10, "x": 0.1 + 0.2}
    assert (newest / "model.safetensors").read_bytes() == b"weights" * 100
    assert sorted(path.name for path in newest.iterdir()) == ["b", "complete.json", "model.safetensors", "state.json"]


def test_all_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Path | str] = []
    rename = os.replace
    monkeypatch.setattr("lucavirus.checkpoint.flush", done.append)
    monkeypatch.setattr(
        "lucavirus.checkpoint.os.replace", lambda source, target: (done.append("renamed"), rename(source, target))
    )
    _save(tmp_path, 5)
    written = {tmp_path / "tmp-step-5" / path.name for path in (tmp_path / "step-5").iterdir()}
    assert set(done[:-2]) == {tmp_path / "tmp-step-5", *written}
    assert done[-2:] == ["renamed", tmp_path]


def test_the_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    _save(tmp_path, 9, 100, 20)
    assert newest_complete(tmp_path, pytest.fail) == tmp_path / "step-100"
    (tmp_path / "step-9").rename(tmp_path / "step-900, a copy of mine")
    _save(tmp_path, 9)
    assert newest_complete(tmp_path, pytest.fail) == tmp_path / "step-100"
    prune(tmp_path, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100", "step-20", "step-900, a copy of mine"]


@pytest.mark.parametrize("harm", ["truncated", "flipped", "half-deleted", "no marker", "[]", '{"sha256": []}'])
def test_damage_is_named_and_the_one_before_is_used(tmp_path: Path, harm: str) -> None:
    _save(tmp_path, 1, 2)
    weights, marker = tmp_path / "step-2/model.safetensors", tmp_path / "step-2/complete.json"
    content = weights.read_bytes()
    if harm == "truncated":
        weights.write_bytes(content[:-1])
    elif harm == "flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "half-deleted":
        weights.unlink()
    elif harm == "no marker":
        marker.unlink()
    else:
        marker.write_text(harm)
    said: list[str] = []
    assert newest_complete(tmp_path, said.append) == tmp_path / "step-1"
    assert len(said) == 1 and "step-2 is damaged" in said[0] and damage(tmp_path / "step-1") is None
    # Out of the way, so that it neither counts nor is taken again, but not deleted.
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept[1:] == ["step-1"] and kept[0].startswith("damaged-step-2-") and kept[0] in said[0]
    assert newest_complete(tmp_path, pytest.fail) == tmp_path / "step-1"


def test_a_half_written_one_is_not_a_checkpoint(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    (tmp_path / "step-1").rename(tmp_path / "tmp-step-5")
    assert newest_complete(tmp_path, pytest.fail) is None
    _save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_a_fault_amid_replacing_a_checkpoint_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 5)
    rename = os.replace

    def stopped(source: Path, target: Path) -> None:
        if source.name == "tmp-step-5":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("lucavirus.checkpoint.os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        _save(tmp_path, 5)
    monkeypatch.undo()
    assert newest_complete(tmp_path, pytest.fail) == tmp_path / "step-5"
    (tmp_path / "tmp-replaced-step-5").mkdir()  # a fault after both
    assert newest_complete(tmp_path, pytest.fail) == tmp_path / "step-5"
    save_checkpoint(tmp_path, 5, FILES, "again")
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]
    assert read_state(tmp_path / "step-5") == "again"  # type: ignore[comparison-overlap]


def test_one_of_each_stretch_is_kept_for_good(tmp_path: Path) -> None:
    for step in range(10, 100, 10):
        _save(tmp_path, step)
        prune(tmp_path, keep_last=2, keep_every=30)
    assert sorted(int(path.name[5:]) for path in tmp_path.iterdir()) == [30, 60, 80, 90]


def test_only_the_steps_that_are_spoken_of_are_kept(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2, 3, 4)
    keep_only(tmp_path, {1, 3})
    assert {path.name for path in tmp_path.iterdir()} == {"step-1", "step-3"}


def test_what_cannot_be_removed_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(path: object, **_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    _save(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)  # as where NFS keeps a file that is open elsewhere
        prune(tmp_path, keep_last=1)
        _save(tmp_path, 3)
    assert (tmp_path / "step-1").exists() and newest_complete(tmp_path, pytest.fail) == tmp_path / "step-3"
    prune(tmp_path, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_nothing_is_removed_for_a_damaged_newest(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2, 3)
    (tmp_path / "step-3/model.safetensors").write_bytes(b"")
    prune(tmp_path, keep_last=1)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), SafetensorError("I/O: No space left")])
def test_a_full_disk_keeps_the_older_ones(tmp_path: Path, error: Exception) -> None:
    _save(tmp_path, 1)

    def full(_: Path) -> None:
        raise error

    with pytest.raises(UserError, match="step 2 could not be written: .*No space left"):
        save_checkpoint(tmp_path, 2, {**FILES, "c": full}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert newest_complete(tmp_path, pytest.fail) == tmp_path / "step-1"


def test_space_is_asked_for_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1000, 1000, bias=False)
    usage = SimpleNamespace(free=70e6)
    monkeypatch.setattr("lucavirus.state.shutil.disk_usage", lambda _: usage)
    # 4 MB of weights: 12 a checkpoint, four of them, and the best weights twice make 56.
    Checkpoints(tmp_path, {}).require_space(model, keep_last=3)
    usage.free = 50e6
    with pytest.raises(UserError, match="56 MB are needed for checkpoints, 50 MB are free"):
        Checkpoints(tmp_path, {}).require_space(model, keep_last=3)
    # What the run itself has there will be replaced; what was set aside, or is kept for good, stays.
    for place, enough in (
        ("set-aside/001/checkpoints/step-1", False), ("checkpoints/step-1", False), ("checkpoints/step-5", True),
        ("best/step-1", True), ("checkpoints/tmp-step-5", True), ("best/tmp-step-5", True),
    ):  # fmt: skip
        for step in (2, 3, 4):
            (tmp_path / f"checkpoints/step-{step}").mkdir(parents=True)
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model.safetensors").write_bytes(bytes(12 * 10**6))
        with nullcontext() if enough else pytest.raises(UserError):
            Checkpoints(tmp_path, {}).require_space(model, keep_last=3)
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)


@pytest.mark.parametrize("place", ["step-2", "step-2/model.safetensors", "step-2/state.json"])
def test_what_is_no_file_or_no_folder_any_more_is_damage(tmp_path: Path, place: str) -> None:
    _save(tmp_path, 1, 2)
    aside = tmp_path / "aside"
    (tmp_path / place).rename(aside)
    if aside.is_dir():
        (tmp_path / place).touch()
    else:
        (tmp_path / place).mkdir()
    said: list[str] = []
    assert newest_complete(tmp_path, said.append) == tmp_path / "step-1"
    assert len(said) == 1 and "step-2 is damaged (" in said[0]


def test_what_cannot_be_read_now_is_neither_damaged_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(tmp_path, 1, 2, 3)
    before = sorted(tmp_path.iterdir())
    for place in ("_checksum", "json.loads"):
        with monkeypatch.context() as patched:
            patched.setattr(
                f"lucavirus.checkpoint.{place}", lambda _: (_ for _ in ()).throw(OSError(116, "Stale file"))
            )
            for ask in (damage, lambda path: newest_complete(path.parent, pytest.fail)):
                with pytest.raises(UserError, match="step-3: cannot be read .*Stale file") as caught:
                    ask(tmp_path / "step-3")
                assert "start the same command again" in caught.value.hint
            prune(tmp_path, keep_last=1)
    assert sorted(tmp_path.iterdir()) == before
    prune(tmp_path, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_copies_that_somebody_made_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("step-0", "step-12", "step-012", "step-\u00b2", "step-\u0665", "step-3 copy"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-12", "step-0"]
