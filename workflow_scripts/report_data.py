"""Write the length histogram and the table of the data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from lucavirus.errors import run_stage
from lucavirus.report import write_data_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=Path, required=True, help="lengths.tsv of the data sets")
    parser.add_argument("--summary", type=Path, required=True, help="summary.tsv of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    write_data_report(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_stage(main)
