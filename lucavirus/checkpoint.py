"""Checkpoints: directories that appear whole, prove it by checksums, and are found again, the newest first."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lucavirus.errors import UserError
from lucavirus.files import flush

_MARKER = "complete.json"
_PREFIX = "step-"
_NUMBER = re.compile("0|[1-9][0-9]*")  # as we write it; step-0460 is somebody's copy
_REPLACED = "tmp-replaced-"
_DAMAGED = "damaged-"


def save_checkpoint(folder: Path, step: int, files: Mapping[str, Callable[[Path], object]], state: Any) -> Path:
    """Write `folder/step-{step}`: `files` (name -> what writes it), `state.json`, and last the marker.

    Written beside and renamed, files and directories flushed: after a fault it is there whole or not at all.
    Raises UserError when it cannot be written (disk full); what was there before stays.
    """
    final = folder / f"{_PREFIX}{step}"
    temporary, replaced = folder / f"tmp-{final.name}", folder / f"{_REPLACED}{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("tmp-*"):
            _remove(stale)
        _write(temporary, files, state)
        if final.exists():  # an earlier start saved the same step; its bytes may have been damaged since
            os.replace(final, replaced)
        os.replace(temporary, final)
        flush(folder)
    except (OSError, SafetensorError) as error:
        _remove(temporary)
        raise UserError(
            f"the checkpoint of step {step} could not be written: {error}",
            where=str(folder),
            hint="the checkpoints before it are whole; make room, then start the same command again",
        ) from error
    _remove(replaced)
    return final


def _write(temporary: Path, files: Mapping[str, Callable[[Path], object]], state: Any) -> None:
    temporary.mkdir()
    for name, write in files.items():
        (temporary / name).parent.mkdir(exist_ok=True)
        write(temporary / name)
    (temporary / "state.json").write_text(json.dumps(state, indent=1))
    written = sorted(path for path in temporary.rglob("*") if path.is_file())
    sums = {str(path.relative_to(temporary)): _checksum(path) for path in written}
    (temporary / _MARKER).write_text(json.dumps({"sha256": sums}, indent=1))
    for path in (*temporary.rglob("*"), temporary):
        flush(path)


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix(_PREFIX))


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints by name, newest first, whole or not."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if _NUMBER.fullmatch(path.name.removeprefix(_PREFIX))]
    return sorted(found, key=step_of, reverse=True)


def newest_complete(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose checksums hold; damaged ones are named through `warn` and put out of the way.

    Raises UserError for one that cannot be read.
    """
    for replaced in folder.glob(f"{_REPLACED}*"):
        final = folder / replaced.name.removeprefix(_REPLACED)
        if not final.exists():  # a fault came between the two renames of save_checkpoint
            os.replace(replaced, final)
    for path in checkpoints(folder):
        problem = damage(path)
        if problem is None:
            return path
        aside = path.with_name(f"{_DAMAGED}{path.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        os.replace(path, aside)
        warn(f"checkpoint {path} is damaged ({problem}) and now called {aside.name}")
    return None


def damaged(folder: Path) -> list[str]:
    """The names of the checkpoints that were put out of the way."""
    return sorted(path.name for path in folder.glob(f"{_DAMAGED}*"))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is whole.

    Raises UserError where it cannot be read: it may be whole, and the disk or its server at fault.
    """
    try:
        sums = json.loads((path / _MARKER).read_bytes())["sha256"].items()
        wrong = (name for name, wanted in sums if _checksum(path / name) != wanted)
        return next((f"{name} does not match its checksum" for name in wrong), None)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return f"{Path(error.filename).relative_to(path)} is missing"
    except OSError as error:
        hint = (
            "see that the disk can be read, then start the same command again; to do without this one, put `damaged-` "
            "before its name"
        )
        raise UserError(f"cannot be read ({error})", where=str(path), hint=hint) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MARKER} is not as it was written"


def _is_whole(path: Path) -> bool:
    """True for a checkpoint that can be read, and is whole."""
    try:
        return damage(path) is None
    except UserError:
        return False


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state


def prune(folder: Path, keep_last: int, keep_every: int | None = None) -> None:
    """Remove all but the newest `keep_last` checkpoints and the first one of each stretch of `keep_every` steps.

    Nothing is removed unless the newest one is whole.
    """
    newest_first = checkpoints(folder)
    if not newest_first or not _is_whole(newest_first[0]):
        return
    stretch = 0
    for path in reversed(newest_first[keep_last:]):
        if keep_every and step_of(path) // keep_every > stretch:
            stretch = step_of(path) // keep_every
        else:
            _remove(path)


def keep_only(folder: Path, steps: set[int]) -> None:
    """Remove all checkpoints but those of `steps`."""
    for path in checkpoints(folder):
        if step_of(path) not in steps:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder that nobody needs. What cannot be removed, because a file is open elsewhere on NFS, ends no
    training: the next save tries again.
    """
    shutil.rmtree(path, ignore_errors=True)
