"""Divide the rows of all shards into train, dev and test sets of genes and proteins."""

import argparse
import sys
from pathlib import Path

from lucavirus.config_load import read_settings
from lucavirus.distributed import joined
from lucavirus.errors import run_stage
from lucavirus.splits import make_datasets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="results/{project}/settings.json")
    parser.add_argument("--shards", type=Path, required=True, help="folder with the shards of all sources")
    parser.add_argument("--out", type=Path, required=True, help="folder for {gene,prot}/{train,dev,test}.h5")
    args = parser.parse_args()
    with joined("cpu") as ranks:
        summary = make_datasets(read_settings(args.settings), args.shards, args.out, ranks)
    print(summary, file=sys.stderr)


if __name__ == "__main__":
    run_stage(main)
