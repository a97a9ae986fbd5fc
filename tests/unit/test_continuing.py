"""Work that is set aside: numbered whatever was deleted, and complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from lucavirus.checkpoint import keep_only, save_checkpoint
from lucavirus.continuing import (
    changed_settings,
    differences,
    forget_rewind,
    refusal,
    require_begun_with,
    require_step,
    rewind,
    set_aside,
)
from lucavirus.errors import UserError

FILES = {"model.safetensors": lambda path: path.write_bytes(b"weights")}


def test_numbers_go_on_after_the_highest(tmp_path: Path) -> None:
    for folder in ("001", "002"):
        assert set_aside(tmp_path, "a restart").name == folder
    (tmp_path / "set-aside/001/reason.txt").unlink()
    (tmp_path / "set-aside/001").rename(tmp_path / "set-aside/007, a good one")
    assert set_aside(tmp_path, "a restart").name == "003"


def test_all_work_is_moved_and_checkpoints_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = {"best", "checkpoints", "metrics.jsonl", "non_finite.jsonl", "train.log", "tensorboard"}
    for name in (*work, "lock"):
        (tmp_path / name).mkdir()
    moved: list[str] = []
    monkeypatch.setattr("lucavirus.continuing.os.replace", lambda source, _: moved.append(Path(source).name))
    set_aside(tmp_path, "a restart")
    assert moved[-1] == "checkpoints" and set(moved) == work


def test_going_back_keeps_the_best_weights_of_what_is_set_aside(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / "checkpoints", step, FILES, {})
    for step in (1, 3):
        save_checkpoint(tmp_path / "best", step, FILES, {})
    rewind(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["step-1"]
    aside = tmp_path / "set-aside/001"
    assert [path.name for path in (aside / "best").iterdir()] == ["step-3"]
    assert [path.name for path in (aside / "checkpoints").iterdir()] == ["step-3"]


def test_the_originals_weights_are_those_that_the_run_began_with(tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to(tmp_path / "a")
    require_begun_with(tmp_path, "anything", 8)  # it begins
    began = {"original": {"folder": str(tmp_path / "a"), "step": 8}}
    for step, content in ((1, {"run": {"original": None}}), (2, {"run": began}), (3, {"run": {}})):
        save_checkpoint(tmp_path / "checkpoints", step, FILES, content)
    for folder in ("a", "b"):
        require_begun_with(tmp_path, str(tmp_path / folder), 8)
    for folder, step in (("c", 8), ("a", 9)):
        with pytest.raises(UserError, match="and did not begin with these weights\n.* leave model_dirpath and trained"):
            require_begun_with(tmp_path, str(tmp_path / folder), step)
    keep_only(tmp_path / "checkpoints", {1})
    with pytest.raises(UserError, match="did not begin with these weights"):
        require_begun_with(tmp_path, str(tmp_path / "a"), 8)


def test_going_back_happens_once_until_a_start_goes_on(tmp_path: Path) -> None:
    history = {"metrics.jsonl": "{}", "train.log": "said"}
    for name, text in history.items():
        (tmp_path / name).write_text(text)
    for step in (2, 3):
        save_checkpoint(tmp_path / "checkpoints", step, FILES, {})
    assert rewind(tmp_path, 2) == f"back at step 2; later checkpoints are in {tmp_path}/set-aside/001"
    for folder in (tmp_path, tmp_path / "set-aside/001"):
        assert {name: (folder / name).read_text() for name in history} == history
    for step in (9, 10):
        save_checkpoint(tmp_path / "checkpoints", step, FILES, {})
    keep_only(tmp_path / "checkpoints", {9, 10})
    require_step(tmp_path, 2)
    assert rewind(tmp_path, 2) == "went back to step 2 at an earlier start; going on"
    forget_rewind(tmp_path)
    for go_back in (require_step, rewind):
        with pytest.raises(UserError, match="cannot go back to step 2: there is none(?s:.*)that are there: 9, 10$"):
            go_back(tmp_path, 2)


def test_nobody_goes_back_to_a_damaged_checkpoint(tmp_path: Path) -> None:
    for step in (2, 3):
        save_checkpoint(tmp_path / "checkpoints", step, FILES, {})
    (tmp_path / "checkpoints/step-2/model.safetensors").unlink()
    with pytest.raises(UserError, match="step 2: model.safetensors is missing\n.*that are there: 3$"):
        rewind(tmp_path, 2)
    assert (tmp_path / "checkpoints/step-3").exists()


def test_what_is_new_and_what_is_gone_are_differences_too() -> None:
    same = ({"model_dirpath": "results/../a/model/"}, {"model_dirpath": "a/model"})
    assert differences(*same) == [] and differences(same[0], {"model_dirpath": None}) != []
    assert differences({"seed": 1, "gone": 2}, {"seed": 1, "new": 3}) == ["gone: 2 -> None", "new: None -> 3"]


def test_a_change_is_one_since_the_newest_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    assert changed_settings(tmp_path, {"seed": 1}) == []
    for step, seed in ((9, 1), (10, 2), (11, 3)):
        fingerprint = {"seed": seed, "sequences": "abc"}
        save_checkpoint(tmp_path / "checkpoints", step, {}, {"fingerprint": fingerprint})
    (tmp_path / "checkpoints/step-11/state.json").write_text("")
    assert changed_settings(tmp_path, {"seed": 4, "new": 1}) == ["seed: 2 -> 4", "new: None -> 1"]


def test_of_data_is_told_that_they_changed_not_their_hashes() -> None:
    saved = {"seed": 1, "sequences and labels": ["0a", "1b"], "vocabulary of prot_site": "2c"}
    now = {"seed": 1, "sequences and labels": ["0a", "3d"], "vocabulary of prot_site": "4e"}
    assert differences(saved, now) == ["sequences and labels: changed", "vocabulary of prot_site: changed"]
    assert differences(saved, saved) == []


def test_what_to_type_fits_every_call(tmp_path: Path) -> None:
    # A command by itself would lack what names the project: --configfile, or a profile.
    message = str(refusal("mine", tmp_path / "work", ["seed: 1 -> 2"]))
    assert message.endswith("begin it anew (the old work is set aside): the same command with `--config restart=mine`")
    assert "touch" not in message
    message = str(refusal("mine", tmp_path / "work", ["seed: 1 -> 2", "sequences and labels: changed"]))
    assert (
        "set them back (`touch` a file that is put back with its old time: Snakemake goes by that); or give" in message
    )
