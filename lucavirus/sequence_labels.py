"""Labels of one sequence as class ids: read from the obj_label of OpenVirus, checked, cut to a window.

Spans are (start, end): positions of the sequence's body from 0, both ends included.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from lucavirus.errors import UserError
from lucavirus.tasks import TASKS, Molecule, Task

# Labels of one sequence: task -> (start, end, class id) of each span, or (class id,) of each class of the sequence.
Labels = dict[str, list[tuple[int, ...]]]

_LEVELS = {
    "span_level": [task.name for task in TASKS.values() if task.level == "span"],
    "seq_level": [task.name for task in TASKS.values() if task.level == "sequence"],
}


def parse_labels(text: str, molecule: Molecule) -> Labels:
    """Read an obj_label, JSON or a Python literal: {"span_level": {task: ...}, "seq_level": {task: ...}}.

    Empty values mean no label; keys that end in _taxid are passed over. Raises UserError, without a place, on anything
    else that is not a label of the molecule; whether spans and class ids are in range is up to check_labels.
    """
    labels: Labels = {}
    for level, values in _mapping(_literal(text), "obj_label").items():
        if level not in _LEVELS:
            raise UserError(f"obj_label has an unknown key {level!r}", hint=f"its keys: {', '.join(_LEVELS)}")
        for name, value in _mapping(values, level).items():
            if str(name).endswith("_taxid"):
                continue
            if name not in _LEVELS[level]:
                raise UserError(f"{level} has an unknown key {name!r}", hint=f"its keys: {', '.join(_LEVELS[level])}")
            if not _absent(value):
                if TASKS[name].molecule != molecule:
                    hint = "correct obj_type, or leave out the label"
                    raise UserError(f"a {molecule} cannot have a label of {name}", hint=hint)
                labels[name] = _class_ids(TASKS[name], value)
    return labels


def _literal(text: str) -> Any:
    if not text.strip():
        return None
    # Most labels are Python literals that differ from JSON in this only; the third way takes ten times as long.
    for attempt in (text, text.replace("'", '"').replace("None", "null")):
        try:
            return json.loads(attempt)
        except (ValueError, RecursionError):
            pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        hint = 'write it as JSON, for example {"span_level": {}, "seq_level": {"gene_taxonomy": 12}}'
        raise UserError(f"obj_label is neither JSON nor a Python literal: {text[:60]}", hint=hint) from None


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def _mapping(value: Any, name: str) -> dict[Any, Any]:
    if _absent(value):
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{name} is not an object", hint='write {"key": value, ...}, or leave it empty')
    return value


def _class_ids(task: Task, value: Any) -> list[tuple[int, ...]]:
    form, width, rows = "one class id", 1, [value]
    if task.level == "span":
        form, width, rows = "a list of [start, end, class id]", 3, value
    elif task.multi_label:
        form, rows = "a list of class ids", value
    if isinstance(rows, list | tuple):
        rows = [row if width == 3 else (row,) for row in rows]
        if all(isinstance(row, list | tuple) and [type(number) for number in row] == [int] * width for row in rows):
            # A bool would be an int by isinstance. Of spans order and every row count, of keywords neither.
            return [tuple(row) for row in (rows if width == 3 else dict.fromkeys(rows))]
    raise UserError(f"{task.name} is not {form}: {str(value)[:60]}", hint="all numbers must be whole")


def check_labels(labels: Labels, length: int, sizes: Mapping[str, int]) -> None:
    """Raise UserError, without a place, on a span outside a sequence of `length` or an id not below its task's size."""
    for task, rows in labels.items():
        for *span, number in rows:
            if not 0 <= number < sizes[task]:
                hint = "use the vocabulary that the ids were made with (`vocabularies` in the configuration)"
                what = f"the vocabulary of {task} has {sizes[task]} classes, from 0; there is no class {number}"
                raise UserError(what, hint=hint)
            if span and not 0 <= span[0] <= span[1] < length:
                hint = "a span is start, end on the whole sequence: from 0, both ends included, start not after end"
                raise UserError(f"the {task} span {span} is not within the sequence of {length} residues", hint=hint)


def window_labels(labels: Labels, start: int, end: int) -> Labels:
    """Labels of the window [start, end): spans are cut to it and counted from its start, classes of the whole stay."""
    cut: Labels = {}
    for task, rows in labels.items():
        if TASKS[task].level == "span":
            rows = [
                (max(first, start) - start, min(last, end - 1) - start, number)
                for first, last, number in rows
                if first < end and last >= start
            ]
        if rows:
            cut[task] = list(rows)
    return cut
