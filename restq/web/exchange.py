"""One HTTP request and its response: read, routed, sent to its shard, and answered when the reply comes.

The body of a call on one realm is carried to the shard unread, and so is the reply on its way back. This stands on
Tornado's HTTP server directly, below its RequestHandler, which would halve the number of requests a second.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

from tornado import httputil, iostream
from tornado.http1connection import HTTP1Connection

from restq import names
from restq.errors import BodyTooLarge, InternalError, MethodNotAllowed, Overloaded, RestqError, ShardUnavailable
from restq.protocol import MOVED, Reply
from restq.web import once, routes
from restq.web.app import App
from restq.web.calls import Call, Lease, Operation
from restq.web.encodings import JSON_TYPE, MSGPACK_TYPE, json_of, msgpack_of, prefers_msgpack
from restq.web.events import EventStream

DRAIN_FACTOR = 8  # a body up to so many times too large is read to its end, so that the client sees the refusal
LARGE_BYTES = 64 << 10  # of a reply that has to fit beside others; what is smaller fits into the system's buffers
LENGTH_DIGITS_MAX = 18  # a Content-Length with more is Tornado's to refuse
HOPS_MAX = 8  # how often a request follows a realm that moves
RETRY_AFTER_SECONDS = 1

_PULLS = ("pull", "pull_everywhere")  # and those of 2013, which are GETs

log = logging.getLogger("restq.web")


class Exchanges(httputil.HTTPServerConnectionDelegate):
    """To Tornado: what makes an Exchange of each request."""

    def __init__(self, app: App) -> None:
        self._app = app

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """From Tornado: a request begins."""
        return Exchange(self._app, request_conn)


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
        self._once: Sequence[str] = ()  # the idempotency key and the digest of what is asked under it
        self._hops = 0
        self._asked_at = 0.0  # for the first time, where it may wait
        self._is_open = False
        self._has_left = False  # it is to wait no longer
        self._stop_waiting: Callable[[], None] | None = None  # until it is answered, where it may wait

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
        self._app.crowd.rests(self._connection.stream, time.monotonic())
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
        elif self._app.held_bytes > self._app.held_bytes_max:
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
        self._app.crowd.asks(self._connection.stream)
        if self._connection.stream.closed():  # of what a client sent ahead nothing is begun once it is gone
            self._release()
            self._close()
            return
        try:
            if self._refusal is not None:
                raise self._refusal
            self._check_room(0)
            found = routes.match(self._method, self._target)
            self._route = found.route
            body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            key = self._headers.get(once.HEADER) if self._method == "POST" else None
            if key is not None:
                self._once = once.read_once(key, self._method, found.path, body)
            self._begin(found, json_of(body, self._headers.get("Content-Type", "")))
        except Exception as error:
            self._refuse_any(error)

    # -- asking --------------------------------------------------------------------------------------------------------

    def _begin(self, found: routes.Match, body: bytes) -> None:
        everywhere = self._app.everywhere.get(found.route.operation)
        if everywhere is not None:
            left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if found.route.waits:
                self._wait(partial(_set_done, left))
            self._app.run(self._ask_everywhere(everywhere, Call(found.query, body, left, self._once)))
            return
        if found.route.streams:
            self._app.run(self._stream(found.ids[0] if found.ids else None))
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
        pipe = self._app.shards.pipe_of(self._realm)
        waits = self._route.waits
        now = asyncio.get_running_loop().time() if waits else 0.0
        self._asked_at = self._asked_at or now
        future = pipe.call(operation, self._realm, params, body, self._once, waits, now - self._asked_at)
        future.add_done_callback(self._replied)
        if self._route.waits:
            self._wait(partial(pipe.leave, future))

    def _wait(self, stop: Callable[[], None]) -> None:
        """Be ready to leave until the answer is there: once the client is gone, or this front end ends."""
        self._stop_waiting = stop
        self._app.waiting.add(self.leave)
        self._connection.set_close_callback(self.leave)
        if self._has_left or self._app.draining or len(self._app.waiting) > self._app.waiting_max:
            stop()

    def leave(self) -> None:
        """Wait no longer: what there is is the answer."""
        self._has_left = True
        if self._stop_waiting is not None:
            self._stop_waiting()

    def _replied(self, future: asyncio.Future[Reply]) -> None:
        """The shard answered, or went away."""
        try:
            reply = future.result()
            if reply.status != MOVED:
                self._deliver(reply)
                return
            self._app.shards.placement.learn(self._realm, reply.extra)
            self._hops += 1
            if self._hops > HOPS_MAX:
                raise ShardUnavailable(f"realm {self._realm!r} is on the move; nothing was done, try again")
            self._ask()
        except Exception as error:
            self._refuse_any(error)

    def _deliver(self, reply: Reply) -> None:
        try:
            self._check_room(len(reply.body))
        except Overloaded:
            if reply.extra and self._route.leases:
                self._undo(reply)
            raise
        if reply.extra and self._route.leases and self._connection.stream.closed():
            self._undo(reply)
        self._respond(reply.status, reply.body)

    def _check_room(self, size: int) -> None:
        """Raise Overloaded where a reply of this size does not fit into memory beside those that are on their way.

        Small ones fit always, and so do those that tell what was done. What was only leased is given back.
        """
        undoes = self._route.operation in _PULLS or self._method == "GET"
        if (size and not (undoes and size >= LARGE_BYTES)) or self._connection.stream.closed():
            return
        if not self._app.crowd.make_room(size, time.monotonic()):
            raise Overloaded("more replies wait for slow clients than fit; nothing was done, try again")

    def _undo(self, reply: Reply) -> None:
        """The client is gone: what was leased for it is given back, and a repeat of the pull leases anew.

        Not what came of an exchange under a key: it did more than lease, so that a repeat must get this very reply.
        """
        decoded = json.loads(reply.body)
        if self._route.operation == "exchange":
            if self._once:
                return
            decoded = decoded["pull"]
        if self._route.operation == "pull_2013":
            pairs = [(job_id, queue_id) for job_id, (queue_id, _) in decoded.items()]
        else:
            pairs = [(job["job_id"], job["queue_id"]) for job in decoded["jobs"]]
        self._app.shards.undo(Lease(self._realm, reply.extra, pairs), self._key)

    @property
    def _key(self) -> str:
        return self._once[0] if self._once else ""

    async def _stream(self, realm: str | None) -> None:
        """Tell the client what happens until it is gone; to HTTP this is one long reply."""
        try:
            stream = EventStream(self._app.shards, self._connection, None if realm is None else names.realm_name(realm))
        except RestqError as error:
            self._refuse(error)
            return
        self._release()
        self._wait(stream.leave)
        try:
            await stream.run(httputil.HTTPHeaders({"Connection": "close"}))
        except Exception:
            log.exception("%s failed", self._target[:200])
            self._connection.stream.close()
        finally:
            self._app.waiting.discard(self.leave)
            self._close()

    async def _ask_everywhere(self, operation: Operation, call: Call) -> None:
        leases: Sequence[Lease] = ()
        try:
            outcome = await operation(call)
            leases = outcome.leases
            self._check_room(len(outcome.body))
        except Exception as error:
            self._give_back(leases)
            self._refuse_any(error)
        else:
            if self._connection.stream.closed():
                self._give_back(leases)
            self._respond(200, outcome.body, outcome.content_type)

    def _give_back(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._app.shards.undo(lease, self._key)

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
        if self._stop_waiting is not None:
            self._stop_waiting = None
            self._app.waiting.discard(self.leave)
        if self._app.debug:
            log.info("%s %s %d", self._method, self._target[:200], status)
        if self._connection.stream.closed():
            return
        if content_type == JSON_TYPE and prefers_msgpack(self._headers.get("Accept", "")):
            body, content_type = msgpack_of(body), MSGPACK_TYPE
        headers = httputil.HTTPHeaders({"Content-Type": content_type, "Content-Length": str(len(body))})
        if status in (429, 503):
            headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        if isinstance(error, MethodNotAllowed):
            headers["Allow"] = error.allowed
        if self._app.draining:
            headers["Connection"] = "close"
        start_line = httputil.ResponseStartLine("HTTP/1.1", status, HTTPStatus(status).phrase)
        try:
            body = b"" if self._method == "HEAD" else body
            sent = self._connection.write_headers(start_line, headers, body or None)
            stream, now = self._connection.stream, time.monotonic()
            if stream.writing():
                self._app.crowd.reads(stream, len(body), now)
                sent.add_done_callback(lambda _: self._sent(stream))
            else:
                self._app.crowd.rests(stream, now)
            self._connection.finish()
        except iostream.StreamClosedError:
            log.debug("the client of %s %s is gone", self._method, self._target[:200])

    def _sent(self, stream: iostream.IOStream) -> None:
        """The client took all of a reply, or is gone."""
        self._app.crowd.has_read(stream)
        self._app.crowd.rests(stream, time.monotonic())


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
