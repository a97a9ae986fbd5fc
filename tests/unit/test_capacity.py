"""The largest pack that fits, and the dearest one that it is tried with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from lucavirus.capacity import (
    cpu_capacity,
    dearest_pack,
    evaluation_capacity,
    largest_that_fits,
    sharded_capacity,
    training_capacity,
)
from lucavirus.compute import choose_parallel, make_compute
from lucavirus.distributed import Ranks
from lucavirus.errors import UserError
from lucavirus.model import Architecture, LucaVirus
from lucavirus.update import Updater
from tests.made_up import ARCHITECTURE, CLASSES, RUN
from tests.tiny import ALONE


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
    fsdp, two = RUN.model_copy(update={"parallel": "fsdp"}), replace(ALONE, world_size=2)
    assert choose_parallel(fsdp, LucaVirus(ARCHITECTURE), two) == "fsdp"
    assert choose_parallel(fsdp, LucaVirus(ARCHITECTURE), ALONE) == "ddp"


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
