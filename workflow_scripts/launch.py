"""Run a stage's command with its log, its signals and its errors in order."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The only script that starts without PYTHONPATH: it is what sets it for the others.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lucavirus.launch import launch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="file that finished lines of output are appended to")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="torchrun ... or python ...")
    parser.add_argument("--guard", type=Path, metavar="DIR", help="work folder that no other training may hold")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of this machine to hold, when so many are free")
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("the command is missing")
    return launch(arguments.command, arguments.log, arguments.guard, arguments.gpus)


if __name__ == "__main__":
    sys.exit(main())
