"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def flush(path: Path) -> None:
    """Have the operating system write a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file under a temporary name, flush and rename it; its folder is made where absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    os.replace(temporary, path)


def replace_json(path: Path, content: Any) -> None:
    """Write JSON the same way."""
    replace_text(path, json.dumps(content, indent=1) + "\n")
