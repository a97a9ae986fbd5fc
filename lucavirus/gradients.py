"""Gradients of an update, reduced over ranks once: of replicas in one flat buffer, of sharded parameters by FSDP2."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from lucavirus.distributed import Ranks
from lucavirus.linear import Linear
from lucavirus.mixed import ALIGNMENT, Sums
from lucavirus.model import LucaVirus, SelfAttention
from lucavirus.sharding import whole

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


_PART = 2**14  # numbers whose squares are added up at once
_ALIGNMENT = 4  # a parameter's numbers begin at a multiple of 16 bytes, as products on GPUs want them


class Gradients(Protocol):
    """What an update does with gradients; `statistics` float32 are numbers added up over ranks with them.

    Losses are to be multiplied by `loss_scale`, which undoes that FSDP2 averages over ranks.
    """

    statistics: Tensor
    loss_scale: int

    def clear(self) -> None:
        """Begin an update: gradients and statistics are 0."""

    def expect(self, *, last: bool) -> None:
        """Announce the backward pass of the next pack, and whether it is the last one of the update."""

    def reduce(self) -> None:
        """Add up over ranks; the losses were divided by B already."""

    def norm(self) -> Tensor:
        """Their norm, float32 ()."""


def divisor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this norm are divided by to have at most `max_norm`, float32 (); 1 where they have no more."""
    return ((norm + 1e-6) / max_norm).clamp(min=1)


def _norm(flat: Tensor) -> Tensor:
    """The norm of one long vector, float32 (): of the norms of its parts, because a CPU adds up one after the other.

    There the norm of 67 million numbers at once came out 0.5 % too small, of a billion 20 %.
    """
    whole_parts = len(flat) // _PART * _PART
    parts = torch.linalg.vector_norm(flat[:whole_parts].view(-1, _PART), dim=1)
    norm: Tensor = torch.linalg.vector_norm(torch.cat([parts, flat[whole_parts:]]))
    return norm


class FlatGradients:
    """All gradients in one flat float32 buffer, with room for statistics.

    A parameter without gradient in an update (a head without labels) has a gradient of 0, on every rank alike. The
    layers are reduced while the last pack's backward pass still computes those below them, the rest after it. With
    `mixed` linear layers add theirs up by themselves (mixed.py); autograd sees that they have, not what.
    """

    def __init__(self, model: LucaVirus, ranks: Ranks, statistics: int, *, mixed: bool = False) -> None:
        # Of each layer the matrices first, so that those of keys, values and queries are neighbours, and so are their
        # biases; then what stands around the layers.
        layers = [sorted(layer.parameters(), key=lambda parameter: parameter.dim() == 1) for layer in model.layers]
        parameters = list(dict.fromkeys([*chain.from_iterable(layers), *model.parameters()]))
        self.ranks = ranks
        self._places: dict[Tensor, slice] = {}
        self._size = 0
        for parameter in parameters:
            self._places[parameter] = slice(self._size, self._size + parameter.numel())
            self._size += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        self._buffer = torch.zeros(self._size + statistics, dtype=torch.float32, device=parameters[0].device)
        self.statistics = self._buffer[self._size :]
        for parameter in parameters:
            parameter.grad = self._buffer[self._places[parameter]].view_as(parameter)
        if mixed:
            self._add_up_by_themselves(model)
        self.loss_scale = 1
        self._last = False
        self._missing: list[int] = []
        self._works: list[dist.Work | None] = []
        # In the order of a backward pass, which is the same on every rank: so are the collectives.
        self._layers = layers[::-1]
        if ranks.world_size > 1:
            for number, layer in enumerate(self._layers):
                for parameter in layer:
                    parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                        lambda _, number=number: self._arrived(number)
                    )

    def _add_up_by_themselves(self, model: LucaVirus) -> None:
        """Have linear layers add up in their parameters' gradients."""
        for module in model.modules():
            if isinstance(module, Linear):
                module.sums = self._sums([module])
            elif isinstance(module, SelfAttention) and module.k_proj.out_features % ALIGNMENT == 0:
                module.sums = self._sums([module.k_proj, module.v_proj, module.q_proj])

    def _sums(self, layers: Sequence[Linear]) -> Sums:
        return Sums(
            self._together([layer.weight for layer in layers]), self._together([layer.bias for layer in layers])
        )

    def _together(self, parameters: Sequence[Tensor]) -> Tensor:
        """The gradients of neighbouring parameters, one below the other.

        A tensor of its own in the same memory. Views would share the buffer's version, so that autograd took the sums
        of other layers for a change of what this one has saved; and the compiler added to copies of them.
        """
        places = [self._places[parameter] for parameter in parameters]
        assert all(place.stop == following.start for place, following in pairwise(places))
        part = self._buffer[places[0].start : places[-1].stop]
        return from_dlpack(part.view(-1, *parameters[0].shape[1:]))

    @property
    def flat(self) -> Tensor:
        """All gradients, float32 (parameters,), with zeros between them."""
        return self._buffer[: self._size]

    def clear(self) -> None:
        """Begin an update."""
        self._buffer.zero_()
        self._last = False

    def expect(self, *, last: bool) -> None:
        """Announce the next backward pass."""
        self._last = last
        self._missing = [len(layer) for layer in self._layers]
        self._works = []

    def _arrived(self, number: int) -> None:
        if not self._last:
            return
        self._missing[number] -= 1
        if self._missing[number] == 0:
            self._reduce_layer(number)

    def _reduce_layer(self, number: int) -> None:
        assert number == len(self._works), "layers are reduced in the order of the backward pass"
        self._works.append(self.ranks.start_sum(self._buffer[self._span(number)]))

    def _span(self, number: int) -> slice:
        places = [self._places[parameter] for parameter in self._layers[number]]
        return slice(places[0].start, places[-1].stop)

    def reduce(self) -> None:
        """Add up over ranks."""
        if self.ranks.world_size == 1:
            return
        # A rank without any pack has not reduced its layers yet.
        for number in range(len(self._works), len(self._layers)):
            self._reduce_layer(number)
        self._works.append(self.ranks.start_sum(self._buffer[self._span(0).stop :]))
        for work in self._works:
            if work is not None:
                work.wait()
        self._works = []

    def norm(self) -> Tensor:
        """Their norm."""
        return _norm(self.flat)


class ShardedGradients:
    """Gradients of a model whose parameters FSDP2 divides among ranks: reduced in the last pack's backward pass.

    Every rank must go through the same number of packs, and through each head at least once an update.
    """

    def __init__(self, model: LucaVirus, ranks: Ranks, statistics: int) -> None:
        self.model, self.ranks = cast("FSDPModule", model), ranks
        self.statistics = torch.zeros(statistics, dtype=torch.float32, device=ranks.device)
        self.loss_scale = ranks.world_size

    def clear(self) -> None:
        """Begin an update."""
        self.statistics.zero_()
        for parameter in self._parameters():
            parameter.grad = None

    def expect(self, *, last: bool) -> None:
        """Announce the next backward pass."""
        self.model.set_requires_gradient_sync(last)
        self.model.set_is_last_backward(last)
        self.model.set_reshard_after_backward(last)

    def reduce(self) -> None:
        """Add up the statistics; the gradients are reduced."""
        self.ranks.sum_(self.statistics)

    def norm(self) -> Tensor:
        """Their norm, the same on every rank."""
        gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        return whole(nn.utils.get_total_norm(gradients))

    def _parameters(self) -> list[nn.Parameter]:
        return list(cast(nn.Module, self.model).parameters())
