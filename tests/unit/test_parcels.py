"""Packs on their way from a worker: one buffer, the same packs, no file for each tensor."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lucavirus.loader import Batches, updates
from lucavirus.packing import Pack
from lucavirus.parcels import Parcel
from lucavirus.plan import Plan
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    settings = tiny.make_project(tmp_path_factory.mktemp("parcels"))
    dataset = tiny.dataset(settings)
    run = tiny.RUN.model_copy(update={"worker_num": 1})
    classes = {"gene_type": 8, "gene_taxonomy": 4, "prot_keyword": 12, "prot_taxonomy": 4}
    return Batches(dataset, run, Plan.of(run, len(dataset)), classes, 258, 0, 1)


def _content(packs: list[Pack]) -> list[Any]:
    found: list[Any] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append((tensor.dtype, tensor.tolist()))
        return tensor

    for pack in packs:
        pack.map(note)
        found.append((pack.offsets, pack.samples, list(pack.labels)))
    return found


def test_packs_come_back_as_they_were(batches: Batches) -> None:
    packs = batches.packs(3)
    assert len(packs) > 2 and any("prot_keyword" in pack.labels for pack in packs)
    assert _content(Parcel.of(packs).open(CPU)) == _content(packs)
    assert Parcel.of([]).open(CPU) == []


@pytest.mark.parametrize(
    ("low", "high", "size"),
    [
        (0, 255, 1),
        (0, 256, 2),
        (-1, 32767, 2),
        (-100, 32768, 4),
        (0, 2**31 - 1, 4),
        (0, 2**31, 8),
        (-(2**31) - 1, 0, 8),
    ],
)
def test_integers_travel_in_the_smallest_type_that_holds_them(batches: Batches, low: int, high: int, size: int) -> None:
    numbers = torch.zeros(4096, dtype=torch.int64)
    numbers[7], numbers[9] = low, high
    pack = replace(batches.packs(0)[0], tokens=numbers, labels={})
    plain = replace(pack, tokens=numbers[:0])
    parcel = Parcel.of([pack])
    assert len(parcel.buffer) - len(Parcel.of([plain]).buffer) == size * 4096
    (opened,) = parcel.open(CPU)
    assert opened.tokens.dtype == torch.int64 and torch.equal(opened.tokens, numbers)


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
