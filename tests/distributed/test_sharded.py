"""Parameters divided among ranks (FSDP2): the same training, and checkpoints that any number of ranks reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lucavirus.compute import Compute
from lucavirus.distributed import Ranks
from lucavirus.model import Architecture, LucaVirus
from lucavirus.packing import make_pack
from lucavirus.packs import Sample
from lucavirus.sharding import place
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Packs of one longest sequence: ranks differ in their number, and in the tasks that they meet.
    return tiny.make_project(
        tmp_path_factory.mktemp("sharded"), loss_logging_steps=1, max_epochs=1, max_tokens_per_pack=258
    )


def _curve(settings: Path, folder: str) -> list[tuple[Any, ...]]:
    events = [event for event in tiny.history(settings, folder) if event["event"] != "save"]
    return [(e["event"], e["update"], e["sequences"], e["tokens"], e["lr"]) for e in events]


def _losses(settings: Path, folder: str) -> list[float]:
    return [event["loss"] for event in tiny.history(settings, folder) if event["event"] != "save"]


def test_sharded_training_is_the_same_training(settings: Path) -> None:
    tiny.train(settings, "replicated", ranks=2)
    tiny.change_run(settings, parallel="fsdp")
    tiny.train(settings, "sharded", ranks=2)
    assert _curve(settings, "sharded") == _curve(settings, "replicated")
    assert len(_losses(settings, "sharded")) > 30
    assert _losses(settings, "sharded") == pytest.approx(_losses(settings, "replicated"), rel=1e-3)
    assert _losses(settings, "sharded")[:10] == pytest.approx(_losses(settings, "replicated")[:10], rel=2e-6)
    one, two = (tiny.final_tensors(settings, name) for name in ("replicated", "sharded"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert two[name].shape == tensor.shape
        assert torch.allclose(two[name], tensor, atol=3e-4, rtol=3e-2), name


def test_a_head_that_no_task_reads_is_the_same_too(tmp_path: Path) -> None:
    """The LM head of a run without masks: its weights decay, and it has moments."""
    settings = tiny.make_project(
        tmp_path, molecules=["gene"], tasks=["gene_type"], weight_decay=0.5, warmup_steps=0,
        stop_after={"updates": 6, "minutes": None},
    )  # fmt: skip
    found = []
    for parallel in ("ddp", "fsdp"):
        tiny.change_run(settings, parallel=parallel)
        tiny.train(settings, parallel, ranks=2)
        found.append(tiny.final_tensors(settings, parallel))
    one, two = found
    assert one.keys() == two.keys()
    names = [name for name in one if "lm_head" in name]
    assert names and [name for name in names if not torch.allclose(two[name], one[name], atol=1e-6, rtol=0)] == []


def test_sharded_training_in_16_bits_is_the_same_training(settings: Path) -> None:
    # Some update's last pack is the first to have a label of some task: its gradients must not differ in type.
    tiny.change_run(settings, parallel="ddp", precision="bf16", stop_after={"updates": 20, "minutes": None})
    tiny.train(settings, "replicated-16", ranks=2)
    tiny.change_run(settings, parallel="fsdp")
    tiny.train(settings, "sharded-16", ranks=2)
    tiny.change_run(settings, parallel="auto", precision="auto", stop_after={"updates": None, "minutes": None})
    assert _curve(settings, "sharded-16") == _curve(settings, "replicated-16")
    assert _losses(settings, "sharded-16") == pytest.approx(_losses(settings, "replicated-16"), rel=1e-2)


def test_what_passes_between_sharded_layers_in_16_bits_is_in_fp32(tmp_path: Path) -> None:
    found = []

    def look(layer: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        x, angles, *_ = inputs
        found.append((layer.fc1.weight.dtype, x.dtype, *(part.dtype for part in angles)))

    model, cpu = LucaVirus(Architecture(16, 2, 2, 34, {})), torch.device("cpu")
    run = tiny.RUN.model_copy(update={"parallel": "fsdp", "compile": "off"})
    compute = Compute(cpu, torch.bfloat16, 34, 34, "fsdp")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        place(model, run, compute, Ranks(0, 1, cpu))
        for layer in model.layers:
            layer.register_forward_pre_hook(look)
        pack = make_pack([Sample(0, 0, np.full(30, 5, np.uint8), {})], run, {}, 0)
        with compute.autocast():
            assert compute.hidden(model, pack).dtype == torch.float32
    finally:
        dist.destroy_process_group()
    assert found == [(torch.bfloat16, torch.float32, torch.float32, torch.float32)] * 2


def test_sharded_stops_and_goes_on_exactly_and_on_one_rank(settings: Path) -> None:
    tiny.change_run(settings, parallel="fsdp", stop_after={"updates": 20, "minutes": None})
    tiny.train(settings, "stopped", ranks=2)
    tiny.train(settings, "alone", ranks=2)
    tiny.change_run(settings, stop_after={"updates": None, "minutes": None})
    tiny.train(settings, "stopped", ranks=2)
    assert tiny.different_tensors(settings, "sharded", "stopped") == []
    tiny.change_run(settings, parallel="auto")
    tiny.train(settings, "alone", ranks=1)
    curves = [
        {e["update"]: e["loss"] for e in tiny.history(settings, name) if e["event"] == "train"}
        for name in ("alone", "sharded")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_sharded_training_goes_on_the_same_after_an_evaluation(settings: Path) -> None:
    # Two short epochs: the first ends with an evaluation on dev and, for the best weights, on test.
    tiny.change_run(settings, max_epochs=2, gradient_accumulation_steps=16, save_steps=10**6)
    for parallel in ("ddp", "fsdp"):
        tiny.change_run(settings, parallel=parallel)
        tiny.train(settings, f"two-epochs-{parallel}", ranks=2)
    replicated, sharded = (tiny.history(settings, f"two-epochs-{parallel}") for parallel in ("ddp", "fsdp"))
    assert [event["event"] for event in sharded].index("test") < len(sharded) - 5
    for key in ("loss", "grad_norm"):
        curves = [[event[key] for event in events if event.get(key)] for events in (replicated, sharded)]
        assert len(curves[0]) > 6 and curves[1] == pytest.approx(curves[0], rel=1e-4), key
