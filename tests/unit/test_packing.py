"""A packed batch written out by hand, label vectors, and losses that do not depend on packing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from lucavirus import alphabet
from lucavirus.attention import make_layout
from lucavirus.config import Model, Run
from lucavirus.labels import keyword_targets, mask, paint
from lucavirus.losses import row_losses, sequence_losses
from lucavirus.model import Architecture, LucaVirus
from lucavirus.packing import Fill, make_pack, make_parcel
from lucavirus.packs import IGNORED, Pack, Sample, TaskLabels
from lucavirus.tasks import Molecule

CLS, SEP = alphabet.CLS, alphabet.SEP
CPU = torch.device("cpu")
CLASSES = {"gene_type": 3, "prot_site": 4, "gene_taxonomy": 5, "prot_taxonomy": 2, "prot_keyword": 6}
HEADS = {task: (16, size) for task, size in CLASSES.items()}
RUN = Run(
    tasks=("gene_mask", "prot_mask", *CLASSES), model=Model(hidden_size=32, num_attention_heads=4, max_length=400)
)


def _spans(*rows: tuple[int, ...]) -> Any:
    return np.array(rows, np.int32)


def _sample(index: int, molecule: int, tokens: list[int], **labels: Any) -> Sample:
    return Sample(index, molecule, np.array(tokens, np.uint8), labels)


def test_a_pack_by_hand() -> None:
    run = RUN.model_copy(update={"tasks": ("gene_type", "prot_keyword", "gene_taxonomy")})
    pack = make_pack(
        [
            _sample(7, 0, [5, 6, 7], gene_type=_spans((0, 1, 2), (1, 1, 0)), gene_taxonomy=_spans((4,))),
            _sample(3, 1, [10, 11], prot_keyword=_spans((5,), (1,))),
            _sample(9, 0, [8], gene_type=_spans((0, 0, 1))),
        ],
        run, {"gene_type": 3, "prot_keyword": 6, "gene_taxonomy": 5}, epoch=0,
    )  # fmt: skip
    assert pack.tokens.tolist() == [CLS, 5, 6, 7, SEP, CLS, 10, 11, SEP, CLS, 8, SEP]
    assert pack.types.tolist() == [0] * 5 + [1] * 4 + [0] * 3
    assert pack.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]
    assert pack.offsets == [0, 5, 9, 12] and pack.samples == [7, 3, 9]
    types = pack.labels["gene_type"]
    assert types.positions.tolist() == [1, 2, 10] and types.targets.tolist() == [2, 0, 1]
    assert types.rows.tolist() == [0, 0, 1] and types.counts.tolist() == [2, 1] and types.sequences.tolist() == [0, 2]
    keyword = pack.labels["prot_keyword"]
    assert keyword.positions.tolist() == [5] and keyword.targets.tolist() == [[0, 1, 0, 0, 0, 1]]
    assert pack.labels["gene_taxonomy"].positions.tolist() == [0]
    assert pack.labels["gene_taxonomy"].targets.tolist() == [4]


def test_masked_tokens_are_the_labels_of_the_molecules_task() -> None:
    rng = np.random.default_rng(0)
    bodies = [rng.choice(alphabet.letters("gene"), 300), rng.choice(alphabet.letters("prot"), 200)]
    samples = [_sample(n, n, body.tolist()) for n, body in enumerate(bodies)]
    pack = make_pack(samples, RUN, {}, epoch=0)
    whole = np.concatenate([[CLS], bodies[0], [SEP, CLS], bodies[1], [SEP]])
    changed = np.flatnonzero(pack.tokens.numpy() != whole)
    labelled = np.concatenate([pack.labels[task].positions.numpy() for task in ("gene_mask", "prot_mask")])
    assert set(changed) <= set(labelled) and len(changed) > 0.8 * len(labelled) > 50
    for task, first, last in (("gene_mask", 1, 301), ("prot_mask", 303, 503)):
        positions = pack.labels[task].positions.numpy()
        assert first <= positions.min() and positions.max() < last
        np.testing.assert_array_equal(pack.labels[task].targets.numpy(), whole[positions])


def test_a_run_without_a_mask_task_masks_nothing_of_that_molecule() -> None:
    run = RUN.model_copy(update={"tasks": ("gene_mask", "prot_site")})
    body = np.random.default_rng(0).choice(alphabet.letters("prot"), 300).tolist()
    pack = make_pack([_sample(0, 0, [5] * 300), _sample(1, 1, body)], run, {}, epoch=0)
    assert pack.tokens[303:603].tolist() == body and (pack.tokens[:302] == alphabet.MASK).any()


def test_later_spans_overwrite_and_spans_past_the_truncation_are_cut() -> None:
    spans = [_spans((0, 2, 1), (2, 3, 0), (4, 9, 2), (7, 9, 1)), _spans((8, 9, 1)), _spans((1, 5, 3))]
    painted = paint(spans, np.array([0, 6, 9, 11]))
    assert painted.tolist() == [1, 1, 0, 0, 2, 2] + [IGNORED] * 3 + [IGNORED, 3]


def test_a_sequence_whose_spans_lie_behind_its_end_has_no_label() -> None:
    run = RUN.model_copy(update={"tasks": ("gene_type",)})
    samples = [_sample(0, 0, [5, 6], gene_type=_spans((4, 7, 1))), _sample(1, 0, [8], gene_type=_spans((0, 0, 2)))]
    labels = make_pack(samples, run, {"gene_type": 3}, 0).labels["gene_type"]
    assert labels.sequences.tolist() == [1] and labels.rows.tolist() == [0] and labels.positions.tolist() == [5]
    assert make_pack(samples[:1], run, {"gene_type": 3}, 0).labels == {}


def test_a_class_that_is_not_in_the_vocabulary_is_no_other_class() -> None:
    run = RUN.model_copy(update={"tasks": ("gene_type",)})
    with pytest.raises(AssertionError, match="class 156 of a vocabulary of 3"):  # -100, ignored, in 8 bits
        make_pack([_sample(0, 0, [5], gene_type=_spans((0, 0, 156)))], run, {"gene_type": 3}, 0)


def test_absent_keywords_are_negatives_or_ignored() -> None:
    assert keyword_targets(_spans((2,)), 4, True).tolist() == [0, 0, 1, 0]
    assert keyword_targets(_spans((2,)), 4, False).tolist() == [IGNORED, IGNORED, 1, IGNORED]


def test_a_vocabulary_of_one_keyword() -> None:
    run = RUN.model_copy(update={"tasks": ("prot_keyword",)})
    pack = make_pack([_sample(0, 1, [10], prot_keyword=_spans((0,)))], run, {"prot_keyword": 1}, 0)
    assert pack.labels["prot_keyword"].targets.tolist() == [[1]]


def test_losses_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    labels = TaskLabels(
        torch.arange(3), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.tensor([2.0, 1.0]), torch.arange(2)
    )
    first = (np.log1p(np.exp(-2.0)) + np.log(2)) / 2
    assert sequence_losses(logits, labels).tolist() == pytest.approx([first, np.log1p(np.exp(-1.0))])
    targets = torch.tensor([[1, 0, IGNORED]], dtype=torch.int8)
    binary = TaskLabels(torch.arange(1), targets, torch.tensor([0]), torch.ones(1), torch.arange(1))
    expected = (np.log1p(np.exp(-3.0)) + np.log1p(np.exp(1.0))) / 2
    assert sequence_losses(torch.tensor([[3.0, 1.0, 50.0]]), binary).tolist() == pytest.approx([expected])


def _mixed_samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(1)
    samples = []
    for index in range(count):
        molecule = index % 2
        length = int(rng.integers(1, 390) if index % 3 else rng.integers(1, 20))
        body = rng.choice(alphabet.letters(("gene", "prot")[molecule]), length).tolist()
        labels: dict[str, Any] = {}
        if index % 4:
            span = _spans((0, length // 2, index % 3), (length // 3, length - 1, 1))
            labels = {"gene_type": span} if molecule == 0 else {"prot_site": span, "prot_keyword": _spans((index % 6,))}
            labels |= {"gene_taxonomy": _spans((index % 5,))} if molecule == 0 else {"prot_taxonomy": _spans((1,))}
        samples.append(_sample(index, molecule, body, **labels))
    return samples


def test_what_fills_a_pack_stays_short_however_large_packs_may_be() -> None:
    # It is one sequence, and attention to it grows with its square.
    assert [Fill(capacity, capacity).tokens(2100) for capacity in (1000, 32_768, 10**9)] == [2100, 2304, 3072]


@pytest.mark.parametrize("fill", [None, Fill(512, 600)])
def test_packs_made_together_are_those_made_one_by_one(fill: Fill | None) -> None:
    samples = _mixed_samples(14)
    groups = [samples[:5], [], samples[5:6], samples[6:13:2], samples[7::2]]
    for together, group in zip(make_parcel(groups, RUN, CLASSES, 2, fill).open(CPU), groups, strict=True):
        alone = make_pack(group, RUN, CLASSES, 2, fill)
        assert together.offsets == alone.offsets and together.samples == alone.samples
        assert list(together.labels) == list(alone.labels)
        assert tensors(together) == tensors(alone)
    assert make_parcel([], RUN, CLASSES, 2, fill).open(CPU) == []


def tensors(pack: Pack) -> list[Any]:
    """Type and content of every tensor of a pack."""
    found: list[Any] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append((tensor.dtype, tensor.tolist()))
        return tensor

    pack.map(note)
    return found


def _loss_and_gradient(model: LucaVirus, packs: list[Pack]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for pack in packs:
        layout = make_layout(pack.offsets, torch.device("cpu"))
        hidden = model(pack.tokens, pack.types, pack.positions, layout)
        loss = torch.stack([
            RUN.task_weight(task) * sequence_losses(model.logits(task, hidden[labels.positions]), labels).sum()
            for task, labels in pack.labels.items()
        ]).sum()  # fmt: skip
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_loss_and_gradients_do_not_depend_on_packing() -> None:
    samples = _mixed_samples(14)
    model = LucaVirus(Architecture(32, 2, 4, 400, HEADS), seed=4)
    alone = _loss_and_gradient(model, [make_pack([sample], RUN, CLASSES, 0) for sample in samples])
    two = [make_pack(part, RUN, CLASSES, 0) for part in (samples[:5], samples[5:])]
    packed = _loss_and_gradient(model, two)
    reversed_ = _loss_and_gradient(model, [make_pack(samples[::-1], RUN, CLASSES, 0)])
    for other in (packed, reversed_):
        assert other[0] == pytest.approx(alone[0], rel=1e-6)
        assert float((other[1] - alone[1]).norm() / alone[1].norm()) < 1e-6


def test_attention_stays_within_a_sequence() -> None:
    samples = _mixed_samples(6)
    model = LucaVirus(Architecture(32, 2, 4, 400, HEADS), seed=4)
    run = RUN.model_copy(update={"tasks": ("gene_taxonomy",)})

    def hidden(first: Sample) -> torch.Tensor:
        pack = make_pack([first, *samples[1:]], run, {}, 0)
        layout = make_layout(pack.offsets, torch.device("cpu"))
        return model(pack.tokens, pack.types, pack.positions, layout)[pack.offsets[1] :]

    changed = _sample(0, 1, samples[0].tokens[::-1].tolist())
    torch.testing.assert_close(hidden(samples[0]), hidden(changed), atol=0, rtol=0)


def test_random_tokens_are_drawn_as_the_run_says() -> None:
    found = {}
    for choice in ("molecule", "all"):
        run = RUN.model_copy(update={"random_tokens": choice, "mask_probability": 0.5})
        sample = _sample(0, 0, [int(alphabet.letters("gene")[0])] * 3000)
        _, [(_, corrupted)] = mask([sample], "gene_mask", run, 0)
        found[choice] = set(corrupted.tolist()) - {alphabet.MASK}
    assert found["molecule"] == set(alphabet.letters("gene").tolist())
    assert found["all"] == set(range(1, 39)) - {alphabet.MASK}


def test_a_row_with_one_known_class_has_the_loss_of_that_class() -> None:
    targets = torch.tensor([[1, IGNORED, IGNORED]], dtype=torch.int8)
    assert row_losses(torch.tensor([[3.0, 1.0, 50.0]]), targets).tolist() == pytest.approx([np.log1p(np.exp(-3.0))])


def test_each_epoch_has_masks_of_its_own() -> None:
    body = np.random.default_rng(0).choice(alphabet.letters("gene"), 300)
    tokens = [make_pack([Sample(0, 0, body, {})], RUN, {}, epoch).tokens for epoch in (0, 0, 1)]
    assert torch.equal(tokens[0], tokens[1])
    masked = [(row == alphabet.MASK) for row in tokens]
    assert (masked[0] & masked[2]).sum() < 0.5 * masked[0].sum()


def test_a_run_says_whether_absent_keywords_are_negatives() -> None:
    sample = Sample(0, 1, np.array([10], np.uint8), {"prot_keyword": np.array([[1]], np.int32)})
    for negatives, absent in ((True, 0), (False, IGNORED)):
        run = RUN.model_copy(update={"keyword_negatives": negatives})
        labels = make_pack([sample], run, {"prot_keyword": 3}, 0).labels["prot_keyword"]
        assert labels.targets.tolist() == [[absent, 1, absent]]


@pytest.mark.parametrize(("molecule", "kind"), [(0, "gene"), (1, "prot")])
def test_random_tokens_are_letters_of_the_molecule(molecule: int, kind: Molecule) -> None:
    letters = alphabet.letters(kind)
    sample = Sample(0, molecule, np.full(3000, letters[0], np.uint8), {})
    _, [(_, corrupted)] = mask([sample], f"{kind}_mask", RUN.model_copy(update={"mask_probability": 0.5}), 0)
    assert set(corrupted.tolist()) - {alphabet.MASK} == set(letters.tolist())


def test_a_pack_of_very_many_tokens() -> None:
    bodies = [np.full(size, 5, np.uint8) for size in (126, 39_000, 200)]
    labels = {"gene_type": np.array([[0, 50_000, 2]], np.int32), "gene_taxonomy": np.array([[200]], np.int32)}
    run = RUN.model_copy(update={"tasks": ("gene_type", "gene_taxonomy")})
    samples = [Sample(n, 0, body, labels) for n, body in enumerate(bodies)]
    for fill in (None, Fill(40_000, 40_000)):
        pack = make_pack(samples, run, {"gene_type": 3, "gene_taxonomy": 300}, 0, fill)
        ends = [0, 128, 39_130, 39_332]
        assert pack.offsets[:4] == pack.cu_seqlens[:4].tolist() == ends
        assert int(pack.cu_seqlens[-1]) == len(pack.tokens) == pack.offsets[-1]
        count = [np.arange(end - start) for start, end in pairwise(pack.offsets)]
        np.testing.assert_array_equal(pack.positions, np.concatenate(count))
        body = np.concatenate([np.arange(start + 1, end - 1) for start, end in pairwise(ends)])
        np.testing.assert_array_equal(pack.labels["gene_type"].positions[: len(body)], body)
        assert pack.labels["gene_taxonomy"].positions[:3].tolist() == ends[:3]
        assert pack.labels["gene_taxonomy"].targets[:3].tolist() == [200] * 3
        wanted = sorted({*body.tolist(), *ends[:3]})
        assert pack.wanted[: len(wanted)].tolist() == wanted
        assert set(pack.wanted[len(wanted) :].tolist()) <= {len(pack.tokens) - 1}
