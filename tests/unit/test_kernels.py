"""Which kernel computes attention: torch's for variable lengths, FlashAttention 3 where it is installed, or neither."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lucavirus.attention import choose_kernel, has_varlen_kernel
from tests.tiny import ALONE

GPU = torch.device("cuda")
# A package that registers what torch asks of FlashAttention 3, and one that lacks the backward pass.
_WHOLE = """
from torch.library import Library
library = Library("flash_attn_3", "DEF")
library.define("fwd(Tensor q) -> Tensor")
library.define("bwd(Tensor q) -> Tensor")
"""
_FORWARD_ONLY = "\n".join(line for line in _WHOLE.splitlines() if "bwd" not in line)
# Prints what is chosen on GPUs of some capabilities, and whether torch now computes with version 3.
_CHOOSE = """
import torch
from lucavirus.attention import choose_kernel
from lucavirus.errors import run_stage
def main():
    for major, dtype, size in ((8, torch.bfloat16, 128), (10, torch.bfloat16, 128), (9, torch.float32, 128),
                               (9, torch.bfloat16, 20), (9, torch.bfloat16, 128), (9, torch.bfloat16, 64)):
        torch.cuda.get_device_capability = lambda _: (major, 0)
        print(choose_kernel(torch.device("cuda"), dtype, size), torch._C._get_fa3_sdp_enabled())
run_stage(main)
"""


@pytest.mark.parametrize(("capability", "sizes"), [((7, 0), []), ((8, 0), [24, 128, 256]), ((9, 0), [24, 128, 256])])
def test_where_the_kernel_for_variable_lengths_runs(
    capability: tuple[int, int], sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert [size for size in (20, 24, 128, 256, 264) if has_varlen_kernel(GPU, torch.bfloat16, size)] == sizes
    assert not has_varlen_kernel(GPU, torch.float32, 128) and not has_varlen_kernel(ALONE.device, torch.bfloat16, 128)


def test_a_hopper_without_flash_attention_3_uses_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("lucavirus.attention.find_spec", lambda _: None)
    assert choose_kernel(GPU, torch.bfloat16, 128) == "FlashAttention 2"


def _chosen_beside(package: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: kernels are registered for good."""
    (folder / "flash_attn_interface.py").write_text(package)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", _CHOOSE], env=environment, capture_output=True, text=True)


def test_flash_attention_3_is_used_on_a_hopper_where_it_is_installed(tmp_path: Path) -> None:
    done = _chosen_beside(_WHOLE, tmp_path)
    without = [*2 * ["FlashAttention 2 False"], *2 * ["scaled_dot_product_attention False"]]
    assert done.stdout.splitlines() == [*without, *2 * ["FlashAttention 3 True"]] and not done.stderr


def test_a_flash_attention_3_that_torch_cannot_use_is_named(tmp_path: Path) -> None:
    done = _chosen_beside(_FORWARD_ONLY, tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "flash_attn_interface: FlashAttention 3 is installed, but torch 2." in done.stderr
    assert "does not expose FA3 backward kernels" in done.stderr and "pip uninstall flash-attn-3" in done.stderr
