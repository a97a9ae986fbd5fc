"""Evaluate the best model of a run on the dev and test sets."""

import argparse
from pathlib import Path

from lucavirus.config_load import read_settings
from lucavirus.errors import run_stage
from lucavirus.evaluate_run import evaluate_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="results/{project}/settings.json")
    parser.add_argument("--run-name", required=True, help="name of the run in the settings")
    parser.add_argument("--data", type=Path, required=True, help="results/{project}: vocabularies, shards, datasets")
    parser.add_argument("--model", type=Path, required=True, help="folder of the published model")
    parser.add_argument("--out", type=Path, required=True, help="evaluation.json; a table .tsv is written beside it")
    args = parser.parse_args()
    evaluate_run(read_settings(args.settings), args.run_name, args.data, args.model, args.out)


if __name__ == "__main__":
    run_stage(main)
