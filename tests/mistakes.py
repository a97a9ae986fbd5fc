"""What a user is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lucavirus.errors import UserError


def mistake(read: Callable[[], object]) -> str:
    """The message of the UserError that `read` raises; it must come with a hint."""
    with pytest.raises(UserError) as caught:
        read()
    assert caught.value.hint
    return str(caught.value)
