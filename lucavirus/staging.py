"""Shards on a node's own disk: copied there once by the first process that comes, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from lucavirus.errors import UserError


def staged(data: Path, target: str | None) -> Path:
    """A folder to read a project's data from: `data` itself, or one below `target` whose shards are copies.

    `target` may hold variables of the node, such as $TMPDIR. A copy is named by the shards' contents: other trainings
    and later ones take it as it is. Raises UserError where a variable is not set, or the disk is too small.
    """
    if target is None:
        return data
    base = Path(_expanded(target))
    folder = base / f"lucavirus-{_identity(data / 'shards')}"
    base.mkdir(parents=True, exist_ok=True)
    with open(base / ".lucavirus.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one copies, the others of this node wait
        if not folder.exists():
            _copy(data, folder)
    return folder


def _expanded(target: str) -> str:
    path = os.path.expandvars(target)
    if unset := re.findall(r"\$\{?(\w+)", path):
        raise UserError(
            f"{unset[0]} is not set on {os.uname().nodename}", where="stage_shards_to", hint="name a folder of the node"
        )
    return path


def _identity(shards: Path) -> str:
    """The indexes hold every shard's checksum."""
    digest = hashlib.sha256()
    for index in sorted(shards.glob("*/index.json")):
        digest.update(index.parent.name.encode() + b"\0" + index.read_bytes())
    return digest.hexdigest()[:16]


def _copy(data: Path, folder: Path) -> None:
    size = sum(file.stat().st_size for file in (data / "shards").rglob("*") if file.is_file())
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise UserError(
            f"the shards have {size / 2**30:.1f} GiB; {os.uname().nodename} has {free / 2**30:.1f} GiB free in "
            f"{folder.parent}",
            where="stage_shards_to",
            hint="make room there, name another folder, or leave the setting out: shards are then read where they are",
        )
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        shutil.copytree(data / "shards", unfinished / "shards")
        for entry in data.iterdir():
            if entry.name != "shards":
                (unfinished / entry.name).symlink_to(entry.resolve())
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
