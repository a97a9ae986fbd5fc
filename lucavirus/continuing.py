"""How a start relates to what is in a run's work folder: go on, be refused, begin anew, or go back.

Imports no torch: Snakemake asks these questions before any job starts.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lucavirus.checkpoint import checkpoints, damage, read_state, step_of
from lucavirus.errors import UserError
from lucavirus.files import replace_json

# What a training writes below its work folder; the lock stays where it is.
_HISTORY = ("metrics.jsonl", "non_finite.jsonl", "train.log", "tensorboard")
_REWOUND = "rewound.json"
# How keys of a fingerprint begin whose values are hashes: that these differ is all that they tell a person.
_DATA = ("sequences and labels", "vocabulary of ")


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines `setting: old -> new` of what differs between a checkpoint's fingerprint and that of now."""
    return [
        f"{key}: changed" if key.startswith(_DATA) else f"{key}: {saved.get(key)!r} -> {now.get(key)!r}"
        for key in {**saved, **now}
        if saved.get(key) != now.get(key) and not _same_folder(key, saved.get(key), now.get(key))
    ]


def _same_folder(key: str, one: Any, other: Any) -> bool:
    """True for two ways to write the folder of the weights that a run begins with."""
    return key == "model_dirpath" and bool(one and other) and os.path.realpath(one) == os.path.realpath(other)


def changed_settings(work: Path, meaning: Mapping[str, Any]) -> list[str]:
    """Differences between a run's settings and those its newest checkpoint was made with; none without checkpoint."""
    for path in checkpoints(work / "checkpoints"):
        try:
            saved = read_state(path)["fingerprint"]
        except (OSError, ValueError, KeyError):
            continue  # damaged: the training names it and takes the one before
        return differences({key: saved[key] for key in saved if key in meaning}, meaning)
    return []


def refusal(run: str, work: Path, changed: list[str]) -> UserError:
    """The error for a run whose meaning has changed since its newest checkpoint."""
    back = "set them back"
    if any(line.startswith(_DATA) for line in changed):
        back += " (`touch` a file that is put back with its old time: Snakemake goes by that)"
    return UserError(
        "the run was trained so far with other settings or data:\n" + "\n".join(f"    {line}" for line in changed),
        where=str(work),
        hint=f"{back}; or give the changed run a new name under `runs`; or begin it anew (the old work is set "
        f"aside): the same command with `--config restart={run}`",
    )


def set_aside(work: Path, reason: str) -> Path:
    """Move all work of a run into a folder of its own below `set-aside`, with the reason; returns the folder."""
    aside = _new_folder(work, reason)
    # Checkpoints last: while they are there, a start that was killed amid this comes here again.
    for name in ("best", *_HISTORY, "checkpoints"):
        if (work / name).exists():
            os.replace(work / name, aside / name)
    return aside


def rewind(work: Path, step: int) -> str:
    """Make the checkpoint of `step` the newest: later ones are set aside, with a copy of the history.

    Returns what to say. Applied once: after a fault the same command goes on from the newest checkpoint. Raises
    UserError where there is no whole checkpoint of that step.
    """
    if _rewound_to(work) == step:
        return f"went back to step {step} at an earlier start; going on"
    require_step(work, step)
    if problem := damage(work / f"checkpoints/step-{step}"):
        raise _no_way_back(work, step, problem)
    aside = _new_folder(work, f"went back to step {step}")
    for name in ("metrics.jsonl", "train.log"):
        if (work / name).exists():
            shutil.copyfile(work / name, aside / name)
    for folder in ("best", "checkpoints"):
        (aside / folder).mkdir()
        for path in checkpoints(work / folder):
            if step_of(path) > step:
                os.replace(path, aside / folder / path.name)
    replace_json(work / _REWOUND, {"to": step, "at": time.strftime("%F %T"), "set_aside": str(aside)})
    return f"back at step {step}; later checkpoints are in {aside}"


def require_step(work: Path, step: int) -> None:
    """Raise UserError where there is no checkpoint of a step to go back to, and no start has gone back to it."""
    if _rewound_to(work) != step and step not in _steps(work):
        raise _no_way_back(work, step, "there is none of that step")


def require_begun_with(work: Path, folder: str, step: int) -> None:
    """Raise UserError where a run has a checkpoint, but did not begin with these weights of the original's."""
    wanted = {"folder": os.path.realpath(folder), "step": step}
    for path in checkpoints(work / "checkpoints"):
        try:
            began = read_state(path)["run"]["original"]
        except (OSError, ValueError, KeyError):
            continue  # damaged, or of before this was written down
        if began != wanted:
            raise UserError(
                "the run has checkpoints, and did not begin with these weights", where=str(work),
                hint="leave model_dirpath and trained_checkpoint out, and it goes on from the newest; or have a run of "
                "another name begin with them",
            )  # fmt: skip
        return


def _no_way_back(work: Path, step: int, problem: str) -> UserError:
    steps = ", ".join(str(other) for other in sorted(_steps(work)) if other != step) or "none"
    return UserError(f"cannot go back to step {step}: {problem}", where=str(work / "checkpoints"),
                     hint=f"trained_checkpoint must be one of the steps that are there: {steps}")  # fmt: skip


def _steps(work: Path) -> list[int]:
    return [step_of(path) for path in checkpoints(work / "checkpoints")]


def _rewound_to(work: Path) -> int | None:
    path = work / _REWOUND
    return int(json.loads(path.read_text())["to"]) if path.exists() else None


def forget_rewind(work: Path) -> None:
    """A start that asks for no older checkpoint goes on; the next one that does goes back again."""
    (work / _REWOUND).unlink(missing_ok=True)


def _new_folder(work: Path, reason: str) -> Path:
    names = [path.name for path in (work / "set-aside").glob("*")]
    number = 1 + max((int(name) for name in names if name.isdecimal()), default=0)
    folder = work / "set-aside" / f"{number:03d}"
    folder.mkdir(parents=True)
    (folder / "reason.txt").write_text(f"{time.strftime('%F %T')} {reason}\n")
    return folder
