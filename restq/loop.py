"""Which event loop the server's processes run on: uvloop where it is installed (extra `speed`), else asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


def run(main: Coroutine[None, None, None]) -> None:
    """Run a coroutine to its end, as `asyncio.run` does."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
