"""Packs on their way from a worker: one buffer, the same packs, memory that is used again, no file for each tensor."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lucavirus import loader
from lucavirus.dataset import classes_of
from lucavirus.errors import UserError
from lucavirus.handover import AHEAD, Handed, Handover
from lucavirus.loader import Batches, updates
from lucavirus.packing import make_parcel
from lucavirus.packs import Pack, Sample
from lucavirus.parcels import Column, Parcel
from lucavirus.plan import Plan
from lucavirus.vocabularies import read_vocabularies
from tests import tiny
from tests.unit.test_packing import tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    settings = tiny.make_project(tmp_path_factory.mktemp("parcels"))
    dataset = tiny.dataset(settings)
    run = tiny.RUN.model_copy(update={"worker_num": 1})
    classes = classes_of(read_vocabularies(settings.parent / "vocabularies"), run.tasks)
    return Batches(dataset, run, Plan.of(run, len(dataset)), classes, 258, 0, 1)


def _content(packs: list[Pack]) -> list[Any]:
    return [(tensors(pack), pack.offsets, pack.samples, list(pack.labels)) for pack in packs]


def test_columns_come_back_as_they_were() -> None:
    """Two packs, one of them without labels; the buffer by hand."""
    columns = {
        ("", "tokens"): Column(np.array([1, 2, 3], np.uint8), torch.int64, [1, 2]),
        ("", "types"): Column(np.array([0, 1, 1], np.uint8), torch.int64, [1, 2]),
        ("", "positions"): Column(np.array([300, 0, -1], np.int16), torch.int64, [1, 2]),
        ("", "cu_seqlens"): Column(np.array([0, 1, 0, 2], np.int32), torch.int32, [2, 2]),
        ("", "wanted"): Column(np.array([0, 0, 1], np.int8), torch.int64, [1, 2]),
        ("prot_keyword", "positions"): Column(np.array([1], np.int8), torch.int64, [0, 1]),
        ("prot_keyword", "targets"): Column(np.array([[1, -100]], np.int8), torch.int8, [0, 1]),
        ("prot_keyword", "rows"): Column(np.array([0], np.int8), torch.int64, [0, 1]),
        ("prot_keyword", "counts"): Column(np.array([1.5], np.float32), torch.float32, [0, 1]),
        ("prot_keyword", "sequences"): Column(np.array([0]), torch.int64, [0, 1]),
    }
    parcel = Parcel.of(columns, [[0, 1], [0, 2]], [[7], [8]])
    assert parcel.buffer[:3].tolist() == [1, 2, 3] and parcel.buffer[16:19].tolist() == [0, 1, 1]
    one, two = parcel.open(CPU)
    assert tensors(one) == [
        (torch.int64, [1]), (torch.int64, [0]), (torch.int64, [300]), (torch.int32, [0, 1]),
        (torch.int64, [0]),
    ]  # fmt: skip
    assert tensors(two) == [
        (torch.int64, [1]), (torch.int8, [[1, -100]]), (torch.int64, [0]), (torch.float32, [1.5]), (torch.int64, [0]),
        (torch.int64, [2, 3]), (torch.int64, [1, 1]), (torch.int64, [0, -1]), (torch.int32, [0, 2]),
        (torch.int64, [0, 1]),
    ]  # fmt: skip
    assert (one.offsets, one.samples, two.offsets, two.samples) == ([0, 1], [7], [0, 2], [8])


@pytest.mark.parametrize(
    ("classes", "stored"), [(3, torch.int8), (128, torch.int8), (129, torch.int16), (40_000, torch.int32)]
)
def test_integers_travel_in_the_smallest_type_that_holds_them(classes: int, stored: torch.dtype) -> None:
    sample = Sample(0, 0, np.full(300, 5, np.uint8), {"gene_type": np.array([[298, 299, classes - 1]], np.int32)})
    run = tiny.RUN.model_copy(update={"tasks": ("gene_type",)})
    parcel = make_parcel([[sample]], run, {"gene_type": classes}, 0, None)
    types = {place.name: place.stored for place in parcel.places}
    assert types["gene_type", "targets"] == stored and types["gene_type", "positions"] == torch.int16
    labels = parcel.open(CPU)[0].labels["gene_type"]
    assert labels.targets.tolist() == [classes - 1] * 2 and labels.positions.tolist() == [299, 300]


def test_the_fullest_pack_comes_last(batches: Batches) -> None:
    sizes = [int(pack.lengths.sum()) for pack in batches.packs(3)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_a_worker_needs_few_files(batches: Batches) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir(Path("/proc/self/fd"))) + 60, limits[1]))
    try:
        received = list(updates(batches, 0, 20, CPU))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [_content(packs) for packs in received] == [_content(batches.packs(update)) for update in range(20)]


def test_a_rank_has_no_sample_where_an_update_has_fewer_than_ranks(batches: Batches) -> None:
    many = len(batches.dataset) - 1  # the last update of an epoch has one sample
    run = batches.run.model_copy(update={"gpus": 1, "batch_size": many, "gradient_accumulation_steps": 1})
    plan = Plan.of(run, len(batches.dataset))
    ranks = [replace(batches, run=run, plan=plan, rank=rank, world_size=2) for rank in range(2)]
    received = [list(updates(rank, 0, 3, CPU)) for rank in ranks]
    assert [[len(packs) > 0 for packs in of_rank] for of_rank in received].count([True, False, True]) == 1
    samples = [sample for of_rank in received for packs in of_rank[:2] for pack in packs for sample in pack.samples]
    assert sorted(samples) == list(range(len(batches.dataset)))


def test_packs_do_not_change_while_their_memory_is_used_again(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers run as far ahead as they may, because the receiver is slow to copy; every pack is kept to the end."""
    taking = Handover.take

    def slowly(self: Handover, handed: Handed | Parcel) -> Parcel:
        time.sleep(0.05)
        return taking(self, handed)

    monkeypatch.setattr(Handover, "take", slowly)
    some = replace(batches, run=batches.run.model_copy(update={"worker_num": 2}))
    received = list(updates(some, 3, 27, CPU))
    assert [_content(packs) for packs in received] == [_content(batches.packs(update)) for update in range(3, 27)]


def test_a_parcel_larger_than_its_slot_arrives(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sorted(len(batches[update].buffer) for update in range(8))
    monkeypatch.setattr("lucavirus.handover._ROOM", sizes[4])  # some fit, some do not
    received = list(updates(batches, 0, 8, CPU))
    assert [_content(packs) for packs in received] == [_content(batches.packs(update)) for update in range(8)]


@pytest.mark.parametrize(
    "error", [UserError("is broken", where="a:1", hint="mend it"), ValueError("is broken")], ids=["mistake", "bug"]
)
def test_what_fails_in_a_worker_is_raised_here_and_leaves_no_worker(
    batches: Batches, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was left, deaf to signals, would hold the trainer at its end, and the other ranks with it."""
    making = Batches.__getitem__

    def fail(self: Batches, update: int) -> Parcel:
        if update == 5:
            raise error
        if update == 6:  # another one is stuck, as in a read when the disk's server is away
            time.sleep(600)
        return making(self, update)

    monkeypatch.setattr(Batches, "__getitem__", fail)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # patience with each worker
    some = replace(batches, run=batches.run.model_copy(update={"worker_num": 2}))
    received = []
    with pytest.raises(type(error), match="is broken") as caught:
        for packs in updates(some, 2, 9, CPU):
            received.append(packs)
    assert len(received) == 3
    for child in multiprocessing.active_children():
        child.join(10)
    assert not multiprocessing.active_children()
    assert str(caught.value) == str(error) or type(error) is ValueError


def test_a_slot_that_was_used_again_too_early_is_noticed(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucavirus.handover.get_worker_info", lambda: SimpleNamespace(id=0))
    handover = Handover(batches.__getitem__, 1)
    handed = [handover[update] for update in range(AHEAD + 1)]
    assert _content(handover.take(handed[0]).open(CPU)) == _content(batches.packs(0))
    handover[AHEAD + 1]
    assert _content(handover.take(handed[1]).open(CPU)) == _content(batches.packs(1))
    with pytest.raises(AssertionError, match="used again too early"):
        handover.take(handed[0])


def test_each_epoch_has_its_own_masks_and_sharded_ranks_as_many_packs(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packs that only make the numbers equal come first: they have nothing to hide the reduction behind."""
    ranks = [replace(batches, rank=rank, world_size=3) for rank in range(3)]
    later = batches.plan.updates_per_epoch
    different = 0
    for update in range(8):
        numbers = [len(rank.packs(update)) for rank in ranks]
        equal = [[len(pack.samples) for pack in replace(rank, equal_packs=True).packs(update)] for rank in ranks]
        assert [len(found) for found in equal] == [max(numbers)] * 3
        assert [found.count(0) for found in equal] == [max(numbers) - number for number in numbers]
        assert all(0 not in found[found.count(0) :] for found in equal)
        different += len(set(numbers)) > 1
    assert different
    epochs: list[int] = []
    monkeypatch.setattr("lucavirus.loader.make_parcel", lambda *given: epochs.append(given[3]))
    for update in (0, later - 1, later, 2 * later - 1):
        batches[update]
    assert epochs == [0, 0, 1, 1]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_packs_are_equal_in_number_where_parameters_are_divided(batches: Batches, parallel: str) -> None:
    prepared: Any = SimpleNamespace(train=batches.dataset, run=batches.run, plan=batches.plan, classes={})
    compute: Any = SimpleNamespace(capacity=258, parallel=parallel)
    assert Batches.of(prepared, compute, tiny.ALONE).equal_packs is (parallel == "fsdp")


def test_workers_heed_no_signal_that_asks_the_trainer_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    heeded = {}
    monkeypatch.setattr(signal, "signal", heeded.__setitem__)
    loader._begin(0)
    assert heeded == dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGUSR1), signal.SIG_IGN)
