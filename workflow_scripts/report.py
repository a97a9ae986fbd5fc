"""Write the figures, tables and page on one run."""

from __future__ import annotations

import argparse
from pathlib import Path

from lucavirus.errors import run_stage
from lucavirus.report import write_run_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-name", dest="run", required=True, help="name of the run")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.jsonl of the run")
    parser.add_argument("--training", type=Path, required=True, help="training.json of the run, beside its model/")
    parser.add_argument("--evaluation", type=Path, required=True, help="evaluation.json of the run")
    parser.add_argument("--summary", type=Path, required=True, help="summary.tsv of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    write_run_report(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_stage(main)
