"""What the figures show is what the tables say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from lucavirus import plots
from lucavirus.tasks import TASKS

NAN = float("nan")
LOSS = "Loss: weighted sum of the tasks, mean over sequences"


def history(updates: int = 4) -> pd.DataFrame:
    """Train records at 10, 20, ... and one dev and test record at the last update."""
    rows: list[dict[str, object]] = [
        {
            "event": "train", "update": 10 * n, "loss": 8.0 / n, "lr": n * 1e-4, "losses.gene_mask": 2.0 - 0.1 * n,
            "losses.prot_homo": 80.0 / n**2, "tokens_per_s": 1000.0 + n, "positions_filled": 0.97,
        }
        for n in range(1, updates + 1)
    ]  # fmt: skip
    for event, loss in (("dev", 2.5), ("test", 2.75)):
        rows.append({"event": event, "update": 10 * updates, "loss": loss, "losses.gene_mask": loss / 2})
    rows.append({"event": "save", "update": 10 * updates})
    return pd.DataFrame(rows)


def scores() -> pd.DataFrame:
    return pd.DataFrame(
        [
            ("gene_mask", "accuracy", 0.41, 0.30, 0.40, 0.31),
            ("prot_keyword", "average_precision", 0.20, 0.25, NAN, NAN),
        ],
        columns=["task", "metric", "dev", "dev_baseline", "test", "test_baseline"],
    )


def lengths() -> pd.DataFrame:
    rows = [
        ("gene", "train", 0, 64, 5),
        ("gene", "train", 128, 192, 3),
        ("gene", "dev", 64, 128, 2),
        ("gene", "test", 0, 64, 0),
        ("prot", "dev", 0, 64, 0),
        ("gene", "train", 512, 576, 0),
    ]
    return pd.DataFrame(rows, columns=["molecule", "split", "from", "to", "sequences"])


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if title in (axes.get_title("left"), axes.get_ylabel()))


def lines(axes: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): list(np.asarray(line.get_ydata(), dtype=float)) for line in axes.lines}


def test_total_loss_shows_every_record_and_the_held_out_points() -> None:
    axes = panel(plots.training_curves(history()), LOSS)
    raw = axes.lines[0]
    assert list(np.asarray(raw.get_xdata())) == [10, 20, 30, 40]
    assert list(np.asarray(raw.get_ydata())) == [8.0, 4.0, 8 / 3, 2.0]
    assert lines(axes)["dev"] == [2.5] and lines(axes)["test"] == [2.75]
    assert axes.get_ylabel() == "loss (nats)"


def test_smoothed_line_is_the_mean_of_the_records_around() -> None:
    axes = panel(plots.training_curves(history(75)), "gene_mask")
    smooth = lines(axes)["train, mean of 3 records"]
    assert smooth[5] == pytest.approx(2.0 - 0.1 * 6)
    assert smooth[0] == pytest.approx(2.0 - 0.1 * 1.5)  # the first has one neighbour only


def test_each_split_has_its_own_colour_in_every_figure() -> None:
    assert len(set(plots.COLOUR.values())) == 3
    loss = panel(plots.training_curves(history()), LOSS).lines[1:]
    bars = plots.task_bars(scores()).axes[0].containers
    rows = lengths().assign(sequences=1)
    steps = [patch for patch in plots.length_histograms(rows).axes[0].patches if isinstance(patch, StepPatch)]
    drawn = [(line.get_label(), line.get_color()) for line in loss]
    drawn += [(group.get_label(), to_hex(group[0].get_facecolor()).upper()) for group in bars]
    drawn += [(str(step.get_label()).split(":")[0], to_hex(step.get_edgecolor()).upper()) for step in steps]
    # Where they agree the dev point would hide a test point drawn before it.
    assert drawn == [(split, plots.COLOUR[split]) for split in ("train", "dev", "test", "dev", "test", *plots.COLOUR)]
    assert len({str(step.get_linestyle()) for step in steps}) == 3


def test_every_figure_with_several_lines_has_a_legend() -> None:
    waits = history().assign(data_wait_s=0.1, reduce_wait_s=0.2)
    legends = (
        panel(plots.training_curves(history()), LOSS).get_legend(),
        plots.task_bars(scores()).legends[0],
        plots.length_histograms(lengths()).axes[0].get_legend(),
        plots.speed_panels(waits).axes[2].get_legend(),
    )
    assert [sorted(text.get_text() for text in legend.get_texts()) for legend in legends if legend] == [
        ["dev", "test", "train"],
        ["constant baseline", "dev", "test"],
        ["dev: 2 sequences", "train: 8 sequences"],
        ["for data", "for other ranks"],
    ]


def test_learning_rate_lies_below_the_loss() -> None:
    figure = plots.training_curves(history())
    rate = panel(figure, "learning rate")
    assert list(np.asarray(rate.lines[0].get_ydata())) == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4])
    assert rate.get_xlabel() == "optimizer updates"
    assert rate.get_ylim()[0] == 0


def test_only_tasks_of_the_run_have_a_panel_and_only_wide_ones_a_log_axis() -> None:
    figure = plots.training_curves(history())
    assert [axes.get_title("left") for axes in figure.axes[2:]] == ["gene_mask", "prot_homo"]
    assert panel(figure, "gene_mask").get_yscale() == "linear"
    assert panel(figure, "prot_homo").get_yscale() == "log"
    assert "dev" not in lines(panel(figure, "prot_homo"))


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ([8.0, 4.0, 1.0, 0.0], "linear", None),
        ([20.0, 8.0, 4.0, 1.0], "log", [1, 2, 5, 10, 20]),
        ([1e4, 100.0, 10.0, 1.0], "log", [1, 10, 100, 1000, 10000]),
    ],
)
def test_an_axis_that_is_logarithmic_can_show_every_value(
    values: list[float], scale: str, ticks: list[float] | None
) -> None:
    axes = panel(plots.training_curves(history().query("event == 'train'").assign(loss=values)), LOSS)
    low, high = axes.get_ylim()
    assert axes.get_yscale() == scale and low <= min(values) and high >= max(values)
    if ticks:
        assert [tick for tick in axes.get_yticks() if low <= tick <= high] == pytest.approx(ticks)


def test_every_row_of_panels_has_its_labels_and_every_panel_all_updates() -> None:
    tasks = list(TASKS)[:6]
    figure = plots.training_curves(history().assign(**{f"losses.{task}": 1.0 for task in tasks}))
    panels = figure.axes[2:]
    assert [axes.get_title("left") for axes in panels] == tasks
    assert [axes.get_ylabel() for axes in panels] == ["loss (nats)", "", ""] * 2
    assert [axes.get_xlabel() for axes in panels] == [""] * 3 + ["optimizer updates"] * 3
    assert all(axes.get_xlim() == (0, pytest.approx(40.8)) for axes in figure.axes)


def test_one_record_is_drawn_as_a_point() -> None:
    only = history(1).query("event == 'train'")
    assert panel(plots.training_curves(only), "gene_mask").lines[0].get_marker() == "."
    assert panel(plots.speed_panels(only), "Throughput").lines[0].get_marker() == "."


def test_curves_without_any_train_record() -> None:
    axes = panel(plots.training_curves(history().query("event == 'dev'")), LOSS)
    assert lines(axes) == {"dev": [2.5]}


def test_bars_have_the_values_and_strokes_the_baselines() -> None:
    axes = plots.task_bars(scores()).axes[0]
    widths = {str(bars.get_label()): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert widths["dev"] == [0.41, 0.20]
    assert widths["test"][0] == 0.40 and np.isnan(widths["test"][1])
    collections = [stroke for stroke in axes.collections if isinstance(stroke, LineCollection)]
    strokes = [segment.mean(0) for stroke in collections for segment in stroke.get_segments() if len(segment)]
    # The first task on top, dev above test.
    middles = [0.30, -0.19, 0.25, 0.81, 0.31, 0.19]
    assert [x for stroke in strokes for x in stroke if not np.isnan(stroke).any()] == pytest.approx(middles)
    bars = [bar.get_y() + bar.get_height() / 2 for bars in axes.containers for bar in bars]
    assert bars == pytest.approx([-0.19, 0.81, 0.19, 1.19]) and axes.yaxis_inverted()
    assert axes.get_xlim()[0] == 0 and axes.get_xlim()[1] > 1


def test_bars_print_value_and_baseline_right_of_both() -> None:
    axes = plots.task_bars(scores()).axes[0]
    printed = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert set(printed) == {"0.410  (0.300)", "0.400  (0.310)", "0.200  (0.250)", "not evaluated"}
    assert printed["0.200  (0.250)"] > 0.25
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["gene_mask\naccuracy", "prot_keyword\naverage precision"]


def test_a_value_without_a_baseline_is_printed_alone() -> None:
    texts = plots.task_bars(scores().assign(dev_baseline=NAN)).axes[0].texts
    assert [text.get_text() for text in texts][:2] == ["0.410", "0.200"]


def test_histogram_shows_counts_and_leaves_out_what_is_empty() -> None:
    figure = plots.length_histograms(lengths())
    assert [axes.get_title("left") for axes in figure.axes] == ["gene"]
    steps = [patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]
    drawn = {str(step.get_label()): [list(part) for part in step.get_data()[:2]] for step in steps}
    edges = [0, 64, 128, 192]
    assert drawn == {"train: 8 sequences": [[5, 0, 3], edges], "dev: 2 sequences": [[0, 2, 0], edges]}
    assert figure.axes[0].get_yscale() == "log"


def test_each_molecule_has_a_panel_with_its_own_counts_and_all_of_them_in_view() -> None:
    other = pd.DataFrame([("prot", "test", 0, 256, 1), ("prot", "test", 256, 512, 7)], columns=lengths().columns)
    figure = plots.length_histograms(pd.concat([lengths(), other]))
    assert [axes.get_title("left") for axes in figure.axes] == ["gene", "prot"]
    assert [axes.get_xlabel() != "" for axes in figure.axes] == [False, True]
    step = next(patch for patch in figure.axes[1].patches if isinstance(patch, StepPatch))
    assert [list(part) for part in step.get_data()[:2]] == [[1, 7], [0, 256, 512]]
    for axes, longest, most in zip(figure.axes, (192, 512), (5, 7), strict=True):
        assert axes.get_xlim()[0] == 0 and axes.get_xlim()[1] >= longest
        assert axes.get_ylim()[0] < 1 and axes.get_ylim()[1] >= most


def test_speed_shows_the_fields_that_exist_in_their_unit() -> None:
    figure = plots.speed_panels(history().assign(mfu=0.25))
    assert [axes.get_ylabel() for axes in figure.axes] == ["real tokens / s", "% of peak", "%"]
    assert list(np.asarray(figure.axes[0].lines[0].get_ydata())) == [1001, 1002, 1003, 1004]
    assert list(np.asarray(figure.axes[1].lines[0].get_ydata())) == [25] * 4
    assert list(np.asarray(figure.axes[2].lines[0].get_ydata())) == pytest.approx([97.0] * 4)
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "optimizer updates"]
    for axes, most in zip(figure.axes, (1004, 25, 97), strict=True):
        assert axes.get_xlim() == (0, pytest.approx(40.8))
        assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > most


def test_waits_share_a_panel() -> None:
    axes = panel(
        plots.speed_panels(history().assign(data_wait_s=0.1, reduce_wait_s=0.2)),
        "Waiting of the first process since the record before",
    )
    assert lines(axes) == {"for data": [0.1] * 4, "for other ranks": [0.2] * 4}
    assert len({str(line.get_color()) for line in axes.lines}) == 2


@pytest.mark.parametrize(
    "figure, note",
    [
        (plots.task_bars(scores().iloc[:0]), "evaluation.json holds no task"),
        (plots.length_histograms(lengths().iloc[:0]), "the data sets hold no sequence"),
        (plots.speed_panels(history()[["event", "update"]]), "metrics.jsonl holds no record of speed"),
    ],
)
def test_nothing_to_show_is_said(figure: Figure, note: str) -> None:
    assert [text.get_text() for text in figure.axes[0].texts] == [note]


def test_equal_figures_are_equal_bytes() -> None:
    for draw, table in (
        (plots.training_curves, history()),
        (plots.task_bars, scores()),
        (plots.length_histograms, lengths()),
        (plots.speed_panels, history()),
    ):
        assert plots.svg(draw(table)) == plots.svg(draw(table))
    assert "dc:date" not in plots.svg(plots.task_bars(scores()))
