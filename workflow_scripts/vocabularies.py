"""Write the label vocabulary of each task, over all sources."""

import argparse
from pathlib import Path

from lucavirus.config_load import read_settings
from lucavirus.errors import run_stage
from lucavirus.vocabularies import build_vocabularies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="results/{project}/settings.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for {task}.txt")
    args = parser.parse_args()
    print(build_vocabularies(read_settings(args.settings), args.out))


if __name__ == "__main__":
    run_stage(main)
