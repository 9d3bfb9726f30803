"""Server-sent events: what happens in a realm, or in all, for as long as a client listens.

Each shard concerned is asked for what happened since it was asked last; it answers once something did. A client that
reads too slowly is told how many events it missed, in an event of the kind `lost`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from tornado import httputil, iostream
from tornado.http1connection import HTTP1Connection

from restq.errors import RestqError
from restq.protocol import MOVED, Reply
from restq.web.shards import Shards

ASK_SECONDS = 15.0  # with nothing to tell, a comment is sent so often: so that proxies keep the connection
RETRY_SECONDS = 0.5
CONTENT_TYPE = "text/event-stream"


class EventStream:
    """One client that listens. `realm` is None for all realms."""

    def __init__(self, shards: Shards, connection: HTTP1Connection, realm: str | None) -> None:
        self._shards = shards
        self._connection = connection
        self._realm = realm
        self._waiting: dict[int, Callable[[], None]] = {}  # how to leave what each shard was asked
        self._has_left = False

    def leave(self) -> None:
        """Listen no longer."""
        self._has_left = True
        for leave in list(self._waiting.values()):
            leave()

    async def run(self, headers: httputil.HTTPHeaders) -> None:
        """Send events until the client is gone, or `leave`."""
        headers["Content-Type"] = CONTENT_TYPE
        headers["Cache-Control"] = "no-store"
        start_line = httputil.ResponseStartLine("HTTP/1.1", 200, "OK")
        try:
            await self._connection.write_headers(start_line, headers, b": restq\n\n")
            if self._realm is None:
                await asyncio.gather(*(self._follow(shard) for shard in range(len(self._shards.pipes))))
            else:
                await self._follow(None)
            self._connection.finish()
        except iostream.StreamClosedError:
            self.leave()

    async def _follow(self, shard: int | None) -> None:
        """Tell what happens in a shard; None is the shard of the realm, wherever that lives."""
        number: int | None = None
        while True:
            asked = self._shards.placement.shard_of(self._realm) if self._realm is not None else shard or 0
            reply = await self._ask(asked, number)
            if self._has_left:
                return
            if reply is None:
                number = None  # a shard that starts again counts anew
                await self._connection.write(b": a shard is starting again, events may be missing\n\n")
                await asyncio.sleep(RETRY_SECONDS)
            elif reply.status == MOVED:
                self._shards.learn(reply)
                number = None
            else:
                told = json.loads(reply.body)
                if told is not None:
                    number = told["number"]
                await self._connection.write(_written(told))

    async def _ask(self, shard: int, number: int | None) -> Reply | None:
        pipe = self._shards.pipes[shard]
        try:
            future = pipe.call("next_events", "", [self._realm, number, ASK_SECONDS], b"", waits=True)
            self._waiting[shard] = lambda: pipe.leave(future)
            reply = await future
        except RestqError:
            return None
        finally:
            self._waiting.pop(shard, None)
        return reply if reply.status in (200, MOVED) else None


def _written(told: dict[str, Any] | None) -> bytes:
    """What a shard told, as server-sent events."""
    if told is None:
        return b": nothing new\n\n"
    parts = [_event(kind, facts) for kind, facts in told["events"]]
    if told["lost"]:
        parts.insert(0, _event("lost", {"count": told["lost"]}))
    parts.append(_event("counts", told["counts"]))
    return b"".join(parts)


def _event(kind: str, facts: dict[str, Any]) -> bytes:
    # JSON as `dumps` writes it holds no line ends.
    return f"event: {kind}\ndata: {json.dumps(facts)}\n\n".encode()
