"""What all requests of this front end share: the way to the shards, what they hold in memory, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from restq.pipe import Pipe
from restq.placement import Placement
from restq.web.calls import Operation
from restq.web.crowd import Crowd
from restq.web.everywhere import Everywhere
from restq.web.pulls import Pulls
from restq.web.shards import Shards

BODIES_BYTES_MAX = 64 << 20  # of all bodies that this front end holds at a time, and of all replies on their way
MEMORY_SHARE = 32  # or no more than this part of the memory, one body too: on its way it stands there some six times


class Streaming(Protocol):
    """A `Stream`, as far as its front end deals with it."""

    @property
    def writing(self) -> bool:
        """Whether something is still to be sent."""

    def drain(self) -> None:
        """Begin nothing more, and close once everything is answered."""


class App:
    """The front end's operations over its pipes, and how much is open.

    `memory_bytes` is what there is for it, and for the shards behind it.
    """

    def __init__(
        self,
        pipes: Sequence[Pipe],
        placement: Placement,
        body_bytes_max: int,
        debug: bool = False,
        memory_bytes: float = math.inf,
    ) -> None:
        self.shards = Shards(pipes, placement)
        self.everywhere: dict[str, Operation] = {
            **Everywhere(self.shards).operations,
            **Pulls(self.shards).operations,
        }
        self.body_bytes_max = int(min(body_bytes_max, memory_bytes / MEMORY_SHARE))
        share = int(min(BODIES_BYTES_MAX, memory_bytes / MEMORY_SHARE))
        self.held_bytes_max = max(share, self.body_bytes_max)  # one of the largest always fits
        self.debug = debug
        self.held_bytes = 0
        self.crowd = Crowd(share)
        self.waiting: set[Callable[[], None]] = set()  # how to leave each request that may wait for its answer
        self.waiting_max = sys.maxsize  # beyond it nobody waits: the answer is what there is
        self.streams: set[Streaming] = set()
        self._open_count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()  # no request is open
        self._idle.set()
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether this front end ends: its clients are told to go on over other connections."""
        return self._draining

    def opened(self) -> None:
        """A request begins."""
        self._open_count += 1
        self._idle.clear()

    def closed(self) -> None:
        """A request is answered, or given up."""
        self._open_count -= 1
        if not self._open_count:
            self._idle.set()

    def run(self, work: Awaitable[None]) -> None:
        """Let a coroutine run to its end."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, seconds: float) -> None:
        """Wait until everything that was asked is answered, but no longer than this. Nobody waits for jobs any more."""
        self._draining = True
        for leave in list(self.waiting):
            leave()
        for stream in list(self.streams):
            stream.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
