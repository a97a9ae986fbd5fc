"""What a model computes at once: sequences in one row, and for each task the positions that have a label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """One sequence as the model reads it: body tokens uint8 (already cut to the run's length) and its labels."""

    index: int
    molecule: int
    tokens: NDArray[np.uint8]
    labels: dict[str, NDArray[np.int32]]


@dataclass(frozen=True)
class TaskLabels:
    """Labels of one task in a pack.

    `positions` int64 (M,) in the row of tokens; `targets` int64 (M,) classes, or int8 (M, K) of 0, 1, -100 for
    multi-label tasks; `rows` int64 (M,) the labelled sequence (0..n-1) of each; `counts` float32 (n,) labels of each
    labelled sequence; `sequences` int64 (n,) which sequences of the pack they are. Rows whose targets are all -100
    are filling (see packing.Fill).
    """

    positions: Tensor
    targets: Tensor
    rows: Tensor
    counts: Tensor
    sequences: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Change every tensor."""
        return type(self)(*(change(getattr(self, f.name)) for f in fields(self)))

    def parts(self, places: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """`places` (M,), targets and weights (1 / labels of the sequence, float32) in equal parts, at most `size`."""
        weights = self.counts.reciprocal()[self.rows]
        number = -(-len(places) // size)
        return zip(*(torch.tensor_split(rows, number) for rows in (places, self.targets, weights)), strict=True)


@dataclass(frozen=True)
class Pack:
    """One packed batch of N sequences and T tokens, [CLS] and [SEP] of each included.

    `tokens`, `types`, `positions` int64 (T,); `offsets` the N+1 boundaries, and one more where the pack is filled;
    `cu_seqlens` the same as int32, its last value repeated; `wanted` int64 (R,), ascending, the tokens of which any
    head reads the hidden state, and the first one; `samples` the N sample numbers.
    """

    tokens: Tensor
    types: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    wanted: Tensor
    offsets: list[int]
    samples: list[int]
    labels: dict[str, TaskLabels]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, without what fills the pack."""
        return np.diff(self.offsets[: len(self.samples) + 1])

    def sizes(self) -> dict[str, float]:
        """What a pack adds to the counts of an update: sequences, tokens, squared lengths, computed positions."""
        lengths = self.lengths
        return {
            "sequences": len(lengths), "tokens": int(lengths.sum()), "squares": float((lengths**2).sum()),
            "positions": self.offsets[-1],
        }  # fmt: skip

    def places(self, labels: TaskLabels) -> Tensor:
        """Where the positions of labels stand among the wanted tokens, int64 (M,)."""
        return torch.searchsorted(self.wanted, labels.positions)

    def to(self, device: torch.device) -> Self:
        """Copy to a device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Change every tensor, in a fixed order."""
        labels = {task: labels.map(change) for task, labels in self.labels.items()}
        return type(self)(
            change(self.tokens), change(self.types), change(self.positions), change(self.cu_seqlens),
            change(self.wanted), self.offsets, self.samples, labels,
        )  # fmt: skip
