"""What packing wastes and how evenly ranks are loaded, for genes and proteins 2 to 1; needs no model.

Prints one JSON object: for each number of ranks, sequences a rank and update, and capacity, medians over --updates
updates of the share of computed positions that hold a real token, and of the work of the slowest rank over the mean
rank's; the number of distinct shapes of packs in all updates; and the same two medians of the named baseline:
sequences in their order, the same number to each rank, in micro-batches of 8 padded to their longest. `worst` has the
worst of all cases.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import mixed_lengths
from lucavirus.packing import Fill
from lucavirus.plan import pack, sequence_costs, share

RANKS = (1, 2, 8, 64)
SEQUENCES_PER_RANK = (8, 32)
CAPACITIES = (3074, 16384, 32768)
HIDDEN_SIZE, LONGEST_BODY = 2560, 3072
MICRO_BATCH = 8
_MADE_UP = 30_000


def filled_shape(tokens: int, sequences: int, capacity: int) -> tuple[int, int]:
    """Positions and entries of `cu_seqlens` of a filled pack."""
    fill = Fill(capacity, max(capacity, LONGEST_BODY + 2))
    filled = fill.tokens(tokens)
    return filled, fill.boundaries(sequences + 1 + (filled > tokens))


def measure_case(
    lengths: NDArray[np.int64], ranks: int, per_rank: int, capacity: int, updates: int, seed: int = 0
) -> dict[str, float]:
    """Pack `updates` updates drawn from `lengths` (tokens with specials) as the loader does."""
    random = np.random.default_rng(seed)
    drawn = [random.choice(lengths, ranks * per_rank) for _ in range(updates)]
    measured = [_measure_update(batch, ranks, capacity) for batch in drawn]
    shapes = {shape for packs, _ in measured for shape in packs}
    positions = [sum(size for size, _ in packs) for packs, _ in measured]
    return {
        "real_share": statistics.median(
            float(batch.sum()) / size for batch, size in zip(drawn, positions, strict=True)
        ),
        "slowest_to_mean": statistics.median(imbalance for _, imbalance in measured),
        "shapes": len(shapes), "packs_per_rank": statistics.median(len(packs) / ranks for packs, _ in measured),
        "padded_real_share": statistics.median(padded_share(batch) for batch in drawn),
        "unshared_slowest_to_mean": statistics.median(
            imbalance(np.split(sequence_costs(batch, HIDDEN_SIZE), ranks)) for batch in drawn
        ),
    }  # fmt: skip


def _measure_update(batch: NDArray[np.int64], ranks: int, capacity: int) -> tuple[list[tuple[int, int]], float]:
    costs = sequence_costs(batch, HIDDEN_SIZE)
    shares = share(costs, ranks)
    packs = [(batch[mine][members]) for mine in shares for members in pack(batch[mine], capacity)]
    shapes = [filled_shape(int(members.sum()), len(members), capacity) for members in packs]
    return shapes, imbalance([costs[mine] for mine in shares])


def imbalance(costs: Sequence[NDArray[np.float64]]) -> float:
    """Work of the slowest rank over the mean; `costs` are those of each rank's sequences."""
    work = [float(part.sum()) for part in costs]
    return max(work) / statistics.fmean(work)


def padded_share(batch: NDArray[np.int64]) -> float:
    """Share of real tokens where sequences are padded to the longest of their micro-batch."""
    groups = [batch[first : first + MICRO_BATCH] for first in range(0, len(batch), MICRO_BATCH)]
    return float(batch.sum()) / sum(int(group.max()) * len(group) for group in groups)


def read_lengths(folder: Path, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Tokens, with specials, of `count` sequences drawn 2 to 1 from `gene.fasta.gz` and `prot.fasta.gz`."""
    random, genes = np.random.default_rng(seed), 2 * count // 3
    drawn = []
    for kind, number in (("gene", genes), ("prot", count - genes)):
        with gzip.open(folder / f"{kind}.fasta.gz") as file:
            records = file.read().split(b">")[1:]
        bodies = [len(b"".join(record.split(b"\n")[1:])) for record in records]
        drawn.append(random.choice(np.minimum(bodies, LONGEST_BODY), number))
    return np.concatenate(drawn) + 2


def measure(source: Path | None, updates: int) -> dict[str, Any]:
    """All cases; returns what is printed."""
    lengths = read_lengths(source, _MADE_UP) if source else mixed_lengths(_MADE_UP)
    cases = {
        f"{ranks} ranks, {per_rank} sequences each, packs of {capacity}": measure_case(
            lengths, ranks, per_rank, capacity, updates
        )
        for ranks, per_rank, capacity in product(RANKS, SEQUENCES_PER_RANK, CAPACITIES)
    }
    worst = {
        "real_share": min(case["real_share"] for case in cases.values()),
        "slowest_to_mean": max(case["slowest_to_mean"] for case in cases.values()),
    }
    return {"mean_tokens": float(lengths.mean()), "updates": updates, "worst": worst, "cases": cases}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--fasta-folder", type=Path, help="folder with gene.fasta.gz and prot.fasta.gz; default: made up"
    )
    parser.add_argument("--updates", type=int, default=50)
    args = parser.parse_args()
    print(json.dumps(measure(args.fasta_folder, args.updates)))


if __name__ == "__main__":
    main()
