"""Deterministic train/dev/test assignment, by the hash of the whole sequence; and the stage that writes it down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lucavirus import memory
from lucavirus.config import Settings
from lucavirus.config_data import SPLITS, Split
from lucavirus.dataset import FORMAT, VERSION
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.files import replace_text
from lucavirus.shards import Shard, checksum, read_index, write_arrays
from lucavirus.tasks import MOLECULES


def assign(parents: NDArray[np.uint64], fixed: NDArray[np.int8], split: Split) -> NDArray[np.int8]:
    """The split (index into SPLITS) of each row of one molecule.

    `parents` uint64 (N,) are hashes of the whole sequences, so that equal sequences and the windows of one genome fall
    on one side; `fixed` int8 (N,) is the split that the row's source names, or -1 where the hash decides.
    Fractions divide the range of the hash; numbers take that many sequences, those with the lowest hashes.
    """
    assigned = fixed.copy()
    free = fixed < 0
    limits = split.dev, split.dev + split.test
    hashes = parents[free]
    if split.dev < 1 and split.test < 1:
        place = hashes * 2.0**-64
    else:
        place = np.unique(hashes, return_inverse=True)[1].astype(np.float64)
    assigned[free] = np.where(place < limits[0], 1, np.where(place < limits[1], 2, 0))
    return assigned


def drop_leaks(
    assigned: NDArray[np.int8], contents: NDArray[np.uint64], parents: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Rows of dev and test that are in train too: bool (N,), true where the row must go.

    Such a row's body equals one of train, or it is a window of a sequence of which train has another: sources may be
    cut in other ways, and one may name its split.
    """
    train = assigned == SPLITS.index("train")
    leaks: NDArray[np.bool_] = ~train & (np.isin(contents, contents[train]) | np.isin(parents, parents[train]))
    return leaks


def length_statistics(lengths: NDArray[np.integer]) -> dict[str, float]:
    """Minimum, median, mean and maximum length; zeros for an empty set."""
    if not len(lengths):
        return dict.fromkeys(("min_length", "median_length", "mean_length", "max_length"), 0)
    return {
        "min_length": int(lengths.min()),
        "median_length": float(np.median(lengths)),
        "mean_length": round(float(lengths.mean()), 1),
        "max_length": int(lengths.max()),
    }


def length_histogram(lengths: NDArray[np.integer], edges: Sequence[int]) -> list[dict[str, Any]]:
    """Sequences between neighbouring edges (from included, to excluded)."""
    counts, _ = np.histogram(lengths, bins=np.asarray(edges))
    return [
        {"from": low, "to": high, "sequences": int(count)}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


def make_datasets(settings: Settings, shards: Path, out: Path, ranks: Ranks) -> str:
    """Divide the rows of all sources' shards and write `out/{gene,prot}/{train,dev,test}.h5` and two tables.

    Ranks share the check of every shard's checksum; the first rank divides. Returns a summary for the log.
    """
    memory.keep_blocks()
    names = [
        (source, entry)
        for source in settings.sources
        for entry in read_index(shards / source.name)["shards"]
    ]  # fmt: skip
    paths = [f"{source.name}/{entry['name']}" for source, entry in names]
    for number in ranks.mine(len(paths)):
        Shard(shards / paths[number]).verify()
    ranks.barrier()
    if ranks.first:
        fixed = [SPLITS.index(source.split) if source.split != "auto" else -1 for source, _ in names]
        rows = _read_rows(shards, paths, fixed)
        tables = [_divide(molecule, rows, paths, settings.split, out) for molecule in MOLECULES]
        summary = pd.DataFrame([row for counts, _ in tables for row in counts])
        histogram = pd.DataFrame([row for _, lengths in tables for row in lengths])
        replace_text(out / "lengths.tsv", histogram.to_csv(sep="\t", index=False))
        replace_text(out / "summary.tsv", summary.to_csv(sep="\t", index=False))
        return "\n".join([summary.to_string(index=False), *_warnings(summary)])
    return ""


@dataclass(frozen=True)
class _Rows:
    """Columns over all rows of all shards, in order."""

    shard: NDArray[np.int32]
    row: NDArray[np.int64]
    length: NDArray[np.int32]
    molecule: NDArray[np.uint8]
    parent: NDArray[np.uint64]
    content: NDArray[np.uint64]
    whole: NDArray[np.uint64]
    fixed: NDArray[np.int8]


def _read_rows(shards: Path, paths: Sequence[str], fixed: Sequence[int]) -> _Rows:
    columns: list[tuple[NDArray[Any], ...]] = []
    vocabularies: dict[str, str] = {}
    for number, path in enumerate(paths):
        shard = Shard(shards / path)
        count = len(shard)
        vocabularies.setdefault(shard.attributes["labels"], path)
        if len(vocabularies) > 1:
            raise UserError(
                f"its class ids are of other label vocabularies than those of {next(iter(vocabularies.values()))}",
                where=str(shards / path), hint=f"remove {shards} and run the workflow again",
            )  # fmt: skip
        columns.append((
            np.full(count, number, np.int32), np.arange(count, dtype=np.int64),
            np.diff(shard.offsets).astype(np.int32), np.asarray(shard.molecule),
            np.asarray(shard.arrays["parent_hash"]), np.asarray(shard.arrays["content_hash"]),
            np.asarray(shard.arrays["row_hash"]),
            np.full(count, fixed[number], np.int8),
        ))  # fmt: skip
    return _Rows(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def _divide(
    molecule: str, rows: _Rows, paths: Sequence[str], split: Split, out: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    mine = np.flatnonzero(rows.molecule == MOLECULES.index(molecule))
    assigned = assign(rows.parent[mine], rows.fixed[mine], split)
    _require_train(molecule, assigned, rows.parent[mine][rows.fixed[mine] < 0], split)
    leaks = drop_leaks(assigned, rows.content[mine], rows.parent[mine])
    counts, lengths = [], []
    for number, name in enumerate(SPLITS):
        chosen = mine[(assigned == number) & ~leaks]
        arrays = {"shard": rows.shard[chosen], "row": rows.row[chosen], "length": rows.length[chosen]}
        path = out / molecule / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, arrays, {
            "format": FORMAT, "version": VERSION, "molecule": molecule, "split": name,
            "shards": json.dumps(list(paths)), "sequences": len(chosen), "tokens": int(arrays["length"].sum()),
            "fingerprint": checksum({"rows": rows.whole[chosen]}),
        })  # fmt: skip
        label = {"molecule": molecule, "split": name}
        dropped = int((leaks & (assigned == number)).sum())
        size = {
            "sequences": len(chosen), "whole_sequences": len(np.unique(rows.parent[chosen])),
            "tokens": int(arrays["length"].sum()), "dropped": dropped,
        }  # fmt: skip
        counts.append({**label, **size, **length_statistics(arrays["length"])})
        lengths += [{**label, **bin_} for bin_ in length_histogram(arrays["length"], _length_edges(rows.length))]
    return counts, lengths


def _require_train(molecule: str, assigned: NDArray[np.int8], free: NDArray[np.uint64], split: Split) -> None:
    """Refuse numbers of sequences for dev and test that are all there are; `free` are the hashes of those divided."""
    if len(free) and split.dev + split.test >= 1 and SPLITS.index("train") not in assigned:
        raise UserError(
            f"dev and test ask for {split.dev:g} + {split.test:g} sequences, and there are {len(np.unique(free)):,} of "
            f"{molecule}: none is left to train on",
            where="split", hint="lower split.dev and split.test, or give fractions, as 0.1",
        )  # fmt: skip


def _warnings(summary: pd.DataFrame) -> Iterator[str]:
    """A line for each split of a molecule that has nothing while another one has."""
    for molecule, rows in summary.groupby("molecule", sort=False):
        empty = rows["split"][rows["sequences"] == 0]
        if len(empty) < len(SPLITS):
            yield from (f"warning: there is no {molecule} in {split}" for split in empty)


def _length_edges(lengths: NDArray[np.integer], bins: int = 40) -> list[int]:
    longest = int(lengths.max(initial=1)) + 1
    return sorted({1 + round(n * (longest - 1) / bins) for n in range(bins + 1)})
