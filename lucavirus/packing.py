"""Samples -> packed batches: the tokens of each in one row, and for each task the positions that have a label.

All packs of an update are made together, their rows end to end: a call of numpy costs as much as a thousand tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from lucavirus import alphabet
from lucavirus.config import Run
from lucavirus.labels import Labelled, mask, supervised
from lucavirus.packs import IGNORED, Pack, Sample
from lucavirus.parcels import Column, Parcel
from lucavirus.record_batches import bounds_of
from lucavirus.tasks import TASKS

# A filled pack has a multiple of at least and at most so many tokens, and its `cu_seqlens` a multiple of these entries.
# What is added is one sequence, and attention to it grows with its square: `max_tokens_per_pack` may be very large.
_FEWEST_TOKENS, _MOST_TOKENS, _SEQUENCES = 32, 1024, 64


@dataclass(frozen=True)
class Fill:
    """To which of a few shapes packs are filled, so that compiled code and memory are used again.

    Tokens become a multiple of `step_of_fill`, or `most`, the tokens of the largest pack there can be; what is added is
    one more sequence of [PAD] without labels. Wanted tokens, label rows and `cu_seqlens` are rounded up too. No loss or
    gradient changes.
    """

    capacity: int
    most: int

    def tokens(self, tokens: int) -> int:
        """Tokens of a pack that has so many; an empty one gets some."""
        return max(tokens, min(self.most, _round_up(max(tokens, 1), step_of_fill(self.capacity))))

    def wanted(self, wanted: int) -> int:
        """Wanted tokens of a pack that has so many."""
        return _round_up(wanted, step_of_fill(self.capacity))

    def rows(self, rows: int) -> int:
        """Rows of a task that has so many: at most 8 sizes between a power of two and the next."""
        return _round_up(rows, max(4, 1 << max(0, rows.bit_length() - 4)))

    def boundaries(self, boundaries: int) -> int:
        """Entries of `cu_seqlens`."""
        return _round_up(boundaries, _SEQUENCES)


def step_of_fill(capacity: int) -> int:
    """Tokens of which a filled pack has a multiple; more than that is never added."""
    return max(_FEWEST_TOKENS, min(capacity // 128, _MOST_TOKENS))


def make_pack(
    samples: Sequence[Sample], run: Run, classes: dict[str, int], epoch: int, fill: Fill | None = None
) -> Pack:
    """Make one pack; see make_parcel."""
    (pack,) = make_parcel([samples], run, classes, epoch, fill).open(torch.device("cpu"))
    return pack


def make_parcel(
    groups: Sequence[Sequence[Sample]], run: Run, classes: dict[str, int], epoch: int, fill: Fill | None
) -> Parcel:
    """Mask and label samples and make a pack of each group.

    `classes` are the vocabulary sizes of the tasks to label; the masks are those of `epoch`.
    """
    samples = [sample for group in groups for sample in group]
    bodies = [sample.tokens for sample in samples]
    labels = dict[str, Labelled]()
    for masked in run.tasks:
        if not TASKS[masked].supervised:
            labels[masked], corrupted = mask(samples, masked, run, epoch)
            for number, body in corrupted:
                bodies[number] = body
    labels |= {task: supervised(samples, task, size, run.keyword_negatives) for task, size in classes.items()}
    frame = _Frame.of(groups, fill)
    columns = {("", field): column for field, column in _token_columns(groups, bodies, frame, fill).items()}
    for task, labelled in labels.items():
        if len(labelled.owners):
            found = _label_columns(labelled, classes.get(task, len(alphabet.TOKENS)), frame, fill)
            columns |= {(task, field): column for field, column in found.items()}
    columns["", "wanted"] = _wanted_column(labels.values(), frame, fill)
    return Parcel.of(columns, frame.offsets, [[sample.index for sample in group] for group in groups])


class _Frame(NamedTuple):
    """Where sequences lie: `offsets` of each pack as in Pack; of each sequence its pack, its number and first token."""

    offsets: list[list[int]]
    packs: NDArray[np.int64]
    numbers: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, groups: Sequence[Sequence[Sample]], fill: Fill | None) -> Self:
        offsets = [_boundaries([len(sample.tokens) for sample in group], fill) for group in groups]
        places = [
            (pack, number, edges[number])
            for pack, (group, edges) in enumerate(zip(groups, offsets, strict=True))
            for number in range(len(group))
        ]
        return cls(offsets, *np.array(places, np.int64).reshape(-1, 3).T)


def _boundaries(lengths: Sequence[int], fill: Fill | None) -> list[int]:
    """Where the sequences of a pack begin and end, and what fills it."""
    offsets = [0, *accumulate(length + 2 for length in lengths)]
    if fill and (tokens := fill.tokens(offsets[-1])) > offsets[-1]:
        offsets.append(tokens)
    return offsets


def _token_columns(
    groups: Sequence[Sequence[Sample]], bodies: Sequence[NDArray[np.uint8]], frame: _Frame, fill: Fill | None
) -> dict[str, Column]:
    """The tensors of Pack, for all packs."""
    sizes = [edges[-1] for edges in frame.offsets]
    longest = max(sizes, default=0)
    tokens, types = np.full(sum(sizes), alphabet.PAD, np.uint8), np.zeros(sum(sizes), np.uint8)
    count = np.arange(longest, dtype=_narrow(longest))
    positions = np.empty(sum(sizes), count.dtype)
    at, body = 0, iter(bodies)
    for group, edges in zip(groups, frame.offsets, strict=True):
        for start, end in pairwise(edges):
            positions[at + start : at + end] = count[: end - start]
        for sample, (start, end) in zip(group, pairwise(edges), strict=False):
            tokens[at + start], tokens[at + end - 1] = alphabet.CLS, alphabet.SEP
            tokens[at + start + 1 : at + end - 1] = next(body)
            types[at + start : at + end] = sample.molecule
        at += edges[-1]
    entries = [fill.boundaries(len(edges)) if fill else len(edges) for edges in frame.offsets]
    cu_seqlens = [edges + edges[-1:] * (size - len(edges)) for edges, size in zip(frame.offsets, entries, strict=True)]
    return {
        "tokens": Column(tokens, torch.int64, sizes),
        "types": Column(types, torch.int64, sizes),
        "positions": Column(positions, torch.int64, sizes),
        "cu_seqlens": Column(np.array(list(chain(*cu_seqlens)), np.int32), torch.int32, entries),
    }


def _label_columns(labelled: Labelled, vocabulary: int, frame: _Frame, fill: Fill | None) -> dict[str, Column]:
    """The tensors of TaskLabels, for all packs."""
    owners, counts, places, targets = labelled
    if targets.ndim == 1:  # a narrow type would make another class of it; tokenizing refuses such labels
        assert int(targets.max()) < vocabulary, f"class {targets.max()} of a vocabulary of {vocabulary}"
    packs, number = frame.packs[owners], len(frame.offsets)
    sequences = np.bincount(packs, minlength=number)
    rows = np.bincount(packs, counts, number).astype(np.int64).tolist()
    filled = [fill.rows(size) if fill else size for size in rows]
    positions = np.repeat(frame.starts[owners], counts) + places
    longest = max(edges[-1] for edges in frame.offsets)
    row = np.repeat(np.arange(len(owners)) - np.repeat(bounds_of(sequences)[:-1], sequences), counts)
    kind = torch.int8 if targets.ndim > 1 else torch.int64
    return {
        "positions": Column(_spread(positions, rows, filled, longest), torch.int64, filled),
        "targets": Column(_spread(targets, rows, filled, max(vocabulary, -IGNORED), IGNORED), kind, filled),
        "rows": Column(_spread(row, rows, filled, len(owners)), torch.int64, filled),
        "counts": Column(counts.astype(np.float32), torch.float32, sequences.tolist()),
        "sequences": Column(frame.numbers[owners], torch.int64, sequences.tolist()),
    }


def _wanted_column(labels: Iterable[Labelled], frame: _Frame, fill: Fill | None) -> Column:
    """The tokens at the positions of any label of each pack, and its first one; filled with its last one."""
    sizes = np.array([edges[-1] for edges in frame.offsets], np.int64)
    bounds = bounds_of(sizes)
    chosen = np.zeros(bounds[-1], np.bool_)
    chosen[bounds[:-1][sizes > 0]] = True
    for owners, counts, places, _ in labels:
        chosen[np.repeat(bounds[frame.packs[owners]] + frame.starts[owners], counts) + places] = True
    tokens = np.flatnonzero(chosen)
    edges = np.searchsorted(tokens, bounds)
    tokens -= np.repeat(bounds[:-1], np.diff(edges))
    filled = [fill.wanted(size) if fill else size for size in np.diff(edges).tolist()]
    rows = np.repeat((sizes - 1).astype(_narrow(int(sizes.max(initial=0)))), filled)
    for (first, last), end, room in zip(pairwise(edges.tolist()), accumulate(filled), filled, strict=True):
        rows[end - room : end - room + last - first] = tokens[first:last]
    return Column(rows, torch.int64, filled)


def _spread(
    values: NDArray[Any], sizes: Sequence[int], filled: Sequence[int], bound: int, rest: int = 0
) -> NDArray[Any]:
    """Parts of `sizes` rows, put so far apart that each has `filled` rows with `rest`; all values are below `bound`."""
    spread = np.full((sum(filled), *values.shape[1:]), rest, _narrow(bound) if values.ndim == 1 else values.dtype)
    at = taken = 0
    for size, room in zip(sizes, filled, strict=True):
        spread[at : at + size] = values[taken : taken + size]
        at, taken = at + room, taken + size
    return spread


def _narrow(bound: int) -> np.dtype[Any]:
    """The smallest type of signed integers that holds all from -bound to bound - 1."""
    return np.min_scalar_type(-max(bound, 1))


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
