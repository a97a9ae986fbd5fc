"""A model made ready for its devices: whole on each, or its parameters divided among ranks by FSDP2."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from lucavirus.attention import PLAIN
from lucavirus.compute import Compute
from lucavirus.config import Run
from lucavirus.distributed import Ranks
from lucavirus.model import LucaVirus

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def place(model: LucaVirus, run: Run, compute: Compute, ranks: Ranks) -> bool:
    """Bring a model with its weights to the devices, in place; returns whether its layers are compiled there.

    Each layer is a unit of its own for FSDP2; what stands around them (embeddings, heads) is gathered once an update.
    """
    model.recomputation = run.recomputation
    if compute.parallel == "fsdp":
        _shard(model, compute, ranks)
    else:
        model.to(ranks.device)
    compiled = _compiled(model, run, compute, ranks)
    if compiled:
        for layer in model.layers:
            layer.compile(dynamic=True)
    return compiled


def _compiled(model: LucaVirus, run: Run, compute: Compute, ranks: Ranks) -> bool:
    # Without the kernel each pack's groups of sequences would be compiled anew, which takes minutes an update.
    if compute.attention == PLAIN:
        if run.compile == "on" and ranks.first:
            print("warning: compile: on is left out, because FlashAttention does not compute here", file=sys.stderr)
        return False
    if run.compile != "auto":
        return run.compile == "on"
    # The compiler divides sums by the first pack that it sees, which is another one when a run goes on.
    if run.deterministic:
        return False
    obstacle = obstacle_to_compiling()
    if obstacle:
        print(f"warning: rank {ranks.rank} does not compile its layers, and is slower: {obstacle}", file=sys.stderr)
    return obstacle is None


def obstacle_to_compiling() -> str | None:
    """What keeps torch's compiler from making code for a GPU here; a part of it is made from C where it runs."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        return f"there is no C compiler ({' or '.join(compilers)}); install gcc"
    headers = sysconfig.get_path("include", "posix_prefix")
    if not Path(headers, "Python.h").exists():
        return f"{headers} has no Python.h; install the headers of Python (python3-dev)"
    return None


def _shard(model: LucaVirus, compute: Compute, ranks: Ranks) -> None:
    # Imported where it is used: it costs every other process a second and 70 MB.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    # What passes between layers stays as it is, as for a whole model: rotary angles and sums of layers lose in 16 bits.
    precision = MixedPrecisionPolicy(compute.dtype, torch.float32, cast_forward_inputs=False)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)


def reshard(model: LucaVirus) -> None:
    """Divide again what passes without a gradient have gathered: FSDP2 leaves whole what stands around the layers.

    Until then `parameters()` would be the gathered ones, which the optimizer does not know.
    """
    if hasattr(model, "reshard"):
        cast("FSDPModule", model).reshard()


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor of all ranks together, on every rank; every rank must ask for it."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, in the same memory."""
    return tensor.to_local() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """This rank's part of a whole tensor, on the device of `other` and divided as `other` is."""
    if _is_sharded(other):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(other, DTensor)
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return tensor.to(other.device)
