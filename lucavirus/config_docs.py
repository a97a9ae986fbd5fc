"""What is generated from the settings' models: config/schema.json and the table in config/README.md.

`python -m lucavirus.config_docs` writes both; a test compares them, and the comments of config/config.yaml too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lucavirus.config import Model, Run, Settings, StopAfter
from lucavirus.config_data import Source, Split, Tokenize

FOLDER = Path(__file__).resolve().parent.parent / "config"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"

# The file that is always read, and the overlay with the full size.
_SHIPPED, _FULL_SIZE = "config.yaml", "openvirus.yaml"
# Values that are looked at in their file.
_LONG = ("sources", "runs", "head_size", "vocabularies")

# Groups as they appear in the file; model and training are shared by the runs.
_GROUPS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Settings,
    ("sources",): Source,
    ("tokenize",): Tokenize,
    ("split",): Split,
    ("model",): Model,
    ("training",): Run,
    ("training", "stop_after"): StopAfter,
}


@dataclass(frozen=True)
class Setting:
    """One setting as a user meets it in config/config.yaml."""

    path: tuple[str, ...]
    description: str
    default: Any  # the value without any file

    @property
    def name(self) -> str:
        """The path with dots."""
        return ".".join(self.path)


def settings() -> Iterator[Setting]:
    """All settings, in the order of the models; `model` is told once, at the top, where the file has it."""
    for group, model in _GROUPS.items():
        for name, field in model.model_fields.items():
            path = ("model",) if (model, name) == (Run, "model") else (*group, name)
            yield Setting(path, field.description or "", _default(field))


def table() -> str:
    """The settings as a Markdown table, each with its values in the two files."""
    shipped, full_size = (yaml.safe_load((FOLDER / name).read_text()) for name in (_SHIPPED, _FULL_SIZE))
    rows = []
    for setting in settings():
        value = _value(shipped, setting.path, setting.default)
        other = _value(full_size, setting.path, value)
        cells = _cell(setting, value), _cell(setting, other) if other != value else "", setting.description
        rows.append(f"| `{setting.name}` | {' | '.join(cells)} |")
    head = f"| setting | {_SHIPPED} | {_FULL_SIZE}, where it differs | meaning and unit |"
    return "\n".join([head, "|---|---|---|---|", *rows, ""])


def schema() -> str:
    """JSON schema of the complete settings, with the groups that the runs share."""
    document = Settings.model_json_schema()
    document["properties"] |= {"model": {"$ref": "#/$defs/Model"}, "training": {"$ref": "#/$defs/Run"}}
    for pattern, run in document["properties"]["runs"]["patternProperties"].items():
        document["properties"]["runs"]["patternProperties"][pattern] = {"anyOf": [run, {"const": False}]}
    return json.dumps(document, indent=2) + "\n"


def readme(text: str) -> str:
    """The text of config/README.md with its table brought up to date."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}"


def _default(field: Any) -> Any:
    value = field.get_default(call_default_factory=True)
    return "(needed)" if value is PydanticUndefined else value


def _value(raw: Any, path: tuple[str, ...], otherwise: Any) -> Any:
    """The value of a setting in a configuration; what sources say differs from one to the other."""
    for part in path:
        if not isinstance(raw, Mapping) or part not in raw:
            return otherwise
        raw = raw[part]
    return raw


def _cell(setting: Setting, value: Any) -> str:
    if isinstance(setting.default, BaseModel):  # a group: its settings have rows of their own
        return ""
    if setting.path[-1] in _LONG and value:
        return "(see there)"
    if isinstance(value, tuple | list):
        return f"[{', '.join(value)}]"
    return value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    """Write both files."""
    (FOLDER / "schema.json").write_text(schema())
    page = FOLDER / "README.md"
    page.write_text(readme(page.read_text()))


if __name__ == "__main__":
    main()
