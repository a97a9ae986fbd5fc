"""What the pages say of the settings, and what is generated from the models."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

from lucavirus import config_docs
from lucavirus.config import EXTENSIBLE, OPERATIONAL, Run

REPAIR = "run: make docs"


def test_what_a_change_reruns_is_told_as_it_is(root: Path) -> None:
    section = (root / "config/README.md").read_text().split("## What a change reruns\n")[1].split("\n## ")[0]
    told = {
        cells[2].strip(): cells[1].split(";")[0]
        for cells in (line.split("|") for line in section.splitlines() if line[:1] == "|")
    }

    def named(outcome: str) -> set[str]:
        names = re.findall(r"`([a-z_*]+)`", next(names for text, names in told.items() if text.startswith(outcome)))
        found = {name: fnmatch.filter(Run.model_fields, name) for name in names}
        assert all(found.values())
        return {field for fields in found.values() for field in fields}

    assert named("nothing") == OPERATIONAL
    assert named("the training goes on") == EXTENSIBLE
    assert set(Run().meaning()) == set(Run.model_fields) - OPERATIONAL - EXTENSIBLE | {"order of samples"}


def comments(text: str) -> dict[tuple[str, ...], str]:
    """The comment above each setting of a YAML file, `#name:` included, by its place; of a list, the first item."""
    found: dict[tuple[str, ...], str] = {}
    place: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        setting = re.match(r"^(\s*)(- )?#?([a-z_0-9]+):(\s|$)", line)
        if setting:
            indent = len(setting[1]) + len(setting[2] or "")
            place = [(depth, name) for depth, name in place if depth < indent] + [(indent, setting[3])]
            found.setdefault(tuple(name for _, name in place), " ".join(above))
        comment = re.match(r"^\s*# (.*)", line)
        above = [*above, comment[1]] if comment else []
    return found


def test_every_setting_is_in_the_file_with_its_description(root: Path) -> None:
    found = comments((root / "config/config.yaml").read_text())
    for setting in config_docs.settings():
        assert setting.path in found, f"config/config.yaml lacks {setting.name}: add it, with its comment above it"
        assert found[setting.path] == setting.description, (
            f"the comment of {setting.name} in config/config.yaml and its description in lucavirus/config.py differ: "
            "change one to equal the other"
        )


def test_a_description_is_written_for_every_setting() -> None:
    settings = list(config_docs.settings())
    assert all(setting.description for setting in settings)
    assert len({setting.path for setting in settings}) == len(settings) > 50


def test_the_schema_is_up_to_date(root: Path) -> None:
    assert (root / "config/schema.json").read_text() == config_docs.schema(), REPAIR


def test_the_table_is_up_to_date(root: Path) -> None:
    text = (root / "config/README.md").read_text()
    assert text == config_docs.readme(text), REPAIR


def test_make_docs_writes_both(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.yaml", "openvirus.yaml"):
        (tmp_path / name).write_text((root / "config" / name).read_text())
    (tmp_path / "README.md").write_text(f"above\n{config_docs.BEGIN}old\n{config_docs.END}below\n")
    monkeypatch.setattr(config_docs, "FOLDER", tmp_path)
    config_docs.main()
    written = (tmp_path / "README.md").read_text()
    assert written == f"above\n{config_docs.BEGIN}{config_docs.table()}{config_docs.END}below\n"
    assert (tmp_path / "schema.json").read_text() == config_docs.schema()
