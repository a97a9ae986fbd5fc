"""A tiny project whose run was trained once, uninterrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny.make_project(tmp_path_factory.mktemp("resume"))
    tiny.train(path, "whole")
    return path
