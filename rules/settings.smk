# The settings of this start of Snakemake: read, checked, and written for the stages. No rule is here.

import hashlib
import os
import sys
from pathlib import Path

# The package beside the Snakefile is used as it is, without installation.
sys.path.insert(0, workflow.basedir)

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import ExecMode

from lucavirus import demo
from lucavirus.config import Settings
from lucavirus.config_load import load_settings, read_settings
from lucavirus.errors import UserError
from lucavirus.files import replace_text

DEMO_FOLDER = "results/demo/input"
DEMO_FILES = [f"{DEMO_FOLDER}/{name}" for name in demo.FILES]


class ConfigurationError(WorkflowError):
    """A mistake of the user, which Snakemake shows without the lines of our code that found it."""

    __traceback__ = None


def unwritable(error: OSError) -> ConfigurationError:
    """The message for a folder in which nothing can be written."""
    return ConfigurationError(
        f"{error.filename}: cannot be written ({error.strerror})\n  What to do: work in a clone of your own, on a disk that "
        "is mounted for writing and not full"
    )


def settings() -> Settings:
    """The validated settings; every mistake in them ends the workflow with one message.

    A job on another machine has those that it was submitted with, whatever its configuration files say by then.
    """
    submitted = os.environ.get("LUCAVIRUS_SETTINGS")
    if submitted and workflow.exec_mode != ExecMode.DEFAULT:
        return read_settings(Path(submitted))
    if not os.path.samefile(workflow.basedir, os.curdir):
        raise ConfigurationError(f"type the command in {workflow.basedir}, or add `--directory {workflow.basedir}`")
    base = os.path.abspath("config/config.yaml")
    # Snakemake lists the overlays before the file that they overlay.
    files = sorted((os.path.relpath(file) for file in workflow.configfiles), key=lambda f: os.path.abspath(f) != base)
    try:
        return load_settings(config, files=files, made=DEMO_FILES, typed=workflow.config_settings.config)
    except UserError as error:
        raise ConfigurationError(str(error)) from None


SETTINGS = settings()


def settings_digest(wildcards=None) -> str:
    """A short name of all settings together."""
    return hashlib.sha256(SETTINGS.model_dump_json().encode()).hexdigest()[:16]


def settings_file(wildcards=None, resources=None) -> str:
    """The settings of this start of Snakemake: another start, with other settings, has another file.

    With `resources` among its arguments Snakemake does not record it: what a change means is up to `identity`.
    """
    return f"results/{SETTINGS.project}/settings/{settings_digest()}.json"


def write_settings() -> None:
    """Write the settings for the stages, whole or not at all; and once more under a name that people know.

    Not a rule: Snakemake does not look at what has changed below a job that runs, so that a change of a setting would
    rewrite the file in one run of Snakemake and start the stages that it concerns only in the next.
    """
    for file in map(Path, (settings_file(), f"results/{SETTINGS.project}/settings.json")):
        try:
            replace_text(file, SETTINGS.model_dump_json(indent=2))
        except OSError as error:
            raise unwritable(error) from None
    os.environ.update(LUCAVIRUS_SETTINGS=settings_file())
