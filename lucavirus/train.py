"""The training loop: updates, evaluations, checkpoints; every start goes on from the newest whole checkpoint."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from lucavirus.checkpoint import damage
from lucavirus.config import Settings
from lucavirus.config_load import chosen_run
from lucavirus.dataset import Dataset
from lucavirus.distributed import joined
from lucavirus.errors import DONE_BEFORE, SAVED, TIME_LIMIT, Preempted, UserError, report
from lucavirus.evaluate import evaluate_split
from lucavirus.files import replace_json
from lucavirus.flops import encoder_flops, peak_flops
from lucavirus.guard import Owner, StopRequest, only_owner
from lucavirus.loader import Batches, updates
from lucavirus.model import count_parameters
from lucavirus.packs import Pack
from lucavirus.plan import crosses
from lucavirus.publish import publish_history, publish_model
from lucavirus.staging import staged
from lucavirus.start import Started, start
from lucavirus.state import PLACE, STATISTICS, task_losses

# A second Snakemake that looks whether the folder is free holds it for a moment.
GLANCE_SECONDS = 2.0
# Seconds since the newest checkpoint after which an evaluation does not begin before there is another.
WORTH_SAVING = 60.0


def train(settings: Settings, name: str, data: Path, work: Path, out: Path) -> None:
    """Train a run to its end, from its newest checkpoint in `work`, and publish it to `out`.

    `data` is the project's results folder. Raises UserError for mistakes of the user, Preempted after a signal.
    """
    with StopRequest().listening() as stop_request:  # from the start: a signal before the first update kills no rank
        with (
            joined(chosen_run(settings, name).device, announce=True) as ranks,
            only_owner(work, patience=GLANCE_SECONDS) if ranks.first else nullcontext() as owner,
        ):
            local = staged(data, chosen_run(settings, name).stage_shards_to)
            trainer = Trainer(start(settings, name, local, work, ranks, stop_request), stop_request, owner)
            with closing(trainer.history):
                try:
                    trainer.run_to_end()
                except BaseException:
                    trainer.end_saving()
                    raise
                trainer.checkpoints.finish()
            if ranks.first:
                trainer.publish(work, out)
            ranks.barrier()
        if stop_request.came:
            report(DONE_BEFORE)


class Trainer:
    """One rank of a training."""

    def __init__(self, started: Started, stop_request: StopRequest, owner: Owner | None) -> None:
        self.prepared, self.ranks, self.last_update = started.prepared, started.ranks, started.last_update
        self.run, self.plan = started.prepared.run, started.prepared.plan
        self.checkpoints, self.state, self.history = started.checkpoints, started.state, started.history
        self.updater, self.model = started.updater, started.updater.model
        self.compute = started.updater.compute
        self.stop_request, self.owner = stop_request, owner
        self._last_save = time.monotonic()
        self._data_seconds = 0.0

    # -- the loop ------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """True when the run has reached its last update, or the minutes of `stop_after`."""
        minutes = self.run.stop_after.minutes
        return self.state.update >= self.last_update or (minutes is not None and self.state.seconds >= 60 * minutes)

    def run_to_end(self) -> None:
        """Train until the run is done. Raises Preempted where a signal asked for an early end; all is saved then."""
        batches = Batches.of(self.prepared, self.compute, self.ranks)
        self.history.start_bar(self.state.update, self.last_update)
        self._boundary()
        # Closed whatever happens: a process waits at its end for the loader's workers, and they ignore signals.
        with closing(updates(batches, self.state.update, self.last_update, self.ranks.device)) as packs:
            while not self.done:
                self._update_and_save(packs)

    def end_saving(self) -> None:
        """Let the save under way end, after a failure that must not be hidden by another one."""
        self.stop_request.came = True  # it is not tried again
        try:
            self.checkpoints.finish()
        except UserError as error:
            self.history.say(f"warning: {error.where}: {error.what}")

    def _update_and_save(self, packs: Iterator[list[Pack]]) -> None:
        """One update, and what is due after it."""
        self.checkpoints.look()
        wishes = self._update(packs)
        self.stop_request.came |= wishes["stop"]  # another rank's: a save that is tried again must hear of it
        # Who is asked to end has no time for an evaluation; the next start makes up for it.
        if not wishes["stop"]:
            self._boundary()
        if (wishes["stop"] or wishes["save"]) and self.state.saved != self.state.update:
            self._save(scheduled=False)
        if wishes["stop"]:
            self.checkpoints.finish()
            self.ranks.barrier()  # a rank that is gone may take the others with it: not before all is saved
            why = f"\n{TIME_LIMIT}" if self.stop_request.time_limit else ""
            raise Preempted(f"{SAVED}: saved at update {self.state.update}; start it again to continue{why}")

    def _update(self, packs: Iterator[list[Pack]]) -> dict[str, bool]:
        """One update, counted and logged; returns what any rank wishes: to stop, to save."""
        started = time.perf_counter()
        made = next(packs)
        self._data_seconds += time.perf_counter() - started
        update = self.state.update + 1
        self.stop_request.came |= self.owner is not None and self.owner.asked_to_end()
        wishes = {"stop": self.stop_request.came, "save": self._save_minutes_are_over()}
        statistics, norm = self.updater.step(update, made, wishes)
        for wish in wishes:
            wishes[wish], statistics[PLACE[wish]] = statistics[PLACE[wish]] > 0, 0.0
        self.state.add(statistics, skipped=not math.isfinite(norm))
        if self.state.skipped:
            self._skip(statistics, norm)
        seconds = self._agreed_seconds(time.perf_counter() - started)
        self.state.seconds += seconds
        self.state.window_seconds += seconds
        loss, sequences, tokens = (statistics[PLACE[name]] for name in ("loss", "sequences", "tokens"))
        self.history.advance(loss / sequences, self.updater.learning_rate(update), tokens / seconds)
        if self._log_is_due(self.run.loss_logging_steps) or self._log_is_due(self.run.logging_steps):
            self._log(norm)
        return wishes

    def _save_minutes_are_over(self) -> bool:
        minutes = self.run.save_minutes
        return self.ranks.first and minutes is not None and time.monotonic() - self._last_save > 60 * minutes

    def _skip(self, statistics: list[float], norm: float) -> None:
        """Write down an update whose gradient is not finite, with its samples; end the run where the policy says so."""
        at = self.plan.position(self.state.update - 1)
        samples = [self.prepared.train.name(int(index)) for index in self.plan.update_samples(at.update)]
        path = self.history.not_finite(at, norm, task_losses(statistics), samples)
        if self.run.non_finite == "skip" and self.state.skipped <= self.run.max_skipped:
            self.history.event(self._record("skip", None, {}), {})
            self.history.say(f"update {at.update + 1:,} skipped: its gradient is not finite ({path})")
            return
        raise UserError(
            f"the gradient of update {at.update + 1} (step {at.step}, epoch {at.epoch}) is not finite",
            where=str(path),
            hint="its losses and sample ids are there; with `non_finite: skip` the same command goes on from the "
            "newest checkpoint; a lower learning_rate makes another run of it, which begins anew",
        )

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

    def _log_is_due(self, steps: int) -> bool:
        """True at the seed's logging intervals: the least common multiple with gradient_accumulation_steps."""
        return self._at_interval(math.lcm(steps, self.run.gradient_accumulation_steps))

    # -- what happens between updates ----------------------------------------------------------------------------------

    def _boundary(self) -> None:
        """Evaluate and save where that is due: at the start too, for a run that was ended before it was done."""
        state = self.state
        if state.update == 0:
            return
        epoch_ended = self.plan.position(state.update).index == 0
        if (epoch_ended or self.done) and state.evaluated != state.update:
            # No signal is heard until it is done, and who sent one may not wait so long.
            if self.ranks.all(time.monotonic() - self._last_save > WORTH_SAVING):
                self._save(scheduled=False)
            self._evaluate()
        if (self.done or self._at_interval(self.run.save_steps)) and state.saved != state.update:
            self._save(scheduled=True)

    def _record(self, event: str, loss: float | None, losses: dict[str, float]) -> dict[str, Any]:
        at = self.plan.position(self.state.update)
        return {
            "event": event, "update": at.update, "step": at.step, "epoch": at.update / self.plan.updates_per_epoch,
            "loss": loss, "losses": losses, "lr": self.updater.learning_rate(at.update),
            "sequences": self.state.sequences, "tokens": self.state.tokens, "tokens_per_s": None,
        }  # fmt: skip

    def _log(self, norm: float) -> None:
        window, seconds = self.state.window, self.state.window_seconds
        if not window[PLACE["sequences"]]:  # every update since the last record was skipped
            return
        losses = task_losses(window)
        loss, speed = window[PLACE["loss"]] / window[PLACE["sequences"]], window[PLACE["tokens"]] / seconds
        record = self._record("train", loss, losses) | {"tokens_per_s": round(speed, 1)}
        scalars = {"train/loss": loss, "train/learning_rate": record["lr"]}
        if self._log_is_due(self.run.logging_steps):
            full = {
                "grad_norm": norm if math.isfinite(norm) else None,
                "data_wait_s": round(self._data_seconds, 4),
                "reduce_wait_s": round(self.updater.reduce_watch.read(), 4),
                "memory_mb": round(peak_memory_mb(self.ranks.device)),
                "positions_filled": round(window[PLACE["tokens"]] / window[PLACE["positions"]], 4),
                "mfu": self._model_flops_utilization(window, seconds),
            }
            self._data_seconds = 0.0
            record |= full
            scalars |= {f"train/{task}": value for task, value in losses.items()}
            scalars |= {"speed/tokens_per_s": speed}
            scalars |= {f"speed/{name}": float(value) for name, value in full.items() if value is not None}
        self.history.event(record, scalars)
        self.state.window, self.state.window_seconds = [0.0] * len(STATISTICS), 0.0

    def _model_flops_utilization(self, window: list[float], seconds: float) -> float | None:
        """The encoder's work on real tokens beside the peak of all GPUs (bf16); None where that is not known."""
        peak = peak_flops(self.compute.device_name)
        work = encoder_flops(self.prepared.architecture, window[PLACE["tokens"]], window[PLACE["squares"]])
        return round(work / (seconds * peak * self.ranks.world_size), 4) if peak else None

    def _evaluate(self) -> None:
        """Dev loss after an epoch and at the end; when it is the best so far, keep the weights and test them."""
        state, prepared = self.state, self.prepared
        if len(prepared.dev):
            loss = self._evaluate_on("dev", prepared.dev, metrics=False)
            if loss is not None and (state.best is None or loss < state.best["loss"]):
                state.best = {"update": state.update, "step": self.plan.position(state.update).step, "loss": loss}
                self.checkpoints.save_best(self.model, state.best)
                if len(prepared.test):
                    self._evaluate_on("test", prepared.test, metrics=True)
        state.evaluated = state.update

    def _evaluate_on(self, split: str, dataset: Dataset, *, metrics: bool) -> float | None:
        """The loss on a split; None where none of its sequences has a label of the run's tasks, or it is not finite."""
        result = evaluate_split(
            self.model, dataset, self.run, self.prepared.classes, self.compute, self.ranks, metrics=metrics
        )
        if not result["tasks"]:
            self.history.say(f"warning: no sequence of {split} has a label of the run's tasks; no loss is known there")
            return None
        losses = {task: found["loss"] for task, found in result["tasks"].items()}
        record = self._record(split, result["loss"], losses)
        if metrics:
            record["metrics"] = result["tasks"]
        self.history.event(record, {f"{split}/loss": result["loss"], **{f"{split}/{t}": x for t, x in losses.items()}})
        self.history.say(f"update {self.state.update:,}: {split} loss {result['loss']:.4f}")
        return float(result["loss"]) if math.isfinite(result["loss"]) else None

    def _save(self, *, scheduled: bool) -> None:
        """Save everything. What a signal asked for leaves no line in the history: the run is the same without it."""
        step = self.plan.position(self.state.update).step
        if scheduled:
            self.state.saved = self.state.update
            self.history.event(self._record("save", None, {}) | {"checkpoint": f"step-{step}"}, {})
        self.state.history_bytes = self.history.flushed_size()
        self.checkpoints.save(step, self.model, self.updater.optimizer, self.state, self.prepared.fingerprint, self.run)
        self._last_save = time.monotonic()

    def publish(self, work: Path, out: Path) -> None:
        """Put the results of a finished run in place; training.json last."""
        state, at = self.state, self.plan.position(self.state.update)
        last = self.checkpoints.at(at.step)
        best, evaluated = self.checkpoints.best(state, last), state.best
        if problem := damage(best):
            self.history.say(f"warning: {best} is damaged ({problem}); the last weights are published as the best ones")
            best, evaluated = last, None
        publish_model(best, last, self.checkpoints.beside, out)
        publish_history(work, out)
        reason = "all epochs done" if state.update >= self.plan.updates else "stop_after"
        if state.update >= self.updater.max_steps:
            reason = "max_steps"
        replace_json(out / "training.json", {
            "run": self.prepared.name, "reason": reason,
            "updates": at.update, "steps": at.step, "epochs": at.update / self.plan.updates_per_epoch,
            "sequences": state.sequences, "tokens": state.tokens, "seconds": round(state.seconds, 1),
            "best": evaluated, "B": self.run.sequences_per_update, "world_size": self.ranks.world_size,
            "parameters": count_parameters(self.model), "max_steps": self.updater.max_steps,
        })  # fmt: skip


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process, MiB: of the GPU where it computes on one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
