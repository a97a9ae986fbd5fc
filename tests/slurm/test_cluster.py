"""The workflow on a real Slurm: what each rule asks for, and how a training starts."""

from __future__ import annotations

import pytest
import torch

from tests.slurm.conftest import Demo

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def asked(job: dict[str, str]) -> dict[str, str]:
    wanted = ("Partition", "NumNodes", "NumCPUs", "MinMemoryNode", "TimeLimit", "Requeue", "Restarts")
    return {key: job[key] for key in wanted} | {"gpus": job.get("TresPerNode", "")}


def test_data_rules_run_on_cpu_nodes(data: Demo) -> None:
    jobs = data.jobs()
    assert set(jobs) == {"vocabularies", "split", "tokenize_source_wildcards_genomes",
                         "tokenize_source_wildcards_proteins"}  # fmt: skip
    one = {"Partition": "cpu", "NumNodes": "1", "MinMemoryNode": "1000M", "TimeLimit": "00:10:00", "Requeue": "1",
           "Restarts": "0", "gpus": ""}  # fmt: skip
    assert asked(jobs["tokenize_source_wildcards_genomes"]) == {**one, "NumCPUs": "3"}
    assert asked(jobs["split"]) == {**one, "NumCPUs": "8"}


def test_a_training_asks_for_its_node(whole: Demo) -> None:
    assert asked(whole.training()) == {
        "Partition": "gpu", "NumNodes": "1", "NumCPUs": "8", "MinMemoryNode": "1000M", "TimeLimit": "00:07:00",
        "Requeue": "1", "Restarts": "0", "gpus": "gres:gpu:h100:4",
    }  # fmt: skip
    log = whole.log()
    for rank in range(4):
        assert f"rank {rank} of 4 on node" in log
    assert log.count(": cpu, GLOO_SOCKET_IFNAME=lo") == 4


def test_two_runs_side_by_side(demo: Demo) -> None:
    demo.profile(gres="gpu:h100:4", slurm_extra="'--signal=USR1@60 --open-mode=append --nodelist=node1'")
    assert demo.run("train_gene_only", "train_prot_only") == 0, demo.said
    jobs = [demo.training(run) for run in ("gene_only", "prot_only")]
    assert [job["NodeList"] for job in jobs] == ["node1", "node1"]
    assert max(job["StartTime"] for job in jobs) < min(job["EndTime"] for job in jobs), "one after the other"
    for run in ("gene_only", "prot_only"):
        assert (demo.folder / f"results/tiny/runs/{run}/training.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="wants GPUs that torch does not find")
def test_a_job_that_fails_for_good_says_why_and_where_once(demo: Demo) -> None:
    """Granted GPUs that do not work are a mistake to mend, not a crash: no start again, the host on the screen."""
    demo.configure(device="auto", nodes=2)
    assert demo.run("train_full") == 1
    job = demo.training()
    assert (job["JobState"], job["Restarts"], job["TresPerNode"]) == ("FAILED", "0", "gres:gpu:2")
    assert "of 4 on node" in demo.said
    assert "has the use of 2 GPU(s) of Slurm's, but torch finds no GPU" in demo.said
    assert "given back to the queue" not in demo.said


def test_a_wrong_setting_submits_nothing(demo: Demo) -> None:
    demo.configure(nodes=3)
    assert demo.run("train_full") == 1
    assert "nodes (3) must divide gpus (4)" in demo.said
    assert demo.training() == {}


def test_an_evaluation_takes_one_node_and_plots_none(whole: Demo) -> None:
    assert whole.run("evaluate_full", "report_full") == 0, whole.said
    jobs = whole.jobs()
    assert asked(jobs["evaluate_wildcards_full"]) == {
        "Partition": "gpu", "NumNodes": "1", "NumCPUs": "8", "MinMemoryNode": "1000M", "TimeLimit": "00:10:00",
        "Requeue": "1", "Restarts": "0", "gpus": "",
    }  # fmt: skip
    assert not [name for name in jobs if name.startswith(("draw", "show"))]
    assert (whole.folder / "results/tiny/runs/full/evaluation.json").exists()
    assert (whole.folder / "results/tiny/runs/full/report/summary.md").exists()
