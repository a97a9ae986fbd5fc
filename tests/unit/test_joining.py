"""Joining the other ranks, leaving them, and what is decided together with them; without any process group."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lucavirus import start
from lucavirus.distributed import Ranks, Stopwatch, joined
from lucavirus.errors import Preempted, UserError
from lucavirus.model import LucaVirus
from lucavirus.state import State
from lucavirus.update import Updater
from tests.made_up import ARCHITECTURE, CLASSES, RUN
from tests.tiny import ALONE


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done with the process group, for rank 1 of 2."""
    done: list[Any] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: done.append((backend, timeout)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("left"))
    return done


def test_ranks_wait_longer_for_one_another_than_by_default(group: list[Any]) -> None:
    with joined("cpu") as ranks:
        assert (ranks.rank, ranks.world_size) == (1, 2)
    assert group == [("gloo", timedelta(hours=1)), "left"]


def test_ranks_say_who_and_where_they_are(
    group: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "SLURMD_NODENAME": "node7", "GLOO_SOCKET_IFNAME": "eth1", "MASTER_ADDR": "n1", "MASTER_PORT": "29"
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for announce, said in ((False, ""), (True, "rank 1 of 2 on node7: cpu, GLOO_SOCKET_IFNAME=eth1\n")):
        with joined("cpu", announce=announce) as ranks:
            assert not ranks.first and replace(ranks, rank=0).first
        assert capsys.readouterr().err == said

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("timed out")

    monkeypatch.setattr(dist, "init_process_group", fail)
    told = "rank 1 of 2 on node7: could not join the other ranks at n1:29: timed out"
    with pytest.raises(UserError, match=told), joined("cpu"):
        pass


def test_a_rank_has_the_gpu_of_its_number_on_its_node(group: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", group.append)
    with joined() as ranks:
        assert (ranks.rank, ranks.device) == (5, torch.device("cuda", 1))
    assert group == [torch.device("cuda", 1), ("nccl", timedelta(hours=1)), "left"]


def test_a_stopwatch_adds_up_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.0, 1.0, 5.0, 7.0))
    monkeypatch.setattr("lucavirus.distributed.time.perf_counter", lambda: next(times))
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch:
            pass
    assert [watch.read(), watch.read()] == [3.0, 0.0]


@pytest.mark.parametrize(("error", "left"), [(Preempted, True), (UserError, False), (RuntimeError, False)])
def test_a_rank_that_failed_alone_does_not_wait_for_the_others(
    group: list[Any], error: type[Exception], left: bool
) -> None:
    with pytest.raises(error, match="why"), joined("cpu"):
        raise error("why")
    assert ("left" in group) is left


@pytest.mark.parametrize(
    ("granted", "told"),
    [
        ({"SLURM_GPUS_ON_NODE": "2"}, "has the use of 2 GPU(s) of Slurm's, but torch finds no GPU"),
        ({"CUDA_VISIBLE_DEVICES": "1,3"}, "has the use of GPU 1, 3 (CUDA_VISIBLE_DEVICES), but torch finds no GPU"),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_GPUS_ON_NODE": "0"}, ""),
        ({}, ""),
    ],
)
def test_a_broken_driver_does_not_make_a_training_run_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, granted: dict[str, str], told: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
        if name in granted:
            monkeypatch.setenv(name, granted[name])
    with joined("cpu") as ranks:  # who wants the CPU gets it
        assert ranks.device.type == "cpu"
    if told:
        with pytest.raises(UserError, match=re.escape(told)), joined():
            pass
    else:
        with joined() as ranks:
            assert ranks.device.type == "cpu"


def test_the_size_of_packs_is_found_again_where_memory_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[Updater] = []

    def search(updater: Updater, classes: object) -> int:
        searched.append(updater)
        return 1000 + len(searched)

    def found(state: State, compiled: bool = False, **changes: Any) -> int:
        monkeypatch.setattr(start, "place", lambda *_: compiled)
        prepared: Any = SimpleNamespace(run=RUN.model_copy(update=changes), classes=CLASSES)
        return start.make_updater(prepared, LucaVirus(ARCHITECTURE), state, ALONE).compute.capacity

    monkeypatch.setattr(start, "training_capacity", search)
    state = State(resolved={"max_steps": 10})
    assert [found(state), found(state)] == [1001, 1001]
    assert [found(state, compiled=True), found(state, compiled=True)] == [1002, 1002]
    assert found(state, compiled=True, recomputation=True) == 1003
    assert found(state, compiled=True, recomputation=True, precision="bf16") == 1004
    assert [found(state, max_tokens_per_pack=64), found(state), found(state)] == [1005, 1006, 1006]
    monkeypatch.setattr(Ranks, "least", lambda self, number: 0)  # another rank must search
    assert found(state) == 1007
