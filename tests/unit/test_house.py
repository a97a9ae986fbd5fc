"""Rules of the house that no other test sees: what may import what, and that README names every room."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "lucavirus").glob("*.py"))


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_the_package_never_imports_snakemake_or_pickle(path: Path) -> None:
    assert not _imports(path) & {"snakemake", "pickle"}


@pytest.mark.parametrize("module", ["config_load", "launch", "demo", "vocabularies", "report"])
def test_what_the_workflow_starts_often_does_not_import_torch(module: str) -> None:
    code = f"import lucavirus.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_readme_names_every_room() -> None:
    tree = (ROOT / "README.md").read_text().split("## The house")[1]
    assert [path.name for path in MODULES if path.name not in tree and path.name != "__init__.py"] == []
    assert [path.name for path in (ROOT / "rules").iterdir() if path.name not in tree] == []


def test_scripts_are_thin() -> None:
    for path in (ROOT / "workflow_scripts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 45, path.name
