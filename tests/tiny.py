"""A tiny project on disk for tests of training: demo data tokenized and split, and ways to run stages on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, equal

from lucavirus.config import Model, Run, Settings
from lucavirus.config_data import Source, Split
from lucavirus.dataset import Dataset
from lucavirus.demo import write_demo
from lucavirus.distributed import ALONE
from lucavirus.splits import make_datasets
from lucavirus.tasks import SUPERVISED
from lucavirus.tokenization import tokenize_source
from lucavirus.vocabularies import build_vocabularies

ROOT = Path(__file__).parents[1]
WALL_CLOCK = ("time", "tokens_per_s", "data_wait_s", "reduce_wait_s", "memory_mb")
# 8 sequences an update, of which there are about 50 an epoch; records every 2 updates, checkpoints every 5.
RUN = Run(
    gpus=2, batch_size=1, gradient_accumulation_steps=4, max_epochs=2, max_steps=200, warmup_steps=40,
    learning_rate=0.003, loss_logging_steps=8, logging_steps=16, save_steps=20, worker_num=0, device="cpu",
    model=Model(
        hidden_size=16, num_attention_layers=1, num_attention_heads=2, max_length=258,
        head_size=dict.fromkeys(SUPERVISED, 8),
    ),
)  # fmt: skip


def make_project(root: Path, **changes: Any) -> Path:
    """Make `root/results/tiny` up to the data sets, with one run `full`; returns the path of its settings."""
    demo, data = root / "demo", root / "results/tiny"
    if not demo.exists():
        write_demo(demo)
    sources = (
        Source(name="g", files=(f"{demo}/genomes.fasta",), kind="gene", window_size=256,
               annotations=(f"{demo}/genomes.gff3", f"{demo}/labels.tsv")),
        Source(name="p", files=(f"{demo}/proteins.fasta",), kind="prot", annotations=(f"{demo}/labels.tsv",)),
    )  # fmt: skip
    run = RUN.model_copy(update=changes)
    # Most sequences go to dev and test, which are cheap, so that an epoch is short.
    settings = Settings(project="tiny", sources=sources, split=Split(dev=0.05, test=0.6), runs={"full": run})
    data.mkdir(parents=True, exist_ok=True)
    path = data / "settings.json"
    path.write_text(settings.model_dump_json())
    build_vocabularies(settings, data / "vocabularies")
    for source in sources:
        tokenize_source(settings, source.name, data / "vocabularies", data / "shards" / source.name, ALONE)
    make_datasets(settings, data / "shards", data / "datasets", ALONE)
    return path


def dataset(settings: Path) -> Dataset:
    """The training set of the run."""
    return Dataset(settings.parent, RUN.molecules, "train", RUN.model.max_length, RUN.tasks)


def change_run(settings: Path, **changes: Any) -> None:
    """Change settings of the run in place."""
    content = json.loads(settings.read_text())
    content["runs"]["full"] |= changes
    settings.write_text(json.dumps(content))


def stage(script: str, *arguments: object, ranks: int = 1) -> list[str]:
    """The command that runs a stage's script, under torchrun for more than one rank."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *launch, str(ROOT / "workflow_scripts" / script), *map(str, arguments)]


def environment() -> dict[str, str]:
    """An environment in which stages find the package, with one thread a rank, so that bits can be compared."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


def folder_of(settings: Path, name: str) -> Path:
    """Where a training has its `work` and `out`: beside the project."""
    return settings.parent.parent / name


def train_command(settings: Path, folder: str, ranks: int = 1) -> list[str]:
    """The training of run `full` with its work and results under `folder` beside the project."""
    data = settings.parent
    arguments = {"settings": settings, "run-name": "full", "data": data}
    arguments |= {name: folder_of(settings, folder) / name for name in ("work", "out")}
    return stage("train.py", *(word for key, value in arguments.items() for word in (f"--{key}", value)), ranks=ranks)


def train(settings: Path, folder: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the training to its end."""
    done = subprocess.run(train_command(settings, folder, ranks), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def history(settings: Path, folder: str) -> list[dict[str, Any]]:
    """metrics.jsonl of a training, without wall-clock fields."""
    lines = (folder_of(settings, folder) / "work/metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in WALL_CLOCK} for line in lines]


def final_tensors(settings: Path, folder: str) -> dict[str, Tensor]:
    """All tensors of the last checkpoint and of the published models."""
    base = folder_of(settings, folder)
    steps = sorted((base / "work/checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    files = [*steps[-1].glob("*.safetensors"), *(base / "out/model").rglob("*.safetensors")]
    return {f"{path.relative_to(base)}/{name}": t for path in files for name, t in load_file(path).items()}


def different_tensors(settings: Path, one: str, other: str) -> list[str]:
    """Names of the final tensors that two trainings do not have alike, to the bit."""
    a, b = (final_tensors(settings, folder) for folder in (one, other))
    return [name for name in a.keys() | b.keys() if name not in a or name not in b or not equal(a[name], b[name])]


def assert_equal_to_whole(settings: Path, folder: str) -> None:
    """What a training has left is what the uninterrupted one, `whole`, has: to the bit, and line by line."""
    assert different_tensors(settings, "whole", folder) == []
    assert history(settings, folder) == history(settings, "whole")


def altered(file: Path, how: str) -> Path:
    """A script that runs the stage's script, its first argument, with something of the package altered."""
    run = "import runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    file.write_text(f"{how}\n{run}\n")
    return file


def wait_for(file: Path, text: str, process: subprocess.Popen[str]) -> None:
    """Wait until a file of a process has a text in it."""
    deadline = time.monotonic() + 60
    while not file.exists() or text not in file.read_text():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, f"{text} never came"
        time.sleep(0.02)
