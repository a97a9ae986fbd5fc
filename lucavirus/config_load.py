"""From the merged configuration to Settings: runs completed, files found, every mistake told at once."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lucavirus.config import Model, Run, Settings, StopAfter
from lucavirus.config_data import Source, Split, Tokenize
from lucavirus.config_files import expand_files
from lucavirus.config_lines import Location, locate, own_location, repeated, speaks_of, was_typed
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
_YAML_WORDS = {
    **dict.fromkeys(("null", "none", "~"), None),
    **dict.fromkeys(("false", "no", "off"), False),
    **dict.fromkeys(("true", "yes", "on"), True),
}
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
    typed = typed or {}
    raw = _reread(raw, typed)
    problems = [found for file in files for found in repeated(file)]
    complete = _complete_runs(raw, problems)
    # Another run may begin with a model that this workflow trains: the best one, or the last.
    models = [f"results/{raw.get('project')}/runs/{run}/model" for run in complete["runs"]]
    trained = [*models, *(f"{model}/last" for model in models)]
    complete = expand_files(complete, raw, [*made, *trained], problems)
    for where, text in (_explain(detail, raw) for detail in _mistakes(complete)):
        problems += [(where, line) for line in text.splitlines()]
    if problems:
        raise UserError(_message(_once(problems, raw, complete["runs"]), files, typed))
    return Settings.model_validate(complete)


def _reread(raw: Any, typed: Any) -> Any:
    """The configuration with YAML's words in what `--config` gave: Snakemake leaves them text within a group."""
    if isinstance(raw, Mapping) and isinstance(typed, Mapping):
        return {key: _reread(value, typed[key]) if key in typed else value for key, value in raw.items()}
    return _YAML_WORDS.get(raw.lower(), raw) if isinstance(raw, str) else raw


def read_settings(path: Path) -> Settings:
    """Read the complete settings that the workflow wrote for its stages (JSON)."""
    try:
        return Settings.model_validate(json.loads(path.read_text("utf-8")))
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
    return around and speaks_of(detail["msg"], where[-1:])


def _complete_runs(raw: Mapping[str, Any], problems: list[tuple[Location, str]]) -> dict[str, Any]:
    training, model = (_group(raw, key, problems) for key in ("training", "model"))
    for key in _SHARED:
        if key in raw and raw[key] is None:  # it has replaced the group of config.yaml, whose values nobody took back
            problems.append(((key,), "is empty: put settings below it, or remove the line"))
    if "model" in training:
        problems.append((("training", "model"), "is not a setting here; `model` stands by itself"))
    runs = {}
    for name, own in _group(raw, "runs", problems).items():
        if own is False:
            continue
        if not isinstance(own, Mapping | None):
            problems.append((("runs", name), _GROUP))
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


def _follows_from_another(detail: Any) -> bool:
    # pydantic counts only the items without a mistake of their own.
    return bool(detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"])


def _explain(detail: Any, raw: Mapping[str, Any]) -> tuple[Location, str]:
    parts = (part for part in detail["loc"] if part != "[key]" and not str(part).startswith("function-"))
    where = own_location(tuple(parts), raw)
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
    if name in _SHARED:
        return f" here; `{name}` stands by itself"
    homes = ("training", "model", "split", "tokenize")
    return "".join(f" here; it belongs under `{home}`" for home in homes if name in _GROUPS[home].model_fields)


def _once(
    problems: list[tuple[Location, str]], raw: Mapping[str, Any], runs: Collection[str]
) -> list[tuple[Location, str]]:
    """What is wrong in several runs alike is wrong in what they share, unless one gives a part of it itself."""
    having: dict[str, list[str]] = {}
    problems = list(dict.fromkeys(problems))  # pydantic was asked more than once
    for where, text in problems:
        if where[:1] == ("runs",) and len(where) == 2:
            having.setdefault(text, []).append(str(where[1]))
    shared = {
        text: names for text, names in having.items()
        if len(names) > 1 and not any(_gives_a_part(raw["runs"][name], text) for name in names)
    }  # fmt: skip
    told = {text: f"{text} (runs {', '.join(names)})" for text, names in shared.items() if len(names) < len(runs)}
    return [
        (("training",), told.get(text, text)) if text in shared and where[:1] == ("runs",) else (where, text)
        for where, text in problems
    ]


def _gives_a_part(own: Any, text: str) -> bool:
    """True where a run's own lines have to do with a mistake."""
    return own is not None and (not isinstance(own, Mapping) or speaks_of(text, own))


def _message(problems: list[tuple[Location, str]], files: Sequence[str], typed: Mapping[str, Any]) -> str:
    lines = []
    for where, text in dict.fromkeys(problems):
        name = ".".join(str(part) for part in where) or "configuration"
        at = "--config" if where and was_typed(typed, where, text) else locate(where, files)
        lines.append(f"  {name}{f' ({at})' if at else ''}: {text}")
    count = f"{len(lines)} mistake{'s' if len(lines) > 1 else ''}"
    return "\n".join([f"the configuration has {count}:", *lines])
