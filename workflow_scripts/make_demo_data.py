"""Write the demo's input: small made-up viral genomes (FASTA, GFF3) and proteins (FASTA) with their labels (TSV)."""

from __future__ import annotations

import argparse
from pathlib import Path

from lucavirus.demo import write_demo
from lucavirus.errors import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into, made when absent")
    parser.add_argument("--seed", type=int, default=1111, help="same seed, same bytes (default: %(default)s)")
    options = parser.parse_args()
    write_demo(options.out, options.seed)


if __name__ == "__main__":
    run_stage(main)
