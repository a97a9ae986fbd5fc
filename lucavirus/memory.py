"""What glibc's malloc does with large blocks. The kernel hands memory out page by page, each for microseconds.

Both ways are for the whole process; on other systems, and where the user sets malloc's variables, nothing changes.
"""

from __future__ import annotations

import ctypes
import os

# Numbers of options in glibc's malloc.h, and the largest value that the second one may have.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST_MMAP_THRESHOLD = 32 * 2**20
# From so many weights on the memory of a training counts for more than its speed.
_LARGE_MODEL = 4 * 10**6


def keep_blocks() -> None:
    """Keep what is freed: the next block of that size takes no new pages."""
    _set({_MMAP_THRESHOLD: _MOST_MMAP_THRESHOLD, _TRIM_THRESHOLD: 8 * _MOST_MMAP_THRESHOLD})


def map_blocks() -> None:
    """Map each block from 1 MB on by itself: in the heap, holes of many sizes add up to half as much memory again."""
    _set({_MMAP_THRESHOLD: 10**6})


def prepare_for_model(weights: int) -> None:
    """Choose for the training or evaluation of a model of that size; call it before there is any."""
    if weights < _LARGE_MODEL:
        keep_blocks()
    else:
        map_blocks()


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        for option, value in options.items():
            mallopt(option, value)
