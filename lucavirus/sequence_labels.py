"""Labels of one sequence as class ids: read from the obj_label of OpenVirus, checked, cut to a window.

Spans are (start, end): positions of the sequence's body from 0, both ends included.
"""

from __future__ import annotations

import ast
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import chain
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
    as_json = text.replace("'", '"').replace("None", "null")
    for attempt in (text, as_json) if '"' in text else (as_json,):
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
    return value is None or (not value and isinstance(value, str | list | tuple | dict))


def _mapping(value: Any, name: str) -> dict[Any, Any]:
    if _absent(value):
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{name} is not an object", hint='write {"key": value, ...}, or leave it empty')
    return value


def _class_ids(task: Task, value: Any) -> list[tuple[int, ...]]:
    form = "one class id"
    if task.level == "span":
        form = "a list of [start, end, class id]"
        if _all_are(value, list, tuple) and set(map(len, value)) == {3} and _all_are([*chain(*value)], int):
            return [*map(tuple, value)]
    elif task.multi_label:
        form = "a list of class ids"
        if _all_are(value, int):  # of spans order and every row count, of keywords neither
            return [*zip(dict.fromkeys(value), strict=True)]
    elif type(value) is int:
        return [(value,)]
    raise UserError(f"{task.name} is not {form}: {repr(value)[:60]}", hint=f"write {form}, in whole numbers, unquoted")


def _all_are(values: Any, *types: type) -> bool:
    """True for a list of values of these types alone; a bool is no int."""
    return isinstance(values, list | tuple) and set(map(type, values)) <= set(types)


def check_labels(labels: Labels, length: int, sizes: Mapping[str, int]) -> None:
    """Raise UserError, without a place, on a span outside a sequence of `length` or an id not below its task's size."""
    for task, rows in labels.items():
        for row in rows:
            number = row[-1]
            if not 0 <= number < sizes[task]:
                hint = "use the vocabulary that the ids were made with (`vocabularies` in the configuration)"
                what = f"the vocabulary of {task} has {sizes[task]} classes, from 0; there is no class {number}"
                raise UserError(what, hint=hint)
            if len(row) > 1 and not 0 <= row[0] <= row[1] < length:
                hint = "a span is start, end on the whole sequence: from 0, both ends included, start not after end"
                raise UserError(outside(task, row[:2], length), hint=hint)


def outside(task: str, span: Sequence[int], length: int) -> str:
    """What is wrong with a span that is not within its sequence."""
    return f"the {task} span {[*span]} is not within the sequence of {length} residues"


def window_labels(labels: Labels, starts: Sequence[int], ends: Sequence[int]) -> list[Labels]:
    """Labels of each window [start, end) of a sequence; starts and ends ascend.

    Spans are cut to the window and counted from its start, in their order; classes of the whole sequence stay.
    """
    cut: list[Labels] = [{} for _ in starts]
    for task, rows in labels.items():
        if TASKS[task].level == "sequence":
            for window in cut:
                window[task] = list(rows)
            continue
        for first, last, number in rows:
            # Only the windows that the span meets: a large genome has 100,000 of them, and as many spans.
            for place in range(bisect_right(ends, first), bisect_right(starts, last)):
                start, end = starts[place], ends[place]
                span = max(first, start) - start, min(last, end - 1) - start, number
                cut[place].setdefault(task, []).append(span)
    return cut
