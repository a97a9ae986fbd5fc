"""Train a run to its end, going on from its newest checkpoint, and publish the model."""

import argparse
from pathlib import Path

from lucavirus.config_load import read_settings
from lucavirus.errors import run_stage
from lucavirus.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="results/{project}/settings.json")
    parser.add_argument("--run-name", required=True, help="name of the run in the settings")
    parser.add_argument("--data", type=Path, required=True, help="results/{project}: vocabularies, shards, datasets")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and history; never deleted")
    parser.add_argument("--out", type=Path, required=True, help="folder for the published model and history")
    args = parser.parse_args()
    train(read_settings(args.settings), args.run_name, args.data, args.work, args.out)


if __name__ == "__main__":
    run_stage(main)
