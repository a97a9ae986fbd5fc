"""Label vocabularies, one a task over all sources, and the labels of a source as class ids by them.

A vocabulary is a text file with one class name a line; the line number, from 0, is the class id.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from lucavirus.annotations import Annotation, is_gff3, read_annotations, read_lines
from lucavirus.config import Settings
from lucavirus.config_data import Source
from lucavirus.errors import UserError, close_to
from lucavirus.fasta import scan_ids
from lucavirus.files import replace_text
from lucavirus.record_batches import Record, RecordBatch
from lucavirus.sequence_labels import Labels, check_labels, outside, parse_labels
from lucavirus.tasks import SUPERVISED, TASKS, Molecule

# Of each annotation file and molecule: the ids that its rows name, with the line of the first such row.
Wanted = dict[tuple[str, Molecule], dict[str, int]]
_UNUSED_HINT = (
    "correct the id, the task or `annotations`; where you left sequences out, leave their rows out of the labels too"
)
_GFF3_HINT = (
    "GFF3 counts from 1, both ends included; features across the origin of a circle need Is_circular=true in the row "
    "of the whole sequence"
)


@dataclass
class Summary:
    """What was found: classes by task, features left out of GFF3 files by type, and names that may mean the same."""

    classes: dict[str, int]
    left_out: Counter[str] = field(default_factory=Counter)
    alike: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{task}: {n} classes" + (" (no labels found)" if not n else "") for task, n in self.classes.items()]
        if self.left_out:
            types = ", ".join(f"{kind} {n}" for kind, n in self.left_out.most_common())
            lines.append(f"GFF3 features without a gene_type class, left out: {types} (see gff3_types)")
        lines += [f"warning: {names} differ in case only, and are two classes" for names in self.alike]
        return "\n".join(lines)


def build_vocabularies(settings: Settings, out: Path) -> Summary:
    """Write `out`/{task}.txt for each supervised task: the given vocabulary, or the sorted names in all annotations.

    An empty file means that the task has no label. Raises UserError for a bad row, a name not in a given vocabulary,
    an id that no source of its molecule holds, and, where a source is CSV, a task without a given vocabulary.
    """
    _require_given(settings)
    times = _times(settings)
    given = {str(task): read_vocabulary(Path(file)) for task, file in settings.vocabularies.items()}
    names: defaultdict[str, set[str]] = defaultdict(set)
    left_out: dict[str, Counter[str]] = {}
    wanted: Wanted = {}
    known = {task: frozenset(classes) for task, classes in given.items()}
    for source in settings.sources:
        for row in read_annotations(source.annotations, settings.gff3_types, left_out):
            if row.task not in known:
                names[row.task].add(row.label)
            elif row.label not in known[row.task]:
                raise _unknown_class(row, given[row.task])
            wanted.setdefault((row.file, TASKS[row.task].molecule), {}).setdefault(row.id, row.line)
    check_annotated_ids(settings.sources, wanted)
    for file, time in _times(settings).items():
        if time != times[file]:  # what is written now would look newer, and the change never be read
            raise UserError("was changed while it was read", where=file, hint="start the same command again")
    classes = {task: given.get(task) or tuple(sorted(names[task])) for task in SUPERVISED}
    for task, vocabulary in classes.items():
        replace_text(out / f"{task}.txt", "".join(f"{label}\n" for label in vocabulary))
    counts = {task: len(found) for task, found in classes.items()}
    return Summary(counts, sum(left_out.values(), Counter()), list(_alike(names)))


def _times(settings: Settings) -> dict[str, int | None]:
    """When the files that vocabularies are made of were last changed, in ns; None for one that is not there."""
    files = [file for source in settings.sources for file in source.annotations]
    return {file: _time(file) for file in (*files, *settings.vocabularies.values())}


def _time(file: str) -> int | None:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:  # whoever reads it tells
        return None


def _alike(names: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Neighbouring class names of a task that differ in nothing but their case."""
    for task, found in sorted(names.items()):
        for one, other in pairwise(sorted(found, key=lambda name: (name.casefold(), name))):
            if one.casefold() == other.casefold():
                yield f"{one} and {other} of {task}"


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Read the class names of a task in the order of their ids; an empty line or a repeated name is a UserError."""
    lines = [name.strip() for _, name in read_lines(str(path))]
    while lines and not lines[-1]:
        lines.pop()
    first: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        if not name:
            hint = "each line is a class id: fill it, or remove it if the ids were made without it"
            raise UserError("an empty line in a vocabulary", where=f"{path}:{number}", hint=hint)
        if first.setdefault(name, number) != number:
            what = f"the class {name} is also on line {first[name]}"
            raise UserError(what, where=f"{path}:{number}", hint="each name stands on one line")
    return tuple(lines)


def check_annotated_ids(sources: Sequence[Source], wanted: Wanted) -> None:
    """Raise UserError unless each id is in a source that lists the annotation file and is of the molecule.

    `wanted` is used up. Reads the ids of the sources that list an annotation file, once.
    """
    for source in sources:
        # Found ids are taken out, so that nothing is kept of the sequence files, which may hold millions.
        open_ids = [wanted[key] for file in set(source.annotations) if (key := _key(file, source)) in wanted]
        if open_ids:
            for name in _ids(source):
                for ids in open_ids:
                    ids.pop(name, None)
    for (file, molecule), ids in wanted.items():
        if ids:
            name, line = min(ids.items(), key=lambda item: item[1])
            more = f" (and {len(ids) - 1} more ids)" if len(ids) > 1 else ""
            what = f"the label of the {molecule} {name} is used by no source: {_reason(sources, file, molecule, name)}"
            raise UserError(what + more, where=f"{file}:{line}", hint=_UNUSED_HINT)


def _key(file: str, source: Source) -> tuple[str, Molecule]:
    return file, source.kind or "gene"


def _ids(source: Source) -> Iterator[str]:
    return (name for file in source.files for name in scan_ids(file))


def _reason(sources: Sequence[Source], file: str, molecule: Molecule, name: str) -> str:
    for source in sources:
        if not source.is_csv and name in _ids(source):
            if source.kind != molecule:
                return f"the id is in source {source.name}, whose kind is {source.kind}"
            return f"the id is in source {source.name}, which does not list this file"
    lists = [source.name for source in sources if file in source.annotations and source.kind == molecule]
    return f"there is no such id in {', '.join(lists)}" if lists else f"no source of kind {molecule} lists this file"


def _require_given(settings: Settings) -> None:
    missing = [task for task in SUPERVISED if task not in settings.vocabularies]
    tables = [source.name for source in settings.sources if source.is_csv]
    if tables and missing:
        lines = "".join(f"\n    {task}: path/to/{task}.txt" for task in missing)
        hint = f"add these lines (a file may be empty where a task has no label):\n  vocabularies:{lines}"
        what = f"the class ids in the CSV of source {tables[0]} need a label file for every task"
        raise UserError(what, where="vocabularies", hint=hint)


def _unknown_class(row: Annotation, vocabulary: Sequence[str], anew: str = "") -> UserError:
    what = f"{row.label} is not in the vocabulary of {row.task}{close_to(row.label, vocabulary)}"
    hint = f"correct the name, or add a line to the end of the file under `vocabularies: {row.task}`{anew}"
    if row.task == "gene_type":
        hint += "; `gff3_types` names the class of a GFF3 feature type (null: none)"
    return UserError(what, where=row.where, hint=hint)


def read_vocabularies(folder: Path) -> dict[str, tuple[str, ...]]:
    """Read the vocabulary of each supervised task, as build_vocabularies wrote them."""
    return {task: read_vocabulary(folder / f"{task}.txt") for task in SUPERVISED}


class SourceLabels:
    """Labels of the records of one source, as class ids: from its annotation files, or from the rows of a CSV.

    `vocabularies` holds the class names of every supervised task; `digests` are their sha256. Reads all annotation
    files at once; raises UserError as read_annotations does, and for a name that is not in its vocabulary.
    """

    def __init__(
        self, source: Source, vocabularies: Mapping[str, Sequence[str]], gff3_types: Mapping[str, str | None]
    ) -> None:
        self.source, self.gff3_types = source, gff3_types
        self.left_out: dict[str, Counter[str]] = {}
        self.digests = {
            task: hashlib.sha256("\n".join(names).encode()).hexdigest() for task, names in vocabularies.items()
        }
        self._sizes = {task: len(names) for task, names in vocabularies.items()}
        self._numbers = {task: {name: n for n, name in enumerate(names)} for task, names in vocabularies.items()}
        self._index: dict[bytes, int] = {}
        # Rows of (id, task, start, end, class): for millions of proteins a fifth of the memory of tuples.
        table = array("q")
        for row in self._annotations(self.left_out):
            number = self._numbers[row.task].get(row.label)
            if number is None:
                anew = f"; where there is none, `touch {row.file}`: the vocabulary is made anew"
                raise _unknown_class(row, vocabularies[row.task], anew)
            name = self._index.setdefault(row.id.encode(), len(self._index))
            table.extend((name, SUPERVISED.index(row.task), *(row.span or (-1, -1)), number))
        rows = np.array(table, dtype=np.int64).reshape(-1, 5)
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        self._rows = rows[:, 1:]
        self._offsets = np.searchsorted(rows[:, 0], np.arange(len(self._index) + 1))

    def of_batch(self, batch: RecordBatch) -> dict[int, Labels]:
        """Labels of the records of a batch that have any, by their number; raises UserError as `of` does."""
        if batch.labels is not None:
            chosen: Iterable[int] = range(len(batch))
        else:
            chosen = [n for n, name in enumerate(batch.ids) if name in self._index] if self._index else ()
        found = {number: self.of(batch.record(number), batch.length(number)) for number in chosen}
        return {number: labels for number, labels in found.items() if labels}

    def of(self, record: Record, length: int) -> Labels:
        """Labels of a record whose body has `length` tokens; raises UserError with the line of a label out of range."""
        try:
            labels = self._find(record) if record.labels is None else parse_labels(record.labels, record.molecule)
            check_labels(labels, length, self._sizes)
        except UserError as error:
            row = self._outside(record, length) if record.labels is None else None
            if row is None:
                raise UserError(error.what, where=record.where, hint=error.hint) from None
            assert row.span
            what, hint = outside(row.task, row.span, length), error.hint
            if is_gff3(row.file):
                first, last = (place + 1 for place in row.span)
                what = f"the feature from {first} to {last} is not within the sequence of {length} residues"
                hint = _GFF3_HINT
            # Its place too: the id may have been used twice.
            raise UserError(f"{what}, {record.id} at {record.where}", where=row.where, hint=hint) from None
        return labels

    def _annotations(self, left_out: dict[str, Counter[str]] | None = None) -> Iterator[Annotation]:
        for row in read_annotations(self.source.annotations, self.gff3_types, left_out):
            if TASKS[row.task].molecule == self.source.kind:
                yield row

    def _find(self, record: Record) -> Labels:
        labels: Labels = {}
        index = self._index.get(record.id.encode())
        if index is not None:
            for task, start, end, number in self._rows[self._offsets[index] : self._offsets[index + 1]].tolist():
                span = () if start < 0 else (start, end)
                labels.setdefault(SUPERVISED[task], []).append((*span, number))
        # A class that is given twice to a sequence counts once.
        return {task: rows if len(rows[0]) > 1 else list(dict.fromkeys(rows)) for task, rows in labels.items()}

    def _outside(self, record: Record, length: int) -> Annotation | None:
        """The first row that puts a span outside the record."""
        rows = (row for row in self._annotations() if row.id == record.id and row.span is not None)
        return next((row for row in rows if row.span and row.span[1] >= length), None)
