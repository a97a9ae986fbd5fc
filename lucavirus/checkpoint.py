"""Checkpoints: directories that appear whole, prove it by checksums, and are found again, the newest first."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lucavirus.files import flush

_MARKER = "complete.json"
_PREFIX = "step-"


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Any) -> Path:
    """Write `folder/step-{step}`: one safetensors file a group of tensors, `state.json`, and last the marker.

    Written beside and renamed, files and directories flushed: after a fault it is there whole or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{_PREFIX}{step}"
    temporary = folder / f"tmp-{_PREFIX}{step}"
    for stale in folder.glob("tmp-*"):
        shutil.rmtree(stale)
    temporary.mkdir()
    for name, group in tensors.items():
        save_file({key: value.detach().cpu().contiguous() for key, value in group.items()},
                  temporary / f"{name}.safetensors")  # fmt: skip
    (temporary / "state.json").write_text(json.dumps(state, indent=1))
    sums = {path.name: _checksum(path) for path in sorted(temporary.iterdir())}
    (temporary / _MARKER).write_text(json.dumps({"sha256": sums}, indent=1))
    for path in (*temporary.iterdir(), temporary):
        flush(path)
    if final.exists():  # an earlier start saved the same step; its bytes may have been damaged since
        shutil.rmtree(final)
    os.replace(temporary, final)
    flush(folder)
    return final


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix(_PREFIX))


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints by name, newest first, whole or not."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def newest_complete(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose checksums hold; damaged ones are named through `warn` and passed over."""
    for path in checkpoints(folder):
        problem = damage(path)
        if problem is None:
            return path
        warn(f"checkpoint {path} is damaged ({problem}); trying the one before it")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is whole."""
    try:
        sums = json.loads((path / _MARKER).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"no readable {_MARKER}"
    for name, wanted in sums.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _checksum(path / name) != wanted:
            return f"{name} does not match its checksum"
    return None


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """One group of tensors of a checkpoint."""
    return load_file(path / f"{name}.safetensors")


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state


def prune(folder: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints."""
    for path in checkpoints(folder)[keep_last:]:
        shutil.rmtree(path)


def keep_only(folder: Path, steps: set[int]) -> None:
    """Remove all checkpoints but those of `steps`."""
    for path in checkpoints(folder):
        if step_of(path) not in steps:
            shutil.rmtree(path)
