"""List the samples that a training has gone through up to a checkpoint, as a table: epoch, update, sample."""

import argparse
import csv
import signal
import sys
from pathlib import Path

from lucavirus.errors import run_stage
from lucavirus.ledger import gone_through


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="work/{project}/{run}/checkpoints/step-N")
    parser.add_argument("--data", type=Path, required=True, help="results/{project}: shards and datasets")
    parser.add_argument("--epoch", type=int, help="only this epoch, counted from 0")
    args = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    table = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    table.writerow(["epoch", "update", "sample"])
    table.writerows(gone_through(args.checkpoint, args.data, args.epoch))


if __name__ == "__main__":
    run_stage(main)
