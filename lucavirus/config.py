"""The settings: typed, frozen, unknown keys forbidden. Descriptions here are the comments of config/config.yaml."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from lucavirus.config_data import Frozen, Name, Source, Split, Tokenize, setting
from lucavirus.tasks import SUPERVISED, TASKS, Molecule

TaskName = Literal[
    "gene_mask", "prot_mask", "gene_type", "prot_homo", "prot_site", "prot_domain",
    "gene_taxonomy", "prot_taxonomy", "prot_keyword",
]  # fmt: skip
# Settings of a run that say how it is carried out, not what comes out: changing them never makes a result stale.
OPERATIONAL = frozenset(
    {
        "loss_logging_steps", "logging_steps", "save_steps", "save_minutes", "keep_last", "keep_every",
        "non_finite", "max_skipped",
        "device", "nodes", "cpu_ranks", "worker_num", "max_tokens_per_pack", "stage_shards_to",
        "parallel", "recomputation", "compile", "deterministic",
    }
)  # fmt: skip
# What a finished run may be given more of; a new start goes on then.
EXTENSIBLE = frozenset({"max_epochs", "stop_after"})
# The version of the rule that orders samples: a run that went on under another would see some twice, and some never.
ORDER = 2


_MOST = 2**31 - 1


def _told_once(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(f"must be auto, or a whole number from 1 to {_MOST}") from None


# pydantic by itself tells a wrong value once for each type that it might have had.
AutoOrCount = Annotated[Annotated[int, Field(gt=0, le=_MOST)] | Literal["auto"], WrapValidator(_told_once)]
# YAML reads `on` and `off` as true and false.
AutoOrSwitch = Annotated[
    Literal["auto", "on", "off"], BeforeValidator(lambda v: ("off", "on")[v] if isinstance(v, bool) else v)
]


class Model(Frozen):
    """The size of the encoder and its heads."""

    hidden_size: PositiveInt = setting(2560, "width of the encoder")
    num_attention_layers: PositiveInt = setting(12, "Transformer layers; a longer max_length leaves memory for fewer")
    num_attention_heads: PositiveInt = setting(20, "attention heads; must divide hidden_size")
    max_length: Annotated[int, Field(ge=3)] = setting(3074, "tokens: longest input, [CLS] and [SEP] counted")
    head_size: dict[TaskName, PositiveInt] = setting(
        {}, "hidden width of each task's head; of tasks left out here and in config.yaml, full size"
    )

    def contradictions(self) -> Iterator[str]:
        """Settings that do not go together."""
        if self.hidden_size % self.num_attention_heads:
            yield f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size})"
        if (self.hidden_size // self.num_attention_heads) % 2:
            yield "hidden_size / num_attention_heads must be even, for the rotary positions"

    def head_width(self, task: str) -> int:
        """Width of the hidden layer of a task's head."""
        return self.head_size.get(task, TASKS[task].head_size)  # type: ignore[call-overload,no-any-return]


class StopAfter(Frozen):
    """When to end a run early; the schedule stays as if it went on."""

    updates: PositiveInt | None = setting(None, "optimizer updates of the whole run")
    minutes: PositiveFloat | None = setting(None, "minutes of training, counted through all its starts")


class Run(Frozen):
    """One training run: data, tasks, optimisation, logging."""

    molecules: tuple[Molecule, ...] = setting(("gene", "prot"), "which molecules to train on", min_length=1)
    tasks: tuple[TaskName, ...] = setting(tuple(TASKS), "which of the nine tasks to train", min_length=1)
    model: Model = Field(default_factory=Model, description="the model; a run may change single settings of it")

    gpus: PositiveInt = setting(
        8, "GPUs of the recipe: B = gpus x batch_size x gradient_accumulation_steps sequences an update"
    )
    batch_size: PositiveInt = setting(1, "sequences per GPU and step")
    gradient_accumulation_steps: PositiveInt = setting(32, "steps per optimizer update (16, 32 or 64 advised)")
    seed: Annotated[NonNegativeInt, Field(lt=2**64)] = setting(
        1111, "seeds the weights, the order of samples and the masks"
    )

    learning_rate: PositiveFloat = setting(2e-4, "peak learning rate")
    warmup_steps: NonNegativeInt = setting(32000, "steps until the peak; usually 1000 x gradient_accumulation_steps")
    max_steps: AutoOrCount = setting(
        1000000, "optimizer updates after which the learning rate would be 0; auto: computed from final_learning_rate"
    )
    final_learning_rate: NonNegativeFloat | None = setting(
        None, "only with `max_steps: auto`: learning rate wanted at the end of the last epoch"
    )
    max_epochs: PositiveInt = setting(4, "times through the training data")
    stop_after: StopAfter = Field(default_factory=StopAfter, description="end the run early; the schedule stays")
    weight_decay: NonNegativeFloat = setting(0.01, "AdamW weight decay; none on biases and LayerNorm weights")
    max_grad_norm: PositiveFloat = setting(1.0, "gradients are clipped to this norm")
    task_weights: dict[TaskName, NonNegativeFloat] = setting(
        {}, "weight of a task in the loss; left out: 1 for masks and prot_keyword, else 0.2"
    )

    mask_probability: Annotated[float, Field(gt=0, le=1)] = setting(
        0.15, "fraction of the tokens chosen for the mask tasks"
    )
    random_tokens: Literal["molecule", "all"] = setting(
        "molecule", "random replacements: the molecule's own letters, or (the original) all tokens but [PAD]"
    )
    keyword_negatives: bool = setting(
        True, "absent keywords of a protein with keywords count as negatives; false (the original) ignores them"
    )

    model_dirpath: str | None = setting(
        None, "folder of a LucaOne or LucaVirus checkpoint to start from; null: from scratch"
    )
    loss_logging_steps: PositiveInt = setting(
        1000, "steps between records of the loss; in effect the least common multiple with gradient_accumulation_steps"
    )
    logging_steps: PositiveInt = setting(
        1000, "steps between records that have the gradient's norm, waits, memory and MFU too; in effect as above"
    )
    save_steps: PositiveInt = setting(200000, "steps between checkpoints")
    save_minutes: PositiveFloat | None = setting(
        None, "minutes between checkpoints, beside save_steps; null: no such limit"
    )
    keep_last: PositiveInt = setting(3, "checkpoints kept; older ones are removed once a newer one is whole")
    keep_every: PositiveInt | None = setting(
        None, "steps: the first checkpoint at or behind each multiple of this is kept for good; null: none"
    )
    non_finite: Literal["stop", "skip"] = setting(
        "stop",
        "on a gradient that is not finite: end the run, or skip that update; non_finite.jsonl tells of it either way",
    )
    max_skipped: PositiveInt = setting(3, "with `non_finite: skip`: updates skipped in a row after which the run ends")

    device: Literal["auto", "cpu"] = setting("auto", "auto: GPUs when there are any; cpu: never")
    nodes: PositiveInt = setting(1, "on a Slurm cluster: nodes of a training; each has gpus / nodes of its GPUs")
    cpu_ranks: PositiveInt = setting(1, "processes of a training without GPU, on each node")
    worker_num: NonNegativeInt = setting(1, "data-loader processes a GPU; 0: batches are made in the training process")
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "of the computation: auto is bf16 on an A100 or newer, else fp32"
    )
    max_tokens_per_pack: AutoOrCount = setting(
        "auto", "tokens computed at once; bounds the memory; auto: on a GPU the most that fit, found at the start"
    )
    parallel: Literal["auto", "ddp", "fsdp"] = setting(
        "auto", "ddp: every GPU holds all weights; fsdp: its share of them; auto: fsdp beyond 2 billion parameters"
    )
    recomputation: bool = setting(False, "compute each layer twice and keep less: a quarter slower, far less memory")
    compile: AutoOrSwitch = setting(
        "auto",
        "torch.compile of the layers, where FlashAttention computes (bf16, A100 or newer); auto: with a C compiler, "
        "unless deterministic",
    )
    deterministic: bool = setting(
        False, "sums in a fixed order on a GPU too: equal bits, slower; a CPU always has them"
    )

    stage_shards_to: str | None = setting(
        None, "folder of each node's own disk that shards are copied to and read from, $TMPDIR/x too; null: no copy"
    )

    @property
    def sequences_per_update(self) -> int:
        """B: sequences of one optimizer update, whatever the number of processes that really run."""
        return self.gpus * self.batch_size * self.gradient_accumulation_steps

    def meaning(self) -> dict[str, Any]:
        """All settings that a checkpoint must agree with: those that say what the run is, not how it is carried out."""
        return {**self.model_dump(mode="json", exclude=set(OPERATIONAL | EXTENSIBLE)), "order of samples": ORDER}

    def task_weight(self, task: str) -> float:
        """Weight of a task in the loss."""
        return self.task_weights.get(task, TASKS[task].weight)  # type: ignore[call-overload,no-any-return]

    def contradictions(self) -> Iterator[str]:
        """Settings that do not go together."""
        for field, given in (("molecules", self.molecules), ("tasks", self.tasks)):
            if len(set(given)) < len(given):
                yield f"{field} names one of them twice: {', '.join(given)}"
        strangers = [task for task in self.tasks if TASKS[task].molecule not in self.molecules]
        if strangers:
            yield f"tasks {', '.join(strangers)} need a molecule that is not in `molecules`: give the run `tasks` too"
        for molecule in self.molecules:
            if not any(TASKS[task].molecule == molecule for task in self.tasks):
                yield f"molecules has {molecule}, but no task of the run learns from it"
        if not any(map(self.task_weight, self.tasks)):
            yield "task_weights are 0 for all tasks of the run: nothing would be learned"
        warmup_updates = self.warmup_steps / self.gradient_accumulation_steps
        if self.max_steps != "auto" and warmup_updates >= self.max_steps:
            yield (
                f"warmup_steps / gradient_accumulation_steps is {warmup_updates:g} updates of warm-up, but the "
                f"learning rate is back at 0 after max_steps = {self.max_steps}; lower warmup_steps"
            )
        if self.max_steps == "auto":
            if self.final_learning_rate is None:
                yield "`max_steps: auto` needs final_learning_rate"
            elif self.final_learning_rate >= self.learning_rate:
                yield (
                    f"final_learning_rate ({self.final_learning_rate:g}) must be below learning_rate "
                    f"({self.learning_rate:g})"
                )
        elif self.final_learning_rate is not None:
            yield "final_learning_rate goes only with `max_steps: auto`: add `final_learning_rate: null` here"
        if self.gpus % self.nodes:
            yield f"nodes ({self.nodes}) must divide gpus ({self.gpus})"
        if isinstance(self.max_tokens_per_pack, int) and self.max_tokens_per_pack < self.model.max_length:
            yield "max_tokens_per_pack must be at least the model's max_length"


def _is_written_anew(folder: str, own: str) -> bool:
    """True for what a run writes in a folder of its own; what it has set aside there stays as it is."""
    parts = Path(os.path.relpath(os.path.realpath(folder), os.path.realpath(own))).parts
    return parts[:1] not in (("..",), ("set-aside",))


class Settings(Frozen):
    """All settings, complete: every run has its own copy of what it shares with others."""

    project: Name = Field(description="names the folders results/{project} and work/{project}")
    sources: tuple[Source, ...] = Field(min_length=1, description="where the sequences come from")
    vocabularies: dict[TaskName, str] = setting(
        {},
        "label files, a name a line, the line number is the class id; needed for CSV sources, else built from the data",
    )
    gff3_types: dict[str, str | None] = setting(
        {}, "more GFF3 feature types and their gene_type class; null ignores a type"
    )
    tokenize: Tokenize = Field(default_factory=Tokenize, description="how input becomes shards")
    split: Split = Field(default_factory=Split, description="how sequences are divided")
    runs: dict[Name, Run] = Field(
        min_length=1, description="the trainings; each `x` here is a target train_x; `x: false` leaves one out"
    )
    report_runs: tuple[str, ...] = setting((), "runs that the target `report` shows")
    run: str | None = setting(None, "the run that the target `resume` continues")
    trained_checkpoint: PositiveInt | None = setting(
        None, "with `run`: step of the checkpoint to go back to (later ones are set aside), or of that in model_dirpath"
    )
    model_dirpath: str | None = setting(
        None, "with `run` and trained_checkpoint: folder of the original's checkpoint of that step"
    )
    restart: str | None = setting(None, "a run whose settings were changed: begin it anew, the old work is set aside")

    def contradictions(self) -> Iterator[str]:
        """Settings that do not go together."""
        names = [source.name for source in self.sources]
        for name in {name for name in names if names.count(name) > 1}:
            yield f"two sources are named {name}"
        if len(set(self.report_runs)) < len(self.report_runs):
            yield f"report_runs names one of them twice: {', '.join(self.report_runs)}"
        for task in self.vocabularies:
            if task not in SUPERVISED:
                yield f"vocabularies has {task}, which has no labels"
        if self.run is None and (self.trained_checkpoint or self.model_dirpath):
            yield "trained_checkpoint and model_dirpath say how to continue `run`, which is not given"
        if self.model_dirpath and not self.trained_checkpoint:
            yield "model_dirpath needs trained_checkpoint: the step that its weights are of"
        if self.restart and self.restart == self.run and self.trained_checkpoint and not self.model_dirpath:
            yield f"restart begins {self.run} anew: there is no step {self.trained_checkpoint} to go back to"
        wanted = [("run", self.run), ("restart", self.restart), *(("report_runs", name) for name in self.report_runs)]
        for field, chosen in wanted:
            if chosen is not None and chosen not in self.runs:
                yield f"{field} names {chosen}, which is not in runs ({', '.join(self.runs)})"
        for name, run in self.runs.items():
            for own in (f"results/{self.project}/runs/{name}", f"work/{self.project}/{name}"):
                if run.model_dirpath and _is_written_anew(run.model_dirpath, own):
                    yield f"run {name} begins with weights in its own {own}, which it writes anew: copy them elsewhere"
            for source in self.sources:
                read = source.is_csv or source.kind in run.molecules
                if read and source.window_size and source.window_size > run.model.max_length - 2:
                    yield (
                        f"source {source.name} has windows of {source.window_size}, but run {name} reads at most "
                        f"{run.model.max_length - 2} (model.max_length - 2): change one of them, or leave the run out "
                        f"(`runs: {{{name}: false}}`, and not in report_runs)"
                    )
