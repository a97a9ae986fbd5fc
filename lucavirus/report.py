"""The report of a run and of the data sets: reads what the stages wrote, writes figures, tables and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from lucavirus import plots
from lucavirus.config import TaskName
from lucavirus.config_data import HELD_OUT, HeldOut
from lucavirus.errors import UserError
from lucavirus.files import replace_text
from lucavirus.tasks import TASKS

Model = TypeVar("Model", bound=BaseModel)
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
# The reasons of training.json in words.
_ENDS = {
    "all epochs done": "with all epochs done", "max_steps": "at max_steps, where the learning rate is 0",
    "stop_after": "early, by stop_after",
}  # fmt: skip
LENGTH_COLUMNS = ("molecule", "split", "from", "to", "sequences")
SUMMARY_COLUMNS = ("molecule", "split", "sequences", "tokens")
AGAIN = "it is written by the stage before this one: remove the file and start the same target again"
HTML_STYLE = """<style>
body { font: 15px sans-serif; color: #222; }
table { border-collapse: collapse; }
th, td { padding: .3em .9em; border-bottom: 1px solid #ddd; text-align: right; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
</style>
"""


class _Read(BaseModel):
    """A file of another stage: what the report needs is checked, whatever else it holds is kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Record(_Read):
    """One line of metrics.jsonl."""

    event: Literal["train", "dev", "test", "save", "skip"]
    update: int
    loss: float | None = None
    lr: float | None = None
    losses: dict[TaskName, float | None] = {}


class Score(_Read):
    """What evaluation.json says of a task on a split: metric -> value, beside `baseline`: metric -> value."""

    baseline: dict[str, float | None] = {}
    __pydantic_extra__: dict[str, float | None]


class Evaluation(_Read):
    """evaluation.json: split -> task -> score."""

    run: str
    checkpoint: str
    splits: dict[HeldOut, dict[TaskName, Score]]


class Best(_Read):
    """The best model: after which update, and its loss on dev (nats)."""

    update: int
    loss: float


class Training(_Read):
    """training.json: how far a run went; `B` is sequences an update, `seconds` the time of all its starts."""

    run: str
    updates: int
    steps: int
    epochs: float
    sequences: int
    tokens: int
    seconds: float
    best: Best | None = None
    reason: Literal["all epochs done", "max_steps", "stop_after"]
    B: int
    world_size: int
    parameters: int
    max_steps: int


def read_history(path: Path) -> pd.DataFrame:
    """metrics.jsonl as a data frame, a row a record, `losses.{task}` a column each; UserError with file:line."""
    lines = enumerate(_text(path).splitlines(), start=1)
    rows = [_parse(Record, line, path, number).model_dump(exclude={"metrics"}) for number, line in lines]
    return pd.json_normalize(rows)


def read_evaluation(path: Path) -> Evaluation:
    """evaluation.json; UserError with file:line."""
    return _parse(Evaluation, _text(path), path)


def read_training(path: Path) -> Training:
    """training.json; UserError with file:line."""
    return _parse(Training, _text(path), path)


def read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A TSV with at least these columns; UserError with file:line."""
    _text(path)
    try:
        table = pd.read_csv(path, sep="\t")
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"is not a table: {error}", where=f"{path}:1", hint=AGAIN) from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f"lacks the columns {', '.join(missing)}", where=f"{path}:1", hint=AGAIN)
    return table


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path), hint=AGAIN) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", where=f"{path}:1", hint=AGAIN) from None
    if not text.strip():
        raise UserError("is empty", where=f"{path}:1", hint=AGAIN)
    return text


def _parse(model: type[Model], text: str, path: Path, line: int = 1) -> Model:
    """The text, which begins at this line of the file, as a model."""
    try:
        return model.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}"
        raise UserError(f"is not JSON: {error.msg} (column {error.colno})", where=where, hint=AGAIN) from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'record'}: {e['msg']}" for e in error.errors())
        raise UserError(f"has another form than expected: {wrong}", where=f"{path}:{line}", hint=AGAIN) from None


def metrics_table(evaluation: Evaluation) -> pd.DataFrame:
    """All metrics, a row for each task and metric: task, metric, dev, dev_baseline, test, test_baseline."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for task in TASK_NAMES:
        for split in HELD_OUT:
            score = evaluation.splits.get(split, {}).get(task, Score.model_validate({}))
            for metric, value in (score.model_extra or {}).items():
                row = cells.setdefault((task, metric), {"task": task, "metric": metric})
                row |= {split: value, f"{split}_baseline": score.baseline.get(metric)}
    columns = ["task", "metric", *(name for split in HELD_OUT for name in (split, f"{split}_baseline"))]
    table = pd.DataFrame(list(cells.values()), columns=columns)
    return table.astype(dict.fromkeys(columns[2:], float))


def main_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the metrics table that one looks at first: average precision of multi-label tasks, else accuracy."""
    wanted = ["average_precision" if TASKS[task].multi_label else "accuracy" for task in table["task"]]
    return table[table["metric"] == wanted].reset_index(drop=True)


def summary_page(training: Training, skipped: int, scores: pd.DataFrame, summary: pd.DataFrame, runs_dir: Path) -> str:
    """The page on one run in Markdown.

    `skipped` counts the updates whose gradient was not finite, `scores` are from `main_metrics`, `summary` is the table
    of the data sets.
    """
    best = training.best
    facts = {
        "ended": _ENDS[training.reason],
        "trained": f"{training.updates:,} updates of {training.B:,} sequences ({training.steps:,} steps), "
        f"{training.epochs:g} epochs",
        "learning rate": f"would be 0 after {training.max_steps:,} updates",
        "read": f"{training.sequences:,} sequences, {training.tokens:,} tokens",
        "time": f"{_duration(training.seconds)} on {training.world_size} process(es), "
        f"{training.tokens / max(training.seconds, 1e-9):,.0f} tokens/s",
        "parameters": f"{training.parameters:,}",
        "best dev loss": f"{best.loss:.4f} nats, at update {best.update:,}" if best else "none",
        "best model": f"`{runs_dir / 'model'}`",
        "last model": f"`{runs_dir / 'model' / 'last'}`",
    }
    if skipped:
        facts["skipped"] = f"{skipped:,} update(s) whose gradient was not finite: `non_finite.jsonl` in the work folder"
    return "\n".join(
        [
            f"# Run {training.run}\n",
            _markdown(pd.DataFrame(facts.items(), columns=["what", "value"])),
            "\n## Results\n",
            *_results(scores),
            "## Training\n",
            "![losses and learning rate](curves.svg)\n\n![speed](speed.svg)\n",
            "## Data\n",
            _markdown(summary),
            "",
        ]
    )


def _results(scores: pd.DataFrame) -> list[str]:
    if scores.empty:
        return ["None: there is no sequence of dev and test, or none has a label of this run's tasks.\n"]
    return [
        "The baseline is the best answer without a look at the sequence: always the most frequent class, or the "
        "frequencies of the classes. All metrics: [tasks.tsv](tasks.tsv).\n",
        _markdown(scores),
        "\n![main metric of each task](tasks.svg)\n",
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _markdown(table: pd.DataFrame) -> str:
    shown = _shown(table)
    rows = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _html(table: pd.DataFrame, title: str) -> str:
    body = _shown(table).to_html(index=False, border=0)
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>{title}</title>\n{HTML_STYLE}{body}\n'


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text, for people."""
    return table.map(_cell).rename(columns=lambda name: name.replace("_", " "))


def _cell(value: object) -> str:
    if isinstance(value, float):
        if np.isnan(value):
            return "–"
        if abs(value) >= 1e9:
            return f"{value:.4g}"
        digits = 0 if value.is_integer() and abs(value) > 1 else 1 if abs(value) >= 100 else 4
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_run_report(metrics: Path, training: Path, evaluation: Path, summary: Path, out: Path, run: str) -> None:
    """Write the report of a run into `out`: curves.svg, speed.svg, tasks.svg, tasks.tsv, tasks.html, summary.md.

    All inputs are read and all texts made before the first file is written. Raises UserError for a broken input.
    """
    history = read_history(metrics)
    trained, scored = read_training(training), read_evaluation(evaluation)
    for name, path in ((trained.run, training), (scored.run, evaluation)):
        if name != run:
            raise UserError(f"belongs to run {name}, not to {run}", where=str(path), hint="give the files of one run")
    table = metrics_table(scored)
    scores = main_metrics(table)
    skipped = int((history["event"] == "skip").sum())
    page = summary_page(trained, skipped, scores, read_table(summary, SUMMARY_COLUMNS), training.parent)
    _publish(
        out,
        {
            "curves.svg": plots.svg(plots.training_curves(history)),
            "speed.svg": plots.svg(plots.speed_panels(history)),
            "tasks.svg": plots.svg(plots.task_bars(scores)),
            "tasks.tsv": table.to_csv(sep="\t", index=False, float_format="%.10g"),
            "tasks.html": _html(table, f"Metrics of {run}"),
            "summary.md": page,
        },
    )


def write_data_report(lengths: Path, summary: Path, out: Path) -> None:
    """Write the report of the data sets into `out`: lengths.svg, data.html. Raises UserError for a broken input."""
    histogram = read_table(lengths, LENGTH_COLUMNS)
    table = read_table(summary, SUMMARY_COLUMNS)
    _publish(
        out,
        {
            "lengths.svg": plots.svg(plots.length_histograms(histogram)),
            "data.html": _html(table, "Data sets"),
        },
    )


def _publish(out: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        replace_text(out / name, text)
