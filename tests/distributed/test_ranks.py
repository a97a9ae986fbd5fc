"""The result never depends on how many processes shared the work."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_project(tmp_path_factory.mktemp("ranks"))


def _run(script: str, *arguments: object, ranks: int) -> None:
    done = subprocess.run(
        tiny.stage(script, *arguments, ranks=ranks), env=tiny.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_shards_and_splits_have_the_same_bytes(settings: Path) -> None:
    data = settings.parent
    content = json.loads(settings.read_text())
    # Three input files, too large to share one, are three units for two ranks.
    content["tokenize"] = {"unit_mb": 1}
    fasta = Path(content["sources"][0]["files"][0])
    records = fasta.read_text().split(">")[1:]
    parts = [fasta.with_name(f"part{n}.fasta") for n in range(3)]
    for n, part in enumerate(parts):
        part.write_text("".join(f">{record}" for record in records[n::3]))
    content["sources"][0]["files"] = [str(part) for part in parts]
    own = data / "three.json"
    own.write_text(json.dumps(content))
    for ranks in (1, 2):
        shards, datasets = data / f"shards{ranks}", data / f"datasets{ranks}"
        for source in ("g", "p"):
            _run("tokenize_source.py", "--settings", own, "--source", source, "--vocabularies", data / "vocabularies",
                 "--out", shards / source, ranks=ranks)  # fmt: skip
        _run("split.py", "--settings", own, "--shards", shards, "--out", datasets, ranks=ranks)
    for kind in ("shards", "datasets"):
        one, two = (
            {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
            for folder in (data / f"{kind}1", data / f"{kind}2")
        )
        assert len(one) >= 6 and one == two


def test_an_id_that_two_ranks_have_read_is_refused(settings: Path) -> None:
    content = json.loads(settings.read_text())
    (file,) = content["sources"][1]["files"]
    copy = Path(file).with_name("copy.fasta")
    copy.write_text(Path(file).read_text())
    content["sources"][1]["files"] = [file, str(copy)]
    content["tokenize"] = {"unit_mb": 1}  # two units
    own = settings.with_name("twice.json")
    own.write_text(json.dumps(content))
    where = ["--vocabularies", settings.parent / "vocabularies", "--out", settings.parent / "twice"]
    words = tiny.stage("tokenize_source.py", "--settings", own, "--source", "p", *where, ranks=2)
    done = subprocess.run(words, env=tiny.environment(), capture_output=True, text=True)
    assert done.returncode != 0 and f"was used before, at {file}:1" in done.stderr
    assert not list((settings.parent / "twice").glob("*.h5"))


def test_training_and_evaluation_agree(settings: Path) -> None:
    tiny.train(settings, "one", ranks=1)
    tiny.train(settings, "two", ranks=2)
    one, two = (tiny.history(settings, name) for name in ("one", "two"))
    assert [(e["event"], e["update"], e["sequences"], e["tokens"]) for e in one] == [
        (e["event"], e["update"], e["sequences"], e["tokens"]) for e in two
    ]
    for a, b in zip(one, two, strict=True):
        assert a["event"] == "save" or a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-3)
    # Before rounding has been amplified by training, the two agree to the precision of float32.
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-6)

    data = settings.parent
    for ranks in (1, 2, 3):
        where = ["--data", data, "--model", data.parent / "one/out/model", "--out", data / f"evaluation{ranks}.json"]
        _run("evaluate.py", "--settings", settings, "--run-name", "full", *where, ranks=ranks)
    found = [json.loads((data / f"evaluation{ranks}.json").read_text()) for ranks in (1, 2, 3)]
    assert found[0] == found[1] == found[2]
    tasks = found[0]["splits"]["test"]
    assert set(tasks) == set(tiny.RUN.tasks)
    assert {"loss", "accuracy", "perplexity", "baseline", "n_sequences", "n_labels"} == set(tasks["gene_mask"])
    # The best weights were tested while they were trained: the published model gives the same numbers.
    tested = [event for event in one if event["event"] == "test"][-1]
    assert tested["metrics"] == tasks and tested["loss"] == found[0]["loss"]["test"]
