"""One HTTP request and its response: read, routed, sent to its shard, and answered when the reply comes.

The body of a call on one realm is carried to the shard unread, and so is the reply on its way back. This stands on
Tornado's HTTP server directly, below its RequestHandler, which would halve the number of requests a second.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

from tornado import httputil, iostream
from tornado.http1connection import HTTP1Connection

from restq import names, routes
from restq.errors import BodyTooLarge, MethodNotAllowed, Overloaded, RestqError, UpgradeRequired
from restq.web import once
from restq.web.app import App
from restq.web.asking import LARGE_BYTES, Asking, LongPoll, check_room, known
from restq.web.calls import Call, Lease, Operation
from restq.web.encodings import JSON_TYPE, MSGPACK_TYPE, json_of, msgpack_of, prefers_msgpack
from restq.web.events import EventStream
from restq.web.stream import Stream
from restq.web.upgrade import hand_over, shake_hands

DRAIN_FACTOR = 8  # a body up to so many times too large is read to its end, so that the client sees the refusal
LENGTH_DIGITS_MAX = 18  # a Content-Length with more is Tornado's to refuse
RETRY_AFTER_SECONDS = 1

_PLAIN_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

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
        self._version = ""
        self._headers = httputil.HTTPHeaders()
        self._chunks: list[bytes] = []
        self._size = 0
        self._refusal: RestqError | None = None
        self._route = routes.Route("")
        self._once: Sequence[str] = ()  # the idempotency key and the digest of what is asked under it
        self._is_open = False
        self._poll: LongPoll | None = None  # where it may wait

    # -- reading -------------------------------------------------------------------------------------------------------

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        """From Tornado: the request line and the headers."""
        assert isinstance(start_line, httputil.RequestStartLine), "a server receives requests"
        self._method, self._target, self._version = start_line
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
                self.refuse(self._refusal)
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
            check_room(self._app, 0)
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
                self._may_wait().wait(partial(_set_done, left))
            self._app.run(self._ask_everywhere(everywhere, Call(found.query, body, left, self._once)))
            return
        if found.route.events:
            self._app.run(self._tell_events(found.ids[0] if found.ids else None))
            return
        realm, params = names.realm_name(found.ids[0]), [*found.ids[1:], *found.query]
        if found.route.upgrades:
            self._upgrade(realm)
            return
        poll = self._may_wait() if found.route.waits else None
        _Asking(self, self._app, found.route, realm, params, body, self._once, poll).ask()

    def _upgrade(self, realm: str) -> None:
        if self._app.draining:
            raise Overloaded("this front end ends; nothing was done, try again")
        handshake = shake_hands(self._target, self._headers)
        self._release()
        self._close()
        self._app.run(hand_over(self._connection, lambda ahead: Stream(self._app, realm, handshake, ahead)))

    def _may_wait(self) -> LongPoll:
        """It may wait for its answer, until its client is gone, or this front end ends."""
        self._poll = LongPoll(self._app)
        self._connection.set_close_callback(self._poll.leave)
        return self._poll

    async def _tell_events(self, realm: str | None) -> None:
        """Tell the client what happens until it is gone; to HTTP this is one long reply."""
        try:
            stream = EventStream(self._app.shards, self._connection, None if realm is None else names.realm_name(realm))
        except RestqError as error:
            self.refuse(error)
            return
        self._release()
        poll = self._may_wait()
        poll.wait(stream.leave)
        try:
            await stream.run(httputil.HTTPHeaders({"Connection": "close"}))
        except Exception:
            log.exception("%s failed", self._target[:200])
            self._connection.stream.close()
        finally:
            poll.end()
            self._close()

    async def _ask_everywhere(self, operation: Operation, call: Call) -> None:
        leases: Sequence[Lease] = ()
        try:
            outcome = await operation(call)
            leases = outcome.leases
            if self._route.undoes and len(outcome.body) >= LARGE_BYTES and not self.is_gone:
                check_room(self._app, len(outcome.body))
        except Exception as error:
            self._give_back(leases)
            self._refuse_any(error)
        else:
            if self._connection.stream.closed():
                self._give_back(leases)
            self._respond(200, outcome.body, outcome.content_type)

    def _give_back(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._app.shards.undo(lease, self._once[0] if self._once else "")

    # -- answering -----------------------------------------------------------------------------------------------------

    @property
    def is_gone(self) -> bool:
        """Whether the client would not get an answer."""
        return self._connection.stream.closed()

    def answer(self, status: int, body: bytes) -> None:
        """Respond with what a realm said."""
        self._respond(status, body)

    def refuse(self, error: RestqError) -> None:
        """Respond with an error."""
        self._respond(error.status, json.dumps(error.to_reply()).encode(), error=error)

    def _refuse_any(self, error: Exception) -> None:
        """Every request is answered, whatever happens to it."""
        self.refuse(known(error, f"{self._method} {self._target[:200]}"))

    def _respond(
        self, status: int, body: bytes, content_type: str = JSON_TYPE, error: RestqError | None = None
    ) -> None:
        self._release()
        self._close()
        if self._poll is not None:
            self._poll.end()
        if self._app.debug:
            log.info("%s %s %d", self._method, self._target[:200], status)
        if self._connection.stream.closed():
            return
        if content_type == JSON_TYPE and prefers_msgpack(self._headers.get("Accept", "")):
            body, content_type = msgpack_of(body), MSGPACK_TYPE
        try:
            if status == 200 and content_type == JSON_TYPE and self._is_plain:
                sent = self._connection.write(_PLAIN_HEAD % len(body) + body)
            else:
                sent = self._write(status, body, content_type, error)
            stream, now = self._connection.stream, time.monotonic()
            if stream.writing():
                self._app.crowd.reads(stream, len(body), now)
                sent.add_done_callback(lambda _: self._sent(stream))
            else:
                self._app.crowd.rests(stream, now)
            self._connection.finish()
        except iostream.StreamClosedError:
            log.debug("the client of %s %s is gone", self._method, self._target[:200])

    @property
    def _is_plain(self) -> bool:
        """Whether no header depends on the request, or on this front end's end: as nearly always.

        To have Tornado write the headers takes a tenth of its time for a small request.
        """
        stays = self._version == "HTTP/1.1" and self._headers.get("Connection", "keep-alive").lower() == "keep-alive"
        return stays and self._method != "HEAD" and not self._app.draining

    def _write(self, status: int, body: bytes, content_type: str, error: RestqError | None) -> asyncio.Future[None]:
        headers = httputil.HTTPHeaders({"Content-Type": content_type, "Content-Length": str(len(body))})
        if status in (429, 503):
            headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        if isinstance(error, MethodNotAllowed):
            headers["Allow"] = error.allowed
        if isinstance(error, UpgradeRequired):
            headers["Upgrade"] = "websocket"
        if self._app.draining:
            headers["Connection"] = "close"
        elif isinstance(error, UpgradeRequired):
            headers["Connection"] = "Upgrade"
        start_line = httputil.ResponseStartLine("HTTP/1.1", status, HTTPStatus(status).phrase)
        body = b"" if self._method == "HEAD" else body
        return self._connection.write_headers(start_line, headers, body or None)

    def _sent(self, stream: iostream.IOStream) -> None:
        """The client took all of a reply, or is gone."""
        self._app.crowd.has_read(stream)
        self._app.crowd.rests(stream, time.monotonic())


class _Asking(Asking):
    """What an exchange asks of one realm."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange, *asked: Any) -> None:
        super().__init__(*asked)
        self._exchange = exchange

    def answer(self, status: int, body: bytes) -> None:
        self._exchange.answer(status, body)

    def refuse(self, error: RestqError) -> None:
        self._exchange.refuse(error)

    def is_gone(self) -> bool:
        return self._exchange.is_gone


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
