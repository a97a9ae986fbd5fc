"""The cost model of docs/scale.md: what an update of the full-size model should take on 1 to 512 GPUs. Pure arithmetic.

Prints one JSON object: the model's size and FLOPs a token; and by GPUs and MFU the milliseconds of an update's parts,
the bytes a GPU sends, and days for 4 epochs. Every GPU has 32 sequences an update, or a share of 256 (--fixed-batch).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.corpus import CLASSES
from lucavirus.config import Run
from lucavirus.flops import encoder_flops, peak_flops
from lucavirus.model import Architecture, LucaVirus, count_parameters
from lucavirus.tasks import TASKS

# OpenVirus: sequences, tokens with specials, and the part of the tokens that are genes'.
SEQUENCES, TOKENS, GENE_TOKENS = 15_718_611, 25.4e9, 23.7 / 25.3
EVALUATED_SEQUENCES = 24_000
EPOCHS = 4
# From 3,000 sequences of OpenVirus: token-weighted mean length, and rows that each head computes, a token of its
# molecule.
MEAN_LENGTH = {"gene": 2831, "prot": 519}
HEAD_ROWS = {
    "gene_mask": 0.150, "gene_type": 0.403, "gene_taxonomy": 0.0004, "prot_mask": 0.148, "prot_homo": 0.304,
    "prot_site": 0.068, "prot_domain": 0.354, "prot_taxonomy": 0.003, "prot_keyword": 0.003,
}  # fmt: skip
SEQUENCES_PER_GPU, FIXED_BATCH = 32, 256
# On one H100 of 80 GB (docs/benchmarks.md): the largest pack, and the MFU of packs alone with FlashAttention 2 and 4.
PACK_TOKENS, MFUS = 52224, (0.47, 0.57)


@dataclass(frozen=True)
class Machine:
    """What is assumed of an H100 node; bytes and FLOPs a second. Measured: AdamW's bytes at 2.6e12."""

    peak: float = peak_flops("H100") or 0.0
    memory: float = 3.35e12
    node_gpus: int = 8
    node_bus: float = 370e9
    # 400 Gb/s for each pair of GPUs, four a node; 80 % of it reached.
    network_bus: float = 0.8 * 4 * 50e9
    copy: float = 6e9

    def bus(self, gpus: int) -> float:
        """Bus bandwidth of a collective, bytes/s: the narrowest place of its rings."""
        return self.node_bus if gpus <= self.node_gpus else self.network_bus


def architecture() -> Architecture:
    """The full-size model."""
    return Architecture.of(Run(), CLASSES)


def head_flops(task: str) -> float:
    """FLOPs of forward and backward pass of a head for one row."""
    width, (hidden, classes) = Run().model.hidden_size, architecture().heads.get(task, (Run().model.hidden_size, 39))
    return 6.0 * (width * hidden + hidden * classes)


def flops_per_token() -> dict[str, float]:
    """Training FLOPs a token, of the mean token of OpenVirus: products, attention, heads."""
    shares = {"gene": GENE_TOKENS, "prot": 1 - GENE_TOKENS}
    squares = sum(shares[molecule] * length for molecule, length in MEAN_LENGTH.items())
    return {
        "products": encoder_flops(architecture(), 1, 0), "attention": encoder_flops(architecture(), 0, squares),
        "heads": sum(shares[TASKS[task].molecule] * rows * head_flops(task) for task, rows in HEAD_ROWS.items()),
    }  # fmt: skip


def parameters() -> dict[str, int]:
    """Numbers that are trained, and those in the layers."""
    with torch.device("meta"):
        model = LucaVirus(architecture())
    return {"all": count_parameters(model), "layers": count_parameters(model.layers)}


def update_costs(gpus: int, sequences: float, mfu: float, machine: Machine) -> dict[str, float]:
    """Parts of an update with `sequences` a GPU: milliseconds, bytes, and days of all epochs."""
    size, flops = parameters(), sum(flops_per_token().values())
    tokens = sequences * TOKENS / SEQUENCES
    packs, last = -(-tokens // PACK_TOKENS), min(tokens, PACK_TOKENS)  # the fullest pack comes last
    compute = tokens * flops / (mfu * machine.peak)
    # Zeroing, norm, and AdamW, which reads and writes weight, gradient (clipped) and two moments: 4 + 4 + 32 bytes.
    optimizer = 40 * size["all"] / machine.memory
    ring = (gpus - 1) / gpus
    reduced = 2 * ring * 4 * size["all"]
    reduction = reduced / machine.bus(gpus)
    in_layers = size["layers"] / size["all"]
    # The layers are reduced behind the last pack's backward pass, but for the lowest one; the rest follows it.
    behind = 2 / 3 * compute * last / tokens * 11 / 12
    exposed = reduction * (1 - in_layers * 11 / 12) + max(0.0, reduction * in_layers * 11 / 12 - behind)
    sharded = ring * ((packs + 1) * 2 + 4) * size["all"]
    update = compute + optimizer + exposed
    evaluation = EVALUATED_SEQUENCES * TOKENS / SEQUENCES * flops / 3 / (mfu * machine.peak) / gpus
    updates = SEQUENCES / (gpus * sequences)
    save = 12 * size["all"] / machine.copy / 3600
    days = EPOCHS * (updates * update + evaluation) * (1 + save) / 86400
    return {
        "compute_ms": 1e3 * compute, "optimizer_ms": 1e3 * optimizer, "reduction_ms": 1e3 * reduction,
        "exposed_ms": 1e3 * exposed, "update_ms": 1e3 * update, "share_of_compute": compute / update,
        "reduced_gb": reduced / 1e9, "fsdp_gb": sharded / 1e9, "fsdp_ms": 1e3 * sharded / machine.bus(gpus),
        "tokens_per_s_and_gpu": tokens / update, "evaluation_s": evaluation, "updates": EPOCHS * updates, "days": days,
    }  # fmt: skip


def measure(fixed_batch: bool) -> dict[str, Any]:
    """The whole model; returns what is printed."""
    size, machine = parameters(), Machine()
    costs = {
        f"{gpus} GPUs, MFU {mfu:.0%}": update_costs(
            gpus, FIXED_BATCH / gpus if fixed_batch else SEQUENCES_PER_GPU, mfu, machine
        )
        for gpus in ((1, 8, 64) if fixed_batch else (1, 8, 64, 512))
        for mfu in MFUS
    }
    save = {"checkpoint_gb": 12 * size["all"] / 1e9, "copy_s": 12 * size["all"] / machine.copy}
    return {"parameters": size, "flops_per_token": flops_per_token(), **save, "costs": costs}


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fixed-batch", action="store_true", help="256 sequences an update, whatever the GPUs")
    print(json.dumps(measure(parser.parse_args().fixed_batch), indent=1))


if __name__ == "__main__":
    main()
