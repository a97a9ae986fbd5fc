"""The ranks of torchrun: who we are, on which device, and the few collectives that we need."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from lucavirus.claims import visible_gpus
from lucavirus.errors import Preempted, UserError

# Variables of NCCL and Gloo that say which network interface they use.
INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
# How long ranks wait for one another: one copies shards to its node's disk, or saves, while the others are idle. NCCL's
# own 10 minutes would end them.
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of a stage; every collective is a no-op when there is only one."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True on the one rank that writes logs and results."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> None:
        """Add a tensor up over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def start_sum(self, tensor: Tensor) -> dist.Work | None:
        """Begin to add a tensor up over all ranks, in place; wait for what is returned before it is read."""
        return dist.all_reduce(tensor, async_op=True) if self.world_size > 1 else None

    def broadcast_(self, tensor: Tensor) -> None:
        """Give the first rank's tensor to all, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, 0)

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        if self.world_size == 1:
            return number
        smallest = torch.tensor([number], device=self.device)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest.item())

    def all(self, here: bool) -> bool:
        """True where it is on every rank."""
        return self.least(int(here)) == 1

    def any(self, here: bool) -> bool:
        """True where it is on any rank."""
        return not self.all(not here)

    def barrier(self) -> None:
        """Wait until every rank is here, on the CPU too: a GPU's collective by itself would only be put in a queue."""
        self.least(0)

    def mine(self, count: int) -> range:
        """Which of `count` units of work this rank does."""
        return range(self.rank, count, self.world_size)

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """Every rank's array, in the order of ranks, on the first rank, none elsewhere; first dimensions may differ."""
        if self.world_size == 1:
            return [array]
        sizes = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        sizes[self.rank] = len(array)
        self.sum_(sizes)
        room = np.zeros((int(sizes.max()), *array.shape[1:]), array.dtype)
        room[: len(array)] = array
        sent = torch.from_numpy(room).to(self.device)
        received = [torch.empty_like(sent) for _ in range(self.world_size)] if self.first else []
        dist.gather(sent, received if self.first else None)
        if not self.first:
            return []
        return [part[:size].cpu().numpy() for part, size in zip(received, sizes.tolist(), strict=True)]


ALONE = Ranks(0, 1, torch.device("cpu"))


def fetch(numbers: Tensor) -> Callable[[], list[float]]:
    """Begin to read numbers (n,) from a device; call what is returned to have them.

    A GPU is waited for only then, and not for what it has been given to do in between.
    """
    if numbers.device.type != "cuda":
        return numbers.tolist
    arriving, done = torch.empty_like(numbers, device="cpu", pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    arriving.copy_(numbers, non_blocking=True)
    done.record()

    def read() -> list[float]:
        done.synchronize()
        return cast("list[float]", arriving.tolist())

    return read


class Stopwatch:
    """Seconds spent within `with` blocks, on the device's own clock; reading them waits for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._events.append((begin, end))
            self._events[-1][0].record()
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._started

    def read(self) -> float:
        """Seconds since the last reading."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


@contextmanager
def joined(device: Literal["auto", "cpu"] = "auto", *, announce: bool = False) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment, if any, and leave it at the end.

    After an error it is not left but by the end of the process: a rank that failed alone would wait for the others, who
    wait for it, and its error would never be seen. With `announce` each of several ranks first says who it is, on which
    host and device. Raises UserError, with the host, where this rank cannot start.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    me = f"rank {rank} of {world_size} on {_host()}"
    chosen = _device(device, me)
    if world_size > 1:
        if announce:
            print(f"{me}: {_description(chosen)}", file=sys.stderr)
        _join(chosen, me)
    stopped: Preempted | None = None
    try:
        yield Ranks(rank, world_size, chosen)
    except Preempted as stop:  # on all ranks alike
        stopped = stop
    if world_size > 1:
        dist.destroy_process_group()
    if stopped:
        raise stopped


def _host() -> str:
    # Slurm's name of a node, which scontrol and sinfo know.
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _device(wanted: Literal["auto", "cpu"], me: str) -> torch.device:
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        try:
            torch.cuda.set_device(device)
        except RuntimeError as error:
            raise UserError(
                f"cannot use {device}: {error}",
                where=me,
                hint="more processes than GPUs, or a GPU that does not work: look at nvidia-smi on that host",
            ) from None
        return device
    if granted := _granted_gpus():
        raise UserError(
            f"has the use of {granted}, but torch finds no GPU",
            where=me,
            hint="look at nvidia-smi on that host: is the driver new enough for this torch, which is built for "
            f"{f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no GPU'}? Or set device: cpu in `training`",
        )
    return torch.device("cpu")


def _granted_gpus() -> str:
    """The GPUs that Slurm, the launcher or the user gives; a machine with a broken driver must not train for days."""
    if count := int(os.environ.get("SLURM_GPUS_ON_NODE") or 0):
        return f"{count} GPU(s) of Slurm's"
    named = "CUDA_VISIBLE_DEVICES" in os.environ and visible_gpus(os.environ)
    return f"GPU {', '.join(named)} (CUDA_VISIBLE_DEVICES)" if named else ""


def _description(device: torch.device) -> str:
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"
    chosen = [f"{key}={os.environ[key]}" for key in INTERFACES if key in os.environ]
    return ", ".join([name, *chosen])


def _join(device: torch.device, me: str) -> None:
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"could not join the other ranks at {place}: {error}",
            where=me,
            hint="can that host reach the first one? NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME choose the interface",
        ) from error
