"""A copy of the tree to run Snakemake in, so that no test touches the checkout's results."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TREE = (
    "Snakefile",
    "config",
    "environment.yml",
    "lucavirus",
    "profiles",
    "report",
    "rules",
    "slurm",
    "workflow_scripts",
)

Snakemake = Callable[..., "subprocess.CompletedProcess[str]"]


def copy_tree(root: Path, folder: Path) -> Path:
    """Copy what Snakemake needs into a folder."""
    for name in TREE:
        source, target = root / name, folder / name
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(root, tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def snakemake(tree: Path) -> Snakemake:
    """Run snakemake in the copy as a user types it, on a machine without GPUs unless `gpus` says otherwise."""

    def run(*words: str, gpus: str = "") -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus, "XDG_CACHE_HOME": str(tree / ".cache")}
        command = [sys.executable, "-m", "snakemake", *words]
        return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)

    return run


def jobs(run: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The jobs that a dry run counts: rule -> number."""
    assert run.returncode == 0, run.stderr
    table = re.search(r"\njob +count\n[- ]+\n(.*?)\ntotal ", run.stdout, re.DOTALL)
    return {} if table is None else {name: int(n) for name, n in (row.split() for row in table[1].splitlines())}
