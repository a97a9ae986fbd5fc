"""On a GPU: the numbers of the CPU, layers compiled once, the largest pack that fits, exact resume. `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lucavirus import flash
from lucavirus.attention import FLASH_2, FLASH_4, PLAIN
from lucavirus.capacity import dearest_pack, training_capacity
from lucavirus.compute import Compute, make_compute
from lucavirus.config import Model, Run
from lucavirus.distributed import Ranks
from lucavirus.model import Architecture, LucaVirus
from lucavirus.packing import make_pack
from lucavirus.packs import Pack
from lucavirus.sharding import place
from lucavirus.update import Updater
from tests import made_up, tiny
from tests.made_up import CLASSES, FILL, made_packs, made_samples

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

ARCHITECTURE = replace(made_up.ARCHITECTURE, hidden_size=128)
RUN = made_up.RUN.model_copy(update={"model": made_up.RUN.model.model_copy(update={"hidden_size": 128})})
GPU = torch.device("cuda", 0)
ALONE = Ranks(0, 1, GPU)
# The largest relative errors of hidden states and gradients.
ERRORS = {"fp32": 1e-4, "bf16": 3e-2}


@pytest.fixture(params=[("fp32", PLAIN), ("bf16", FLASH_2), ("bf16", FLASH_4)], ids=[PLAIN, FLASH_2, FLASH_4])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A precision of the GPU, with each kernel of attention that there is for it."""
    precision, kernel = request.param
    if kernel == FLASH_2:
        monkeypatch.setattr(flash, "is_installed", lambda: False)
    if make_compute(_on_gpu(precision=precision), GPU).attention != kernel:
        pytest.skip(f"there is no {kernel} here")
    return str(precision)


def _on_gpu(**changes: object) -> Run:
    return RUN.model_copy(update={"device": "auto", "compile": "off", **changes})


def _compute(run: Run, device: torch.device) -> Compute:
    return make_compute(run, device).with_capacity(FILL.capacity)


def _hidden(model: LucaVirus, compute: Compute, pack: Pack) -> Tensor:
    with torch.no_grad(), compute.autocast():
        return compute.hidden(model, pack.to(compute.device)).float().cpu()


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_hidden_states_are_those_of_the_cpu(precision: str) -> None:
    model, packs = LucaVirus(ARCHITECTURE, seed=5), [*made_packs(FILL), dearest_pack(1000, RUN, CLASSES)]
    wanted = [_hidden(model, _compute(RUN, torch.device("cpu")), pack) for pack in packs]
    compute = _compute(_on_gpu(precision=precision), GPU)
    model.to(GPU)
    for pack, hidden in zip(packs, wanted, strict=True):
        assert _error(_hidden(model, compute, pack), hidden) < ERRORS[precision]


def _updated(run: Run, ranks: Ranks) -> tuple[list[float], float, Tensor]:
    """The statistics, the norm and the gradients of one update."""
    model, compute = LucaVirus(ARCHITECTURE, seed=5), _compute(run, ranks.device)
    place(model, run, compute, ranks)
    updater = Updater(model, run, compute, 1000, ranks)
    statistics, norm = updater.step(1, made_packs(FILL), {})
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return statistics, norm, torch.cat(gradients).cpu()


@pytest.mark.parametrize("recomputation", [False, True])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_an_update_is_that_of_the_cpu(precision: str, recomputation: bool, compiled: str) -> None:
    if precision == "fp32" and compiled == "on":
        pytest.skip("layers with plain attention are not compiled by themselves")
    run = _on_gpu(precision=precision, recomputation=recomputation, compile=compiled)
    statistics, norm, gradients = _updated(RUN, tiny.ALONE)
    found, its_norm, its_gradients = _updated(run, ALONE)
    assert found == pytest.approx(statistics, rel=ERRORS[precision])
    assert its_norm == pytest.approx(norm, rel=ERRORS[precision])
    assert _error(its_gradients, gradients) < ERRORS[precision]


def test_layers_are_compiled_once_and_compute_the_same(precision: str) -> None:
    if precision == "fp32":
        pytest.skip("layers with plain attention are not compiled by themselves")
    packs = [make_pack([sample], RUN, CLASSES, 0, FILL) for sample in made_samples(8)]
    packs += [*made_packs(FILL), dearest_pack(400, RUN, CLASSES)]
    run = _on_gpu(precision=precision, compile="on")
    model, compute = LucaVirus(ARCHITECTURE, seed=5).to(GPU), _compute(run, GPU)
    wanted = [_hidden(model, compute, pack) for pack in packs]
    torch._dynamo.reset()
    counters.clear()
    place(model, run, compute, ALONE)
    for pack, hidden in zip(packs, wanted, strict=True):
        assert _error(_hidden(model, compute, pack), hidden) < ERRORS[precision]
    # One code for all layers but the last, one for the last, whose rows are those wanted.
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """3 GiB of the GPU's memory."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(3 * 2**30 / torch.cuda.mem_get_info(GPU)[1], GPU)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_the_largest_pack_that_fits_is_found() -> None:
    model_of = Model(hidden_size=512, num_attention_layers=4, num_attention_heads=8)
    run = _on_gpu(precision="bf16", model=model_of, gradient_accumulation_steps=1000)
    model, compute = LucaVirus(Architecture(512, 4, 8, 3074, ARCHITECTURE.heads)), make_compute(run, GPU)
    place(model, run, compute, ALONE)
    updater = Updater(model, run, compute, 1000, ALONE)
    capacity = training_capacity(updater, CLASSES)
    assert 3074 < capacity < 128 * 1024 and not any(p.grad is not None and p.grad.any() for p in model.parameters())
    updater.rehearse(dearest_pack(capacity, run, CLASSES))
    with pytest.raises(torch.OutOfMemoryError):
        updater.rehearse(dearest_pack(2 * capacity, run, CLASSES))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tiny.make_project(tmp_path, device="auto", deterministic=True, loss_logging_steps=1, max_epochs=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_stops_and_goes_on_exactly(project: Path, precision: str) -> None:
    tiny.change_run(project, precision=precision)
    tiny.train(project, "whole")
    tiny.change_run(project, stop_after={"updates": 20, "minutes": None})
    tiny.train(project, "stopped")
    tiny.change_run(project, stop_after={"updates": None, "minutes": None})
    tiny.train(project, "stopped")
    assert tiny.different_tensors(project, "whole", "stopped") == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_gpus_train_as_one(project: Path, parallel: str) -> None:
    tiny.change_run(project, precision="bf16")
    tiny.train(project, "one")
    tiny.change_run(project, parallel=parallel)
    tiny.train(project, "two", ranks=2)
    one, two = ([event["loss"] for event in tiny.history(project, name) if event["event"] == "train"]
                for name in ("one", "two"))  # fmt: skip
    assert len(one) > 30 and two == pytest.approx(one, rel=2e-2)
