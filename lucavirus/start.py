"""A run started: from scratch, the original's weights, or its newest checkpoint; restarts and rewinds come first."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lucavirus import memory
from lucavirus.capacity import training_capacity
from lucavirus.checkpoint import damaged, newest_complete
from lucavirus.compute import choose_parallel, make_compute, set_determinism
from lucavirus.config import Settings
from lucavirus.config_load import chosen_run
from lucavirus.continuing import differences, forget_rewind, refusal, require_begun_with, rewind, set_aside
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.guard import StopRequest
from lucavirus.history import History
from lucavirus.kernels import advice
from lucavirus.model import LucaVirus, count_parameters
from lucavirus.plan import Plan
from lucavirus.prepare import Prepared, prepare
from lucavirus.publish import model_files
from lucavirus.sharding import place
from lucavirus.state import Checkpoints, State, read_fingerprint, read_state, restore_moments, restore_weights
from lucavirus.tasks import TASKS
from lucavirus.update import Updater
from lucavirus.weights import import_weights


@dataclass
class Started:
    """All that the loop needs, the same on every rank but for `ranks`."""

    prepared: Prepared
    ranks: Ranks
    checkpoints: Checkpoints
    state: State
    history: History
    updater: Updater

    @property
    def last_update(self) -> int:
        """Updates of the whole run: all epochs, unless the schedule or `stop_after` ends before."""
        planned = self.prepared.plan.updates
        return min(planned, self.updater.max_steps, self.prepared.run.stop_after.updates or planned)


def start(settings: Settings, name: str, data: Path, work: Path, ranks: Ranks, stop_request: StopRequest) -> Started:
    """Open the data, find the newest checkpoint, and load what it or the settings say.

    Raises UserError where the run's meaning has changed since its checkpoint, or the disk has no room for the next.
    """
    step, original = (settings.trained_checkpoint, settings.model_dirpath) if settings.run == name else (None, None)
    back_to = None if original else step
    prepared = prepare(name, chosen_run(settings, name), data)
    set_determinism(prepared.run)
    beside = model_files(prepared.architecture, data / "vocabularies")
    checkpoints = Checkpoints(work, beside, writes=ranks.first, asked_to_end=lambda: stop_request.came)
    said: list[str] = []
    if ranks.first:
        said += _arrange(prepared, checkpoints, settings.restart == name, back_to)
    newest = checkpoints.newest(ranks, said)
    if original and step:
        require_begun_with(work, original, step)
    if newest and (changed := differences(read_fingerprint(newest), prepared.fingerprint)):
        raise refusal(name, work, changed)
    state = read_state(newest) if newest else _first_state(prepared, step, original, checkpoints)
    state.resolved.setdefault("max_steps", prepared.max_steps())
    memory.prepare_for_model(prepared.architecture.weights)
    model = LucaVirus(prepared.architecture, prepared.run.seed)
    said += _load_weights(newest, original or prepared.run.model_dirpath, prepared.plan, state, model, beside)
    updater = make_updater(prepared, model, state, ranks)
    if newest:
        restore_moments(newest, model, updater.optimizer)
    if ranks.first:
        checkpoints.require_space(model, prepared.run.keep_last)
    history = History(work, ranks, state.history_bytes, state.update, checkpoints.asked_to_end)
    checkpoints.say = history.say
    started = Started(prepared, ranks, checkpoints, state, history, updater)
    for text in (*said, *_introduction(started)):
        history.say(text)
    return started


def _arrange(prepared: Prepared, checkpoints: Checkpoints, restart: bool, back_to: int | None) -> list[str]:
    """Set old work aside or go back, where that was asked for; returns what to say about it."""
    said: list[str] = []
    newest, work = newest_complete(checkpoints.folder, said.append), checkpoints.work
    if not newest and (lost := damaged(checkpoints.folder)):
        if not restart:
            raise UserError(
                f"no checkpoint is whole any more: {', '.join(lost)}", where=str(checkpoints.folder),
                hint="give one back its name (step-N) if it is mended; or begin the run anew (what is there is set "
                f"aside): the same command with `--config restart={prepared.name}`",
            )  # fmt: skip
        said.append(f"begun anew, because no checkpoint was whole; the old work is in {set_aside(work, 'restart')}")
    elif newest and restart and (changed := differences(read_fingerprint(newest), prepared.fingerprint)):
        said.append(f"begun anew ({'; '.join(changed)}); the old work is in {set_aside(work, 'restart')}")
    elif newest and restart:
        said.append(f"restart: no setting has changed since {newest}; to train it again all the same, move {work} away")
    elif newest and back_to:
        said.append(rewind(work, back_to))
    if not back_to:
        forget_rewind(work)
    return said


def _first_state(prepared: Prepared, step: int | None, original: str | None, checkpoints: Checkpoints) -> State:
    """The state without a checkpoint: at the first update boundary at or after the step of original weights, or 0."""
    if step is None:
        return State()
    if original is None:
        raise UserError(
            f"there is no checkpoint of step {step}",
            where=str(checkpoints.folder),
            hint="leave trained_checkpoint out, or give model_dirpath: the folder of an original checkpoint",
        )
    plan = prepared.plan
    first = bisect_left(range(plan.updates), step, key=lambda update: plan.position(update).step)
    return State(update=first, first=first, original={"folder": os.path.realpath(original), "step": step})


def make_updater(prepared: Prepared, model: LucaVirus, state: State, ranks: Ranks) -> Updater:
    """Bring the model to the devices; a size of packs that was found under the same conditions is used again."""
    run = prepared.run
    compute = make_compute(run, ranks.device, choose_parallel(run, model, ranks))
    compiled = place(model, run, compute, ranks)
    updater = Updater(model, run, compute, state.resolved["max_steps"], ranks)
    # All that a pack's memory depends on and that may change in the course of a run.
    conditions = [
        compute.device_name, str(compute.dtype), compute.attention, compute.parallel, ranks.world_size, compiled,
        run.recomputation, run.deterministic, run.max_tokens_per_pack,
    ]  # fmt: skip
    # Ranks may differ in what they can compile, but they search together.
    known = ranks.all(state.resolved.get("packs_for") == conditions)
    capacity = state.resolved["max_tokens_per_pack"] if known else training_capacity(updater, prepared.classes)
    updater.compute = compute.with_capacity(capacity)
    state.resolved |= {"max_tokens_per_pack": capacity, "packs_for": conditions}
    return updater


def _load_weights(
    newest: Path | None, folder: str | None, plan: Plan, state: State, model: LucaVirus, beside: Mapping[str, str]
) -> list[str]:
    """Load weights from a checkpoint or from a folder; returns what to say about it. `beside` are the run's labels."""
    if newest:
        restore_weights(newest, model)
        return [f"going on from {newest}"]
    if folder is None:
        return []
    said = [f"weights of {folder}: {import_weights(model, Path(folder))}"]
    for name, text in beside.items():
        if (theirs := Path(folder, name)).exists() and name.startswith("labels/") and theirs.read_text("utf-8") != text:
            said.append(
                f"warning: {theirs} has other classes than this run; its head is taken where their number is the same"
            )
    if state.update:
        at = plan.position(state.update)
        said.append(
            f"schedule and data go on at step {at.step} (update {at.update}, epoch {at.epoch}); the original never "
            "saved the optimizer's moments: they begin at 0"
        )
    return said


def _early_end(started: Started) -> list[str]:
    """A warning where there is nothing left to train, or the learning rate is 0 before the last epoch has ended."""
    run, plan, last = started.prepared.run, started.prepared.plan, started.updater.max_steps
    if started.state.update > started.last_update:
        done = f"at update {started.state.update:,}, beyond its last one by these settings, {started.last_update:,}"
        return [f"warning: the run is already {done}: it is published as it is"]
    if last >= plan.updates:
        return []
    epochs = f"after {last / plan.updates_per_epoch:.2f} of {run.max_epochs} epochs"
    why = "; `auto` was computed at the first start, for its epochs: more of them need a run of another name"
    return [f"warning: with max_steps {last:,} the run ends {epochs}{why if run.max_steps == 'auto' else ''}"]


def _warnings(prepared: Prepared) -> Iterator[str]:
    """What these data cannot teach, or not tell."""
    yield from (f"warning: {task} has no label in these data; the run goes on without it" for task in prepared.dropped)
    yield from (f"warning: {task} has no label in these data; its head only decays" for task in prepared.unlabelled)
    run, samples = prepared.run, len(prepared.train)
    if run.sequences_per_update > samples:
        taken = f"an update takes {run.sequences_per_update:,} sequences, and there are {samples:,}"
        yield f"warning: {taken}: lower batch_size or gradient_accumulation_steps"
    updates = min(prepared.plan.updates, prepared.max_steps())
    warmup = run.warmup_steps / run.gradient_accumulation_steps
    if warmup >= updates:
        reached = f"{run.learning_rate * updates / warmup:.2g} of {run.learning_rate:g}"
        yield (
            f"warning: the warm-up is {warmup:,.0f} updates, the run {updates:,}: its learning rate rises to the end, "
            f"to {reached}; lower warmup_steps (now {run.warmup_steps:,})"
        )
    for task, classes in prepared.classes.items():
        if classes == 1 and not TASKS[task].multi_label:
            yield f"warning: {task} has one class only: there is nothing to learn"
    if "prot_keyword" in prepared.classes and not run.keyword_negatives:
        yield "warning: with keyword_negatives: false a constant is right: prot_keyword's numbers say nothing"
    if not len(prepared.dev):
        yield "warning: there is no dev sequence: which weights are the best is not known, and the last ones are taken"
    if not len(prepared.test):
        yield "warning: there is no test sequence: how good the model is with new sequences is not measured"


def _introduction(started: Started) -> list[str]:
    run, prepared, plan = started.prepared.run, started.prepared, started.prepared.plan
    compute = started.updater.compute
    sizes = " / ".join(f"{len(d):,}" for d in (prepared.train, prepared.dev, prepared.test))
    parameters = count_parameters(started.updater.model)
    faster = advice(compute.device, compute.attention, prepared.architecture.attention_head_size, run.deterministic)
    max_steps = f"{started.updater.max_steps:,}{' (auto)' if run.max_steps == 'auto' else ''}"
    return [
        *_warnings(prepared),
        f"run {prepared.name}: {parameters:,} parameters, {sizes} sequences (train / dev / test)",
        f"B = {run.gpus} x {run.batch_size} x {run.gradient_accumulation_steps} = {run.sequences_per_update} "
        f"sequences an update, computed by {started.ranks.world_size} process(es) on {compute.device_name} "
        f"({compute.parallel}), {compute.dtype}, {compute.attention}, packs of at most {compute.capacity:,} tokens",
        *([faster] if faster else []),
        *_early_end(started),
        f"{plan.updates_per_epoch:,} updates an epoch, {started.last_update:,} in all; max_steps {max_steps}",
    ]
