"""Packs of few shapes, layers that keep less, compiled layers, and rehearsals of an update: nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from lucavirus import alphabet
from lucavirus.attention import FLASH_2, Layout, make_layout
from lucavirus.capacity import (
    dearest_pack,
)
from lucavirus.compute import make_compute
from lucavirus.config import Run
from lucavirus.model import LucaVirus
from lucavirus.packing import Fill, make_pack
from lucavirus.packs import IGNORED, Pack, Sample
from lucavirus.state import PLACE
from lucavirus.update import Updater
from tests.made_up import ARCHITECTURE, CLASSES, FILL, RUN, made_packs, made_samples
from tests.tiny import ALONE


def _update(made: list[Pack], run: Run = RUN, recomputation: bool = False) -> tuple[list[float], float, list[Any]]:
    model = LucaVirus(ARCHITECTURE, seed=5)
    model.recomputation = recomputation
    updater = Updater(model, run, make_compute(run, torch.device("cpu")), 1000, ALONE)
    statistics, norm = updater.step(1, made, {})
    return statistics, norm, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def _assert_same(one: tuple[Any, Any, Any], other: tuple[Any, Any, Any], but: str = "") -> None:
    for name, place in PLACE.items():
        if name != but:
            assert one[0][place] == pytest.approx(other[0][place], rel=1e-6), name
    assert one[1] == pytest.approx(other[1], rel=1e-6)
    for a, b in zip(one[2], other[2], strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-5)


def test_filling_changes_no_loss_and_no_gradient() -> None:
    plain, filled = made_packs(), made_packs(FILL)
    assert [len(pack.tokens) % 32 for pack in filled] == [0, 0, 0] != [len(pack.tokens) % 32 for pack in plain]
    assert [list(pack.lengths) for pack in filled] == [list(pack.lengths) for pack in plain]
    one, two = _update(plain), _update(filled)
    _assert_same(one, two, but="positions")
    assert two[0][PLACE["positions"]] == sum(len(pack.tokens) for pack in filled) > one[0][PLACE["positions"]]
    assert one[0][PLACE["tokens"]] == one[0][PLACE["positions"]]
    assert one[0][PLACE["squares"]] == sum(int((pack.lengths**2).sum()) for pack in plain)


def test_a_filled_pack_by_hand() -> None:
    run = RUN.model_copy(update={"tasks": ("prot_keyword", "prot_site")})
    sample = Sample(9, 1, np.array([10, 11, 12], np.uint8), {
        "prot_keyword": np.array([[1]], np.int32), "prot_site": np.array([[0, 2, 1]], np.int32),
    })  # fmt: skip
    pack = make_pack([sample], run, {"prot_keyword": 2, "prot_site": 3}, 0, Fill(64, 64))
    assert pack.tokens.tolist() == [alphabet.CLS, 10, 11, 12, alphabet.SEP] + [alphabet.PAD] * 27
    assert pack.positions.tolist() == [*range(5), *range(27)] and pack.offsets == [0, 5, 32] and pack.samples == [9]
    assert pack.cu_seqlens.tolist() == [0, 5] + [32] * 62 and pack.cu_seqlens.dtype == torch.int32
    site, keyword = pack.labels["prot_site"], pack.labels["prot_keyword"]
    assert site.positions.tolist() == [1, 2, 3, 0] and site.targets.tolist() == [1, 1, 1, IGNORED]
    assert keyword.targets.tolist() == [[0, 1]] + [[IGNORED, IGNORED]] * 3 and keyword.counts.tolist() == [1]
    assert pack.wanted.tolist() == [0, 1, 2, 3] + [31] * 28 and pack.places(site).tolist() == [1, 2, 3, 0]
    # A full pack is left as it is, whatever the step.
    assert len(make_pack([sample], run, {}, 0, Fill(5, 5)).tokens) == 5


def test_an_empty_pack_adds_nothing() -> None:
    empty = make_pack([], RUN, CLASSES, 0, FILL)
    assert len(empty.tokens) == 32 and empty.offsets == [0, 32] and len(empty.lengths) == 0
    _assert_same(_update(made_packs()), _update([*made_packs(), empty]), but="positions")


def test_the_last_layer_of_wanted_tokens_changes_no_loss_and_no_gradient() -> None:
    packs = made_packs()
    assert max(len(pack.wanted) / len(pack.tokens) for pack in packs) < 0.7
    groups = [make_layout(pack.offsets, ALONE.device, pack.wanted).groups for pack in packs]
    assert {group.mask is None for of_pack in groups for group in of_pack} == {True, False}
    whole = [replace(pack, wanted=torch.arange(len(pack.tokens))) for pack in packs]
    _assert_same(_update(whole), _update(packs))
    for pack in packs:
        labelled = torch.cat([labels.positions for labels in pack.labels.values()])
        assert pack.wanted.tolist() == sorted({0, *labelled.tolist()})
        for labels in pack.labels.values():
            assert torch.equal(pack.wanted[pack.places(labels)], labels.positions)


def test_heads_in_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _update(made_packs())
    monkeypatch.setattr("lucavirus.compute._HEAD_ROWS", {"cpu": 7})
    _assert_same(whole, _update(made_packs()))


def test_rows_of_a_head_are_divided_into_equal_parts() -> None:
    (labels,) = [pack.labels["gene_type"] for pack in made_packs() if "gene_type" in pack.labels][:1]
    places = torch.arange(len(labels.positions))
    size = len(places) - 1
    parts = list(labels.parts(places, size))
    assert [len(part) for part, _, _ in parts] == [-(-len(places) // 2), len(places) // 2]
    assert torch.equal(torch.cat([part for part, _, _ in parts]), places)
    assert torch.equal(torch.cat([targets for _, targets, _ in parts]), labels.targets)


def test_recomputation_gives_the_same_gradients() -> None:
    _assert_same(_update(made_packs()), _update(made_packs(), recomputation=True))


def _varlen_on_a_cpu(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int) -> torch.Tensor:
    """The GPU kernel's contract (torch.nn.attention.varlen.varlen_attn), with a mask."""
    assert cu_q.dtype == torch.int32 and max_q == max_k
    own, owner = (torch.bucketize(torch.arange(len(x)), edges[1:], right=True) for x, edges in ((q, cu_q), (k, cu_k)))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=own[:, None] == owner[None, :])[0].transpose(0, 1)


def _checked_layout(kernel: str, queries: torch.Tensor, keys: torch.Tensor, longest: int) -> Layout:
    """What the kernel may be told: no sequence has more tokens, or wanted ones with what fills them, than `longest`."""
    assert max(int(edges.diff().max()) for edges in (queries, keys)) <= longest
    return Layout(kernel, queries, keys, longest)


def test_the_gpu_path_computes_the_same_and_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LucaVirus(ARCHITECTURE, seed=5)
    compute = make_compute(RUN, torch.device("cpu")).with_capacity(4096)
    packs = [make_pack([sample], RUN, CLASSES, 0, FILL) for sample in made_samples(8)]
    # The last one is not filled, but its wanted tokens are: they are more than the tokens of its sequence.
    packs += [*made_packs(FILL), dearest_pack(400, RUN, CLASSES)]
    assert packs[-1].lengths.tolist() == [400] and len(packs[-1].wanted) == 416
    assert len({len(pack.tokens) for pack in packs}) > 5
    with torch.no_grad():
        wanted = [compute.hidden(model, pack) for pack in packs]
        compute = replace(compute, attention=FLASH_2)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _varlen_on_a_cpu)
        monkeypatch.setattr("lucavirus.compute.Layout", _checked_layout)
        counter = CompileCounter()
        for layer in model.layers:
            layer.compile(dynamic=True, backend=counter)
        for pack, hidden in zip(packs, wanted, strict=True):
            assert torch.allclose(compute.hidden(model, pack), hidden, atol=1e-5)
    # One code for all layers but the last, one for the last, whose rows are those wanted; no shape makes a new one.
    assert counter.frame_count == 2


def test_rehearsal_leaves_no_trace() -> None:
    model = LucaVirus(ARCHITECTURE, seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    updater = Updater(model, RUN, make_compute(RUN, torch.device("cpu")), 1000, ALONE)
    updater.rehearse(dearest_pack(1000, RUN, CLASSES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    assert updater.step(1, made_packs(), {}) == _update(made_packs())[:2]


def test_a_rehearsal_without_memory_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LucaVirus(ARCHITECTURE, seed=5)
    updater = Updater(model, RUN, make_compute(RUN, torch.device("cpu")), 1000, ALONE)

    def fail(layer: torch.nn.Module, gradient: Any) -> None:
        assert any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
        raise torch.OutOfMemoryError

    model.layers[1].register_full_backward_pre_hook(fail)  # the heads' gradients are there by then
    with pytest.raises(torch.OutOfMemoryError):
        updater.rehearse(dearest_pack(1000, RUN, CLASSES))
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_a_rehearsal_needs_no_other_rank() -> None:
    # There is no process group: any collective of this rank of two would raise.
    updater = Updater(LucaVirus(ARCHITECTURE), RUN, make_compute(RUN, ALONE.device), 1000, replace(ALONE, world_size=2))
    updater.rehearse(dearest_pack(1000, RUN, CLASSES))
    with pytest.raises(ValueError, match="process group has not been initialized"):
        updater.step(1, made_packs(), {})


@pytest.mark.parametrize(("major", "dtype"), [(7, torch.float32), (8, torch.bfloat16)])
def test_gpus_that_only_emulate_16_bits_compute_in_32(
    major: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major, minor=0))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    monkeypatch.setattr("lucavirus.kernels.check", lambda *_: None)
    assert make_compute(RUN, torch.device("cuda")).dtype == dtype
