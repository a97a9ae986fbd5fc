"""Shards on a node's own disk: copied there once by the first process that comes, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from lucavirus.errors import UserError
from lucavirus.files import flush, replace_json

_NOT_COPIED = ("datasets", "vocabularies")
_SIZES, _UNFINISHED = "sizes.json", ".unfinished-"


def staged(data: Path, target: str | None) -> Path:
    """A folder to read a project's data from: `data` itself, or one below `target` whose shards are copies.

    `target` may hold variables of the node, such as $TMPDIR. A copy is named by the shards' contents: other trainings
    of this user and later ones take it as it is, while it is whole. Data sets and vocabularies stay the project's own.
    Raises UserError where a variable is not set, the disk is too small, or others may write there what we read.
    """
    if target is None:
        return data
    own = _own_folder(Path(_expanded(target)))
    copy = own / f"shards-{_identity(data / 'shards')}"
    with open(own / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one copies, the others of this node wait
        if not _is_whole(copy):
            _copy(data / "shards", copy)
        return _view(data.resolve(), copy)


def _own_folder(base: Path) -> Path:
    """This user's folder below one that others may use too, such as /tmp."""
    own = base / f"lucavirus-{os.getuid()}"
    try:
        base.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            own.mkdir(mode=0o700)
        found = own.lstat()
    except OSError as error:
        what, hint = f"{error.filename} cannot be made ({error.strerror})", "name a folder that you can write to"
        raise UserError(what, where="stage_shards_to", hint=hint) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"{own} is not a folder that only you can write to",
            where="stage_shards_to",
            hint="somebody else made it or changed it: have it removed, or name another folder",
        )
    return own


def _view(data: Path, copy: Path) -> Path:
    """A folder with links to the copied shards and to what else is read of this project's data.

    It stands beside the copy, so that a copy may be made anew under trainings that read it.
    """
    view = copy.with_name(f"{copy.name}-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}")
    view.mkdir(exist_ok=True)
    shards = Path("..", copy.name, "shards")
    for name, target in (("shards", shards), *((name, data / name) for name in _NOT_COPIED)):
        if not (view / name).is_symlink():
            (view / name).symlink_to(target)
    return view


def _expanded(target: str) -> str:
    # One that is set to nothing would make $TMPDIR the folder that the command was typed in.
    for name in re.findall(r"\$\{?(\w+)", target):
        if not os.environ.get(name):
            hint = "name a folder of the node"
            raise UserError(f"{name} is not set on {os.uname().nodename}", where="stage_shards_to", hint=hint)
    return os.path.expanduser(os.path.expandvars(target))


def _identity(shards: Path) -> str:
    """The indexes hold every shard's checksum."""
    digest = hashlib.sha256()
    for index in sorted(shards.glob("*/index.json")):
        digest.update(index.parent.name.encode() + b"\0" + index.read_bytes())
    return digest.hexdigest()[:16]


def _is_whole(copy: Path) -> bool:
    """True where every file of a copy is there; cleaners of temporary folders remove single ones."""
    try:
        sizes: dict[str, int] = json.loads((copy / _SIZES).read_text())
        return all((copy / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _copy(shards: Path, copy: Path) -> None:
    for leftover in copy.parent.glob(f"{_UNFINISHED}*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(leftover)
    size = sum(file.stat().st_size for file in shards.rglob("*") if file.is_file())
    free = shutil.disk_usage(copy.parent).free
    if size > free:
        raise UserError(
            f"the shards have {size / 2**30:.1f} GiB; {os.uname().nodename} has {free / 2**30:.1f} GiB free in "
            f"{copy.parent}",
            where="stage_shards_to",
            hint="make room there, name another folder, or leave the setting out: shards are then read where they are",
        )
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=copy.parent))
    try:
        shutil.copytree(shards, unfinished / "shards")
        files = [path for path in unfinished.rglob("*") if path.is_file()]
        for path in files:
            flush(path)
        sizes = {str(path.relative_to(unfinished)): path.stat().st_size for path in files}
        replace_json(unfinished / _SIZES, sizes)
        if copy.exists():  # no longer whole; who reads it keeps what is open
            copy.rename(unfinished / "damaged")
        unfinished.rename(copy)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(copy / "damaged", ignore_errors=True)
