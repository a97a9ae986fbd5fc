"""Where settings stand in their YAML files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

Location = tuple[str | int, ...]
_ABSENT = object()


def repeated(file: str) -> Iterator[tuple[Location, str]]:
    """Settings that stand twice in a group of a file: YAML takes the last one and drops what stands below the first."""
    yield from _repeated(_composed(file), file, ())


def _repeated(node: yaml.Node | None, file: str, where: Location) -> Iterator[tuple[Location, str]]:
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                yield (*where, name), f"must stand once, not on both lines {lines[name]} and {line} of {file}"
            lines[name] = line
            yield from _repeated(value, file, (*where, name))
    if isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _repeated(value, file, (*where, number))


def _composed(file: str) -> yaml.Node | None:
    with open(file) as stream:
        try:
            node: yaml.Node | None = yaml.compose(stream, Loader=yaml.SafeLoader)
        except yaml.YAMLError:  # Snakemake reads JSON too, in which tabs may stand
            return None
    return node


def locate(where: Location, files: Sequence[str]) -> str:
    """`file:line` of a setting, in the last of the files that has it (or has the group it belongs to); else ''.

    A list replaces that of the files before, whose items then count no more.
    """
    best: tuple[int, str] = (0, "")
    for file in files:
        node = _composed(file)
        depth, line, in_list = 0, 0, False
        for part in where:
            in_list = in_list or isinstance(node, yaml.SequenceNode)
            child = _child(node, part)
            if child is None:
                break
            depth, line, node = depth + 1, child[0], child[1]
        if depth >= max(best[0], 1) or in_list:
            best = (depth, f"{file}:{line}")
    return best[1]


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def own_location(where: Location, raw: Mapping[str, Any]) -> Location:
    """A run's setting that came from a shared group is reported there, once."""
    if len(where) >= 2 and where[0] == "runs":
        own = (raw.get("runs") or {}).get(where[1]) or {}
        if not isinstance(own, Mapping):
            return where[:2]
        if where[2:] == ("model",) and not own.get("model") or not gives(own, where[2:]):
            return where[2:] if where[2] == "model" else ("training", *where[2:])
    return where


def gives(own: Any, where: Location) -> bool:
    """True where a group gives a setting itself, or the value that it is in."""
    return _given(own, where) is not _ABSENT


def was_typed(typed: Mapping[str, Any], where: Location, text: str) -> bool:
    """True where `--config` gave what a mistake is about: the setting, or in its group one that the text names."""
    value = _given(typed, where)
    return value is not _ABSENT and (not isinstance(value, Mapping) or speaks_of(text, value))


def _given(group: Any, where: Location) -> Any:
    """What a group has at a location, or the value that this is in; else _ABSENT."""
    for part in where:
        if not isinstance(group, Mapping):
            return _ABSENT if group is None else group
        if part not in group:
            return _ABSENT
        group = group[part]
    return group


def speaks_of(text: str, names: Iterable[Any]) -> bool:
    """True where one of the names is a word of the text."""
    return any(re.search(rf"\b{re.escape(str(name))}\b", text) for name in names)
