"""This side of one shard's socket: requests out, replies back, many under way at once.

Frames of one turn of the loop leave in one write. When the shard goes away, what was under way fails at once
with ShardUnavailable, and the pipe connects again by itself as soon as somebody listens there.

A request may wait in the shard for minutes until there is something to answer. Thousands of those may be under way
beside all others; `leave` has one answered with what there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, cast

from restq.errors import Overloaded, ShardStarting, ShardUnavailable
from restq.protocol import Frames, Reply, Request, pack

PIPE_BYTES_MAX = 64 << 20  # of request bodies under way, or one alone; beyond it callers are told to come again
PIPE_REQUESTS_MAX = 20_000  # under way, beside those that may wait
PIPE_WAITING_MAX = 50_000
RECONNECT_SECONDS = 0.02


class Receiver(Protocol):
    """Who asked: told the outcome at once, within the read of the pipe that brought it. Neither may raise."""

    def replied(self, reply: Reply) -> None:
        """The shard's reply is there."""

    def lost(self, error: ShardUnavailable) -> None:
        """The shard went away before it replied."""


class Promise(asyncio.Future[Reply]):
    """A receiver to wait for: it gives the reply, or raises ShardUnavailable."""

    def replied(self, reply: Reply) -> None:
        """The shard's reply is there."""
        if not self.done():
            self.set_result(reply)

    def lost(self, error: ShardUnavailable) -> None:
        """The shard went away before it replied."""
        if not self.done():
            self.set_exception(error)


class Pipe(asyncio.Protocol):
    """A connection to one shard, and again after it broke. Use within a running loop."""

    def __init__(self, path: str, shard: int) -> None:
        self.path = path
        self.shard = shard
        self._transport: asyncio.Transport | None = None
        self._frames = Frames()
        self._under_way: dict[int, tuple[Receiver, int]] = {}  # with the size of the body
        self._waiting: dict[Receiver, int] = {}  # the ids of those under way that may wait
        self._bytes_under_way = 0
        self._last_id = 0
        self._unsent: list[bytes] = []
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []

    # -- for callers -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start to connect; returns at once."""
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    @property
    def is_connected(self) -> bool:
        """Whether a request would be sent now."""
        return self._transport is not None

    async def connected(self) -> None:
        """Wait until the shard is there."""
        while self._transport is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def ask(
        self,
        receiver: Receiver,
        operation: str,
        realm: str,
        params: list[Any],
        body: bytes,
        once: Sequence[str] = (),
        waits: bool = False,
        waited: float = 0,
    ) -> None:
        """Send a request, of which the receiver learns the outcome.

        `waits`: it may take its time, and can be left; one receiver asks one such thing at a time. `once`, `waited`:
        as in `Request`. Raises ShardStarting or Overloaded at once where the request can't be sent: then nothing was
        done, and the receiver hears of nothing.
        """
        if self._transport is None:
            raise ShardStarting(f"shard {self.shard} is starting again; nothing was done, try again")
        waiting_count = len(self._waiting)
        if waits:
            is_full = waiting_count >= PIPE_WAITING_MAX
        else:
            is_full = len(self._under_way) - waiting_count >= PIPE_REQUESTS_MAX
        if is_full or (self._bytes_under_way and self._bytes_under_way + len(body) > PIPE_BYTES_MAX):
            raise Overloaded(f"shard {self.shard} has more requests waiting than fit; nothing was done, try again")
        self._last_id += 1
        self._under_way[self._last_id] = (receiver, len(body))
        self._bytes_under_way += len(body)
        if waits:
            self._waiting[receiver] = self._last_id
        self._send(Request(self._last_id, operation, realm, params, body, once, waited))

    def call(
        self,
        operation: str,
        realm: str,
        params: list[Any],
        body: bytes,
        once: Sequence[str] = (),
        waits: bool = False,
        waited: float = 0,
    ) -> Promise:
        """Send a request as `ask` does. The future gives its reply, or raises ShardUnavailable."""
        promise = Promise(loop=asyncio.get_running_loop())
        self.ask(promise, operation, realm, params, body, once, waits, waited)
        return promise

    def leave(self, receiver: Receiver) -> None:
        """Have what it asked, which may wait, answered at once with what there is. Nothing happens if it is already."""
        waiting = self._waiting.get(receiver)
        if waiting is not None and self._transport is not None:
            self._last_id += 1
            self._send(Request(self._last_id, "leave", "", [waiting], b""))  # gets no reply of its own

    def _send(self, request: Request) -> None:
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(pack(request))

    def close(self) -> None:
        """Close for good."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    # -- for the loop ------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closed:
            try:
                await loop.create_unix_connection(lambda: self, self.path)
                return
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)

    def _flush(self) -> None:
        if self._transport is not None and self._unsent:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the loop: connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._frames = Frames()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def data_received(self, data: bytes) -> None:
        """From the loop: replies, whole or in part."""
        for frame in self._frames.feed(data):
            reply = Reply(*frame)
            found = self._under_way.pop(reply.request_id, None)
            if found is None:
                continue
            receiver, size = found
            self._bytes_under_way -= size
            if self._waiting:
                self._waiting.pop(receiver, None)
            receiver.replied(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """From the loop: the shard is gone. Whether it did what was under way is not known."""
        self._transport = None
        self._unsent.clear()
        lost, self._under_way = self._under_way, {}
        self._waiting.clear()
        self._bytes_under_way = 0
        if not self._closed:
            self.open()
        for receiver, _ in lost.values():
            receiver.lost(ShardUnavailable(f"shard {self.shard} went away; whether the request was done is not known"))
