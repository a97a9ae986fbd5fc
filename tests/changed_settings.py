"""The shipped settings, and what is wrong with changed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lucavirus.config_load import load_settings
from lucavirus.demo import FILES
from lucavirus.errors import UserError

MADE = [f"results/demo/input/{name}" for name in FILES]


def merged(base: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """As Snakemake merges configuration files: groups key by key, everything else replaced."""
    for key, value in overlay.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        base[key] = merged(base[key], value) if both else value
    return base


def mistakes(raw: dict[str, Any], *files: str) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(raw, files=files, made=MADE)
    return str(caught.value)


def one_source(**own: Any) -> dict[str, Any]:
    return {"sources": [{"name": "a", "files": MADE[:1], "kind": "gene", **own}]}
