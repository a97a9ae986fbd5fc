"""The cluster for all tests of this folder, a tree whose data are ready, and Snakemakes in copies of it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.slurm.cluster import Cluster, command, missing, running
from tests.tiny import WALL_CLOCK
from tests.workflow.conftest import copy_tree

# 8 sequences an update, some 50 updates: the training that tests/tiny.py has, through the workflow.
OVERLAY: dict[str, Any] = {
    "project": "tiny",
    "model": {
        "hidden_size": 16, "num_attention_layers": 1, "num_attention_heads": 2,
        "head_size": dict.fromkeys(("gene_type", "prot_homo", "prot_site", "prot_domain", "gene_taxonomy",
                                    "prot_taxonomy", "prot_keyword"), 8),
    },
    "split": {"dev": 0.05, "test": 0.6},
    "training": {
        "gpus": 4, "batch_size": 1, "gradient_accumulation_steps": 2, "max_epochs": 2, "max_steps": 200,
        "warmup_steps": 20, "final_learning_rate": None, "learning_rate": 0.003, "loss_logging_steps": 4,
        "logging_steps": 8, "save_steps": 10, "save_minutes": None, "worker_num": 0, "device": "cpu", "cpu_ranks": 4,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why := missing():
        pytest.skip(why)
    with contextlib.ExitStack() as held:
        try:
            up = held.enter_context(running(tmp_path_factory.mktemp("slurm")))
        except BlockingIOError:
            pytest.skip("another run of these tests has its cluster up")
        yield up


class Demo:
    """A tree from which Snakemake submits to the cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        self.configure()
        self.profile()

    def configure(self, **full: Any) -> None:
        """The configuration, with changed settings of the run `full`."""
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump({**OVERLAY, "runs": {"full": full}}))

    def profile(self, **train: Any) -> None:
        """profiles/slurm as an operator fits it to small nodes, with more resources of `train`."""
        file = self.folder / "profiles/slurm/config.yaml"
        shipped = file.with_suffix(".shipped")
        if not shipped.exists():
            shutil.copy(file, shipped)
        profile = yaml.safe_load(shipped.read_text())
        profile |= {"slurm-no-account": True, "configfile": "tiny.yaml"}
        profile |= {"latency-wait": 5, "slurm-init-seconds-before-status-checks": 2}
        profile["set-threads"] = {"tokenize_source": 2, "split": 2}
        for rule in profile["set-resources"].values():
            rule |= {"mem_mb": 1000, "runtime": 10}
        profile["set-resources"]["tokenize_source"]["cpus_per_task"] = 3
        # Slurm ends a job at its limit in whole minutes, and may warn up to a minute earlier than asked.
        profile["set-resources"]["train"]["slurm_extra"] = "'--signal=USR1@60 --open-mode=append'"
        profile["set-resources"]["train"] |= train
        file.write_text(yaml.safe_dump(profile))

    def snakemake(self, *words: str) -> subprocess.Popen[bytes]:
        """Start `snakemake --profile slurm WORDS`; what it says goes to the file `said`."""
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.folder / ".cache"), "GLOO_SOCKET_IFNAME": "lo"}
        words = (sys.executable, "-m", "snakemake", "--profile", "slurm", *words)
        with (self.folder / "said").open("wb") as said:
            process = subprocess.Popen(words, cwd=self.folder, env=environment, stdout=said, stderr=said)
        self.started.append(process)
        return process

    def run(self, *words: str, seconds: float = 180) -> int:
        """The same, waited for; returns the exit status."""
        return self.snakemake(*words).wait(seconds)

    def wait_for(self, condition: Callable[[], object], seconds: float = 90, *, alone: bool = False) -> None:
        """Wait until something holds, while the Snakemake started last goes on (`alone`: without it)."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline and (alone or self.started[-1].poll() is None), self.said
            time.sleep(0.1)

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    def jobs(self) -> dict[str, dict[str, str]]:
        """The jobs submitted from here, finished ones too: rule and wildcards -> what scontrol shows."""
        shown = [line for line in command("scontrol", "show", "job", "--oneliner").splitlines() if "=" in line]
        every = [
            dict(word.split("=", 1) for word in shlex.split(line.replace("'", "")) if "=" in word) for line in shown
        ]
        here = [job for job in every if job["WorkDir"] == str(self.folder)]
        return {job["Comment"].removeprefix("rule_"): job for job in sorted(here, key=lambda job: int(job["JobId"]))}

    def training(self, run: str = "full") -> dict[str, str]:
        """The newest job that trains a run; {} before it was submitted."""
        return self.jobs().get(f"train_wildcards_{run}", {})

    def history(self, run: str = "full") -> list[dict[str, Any]]:
        """metrics.jsonl of a training, without wall-clock fields."""
        file = self.folder / f"work/tiny/{run}/metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [{k: v for k, v in json.loads(line).items() if k not in WALL_CLOCK} for line in lines]

    def reached(self, update: int, run: str = "full") -> Callable[[], bool]:
        """Whether a training has logged an update."""
        return lambda: any(record["update"] >= update for record in self.history(run))

    def weights(self, run: str = "full") -> dict[str, Tensor]:
        """All tensors of the published models."""
        folder = self.folder / f"results/tiny/runs/{run}/model"
        files = sorted(folder.rglob("*.safetensors"))
        return {f"{path.relative_to(folder)}/{name}": t for path in files for name, t in load_file(path).items()}

    def log(self, run: str = "full") -> str:
        """Slurm's log of the newest job that trained a run."""
        return Path(self.training(run)["StdOut"]).read_text()

    def end(self) -> None:
        """End what still runs."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
        for job in self.jobs().values():
            if job["JobState"] in ("RUNNING", "PENDING"):
                command("scancel", job["JobId"])


def equal_weights(one: Demo, other: Demo) -> bool:
    """Whether two trainings ended with the same bits."""
    ours, theirs = one.weights(), other.weights()
    assert ours and ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="session")
def data(cluster: Cluster, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A tree whose shards and data sets were made by jobs."""
    demo = Demo(copy_tree(root, tmp_path_factory.mktemp("data")))
    assert demo.run("split") == 0, demo.said
    return demo


def fresh(data: Demo, folder: Path) -> Demo:
    """A copy of the tree with its data, for one more training."""
    shutil.copytree(data.folder, folder, symlinks=True)
    (folder / "said").unlink()
    return Demo(folder)


@pytest.fixture
def demo(data: Demo, tmp_path: Path) -> Iterator[Demo]:
    made = fresh(data, tmp_path / "demo")
    yield made
    made.end()


@pytest.fixture(scope="session")
def whole(data: Demo, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The training on one node with four processes, not interrupted."""
    made = fresh(data, tmp_path_factory.mktemp("whole") / "demo")
    made.profile(gres="gpu:h100:4", runtime=7, slurm_partition="gpu")
    assert made.run("train_full") == 0, made.said
    return made
