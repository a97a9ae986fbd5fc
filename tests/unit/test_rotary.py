"""Rotary positions: this package's own way beside the plain formula, and what makes them relative."""

from __future__ import annotations

import pytest
import torch

from lucavirus import linear, rotary


def test_pairs_are_turned_by_their_angles() -> None:
    cos, sin = rotary.angles(torch.tensor([0, 3]), 4)
    x = torch.tensor([[[1.0, 0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0, 1.0]]])
    turned = rotary.rotate(x, (cos, sin))
    # Numbers 0 and 2 are a pair that turns by the position, 1 and 3 one that turns by a hundredth of it.
    angles = torch.tensor([3.0, 0.03])
    assert torch.equal(turned[0], x[0])
    assert turned[1, 0].tolist() == pytest.approx(
        [angles[0].cos().item(), -angles[1].sin().item(), angles[0].sin().item(), angles[1].cos().item()]
    )


def test_ours_is_the_plain_formula_and_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    by = rotary.angles(torch.randint(0, 3000, (7,)), 6)
    x, gradient = torch.randn(7, 2, 6), torch.randn(7, 2, 6)
    found = []
    for ours in (True, False):
        monkeypatch.setattr(linear, "is_ours", lambda x, ours=ours: ours)
        given = x.clone().requires_grad_()
        out = rotary.rotate(given, by)
        out.backward(gradient)
        found.append((type(out.grad_fn).__name__, out, given.grad))
    assert [name for name, _, _ in found] == ["_RotationBackward", "AddBackward0"]
    torch.testing.assert_close(found[0][1:], found[1][1:])


def test_scores_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 8)

    def score(at: int, other: int) -> float:
        turned = [rotary.rotate(x, rotary.angles(torch.tensor([place]), 8)) for x, place in ((q, at), (k, other))]
        return float((turned[0] * turned[1]).sum())

    assert score(3, 10) == pytest.approx(score(503, 510), abs=1e-4)
    assert abs(score(3, 10) - score(10, 3)) > 0.01


def test_other_dtypes_stay_what_they_are() -> None:
    x = torch.randn(5, 2, 4, dtype=torch.bfloat16)
    assert rotary.rotate(x, rotary.angles(torch.arange(5), 4)).dtype == torch.bfloat16
