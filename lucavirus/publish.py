"""Results of a training, put in place last: everything here can be made again from the checkpoints in seconds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from lucavirus.files import flush, replace_text
from lucavirus.model import Architecture

_WEIGHTS = "model.safetensors"


def model_files(architecture: Architecture, vocabularies: Path) -> dict[str, str]:
    """What weights need beside them to be a model that can be used, by name: config.json and labels/{task}.txt."""
    labels = {f"labels/{task}.txt": (vocabularies / f"{task}.txt").read_text("utf-8") for task in architecture.heads}
    return {"config.json": json.dumps(architecture.to_json(), indent=1) + "\n", **labels}


def publish_model(best: Path, last: Path, beside: Mapping[str, str], out: Path) -> None:
    """Make `out/model`: the best weights with what stands `beside` them (model_files); the last ones in model/last.

    `best` and `last` are checkpoints. The folder appears whole, by rename; one that stood there is replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    fresh, old, final = out / ".model.tmp", out / ".model.old", out / "model"
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for folder, weights in ((fresh, best), (fresh / "last", last)):
        (folder / "labels").mkdir(parents=True)
        for name, text in beside.items():
            (folder / name).write_text(text, "utf-8")
        shutil.copyfile(weights / _WEIGHTS, folder / _WEIGHTS)
    for path in fresh.rglob("*"):
        flush(path)
    if final.exists():
        os.replace(final, old)
    os.replace(fresh, final)
    shutil.rmtree(old, ignore_errors=True)


def publish_history(work: Path, out: Path) -> None:
    """Copy metrics.jsonl and the TensorBoard events of a run from its work folder."""
    replace_text(out / "metrics.jsonl", (work / "metrics.jsonl").read_text("utf-8"))
    shutil.rmtree(out / "tensorboard", ignore_errors=True)  # of the run before a restart
    shutil.copytree(work / "tensorboard", out / "tensorboard")
