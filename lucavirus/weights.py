"""Weights to start from: our own files, and the layouts of the original."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lucavirus.errors import UserError
from lucavirus.model import LucaVirus

_NAMES = ("model.safetensors", "pytorch.pth", "pytorch_model.bin")
_DERIVED = "rot_emb.inv_freq"
_HEADS = ("hidden_layer_list.", "classifier_list.")
_TIED = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Imported:
    """What came of loading foreign weights: names taken, names left at their initialisation, names not used."""

    taken: list[str]
    left: list[str]
    unused: list[str]

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} tensors taken, {len(self.left)} left at their initialisation"]
        lines += [f"  left at its initialisation: {name}" for name in self.left]
        lines += [f"  not used: {name}" for name in self.unused]
        return "\n".join(lines)


def import_weights(model: LucaVirus, folder: Path) -> Imported:
    """Take every tensor of a LucaOne or LucaVirus checkpoint folder whose name and shape match the model's.

    Reads `model.safetensors`, `pytorch.pth` or `pytorch_model.bin`, with the original's or the Hugging Face names, and
    `config.json` where it is. Heads are numbered by the folder's tasks where it names them, as our own do, else alike.
    Raises UserError where there is none, it cannot be read, or its layers are of another size.
    """
    config = _read_config(folder)
    found = {original_name(name): tensor for name, tensor in _read(folder).items()}
    theirs, numbers = config.get("tasks"), {name.split(".")[1] for name in found if name.startswith(_HEADS)}
    if isinstance(theirs, list) and numbers == {str(number) for number in range(len(theirs))}:
        found = _renumbered(found, theirs, list(model.architecture.heads))
    for name, tied in (_TIED, _TIED[::-1]):  # Hugging Face writes it once
        if name in found:
            found.setdefault(tied, found[name])
    own = model.state_dict()
    _require_size(model, config, own, found, folder)
    taken = [name for name in own if name in found and found[name].shape == own[name].shape]
    model.load_state_dict({name: found[name] for name in taken}, strict=False)
    left = [name for name in own if name not in taken]
    unused = [name for name in found if name not in taken and not name.endswith(_DERIVED)]
    return Imported(taken, left, unused)


def _require_size(
    model: LucaVirus, config: Mapping[str, Any], own: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path
) -> None:
    """Raise UserError for layers of other shapes or attention heads: nothing learned would be left of them."""
    hint = (
        "give the folder of a LucaOne or LucaVirus checkpoint of the same size, or set the sizes of `model` to its own"
    )
    layers = [name for name in own if name in found and name.startswith("layers.")]
    if not layers:
        raise UserError("no tensor has the name of one in this model's layers", where=str(folder), hint=hint)
    for name in layers:
        if found[name].shape != own[name].shape:
            sizes = (" x ".join(map(str, tensor.shape)) for tensor in (found[name], own[name]))
            raise UserError("{} is {}, in this model {}".format(name, *sizes), where=str(folder), hint=hint)
    heads, theirs = model.architecture.attention_heads, config.get("num_attention_heads")
    if theirs not in (None, heads):
        raise UserError(f"has {theirs} attention heads (config.json), this model {heads}", where=str(folder), hint=hint)


def _renumbered(found: Mapping[str, Tensor], theirs: list[str], ours: list[str]) -> dict[str, Tensor]:
    """Heads under the numbers that their tasks have in this model; those of other tasks keep a name of their own."""
    renamed = {}
    for name, tensor in found.items():
        if name.startswith(_HEADS):
            kind, number, rest = name.split(".", 2)
            task = theirs[int(number)]
            name = f"{kind}.{ours.index(task) if task in ours else task}.{rest}"
        renamed[name] = tensor
    return renamed


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"is no JSON ({error})", where=str(path), hint="copy the checkpoint's folder anew") from error
    if not isinstance(config, dict):
        raise UserError("is not a group of settings", where=str(path), hint="copy the checkpoint's folder anew")
    return config


def original_name(name: str) -> str:
    """SPEC's name of a parameter in any of the layouts (`module.` prefix, Hugging Face edition)."""
    name = name.removeprefix("module.").removeprefix("lucavirus.")
    name = name.removeprefix("embeddings.").removeprefix("encoder.")
    return name.replace("lm_head.decoder.weight", "lm_head.weight")


def _read(folder: Path) -> Mapping[str, Tensor]:
    for path in (folder / name for name in _NAMES):
        if path.exists():
            try:
                if path.suffix == ".safetensors":
                    return load_file(path)
                state = torch.load(path, map_location="cpu", weights_only=True)
                return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
            except Exception as error:
                raise UserError(
                    f"cannot be read as weights ({error})",
                    where=str(path),
                    hint="check that the file is complete; pickled modules are refused",
                ) from error
    hint = "set model_dirpath to the folder that has them: `checkpoint-step{N}` itself, or `runs/{run}/model`"
    raise UserError(f"has none of {', '.join(_NAMES)}", where=str(folder), hint=hint)
