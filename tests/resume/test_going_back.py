"""Back to an older checkpoint, anew, from the original's weights, past a damaged checkpoint: nothing is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.slow


def _top_level(settings: Path, **changes: object) -> None:
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))


def test_going_back_sets_later_checkpoints_aside_once(settings: Path) -> None:
    tiny.train(settings, "back")
    work = tiny.folder_of(settings, "back") / "work"
    *_, older, newest = sorted(int(path.name[5:]) for path in (work / "checkpoints").iterdir())
    _top_level(settings, run="full", trained_checkpoint=older)
    try:
        done = tiny.train(settings, "back")
        again = tiny.train(settings, "back")
    finally:
        _top_level(settings, run=None, trained_checkpoint=None)
    assert f"back at step {older}; later checkpoints are in" in done.stderr
    assert (work / f"set-aside/001/checkpoints/step-{newest}/complete.json").exists()
    assert (work / "set-aside/001/metrics.jsonl").exists()
    assert f"going on from {work / 'checkpoints' / f'step-{newest}'}" in again.stderr
    assert [path.name for path in (work / "set-aside").iterdir()] == ["001"]
    tiny.assert_equal_to_whole(settings, "back")


def test_going_back_to_a_step_that_is_not_there_tells_the_steps(settings: Path) -> None:
    _top_level(settings, run="full", trained_checkpoint=3)
    try:
        done = subprocess.run(
            tiny.train_command(settings, "whole"), env=tiny.environment(), capture_output=True, text=True
        )
    finally:
        _top_level(settings, run=None, trained_checkpoint=None)
    assert done.returncode == 1 and "cannot go back to step 3: there is none of that step" in done.stderr
    assert "one of the steps that are there: " in done.stderr


def test_a_restart_sets_the_old_work_aside_once(settings: Path) -> None:
    tiny.change_run(settings, stop_after={"updates": 4, "minutes": None})
    tiny.train(settings, "anew")
    work = tiny.folder_of(settings, "anew") / "work"
    tiny.change_run(settings, learning_rate=0.001)
    _top_level(settings, restart="full")
    try:
        done, again = tiny.train(settings, "anew"), tiny.train(settings, "anew")
    finally:
        tiny.change_run(settings, learning_rate=0.003, stop_after={"updates": None, "minutes": None})
        _top_level(settings, restart=None)
    assert "begun anew (learning_rate: 0.003 -> 0.001); the old work is in" in done.stderr
    assert "going on from" in again.stderr and "begun anew" not in again.stderr
    assert (work / "set-aside/001/checkpoints").is_dir() and (work / "set-aside/001/metrics.jsonl").exists()
    assert tiny.history(settings, "anew")[-1]["update"] == 4


def test_the_originals_weights_are_continued_at_their_step(settings: Path, tmp_path: Path) -> None:
    whole = tiny.folder_of(settings, "whole")
    (tmp_path / "checkpoint-step41").mkdir()
    shutil.copy(whole / "out/model/model.safetensors", tmp_path / "checkpoint-step41")
    _top_level(settings, run="full", trained_checkpoint=41, model_dirpath=str(tmp_path / "checkpoint-step41"))
    tiny.change_run(settings, stop_after={"updates": 20, "minutes": None})
    try:
        done = tiny.train(settings, "original")
        # The same command again goes on from our own checkpoint, and so does the plain one.
        tiny.change_run(settings, stop_after={"updates": 25, "minutes": None})
        again = tiny.train(settings, "original")
    finally:
        tiny.change_run(settings, stop_after={"updates": None, "minutes": None})
        _top_level(settings, run=None, trained_checkpoint=None, model_dirpath=None)
    plain = tiny.train(settings, "original")
    assert all("going on from" in each.stderr and "go on at step 44" not in each.stderr for each in (again, plain))
    # Steps come in fours: the first update boundary at or after step 41 is step 44, after update 11.
    assert "go on at step 44 (update 11, epoch 0); the original never saved the optimizer's moments" in done.stderr
    events = [e for e in tiny.history(settings, "original") if e["event"] == "train"]
    wanted = [e for e in tiny.history(settings, "whole") if e["event"] == "train" and e["update"] > 11]
    assert [(e["update"], e["lr"]) for e in events] == [(e["update"], e["lr"]) for e in wanted]


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(settings: Path) -> None:
    tiny.train(settings, "damaged")
    checkpoints = tiny.folder_of(settings, "damaged") / "work/checkpoints"
    *_, oldest, older, newest = sorted(checkpoints.iterdir(), key=lambda path: int(path.name[5:]))
    (newest / "state.json").unlink()
    (oldest / "state.json").write_text("")  # nobody goes on from it: it costs nothing at all
    done = tiny.train(settings, "damaged")
    assert f"checkpoint {newest} is damaged (state.json is missing)" in done.stderr
    assert f"going on from {older}" in done.stderr
    tiny.assert_equal_to_whole(settings, "damaged")
    assert len(list(checkpoints.glob("damaged-*"))) == 1
