"""Weights to start from: our own files, and the layouts of the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lucavirus.errors import UserError

_NAMES = ("model.safetensors", "pytorch.pth", "pytorch_model.bin")
_DERIVED = "rot_emb.inv_freq"


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


def import_weights(model: nn.Module, folder: Path) -> Imported:
    """Take every tensor of a LucaOne or LucaVirus checkpoint folder whose name and shape match the model's.

    Reads `model.safetensors`, `pytorch.pth` or `pytorch_model.bin`, with the original's or the Hugging Face names.
    Raises UserError where there is none, it cannot be read, or nothing in it matches.
    """
    found = {original_name(name): tensor for name, tensor in _read(folder).items()}
    if "embed_tokens.weight" in found:  # tied; Hugging Face writes it once
        found.setdefault("lm_head.weight", found["embed_tokens.weight"])
    own = model.state_dict()
    taken = [name for name in own if name in found and found[name].shape == own[name].shape]
    if not taken:
        raise UserError("no tensor has a name and shape of this model", where=str(folder),
                        hint="give the folder of a LucaOne or LucaVirus checkpoint of the same size")  # fmt: skip
    model.load_state_dict({name: found[name] for name in taken}, strict=False)
    left = [name for name in own if name not in taken]
    unused = [name for name in found if name not in taken and not name.endswith(_DERIVED)]
    return Imported(taken, left, unused)


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
    raise UserError(f"has none of {', '.join(_NAMES)}", where=str(folder),
                    hint="set model_dirpath to the folder `checkpoint-step{N}` itself")  # fmt: skip
