"""Checkpoints are whole or absent; damage is named and passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lucavirus.checkpoint import damage, newest_complete, prune, read_state, read_tensors, save_checkpoint

TENSORS = {"model": {"a": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"a/step": torch.tensor(4.0)}}


def _save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, TENSORS, {"step": step, "x": 0.1 + 0.2})


def test_comes_back_exactly(tmp_path: Path) -> None:
    _save(tmp_path, 10)
    newest = newest_complete(tmp_path, pytest.fail)
    assert newest == tmp_path / "step-10" and read_state(newest) == {"step": 10, "x": 0.1 + 0.2}
    assert torch.equal(read_tensors(newest, "model")["a"], TENSORS["model"]["a"])
    assert read_tensors(newest, "optimizer")["a/step"].shape == ()


def test_the_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    _save(tmp_path, 9, 100, 20)
    assert newest_complete(tmp_path, pytest.fail) == tmp_path / "step-100"
    prune(tmp_path, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100", "step-20"]


@pytest.mark.parametrize("harm", ["truncated", "flipped", "half-deleted", "no marker", "foreign"])
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
        marker.write_text("[]")
    said: list[str] = []
    assert newest_complete(tmp_path, said.append) == tmp_path / "step-1"
    assert len(said) == 1 and "step-2 is damaged" in said[0] and damage(tmp_path / "step-1") is None


def test_a_half_written_one_is_not_a_checkpoint(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    (tmp_path / "step-1").rename(tmp_path / "tmp-step-5")
    assert newest_complete(tmp_path, pytest.fail) is None
    _save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]
