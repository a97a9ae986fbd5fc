"""A run that was killed, stopped or extended ends as the uninterrupted one, to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny.make_project(tmp_path_factory.mktemp("resume"))
    tiny.train(path, "whole")
    return path


def _assert_equal_to_whole(settings: Path, folder: str) -> None:
    whole, other = (tiny.final_tensors(settings, name) for name in ("whole", folder))
    assert whole.keys() == other.keys()
    assert [name for name in whole if not torch.equal(whole[name], other[name])] == []
    assert tiny.history(settings, folder) == tiny.history(settings, "whole")


def _start(settings: Path, folder: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        tiny.train_command(settings, folder), env=tiny.environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _wait_for(settings: Path, folder: str, text: str, process: subprocess.Popen[str]) -> None:
    path = settings.parent.parent / folder / "work/metrics.jsonl"
    for _ in range(1200):
        if path.exists() and text in path.read_text():
            return
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    pytest.fail(f"{text} never came")


def test_what_a_whole_run_leaves(settings: Path) -> None:
    events = tiny.history(settings, "whole")
    updates = max(event["update"] for event in events)
    epochs = [event["update"] for event in events if event["event"] == "dev"]
    assert len(epochs) == 2 and epochs[1] == updates == 2 * epochs[0]
    saves = [event for event in events if event["event"] == "save"]
    # Steps come in fours here (the accumulation): 20, 40, ... are reached exactly, and the end is saved.
    assert [event["checkpoint"] for event in saves[:2]] == ["step-20", "step-40"]
    assert saves[-1]["update"] == updates
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert losses[-1] < 0.8 * losses[0]


def test_killed_at_random_moments(settings: Path) -> None:
    moments = random.Random(7)
    for _ in range(4):
        process = _start(settings, "killed")
        time.sleep(moments.uniform(2.5, 6.0))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    tiny.train(settings, "killed")
    _assert_equal_to_whole(settings, "killed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_next_start_goes_on(settings: Path, number: signal.Signals) -> None:
    folder = f"stopped-{number.name}"
    process = _start(settings, folder)
    _wait_for(settings, folder, '"update": 2,', process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "preempted" in said and "start it again to continue" in said
    assert not (settings.parent.parent / folder / "out/training.json").exists()
    done = tiny.train(settings, folder)
    assert "going on from" in done.stderr
    _assert_equal_to_whole(settings, folder)


def test_stop_after_ends_early_and_more_goes_on(settings: Path) -> None:
    tiny.change_run(settings, stop_after={"updates": 7, "minutes": None})
    try:
        tiny.train(settings, "early")
        assert tiny.history(settings, "early")[-1]["update"] == 7
    finally:
        tiny.change_run(settings, stop_after={"updates": None, "minutes": None})
    tiny.train(settings, "early")
    whole, other = (tiny.final_tensors(settings, name) for name in ("whole", "early"))
    last = [name for name in whole if "checkpoints" in name]
    assert [name for name in last if not torch.equal(whole[name], other[name])] == []


def test_the_number_of_workers_does_not_matter(settings: Path) -> None:
    tiny.change_run(settings, worker_num=2)
    try:
        tiny.train(settings, "workers")
    finally:
        tiny.change_run(settings, worker_num=0)
    _assert_equal_to_whole(settings, "workers")


def test_a_finished_run_is_published_again_without_training(settings: Path) -> None:
    before = tiny.final_tensors(settings, "whole")
    out = settings.parent.parent / "whole/out"
    (out / "training.json").unlink()
    (out / "model/model.safetensors").unlink()
    history = tiny.history(settings, "whole")
    tiny.train(settings, "whole")
    after = tiny.final_tensors(settings, "whole")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert tiny.history(settings, "whole") == history


def test_a_changed_run_is_refused_with_the_settings_named(settings: Path) -> None:
    tiny.change_run(settings, learning_rate=0.5, seed=2)
    try:
        done = subprocess.run(
            tiny.train_command(settings, "whole"), env=tiny.environment(), capture_output=True, text=True
        )
    finally:
        tiny.change_run(settings, learning_rate=0.003, seed=1111)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "learning_rate: 0.003 -> 0.5" in done.stderr and "seed: 1111 -> 2" in done.stderr
    assert "new name" in done.stderr


def test_two_trainings_of_one_run_at_once_are_refused(settings: Path) -> None:
    process = _start(settings, "twice")
    try:
        _wait_for(settings, "twice", "train", process)
        done = subprocess.run(
            tiny.train_command(settings, "twice"), env=tiny.environment(), capture_output=True, text=True
        )
        assert done.returncode == 1
        assert f"another training of this run is going on: process {process.pid} on " in done.stderr
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
