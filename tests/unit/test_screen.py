"""What the launcher shows and logs: bars, lines cut anywhere, noise, full disks and closed terminals."""

from __future__ import annotations

from pathlib import Path

import pytest

from lucavirus.launch import Output


class Terminal:
    """Collects what is shown, once it is flushed, or fails like a terminal that was closed."""

    def __init__(self, *, closed: bool = False) -> None:
        self.text, self.written, self.closed = b"", b"", closed

    def write(self, data: bytes) -> int:
        if self.closed:
            raise BrokenPipeError
        self.written += data
        return len(data)

    def flush(self) -> None:
        self.text = self.written


def fed(
    tmp_path: Path, *chunks: bytes, errors: str = "", failed: bool = False, closed: bool = False
) -> tuple[bytes, bytes]:
    terminal = Terminal(closed=closed)
    (tmp_path / "errors").write_text(errors)
    with (tmp_path / "log").open("wb", buffering=0) as log:
        output = Output(terminal, log, tmp_path / "errors")  # type: ignore[arg-type]
        for chunk in chunks:
            output.feed(chunk)
        output.end(failed=failed)
    return terminal.text, (tmp_path / "log").read_bytes()


def test_a_log_on_a_full_disk_is_not_the_end(tmp_path: Path) -> None:
    terminal = Terminal()
    output = Output(terminal, Terminal(closed=True), tmp_path / "errors")  # type: ignore[arg-type]
    output.feed(b"one\ntwo")
    output.end(failed=False)
    assert terminal.text == b"one\ntwo\n"


def test_a_progress_bar_redraws_at_once_and_leaves_its_last_state(tmp_path: Path) -> None:
    terminal = Terminal()
    with (tmp_path / "log").open("wb", buffering=0) as log:
        output = Output(terminal, log, tmp_path / "errors")  # type: ignore[arg-type]
        for chunk, shown in [(b"\r 1%", b"\r 1%"), (b"\r 2%", b"\r 1%\r 2%"), (b"5", b"\r 1%\r 2%5")]:
            output.feed(chunk)
            assert terminal.text == shown
        output.feed(b"\r100%\nnext\n")
        output.end(failed=False)
    assert terminal.text == b"\r 1%\r 2%5\r100%\nnext\n"
    assert (tmp_path / "log").read_bytes() == b"100%\nnext\n"


def test_lines_cut_anywhere_come_out_whole(tmp_path: Path) -> None:
    shown, logged = fed(tmp_path, b"on", b"e\ntw", b"o\n", b"three")
    assert shown == logged == b"one\ntwo\nthree\n"
    redrawn = b" 1%\r 2%\r100%\r\nnext\r\n"
    bytewise = fed(tmp_path, *(redrawn[at : at + 1] for at in range(len(redrawn))))
    assert bytewise == fed(tmp_path, redrawn) == (redrawn, b"100%\nnext\n")


NOISE = (
    b"E1123 10:00:00.000000 7 torch/x.py:1] failed (exitcode: 1)\nTraceback (most recent call last):\n  more\nError\n"
)


@pytest.mark.parametrize(
    "first",
    [
        NOISE,
        b"W1123 10:00:00.000000 7 torch/x.py:1] Sending process 8 closing signal\n",
        b"Traceback (most recent call last):\n",
        b"[rank1]: Traceback (most recent call last):\n",
        b"[rank1]:W1123 10:00:00.000000 7 torch/x.py:1] still there\n",
        b"\r 50%\rTraceback (most recent call last):\n",
    ],
)
def test_noise_after_a_user_error_is_left_out(tmp_path: Path, first: bytes) -> None:
    start, errors = b"started, no W1123 10:00:00\n", "error: bad\nhint\n" * 2
    shown, logged = fed(tmp_path, start, first, b"more\n\r 1%", b"\r 2%\nend", errors=errors, failed=True)
    assert shown == logged == start + b"error: bad\nhint\n"


def test_noise_without_a_user_error_is_shown_at_once(tmp_path: Path) -> None:
    terminal, log = Terminal(), Terminal()
    output = Output(terminal, log, tmp_path / "errors")  # type: ignore[arg-type]
    output.feed(NOISE)
    assert terminal.text == log.written == NOISE
    output.end(failed=True)
    assert terminal.text == log.written == NOISE


def test_what_was_held_back_is_shown_when_all_ended_well(tmp_path: Path) -> None:
    shown, logged = fed(tmp_path, NOISE, errors="bad\n", failed=False)
    assert shown == logged == NOISE


def test_a_closed_terminal_does_not_stop_the_log(tmp_path: Path) -> None:
    assert fed(tmp_path, b"one\n", b"two\n", closed=True) == (b"", b"one\ntwo\n")
