"""A training on a real Slurm that is interrupted in every way: it goes on by itself, or ends for good."""

from __future__ import annotations

import os
import signal

import pytest

from tests.slurm.cluster import Cluster, command, processes_of
from tests.slurm.conftest import Demo, equal_weights

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def test_two_nodes_train_as_one_and_go_on_after_warnings(demo: Demo, whole: Demo) -> None:
    """Warned, saved, given back to the queue, started again, twice: the same losses and weights as in one go."""
    demo.configure(nodes=2, cpu_ranks=2)
    demo.profile(gres="gpu:h100:2")
    snakemake = demo.snakemake("train_full")
    for restart, update in enumerate((10, 40), 1):
        demo.wait_for(demo.reached(update))
        job = demo.training()
        assert (job["NumNodes"], job["TresPerNode"], job["Restarts"]) == ("2", "gres:gpu:h100:2", str(restart - 1))
        command("scancel", "--signal=USR1", job["JobId"])  # what --signal=USR1@N does: it tells the steps
        demo.wait_for(lambda n=restart: demo.training()["Restarts"] == str(n))  # type: ignore[misc]
    assert snakemake.wait(120) == 0, demo.said
    log = demo.log()
    assert log.count("(SIGUSR1 came: the time limit is near)\n") == 2
    assert log.count("the time limit is near, all is saved: Slurm job") == 2
    assert log.count("going on from work/tiny/full/checkpoints/step-") == 2
    hosts = {line.split(":")[0].split(" on ")[1] for line in log.splitlines() if line.startswith("rank ")}
    assert len(hosts) >= 2
    losses = [[record["loss"] for record in each.history() if record["event"] == "train"] for each in (demo, whole)]
    assert len(losses[0]) > 50
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_time_limit_itself(demo: Demo, whole: Demo) -> None:
    """Slurm itself warns before the limit of two minutes: saved, started again, to the same bits."""
    demo.profile(gres="gpu:h100:4", runtime=2)
    snakemake = demo.snakemake("train_full")
    demo.wait_for(demo.reached(20))
    ranks = _ranks(demo.training()["NodeList"])
    assert len(ranks) == 4
    for pid in ranks:  # a longer training than a test should have: it sleeps until the warning is there
        os.kill(pid, signal.SIGSTOP)
    demo.wait_for(lambda: "Received 10 death signal" in demo.log(), 120)
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    assert snakemake.wait(120) == 0, demo.said
    assert "the time limit is near, all is saved: Slurm job" in demo.log()
    assert demo.training()["Restarts"] == "1"
    assert equal_weights(demo, whole)
    assert demo.history() == whole.history()


def test_a_lost_node(demo: Demo, whole: Demo, cluster: Cluster) -> None:
    """The slurmd and all processes of the second node are gone: the job starts again elsewhere and goes on."""
    demo.configure(nodes=2, cpu_ranks=2)
    snakemake = demo.snakemake("train_full")
    demo.wait_for(demo.reached(30))
    before = command("scontrol", "show", "hostnames", demo.training()["NodeList"]).split()
    cluster.lose_node(before[1])
    try:
        assert snakemake.wait(150) == 0, demo.said
    finally:
        cluster.start_node(before[1])
    after = demo.training()
    assert before[1] not in command("scontrol", "show", "hostnames", after["NodeList"]).split()
    assert after["Restarts"] == "1" and "going on from" in demo.log()
    losses = [[record["loss"] for record in each.history() if record["event"] == "train"] for each in (demo, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_more_urgent_job_takes_the_nodes(demo: Demo, whole: Demo) -> None:
    demo.profile(gres="gpu:h100:4")
    snakemake = demo.snakemake("train_full")
    demo.wait_for(demo.reached(20))
    job = demo.training()["JobId"]
    urgent = command(
        "sbatch", "--parsable", "-p", "urgent", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3"
    )
    assert snakemake.wait(150) == 0, demo.said
    assert "JobState=COMPLETED" in command("scontrol", "show", "job", urgent.strip())
    assert "a more urgent job takes the nodes: Slurm job" in demo.log()
    assert "PreemptTime=None" in command("scontrol", "show", "job", job)  # a later crash is none of its own
    assert equal_weights(demo, whole)


def test_scancel_ends_it_for_good_and_the_same_command_goes_on(demo: Demo, whole: Demo) -> None:
    demo.profile(gres="gpu:h100:4")
    snakemake = demo.snakemake("train_full")
    demo.wait_for(demo.reached(20))
    job = demo.training()["JobId"]
    command("scancel", job)
    assert snakemake.wait(60) == 1
    assert demo.training()["JobId"] == job and demo.training()["JobState"] == "CANCELLED"
    assert demo.run("train_full") == 0, demo.said
    assert "going on from" in demo.log()
    assert equal_weights(demo, whole)


def test_a_rank_that_dies_each_time(demo: Demo) -> None:
    """A crash starts again by itself; three in a row without a new checkpoint end the job."""
    demo.configure(save_steps=10000)
    snakemake = demo.snakemake("train_full")
    for crash in range(3):
        demo.wait_for(lambda n=crash: _started(demo, n))  # type: ignore[misc]
        os.kill(_ranks(demo.training()["NodeList"])[0], signal.SIGKILL)
    assert snakemake.wait(90) == 1
    job = demo.training()
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "2")
    assert "failed (start 1 of 2 after a failure)" in demo.log()
    assert "failed (start 2 of 2 after a failure)" in demo.log()
    assert "Signal 9 (SIGKILL)" in demo.said


def _started(demo: Demo, restarts: int) -> bool:
    """True when a start of the training has its ranks."""
    job = demo.training()
    return job.get("JobState") == "RUNNING" and job["Restarts"] == str(restarts) and len(_ranks(job["NodeList"])) == 4


def _ranks(node: str) -> list[int]:
    """The processes that train on a node."""
    found = []
    for pid in processes_of(node):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if words[-2:-1] and b"workflow_scripts/train.py" in words[:4]:
            found.append(pid)
    return found
