"""From the merged configuration to Settings: runs completed, files found, every mistake told at once."""

from __future__ import annotations

import difflib
import glob
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lucavirus.config import Model, Run, Settings, Source, Split, StopAfter, Tokenize
from lucavirus.errors import UserError

Location = tuple[str | int, ...]

_GROUPS: dict[str, type[BaseModel]] = {
    "sources": Source, "split": Split, "tokenize": Tokenize, "model": Model,
    "training": Run, "runs": Run, "stop_after": StopAfter,
}  # fmt: skip
# Keys of the file that are merged into each run before validation.
_SHARED = ("model", "training")


def load_settings(raw: Mapping[str, Any], files: Sequence[str] = (), made: Collection[str] = ()) -> Settings:
    """Validate a merged configuration and check that its input files exist.

    `files` are the YAML files it came from (for line numbers), `made` the inputs that a rule makes.
    Raises one UserError that lists every mistake.
    """
    problems: list[tuple[Location, str]] = []
    complete = _expand_files(_complete_runs(raw, problems), made, problems)
    settings = None
    try:
        settings = Settings.model_validate(complete)
    except ValidationError as error:
        problems += [_explain(detail, raw) for detail in error.errors() if not _follows_from_another(detail)]
    if problems or settings is None:
        raise UserError(_message(problems, files))
    return settings


def read_settings(path: Path) -> Settings:
    """Read the complete settings that the workflow wrote for its stages (JSON)."""
    return Settings.model_validate(json.loads(path.read_text()))


def _complete_runs(raw: Mapping[str, Any], problems: list[tuple[Location, str]]) -> dict[str, Any]:
    training = _group(raw, "training", problems)
    model = _group(raw, "model", problems)
    runs = {}
    for name, own in _group(raw, "runs", problems).items():
        if not isinstance(own, Mapping | None):
            problems.append((("runs", name), "must be a group of settings (`name: value` lines)"))
            continue
        own = own or {}
        run = {**training, **own}
        run["model"] = {**model, **(own.get("model") or {})}
        run["stop_after"] = run.get("stop_after") or {}
        runs[name] = run
    return {**{key: value for key, value in raw.items() if key not in _SHARED}, "runs": runs}


def _group(raw: Mapping[str, Any], key: str, problems: list[tuple[Location, str]]) -> dict[str, Any]:
    value = raw.get(key) or {}
    if isinstance(value, Mapping):
        return dict(value)
    problems.append(((key,), "must be a group of settings (`name: value` lines)"))
    return {}


def _expand_files(raw: dict[str, Any], made: Collection[str], problems: list[tuple[Location, str]]) -> dict[str, Any]:
    sources = []
    for n, source in enumerate(raw.get("sources") or []):
        if isinstance(source, Mapping):
            source = dict(source)
            for key in ("files", "annotations"):
                if key in source:
                    source[key] = _found(source[key], ("sources", n, key), made, problems)
        sources.append(source)
    for task, name in (raw.get("vocabularies") or {}).items():
        _found(name, ("vocabularies", task), made, problems)
    for run, own in raw["runs"].items():
        if own.get("model_dirpath"):
            _found(own["model_dirpath"], ("runs", run, "model_dirpath"), made, problems)
    return {**raw, "sources": sources}


def _found(
    names: str | Iterable[str] | None, where: Location, made: Collection[str], problems: list[tuple[Location, str]]
) -> list[str]:
    found = []
    for name in [names] if isinstance(names, str) else names or []:
        hits = sorted(glob.glob(name)) if glob.has_magic(str(name)) else [name] * (name in made or os.path.exists(name))
        if not hits:
            problems.append((where, f"no such file: {name} (put it there, or fill in your own path on this line)"))
        found += hits or [name]
    return found


def _follows_from_another(detail: Any) -> bool:
    # pydantic counts only the items without a mistake of their own.
    return bool(detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"])


def _explain(detail: Any, raw: Mapping[str, Any]) -> tuple[Location, str]:
    where = _own_location(tuple(part for part in detail["loc"] if not str(part).startswith("function-")), raw)
    if detail["type"] == "extra_forbidden":
        group = next((_GROUPS[str(part)] for part in reversed(where[:-1]) if part in _GROUPS), Settings)
        known = [*group.model_fields, *(_SHARED if group is Settings else ())]
        guess = difflib.get_close_matches(str(where[-1]), known, n=1)
        return where, "is not a setting" + (f"; did you mean {guess[0]}?" if guess else "")
    if detail["type"] == "missing":
        return where, "is missing"
    text = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float) else ""
    return where, text[0].lower() + text[1:] + shown


def _own_location(where: Location, raw: Mapping[str, Any]) -> Location:
    """A run's setting that came from a shared group is reported there, once."""
    if len(where) >= 2 and where[0] == "runs":
        own = (raw.get("runs") or {}).get(where[1]) or {}
        if len(where) > 3 and where[2] == "model" and where[3] not in (own.get("model") or {}):
            return ("model", *where[3:])
        if len(where) == 3 and where[2] == "model" and not own.get("model"):
            return ("model",)
        if len(where) > 2 and where[2] != "model" and where[2] not in own:
            return ("training", *where[2:])
    return where


def _message(problems: list[tuple[Location, str]], files: Sequence[str]) -> str:
    lines = []
    for where, text in dict.fromkeys(problems):
        name = ".".join(str(part) for part in where) or "configuration"
        at = locate(where, files)
        lines.append(f"  {name}{f' ({at})' if at else ''}: {text}")
    count = f"{len(lines)} mistake{'s' if len(lines) > 1 else ''}"
    return "\n".join([f"the configuration has {count}:", *lines])


def locate(where: Location, files: Sequence[str]) -> str:
    """`file:line` of a setting, in the last of the files that has it (or has the group it belongs to); else ''."""
    best: tuple[int, str] = (0, "")
    for file in files:
        with open(file) as stream:
            node = yaml.compose(stream, Loader=yaml.SafeLoader)
        depth, line = 0, 0
        for part in where:
            child = _child(node, part)
            if child is None:
                break
            depth, line, node = depth + 1, child[0], child[1]
        if depth >= max(best[0], 1):
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
