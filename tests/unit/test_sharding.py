"""Where layers are compiled, and what is said where they cannot be."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

from lucavirus.attention import FLASH_2, FLASH_4, PLAIN
from lucavirus.compute import Compute
from lucavirus.distributed import Ranks
from lucavirus.model import Architecture, Layer, LucaVirus
from lucavirus.sharding import obstacle_to_compiling, place
from tests import tiny


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an H100 whose only programs and headers are those in the folder: gcc and Python.h."""
    for name in ("gcc", "Python.h"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    return tmp_path


def test_what_the_compiler_needs(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle_to_compiling() is None
    monkeypatch.setenv("CC", "cc-13")
    assert obstacle_to_compiling() == "there is no C compiler (cc-13); install gcc"
    monkeypatch.delenv("CC")
    (tools / "gcc").rename(tools / "clang")
    assert obstacle_to_compiling() is None
    (tools / "clang").unlink()
    assert obstacle_to_compiling() == "there is no C compiler (gcc or clang); install gcc"
    (tools / "gcc").touch(0o755)
    (tools / "Python.h").unlink()
    assert obstacle_to_compiling() == f"{tools} has no Python.h; install the headers of Python (python3-dev)"


@pytest.mark.parametrize(
    ("compile_", "attention", "gcc", "compiled"),
    [("auto", FLASH_2, True, True), ("auto", FLASH_2, False, False), ("auto", FLASH_4, True, True),
     ("auto", PLAIN, True, False), ("on", PLAIN, True, False), ("on", FLASH_2, False, True),
     ("off", FLASH_2, True, False)],
)  # fmt: skip
def test_where_layers_are_compiled(
    compile_: str, attention: str, gcc: bool, compiled: bool, tools: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if not gcc:
        (tools / "gcc").unlink()
    monkeypatch.setattr(LucaVirus, "to", lambda self, device: self)
    model, run = LucaVirus(Architecture(16, 2, 2, 34, {})), tiny.RUN.model_copy(update={"compile": compile_})
    there = torch.device("cuda")
    compute = Compute(there, torch.bfloat16, 34, 34, attention=attention)
    assert place(model, run, compute, Ranks(3, 4, there)) is compiled
    assert [layer._compiled_call_impl is not None for layer in model.layers] == [compiled] * 2
    said = "warning: rank 3 does not compile its layers, and is slower: there is no C compiler (gcc or clang)"
    assert (said in capsys.readouterr().err) is (compile_ == "auto" and not gcc)


@pytest.mark.parametrize("recomputation", [True, False])
def test_a_model_is_placed_as_the_run_says(recomputation: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    how: list[dict[str, bool]] = []
    monkeypatch.setattr(Layer, "compile", lambda self, **words: how.append(words))
    model, there = LucaVirus(Architecture(16, 2, 2, 34, {})), torch.device("meta")
    run = tiny.RUN.model_copy(update={"compile": "on", "recomputation": recomputation})
    place(model, run, Compute(there, torch.float32, 34, 34, attention=FLASH_2), Ranks(0, 1, there))
    assert model.recomputation is recomputation and how == [{"dynamic": True}] * 2
    assert all(parameter.device == there for parameter in model.parameters())


def test_compiling_without_the_kernel_is_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    model, here = LucaVirus(Architecture(16, 2, 2, 34, {})), torch.device("cpu")
    run = tiny.RUN.model_copy(update={"compile": "on"})
    told = "warning: compile: on is left out, because FlashAttention does not compute here\n"
    for rank, said in ((0, told), (1, "")):
        assert not place(model, run, Compute(here, torch.float32, 34, 34), Ranks(rank, 2, here))
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(("compile_", "compiled"), [("auto", False), ("on", True)])
def test_what_must_be_equal_to_the_bit_is_not_compiled_by_itself(
    compile_: str, compiled: bool, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LucaVirus, "to", lambda self, device: self)
    run = tiny.RUN.model_copy(update={"compile": compile_, "deterministic": True})
    there, model = torch.device("cuda"), LucaVirus(Architecture(16, 2, 2, 34, {}))
    compute = Compute(there, torch.bfloat16, 34, 34, attention=FLASH_2)
    assert place(model, run, compute, Ranks(0, 1, there)) is compiled
