"""How many pages large blocks of memory take, and how much code for products is kept."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lucavirus import loader, memory
from lucavirus.launch import TUNING
from tests import tiny

_BLOCKS, _PAGES = 50, 768  # of 3 MiB each
_SCRIPT = f"""
import resource, sys
import numpy as np
from lucavirus import memory
memory.prepare_for_model(int(sys.argv[1]))
np.ones(3 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({_BLOCKS}):
    np.ones(3 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")


def _faults(parameters: int, **variables: str) -> int:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    # numpy asks for huge pages, where there are: one of them would stand for 512.
    env |= {"PYTHONPATH": str(tiny.ROOT), "NUMPY_MADVISE_HUGEPAGE": "0"} | variables
    command = [sys.executable, "-c", _SCRIPT, str(parameters)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_blocks_are_kept_for_small_models_and_given_back_for_large_ones() -> None:
    assert _faults(123_000) < _PAGES
    assert _faults(53_000_000) > 0.9 * _BLOCKS * _PAGES


def test_variables_of_the_user_go_first() -> None:
    assert _faults(123_000, MALLOC_MMAP_THRESHOLD_="1000000") > 0.9 * _BLOCKS * _PAGES


def test_tokenizing_splitting_and_loading_keep_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[int, int]] = []
    monkeypatch.setattr(memory, "_set", asked.append)
    tiny.make_project(tmp_path)  # two sources, one split
    with monkeypatch.context() as signals:
        signals.setattr("signal.signal", lambda *arguments: None)
        loader._begin(0)
    kept = {memory._MMAP_THRESHOLD: 32 * 2**20, memory._TRIM_THRESHOLD: 256 * 2**20}
    assert asked == [kept] * 4


_PRODUCTS = """
import re
from pathlib import Path
import torch
torch.set_num_threads(1)
weight = torch.ones(256, 256)
def product(rows):
    torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 256), weight, None, "none", [], "")
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = product(2000)
for rows in range(1000, 1200):
    after = product(rows)
print(after - before)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")  # type: ignore[no-untyped-call]
def test_code_for_products_of_many_shapes_is_not_kept() -> None:
    def grown(variables: dict[str, str]) -> int:
        env = {name: value for name, value in os.environ.items() if name not in TUNING} | variables
        done = subprocess.run([sys.executable, "-c", _PRODUCTS], env=env, check=True, capture_output=True, text=True)
        return int(done.stdout)

    assert grown(TUNING) < 0.5 * grown({})
