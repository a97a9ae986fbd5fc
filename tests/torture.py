"""Kill trainings at random moments, again and again, and compare what they end with: `make torture KILLS=200 SEED=1`.

Prints one JSON line; every number but `kills` and `runs` must be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from lucavirus.ledger import gone_through
from tests import tiny

# A training of the tiny project takes some five seconds once it has begun: two or three kills fall into each.
LONGEST = 3.0


def campaign(settings: Path, kills: int, seed: int) -> dict[str, int]:
    """Train until `kills` kills have fallen, each run to its end, and count what differs from the run `whole`."""
    moments = random.Random(seed)
    told = Counter(kills=0, runs=0, tensors_different=0, metrics_different=0, orphans=0)
    told.update(samples_lost=0, samples_repeated=0)
    while told["kills"] < kills:
        folder = f"torture{told['runs']}"
        while told["kills"] < kills and _killed(settings, folder, moments.uniform(0, LONGEST)):
            told["kills"] += 1
            told["orphans"] += len(_processes(tiny.folder_of(settings, folder)))
        tiny.train(settings, folder)
        told["runs"] += 1
        told.update(_differences(settings, folder))
        shutil.rmtree(tiny.folder_of(settings, folder))
    return dict(told)


def _killed(settings: Path, folder: str, moment: float) -> bool:
    """Start the training and kill its process group `moment` seconds after it has begun; False if it ended before."""
    work = tiny.folder_of(settings, folder) / "work"
    process = subprocess.Popen(
        tiny.train_command(settings, folder), env=tiny.environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not _holds(work / "lock", process.pid):
        time.sleep(0.01)
    time.sleep(moment)
    if process.poll() is not None:
        assert process.returncode == 0
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def _holds(lock: Path, pid: int) -> bool:
    return lock.exists() and f'"pid": {pid},' in lock.read_text()


def _processes(folder: Path) -> list[str]:
    """Processes that name the folder on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def _differences(settings: Path, folder: str) -> dict[str, int]:
    histories = [tiny.history(settings, name) for name in ("whole", folder)]
    checkpoints = tiny.folder_of(settings, folder) / "work/checkpoints"
    newest = max(checkpoints.iterdir(), key=lambda path: int(path.name[5:]))
    data = tiny.dataset(settings)
    everyone = Counter(data.name(index) for index in range(len(data)))
    lost = repeated = 0
    for epoch in range(tiny.RUN.max_epochs):
        seen = Counter(sample for _, _, sample in gone_through(newest, settings.parent, epoch))
        lost += (everyone - seen).total()
        repeated += (seen - everyone).total()
    return {
        "tensors_different": len(tiny.different_tensors(settings, "whole", folder)),
        "metrics_different": abs(len(histories[0]) - len(histories[1]))
        + sum(a != b for a, b in zip(*histories, strict=False)),
        "samples_lost": lost,
        "samples_repeated": repeated,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.make_project(Path(folder))
        tiny.train(settings, "whole")
        told = campaign(settings, args.kills, args.seed)
    print(json.dumps(told))
    sys.exit(any(number for name, number in told.items() if name not in ("kills", "runs")))


if __name__ == "__main__":
    main()
