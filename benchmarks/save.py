"""How long saving holds up a training: the copy in memory (background save) beside the whole save (blocking).

Prints one JSON object: seconds (median of --repeats) of both for a model of --millions parameters on the CPU, and their
ratio. The file system is that of --folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from lucavirus.config import Run
from lucavirus.distributed import ALONE
from lucavirus.gradients import FlatGradients
from lucavirus.model import Architecture, LucaVirus, count_parameters
from lucavirus.optimizer import make_optimizer
from lucavirus.state import Checkpoints, State


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, default=100, help="parameters, about")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to save; default: the system's temporary folder")
    args = parser.parse_args()
    width = 1024
    layers = max(1, round(args.millions * 1e6 / (12 * width**2)))
    model = LucaVirus(Architecture(width, layers, 16, 1026, {}))
    optimizer = make_optimizer(model, Run(keep_last=1))
    FlatGradients(model, ALONE, 0).flat.normal_()
    optimizer.step()
    stalls, whole = [], []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        checkpoints = Checkpoints(Path(folder), {})
        for step in range(1, args.repeats + 2):
            started = time.perf_counter()
            checkpoints.save(step, model, optimizer, State(), {}, Run(keep_last=1))
            stalls.append(time.perf_counter() - started)
            checkpoints.finish()
            whole.append(time.perf_counter() - started)
    stall, blocking = (statistics.median(times[1:]) for times in (stalls, whole))
    print(json.dumps({
        "parameters": count_parameters(model), "stall_s": stall, "blocking_s": blocking, "ratio": stall / blocking,
        "torch_threads": torch.get_num_threads(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
