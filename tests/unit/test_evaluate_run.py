"""A published model is scored by the classes that it was trained on, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from lucavirus.errors import UserError
from lucavirus.evaluate_run import _evaluate
from lucavirus.model import LucaVirus
from lucavirus.tasks import SUPERVISED
from tests.made_up import ARCHITECTURE, CLASSES, RUN
from tests.tiny import ALONE


def test_renamed_classes_are_refused_though_their_number_is_the_same(tmp_path: Path) -> None:
    names = {task: [f"{task} {n}" for n in range(CLASSES.get(task, 0))] for task in SUPERVISED}
    labels, vocabularies = tmp_path / "labels", tmp_path / "vocabularies"
    for folder, order in ((labels, 1), (vocabularies, -1)):
        folder.mkdir()
        for task, classes in names.items():
            chosen = classes[::order] if task == "gene_type" else classes
            (folder / f"{task}.txt").write_text("".join(f"{name}\n" for name in chosen))
    with pytest.raises(UserError, match="the label vocabularies of gene_type have changed since the model was trained"):
        _evaluate(LucaVirus(ARCHITECTURE), labels, RUN, tmp_path, "dev", ALONE)
