"""Fixtures of several unit tests."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.annotated import Case, annotated
from tests.launching import LAUNCHER, Start


@pytest.fixture
def shipped(root: Path) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load((root / "config/config.yaml").read_text())
    return raw


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    """Write a text to a file of a name in tmp_path; returns its path."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Make settings over small annotated files in tmp_path, which may be replaced."""
    return partial(annotated, tmp_path)


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """A closed terminal's signal as it is by itself: the tests may run under nohup, which their programs would heed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the launcher on a program given as text; its log is tmp_path/log."""
    started = []

    def run(text: str, *before: str) -> subprocess.Popen[bytes]:
        script = tmp_path / "child.py"
        script.write_text(text)
        words = [sys.executable, str(LAUNCHER), "--log", str(tmp_path / "log"), *(before or ("python",)), str(script)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
