"""The encoder, the LM head and the task heads; parameter names are those of the original checkpoints (SPEC section 3).

Shapes: T tokens of a pack, R of them whose hidden states are wanted, C width, H heads, D head size, M rows that a head
is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lucavirus import alphabet, mixed, rotary
from lucavirus.attention import Layout, attend
from lucavirus.config import Run
from lucavirus.linear import Linear, two_layers
from lucavirus.tasks import SUPERVISED, TASKS

_LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Architecture:
    """All that decides the shapes of the parameters; `heads` maps a supervised task to (hidden width, classes)."""

    hidden_size: int
    layers: int
    attention_heads: int
    max_length: int
    heads: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, run: Run, classes: Mapping[str, int]) -> Architecture:
        """The model of a run; `classes` are the sizes of the vocabularies, tasks that are not in it get no head."""
        heads: dict[str, tuple[int, int]] = {
            task: (run.model.head_width(task), classes[task])
            for task in SUPERVISED
            if task in run.tasks and task in classes
        }
        model = run.model
        return cls(model.hidden_size, model.num_attention_layers, model.num_attention_heads, model.max_length, heads)

    @property
    def attention_head_size(self) -> int:
        """Numbers of each attention head."""
        return self.hidden_size // self.attention_heads

    @property
    def weights(self) -> int:
        """Numbers in the matrices of layers and heads: nearly all parameters, known before there is a model."""
        heads = (self.hidden_size * width + width * classes for width, classes in self.heads.values())
        return 12 * self.layers * self.hidden_size**2 + sum(heads)

    def to_json(self) -> dict[str, Any]:
        """The `config.json` of a published model, with the original's key names."""
        config: dict[str, Any] = {
            "architectures": ["LucaVirus"],
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.attention_heads,
            "max_position_embeddings": self.max_length,
            "vocab_size": len(alphabet.TOKENS),
            "type_vocab_size": 2,
            "tasks": list(self.heads),
        }
        for task, (width, classes) in self.heads.items():
            config |= {f"{task}_classifier_output_size": width, f"{task}_label_num": classes}
        return config

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_json`."""
        width, layers = config["hidden_size"], config["num_hidden_layers"]
        attention_heads, positions = config["num_attention_heads"], config["max_position_embeddings"]
        heads = {t: (config[f"{t}_classifier_output_size"], config[f"{t}_label_num"]) for t in config["tasks"]}
        sizes = [width, layers, attention_heads, positions, *chain(*heads.values())]
        if not all(type(size) is int and size > 0 for size in sizes) or width % attention_heads:
            raise ValueError(f"these sizes make no model: {sizes}")
        if unknown := heads.keys() - set(SUPERVISED):
            raise ValueError(f"no tasks with labels: {', '.join(sorted(unknown))}")
        return cls(width, layers, attention_heads, positions, heads)


class LayerNorm(nn.LayerNorm):
    """torch's, in fp32 also where the weights are sharded and gathered in 16 bits."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=_LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., C) to (..., C)."""
        return F.layer_norm(x, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class SelfAttention(nn.Module):
    """Multi-head attention with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj = Linear(width, width), Linear(width, width)
        self.q_proj, self.out_proj = Linear(width, width), Linear(width, width)
        self.sums: mixed.Sums | None = None  # of keys, values and queries together, set by gradients.py

    def forward(self, x_TC: Tensor, turns: rotary.Angles, layout: Layout, wanted_R: Tensor | None = None) -> Tensor:
        """Attend within each sequence of the pack; (T, C) to (T, C), or to (R, C) of the wanted tokens."""
        asking, places = x_TC, turns
        if wanted_R is not None:
            asking, places = x_TC.index_select(0, wanted_R), (turns[0][wanted_R], turns[1][wanted_R])
        projected: tuple[Tensor, ...]
        if self.sums is not None and wanted_R is None and torch.is_grad_enabled():
            projected = mixed.products(x_TC, (self.k_proj, self.v_proj, self.q_proj), self.sums)
        else:
            projected = self.k_proj(x_TC), self.v_proj(x_TC), self.q_proj(asking)
        k, v, q = (x.unflatten(-1, (self.heads, -1)) for x in projected)  # type: ignore[no-untyped-call]
        out_RHD = attend(rotary.rotate(q, places), rotary.rotate(k, turns), v, layout)
        return self.out_proj(out_RHD.flatten(-2))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A pre-LN Transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.pre_layer_norm = LayerNorm(width)
        self.self_attn = SelfAttention(width, heads)
        self.post_layer_norm = LayerNorm(width)
        self.fc1, self.fc2 = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x_TC: Tensor, turns: rotary.Angles, layout: Layout, wanted_R: Tensor | None = None) -> Tensor:
        """Attention and feed-forward, each behind its LayerNorm and added to its input.

        (T, C) to (T, C), or to (R, C) of the wanted tokens: the others are only attended to.
        """
        x_RC: Tensor = x_TC if wanted_R is None else x_TC.index_select(0, wanted_R)
        x_RC = x_RC + self.self_attn(self.pre_layer_norm(x_TC), turns, layout, wanted_R)
        return x_RC + two_layers(self.fc1, self.fc2, self.post_layer_norm(x_RC))


class LMHead(nn.Module):
    """Predicts tokens; its output matrix is the token embedding."""

    def __init__(self, width: int, embedding: Tensor) -> None:
        super().__init__()
        self.dense = Linear(width, width)
        self.layer_norm = LayerNorm(width)
        assert isinstance(embedding, nn.Parameter)
        self.weight = embedding
        self.bias = nn.Parameter(torch.zeros(len(embedding)))

    def forward(self, x_MC: Tensor) -> Tensor:
        """Scores of the 39 tokens, (M, 39)."""
        return F.linear(self.layer_norm(F.gelu(self.dense(x_MC))), self.weight, self.bias)


@dataclass(frozen=True)
class Wanted:
    """The tokens whose hidden states are wanted: `rows` int64 (R,), ascending, and the layout in which they attend."""

    rows: Tensor
    layout: Layout


class LucaVirus(nn.Module):
    """The encoder over packed sequences, with a head for each task.

    Seeded by `seed` alone, whatever the state of the global generator. With `recomputation` a layer keeps only its
    input, and is computed a second time for its gradient.
    """

    recomputation = False

    def __init__(self, architecture: Architecture, seed: int = 0) -> None:
        super().__init__()
        width = architecture.hidden_size
        self.architecture = architecture
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed_tokens = nn.Embedding(len(alphabet.TOKENS), width)
            self.embed_type = nn.Embedding(2, width)
            self.layers = nn.ModuleList(Layer(width, architecture.attention_heads) for _ in range(architecture.layers))
            self.last_layer_norm = LayerNorm(width)
            self.lm_head = LMHead(width, self.embed_tokens.weight)
            sizes = architecture.heads.values()
            self.hidden_layer_list = nn.ModuleList(Linear(width, size, in_place=True) for size, _ in sizes)
            self.classifier_list = nn.ModuleList(Linear(size, classes, in_place=True) for size, classes in sizes)
            self._initialise()
        self._head_number = {task: number for number, task in enumerate(architecture.heads)}

    @torch.no_grad()
    def _initialise(self) -> None:
        for layer in self.layers:
            attention = layer.self_attn
            assert isinstance(attention, SelfAttention)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
                nn.init.xavier_uniform_(projection.weight, gain=2**0.5)
            nn.init.zeros_(attention.out_proj.bias)
        self.embed_tokens.weight[alphabet.PAD] = 0

    def forward(
        self, tokens_T: Tensor, types_T: Tensor, positions_T: Tensor, layout: Layout, wanted: Wanted | None = None
    ) -> Tensor:
        """Hidden states (T, C) of packed sequences; positions are counted from 0 at each [CLS].

        Of the `wanted` tokens alone (R, C): the last layer is computed for these only, which changes nothing for them.
        """
        _require_packed(tokens_T, layout)
        x: Tensor = self.embed_tokens(tokens_T).float() + self.embed_type(types_T)  # sharded weights may have 16 bits
        turns = rotary.angles(positions_T, self.architecture.attention_head_size)
        for number, layer in enumerate(self.layers, start=1):
            last = wanted is not None and number == len(self.layers)
            rest = (turns, wanted.layout, wanted.rows) if wanted and last else (turns, layout)
            if self.recomputation and torch.is_grad_enabled():
                x = checkpoint(layer, x, *rest, use_reentrant=False)
            else:
                x = layer(x, *rest)
        return self.last_layer_norm(x)  # type: ignore[no-any-return]

    def logits(self, task: str, x_MC: Tensor) -> Tensor:
        """Scores (M, classes) of a task for chosen rows of the hidden states."""
        if TASKS[task].level == "token":
            return self.lm_head(x_MC)  # type: ignore[no-any-return]
        number = self._head_number[task]
        hidden, classifier = self.hidden_layer_list[number], self.classifier_list[number]
        assert isinstance(hidden, Linear) and isinstance(classifier, Linear)
        return two_layers(hidden, classifier, x_MC)


def _require_packed(tokens_T: Tensor, layout: Layout) -> None:
    """Raise ValueError for a stack of sequences, which would be computed, to something without meaning."""
    told = sum(group.keys for group in layout.groups)
    if tokens_T.dim() != 1 or (layout.groups and told != len(tokens_T)):
        raise ValueError(
            f"tokens of shape {tuple(tokens_T.shape)}, and a layout of {told}: sequences are packed end to end, not "
            "stacked; docs/formats.md shows how"
        )


def count_parameters(model: nn.Module) -> int:
    """Numbers that are trained, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
