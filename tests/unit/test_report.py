"""The tables and pages of the report against files made by hand, and what it says about broken ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lucavirus import report
from lucavirus.errors import UserError

EVALUATION = {
    "run": "mine",
    "checkpoint": "step-8",
    "splits": {
        "dev": {
            "prot_mask": {"loss": 1.5, "accuracy": 0.5, "baseline": {"accuracy": 0.3}, "n_sequences": 7},
            "prot_keyword": {"loss": 0.23456789, "average_precision": 0.8, "f1": 0.7, "baseline": {"f1": 0.1}},
        },
        "test": {"prot_mask": {"loss": 1.25, "accuracy": None, "baseline": {"accuracy": 0.25}, "n_sequences": 9}},
    },
}
TRAINING = {
    "run": "mine", "updates": 1200, "steps": 38400, "epochs": 1.5, "sequences": 38400, "tokens": 3000000,
    "seconds": 3725.0, "best": {"update": 900, "loss": 1.23456}, "reason": "stop_after",
    "B": 32, "world_size": 2, "parameters": 1234567, "max_steps": 4000, "something_new": [1],
}  # fmt: skip
RECORDS = [
    {"event": "train", "update": 1, "loss": 3.0, "losses": {"gene_mask": 3.0}, "lr": 0.1, "tokens_per_s": 9.0},
    {"event": "train", "update": 2, "loss": 2.0, "losses": {"gene_mask": 2.0, "prot_mask": None}, "lr": 0.2},
    {"event": "dev", "update": 2, "loss": 2.5, "losses": {"gene_mask": 2.5}},
    {"event": "test", "update": 2, "loss": 2.6, "losses": {"gene_mask": 2.6}, "metrics": {"gene_mask": {"f1": 1}}},
    {"event": "skip", "update": 3, "loss": None, "losses": {}},
    {"event": "save", "update": 3},
]
SUMMARY = "molecule\tsplit\tsequences\ttokens\tmean\ngene\ttrain\t8000\t4800000\t600.25\n"
LENGTHS = "molecule\tsplit\tfrom\tto\tsequences\ngene\ttrain\t0\t64\t8000\n"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The inputs of a run's report, whole."""
    texts = {
        "metrics": "".join(json.dumps(record) + "\n" for record in RECORDS),
        "training": json.dumps(TRAINING),
        "evaluation": json.dumps(EVALUATION, indent=1),
        "summary": SUMMARY,
    }
    paths = {name: tmp_path / "mine" / name for name in texts}
    (tmp_path / "mine").mkdir()
    for name, path in paths.items():
        path.write_text(texts[name])
    return paths


def test_history_has_a_column_for_each_task(files: dict[str, Path]) -> None:
    history = report.read_history(files["metrics"])
    assert list(history["event"]) == ["train", "train", "dev", "test", "skip", "save"]
    assert list(history["losses.gene_mask"][:4]) == [3.0, 2.0, 2.5, 2.6]
    assert history["losses.prot_mask"].isna().all()
    assert history["tokens_per_s"][0] == 9.0
    assert not any(str(name).startswith("metrics") for name in history)


def test_metrics_table_holds_every_value(files: dict[str, Path]) -> None:
    table = report.metrics_table(report.read_evaluation(files["evaluation"])).fillna(-1.0)
    assert table.to_dict("split")["data"] == [
        ["prot_mask", "loss", 1.5, -1, 1.25, -1],
        ["prot_mask", "accuracy", 0.5, 0.3, -1, 0.25],
        ["prot_mask", "n_sequences", 7, -1, 9, -1],
        ["prot_keyword", "loss", 0.23456789, -1, -1, -1],
        ["prot_keyword", "average_precision", 0.8, -1, -1, -1],
        ["prot_keyword", "f1", 0.7, 0.1, -1, -1],
    ]
    assert list(table.columns[2:]) == ["dev", "dev_baseline", "test", "test_baseline"]


def test_main_metric_depends_on_the_task(files: dict[str, Path]) -> None:
    scores = report.main_metrics(report.metrics_table(report.read_evaluation(files["evaluation"])))
    shown = list(zip(scores["task"], scores["metric"], strict=True))
    assert shown == [("prot_mask", "accuracy"), ("prot_keyword", "average_precision")]


def test_run_report_writes_whole_files_twice_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        report.write_run_report(run="mine", out=tmp_path / name, **files)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["curves.svg", "speed.svg", "summary.md", "tasks.html", "tasks.svg", "tasks.tsv"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    table = (tmp_path / "a" / "tasks.tsv").read_text()
    assert "prot_mask\taccuracy\t0.5\t0.3\t\t0.25\n" in table and "prot_keyword\tloss\t0.23456789\t" in table
    assert "<td>0.5000</td>" in (tmp_path / "a" / "tasks.html").read_text()


def test_summary_page_answers_the_first_questions(files: dict[str, Path], tmp_path: Path) -> None:
    report.write_run_report(run="mine", out=tmp_path / "out", **files)
    page = (tmp_path / "out" / "summary.md").read_text()
    for line in (
        "# Run mine",
        "| ended | early, by stop_after |",
        "| trained | 1,200 updates of 32 sequences (38,400 steps), 1.5 epochs |",
        "| learning rate | would be 0 after 4,000 updates |",
        "| time | 1 h 2 min on 2 process(es), 805 tokens/s |",
        "| best dev loss | 1.2346 nats, at update 900 |",
        f"| best model | `{tmp_path / 'mine' / 'model'}` |",
        f"| last model | `{tmp_path / 'mine' / 'model' / 'last'}` |",
        "| skipped | 1 update(s) whose gradient was not finite: `non_finite.jsonl` in the work folder |",
        "| task | metric | dev | dev baseline | test | test baseline |",
        "| prot_mask | accuracy | 0.5000 | 0.3000 | – | 0.2500 |",
        "| prot_keyword | average_precision | 0.8000 | – | – | – |",
        "| gene | train | 8,000 | 4,800,000 | 600.2 |",
    ):
        assert line in page.splitlines()


def test_a_short_run_without_a_best_model_that_skipped_updates(files: dict[str, Path], tmp_path: Path) -> None:
    files["training"].write_text(json.dumps(TRAINING | {"best": None, "seconds": 119.6}))
    files["metrics"].write_text(files["metrics"].read_text() + '{"event": "skip", "update": 4}')
    report.write_run_report(run="mine", out=tmp_path / "out", **files)
    page = (tmp_path / "out" / "summary.md").read_text()
    assert "| time | 2 min 0 s on 2 process(es), 25,084 tokens/s |\n" in page
    assert "| best dev loss | none |\n" in page
    assert "| skipped | 2 update(s)" in page


def test_a_run_without_held_out_sequences_has_no_empty_table(files: dict[str, Path], tmp_path: Path) -> None:
    files["evaluation"].write_text(json.dumps(EVALUATION | {"splits": {"dev": {}, "test": {}}}))
    report.write_run_report(run="mine", out=tmp_path / "out", **files)
    page = (tmp_path / "out" / "summary.md").read_text()
    why = "None: there is no sequence of dev and test, or none has a label of this run's tasks."
    assert f"## Results\n\n{why}\n\n## Training" in page


def test_a_run_without_skipped_updates_does_not_speak_of_them(files: dict[str, Path], tmp_path: Path) -> None:
    lines = files["metrics"].read_text().splitlines()
    files["metrics"].write_text("\n".join(line for line in lines if "skip" not in line))
    report.write_run_report(run="mine", out=tmp_path / "out", **files)
    assert "| skipped |" not in (tmp_path / "out" / "summary.md").read_text()


def test_data_report(tmp_path: Path) -> None:
    (tmp_path / "lengths.tsv").write_text(LENGTHS)
    (tmp_path / "summary.tsv").write_text(SUMMARY)
    report.write_data_report(tmp_path / "lengths.tsv", tmp_path / "summary.tsv", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data.html", "lengths.svg"]
    assert "<td>4,800,000</td>" in (tmp_path / "out" / "data.html").read_text()


@pytest.mark.parametrize("name", ["lengths", "summary"])
def test_a_table_of_the_data_sets_without_its_columns_is_refused(tmp_path: Path, name: str) -> None:
    for file, text in (("lengths", LENGTHS), ("summary", SUMMARY)):
        (tmp_path / file).write_text(text.replace("sequences", "rows") if file == name else text)
    with pytest.raises(UserError, match=f"{name}:1: lacks the columns sequences"):
        report.write_data_report(tmp_path / "lengths", tmp_path / "summary", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, line, text, message",
    [
        ("metrics", 3, '{"event": "dev", "upda', "metrics:3: is not JSON: Unterminated string"),
        ("metrics", 3, "", "metrics:3: is not JSON"),
        ("metrics", 3, '{"event": "dev"}', "metrics:3: has another form than expected: update: Field required"),
        ("metrics", 3, '{"event": "nap", "update": 2}', "metrics:3: has another form than expected: event: Input"),
        ("evaluation", 4, ' "splits" {', "evaluation:4: is not JSON: Expecting ':' delimiter"),
        ("evaluation", 6, '"gene_musk": {', "evaluation:1: has another form than expected: splits.dev.gene_musk"),
        ("training", 1, "{}", "training:1: has another form than expected: run: Field required"),
        ("summary", 1, "a\tb", "summary:1: lacks the columns molecule, split, sequences, tokens"),
        ("summary", 2, "a\tb\tc\td\te\n" + 9 * "f\t", "summary:1: is not a table: Error tokenizing data"),
    ],
)
def test_broken_input_is_named_with_its_line(
    files: dict[str, Path], tmp_path: Path, name: str, line: int, text: str, message: str
) -> None:
    lines = files[name].read_text().splitlines()
    lines[line - 1] = text
    files[name].write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        report.write_run_report(run="mine", out=tmp_path / "out", **files)
    assert message in str(caught.value)
    assert "What to do: " in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["metrics", "training", "evaluation", "summary"])
def test_empty_and_absent_input(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    files[name].write_text("\n")
    with pytest.raises(UserError, match=f"{name}:1: is empty"):
        report.write_run_report(run="mine", out=tmp_path / "out", **files)
    files[name].unlink()
    with pytest.raises(UserError, match="cannot be read"):
        report.write_run_report(run="mine", out=tmp_path / "out", **files)


@pytest.mark.parametrize("name", ["training", "evaluation"])
def test_files_of_another_run_are_refused(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    files[name].write_text(files[name].read_text().replace('"mine"', '"yours"'))
    with pytest.raises(UserError, match="belongs to run yours, not to mine") as caught:
        report.write_run_report(run="mine", out=tmp_path / "out", **files)
    assert caught.value.where == str(files[name])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.nan, "–"), (2.0, "2"), (0.12345, "0.1235"), (123.456, "123.5"), (1.5e9, "1.5e+09"), (1e304, "1e+304"),
        (12345, "12,345"), ("a", "a"),
    ],
)  # fmt: skip
def test_numbers_for_people(value: object, shown: str) -> None:
    assert report._cell(value) == shown
