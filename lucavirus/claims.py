"""GPUs of a machine without scheduler, shared out among trainings that do not know of each other."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lucavirus.errors import UserError

PAUSE_SECONDS = 2.0
_NO_GPU = ("-1", "NoDevFiles")  # the second is what Slurm gives to jobs without a GPU


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that a process may use: those of CUDA_VISIBLE_DEVICES where it is set, else all, by number."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    names = itertools.takewhile(lambda name: name not in _NO_GPU, map(str.strip, visible.split(",")))  # as CUDA does
    return list(dict.fromkeys(str(int(name)) if name.isdecimal() else name for name in names if name))


@contextlib.contextmanager
def claimed_gpus(count: int, say: Callable[[str], None], parent: int) -> Iterator[dict[str, str]]:
    """Hold `count` of the GPUs for a while; waits until so many are free, and yields the variable that names them.

    All or none are held, so that two who wait never wait for each other. The kernel frees a dead holder's. Raises
    UserError where there are not so many, or where the process `parent`, which started this one, dies meanwhile: nobody
    waits for the result then.
    """
    if count > len(there := visible_gpus(os.environ)):
        hint = "ask for as many as there are (the resource `gpu`, CUDA_VISIBLE_DEVICES)"
        raise UserError(f"{count} GPUs are asked for, and this machine offers {len(there)}", hint=hint)
    told = False
    while True:
        with contextlib.ExitStack() as held:
            mine = _hold(visible_gpus(os.environ), count, held)
            if len(mine) == count:
                yield {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if count else {}
                return
        if not told:
            say(f"waits until {count} GPUs are free: only {len(mine)} are, others are held by other trainings here")
            told = True
        time.sleep(PAUSE_SECONDS)
        if os.getppid() != parent:
            raise UserError("Snakemake is gone; nothing was started", hint="type the same command again")


def _hold(names: Sequence[str], count: int, held: contextlib.ExitStack) -> list[str]:
    """Hold up to `count` of the named GPUs, each by a name that the kernel gives to one process of the machine."""
    mine: list[str] = []
    for name in names:
        if len(mine) == count:
            break
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0lucavirus-gpu-{name}")
        except OSError:
            claim.close()
            continue
        held.enter_context(claim)
        mine.append(name)
    return mine
