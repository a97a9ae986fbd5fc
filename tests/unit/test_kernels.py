"""Which kernel computes attention, and FlashAttention 4's as an operator: its package is played by torch on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lucavirus import flash
from lucavirus.attention import FLASH_2, FLASH_4, PLAIN, Layout, attend, make_layout
from lucavirus.errors import UserError
from lucavirus.kernels import advice, check, choose_kernel

CPU, GPU = torch.device("cpu"), torch.device("cuda")
H100, B200, A100, V100 = (9, 0), (10, 0), (8, 0), (7, 0)
# What the package computes and returns, with a mask and gradients by hand; {of_q} is the gradient of queries.
_PACKAGE = """
import torch

def _weights(q, k, queries, keys):
    own, owner = (
        torch.bucketize(torch.arange(len(x)), edges[1:], right=True) for x, edges in ((q, queries), (k, keys))
    )
    scores = torch.einsum("rhd,thd->hrt", q, k) * q.shape[-1] ** -0.5
    return scores.masked_fill(own[:, None] != owner[None, :], -torch.inf).softmax(-1)

def _flash_attn_fwd(q, k, v, *, cu_seqlens_q, cu_seqlens_k, return_lse):
    assert return_lse and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    out = torch.einsum("hrt,thd->rhd", _weights(q, k, cu_seqlens_q, cu_seqlens_k), v).contiguous()
    return out, torch.full((q.shape[1], q.shape[0]), 7.0), None, None, None

def _flash_attn_bwd(q, k, v, out, dout, lse, *, cu_seqlens_q, cu_seqlens_k):
    weights = _weights(q, k, cu_seqlens_q, cu_seqlens_k)
    assert lse.eq(7).all() and out.equal(torch.einsum("hrt,thd->rhd", weights, v))
    of_weights = torch.einsum("rhd,thd->hrt", dout, v)
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    of_q, of_k = torch.einsum("hrt,thd->rhd", of_scores, k), torch.einsum("hrt,rhd->thd", of_scores, q)
    return {of_q}, of_k, torch.einsum("hrt,rhd->thd", weights, dout), None
"""


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, of_q: str = "of_q") -> None:
    package = folder / "flash_attn/cute"
    package.mkdir(parents=True)
    (package / "interface.py").write_text(_PACKAGE.replace("{of_q}", of_q))
    _register(folder)
    monkeypatch.syspath_prepend(folder)
    for name in ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def _register(folder: Path) -> None:
    (folder / "flash_attn_4-4.0.0b36.dist-info").mkdir()
    (folder / "flash_attn_4-4.0.0b36.dist-info/METADATA").write_text("Name: flash-attn-4\nVersion: 4.0.0b36\n")


def _on(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


@pytest.mark.parametrize(
    ("capability", "by_2", "by_4"),
    [
        (V100, [], []),
        (A100, [24, 32, 128, 160, 256], []),
        (H100, [24], [32, 128, 160, 256]),
        (B200, [24, 160, 256], [32, 128]),
    ],
)
def test_which_kernel_computes_which_head_sizes(
    capability: tuple[int, int], by_2: list[int], by_4: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, monkeypatch)
    _on(capability, monkeypatch)
    checked: list[tuple[str, int]] = []
    monkeypatch.setattr("lucavirus.kernels.check", lambda kernel, _, dtype, size: checked.append((kernel, size)))
    sizes = (20, 24, 32, 128, 160, 256, 264)
    chosen = {size: choose_kernel(GPU, torch.bfloat16, size) for size in sizes}
    assert [size for size in sizes if chosen[size] == FLASH_2] == by_2
    assert [size for size in sizes if chosen[size] == FLASH_4] == by_4
    assert checked == [(chosen[size], size) for size in sizes if chosen[size] != PLAIN]
    # Not in 32 bits, not on a CPU; and where bits must repeat, version 2.
    assert choose_kernel(GPU, torch.float32, 128) == choose_kernel(CPU, torch.bfloat16, 128) == PLAIN
    wanted = FLASH_2 if capability >= A100 else PLAIN
    assert choose_kernel(GPU, torch.bfloat16, 128, deterministic=True) == wanted


def test_without_the_package_version_2_computes_and_the_log_has_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    _on(H100, monkeypatch)
    monkeypatch.setattr("lucavirus.kernels.check", lambda *_: None)
    assert choose_kernel(GPU, torch.bfloat16, 128) == FLASH_2
    assert "FlashAttention 4" in (advice(GPU, FLASH_2, 128, False) or "")
    assert advice(GPU, FLASH_4, 128, False) is None
    assert advice(GPU, FLASH_2, 24, False) is advice(GPU, FLASH_2, 128, True) is None
    _on(A100, monkeypatch)
    assert advice(GPU, FLASH_2, 128, False) is advice(CPU, PLAIN, 128, False) is None


def test_an_earlier_version_of_the_package_is_not_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The source of version 2.8.3 brings the folder of version 4 along.
    (tmp_path / "flash_attn/cute").mkdir(parents=True)
    (tmp_path / "flash_attn/__init__.py").write_text("raise ImportError('built for another torch')")
    monkeypatch.syspath_prepend(tmp_path)
    assert not flash.is_installed()
    _register(tmp_path)
    assert flash.is_installed()


def _gradients(layout: Layout, compiled: bool = False) -> list[Tensor]:
    """Output and gradients of two heads of a pack of 40 tokens, 25 of which attend."""
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(rows, 2, 8, generator=generator, requires_grad=True) for rows in (25, 40, 40)]
    function = torch.compile(attend, backend="aot_eager", fullgraph=True) if compiled else attend
    out = function(*inputs, layout)
    return [out.detach(), *torch.autograd.grad(out, inputs, torch.randn(out.shape, generator=generator))]


@pytest.mark.parametrize("compiled", [False, True])
def test_version_4_computes_attention_and_its_gradients(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, monkeypatch)
    plain = make_layout([0, 9, 16, 40], CPU, torch.cat([torch.arange(4), torch.arange(12, 33)]))
    filled = [torch.cat([edges, edges[-1:], edges[-1:]]) for edges in (plain.queries, plain.keys)]
    found, wanted = _gradients(Layout(FLASH_4, *filled, 24), compiled), _gradients(plain)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def _play_torch(monkeypatch: pytest.MonkeyPatch, factor: float) -> list[int]:
    """torch's `varlen_attn` on the CPU, its result multiplied; lists how many sequences it is given."""
    given: list[int] = []

    def compute(q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, *longest: int) -> Tensor:
        assert longest == (387, 387) and len(queries) == len(keys)
        given.append(len(keys) - 1)
        return factor * flash.attend(q, k, v, queries, keys)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", compute)
    return given


@pytest.mark.parametrize("kernel", [FLASH_2, FLASH_4])
def test_the_check_passes_what_is_right(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, monkeypatch)
    given = _play_torch(monkeypatch, 1.0)
    check(kernel, CPU, torch.bfloat16, 32)
    assert given == ([11, 302] if kernel == FLASH_2 else [])


def test_a_kernel_of_torch_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, monkeypatch)
    _play_torch(monkeypatch, 1.1)
    told = r"FlashAttention 2 computes something else .*\(relative errors 0\.1, 0\.1, 0\.1, 0\.1"
    with pytest.raises(UserError, match=told):
        check(FLASH_2, CPU, torch.bfloat16, 32)


@pytest.mark.parametrize(
    ("of_q", "told"),
    [
        ("1.1 * of_q", r"computes something else than torch in fp32 \(relative errors 0\.00\d+, 0\.1, 0\.00"),
        ("0 * of_q / 0", r"computes something else than torch in fp32 \(relative errors 0\.00\d+, nan, 0\.00"),
        ("of_q.no_such_kernel()", r"cannot compute here \(AttributeError: "),
    ],
)
def test_a_package_that_does_not_compute_what_it_should_is_refused(
    of_q: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, monkeypatch, of_q)
    with pytest.raises(UserError, match=f"FlashAttention 4 {told}") as error:
        check(FLASH_4, CPU, torch.bfloat16, 32)
    assert f"with torch {torch.__version__}" in str(error.value) and "pip uninstall flash-attn-4" in str(error.value)
