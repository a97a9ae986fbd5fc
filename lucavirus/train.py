"""The training loop: updates, evaluations, checkpoints; every start goes on from the newest whole checkpoint."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from lucavirus.config import Settings
from lucavirus.dataset import Dataset
from lucavirus.distributed import Ranks, joined
from lucavirus.errors import Preempted
from lucavirus.evaluate import Compute, evaluate_split
from lucavirus.files import replace_json
from lucavirus.guard import StopRequest, only_owner
from lucavirus.history import History
from lucavirus.loader import Batches, updates
from lucavirus.model import LucaVirus, count_parameters
from lucavirus.plan import crosses
from lucavirus.prepare import Prepared, check_fingerprint, prepare, resolve_compute
from lucavirus.publish import publish_history, publish_model
from lucavirus.state import PLACE, STATISTICS, Checkpoints, State, read_fingerprint, read_state, restore
from lucavirus.tasks import TASKS
from lucavirus.update import Updater
from lucavirus.weights import import_weights


def train(settings: Settings, name: str, data: Path, work: Path, out: Path) -> None:
    """Train a run to its end, from its newest checkpoint in `work`, and publish it to `out`.

    `data` is the project's results folder. Raises UserError for mistakes of the user, Preempted after a signal.
    """
    with joined(settings.runs[name].device) as ranks, only_owner(work) if ranks.first else nullcontext():
        trainer = Trainer(prepare(name, settings.runs[name], data), ranks, work)
        try:
            trainer.run_to_end()
        finally:
            trainer.history.close()
        if ranks.first:
            trainer.publish(data, out)
        ranks.barrier()


class Trainer:
    """One rank of a training."""

    def __init__(self, prepared: Prepared, ranks: Ranks, work: Path) -> None:
        self.prepared, self.run, self.plan, self.ranks, self.work = prepared, prepared.run, prepared.plan, ranks, work
        self.checkpoints = Checkpoints(work)
        warnings: list[str] = []
        newest = self.checkpoints.newest(ranks, warnings)
        if newest:
            check_fingerprint(read_fingerprint(newest), prepared.fingerprint, newest)
        self.state = read_state(newest) if newest else State()
        self.history = History(work, ranks, self.state.history_bytes, self.state.update)
        for text in warnings:
            self.history.say(f"warning: {text}")
        self.model = LucaVirus(prepared.architecture, self.run.seed).to(ranks.device)
        self.compute = self._resolve()
        self.updater = Updater(self.model, self.run, self.compute, self.state.resolved["max_steps"], ranks)
        self._load(newest)
        self.stop_request = StopRequest()
        self._window_start, self._data_seconds = time.perf_counter(), 0.0
        self._introduce()

    def _resolve(self) -> Compute:
        """Values that were `auto`: those of the checkpoint when there is one, so that they stay."""
        compute = resolve_compute(self.run, self.model, self.ranks)
        resolved = self.state.resolved
        resolved.setdefault("max_steps", self.prepared.max_steps())
        if self.run.max_tokens_per_pack == "auto" and resolved.get("device") == self.ranks.device.type:
            compute = Compute(compute.device, compute.dtype, resolved["max_tokens_per_pack"])
        resolved |= {"max_tokens_per_pack": compute.capacity, "device": self.ranks.device.type}
        return compute

    def _load(self, newest: Path | None) -> None:
        if newest:
            restore(newest, self.model, self.updater.optimizer)
            self.history.say(f"going on from {newest}")
        elif self.run.model_dirpath:
            found = import_weights(self.model, Path(self.run.model_dirpath))
            self.history.say(f"weights of {self.run.model_dirpath}: {found}")

    def _introduce(self) -> None:
        run, prepared, say = self.run, self.prepared, self.history.say
        for task in prepared.dropped:
            say(f"warning: {task} has no label in these data; the run goes on without it")
        sizes = " / ".join(f"{len(d):,}" for d in (prepared.train, prepared.dev, prepared.test))
        say(f"run {prepared.name}: {count_parameters(self.model):,} parameters, {sizes} sequences (train / dev / test)")
        say(
            f"B = {run.gpus} x {run.batch_size} x {run.gradient_accumulation_steps} = {run.sequences_per_update} "
            f"sequences an update, computed by {self.ranks.world_size} process(es) on {self.ranks.device.type}, "
            f"{self.compute.dtype}, packs of at most {self.compute.capacity:,} tokens"
        )
        max_steps = f"{self.state.resolved['max_steps']:,}{' (auto)' if run.max_steps == 'auto' else ''}"
        say(f"{self.plan.updates_per_epoch:,} updates an epoch, {self.last_update:,} in all; max_steps {max_steps}")

    # -- the loop ------------------------------------------------------------------------------------------------------

    @property
    def last_update(self) -> int:
        """Updates of the whole run: all epochs, unless the schedule or `stop_after` ends before."""
        return min(self.plan.updates, self.updater.max_steps, self.run.stop_after.updates or self.plan.updates)

    @property
    def done(self) -> bool:
        """True when the run has reached its last update, or the minutes of `stop_after`."""
        minutes = self.run.stop_after.minutes
        return self.state.update >= self.last_update or (minutes is not None and self.state.seconds >= 60 * minutes)

    def run_to_end(self) -> None:
        """Train until the run is done. Raises Preempted where a signal asked for an early end; all is saved then."""
        self._boundary()
        batches = Batches(
            self.prepared.train, self.run, self.plan, self.prepared.classes, self.compute.capacity,
            self.ranks.rank, self.ranks.world_size,
        )  # fmt: skip
        self.history.start_bar(self.state.update, self.last_update)
        with self.stop_request.listening():
            packs = updates(batches, self.state.update, self.last_update)
            while not self.done:
                if self._update(packs):
                    self._save(scheduled=False)
                    raise Preempted(f"preempted: saved at update {self.state.update}; start it again to continue")
                self._boundary()

    def _update(self, packs: Iterator[list[Any]]) -> bool:
        """One update, counted and logged; returns whether any rank was asked to stop."""
        started = time.perf_counter()
        made = next(packs)
        self._data_seconds += time.perf_counter() - started
        update = self.state.update + 1
        statistics, norm = self.updater.step(update, made, self.stop_request.came)
        stop, statistics[PLACE["stop"]] = statistics[PLACE["stop"]], 0.0
        self.state.add(statistics)
        seconds = self._agreed_seconds(time.perf_counter() - started)
        self.state.seconds += seconds
        loss, sequences, tokens = (statistics[PLACE[name]] for name in ("loss", "sequences", "tokens"))
        self.history.advance(loss / sequences, self.updater.learning_rate(update), tokens / seconds)
        if self._at_interval(self.run.loss_logging_steps) or self._at_interval(self.run.logging_steps):
            self._log(norm)
        return stop > 0

    def _agreed_seconds(self, seconds: float) -> float:
        """The first rank's clock decides where ranks must agree on when the minutes of `stop_after` are over."""
        if self.run.stop_after.minutes is None:
            return seconds
        shared = torch.tensor([seconds], dtype=torch.float64, device=self.ranks.device)
        self.ranks.broadcast_(shared)
        return float(shared)

    def _at_interval(self, steps: int) -> bool:
        before, after = (self.plan.position(update).step for update in (self.state.update - 1, self.state.update))
        return crosses(before, after, steps)

    # -- what happens between updates ----------------------------------------------------------------------------------

    def _boundary(self) -> None:
        """Evaluate and save where that is due: at the start too, for a run that was ended before it was done."""
        state = self.state
        if state.update == 0:
            return
        epoch_ended = self.plan.position(state.update).index == 0
        if (epoch_ended or self.done) and state.evaluated != state.update:
            self._evaluate()
        if (self.done or self._at_interval(self.run.save_steps)) and state.saved != state.update:
            self._save(scheduled=True)

    def _record(self, event: str, loss: float | None, losses: dict[str, float]) -> dict[str, Any]:
        at = self.plan.position(self.state.update)
        return {
            "event": event, "update": at.update, "step": at.step, "epoch": at.update / self.plan.updates_per_epoch,
            "loss": loss, "losses": losses, "lr": self.updater.learning_rate(at.update),
            "sequences": self.state.sequences, "tokens": self.state.tokens,
        }  # fmt: skip

    def _log(self, norm: float) -> None:
        window, seconds = (
            dict(zip(STATISTICS, self.state.window, strict=True)),
            time.perf_counter() - self._window_start,
        )
        losses = {t: window[f"loss of {t}"] / n for t in TASKS if (n := window[f"sequences with {t}"])}
        loss, speed = window["loss"] / window["sequences"], window["tokens"] / seconds
        record = self._record("train", loss, losses) | {"tokens_per_s": round(speed, 1)}
        scalars = {"train/loss": loss, "train/learning_rate": record["lr"]}
        if self._at_interval(self.run.logging_steps):
            full = {
                "grad_norm": norm,
                "data_wait_s": round(self._data_seconds, 4),
                "reduce_wait_s": round(self.updater.reduce_seconds, 4),
                "memory_mb": round(_memory_mb(self.ranks.device)),
            }
            self._data_seconds = self.updater.reduce_seconds = 0.0
            record |= full
            scalars |= {f"train/{task}": value for task, value in losses.items()}
            scalars |= {"speed/tokens_per_s": speed} | {f"speed/{name}": float(value) for name, value in full.items()}
        self.history.event(record, scalars)
        self.state.window = [0.0] * len(STATISTICS)
        self._window_start = time.perf_counter()

    def _evaluate(self) -> None:
        """Dev loss after an epoch and at the end; when it is the best so far, keep the weights and test them."""
        state, prepared, started = self.state, self.prepared, time.perf_counter()
        if len(prepared.dev):
            loss = self._evaluate_on("dev", prepared.dev, metrics=False)
            if state.best is None or loss < state.best["loss"]:
                state.best = {"update": state.update, "step": self.plan.position(state.update).step, "loss": loss}
                if self.ranks.first:
                    self.checkpoints.save_best(self.model, state.best)
                if len(prepared.test):
                    self._evaluate_on("test", prepared.test, metrics=True)
        state.evaluated = state.update
        self._window_start += time.perf_counter() - started  # the speed is that of training

    def _evaluate_on(self, split: str, dataset: Dataset, *, metrics: bool) -> float:
        result = evaluate_split(
            self.model, dataset, self.run, self.prepared.classes, self.compute, self.ranks, metrics=metrics
        )
        losses = {task: found["loss"] for task, found in result["tasks"].items()}
        record = self._record(split, result["loss"], losses)
        if metrics:
            record["metrics"] = result["tasks"]
        self.history.event(record, {f"{split}/loss": result["loss"], **{f"{split}/{t}": x for t, x in losses.items()}})
        self.history.say(f"update {self.state.update:,}: {split} loss {result['loss']:.4f}")
        return float(result["loss"])

    def _save(self, *, scheduled: bool) -> None:
        """Save everything. What a signal asked for leaves no line in the history: the run is the same without it."""
        step = self.plan.position(self.state.update).step
        if scheduled:
            self.state.saved = self.state.update
            self.history.event(self._record("save", None, {}) | {"checkpoint": f"step-{step}"}, {})
        self.state.history_bytes = self.history.flushed_size()
        if self.ranks.first:
            self.checkpoints.save(
                step, self.model, self.updater.optimizer, self.state, self.prepared.fingerprint, self.run.keep_last
            )
        self.ranks.barrier()

    def publish(self, data: Path, out: Path) -> None:
        """Put the results of a finished run in place; training.json last."""
        state, at = self.state, self.plan.position(self.state.update)
        last = self.checkpoints.at(at.step)
        best = self.checkpoints.best(state, last)
        publish_model(best, last, self.prepared.architecture, data / "vocabularies", out)
        publish_history(self.work, out)
        early = state.update < min(self.plan.updates, self.updater.max_steps)
        replace_json(out / "training.json", {
            "run": self.prepared.name, "finished": True, "reason": "stop_after" if early else "all epochs done",
            "updates": at.update, "steps": at.step, "epochs": at.update / self.plan.updates_per_epoch,
            "sequences": state.sequences, "tokens": state.tokens, "seconds": round(state.seconds, 1),
            "best": state.best, "B": self.run.sequences_per_update, "world_size": self.ranks.world_size,
            "parameters": count_parameters(self.model), "max_steps": self.updater.max_steps,
        })  # fmt: skip


def _memory_mb(device: torch.device) -> float:
    """Peak memory of this process, MiB: of the GPU where it computes on one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
