"""Files appear whole or not at all, with the same bytes everywhere."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lucavirus.files import replace_json, replacing
from lucavirus.shards import write_arrays


@pytest.mark.parametrize(
    "write",
    [
        lambda path: replace_json(path, {"a": 1}),
        lambda path: write_arrays(path, {"a": [np.arange(9, dtype=np.uint8)] * 2, "b": np.arange(3)}, {"c": 1}),
    ],
)
def test_a_file_gets_its_name_when_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    path, flushed = tmp_path / "file", list[tuple[int, bytes]]()
    path.write_text("old")

    def flush(descriptor: int) -> None:
        assert path.read_text() == "old"
        flushed.append((os.fstat(descriptor).st_ino, os.pread(descriptor, 10**6, 0)))

    monkeypatch.setattr(os, "fsync", flush)
    write(path)
    assert flushed == [(path.stat().st_ino, path.read_bytes())]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("named", "number"), [(True, errno.EACCES), (False, errno.ENOSPC)])
def test_what_could_not_be_written_is_named_and_leaves_nothing(tmp_path: Path, named: bool, number: int) -> None:
    path = tmp_path / "file"
    with pytest.raises(OSError) as caught, replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number), *([str(temporary)] if named else []))
    assert (caught.value.filename, caught.value.errno) == (str(path), number)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="^in its own words$"), replacing(path):
        raise OSError("in its own words")


def test_text_is_utf_8_whatever_the_locale(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "made/for/it/a.txt"
    program = "import sys, pathlib; from lucavirus.files import replace_text"
    program += "; replace_text(pathlib.Path(sys.argv[1]), '\\u2013\\n')"
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", program, str(path)], env=os.environ | locale, check=True)
    assert path.read_bytes() == b"\xe2\x80\x93\n"
