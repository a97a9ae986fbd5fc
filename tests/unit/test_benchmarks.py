"""What the benchmarks say of data whose answer is known, and that each of them still runs; no timings."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.corpus import make_project
from benchmarks.many import made_up_rows, write_many
from benchmarks.packing import filled_shape, imbalance, measure_case, padded_share
from benchmarks.stand_in import StandIn
from benchmarks.step import one
from benchmarks.suite import SHOWN, SMALL, BenchmarkFailed, figures, run_benchmark, run_suite, table
from benchmarks.tokenize_source import prepare, run_stage, write_fasta
from lucavirus.compute import make_compute
from lucavirus.config import Run
from lucavirus.dataset import Dataset
from lucavirus.model import LucaVirus
from lucavirus.packing import make_pack
from lucavirus.shards import Shard
from lucavirus.state import PLACE
from lucavirus.update import Updater
from tests.made_up import ARCHITECTURE, CLASSES, RUN, made_samples
from tests.tiny import ALONE, ROOT

# The least that each benchmark can measure; of two below their parts are called.
LEAST = {
    "batches": ("--updates", "2", "--rounds", "1", "--sequences", "2000"),
    "packing": ("--updates", "2"),
    "training": ("--hidden", "16", "--layers", "1", "--attention-heads", "2", "--heads", "0.01", "--updates", "2"),
    "resume": ("--repeats", "1"),
    "save": ("--millions", "1", "--repeats", "1"),
}
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


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAST)
def test_a_benchmark_prints_the_figures_that_the_suite_shows(name: str) -> None:
    found = figures(run_benchmark(ROOT / "benchmarks" / f"{name}.py", LEAST[name]))
    assert len(found) > 1
    assert all(math.isfinite(value) for value in found.values())
    assert all(any(key.startswith(shown) for key in found) for shown in SHOWN.get(name, ()))


def test_every_benchmark_of_the_suite_is_run_by_a_test() -> None:
    assert LEAST.keys() | {"tokenize_source", "step"} == SMALL.keys()


@pytest.mark.slow
def test_the_tokenize_benchmark_counts_what_two_ranks_did(tmp_path: Path) -> None:
    file = tmp_path / "s.fasta"
    write_fasta(file, "prot", 10**5)
    done = run_stage(prepare(tmp_path, file, "prot", None), ranks=2)
    letters = sum(len(line) for line in file.read_text().splitlines() if not line.startswith(">"))
    assert done["residues"] == letters >= 10**5
    assert done["rss_mb"] > 50


def test_the_step_benchmark_gives_both_the_same_sequences(tmp_path: Path) -> None:
    run = RUN.model_copy(update={"gradient_accumulation_steps": 4, "worker_num": 0})
    data = make_project(tmp_path, run, None, sequences=30).parent
    ours, theirs = (one(kind, run, data, 2)["updates"] for kind in ("ours", "stand_in"))
    assert len(ours) == 2
    assert [update["tokens"] for update in ours] == [update["tokens"] for update in theirs]
    assert [update["flops"] for update in ours] == pytest.approx([update["flops"] for update in theirs])
