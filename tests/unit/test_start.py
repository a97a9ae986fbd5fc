"""What a start says where it does not do what one may have expected."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lucavirus import shards
from lucavirus.checkpoint import save_checkpoint
from lucavirus.config import Run, Settings, StopAfter
from lucavirus.continuing import differences
from lucavirus.dataset import FORMAT, VERSION
from lucavirus.errors import UserError
from lucavirus.guard import StopRequest
from lucavirus.model import LucaVirus
from lucavirus.plan import Plan
from lucavirus.prepare import prepare
from lucavirus.shards import map_arrays, write_arrays
from lucavirus.start import Started, _arrange, _early_end, _first_state, _introduction, _warnings, start
from lucavirus.state import Checkpoints, State
from tests import tiny

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
    started: Any = SimpleNamespace(
        prepared=prepared, updater=SimpleNamespace(max_steps=last), state=State(), last_update=9
    )
    assert _early_end(started) == told


def test_what_the_data_cannot_teach_or_tell_is_told() -> None:
    words: dict[str, Any] = {
        "dropped": ("gene_taxonomy",), "unlabelled": (),
        "classes": {"prot_site": 1, "prot_domain": 2, "prot_keyword": 1},
        "train": range(256), "dev": range(1), "test": range(1), "run": GIVEN, "plan": SimpleNamespace(updates=9),
        "max_steps": lambda: 9,
    }  # fmt: skip
    left_out = "warning: gene_taxonomy has no label in these data; the run goes on without it"
    trivial = "warning: prot_site has one class only: there is nothing to learn"  # a keyword is there or not
    assert list(_warnings(SimpleNamespace(**words))) == [left_out, trivial]  # type: ignore[arg-type]
    positives = SimpleNamespace(**words | {"run": GIVEN.model_copy(update={"keyword_negatives": False})})
    constant = "warning: with keyword_negatives: false a constant is right: prot_keyword's numbers say nothing"
    assert list(_warnings(positives)) == [left_out, trivial, constant]  # type: ignore[arg-type]
    (_, small, *_) = _warnings(SimpleNamespace(**words | {"train": range(255)}))  # type: ignore[arg-type]
    assert small.startswith("warning: an update takes 256 sequences, and there are 255: lower")
    told = list(_warnings(SimpleNamespace(**words | {"dev": (), "test": ()})))  # type: ignore[arg-type]
    assert [line.split(":")[1] for line in told[2:]] == [" there is no dev sequence", " there is no test sequence"]


def test_a_restart_of_what_has_not_changed_is_told_and_sets_nothing_aside(tmp_path: Path) -> None:
    newest = save_checkpoint(tmp_path / "checkpoints", 4, {}, {"fingerprint": {"seed": 1}})
    prepared: Any = SimpleNamespace(fingerprint={"seed": 1})
    (told,) = _arrange(prepared, Checkpoints(tmp_path, {}), True, None)
    assert told == (
        f"restart: no setting has changed since {newest}; to train it again all the same, move {tmp_path} away"
    )
    assert newest.exists() and not (tmp_path / "set-aside").exists()


def test_a_run_without_a_whole_checkpoint_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    """Its history and its best weights would be lost."""
    prepared: Any = SimpleNamespace(name="full", fingerprint={})
    place = Checkpoints(tmp_path, {})
    save_checkpoint(place.folder, 4, {}, {"fingerprint": {}})
    (place.at(4) / "state.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    for _ in range(2):  # the second start finds it under its new name
        with pytest.raises(UserError, match="no checkpoint is whole any more: damaged-step-4-") as caught:
            _arrange(prepared, place, False, None)
        assert caught.value.hint.endswith("the same command with `--config restart=full`")
    (told,) = _arrange(prepared, place, True, None)
    assert told.startswith("begun anew, because no checkpoint was whole; the old work is in ")
    assert (tmp_path / "set-aside/001/metrics.jsonl").exists()
    assert _arrange(prepared, place, False, None) == []


def test_a_warm_up_longer_than_the_training_is_told() -> None:
    run = Run(warmup_steps=320, gradient_accumulation_steps=32, learning_rate=0.002)
    words: dict[str, Any] = {"run": run, "dropped": (), "unlabelled": (), "classes": {}}
    words |= {"train": range(256), "dev": range(1), "test": range(1)}
    for planned, last, told in ((10, 100, "10: 0.002"), (100, 5, "5: 0.001"), (11, 11, "")):
        prepared = SimpleNamespace(**words, plan=SimpleNamespace(updates=planned), max_steps=lambda last=last: last)
        found = list(_warnings(prepared))  # type: ignore[arg-type]
        updates, _, rate = told.partition(": ")
        told = told and (
            f"warning: the warm-up is 10 updates, the run {updates}: its learning rate rises to the end, to {rate} of "
            "0.002; lower warmup_steps (now 320)"
        )
        assert found == ([told] if told else [])


def test_a_run_beyond_its_end_is_told() -> None:
    started: Any = SimpleNamespace(
        prepared=SimpleNamespace(run=GIVEN, plan=SimpleNamespace(updates=48)), updater=SimpleNamespace(max_steps=48),
        state=State(update=740), last_update=74,
    )  # fmt: skip
    (told,) = _early_end(started)
    assert told.startswith("warning: the run is already at update 740, beyond its last one by these settings, 74:")
    started.state.update = 74
    assert _early_end(started) == []


def test_going_back_is_forgotten_by_a_start_that_goes_on(tmp_path: Path) -> None:
    prepared: Any = SimpleNamespace(fingerprint={})
    place = Checkpoints(tmp_path, {})
    told = []
    for back_to in (4, 4, None, 4):
        if back_to is None or not told:
            for step in (4, 8):
                save_checkpoint(place.folder, step, {}, {"fingerprint": {}})
        told.append([text.split(";")[0] for text in _arrange(prepared, place, False, back_to)])
    assert told == [["back at step 4"], ["went back to step 4 at an earlier start"], [], ["back at step 4"]]


@pytest.mark.parametrize(("step", "update"), [(1, 1), (8, 2), (9, 3), (50, 13), (51, 14), (100, 26), (101, 26)])
def test_original_weights_go_on_at_the_first_update_that_does_not_repeat_a_step(step: int, update: int) -> None:
    prepared: Any = SimpleNamespace(plan=Plan(100, 2, 1, 4, 0, 2))
    place: Any = SimpleNamespace(folder="work")
    began = {"folder": os.path.realpath("theirs"), "step": step}
    assert _first_state(prepared, step, "theirs", place) == State(update=update, first=update, original=began)
    with pytest.raises(UserError, match=f"work: there is no checkpoint of step {step}"):
        _first_state(prepared, step, None, place)


@pytest.mark.parametrize(
    ("planned", "max_steps", "stop", "last"), [(9, 8, None, 8), (8, 9, None, 8), (9, 8, 7, 7), (7, 9, 8, 7)]
)
def test_the_last_update_is_that_of_the_first_end(planned: int, max_steps: int, stop: int | None, last: int) -> None:
    run, plan = Run(stop_after=StopAfter(updates=stop)), SimpleNamespace(updates=planned)
    parts: list[Any] = [SimpleNamespace(run=run, plan=plan), SimpleNamespace(max_steps=max_steps)]
    started = Started(parts[0], tiny.ALONE, *[None] * 3, parts[1])  # type: ignore[arg-type]
    assert started.last_update == last


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_project(tmp_path_factory.mktemp("start"))


def begun(project: Path, work: Path, changes: dict[str, Any], **words: Any) -> Started:
    settings = Settings.model_validate_json(project.read_text())
    runs = {"full": settings.runs["full"].model_copy(update=changes)}
    work.mkdir(exist_ok=True)
    settings = settings.model_copy(update={"runs": runs, **words})
    started = start(settings, "full", project.parent, work, tiny.ALONE, StopRequest())
    started.history.close()
    return started


def test_saving_hears_of_a_stop_and_speaks_through_the_history(project: Path, tmp_path: Path) -> None:
    settings, stop = Settings.model_validate_json(project.read_text()), StopRequest()
    started = start(settings, "full", project.parent, tmp_path, tiny.ALONE, stop)
    assert not started.checkpoints.asked_to_end()
    stop.came = True
    assert started.checkpoints.asked_to_end() and started.history._asked_to_end()
    started.checkpoints.say("it is tried again")
    started.history.close()
    assert (tmp_path / "train.log").read_text().endswith(" it is tried again\n")


def test_a_start_goes_on_where_the_checkpoint_stood(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(Checkpoints, "require_space", lambda self, model, keep_last: kept.append(keep_last))
    first = begun(project, tmp_path, {"keep_last": 5})
    assert kept == [5] and (first.state.update, first.updater.max_steps) == (0, 200)
    optimizer, model, run = first.updater.optimizer, first.updater.model, first.prepared.run
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    first.state.update, first.state.resolved["max_steps"] = 3, 77
    first.checkpoints.save(12, model, optimizer, first.state, first.prepared.fingerprint, run)
    first.checkpoints.finish()
    # What is said of other runs changes nothing.
    again = begun(project, tmp_path, {}, run="other", trained_checkpoint=99, restart="other")
    assert (again.state.update, again.updater.max_steps) == (3, 77)
    for one, other in zip(model.parameters(), again.updater.model.parameters(), strict=True):
        moments, found = optimizer.state[one], again.updater.optimizer.state[other]
        assert torch.equal(one, other) and torch.equal(moments["exp_avg"], found["exp_avg"])
    with pytest.raises(UserError, match="the run has checkpoints, and did not begin with these weights"):
        begun(project, tmp_path, {}, run="full", trained_checkpoint=8, model_dirpath="theirs")
    with pytest.raises(UserError, match="trained so far with other settings"):
        begun(project, tmp_path, {"seed": 5}, restart="other")


def test_a_folder_without_data_sets_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}: has no data sets\n.*`snakemake split` makes them"):
        prepare("full", tiny.RUN, tmp_path)


def test_heads_of_other_classes_are_told(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    (folder / "labels").mkdir(parents=True)
    model = LucaVirus(begun(project, tmp_path / "none", {}).prepared.architecture)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    same = (project.parent / "vocabularies/gene_type.txt").read_text()
    for text, told in ((same, 0), (same + "one more\n", 1)):
        (folder / "labels/gene_type.txt").write_text(text)
        work = tmp_path / str(told)
        begun(project, work, {"model_dirpath": str(folder)})
        assert (work / "train.log").read_text().count(f"{folder}/labels/gene_type.txt has other classes") == told


def test_weights_named_on_the_command_line_go_before_those_of_the_run(project: Path, tmp_path: Path) -> None:
    architecture = begun(project, tmp_path / "none", {}).prepared.architecture
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        tensors = {name: tensor.clone() for name, tensor in LucaVirus(architecture, seed).state_dict().items()}
        save_file(tensors, tmp_path / str(seed) / "model.safetensors")
    of_run = {"model_dirpath": str(tmp_path / "1")}
    words = {"run": "full", "model_dirpath": str(tmp_path / "2"), "trained_checkpoint": 8}
    for work, said, seed, update in (("a", {}, 1, 0), ("b", words, 2, 2)):
        started = begun(project, tmp_path / work, of_run, **said)
        assert started.state.update == update
        wanted = LucaVirus(architecture, seed).layers[0].fc1.weight
        assert torch.equal(started.updater.model.layers[0].fc1.weight, wanted)
    assert started.state.original == {"folder": str(tmp_path / "2"), "step": 8}


def test_what_gives_a_run_its_meaning(project: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(project.parent, tmp_path / "data"))
    before = prepare("full", tiny.RUN, data)
    assert tiny.RUN.meaning().items() <= before.fingerprint.items()
    splits = (before.train, before.dev, before.test)
    assert before.fingerprint["sequences and labels"] == [each for split in splits for each in split.fingerprint]
    names = data / "vocabularies/gene_type.txt"
    first, second, *rest = names.read_text().splitlines()
    names.write_text("\n".join([first + second[0], second[1:], *rest]) + "\n")
    (changed,) = differences(before.fingerprint, prepare("full", tiny.RUN, data).fingerprint)
    assert changed == "vocabulary of gene_type: changed"
    # The task stays configured, and so do the mask tasks, which have no vocabulary.
    names.write_text("")
    after = prepare("full", tiny.RUN, data)
    assert after.dropped == ("gene_type",) and set(tiny.RUN.tasks) - set(after.run.tasks) == {"gene_type"}
    (changed,) = differences(before.fingerprint, after.fingerprint)
    assert changed == "vocabulary of gene_type: changed"
    with pytest.raises(UserError, match="no task of run full has a label"):
        prepare("full", tiny.RUN.model_copy(update={"tasks": ("gene_type",)}), data)


@pytest.mark.parametrize(("last_rate", "steps"), [(1e-9, 116), (0.0015, 232)])
def test_the_schedule_ends_at_the_last_rate(project: Path, last_rate: float, steps: int) -> None:
    auto = {"max_steps": "auto", "final_learning_rate": last_rate}
    prepared = prepare("full", tiny.RUN.model_copy(update=auto), project.parent)
    assert prepared.plan.updates == 116 and prepared.max_steps() == steps
    assert prepare("full", tiny.RUN, project.parent).max_steps() == 200


def test_warnings_come_before_what_the_run_is(project: Path, tmp_path: Path) -> None:
    started = begun(project, tmp_path, {})
    started.prepared = replace(started.prepared, dropped=("prot_site",), unlabelled=("prot_homo",))
    first, second, third, *_ = _introduction(started)
    assert first.startswith("warning: prot_site has no label") and third.startswith("run full: ")
    assert second == "warning: prot_homo has no label in these data; its head only decays"


def test_a_task_whose_vocabulary_was_given_may_have_no_label(project: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(project.parent, tmp_path / "data"))
    for path in (data / "shards").glob("*/*.h5"):
        arrays, attributes = map_arrays(path, shards.FORMAT, shards.VERSION)
        changed = {name: np.array(array) for name, array in arrays.items()}
        changed["labels/gene_taxonomy/values"] = changed["labels/gene_taxonomy/values"][:0]
        changed["labels/gene_taxonomy/offsets"] *= 0
        write_arrays(path, changed, attributes)
    prepared = prepare("full", tiny.RUN, data)
    assert (prepared.dropped, prepared.unlabelled) == ((), ("gene_taxonomy",))
    assert "gene_taxonomy" in prepared.run.tasks and prepared.architecture.heads["gene_taxonomy"][1] == 5
    of_genes = {"molecules": ("gene",), "tasks": ("gene_taxonomy",)}
    with pytest.raises(UserError, match="no task of run full has a label"):
        prepare("full", tiny.RUN.model_copy(update=of_genes), data)
    of_genes |= {"tasks": ("gene_taxonomy", "gene_type"), "task_weights": {"gene_type": 0.0}}
    with pytest.raises(UserError, match=r"task_weights are 0 for all tasks of run full that have a label: gene_type\n"):
        prepare("full", tiny.RUN.model_copy(update=of_genes), data)


def test_a_run_without_training_sequences_is_refused(project: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(project.parent, tmp_path / "data"))
    for path in (data / "datasets").glob("*/train.h5"):
        arrays, attributes = map_arrays(path, FORMAT, VERSION)
        write_arrays(path, {name: np.array(array[:0]) for name, array in arrays.items()}, attributes)
    with pytest.raises(UserError, match="there are no training sequences for run full"):
        prepare("full", tiny.RUN, data)
