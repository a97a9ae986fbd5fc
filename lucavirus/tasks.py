"""The nine tasks as one table (SPEC section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Molecule = Literal["gene", "prot"]
Level = Literal["token", "span", "sequence"]

MOLECULES: tuple[Molecule, ...] = ("gene", "prot")


@dataclass(frozen=True)
class Task:
    """One training task: what it predicts, on which molecule, and how much it weighs.

    `head_size` is the width of the hidden layer of its head at full size; the masked-token tasks share the LM head.
    `multi_label` tasks predict any number of classes a sequence, all others exactly one class a position or sequence.
    """

    name: str
    molecule: Molecule
    level: Level
    head_size: int
    weight: float
    multi_label: bool = False

    @property
    def supervised(self) -> bool:
        """True for the seven tasks that learn from labels rather than from masked tokens."""
        return self.level != "token"


# The order is the one of the original: it numbers the heads in checkpoints.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("gene_mask", "gene", "token", 0, 1.0),
        Task("prot_mask", "prot", "token", 0, 1.0),
        Task("gene_type", "gene", "span", 128, 0.2),
        Task("prot_homo", "prot", "span", 4096, 0.2),
        Task("prot_site", "prot", "span", 1024, 0.2),
        Task("prot_domain", "prot", "span", 10240, 0.2),
        Task("gene_taxonomy", "gene", "sequence", 2048, 0.2),
        Task("prot_taxonomy", "prot", "sequence", 2048, 0.2),
        Task("prot_keyword", "prot", "sequence", 2048, 1.0, multi_label=True),
    )
}
SUPERVISED: tuple[str, ...] = tuple(task.name for task in TASKS.values() if task.supervised)
