"""The FLOPs that the logs are based on equal those that torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lucavirus import linear
from lucavirus.attention import make_layout
from lucavirus.flops import encoder_flops, peak_flops
from lucavirus.model import Architecture, LucaVirus


@pytest.mark.parametrize("lengths", [[300], [700, 300, 400]])
def test_encoder_flops_are_those_that_torch_counts(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = Architecture(64, 3, 4, 1024, {})
    model = LucaVirus(architecture)
    tokens = sum(lengths)
    offsets = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    # The counter knows neither oneDNN's product nor the CPU's flash kernel, and counts what our layers make anew; of a
    # GPU's flash kernel it counts 2.5 forward passes for the backward pass, which computes the scores again: no work of
    # the model's, not in the formula.
    monkeypatch.setattr(linear, "is_ours", lambda x: False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        row = torch.zeros(tokens, dtype=torch.int64)
        model(row, row, row, make_layout(offsets, torch.device("cpu"))).sum().backward()
    formula = encoder_flops(architecture, tokens, sum(length**2 for length in lengths))
    assert counter.get_total_flops() == pytest.approx(formula, rel=0.01)
    assert formula == 72 * 3 * 64**2 * tokens + 12 * 3 * 64 * sum(length**2 for length in lengths)


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A10G", 70), ("cpu", None),
        ("Tesla V100-SXM2-32GB", None), ("NVIDIA H200", 989), ("NVIDIA B200", 2250), ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA RTX A1000", None), ("NVIDIA RTX A4000", None), ("NVIDIA A10", 125), ("NVIDIA H200 NVL", 835),
        ("NVIDIA GB200", 2500), ("NVIDIA GH200 480GB", 989), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 3090 Ti", None),
    ],
)  # fmt: skip
def test_peaks_are_those_of_the_device_and_of_none_whose_name_is_like_it(device: str, teraflops: int | None) -> None:
    assert peak_flops(device) == (teraflops and teraflops * 1e12)
