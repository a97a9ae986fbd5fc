"""Time from the start of a resumed training to its first update, at three places of a long run and with more data.

Prints one JSON object: seconds of the whole process that resumes, does one update, and ends (median of --repeats), at
1 %, 50 % and 99 % of a run of 1,000 epochs and with 100 times the data; and their ratios to the first. Saving and
publishing at the end are the same everywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from lucavirus.dataset import FORMAT, VERSION
from lucavirus.distributed import ALONE
from lucavirus.gradients import FlatGradients
from lucavirus.model import LucaVirus
from lucavirus.optimizer import make_optimizer
from lucavirus.prepare import prepare
from lucavirus.shards import map_arrays, write_arrays
from lucavirus.state import Checkpoints, State
from tests import tiny

EPOCHS = 1000


def multiply_data(settings: Path, times: int) -> None:
    """Have the training set hold each row `times` times."""
    for path in (settings.parent / "datasets").glob("*/train.h5"):
        arrays, attributes = map_arrays(path, FORMAT, VERSION)
        more = {name: np.tile(array, times) for name, array in arrays.items()}
        write_arrays(path, more, {**attributes, "fingerprint": f"{attributes['fingerprint']} x {times}"})


def resume_seconds(settings: Path, place: float, repeats: int) -> float:
    """Median seconds of a training that goes on at `place` of its run, for one update."""
    prepared = prepare("full", tiny.RUN.model_copy(update={"max_epochs": EPOCHS, "max_steps": 10**7}), settings.parent)
    update = int(place * prepared.plan.updates)
    model = LucaVirus(prepared.architecture)
    optimizer = make_optimizer(model, prepared.run)
    FlatGradients(model, ALONE, 0)
    optimizer.step()
    times = []
    for repeat in range(repeats):
        folder = f"resumed-{place}-{len(prepared.train)}-{repeat}"
        checkpoints = Checkpoints(settings.parent.parent / folder / "work", {})
        step = prepared.plan.position(update).step
        state = State(update=update, evaluated=update, saved=update)
        checkpoints.save(step, model, optimizer, state, prepared.fingerprint, prepared.run)
        checkpoints.finish()
        tiny.change_run(settings, stop_after={"updates": update + 1, "minutes": None})
        started = time.perf_counter()
        subprocess.run(tiny.train_command(settings, folder), env=tiny.environment(), check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = tiny.make_project(Path(folder), max_epochs=EPOCHS, max_steps=10**7)
        for split in ("dev", "test"):  # evaluation at the end is not what is measured
            for path in (settings.parent / "datasets").glob(f"*/{split}.h5"):
                arrays, attributes = map_arrays(path, FORMAT, VERSION)
                write_arrays(path, {name: np.array(array[:1]) for name, array in arrays.items()}, attributes)
        seconds = {f"{place:.0%}": resume_seconds(settings, place, args.repeats) for place in (0.01, 0.5, 0.99)}
        multiply_data(settings, 100)
        seconds["50%, 100 times the data"] = resume_seconds(settings, 0.5, args.repeats)
    base = seconds["1%"]
    print(json.dumps({"seconds": seconds, "ratio_to_1_percent": {name: s / base for name, s in seconds.items()}}))


if __name__ == "__main__":
    main()
