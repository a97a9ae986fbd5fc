"""How many tokens a pack may have: as the settings say, else the largest that fits on the device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

import numpy as np
import torch

from lucavirus import alphabet
from lucavirus.config import Run
from lucavirus.errors import UserError
from lucavirus.model import Architecture, count_parameters
from lucavirus.packing import Fill, make_pack
from lucavirus.packs import Pack, Sample
from lucavirus.tasks import MOLECULES, TASKS
from lucavirus.update import Updater

# Activations of a pack on a CPU, bytes: larger packs are no faster there. A longer sequence is a pack of its own.
_CPU_ACTIVATIONS = 64e6
_CPU_SMALLEST, _CPU_LARGEST = 1024, 4096
# Without gradients a GPU has room for many more; larger packs are no faster.
_GPU_EVALUATION_PACK = 16384
_STEP = 1024
_LARGEST = 128 * _STEP
# Part of the largest size that fits which is used: packs differ, and memory has holes.
_MARGIN = 0.9
# Activations that a layer keeps for its backward pass, in multiples of the width, as numbers of 16 bits: 34 bytes a
# token, counted in a compiled layer (40 in one that is not) and by Korthikanti et al. (2022) in another. With
# recomputation it keeps its input, in 32 bits.
_ACTIVATIONS, _INPUT = 17, 2


def evaluation_capacity(architecture: Architecture, run: Run, device: torch.device) -> int:
    """Tokens a pack where no gradient is wanted; on a CPU those of training too."""
    if run.max_tokens_per_pack != "auto":
        return run.max_tokens_per_pack
    return cpu_capacity(architecture) if device.type == "cpu" else max(run.model.max_length, _GPU_EVALUATION_PACK)


def cpu_capacity(architecture: Architecture) -> int:
    """Tokens a pack on a CPU, for a model of some size."""
    bytes_a_token = 4 * _ACTIVATIONS * architecture.layers * architecture.hidden_size
    return max(_CPU_SMALLEST, min(_CPU_LARGEST, int(_CPU_ACTIVATIONS / bytes_a_token) // 32 * 32))


def training_capacity(updater: Updater, classes: Mapping[str, int]) -> int:
    """Tokens a pack of a training, the same on every rank; weights stay as they are.

    Raises UserError, on every rank, where not even the longest sequence fits.
    """
    run, ranks = updater.run, updater.ranks
    if run.max_tokens_per_pack != "auto":
        return run.max_tokens_per_pack
    if ranks.device.type == "cpu":
        return cpu_capacity(updater.model.architecture)
    longest = run.model.max_length
    mine = -(-run.sequences_per_update // ranks.world_size) * longest
    largest = max(longest, min(_LARGEST, mine))
    if updater.compute.parallel == "fsdp":  # a rank that runs out of memory would leave the others waiting
        estimate = ranks.least(_estimate(updater))
        if estimate <= 0:
            raise _no_room(updater)
        return max(longest, min(largest, estimate))

    def fits(tokens: int) -> bool:
        return ranks.all(_fits(updater, tokens, dict(classes)))

    found = largest_that_fits(fits, longest, largest)
    if not found:
        raise _no_room(updater)
    torch.cuda.reset_peak_memory_stats(ranks.device)  # what is logged is the training's, not the search's
    return found


def _no_room(updater: Updater) -> UserError:
    sharded, recomputes = updater.compute.parallel == "fsdp", updater.run.recomputation
    ways = [
        *([] if recomputes else ["set `recomputation: true`"]),
        "take more GPUs" if sharded else "set `parallel: fsdp` on several GPUs",
        "lower hidden_size, num_attention_layers or max_length",
        "see whether another process holds the GPU (nvidia-smi)",
    ]
    return UserError(
        f"the model ({count_parameters(updater.model):,} parameters) leaves no room for the longest sequence "
        f"({updater.run.model.max_length:,} tokens) on {updater.compute.device_name}",
        where="max_tokens_per_pack: auto", hint=", or ".join(ways),
    )  # fmt: skip


def _estimate(updater: Updater) -> int:
    model, ranks = updater.model, updater.ranks
    free = torch.cuda.mem_get_info(ranks.device)[0]
    return sharded_capacity(free, count_parameters(model), ranks.world_size, model.architecture, updater.run)


def sharded_capacity(free: int, parameters: int, world_size: int, architecture: Architecture, run: Run) -> int:
    """Tokens whose activations take 70 % of `free` bytes less those of weights, gradients and moments.

    These are 16 bytes a parameter, divided among the ranks; besides, between the packs of an update each rank holds all
    weights in 16 bits and the sums of all gradients in 32.
    """
    left = free - 16 * parameters // world_size - 6 * parameters
    kept = _ACTIVATIONS + _INPUT * architecture.layers if run.recomputation else _ACTIVATIONS * architecture.layers
    return int(0.7 * left / (2 * kept * architecture.hidden_size)) // _STEP * _STEP


def largest_that_fits(fits: Callable[[int], bool], smallest: int, largest: int) -> int:
    """Nine tenths of the largest multiple of 1,024 that fits, from `smallest` to `largest`; 0 where none fits."""
    if not fits(smallest):
        return 0
    good, bad = smallest // _STEP, -(-largest // _STEP) + 1
    while good + 1 < bad:
        tried = min(max(2 * good, 1), (good + bad) // 2)
        if fits(tried * _STEP):
            good = tried
        else:
            bad = tried
    return max(smallest, min(largest, int(good * _MARGIN) * _STEP))


def _fits(updater: Updater, tokens: int, classes: dict[str, int]) -> bool:
    device = updater.ranks.device
    updater.compute = updater.compute.with_capacity(tokens)
    try:
        # AdamW makes its two moments in the first update: they must have room too.
        moments = torch.empty(2 * count_parameters(updater.model), dtype=torch.float32, device=device)
        updater.rehearse(dearest_pack(tokens, updater.run, classes))
        del moments
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return True


def dearest_pack(tokens: int, run: Run, classes: dict[str, int]) -> Pack:
    """A full pack of the longest sequences in which every position has every label of its molecule."""
    random = np.random.default_rng(0)
    sizes = [run.model.max_length] * (tokens // run.model.max_length)
    if (rest := tokens % run.model.max_length) > 2:
        sizes.append(rest)
    # Proteins have the most and the widest heads.
    molecule = run.molecules[-1] if "prot" not in run.molecules else "prot"
    labels = {
        task: np.array([[0, run.model.max_length, 0]] if TASKS[task].level == "span" else [[0]], np.int32)
        for task in classes
        if TASKS[task].molecule == molecule
    }
    samples = [
        Sample(n, MOLECULES.index(molecule), random.choice(alphabet.letters(molecule), size - 2), labels)
        for n, size in enumerate(sizes)
    ]
    return make_pack(samples, run, classes, 0, Fill(tokens, tokens))
