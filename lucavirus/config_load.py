"""From the merged configuration to Settings: runs completed, files found, every mistake told at once."""

from __future__ import annotations

import copy
import glob
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lucavirus.config import Model, Run, Settings, StopAfter
from lucavirus.config_data import Source, Split, Tokenize
from lucavirus.config_lines import Location, locate, repeated
from lucavirus.errors import UserError, close_to

_GROUPS: dict[str, type[BaseModel]] = {
    "sources": Source, "split": Split, "tokenize": Tokenize, "model": Model,
    "training": Run, "runs": Run, "stop_after": StopAfter,
}  # fmt: skip
_GROUP = "must be a group of settings (`name: value` lines)"
# Our words where pydantic speaks of Python's types.
_WORDS = {
    "string_pattern_mismatch": "must begin with a letter and have letters, digits and _ only",
    "tuple_type": "must be a list, as [a, b]", "too_short": "must have at least one item",
    "dict_type": _GROUP, "model_type": _GROUP,
}  # fmt: skip
# Keys of the file that are merged into each run before validation.
_SHARED = ("model", "training")


def load_settings(
    raw: Mapping[str, Any],
    files: Sequence[str] = (),
    made: Collection[str] = (),
    typed: Mapping[str, Any] | None = None,
) -> Settings:
    """Validate a merged configuration and check that its input files exist.

    `files` are the YAML files it came from (for line numbers), `typed` what came from `--config`, `made` the inputs
    that a rule makes. Raises one UserError that lists every mistake.
    """
    problems = [found for file in files for found in repeated(file)]
    complete = _expand_files(_complete_runs(raw, problems), raw, made, problems)
    for where, text in (_explain(detail, raw) for detail in _mistakes(complete)):
        problems += [(where, line) for line in text.splitlines()]
    if problems:
        raise UserError(_message(_once(problems, complete["runs"]), files, typed or {}))
    return Settings.model_validate(complete)


def read_settings(path: Path) -> Settings:
    """Read the complete settings that the workflow wrote for its stages (JSON)."""
    try:
        return Settings.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read ({error})",
            where=str(path),
            hint="it must be the complete settings, results/{project}/settings.json: Snakemake writes it at each start "
            "with something to do, or at `snakemake -f show_settings`",
        ) from error


def chosen_run(settings: Settings, name: str) -> Run:
    """The run of a name. Raises UserError where there is none."""
    if name not in settings.runs:
        raise UserError(f"there is no run {name}", hint=f"the runs are {', '.join(settings.runs)}")
    return settings.runs[name]


def chosen_source(settings: Settings, name: str) -> Source:
    """The source of a name. Raises UserError where there is none."""
    for source in settings.sources:
        if source.name == name:
            return source
    known = ", ".join(source.name for source in settings.sources)
    raise UserError(f"there is no source {name}", hint=f"the sources are {known}")


def _mistakes(complete: dict[str, Any]) -> list[Any]:
    """All of pydantic's findings, also those it makes only when settings beside them are right.

    It looks at what goes together only when each setting is right by itself: so wrong ones are taken out, and it is
    asked again. What it then says of one that was taken out is about a default that nobody chose.
    """
    found: list[Any] = []
    absent: list[Location] = []
    complete = copy.deepcopy(complete)
    while True:
        try:
            Settings.model_validate(complete)
            return found
        except ValidationError as error:
            details = [d for d in error.errors() if not _follows_from_another(d)]
            told = [d for d in details if not any(_is_about(d, where) for where in absent)]
            found += [d for d in told if d["type"] != "missing" or d["loc"] not in [f["loc"] for f in found]]
            # A run's own groups (its model) have defaults too; a whole run or source cannot be spared.
            wrong = [d["loc"] for d in details if d["type"] not in ("value_error", "missing") or len(d["loc"]) == 3]
            absent += wrong
            if not sum(_take_out(complete, where) for where in wrong):
                return found


def _take_out(group: Any, where: Location) -> bool:
    """Remove a setting from nested groups; False where it is not there (any more)."""
    for part in where[:-1]:
        try:
            group = group[part]
        except (KeyError, IndexError, TypeError):
            return False
    if not isinstance(group, dict) or where[-1] not in group:
        return False
    del group[where[-1]]
    return True


def _is_about(detail: Any, where: Location) -> bool:
    """True for settings that do not go together, of which one is (or lies in) that of a location."""
    around = detail["type"] == "value_error" and where[: len(detail["loc"])] == detail["loc"]
    return around and re.search(rf"\b{re.escape(str(where[-1]))}\b", detail["msg"]) is not None


def _complete_runs(raw: Mapping[str, Any], problems: list[tuple[Location, str]]) -> dict[str, Any]:
    training, model = (_group(raw, key, problems) for key in ("training", "model"))
    for key in _SHARED:
        if key in raw and raw[key] is None:  # it has replaced the group of config.yaml, whose values nobody took back
            problems.append(((key,), "is empty: put settings below it, or remove the line"))
    runs = {}
    for name, own in _group(raw, "runs", problems).items():
        if own is False:
            continue
        if not isinstance(own, Mapping | None):
            problems.append((("runs", name), "must be a group of settings (`name: value` lines)"))
            continue
        own = {key: value for key, value in (own or {}).items() if key != "model" or value is not None}
        run = _merged({**training, "model": model}, own)
        if run.get("stop_after") is None:
            run["stop_after"] = {}
        runs[name] = run
    return {**{key: value for key, value in raw.items() if key not in _SHARED}, "runs": runs}


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of both, one's own last; groups in them too."""
    return dict(shared) | {
        key: _merged(shared[key], value) if _is_group(value) and _is_group(shared.get(key)) else value
        for key, value in own.items()
    }


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping)


def _group(raw: Mapping[str, Any], key: str, problems: list[tuple[Location, str]]) -> dict[str, Any]:
    value = raw.get(key)
    if isinstance(value, Mapping | None):
        return dict(value or {})
    problems.append(((key,), _GROUP))
    return {}


def _expand_files(
    raw: dict[str, Any], written: Mapping[str, Any], made: Collection[str], problems: list[tuple[Location, str]]
) -> dict[str, Any]:
    sources = []
    if not isinstance(raw.get("sources"), list):
        return raw
    for n, source in enumerate(raw["sources"]):
        if isinstance(source, Mapping):
            source = dict(source)
            for key in ("files", "annotations"):
                if key in source:
                    source[key] = _found(source[key], ("sources", n, key), made, problems)
        sources.append(source)
    raw = {**raw, "sources": sources}
    if isinstance(vocabularies := raw.get("vocabularies"), Mapping):
        found = {task: _found_one(name, ("vocabularies", task), made, problems) for task, name in vocabularies.items()}
        raw["vocabularies"] = found
    for where, group in (((), raw), *((("runs", name), run) for name, run in raw["runs"].items())):
        if group.get("model_dirpath"):
            place = _own_location((*where, "model_dirpath"), written)
            group["model_dirpath"] = _found_one(group["model_dirpath"], place, made, problems)
    return raw


def _found(names: Any, where: Location, made: Collection[str], problems: list[tuple[Location, str]]) -> Any:
    """File names with patterns expanded; missing ones are problems. What is no name is left for pydantic to refuse."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return names
    found = []
    for name in (_plain(name, made) for name in names):
        hits = [name] if name in made or os.path.exists(name) else sorted(glob.glob(name))
        found += [_allowed(hit, where, problems) for hit in hits] or [_missing(name, where, problems)]
    return found


def _found_one(name: Any, where: Location, made: Collection[str], problems: list[tuple[Location, str]]) -> Any:
    """The same for a setting that is one file or folder, and no pattern."""
    if not isinstance(name, str):
        return name
    name = _plain(name, made)
    there = name in made or os.path.exists(name)
    return _allowed(name, where, problems) if there else _missing(name, where, problems)


def _plain(name: str, made: Collection[str]) -> str:
    """A path as Snakemake takes it: the home folder by its name, no empty parts, what is made as the rules name it."""
    name = os.path.expanduser(name)
    if (as_made := os.path.relpath(name)) in made:
        return as_made
    return os.path.normpath(name) if "//" in name else name


def _allowed(name: str, where: Location, problems: list[tuple[Location, str]]) -> str:
    if any(letter in name for letter in "{}<>"):
        problems.append((where, f"Snakemake takes {{ }} < > in a path for its own: {name} (rename it, or give a link)"))
    return name


def _missing(name: str, where: Location, problems: list[tuple[Location, str]]) -> str:
    problems.append((where, f"no such file: {name} (put it there, or fill in your own path on this line)"))
    return name


def _follows_from_another(detail: Any) -> bool:
    # pydantic counts only the items without a mistake of their own.
    return bool(detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"])


def _explain(detail: Any, raw: Mapping[str, Any]) -> tuple[Location, str]:
    parts = (part for part in detail["loc"] if part != "[key]" and not str(part).startswith("function-"))
    where = _own_location(tuple(parts), raw)
    if detail["type"] == "extra_forbidden":
        group = next((_GROUPS[str(part)] for part in reversed(where[:-1]) if part in _GROUPS), Settings)
        known = [*group.model_fields, *(_SHARED if group is Settings else ())]
        return where, f"is not a setting{_elsewhere(str(where[-1])) or close_to(str(where[-1]), known)}"
    if detail["type"] == "missing":
        return where, "is missing"
    text = _WORDS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float) else ""
    if detail["type"] == "literal_error":
        shown += close_to(str(given), re.findall("'(.*?)'", detail["ctx"]["expected"]))
    return where, text[0].lower() + text[1:] + shown


def _elsewhere(name: str) -> str:
    """Where a setting of this name belongs, if there is one."""
    homes = ("training", "model", "split", "tokenize")
    return "".join(f" here; it belongs under `{home}`" for home in homes if name in _GROUPS[home].model_fields)


def _own_location(where: Location, raw: Mapping[str, Any]) -> Location:
    """A run's setting that came from a shared group is reported there, once."""
    if len(where) >= 2 and where[0] == "runs":
        own = (raw.get("runs") or {}).get(where[1]) or {}
        if not isinstance(own, Mapping):
            return where[:2]
        if where[2:] == ("model",) and not own.get("model") or not _gives(own, where[2:]):
            return where[2:] if where[2] == "model" else ("training", *where[2:])
    return where


def _gives(own: Any, where: Location) -> bool:
    """True where a group gives a setting itself, or the value that it is in."""
    for part in where:
        if not isinstance(own, Mapping):
            return own is not None
        if part not in own:
            return False
        own = own[part]
    return True


def _once(problems: list[tuple[Location, str]], runs: Collection[str]) -> list[tuple[Location, str]]:
    """What is wrong in each run alike is wrong in what they share."""
    whole = {name: {text for where, text in problems if where == ("runs", name)} for name in runs}
    shared = set.intersection(*whole.values()) if len(whole) > 1 else set()
    return [(("training",) if text in shared and where[:1] == ("runs",) else where, text) for where, text in problems]


def _message(problems: list[tuple[Location, str]], files: Sequence[str], typed: Mapping[str, Any]) -> str:
    lines = []
    for where, text in dict.fromkeys(problems):
        name = ".".join(str(part) for part in where) or "configuration"
        at = "--config" if where and _gives(typed, where) else locate(where, files)
        lines.append(f"  {name}{f' ({at})' if at else ''}: {text}")
    count = f"{len(lines)} mistake{'s' if len(lines) > 1 else ''}"
    return "\n".join([f"the configuration has {count}:", *lines])
