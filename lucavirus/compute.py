"""How packs are computed: device, precision, sizes, and parameters whole or sharded."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lucavirus.attention import PLAIN, Layout, boundaries, make_layout
from lucavirus.config import Run
from lucavirus.distributed import Ranks
from lucavirus.kernels import choose_kernel
from lucavirus.model import LucaVirus, Wanted, count_parameters
from lucavirus.packing import step_of_fill
from lucavirus.packs import Pack

Parallel = Literal["ddp", "fsdp"]

# Rows that a head computes at once: its hidden layer may be many times wider than the encoder.
_HEAD_ROWS = {"cpu": 384, "cuda": 8192}
# From here on the weights, gradients and moments of a replica (16 bytes a parameter) take 32 GB of a GPU.
_REPLICATED_PARAMETERS = 2 * 10**9


@dataclass(frozen=True)
class Compute:
    """Device, precision and sizes of the computation.

    `capacity` tokens at once; `max_length` tokens the longest sequence; `attention` the name of what computes it.
    """

    device: torch.device
    dtype: torch.dtype
    capacity: int
    max_length: int
    parallel: Parallel = "ddp"
    attention: str = PLAIN

    def with_capacity(self, tokens: int) -> Compute:
        """The same with packs of at most `tokens` tokens."""
        return replace(self, capacity=tokens)

    @property
    def head_rows(self) -> int:
        """Rows of hidden states that a head computes at once."""
        return _HEAD_ROWS[self.device.type]

    @property
    def device_name(self) -> str:
        """The model of the device: what fits one fits all of its kind."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def hidden(self, model: LucaVirus, pack: Pack) -> Tensor:
        """Hidden states (R, C) of the wanted tokens of a pack that is on the device."""
        if self.attention != PLAIN:
            # torch.compile compiles anew for another Python number, and for a view at another place of a larger tensor:
            # so `longest` is a constant (as long as what may fill up a pack or its wanted tokens), and boundaries and
            # rows are tensors of their own.
            step = step_of_fill(self.capacity)
            edges, rows, longest = pack.cu_seqlens.clone(), pack.wanted.clone(), max(self.max_length, step) + step
            layout = Layout(self.attention, edges, edges, longest)
            wanted = Wanted(rows, Layout(self.attention, boundaries(rows, edges), edges, longest))
        else:
            layout = make_layout(pack.offsets, self.device)
            wanted = Wanted(pack.wanted, make_layout(pack.offsets, self.device, pack.wanted))
        hidden: Tensor = model(pack.tokens, pack.types, pack.positions, layout, wanted)
        return hidden

    def autocast(self) -> torch.autocast:
        """The context of the computation; does nothing in fp32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def make_compute(run: Run, device: torch.device, parallel: Parallel = "ddp") -> Compute:
    """The computation of a run on a device; its packs are as small as they may be (see capacity.py)."""
    on_gpu = device.type == "cuda"
    # Older GPUs emulate it, slowly.
    in_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    half = run.precision == "bf16" or (run.precision == "auto" and in_bf16)
    dtype, longest = torch.bfloat16 if half else torch.float32, run.model.max_length
    head_size = run.model.hidden_size // run.model.num_attention_heads
    attention = choose_kernel(device, dtype, head_size, run.deterministic)
    return Compute(device, dtype, longest, longest, parallel, attention)


def choose_parallel(run: Run, model: LucaVirus, ranks: Ranks) -> Parallel:
    """Whether each rank holds all parameters (ddp) or its share of them (fsdp)."""
    if ranks.world_size == 1:  # the share of one rank is all; no group of processes is needed then
        return "ddp"
    if run.parallel != "auto":
        return run.parallel
    return "fsdp" if count_parameters(model) > _REPLICATED_PARAMETERS else "ddp"


def set_determinism(run: Run) -> None:
    """Have GPU kernels add up in a fixed order where the run wants it; must come before anything is computed."""
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
