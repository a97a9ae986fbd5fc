"""environment.yml, pyproject.toml and requirements.lock name the same packages in agreeing versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

# Where conda has another name for a package of PyPI.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "xxhash": "python-xxhash", "isal": "python-isal"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def lock(root: Path) -> dict[str, str]:
    lines = [line for line in (root / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "pin each package: name==version"
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, list[Requirement]]:
    table = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = {"run": table["dependencies"], "dev": table["optional-dependencies"]["dev"]}
    return {name: [Requirement(text) for text in texts] for name, texts in groups.items()}


@pytest.fixture(scope="module")
def conda(root: Path) -> dict[str, str]:
    dependencies = yaml.safe_load((root / "environment.yml").read_text())["dependencies"]
    return dict(entry.split("=", 1) for entry in dependencies)


def test_the_lock_satisfies_the_project(lock: dict[str, str], project: dict[str, list[Requirement]]) -> None:
    for requirement in project["run"] + project["dev"]:
        version = lock.get(normal(requirement.name))
        assert version, f"{requirement.name} is in pyproject.toml, but not in requirements.lock"
        assert version in requirement.specifier, f"requirements.lock has {requirement.name} {version}: {requirement}"


def test_conda_has_the_packages_of_the_project(project: dict[str, list[Requirement]], conda: dict[str, str]) -> None:
    wanted = {CONDA_NAMES.get(requirement.name, requirement.name) for requirement in project["run"]}
    assert wanted | {"python"} == set(conda)


def test_conda_has_the_versions_of_the_lock(lock: dict[str, str], conda: dict[str, str]) -> None:
    pip_names = {conda_name: name for name, conda_name in CONDA_NAMES.items()}
    for name, version in conda.items():
        if name != "python":
            locked = lock[normal(pip_names.get(name, name))]
            assert locked in SpecifierSet(f"=={version}"), f"environment.yml has {name} {version}, the lock {locked}"


def test_python_is_the_same_everywhere(root: Path, conda: dict[str, str]) -> None:
    table = tomllib.loads((root / "pyproject.toml").read_text())
    assert conda["python"] in SpecifierSet(table["project"]["requires-python"])
    assert table["tool"]["mypy"]["python_version"] == conda["python"]
    assert table["tool"]["ruff"]["target-version"] == f"py{conda['python'].replace('.', '')}"


def test_the_lock_names_no_build_of_torch(lock: dict[str, str]) -> None:
    assert "+" not in lock["torch"]
