"""What the benchmarks say of data whose answer is known; no timings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.many import made_up_rows, write_many
from benchmarks.packing import filled_shape, imbalance, measure_case, padded_share
from benchmarks.stand_in import StandIn
from benchmarks.suite import BenchmarkFailed, figures, run_suite, table
from lucavirus.compute import make_compute
from lucavirus.config import Run
from lucavirus.dataset import Dataset
from lucavirus.model import LucaVirus
from lucavirus.packing import make_pack
from lucavirus.shards import Shard
from lucavirus.state import PLACE
from lucavirus.update import Updater
from tests.made_up import ARCHITECTURE, CLASSES, RUN, made_samples
from tests.tiny import ALONE

GOOD = "import json, sys; print(json.dumps({'speed': [1, {'of': 2.5}], 'words': sys.argv[1:]}))"


def _scripts(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_the_suite_writes_what_each_benchmark_printed(tmp_path: Path) -> None:
    out = tmp_path / "results" / "bench.json"
    results = run_suite(_scripts(tmp_path, one=GOOD), {"one": ("--small", "2")}, out)
    written = json.loads(out.read_text())
    assert written == results
    assert written["one"]["speed"] == [1, {"of": 2.5}]
    assert written["one"]["words"] == ["--small", "2"]
    assert isinstance(written["one"]["seconds"], float)
    assert set(written["machine"]) == {"cpu", "cores", "load", "torch", "date"}
    assert "speed 1 of" in table(results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit('no data here')", "no data here"),
        ("print('no JSON')", "no JSON"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit status -9"),
    ],
)
def test_a_failing_benchmark_fails_the_suite_and_leaves_the_old_results(
    tmp_path: Path, text: str, message: str
) -> None:
    out = tmp_path / "bench.json"
    out.write_text("old")
    with pytest.raises(BenchmarkFailed, match=message):
        run_suite(_scripts(tmp_path, one=GOOD, two=text), {"one": (), "two": ()}, out)
    assert out.read_text() == "old"


def test_figures_are_the_numbers_by_their_keys() -> None:
    assert figures({"a": {"b": 1, "c": "text"}, "d": [2.5, None]}) == {"a b": 1, "d 0": 2.5}


def test_share_of_real_tokens_counts_what_fills_packs() -> None:
    # 16384 // 128 is 128: 1000 tokens are filled up to 1024, and 3 * 1000 to 3072.
    assert filled_shape(1000, 1, 16384) == (1024, 64)
    assert filled_shape(16300, 70, 16384) == (16384, 128)
    lengths = np.array([1000])
    assert measure_case(lengths, 1, 3, 16384, 2)["real_share"] == 3000 / 3072
    # Two in a pack of 2048, whose step is 32, and one alone.
    alone = measure_case(lengths, 1, 3, 2048, 2)
    assert alone["real_share"] == 3000 / (2016 + 1024)
    assert (alone["packs_per_rank"], alone["shapes"]) == (2, 2)


def test_baselines_by_hand() -> None:
    assert padded_share(np.array([10] + 7 * [5] + 8 * [20])) == (45 + 160) / (80 + 160)
    assert imbalance([np.array([1.0, 2.0]), np.array([5.0])]) == 1.25
    assert measure_case(np.array([100]), 4, 8, 3074, 2)["slowest_to_mean"] == 1


def test_many_sequences_are_a_training_set(tmp_path: Path) -> None:
    assert write_many(tmp_path, 1000) == len(made_up_rows(0, 1000).tokens)
    dataset = Dataset(tmp_path, ("gene", "prot"), "train", 3074, Run().tasks)
    rows = made_up_rows(0, 1000)
    wanted = [rows.tokens[start:end] for start, end in zip(rows.offsets, rows.offsets[1:], strict=False)]
    genes, proteins = ([n for n in range(1000) if rows.molecule[n] == molecule] for molecule in (0, 1))
    assert (len(genes), len(proteins)) == (667, 333)
    samples = dataset.samples(np.arange(len(dataset)))
    assert [sample.tokens.tobytes() for sample in samples] == [wanted[n] for n in genes + proteins]
    assert [dataset.name(n) for n in (0, 666, 667)] == ["000000000", "000000999", "000000002"]
    assert dataset.lengths(np.arange(1000)).tolist() == [len(sample.tokens) + 2 for sample in samples]
    shard = Shard(next((tmp_path / "shards/many").glob("*.h5")))
    assert int(shard.attributes["sequences"]) == 1000


def test_the_stand_in_computes_our_losses_and_gradients() -> None:
    samples = made_samples(8)
    samples[0].labels.clear()
    del samples[1].labels["prot_keyword"]
    run = RUN.model_copy(update={"gradient_accumulation_steps": 8})
    model, other = LucaVirus(ARCHITECTURE, seed=5), LucaVirus(ARCHITECTURE, seed=5)
    updater = Updater(model, run, make_compute(run, ALONE.device), 1000, ALONE)
    statistics, norm = updater.step(1, [make_pack(samples, run, CLASSES, 0)], {})
    loss = StandIn(other, run, run.tasks).backward([make_pack([sample], run, CLASSES, 0) for sample in samples])
    assert loss == pytest.approx(statistics[PLACE["loss"]] / 8, rel=1e-5)
    gradients = [parameter.grad for parameter in other.parameters()]
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in gradients if g is not None]).norm()), rel=1e-5)
    for ours, theirs in zip(model.parameters(), gradients, strict=True):
        assert ours.grad is not None and theirs is not None
        assert torch.allclose(ours.grad, theirs, atol=1e-6, rtol=1e-4)
