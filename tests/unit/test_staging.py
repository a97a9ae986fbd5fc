"""Shards copied to a node's own disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from lucavirus.errors import UserError
from lucavirus.staging import staged

OWN = f"lucavirus-{os.getuid()}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "shared/results"
    (folder / "shards/g").mkdir(parents=True)
    (folder / "shards/g/index.json").write_text("{1}")
    (folder / "shards/g/part.h5").write_text("tokens")
    (folder / "datasets").mkdir()
    (folder / "datasets/train.h5").write_text("rows")
    return folder


def test_without_the_setting_data_are_read_where_they_are(data: Path) -> None:
    assert staged(data, None) is data


def test_shards_are_copied_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    local = staged(data, "$NODE_DISK/x")
    assert local.parent == tmp_path / f"node/x/{OWN}"
    (data / "shards/g/part.h5").unlink()  # read from the copy
    assert (local / "shards/g/part.h5").read_text() == "tokens"
    assert (local / "datasets/train.h5").read_text() == "rows"
    assert staged(data, "${NODE_DISK}/x") == local
    (data / "shards/g/index.json").write_text("{2}")  # other shards are another copy
    assert staged(data, "$NODE_DISK/x") != local


def test_a_copy_that_fails_leaves_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("lucavirus.staging.shutil.copytree", fail)
    with pytest.raises(OSError, match="disk full"):
        staged(data, str(tmp_path / "node"))
    assert [path.name for path in (tmp_path / "node" / OWN).iterdir()] == [".lock"]


def test_a_variable_that_is_not_set_and_a_disk_too_small(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setenv("EMPTY", "")
    for name in ("NOT_SET", "EMPTY"):
        with pytest.raises(UserError, match=f"{name} is not set on"):
            staged(data, f"${name}/x")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 3))
    with pytest.raises(UserError, match="GiB"):
        staged(data, str(tmp_path / "node"))


def test_a_folder_that_cannot_be_made_is_told(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in ("file", "file/below"):
        with pytest.raises(UserError, match=f"^stage_shards_to: {tmp_path}/file.* cannot be made"):
            staged(data, str(tmp_path / target))


def test_projects_share_shards_and_nothing_else(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other/results"
    shutil.copytree(data, other)
    (other / "datasets/train.h5").write_text("rows of another split")
    mine, theirs = (staged(folder, str(tmp_path / "node")) for folder in (data, other))
    assert (mine / "datasets/train.h5").read_text() == "rows"
    assert (theirs / "datasets/train.h5").read_text() == "rows of another split"
    assert (mine / "shards").resolve() == (theirs / "shards").resolve()
    (other / "datasets/train.h5").write_text("rows of a third")
    assert (staged(other, str(tmp_path / "node")) / "datasets/train.h5").read_text() == "rows of a third"


@pytest.mark.parametrize("trap", ["a link to another folder", "written by all", "written by a group", "a file"])
def test_nothing_is_read_or_written_where_others_can_write(data: Path, tmp_path: Path, trap: str) -> None:
    node, other = tmp_path / "node", tmp_path / "other"
    node.mkdir()
    other.mkdir(mode=0o700)
    if trap == "a link to another folder":
        (node / OWN).symlink_to(other)
    elif trap.startswith("written"):
        (node / OWN).mkdir()
        (node / OWN).chmod(0o702 if trap == "written by all" else 0o720)
    else:
        (node / OWN).touch()
    with pytest.raises(UserError, match=f"{OWN} is not a folder that only you can write to"):
        staged(data, str(node))
    assert not list(other.iterdir())


def test_a_copy_is_for_its_owner_alone(data: Path, tmp_path: Path) -> None:
    staged(data, str(tmp_path / "node"))
    assert (tmp_path / "node" / OWN).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("harm", ["gone", "short", "leftover"])
def test_what_a_cleaner_or_a_killed_process_left_is_copied_again(data: Path, tmp_path: Path, harm: str) -> None:
    node = tmp_path / "node"
    if harm == "leftover":
        (node / OWN).mkdir(parents=True, mode=0o700)
        (node / OWN / ".unfinished-abc/shards").mkdir(parents=True)
    else:
        part = staged(data, str(node)) / "shards/g/part.h5"
        part.unlink() if harm == "gone" else part.write_text("tok")
    local = staged(data, str(node))
    assert (local / "shards/g/part.h5").read_text() == "tokens"
    copy = (local / "shards").resolve().parent
    assert sorted(path.name for path in (node / OWN).iterdir()) == [".lock", copy.name, local.name]
    assert not (copy / "damaged").exists()


def test_the_folder_may_be_named_from_where_the_command_is_typed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local = staged(data, "node")
    assert not local.is_absolute() and (local / "shards/g/part.h5").read_text() == "tokens"


def test_the_shards_of_each_source_and_its_name_tell_copies_apart(data: Path, tmp_path: Path) -> None:
    (data / "shards/a").mkdir()
    found = list[Path]()

    def copy() -> None:
        found.append((staged(data, str(tmp_path / "node")) / "shards").resolve())

    for source in ("a", "g"):
        for text in ("{1}", "{2}"):
            (data / f"shards/{source}/index.json").write_text(text)
            copy()
    (data / "shards/g").rename(data / "shards/h")
    copy()
    assert len(set(found)) == 4 and found[1] == found[2]  # a: 1, 2; g: 1, 2; h instead of g


def test_data_may_be_named_from_where_the_command_is_typed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "vocabularies").mkdir()
    (data / "vocabularies/a").write_text("A")
    other = tmp_path / "other/results"
    (tmp_path / "other").mkdir()
    import shutil

    shutil.copytree(data, other)
    (other / "datasets/train.h5").write_text("rows of another split")
    found = []
    for folder in (data, other):  # two workflows, the same words
        monkeypatch.chdir(folder.parent)
        found.append((staged(Path("results"), str(tmp_path / "node")) / "datasets/train.h5").read_text())
    assert found == ["rows", "rows of another split"]
    assert (staged(Path("results"), str(tmp_path / "node")) / "vocabularies/a").read_text() == "A"


def test_the_others_of_a_node_wait_for_the_one_that_copies(data: Path, tmp_path: Path) -> None:
    local, found = staged(data, str(tmp_path / "node")), list[Path]()
    other = threading.Thread(target=lambda: found.append(staged(data, str(tmp_path / "node"))))
    with open(local.parent / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        other.start()
        other.join(0.3)
        assert other.is_alive() and not found
    other.join(10)
    assert found == [local]
