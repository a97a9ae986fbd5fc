"""A plain stand-in of the original's training step: one sequence at a time, each of its heads at every position.

The parameters are those of the package's model, the losses and gradients too (SPEC section 2); the way to them is the
original's, operation by operation: GELU of the encoder from its formula, rotations by halves, attention by torch's
scaled_dot_product_attention, the answers of every head made into probabilities, AdamW as torch has it.

Shapes: T tokens of the sequence, C width, H heads, D head size, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lucavirus.config import Run
from lucavirus.model import Layer, LMHead, LucaVirus
from lucavirus.packs import IGNORED, Pack, TaskLabels
from lucavirus.tasks import MOLECULES, TASKS


class StandIn:
    """A model with its optimizer; `step` does one update."""

    def __init__(self, model: LucaVirus, run: Run, tasks: Sequence[str]) -> None:
        self.model, self.run, self.tasks = model, run, tasks
        decayed = [p for name, p in model.named_parameters() if p.ndim > 1]
        others = [p for name, p in model.named_parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": run.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=run.learning_rate, betas=(0.9, 0.99))

    def step(self, packs: Sequence[Pack]) -> float:
        """One update on packs of one sequence each; returns the loss."""
        total = self.backward(packs)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.run.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def backward(self, packs: Sequence[Pack]) -> float:
        """Add up the gradients of packs of one sequence each; returns their loss."""
        total = 0.0
        for pack in packs:
            losses, probabilities = zip(*self._tasks(pack), strict=True)
            loss: Tensor = sum(losses) / self.run.sequences_per_update
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            del probabilities  # the original has made them, and kept them until here
        return total

    def _tasks(self, pack: Pack) -> Iterator[tuple[Tensor, Tensor]]:
        """Weighted loss and probabilities of each task of the molecule, those without a label too."""
        hidden = _hidden(self.model, pack)
        molecule = MOLECULES[int(pack.types[0])]
        for task in (task for task in self.tasks if TASKS[task].molecule == molecule):
            level = TASKS[task].level
            logits = _logits(self.model, task, hidden[:1] if level == "sequence" else hidden)
            several = task == "prot_keyword"
            loss = _keyword_loss(logits, pack.labels.get(task)) if several else _loss(logits, pack.labels.get(task))
            yield self.run.task_weight(task) * loss, logits.sigmoid() if several else logits.softmax(-1)


def _hidden(model: LucaVirus, pack: Pack) -> Tensor:
    """Hidden states of a sequence, (T, C)."""
    x = F.embedding(pack.tokens, model.embed_tokens.weight) + F.embedding(pack.types, model.embed_type.weight)
    size = model.architecture.attention_head_size
    frequencies = 10_000 ** -(torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(len(x)).float(), frequencies).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    for layer in model.layers:
        assert isinstance(layer, Layer)
        x = x + _attention(layer, _norm(layer.pre_layer_norm, x), cos, sin)
        x = x + _linear(layer.fc2, _gelu(_linear(layer.fc1, _norm(layer.post_layer_norm, x))))
    return _norm(model.last_layer_norm, x)


def _attention(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    own = layer.self_attn
    q, k, v = (
        _linear(projection, x).view(len(x), own.heads, -1).transpose(0, 1)[None]
        for projection in (own.q_proj, own.k_proj, own.v_proj)
    )
    out_HTD = F.scaled_dot_product_attention(_rotated(q, cos, sin), _rotated(k, cos, sin), v)[0]
    return _linear(own.out_proj, out_HTD.transpose(0, 1).flatten(-2))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _logits(model: LucaVirus, task: str, x: Tensor) -> Tensor:
    if TASKS[task].level == "token":
        head: LMHead = model.lm_head
        return F.linear(_norm(head.layer_norm, _gelu(_linear(head.dense, x))), head.weight, head.bias)
    number = list(model.architecture.heads).index(task)
    hidden, classifier = model.hidden_layer_list[number], model.classifier_list[number]
    return _linear(classifier, F.gelu(_linear(hidden, x)))


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return F.linear(x, layer.weight, layer.bias)


def _norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _loss(logits_TK: Tensor, labels: TaskLabels | None) -> Tensor:
    """Mean cross-entropy of the positions that have a label; it is computed at the others too."""
    targets = torch.full((len(logits_TK),), IGNORED)
    if labels:
        targets[labels.positions] = labels.targets
    losses = F.cross_entropy(logits_TK, targets, ignore_index=IGNORED, reduction="none")
    return losses.sum() / (targets != IGNORED).sum().clamp(min=1)


def _keyword_loss(logits_1K: Tensor, labels: TaskLabels | None) -> Tensor:
    targets = labels.targets if labels else torch.full_like(logits_1K, IGNORED)
    known = targets != IGNORED
    losses = F.binary_cross_entropy_with_logits(logits_1K, targets.clamp(min=0).float(), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)
