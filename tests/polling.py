"""Waiting for what a test caused, without sleeping for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

DEADLINE_SECONDS = 20.0
PAUSE_SECONDS = 0.01


def eventually(look: Callable[[], Found], seconds: float = DEADLINE_SECONDS) -> Found:
    """The first true value that `look` returns, asked again and again; fails with its last value at the deadline."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"did not come true within {seconds:.0f} s; the last value was {found!r}")
        time.sleep(PAUSE_SECONDS)
    return found
