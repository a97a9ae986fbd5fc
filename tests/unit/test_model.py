"""Parameter names and initialisation of SPEC section 3, and weights in other layouts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lucavirus.attention import make_layout
from lucavirus.errors import UserError
from lucavirus.linear import is_ours
from lucavirus.model import Architecture, LucaVirus
from lucavirus.weights import import_weights
from tests import tiny
from tests.made_up import ARCHITECTURE

SMALL = Architecture(32, 2, 4, 20, {"gene_type": (8, 3), "prot_keyword": (6, 5)})


def export_weights(model: LucaVirus) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_weights(model: LucaVirus, path: Path) -> None:
    save_file(export_weights(model), path)


def test_parameter_names_and_shapes() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in LucaVirus(SMALL).state_dict().items()}
    square = {f"layers.{i}.self_attn.{x}_proj.weight": (32, 32) for i in range(2) for x in ("q", "k", "v", "out")}
    assert square.items() <= shapes.items()
    assert shapes["layers.1.fc1.weight"] == (128, 32) and shapes["layers.1.fc2.bias"] == (32,)
    assert shapes["embed_tokens.weight"] == shapes["lm_head.weight"] == (39, 32)
    assert shapes["embed_type.weight"] == (2, 32)
    assert shapes["hidden_layer_list.1.weight"] == (6, 32) and shapes["classifier_list.1.weight"] == (5, 6)
    assert len(shapes) == 2 * 16 + 2 + 2 + 6 + 8


def test_the_size_of_a_model_is_known_before_there_is_one() -> None:
    parts = ("layers", "hidden_layer_list", "classifier_list")
    matrices = [p for name, p in LucaVirus(SMALL).named_parameters() if name.startswith(parts) and p.ndim == 2]
    assert SMALL.weights == sum(matrix.numel() for matrix in matrices)


def test_initialisation() -> None:
    model = LucaVirus(Architecture(256, 1, 4, 20, {}), seed=3)
    model.requires_grad_(False)
    attention = model.layers[0].self_attn
    # Xavier-uniform with gain sqrt(2): the bound is sqrt(2) * sqrt(6 / (256 + 256)).
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        weight = getattr(attention, name).weight
        assert float(weight.abs().max()) == pytest.approx(2**0.5 * (6 / 512) ** 0.5, rel=1e-3)
    assert not attention.out_proj.bias.any() and attention.q_proj.bias.any() and not model.lm_head.bias.any()
    assert not model.embed_tokens.weight[0].any()
    assert float(model.embed_tokens.weight[1:].std()) == pytest.approx(1, abs=0.03)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first, state = export_weights(LucaVirus(SMALL, seed=7)), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    second, third = export_weights(LucaVirus(SMALL, seed=7)), export_weights(LucaVirus(SMALL, seed=8))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["layers.0.fc1.weight"], third["layers.0.fc1.weight"])


def test_configuration_comes_back() -> None:
    assert Architecture.from_json(SMALL.to_json()) == SMALL
    assert SMALL.to_json()["num_hidden_layers"] == 2 and SMALL.to_json()["gene_type_label_num"] == 3


@pytest.mark.parametrize(
    "layout", ["ours", "module", "pickle", "hugging_face", "hugging_face, tied", "hugging_face, no decoder"]
)
def test_every_layout_is_read(tmp_path: Path, layout: str) -> None:
    source, target = LucaVirus(SMALL, seed=1), LucaVirus(SMALL, seed=2)
    weights = export_weights(source)
    if layout == "ours":
        save_weights(source, tmp_path / "model.safetensors")
    elif "hugging_face" in layout:
        named = {_hugging_face(name): tensor for name, tensor in weights.items()}
        if layout == "hugging_face, tied":
            del named["lucavirus.embeddings.embed_tokens.weight"]
        if layout == "hugging_face, no decoder":
            del named["lm_head.decoder.weight"]
        save_file(named, tmp_path / "model.safetensors")
    else:
        prefix = "module." if layout == "module" else ""
        name = "pytorch.pth" if layout == "module" else "pytorch_model.bin"
        beside = {f"{prefix}layers.0.self_attn.rot_emb.inv_freq": torch.ones(4), "step": 5600000}
        torch.save({prefix + key: tensor for key, tensor in weights.items()} | beside, tmp_path / name)
    found = import_weights(target, tmp_path)
    assert found.left == [] and found.unused == [] and len(found.taken) == len(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in export_weights(target).items())


def _hugging_face(name: str) -> str:
    if name.startswith("embed"):
        return f"lucavirus.embeddings.{name}"
    if name.startswith(("layers", "last_layer_norm")):
        return f"lucavirus.encoder.{name}"
    return name.replace("lm_head.weight", "lm_head.decoder.weight")


def test_what_does_not_fit_is_reported(tmp_path: Path) -> None:
    other = LucaVirus(Architecture(32, 3, 4, 20, {"gene_type": (8, 4)}), seed=1)
    save_weights(other, tmp_path / "model.safetensors")
    model = LucaVirus(SMALL, seed=2)
    before = export_weights(model)
    found = import_weights(model, tmp_path)
    assert found.left == [
        "hidden_layer_list.1.weight", "hidden_layer_list.1.bias", "classifier_list.0.weight", "classifier_list.0.bias",
        "classifier_list.1.weight", "classifier_list.1.bias",
    ]  # fmt: skip
    assert "layers.2.fc1.weight" in found.unused and "left at its initialisation: classifier_list.0.bias" in str(found)
    after, given = export_weights(model), load_file(tmp_path / "model.safetensors")
    assert torch.equal(after["classifier_list.0.weight"], before["classifier_list.0.weight"])
    assert torch.equal(after["layers.0.fc1.weight"], given["layers.0.fc1.weight"])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Architecture(16, 2, 4, 20, SMALL.heads), "layers.0.pre_layer_norm.weight is 16, in this model 32"),
        (Architecture(32, 2, 8, 20, SMALL.heads), r"has 8 attention heads \(config.json\), this model 4"),
    ],
)
def test_an_encoder_of_another_size_is_refused(other: Architecture, told: str, tmp_path: Path) -> None:
    save_weights(LucaVirus(other), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(other.to_json()))
    with pytest.raises(UserError, match=told):
        import_weights(LucaVirus(SMALL), tmp_path)


def test_weights_of_no_layer_are_refused(tmp_path: Path) -> None:
    # The bias has as many numbers in a model of any size.
    save_file(
        {"lm_head.bias": torch.zeros(39), "classifier_list.0.bias": torch.zeros(3)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(UserError, match="no tensor has the name of one in this model's layers"):
        import_weights(LucaVirus(SMALL), tmp_path)


def test_heads_are_those_of_the_same_task_where_the_folder_names_its_tasks(tmp_path: Path) -> None:
    source = LucaVirus(
        Architecture(32, 2, 4, 20, {"gene_type": (8, 3), "prot_homo": (6, 5), "prot_keyword": (6, 5)}), seed=1
    )
    save_weights(source, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(source.architecture.to_json()))
    model, given = LucaVirus(SMALL, seed=2), export_weights(source)
    found = import_weights(model, tmp_path)
    assert found.left == [] and sorted(name for name in found.unused if name.endswith("weight")) == [
        "classifier_list.prot_homo.weight", "hidden_layer_list.prot_homo.weight",
    ]  # fmt: skip
    taken = export_weights(model)
    assert torch.equal(taken["classifier_list.1.weight"], given["classifier_list.2.weight"])
    # Without the names of tasks heads are taken by number, as the original does.
    (tmp_path / "config.json").unlink()
    import_weights(model, tmp_path)
    assert torch.equal(export_weights(model)["classifier_list.1.weight"], given["classifier_list.1.weight"])


def test_a_config_that_is_none_is_refused_and_odd_heads_are_not_used(tmp_path: Path) -> None:
    save_weights(LucaVirus(SMALL), tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json: is not a group of settings"):
        import_weights(LucaVirus(SMALL), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: is no JSON"):
        import_weights(LucaVirus(SMALL), tmp_path)
    # Two heads, but not numbered as a list of two tasks is.
    odd = {name.replace("_list.1.", "_list.7."): tensor for name, tensor in tensors.items()}
    save_file(odd, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_json()))
    found = import_weights(LucaVirus(SMALL), tmp_path)
    assert {name for name in found.unused if "_list." in name} == {name for name in odd if "_list.7." in name} != set()


def test_a_folder_without_weights_and_a_pickled_module_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has none of model.safetensors"):
        import_weights(LucaVirus(SMALL), tmp_path)
    torch.save(LucaVirus(SMALL), tmp_path / "pytorch.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        import_weights(LucaVirus(SMALL), tmp_path)


class Harm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.folder,)


def test_weights_run_no_code(tmp_path: Path) -> None:
    torch.save({"embed_tokens.weight": torch.ones(39, 32), "x": Harm(tmp_path / "harm")}, tmp_path / "pytorch.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        import_weights(LucaVirus(SMALL), tmp_path)
    assert not (tmp_path / "harm").exists()


def test_sequences_that_are_stacked_or_not_all_told_are_refused() -> None:
    """They would be computed, to something without meaning."""
    model, device = LucaVirus(ARCHITECTURE), torch.device("cpu")
    tokens = torch.full((2, 10), 7)
    for wrong, offsets in ((tokens, [0, 10]), (tokens, [0, 20]), (tokens[0], [0, 5]), (tokens[0], [0, 5, 9, 20])):
        with pytest.raises(ValueError, match="packed end to end"):
            model(wrong, torch.ones_like(wrong), torch.zeros_like(wrong), make_layout(offsets, device))


def test_a_task_without_classes_has_no_head() -> None:
    assert Architecture.of(tiny.RUN, {"gene_type": 3}).heads == {"gene_type": (8, 3)}
    assert Architecture.of(tiny.RUN.model_copy(update={"tasks": ("gene_mask",)}), {"gene_type": 3}).heads == {}


def test_in_16_bits_on_a_cpu_products_are_torchs() -> None:
    x = torch.ones(2, 3)
    assert is_ours(x) and not is_ours(x.bfloat16()) and not is_ours(x[:0])
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_ours(x)
