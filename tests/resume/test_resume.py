"""A run that was killed, stopped or extended ends as the uninterrupted one, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lucavirus.errors import UserError
from lucavirus.ledger import gone_through
from lucavirus.plan import Plan
from lucavirus.report import read_history
from tests import tiny
from tests.torture import campaign

pytestmark = pytest.mark.slow


def _start(settings: Path, folder: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        tiny.train_command(settings, folder), env=tiny.environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


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


def test_killed_twenty_times_at_random_moments(settings: Path) -> None:
    told = campaign(settings, kills=20, seed=7)
    assert told.pop("kills") == 20 and told.pop("runs") >= 1
    assert set(told.values()) == {0}, told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_next_start_goes_on(settings: Path, number: signal.Signals) -> None:
    folder = f"stopped-{number.name}"
    process = _start(settings, folder)
    tiny.wait_for(tiny.folder_of(settings, folder) / "work/metrics.jsonl", '"update": 2,', process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "preempted" in said and "start it again to continue" in said
    assert not (tiny.folder_of(settings, folder) / "out/training.json").exists()
    done = tiny.train(settings, folder)
    assert "going on from" in done.stderr
    tiny.assert_equal_to_whole(settings, folder)


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
    tiny.assert_equal_to_whole(settings, "workers")


def test_a_finished_run_is_published_again_without_training(settings: Path) -> None:
    before = tiny.final_tensors(settings, "whole")
    out = tiny.folder_of(settings, "whole") / "out"
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
    assert "new name" in done.stderr and "--config restart=full" in done.stderr


def test_two_trainings_of_one_run_at_once_are_refused(settings: Path) -> None:
    process = _start(settings, "twice")
    try:
        tiny.wait_for(tiny.folder_of(settings, "twice") / "work/metrics.jsonl", "train", process)
        done = subprocess.run(
            tiny.train_command(settings, "twice"), env=tiny.environment(), capture_output=True, text=True
        )
        assert done.returncode == 1
        assert f"another training of this run is going on: process {process.pid} on " in done.stderr
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def diverging(settings: Path) -> Iterator[Path]:
    """The project with weights that overflow in the first update of every start."""
    tiny.change_run(settings, task_weights={"gene_mask": 3e38, "prot_mask": 3e38})
    yield settings
    tiny.change_run(settings, task_weights={}, non_finite="stop", max_skipped=3)


def test_a_gradient_that_is_not_finite_stops_the_run_and_is_written_down(diverging: Path) -> None:
    done = subprocess.run(
        tiny.train_command(diverging, "diverged"), env=tiny.environment(), capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the gradient of update 1 (step 0, epoch 0) is not finite" in done.stderr
    work = tiny.folder_of(diverging, "diverged") / "work"
    (line,) = (work / "non_finite.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["update"], told["step"], told["epoch"]) == (1, 0, 0) and "gene_mask" in told["losses"]
    assert len(told["samples"]) == 8 and all(name.startswith("DEMO_") for name in told["samples"])
    assert not (work / "checkpoints").exists()


def test_skipping_is_told_and_ends_after_so_many_in_a_row(diverging: Path) -> None:
    tiny.change_run(diverging, non_finite="skip", max_skipped=2)
    done = subprocess.run(
        tiny.train_command(diverging, "skipped"), env=tiny.environment(), capture_output=True, text=True
    )
    assert done.returncode == 1 and "the gradient of update 3 (step 8, epoch 0) is not finite" in done.stderr
    work = tiny.folder_of(diverging, "skipped") / "work"
    history = read_history(work / "metrics.jsonl")
    assert history[["event", "update"]].to_numpy().tolist() == [["skip", 1], ["skip", 2]]
    assert len((work / "non_finite.jsonl").read_text().splitlines()) == 3


# Where any checkpoint is old enough for another one before an evaluation; tells what it saves.
CAREFUL = """
from lucavirus import train
save = train.Trainer._save
def note(self, *, scheduled):
    print("saved", self.state.update, self.state.evaluated, scheduled)
    save(self, scheduled=scheduled)
train.Trainer._save, train.WORTH_SAVING = note, -1
"""


def test_saving_before_an_evaluation_leaves_no_trace(settings: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(tiny.altered(tmp_path / "careful.py", CAREFUL)),
        *tiny.train_command(settings, "careful")[1:],
    ]
    done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    evaluated = [event["update"] for event in tiny.history(settings, "careful") if event["event"] == "dev"]
    before = [f"saved {now} {last} False" for last, now in pairwise([0, *evaluated])]
    assert len(before) == 2 and [line for line in done.stdout.splitlines() if line.endswith("False")] == before
    tiny.assert_equal_to_whole(settings, "careful")


def test_saving_by_the_clock_leaves_no_trace_in_the_history(settings: Path) -> None:
    tiny.change_run(settings, save_minutes=0.001, keep_last=100)
    try:
        tiny.train(settings, "clock")
    finally:
        tiny.change_run(settings, save_minutes=None, keep_last=3)
    tiny.assert_equal_to_whole(settings, "clock")
    steps = {path.name for path in (tiny.folder_of(settings, "clock") / "work/checkpoints").iterdir()}
    assert "step-20" in steps and len(steps) > len({"20", "40", "60"}) + 5


def test_samples_gone_through_are_listed_once_an_epoch(settings: Path) -> None:
    checkpoints = tiny.folder_of(settings, "whole") / "work/checkpoints"
    newest = max(checkpoints.iterdir(), key=lambda path: int(path.name[5:]))
    command = tiny.stage("ledger.py", "--checkpoint", newest, "--data", settings.parent)
    listed = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    assert rows[0] == ["epoch", "update", "sample"]
    data = tiny.dataset(settings)
    everyone = sorted(data.name(index) for index in range(len(data)))
    for epoch in ("0", "1"):
        assert sorted(sample for e, _, sample in rows[1:] if e == epoch) == everyone
    plan = Plan.of(tiny.RUN, len(data))
    assert rows[1:] == [
        [str(plan.position(update).epoch), str(update + 1), data.name(index)]
        for update in range(plan.updates)
        for index in plan.update_samples(update).tolist()
    ]
    assert list(gone_through(newest, settings.parent, 0)) == [(0, int(u), name) for e, u, name in rows[1:] if e == "0"]
    part = subprocess.run([*command, "--epoch", "1"], env=tiny.environment(), capture_output=True, text=True)
    assert part.stdout.splitlines()[1:] == ["\t".join(row) for row in rows[1:] if row[0] == "1"]


def test_a_ledger_of_other_data_or_of_no_checkpoint_is_refused(settings: Path, tmp_path: Path) -> None:
    newest = next((tiny.folder_of(settings, "whole") / "work/checkpoints").iterdir())
    for name in ("datasets", "shards"):
        shutil.copytree(settings.parent / name, tmp_path / "data" / name)
    assert next(gone_through(newest, tmp_path / "data"))
    shutil.copy(tmp_path / "data/datasets/prot/dev.h5", tmp_path / "data/datasets/prot/train.h5")
    with pytest.raises(UserError, match="not those that the checkpoint was trained on"):
        next(gone_through(newest, tmp_path / "data"))
    shutil.copytree(newest, tmp_path / "begun")
    state = json.loads((tmp_path / "begun/state.json").read_text())
    state["run"]["first"] = state["run"]["update"] - 1  # those before were the original's
    (tmp_path / "begun/state.json").write_text(json.dumps(state))
    assert {update for _, update, _ in gone_through(tmp_path / "begun", settings.parent)} == {state["run"]["update"]}
    shutil.copytree(newest, tmp_path / "step-1")
    (tmp_path / "step-1/state.json").write_text("")  # cut short
    for folder in (tmp_path / "step-1", tmp_path):
        with pytest.raises(UserError, match="is no checkpoint"):
            next(gone_through(folder, settings.parent))
