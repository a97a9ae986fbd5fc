"""What fails around a training on a real Slurm: its Snakemake, and the controller."""

from __future__ import annotations

import signal

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Demo, equal_weights

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def test_without_its_snakemake_a_training_goes_on_and_no_second_one_starts(demo: Demo, whole: Demo) -> None:
    demo.profile(gres="gpu:h100:4")
    process = demo.snakemake("train_full")
    demo.wait_for(demo.reached(4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    number = demo.training()["JobId"]
    assert demo.run("train_full") == 1
    assert f"run full is trained by Slurm job {number} (RUNNING on node" in demo.said
    assert "type the same command again" in demo.said
    assert demo.training()["JobId"] == number
    demo.wait_for(lambda: demo.training()["JobState"] == "COMPLETED", alone=True)
    assert demo.run("train_full") == 0, demo.said
    assert equal_weights(demo, whole)


def test_a_controller_that_is_away_is_waited_for(demo: Demo, whole: Demo, cluster: Cluster) -> None:
    """The training goes on and ends without a controller; Snakemake asks in vain, and sees the end afterwards."""
    demo.profile(gres="gpu:h100:4")
    process = demo.snakemake("train_full", "--verbose")
    demo.wait_for(demo.reached(4))
    cluster.stop_controller()
    try:
        demo.wait_for(lambda: "SLURM query command failed" in demo.said)
        demo.wait_for(lambda: (demo.folder / "results/tiny/runs/full/training.json").exists())
    finally:
        cluster.start_controller()
    assert process.wait(240) == 0, demo.said
    assert equal_weights(demo, whole)
