"""Packs of few shapes, layers that keep less, compiled layers, and the largest pack that fits: nothing else changes."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from lucavirus import alphabet, linear
from lucavirus.attention import FLASH_2, Layout, make_layout
from lucavirus.capacity import (
    cpu_capacity,
    dearest_pack,
    evaluation_capacity,
    largest_that_fits,
    sharded_capacity,
    training_capacity,
)
from lucavirus.compute import choose_parallel, make_compute
from lucavirus.config import Run
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.model import Architecture, LucaVirus
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


def _layers(x: torch.Tensor, layers: list[linear.Linear]) -> torch.Tensor:
    return layers[0](x) if len(layers) == 1 else linear.two_layers(layers[0], layers[1], x)


def _torchs_layers(x: torch.Tensor, layers: list[linear.Linear]) -> torch.Tensor:
    x = F.linear(x, layers[0].weight, layers[0].bias)
    return x if len(layers) == 1 else F.linear(F.gelu(x), layers[1].weight, layers[1].bias)


@pytest.mark.parametrize(("onednn", "wide"), [(True, 100), (False, 100), (False, 9)])
@pytest.mark.parametrize("sizes", [(24, 10), (24, 40, 10)])
def test_our_products_are_those_of_torch(
    sizes: tuple[int, ...], onednn: bool, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ONEDNN", onednn and torch.backends.mkldnn.is_available())
    monkeypatch.setattr(linear, "_BETWEEN_BY_ONEDNN" if onednn else "_BETWEEN", 40 * 5)
    monkeypatch.setattr(linear, "_FEWEST", 5)  # of 17 rows: what lies between two layers is made in four parts
    monkeypatch.setattr(linear, "_WIDE", wide)
    monkeypatch.setattr(linear, "_OUTPUTS", 4)  # of 10, 24 or 40 outputs
    torch.manual_seed(0)
    x, layers = torch.randn(17, 24), [linear.Linear(a, b) for a, b in pairwise(sizes)]
    assert len(layers) == 1 or linear._parts(x, layers[0].weight, (False, False)) == 4
    results = []
    for compute in (_layers, _torchs_layers):
        given = x.clone().requires_grad_()
        for layer in layers:
            layer.zero_grad()
        out = compute(given, layers)
        (out * torch.arange(10.0)).sum().backward()
        gradients = [parameter.grad for layer in layers for parameter in layer.parameters()]
        results.append((type(out.grad_fn).__name__, [out, given.grad, *gradients]))
    ours = "_ProductBackward" if len(layers) == 1 else "_TwoProductsBackward"
    assert [name for name, _ in results] == [ours, "AddmmBackward0"]
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("few", [64, 4])
@pytest.mark.parametrize("sizes", [(24, 10), (24, 40, 10)])
def test_gradients_are_added_in_place(
    sizes: tuple[int, ...], few: int, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ONEDNN", onednn and torch.backends.mkldnn.is_available())
    monkeypatch.setattr(linear, "_FEW_ROWS", few)
    monkeypatch.setattr(linear, "_OUTPUTS", 4)
    torch.manual_seed(0)
    x, ours = torch.randn(17, 24), [linear.Linear(a, b, in_place=True) for a, b in pairwise(sizes)]
    theirs, seen, buffers = copy.deepcopy(ours), list[Any](), list[torch.Tensor]()
    for layer in ours:
        layer.weight.grad = torch.ones_like(layer.weight)
        buffers.append(layer.weight.grad)
        layer.weight.register_hook(seen.append)
    for part in (x, 2 * x):
        _layers(part, ours).cos().sum().backward()
        _torchs_layers(part, theirs).cos().sum().backward()
    assert seen == [None, None] * len(ours)
    for layer, other, buffer in zip(ours, theirs, buffers, strict=True):
        assert layer.weight.grad is buffer
        assert other.weight.grad is not None and layer.bias.grad is not None and other.bias.grad is not None
        assert torch.allclose(buffer, other.weight.grad + 1, atol=1e-4)
        assert torch.allclose(layer.bias.grad, other.bias.grad, atol=1e-5)


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


@pytest.mark.parametrize("limit", [3073, 3074, 4096, 20_000, 65_536, 131_072])
def test_the_largest_pack_that_fits_is_found(limit: int) -> None:
    asked: list[int] = []

    def fits(tokens: int) -> bool:
        asked.append(tokens)
        return tokens <= limit

    found = largest_that_fits(fits, 3074, 131_072)
    wanted = max(3074, int(limit // 1024 * 0.9) * 1024) if limit >= 3074 else 0
    assert found == wanted and len(asked) <= 14 and len(set(asked)) == len(asked)


@pytest.mark.parametrize(("parallel", "way"), [("ddp", "set `parallel: fsdp` on several"), ("fsdp", "take more GPUs")])
def test_a_model_without_room_for_a_sequence_is_refused(
    parallel: Literal["ddp", "fsdp"], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    updater = Updater(LucaVirus(ARCHITECTURE), RUN, make_compute(RUN, ALONE.device), 1000, ALONE)
    updater.ranks = replace(ALONE, device=torch.device("cuda"))
    updater.compute = replace(updater.compute, parallel=parallel)
    monkeypatch.setattr("lucavirus.capacity._fits", lambda _, tokens, classes: tokens < RUN.model.max_length)
    monkeypatch.setattr("lucavirus.capacity._estimate", lambda _: -1024)
    with pytest.raises(
        UserError, match=r"max_tokens_per_pack: auto: the model \([\d,]+ parameters\) leaves no room"
    ) as told:
        training_capacity(updater, CLASSES)
    assert f"({RUN.model.max_length:,} tokens) on cpu" in str(told.value) and way in str(told.value)
    assert "set `recomputation: true`, or" in str(told.value)


def test_the_packs_of_sharded_models_leave_room_for_what_is_not_sharded() -> None:
    full = Architecture(2560, 12, 20, 3074, {})
    # 80 GB less 16 x 2.5 / 8 GB divided and 6 x 2.5 GB not: 60 GB, of which 70 % are taken.
    of_layers = 12 * 34 * 2560  # bytes a token
    assert sharded_capacity(80 * 10**9, 25 * 10**8, 8, full, RUN) == int(42e9 / of_layers / 1024) * 1024 == 39 * 1024
    recomputed = RUN.model_copy(update={"recomputation": True})
    of_inputs = 12 * 4 * 2560 + 34 * 2560  # one layer at a time, besides the inputs of all in fp32
    assert sharded_capacity(80 * 10**9, 25 * 10**8, 8, full, recomputed) == int(42e9 / of_inputs / 1024) * 1024


def test_the_dearest_pack_has_every_label_at_every_position() -> None:
    pack = dearest_pack(1000, RUN, CLASSES)
    assert len(pack.tokens) == 1000 and pack.lengths.tolist() == [400, 400, 200]
    assert int(pack.labels["prot_site"].counts.sum()) == 398 + 398 + 198
    assert set(pack.labels) == {"prot_mask", "prot_site", "prot_taxonomy", "prot_keyword"}


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


@pytest.mark.parametrize(("given", "found"), [(777, 777), ("auto", 4096)])
def test_the_tokens_of_a_pack_are_those_that_the_run_says_or_by_the_size_of_the_model(
    given: int | str, found: int
) -> None:
    run = RUN.model_copy(update={"max_tokens_per_pack": given})
    updater = Updater(LucaVirus(ARCHITECTURE), run, make_compute(run, ALONE.device), 1000, ALONE)
    assert training_capacity(updater, CLASSES) == evaluation_capacity(ARCHITECTURE, run, ALONE.device) == found
    # 64 MB by 68 bytes times 12 layers times 48.
    assert cpu_capacity(Architecture(48, 12, 4, 400, {})) == int(64e6 / (68 * 12 * 48)) // 32 * 32 == 1632


def test_sizes_without_a_gpu() -> None:
    assert cpu_capacity(ARCHITECTURE) == 4096 and cpu_capacity(Architecture(2560, 12, 20, 3074, {})) == 1024
    assert evaluation_capacity(ARCHITECTURE, RUN.model_copy(update={"max_tokens_per_pack": 777}), ALONE.device) == 777
    assert evaluation_capacity(ARCHITECTURE, RUN, torch.device("cuda")) == 16384
    assert choose_parallel(RUN, LucaVirus(ARCHITECTURE), ALONE) == "ddp"
    assert choose_parallel(RUN.model_copy(update={"parallel": "fsdp"}), LucaVirus(ARCHITECTURE), ALONE) == "fsdp"


def test_the_dearest_pack_of_genes_has_their_labels() -> None:
    tasks = ("gene_mask", "gene_type")
    run = RUN.model_copy(update={"molecules": ("gene",), "tasks": tasks})
    pack = dearest_pack(1000, run, {"gene_type": 3})
    assert set(pack.labels) == set(tasks) and not pack.types[:1000].any()
    assert int(pack.labels["gene_type"].counts.sum()) == 398 + 398 + 198


@pytest.mark.parametrize(("tokens", "sequences"), [(401, 1), (402, 1), (403, 2)])
def test_what_is_left_of_the_dearest_pack_may_be_no_sequence(tokens: int, sequences: int) -> None:
    pack = dearest_pack(tokens, RUN, CLASSES)
    assert (len(pack.tokens), len(pack.lengths)) == (tokens, sequences)


class Poorer(Ranks):
    """One of two ranks; the other one has room for 5 x 1,024 tokens."""

    def least(self, number: int) -> int:
        return min(number, 5 * 1024 if number > 1 else int(tried[-1] <= 5 * 1024))


tried: list[int] = []


@pytest.mark.parametrize(("parallel", "found"), [("fsdp", 5 * 1024), ("ddp", 4 * 1024)])
def test_the_rank_with_the_least_room_decides(parallel: Any, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RUN.model_copy(update={"gradient_accumulation_steps": 1000})
    updater = Updater(LucaVirus(ARCHITECTURE), run, make_compute(run, ALONE.device), 1000, ALONE)
    updater.ranks = Poorer(0, 2, torch.device("cuda"))
    updater.compute = replace(updater.compute, parallel=parallel)
    monkeypatch.setattr("lucavirus.capacity._fits", lambda _, tokens, __: tried.append(tokens) or True)
    monkeypatch.setattr("lucavirus.capacity._estimate", lambda _: 50 * 1024)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    assert training_capacity(updater, CLASSES) == found
