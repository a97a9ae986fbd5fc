"""What the pages show is run, or compared with the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from safetensors.torch import save_file

from lucavirus.model import Architecture, LucaVirus
from lucavirus.sequence_labels import check_labels, parse_labels
from lucavirus.tasks import TASKS

LABELS = {"token": "needs none", "span": "spans", "sequence": "whole sequences, one class each"}


def test_the_way_to_use_a_model_works(root: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs/formats.md").read_text(), re.DOTALL)
    architecture = Architecture(32, 1, 4, 20, {"prot_taxonomy": (8, 5)})
    folder = tmp_path / "results/demo/runs/full/model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(architecture.to_json()))
    weights = {name: tensor.clone() for name, tensor in LucaVirus(architecture).state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.stdout == "torch.Size([14, 32]) torch.Size([1, 5])\n", done.stderr


def test_the_table_of_tasks_is_that_of_the_code(root: Path) -> None:
    section = (root / "config/README.md").read_text().split("## Tasks and their labels\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+?) \|", section, re.MULTILINE)
    several = {"prot_keyword": "whole sequences, any number of classes"}
    assert rows == [(task.name, task.molecule, several.get(task.name, LABELS[task.level])) for task in TASKS.values()]


def test_the_example_of_a_csv_label_is_one(root: Path) -> None:
    (label,) = re.findall(r'^protein_1,prot,.*?,"(.*)"$', (root / "config/README.md").read_text(), re.MULTILINE)
    labels = parse_labels(label.replace('""', '"'), "prot")
    assert labels == {"prot_domain": [(26, 122, 2191)], "prot_taxonomy": [(2,)], "prot_keyword": [(231,), (330,)]}
    check_labels(labels, 123, {"prot_domain": 3460, "prot_taxonomy": 55, "prot_keyword": 603})
