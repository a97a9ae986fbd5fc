"""Work of a training step in floating-point operations, and the share of the device's peak that it makes."""

from __future__ import annotations

import re

from lucavirus.model import Architecture

# Peaks of dense bf16 products, FLOP/s, from the vendors' data sheets; the first name that the device's has counts.
_BF16_PEAKS: dict[str, float] = {
    "GB200": 2500e12, "B200": 2250e12, "GH200": 989e12, "H200 NVL": 835e12, "H200": 989e12,
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "L40S": 362e12, "L40": 181e12, "A100": 312e12,
    "A40": 150e12, "A10G": 70e12, "A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "L4": 121e12,
}  # fmt: skip


def encoder_flops(architecture: Architecture, tokens: float, squares: float) -> float:
    """FLOPs of forward and backward pass of the encoder over real tokens, heads and filling left out.

    6 * 12 L h^2 a token for the products with weights, 12 L h a pair of tokens of the same sequence for attention;
    `squares` is the sum of the squared lengths. With S the token-weighted mean length this is
    tokens * (6 * 12 L h^2 + 12 L S h). The last layer is counted whole, though it is computed only for the tokens that
    a head reads (LucaVirus.forward): at 12 layers up to 4 % of the work with span labels, up to 7 % with masks alone.
    """
    layers, width = architecture.layers, architecture.hidden_size
    return 72.0 * layers * width**2 * tokens + 12.0 * layers * width * squares


def peak_flops(device_name: str) -> float | None:
    """Peak of a device in bf16, FLOP/s; None where it is not known."""
    for name, peak in _BF16_PEAKS.items():
        # Whole words: an RTX A1000 is no A100. What follows a name may make another card of it.
        if re.search(rf"\b{name}\b(?! (Ti|D|Laptop)\b)", device_name):
            return peak
    return None
