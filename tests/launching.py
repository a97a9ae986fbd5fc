"""Programs that the launcher has started, or is."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

LAUNCHER = Path(__file__).resolve().parents[1] / "workflow_scripts" / "launch.py"

Start = Callable[..., "subprocess.Popen[bytes]"]


def run(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.decode()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second when it ends between opening and reading
        return False


def counting(tmp_path: Path) -> str:
    """A child that writes its pid, counts the signals it gets and ends 0.3 s after the first, with status 5."""
    return (
        "import os, pathlib, signal, time\n"
        "got = []\n"
        "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): signal.signal(n, lambda n, _: got.append(n))\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "while not got: time.sleep(0.01)\n"
        "end = time.monotonic() + 0.3\n"
        "while time.monotonic() < end: time.sleep(0.01)\n"
        f"pathlib.Path({str(tmp_path / 'got')!r}).write_text(' '.join(map(str, map(int, got))))\n"
        "raise SystemExit(5)"
    )


def child_pid(tmp_path: Path) -> int:
    assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    return int((tmp_path / "pid").read_text())
