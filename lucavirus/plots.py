"""Data frames in, matplotlib figures out; one function a figure, no files read.

A history has one row a record of metrics.jsonl (`lucavirus.report.read_history`): event, update, loss, lr, ... and
`losses.{task}` for the loss of each task.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from lucavirus.tasks import MOLECULES, TASKS

# Okabe-Ito colours: told apart with any kind of colour vision; dev and test differ in marker or dash too.
COLOUR = {"train": "#0072B2", "dev": "#E69F00", "test": "#D55E00"}
MARKER = {"dev": ("o", 6.5), "test": ("D", 4.0)}  # the test point lies within the dev point where they agree
DASH = {"train": "-", "dev": (0, (5, 1.5)), "test": (0, (1.5, 1))}
INK, PALE = "#222222", "#8a8a8a"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "lucavirus",  # else the ids in a figure change from run to run
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
# Panels of the speed figure: title, unit, factor to that unit, fields with their names in the legend.
SPEED = (
    ("Throughput", "real tokens / s", 1.0, {"tokens_per_s": ""}),
    ("Model FLOPs utilisation", "% of peak", 100.0, {"mfu": ""}),
    ("Computed positions that hold a token", "%", 100.0, {"positions_filled": ""}),
    (
        "Waiting of the first process since the record before",
        "s",
        1.0,
        {"data_wait_s": "for data", "reduce_wait_s": "for other ranks"},
    ),
    ("Peak memory of the first process", "MiB", 1.0, {"memory_mb": ""}),
)


def svg(figure: Figure) -> str:
    """The figure as SVG text; equal figures give equal text."""
    text = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


@rc_context(STYLE)
def training_curves(history: pd.DataFrame) -> Figure:
    """Loss of train, dev and test over updates, the learning rate below, then a panel for each task's loss (nats)."""
    tasks = [task for task in TASKS if f"losses.{task}" in history]
    rows = -(-len(tasks) // 3)
    figure = Figure(figsize=(9, 4.6 + 1.9 * rows))
    axes = figure.subplot_mosaic(_curve_layout(tasks), height_ratios=[2.6, 1.1] + [1.6] * rows, empty_sentinel=".")
    _loss_panel(axes["loss"], history, "loss")
    axes["loss"].set(title="Loss: weighted sum of the tasks, mean over sequences", ylabel="loss (nats)")
    if axes["loss"].lines:
        axes["loss"].legend(ncols=4)
    train = _points(history, "train", "lr")
    axes["lr"].plot(train["update"], train["lr"], color=INK, **_mark(train))
    axes["lr"].set(ylabel="learning rate", xlabel="optimizer updates", ylim=(0, None))
    axes["lr"].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for task in tasks:
        _loss_panel(axes[task], history, f"losses.{task}")
        axes[task].set(title=task)
    for task in tasks[::3]:
        axes[task].set_ylabel("loss (nats)")
    for task in tasks[-3:]:
        axes[task].set_xlabel("optimizer updates")
    _share_updates(list(axes.values()), history)
    return figure


def _curve_layout(tasks: Sequence[str]) -> list[Any]:
    filled = [*tasks, *["."] * (-len(tasks) % 3)]
    return [["loss"] * 3, ["lr"] * 3, *[filled[row : row + 3] for row in range(0, len(filled), 3)]]


def _loss_panel(axes: Axes, history: pd.DataFrame, column: str) -> None:
    """Train raw (thin) and smoothed, dev and test as points; a log axis where the values span a decade."""
    train = _points(history, "train", column)
    if len(train):
        window = max(1, len(train) // 25)
        smooth = train[column].rolling(window, min_periods=1, center=True).mean()
        axes.plot(train["update"], train[column], color=COLOUR["train"], linewidth=0.6, alpha=0.45, **_mark(train))
        label = f"train, mean of {window} records" if window > 1 else "train"
        axes.plot(train["update"], smooth, color=COLOUR["train"], linewidth=1.6, label=label)
    for split, (marker, size) in MARKER.items():
        held = _points(history, split, column)
        if len(held):
            axes.plot(held["update"], held[column], marker, linestyle=":", linewidth=0.8, markersize=size,
                      color=COLOUR[split], markeredgecolor="white", markeredgewidth=0.6, label=split)  # fmt: skip
    _log_where_it_serves(axes)


def _log_where_it_serves(axes: Axes) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines] or [np.ones(1)])
    if values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        # Ticks at 1, 2 and 5 would run into each other over many decades.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if values.max() < 1e3 * values.min() else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


@rc_context(STYLE)
def task_bars(scores: pd.DataFrame) -> Figure:
    """Main metric of each task on dev and test, with a stroke where the constant baseline lies.

    `scores`: task, metric, dev, dev_baseline, test, test_baseline (fractions; NaN where a split was not evaluated).
    """
    figure = Figure(figsize=(8, 1.3 + 0.62 * max(1, len(scores))))
    axes = figure.subplots()
    if scores.empty:
        return _note(figure, axes, "evaluation.json holds no task")
    rows = np.arange(len(scores))
    for split, shift in (("dev", -0.19), ("test", 0.19)):
        axes.barh(rows + shift, scores[split], 0.34, color=COLOUR[split], label=split)
        base = scores[f"{split}_baseline"]
        axes.vlines(base, rows + shift - 0.19, rows + shift + 0.19, color=INK, linewidth=2.2,
                    label="constant baseline" if split == "test" else "")  # fmt: skip
        for row, value, low in zip(rows, scores[split], base, strict=True):
            text = f"{value:.3f}" + ("" if np.isnan(low) else f"  ({low:.3f})")
            right = np.nanmax([value, low, 0.0])
            text = "not evaluated" if np.isnan(value) else text
            axes.text(right + 0.012, row + shift, text, va="center", fontsize=8, color=INK)
    names = [f"{row.task}\n{str(row.metric).replace('_', ' ')}" for row in scores.itertuples()]
    axes.set_yticks(rows, names)
    axes.set(xlim=(0, 1.17), ylim=(len(scores) - 0.5, -0.5))
    axes.set_xlabel("metric (fraction, 1 is perfect); baseline in brackets")
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper right", ncols=3)
    return figure


@rc_context(STYLE)
def length_histograms(lengths: pd.DataFrame) -> Figure:
    """Sequences (log count) by length in tokens, a panel for each molecule, a line for each split.

    `lengths`: molecule, split, from, to (tokens, end exclusive), sequences.
    """
    lengths = lengths[lengths["sequences"] > 0]
    molecules = [molecule for molecule in MOLECULES if (lengths["molecule"] == molecule).any()]
    figure = Figure(figsize=(8, 0.7 + 2.6 * max(1, len(molecules))))
    panels = figure.subplots(max(1, len(molecules)), 1, squeeze=False)[:, 0]
    if not molecules:
        return _note(figure, panels[0], "the data sets hold no sequence")
    for axes, molecule in zip(panels, molecules, strict=True):
        rows = lengths[lengths["molecule"] == molecule]
        edges = np.unique(rows[["from", "to"]].to_numpy())
        for split, colour in COLOUR.items():
            bins = rows[rows["split"] == split].set_index("from")["sequences"]
            if bins.empty:
                continue
            counts = bins.reindex(edges[:-1], fill_value=0).to_numpy()
            axes.stairs(counts, edges, baseline=None, color=colour, linestyle=DASH[split],
                        linewidth=1.5, label=f"{split}: {bins.sum():,} sequences")  # fmt: skip
        axes.set_yscale("log", nonpositive="clip")
        axes.set(title=molecule, ylabel="sequences", xlim=(0, 1.02 * edges[-1]), ylim=(0.5, None))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.legend()
    panels[-1].set_xlabel("length (tokens, without [CLS] and [SEP])")
    return figure


@rc_context(STYLE)
def speed_panels(history: pd.DataFrame) -> Figure:
    """Throughput and what holds it back over updates; a panel for each of `SPEED` that the history knows."""
    train = history[history["event"] == "train"]
    known = [panel for panel in SPEED if any(field in train and train[field].notna().any() for field in panel[3])]
    figure = Figure(figsize=(8, 0.6 + 1.7 * max(1, len(known))))
    panels = figure.subplots(max(1, len(known)), 1, squeeze=False)[:, 0]
    if not known:
        return _note(figure, panels[0], "metrics.jsonl holds no record of speed")
    for axes, (title, unit, factor, fields) in zip(panels, known, strict=True):
        for (field, label), colour in zip(fields.items(), (COLOUR["train"], COLOUR["test"]), strict=False):
            points = _points(history, "train", field)
            if len(points):
                values = points[field] * factor
                axes.plot(points["update"], values, color=colour, linewidth=1.2, label=label, **_mark(points))
        axes.set(title=title, ylabel=unit, ylim=(0, 1.1 * axes.get_ylim()[1]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        if len(fields) > 1:
            axes.legend(ncols=2)
    panels[-1].set_xlabel("optimizer updates")
    _share_updates(list(panels), history)
    return figure


def _points(history: pd.DataFrame, event: str, column: str) -> pd.DataFrame:
    """The rows of an event that have a value in the column."""
    if column not in history:
        return history.iloc[:0].assign(**{column: []})
    return history[(history["event"] == event) & history[column].notna()]


def _mark(points: pd.DataFrame) -> dict[str, Any]:
    """A line through one point is invisible: then show the point."""
    return {"marker": "." if len(points) == 1 else ""}


def _share_updates(panels: Sequence[Axes], history: pd.DataFrame) -> None:
    last = max(1, history["update"].max())
    for axes in panels:
        axes.set_xlim(0, 1.02 * last)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5 if len(panels) > 3 else 8, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _note(figure: Figure, axes: Axes, text: str) -> Figure:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=PALE)
    return figure
