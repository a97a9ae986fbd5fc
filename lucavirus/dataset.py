"""(molecule, split, row) -> sample: the dataset files and the shards they point into, memory-mapped."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lucavirus.config import Run
from lucavirus.config_data import SPLITS
from lucavirus.errors import UserError
from lucavirus.packs import Sample
from lucavirus.shards import Shard, map_arrays
from lucavirus.tasks import MOLECULES, TASKS, Molecule

FORMAT, VERSION = "lucavirus-dataset", 1


class Dataset:
    """The rows of some molecules in one split, numbered from 0: all genes, then all proteins.

    `data` is the project's results folder; sequences are cut on the right to max_length - 2 tokens;
    only labels of `tasks` are read. Nothing but the rows asked for is ever in memory.
    """

    def __init__(
        self, data: Path, molecules: Sequence[Molecule], split: str, max_length: int, tasks: Sequence[str]
    ) -> None:
        self.body_length = max_length - 2
        self._tables: list[_Table] = []
        for molecule in sorted(molecules, key=MOLECULES.index):
            wanted = [t for t in tasks if TASKS[t].supervised and TASKS[t].molecule == molecule]
            self._tables.append(_Table(data / "datasets" / molecule / f"{split}.h5", wanted))
        self._starts = np.concatenate([[0], np.cumsum([len(table) for table in self._tables])]).astype(np.int64)
        # A memory-mapped shard costs an open file and page tables, not memory. There are three data sets.
        self._shard = lru_cache(maxsize=max(256, _open_files() // 4))(lambda name: Shard(data / "shards" / name))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fingerprint(self) -> list[str]:
        """Fingerprints of the dataset files: equal when, and only when, the sequences and labels are."""
        return [table.fingerprint for table in self._tables]

    def lengths(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of samples as the model reads them: cut, with [CLS] and [SEP]."""
        found = np.empty(len(samples), np.int64)
        for table, start, end in zip(self._tables, self._starts, self._starts[1:], strict=False):
            here = (samples >= start) & (samples < end)
            found[here] = table.length[samples[here] - start]
        return np.minimum(found, self.body_length) + 2

    def samples(self, indices: NDArray[np.int64]) -> list[Sample]:
        """Read samples, in the order asked for."""
        read = []
        for index, (table, shard, row) in zip(indices.tolist(), self._find(indices), strict=True):
            labels = {task: values for task in table.tasks if len(values := shard.labels(row, task))}
            read.append(Sample(index, table.molecule, shard.sequence(row)[: self.body_length], labels))
        return read

    def has_labels(self, task: str) -> bool:
        """True where one of these sequences has a label of the task."""
        for table in self._tables:
            if task not in table.tasks:
                continue
            # Rows are in the order of their shards; numbers of another type would have all of them copied.
            borders = np.searchsorted(table.shard, np.arange(len(table.shards) + 1, dtype=table.shard.dtype))
            for name, start, end in zip(table.shards, borders, borders[1:], strict=False):
                if start < end and self._shard(name).has_labels(table.row[start:end], task):
                    return True
        return False

    def name(self, index: int) -> str:
        """The id of one sample, as in the input (windows: with their place)."""
        ((_, shard, row),) = self._find(np.array([index]))
        return shard.name(row)

    def _find(self, indices: NDArray[np.int64]) -> Iterator[tuple[_Table, Shard, int]]:
        """Where each of the samples lies."""
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        shards, rows = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        for number, table in enumerate(self._tables):
            here = numbers == number
            places = indices[here] - self._starts[number]
            shards[here], rows[here] = table.shard[places], table.row[places]
        for number, shard, row in zip(numbers.tolist(), shards.tolist(), rows.tolist(), strict=True):
            table = self._tables[number]
            yield table, self._shard(table.shards[shard]), row


def _open_files() -> int:
    """Let this process, and those it starts, have as many files open as the system allows (1024 is usual); how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return 2**16 if most == resource.RLIM_INFINITY else min(most, 2**16)


class _Table:
    """One dataset file."""

    def __init__(self, path: Path, tasks: list[str]) -> None:
        arrays, attributes = map_arrays(path, FORMAT, VERSION)
        self.shard, self.row, self.length = arrays["shard"], arrays["row"], arrays["length"]
        self.shards: list[str] = json.loads(attributes["shards"])
        self.fingerprint: str = attributes["fingerprint"]
        self.molecule = MOLECULES.index(attributes["molecule"])
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.row)


def open_splits(data: Path, run: Run, tasks: Sequence[str]) -> tuple[Dataset, Dataset, Dataset]:
    """The train, dev and test set of a run, with the labels of `tasks`."""
    train, dev, test = (Dataset(data, run.molecules, split, run.model.max_length, tasks) for split in SPLITS)
    return train, dev, test


def fingerprints(splits: Iterable[Dataset]) -> list[str]:
    """Those of all their files."""
    return [fingerprint for split in splits for fingerprint in split.fingerprint]


def classes_of(vocabularies: Mapping[str, Sequence[Any]], tasks: Sequence[str]) -> dict[str, int]:
    """Vocabulary sizes of the supervised tasks that can be trained: those that have a label at all."""
    return {task: len(vocabularies[task]) for task in tasks if TASKS[task].supervised and vocabularies[task]}


def require_samples(dataset: Dataset, what: str) -> None:
    """Raise UserError for an empty training set."""
    if not len(dataset):
        raise UserError(
            f"there are no training sequences for {what}", hint="look at datasets/summary.tsv: add sources of its "
            "molecules, or lower split.dev and split.test",
        )  # fmt: skip
