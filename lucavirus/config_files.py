"""Files that settings name: patterns expanded, what is missing told."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from lucavirus.config_lines import Location, own_location


def expand_files(
    raw: dict[str, Any], written: Mapping[str, Any], made: Collection[str], problems: list[tuple[Location, str]]
) -> dict[str, Any]:
    """The configuration with its files found: those of sources, label files, weights to start from.

    `written` is the configuration before its runs were completed, `made` the files that a rule makes; what is missing
    is added to `problems`.
    """
    known = {os.path.realpath(path): path for path in made}
    sources = []
    if not isinstance(raw.get("sources"), list):
        return raw
    for n, source in enumerate(raw["sources"]):
        if isinstance(source, Mapping):
            source = dict(source)
            for key in ("files", "annotations"):
                if key in source:
                    source[key] = _found(source[key], ("sources", n, key), known, problems)
                    # A file has one name, whatever the ways to write its path.
                    names = source[key] if isinstance(source[key], list) else []
                    known |= {
                        os.path.realpath(name): name for name in names if isinstance(name, str) and os.path.exists(name)
                    }
        sources.append(source)
    raw = {**raw, "sources": sources}
    if isinstance(vocabularies := raw.get("vocabularies"), Mapping):
        found = {task: _found_one(name, ("vocabularies", task), known, problems) for task, name in vocabularies.items()}
        raw["vocabularies"] = found
    for where, group in (((), raw), *((("runs", name), run) for name, run in raw["runs"].items())):
        if group.get("model_dirpath"):
            place = own_location((*where, "model_dirpath"), written)
            group["model_dirpath"] = _found_one(group["model_dirpath"], place, known, problems)
    return raw


def _found(names: Any, where: Location, made: Mapping[str, str], problems: list[tuple[Location, str]]) -> Any:
    """File names with patterns expanded; missing ones are problems. What is no name is left for pydantic to refuse."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return names
    found = []
    for name in (_plain(name, made) for name in names):
        hits = [name] if _is_there(name, made) else sorted(glob.glob(name)) or [name]
        found += [_checked(_plain(hit, made), where, made, problems) for hit in hits]
    folders = filter(os.path.isdir, found)
    problems += [(where, f"is a folder: {name} (name its files: {os.path.join(name, '*')})") for name in folders]
    times = Counter(map(os.path.realpath, found))
    twice = {file: name for name in found if times[file := os.path.realpath(name)] > 1}
    problems += [(where, f"names a file twice: {name}") for name in twice.values()]
    return found


def _found_one(name: Any, where: Location, made: Mapping[str, str], problems: list[tuple[Location, str]]) -> Any:
    """The same for a setting that is one file or folder, and no pattern."""
    if not isinstance(name, str):
        return name
    return _checked(_plain(name, made), where, made, problems)


def _checked(name: str, where: Location, made: Mapping[str, str], problems: list[tuple[Location, str]]) -> str:
    return _allowed(name, where, problems) if _is_there(name, made) else _missing(name, where, problems)


def _is_there(name: str, made: Mapping[str, str]) -> bool:
    return os.path.exists(name) or os.path.realpath(name) in made


def _plain(name: str, made: Mapping[str, str]) -> str:
    """A path as Snakemake takes it: the home folder by its name, no empty parts, what is made as the rules name it.

    `made` has what is made by its real path.
    """
    name = os.path.expanduser(name)
    return made.get(os.path.realpath(name)) or (os.path.normpath(name) if "//" in name else name)


def _allowed(name: str, where: Location, problems: list[tuple[Location, str]]) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        problems.append((where, f"the name is not UTF-8: {name!r} (rename it, or give a link)"))
    if any(letter in name for letter in "{}<>"):
        problems.append((where, f"Snakemake takes {{ }} < > in a path for its own: {name} (rename it, or give a link)"))
    return name


def _missing(name: str, where: Location, problems: list[tuple[Location, str]]) -> str:
    problems.append((where, f"no such file: {name} (put it there, or fill in your own path on this line)"))
    return name
