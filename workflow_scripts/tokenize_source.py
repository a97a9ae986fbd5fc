"""Turn the files of one source into HDF5 shards."""

import argparse
import sys
from pathlib import Path

from lucavirus.config_load import read_settings
from lucavirus.distributed import joined
from lucavirus.errors import run_stage
from lucavirus.tokenization import tokenize_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="results/{project}/settings.json")
    parser.add_argument("--source", required=True, help="name of the source in the settings")
    parser.add_argument("--vocabularies", type=Path, required=True, help="folder with {task}.txt of each task")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards and index.json")
    args = parser.parse_args()
    with joined("cpu") as ranks:
        index = tokenize_source(read_settings(args.settings), args.source, args.vocabularies, args.out, ranks)
    for what, count in index.get("counts", {}).items():
        print(f"{args.source}: {count:,} {what}", file=sys.stderr)


if __name__ == "__main__":
    run_stage(main)
