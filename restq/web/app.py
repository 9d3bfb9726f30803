"""HTTP to requests and back: each request is read, routed, sent to its shard, and answered when the reply comes.

The body of a call on one realm is carried to the shard unread, and so is the reply on its way back. This stands on
Tornado's HTTP server directly, below its RequestHandler, which would halve the number of requests a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import msgpack
from tornado import httputil, iostream
from tornado.http1connection import HTTP1Connection

from restq import names
from restq.errors import (
    BodyMalformed,
    BodyTooLarge,
    ContentTypeUnsupported,
    InternalError,
    MethodNotAllowed,
    Overloaded,
    RestqError,
    ShardUnavailable,
)
from restq.pipe import Pipe
from restq.placement import Placement
from restq.protocol import MOVED, Reply
from restq.web import routes
from restq.web.everywhere import Everywhere, Outcome

BODIES_BYTES_MAX = 256 << 20  # of all bodies that this front end holds at a time
REPLIES_BYTES_MAX = 256 << 20  # of replies on their way to slow clients: beyond it requests are refused
DRAIN_FACTOR = 8  # a body up to so many times too large is read to its end, so that the client sees the refusal
LENGTH_DIGITS_MAX = 18  # a Content-Length with more is Tornado's to refuse
HOPS_MAX = 8  # how often a request follows a realm that moves
RETRY_AFTER_SECONDS = 1

JSON_TYPE = "application/json"
MSGPACK_TYPE = "application/msgpack"
# Types under which JSON arrives: what clients of 2013, curl and browsers send when nobody says otherwise.
JSON_TYPES = frozenset(
    {"", JSON_TYPE, "text/plain", "text/json", "application/x-www-form-urlencoded", "application/octet-stream"}
)

log = logging.getLogger("restq.web")


class App(httputil.HTTPServerConnectionDelegate):
    """The front end's routes over its pipes."""

    def __init__(self, pipes: list[Pipe], placement: Placement, body_bytes_max: int, debug: bool = False) -> None:
        self.pipes = pipes
        self.placement = placement
        self.body_bytes_max = body_bytes_max
        self.debug = debug
        self.held_bytes = 0
        self.reply_bytes = 0
        self._open_count = 0
        self.everywhere = Everywhere(pipes, placement)
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

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """From Tornado: a request begins."""
        return Exchange(self, request_conn)

    def reply_sent(self, size: int) -> None:
        """A reply that took its time has left, or never will."""
        self.reply_bytes -= size

    def run(self, work: Awaitable[None]) -> None:
        """Let a coroutine run to its end."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, seconds: float) -> None:
        """Wait until everything that was asked is answered, but no longer than this."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()


class Exchange(httputil.HTTPMessageDelegate):
    """One HTTP request and its response."""

    def __init__(self, app: App, connection: httputil.HTTPConnection) -> None:
        assert isinstance(connection, HTTP1Connection), "HTTP/1 is what Tornado speaks"
        self._app = app
        self._connection = connection
        self._method = ""
        self._target = ""
        self._headers = httputil.HTTPHeaders()
        self._chunks: list[bytes] = []
        self._size = 0
        self._refusal: RestqError | None = None
        self._route = routes.Route("")
        self._realm = ""
        self._call: tuple[str, list[Any], bytes] = ("", [], b"")
        self._hops = 0
        self._is_open = False

    # -- reading -------------------------------------------------------------------------------------------------------

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        """From Tornado: the request line and the headers."""
        assert isinstance(start_line, httputil.RequestStartLine), "a server receives requests"
        self._method, self._target = start_line.method, start_line.path
        self._headers = headers
        self._is_open = True
        self._app.opened()
        length = headers.get("Content-Length", "")
        self._connection.set_max_body_size(self._app.body_bytes_max * DRAIN_FACTOR)
        size = int(length) if length.isdecimal() and len(length) <= LENGTH_DIGITS_MAX else 0
        if size > self._app.body_bytes_max:
            self._refusal = self._too_large()
            if headers.get("Expect") or size > self._app.body_bytes_max * DRAIN_FACTOR:
                self._refuse(self._refusal)
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """From Tornado: a piece of the body."""
        if self._refusal is not None:
            return None
        self._size += len(chunk)
        self._app.held_bytes += len(chunk)
        self._chunks.append(chunk)
        if self._size > self._app.body_bytes_max:
            self._forget(self._too_large())
        elif self._app.held_bytes > BODIES_BYTES_MAX:
            self._forget(Overloaded("the server holds more request bodies than fit; nothing was done, try again"))
        return None

    def _forget(self, refusal: RestqError) -> None:
        self._refusal = refusal
        self._release()

    def _release(self) -> None:
        self._app.held_bytes -= self._size
        self._size = 0
        self._chunks.clear()

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than the {self._app.body_bytes_max} bytes that this server takes")

    def on_connection_close(self) -> None:
        """From Tornado: the client went away while it was sending."""
        self._release()
        self._close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._app.closed()

    def finish(self) -> None:
        """From Tornado: the request is complete."""
        if self._connection.stream.closed():  # of what a client sent ahead nothing is begun once it is gone
            self._release()
            self._close()
            return
        try:
            if self._refusal is not None:
                raise self._refusal
            if self._app.reply_bytes > REPLIES_BYTES_MAX:
                raise Overloaded("more replies wait for slow clients than fit; nothing was done, try again")
            found = routes.match(self._method, self._target)
            self._route = found.route
            self._begin(found, self._body())
        except Exception as error:
            self._refuse_any(error)

    def _body(self) -> bytes:
        """The body as JSON."""
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        content_type = self._headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type == MSGPACK_TYPE:
            return _from_msgpack(body) if body else body
        if body and content_type not in JSON_TYPES and not content_type.endswith("+json"):
            raise ContentTypeUnsupported(
                f"Content-Type: {ascii(content_type)[:80]} is not understood; send {JSON_TYPE} or {MSGPACK_TYPE}"
            )
        return body

    # -- asking --------------------------------------------------------------------------------------------------------

    def _begin(self, found: routes.Match, body: bytes) -> None:
        everywhere = EVERYWHERE.get(found.route.operation)
        if everywhere is not None:
            self._app.run(self._ask_everywhere(everywhere(self._app.everywhere, found.query, body)))
            return
        self._realm = names.realm_name(found.ids[0])
        if found.route.operation == "pin_realm":
            self._call = ("place_realm", [1], body)
        elif found.route.operation == "unpin_realm":
            self._call = ("place_realm", [0], b"")
        else:
            self._call = (found.route.operation, [*found.ids[1:], *found.query], body)
        self._ask()

    def _ask(self) -> None:
        operation, params, body = self._call
        pipe = self._app.pipes[self._app.placement.shard_of(self._realm)]
        pipe.call(operation, self._realm, params, body).add_done_callback(self._replied)

    def _replied(self, future: asyncio.Future[Reply]) -> None:
        """The shard answered, or went away."""
        try:
            reply = future.result()
            if reply.status != MOVED:
                self._deliver(reply)
                return
            self._app.placement.learn(self._realm, reply.extra)
            self._hops += 1
            if self._hops > HOPS_MAX:
                raise ShardUnavailable(f"realm {self._realm!r} is on the move; nothing was done, try again")
            self._ask()
        except Exception as error:
            self._refuse_any(error)

    def _deliver(self, reply: Reply) -> None:
        if reply.extra and self._route.leases and self._connection.stream.closed():
            self._undo(reply)
        self._respond(reply.status, reply.body)

    def _undo(self, reply: Reply) -> None:
        """The client is gone: what was leased for it is given back."""
        decoded = json.loads(reply.body)
        if "jobs" in decoded and self._route.operation == "pull":
            pairs = [(job["job_id"], job["queue_id"]) for job in decoded["jobs"]]
        else:
            pairs = [(job_id, queue_id) for job_id, (queue_id, _) in decoded.items()]
        self._app.everywhere.undo(self._realm, reply.extra, pairs)

    async def _ask_everywhere(self, work: Awaitable[Outcome]) -> None:
        try:
            outcome = await work
        except Exception as error:
            self._refuse_any(error)
        else:
            if self._connection.stream.closed():
                for realm, lease, pairs in outcome.leases:
                    self._app.everywhere.undo(realm, lease, pairs)
            self._respond(outcome.status, outcome.body, outcome.content_type)

    # -- answering -----------------------------------------------------------------------------------------------------

    def _refuse_any(self, error: Exception) -> None:
        """Every request is answered, whatever happens to it."""
        if not isinstance(error, RestqError):
            log.error("%s %s failed", self._method, self._target[:200], exc_info=error)
            error = InternalError("restq met a defect of its own; whether the request was done is not known")
        self._refuse(error)

    def _refuse(self, error: RestqError) -> None:
        self._respond(error.status, json.dumps(error.to_reply()).encode(), error=error)

    def _respond(
        self, status: int, body: bytes, content_type: str = JSON_TYPE, error: RestqError | None = None
    ) -> None:
        self._release()
        self._close()
        if self._app.debug:
            log.info("%s %s %d", self._method, self._target[:200], status)
        if self._connection.stream.closed():
            return
        if content_type == JSON_TYPE and MSGPACK_TYPE in self._headers.get("Accept", ""):
            body, content_type = msgpack.packb(json.loads(body)), MSGPACK_TYPE
        headers = httputil.HTTPHeaders({"Content-Type": content_type, "Content-Length": str(len(body))})
        if status in (429, 503):
            headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        if isinstance(error, MethodNotAllowed):
            headers["Allow"] = error.allowed
        if self._app.draining:
            headers["Connection"] = "close"
        start_line = httputil.ResponseStartLine("HTTP/1.1", status, HTTPStatus(status).phrase)
        try:
            sent = self._connection.write_headers(start_line, headers, None if self._method == "HEAD" else body)
            if self._connection.stream.writing():
                self._app.reply_bytes += len(body)
                sent.add_done_callback(lambda _: self._app.reply_sent(len(body)))
            self._connection.finish()
        except iostream.StreamClosedError:
            log.debug("the client of %s %s is gone", self._method, self._target[:200])


def _from_msgpack(body: bytes) -> bytes:
    """The JSON of a msgpack body; refuses what JSON has no word for."""
    try:
        value = msgpack.unpackb(body, strict_map_key=True)
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        why = str(error) or "it is nested too deeply or not complete"
        raise BodyMalformed(f"the body is not msgpack that JSON could say too: {why}") from None


EVERYWHERE: dict[str, Callable[[Everywhere, list[str | None], bytes], Awaitable[Outcome]]] = {
    "bulk_add": Everywhere.bulk_add,
    "bulk_remove": Everywhere.bulk_remove,
    "pull_everywhere_2013": Everywhere.pull_2013,
    "get_health": Everywhere.get_health,
    "get_metrics": Everywhere.get_metrics,
    "get_performance": Everywhere.get_performance,
    "get_readiness": Everywhere.get_readiness,
    "get_shards": Everywhere.get_shards,
    "get_statuses": Everywhere.get_statuses,
    "pull_everywhere": Everywhere.pull,
}
