"""What is generated from the settings' models: config/schema.json and the table in config/README.md.

`python -m lucavirus.config_docs` writes both; a test compares them, and the comments of config/config.yaml too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lucavirus.config import Model, Run, Settings, StopAfter
from lucavirus.config_data import Source, Split, Tokenize

FOLDER = Path(__file__).resolve().parent.parent / "config"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"

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
    default: str

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
    """The settings as a Markdown table."""
    rows = [f"| `{setting.name}` | {setting.default} | {setting.description} |" for setting in settings()]
    return "\n".join(["| setting | default | meaning and unit |", "|---|---|---|", *rows, ""])


def schema() -> str:
    """JSON schema of the complete settings, with the groups that the runs share."""
    document = Settings.model_json_schema()
    document["properties"] |= {"model": {"$ref": "#/$defs/Model"}, "training": {"$ref": "#/$defs/Run"}}
    return json.dumps(document, indent=2) + "\n"


def readme(text: str) -> str:
    """The text of config/README.md with its table brought up to date."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}"


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "(needed)"
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return json.dumps(value)


def main() -> None:
    """Write both files."""
    (FOLDER / "schema.json").write_text(schema())
    page = FOLDER / "README.md"
    page.write_text(readme(page.read_text()))


if __name__ == "__main__":
    main()
