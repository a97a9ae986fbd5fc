"""Samples and packs with labels of several tasks, and a small model for them: for tests of how updates are computed."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucavirus import alphabet
from lucavirus.config import Model, Run
from lucavirus.model import Architecture
from lucavirus.packing import Fill, make_pack
from lucavirus.packs import Pack, Sample

CLASSES = {"gene_type": 3, "prot_site": 4, "prot_taxonomy": 2, "prot_keyword": 6}
RUN = Run(
    tasks=("gene_mask", "prot_mask", *CLASSES), gpus=1, gradient_accumulation_steps=4, max_grad_norm=1e9, device="cpu",
    model=Model(hidden_size=32, num_attention_heads=4, max_length=400),
)  # fmt: skip
ARCHITECTURE = Architecture(32, 2, 4, 400, {task: (16, size) for task, size in CLASSES.items()})
FILL = Fill(4096, 4096)


def made_samples(count: int, longest: int = 398) -> list[Sample]:
    """Genes and proteins by turns, of random lengths, with all labels."""
    rng = np.random.default_rng(3)
    made = []
    for index in range(count):
        molecule = index % 2
        length = int(rng.integers(1, longest))
        span = np.array([[0, length // 2, index % 3]], np.int32)
        labels: dict[str, Any] = {"gene_type": span} if molecule == 0 else {"prot_site": span}
        if molecule:
            labels |= {"prot_keyword": np.array([[index % 6]], np.int32), "prot_taxonomy": np.array([[1]], np.int32)}
        letters = alphabet.letters(("gene", "prot")[molecule])
        made.append(Sample(index, molecule, rng.choice(letters, length).astype(np.uint8), labels))
    return made


def made_packs(fill: Fill | None = None) -> list[Pack]:
    """Three packs of four samples each."""
    made = made_samples(12)
    return [make_pack(made[n : n + 4], RUN, CLASSES, 0, fill) for n in (0, 4, 8)]
