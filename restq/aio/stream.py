"""How the client for asyncio sends its calls over streams: one WebSocket for each realm, which all tasks share.

The calls of one turn of the loop leave in one message. What spans realms, is too large for a stream, or finds none goes
over HTTP all the same. The twin of `restq.client.stream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import deque
from typing import TypeVar

from aiohttp import ClientWebSocketResponse, WSMsgType

from restq.aio.connection import Connection, Requester
from restq.aio.session import Session, StreamRefused
from restq.client import streaming
from restq.client.call import Call
from restq.client.peer import Attempts
from restq.client.streaming import Operation
from restq.config import Config
from restq.errors import RestqError

T = TypeVar("T")

MESSAGE_BYTES = 1 << 20  # beyond it what gathered goes on in another message


class Stream:
    """One WebSocket to one realm."""

    def __init__(self, socket: ClientWebSocketResponse, body_bytes_max: int) -> None:
        """`body_bytes_max` is what the server said of it. Use within a running loop."""
        self.body_bytes_max = body_bytes_max
        self._socket = socket
        self._asked: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._left: set[int] = set()  # pulls whose callers were cancelled, or waited for too long
        self._ids = itertools.count(1)
        self._unsent: deque[bytes] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._reading = asyncio.create_task(self._read())

    @property
    def is_open(self) -> bool:
        """Whether something can be asked, as far as is known here."""
        return not self._socket.closed and not self._reading.done()

    async def ask(
        self, operation: Operation, content: bytes | None, key: str | None, seconds: float
    ) -> tuple[int, bytes]:
        """The status and the body of the reply. OSError where none came; Overloaded where nothing was done."""
        request_id = next(self._ids)
        future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._asked[request_id] = future
        self._send(operation.frame(request_id, content, key))
        try:
            async with asyncio.timeout(seconds):
                return await future
        except (asyncio.CancelledError, TimeoutError):
            if operation.name == "pull":
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._give_back(*future.result())
                else:
                    self._left.add(request_id)
            raise
        finally:
            self._asked.pop(request_id, None)

    async def close(self) -> None:
        """Close it; what is under way fails."""
        await self._socket.close()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    def _send(self, frame: bytes) -> None:
        self._unsent.append(frame)
        if self._sending is None:
            self._sending = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Send what gathered, and what gathers meanwhile."""
        try:
            while self._unsent:
                message = [self._unsent.popleft()]
                size = len(message[0])
                while self._unsent and size + len(self._unsent[0]) <= MESSAGE_BYTES:
                    message.append(self._unsent.popleft())
                    size += len(message[-1])
                await self._socket.send_bytes(b"".join(message))
        except OSError as error:  # aiohttp's own one for a closed socket among them
            self._fail(error)
        finally:
            self._sending = None

    async def _read(self) -> None:
        """Give each reply to whom it is for, until the stream ends."""
        error: Exception = ConnectionError("the stream was closed")
        try:
            while (message := await self._socket.receive()).type not in (WSMsgType.CLOSED, WSMsgType.CLOSING):
                if message.type is WSMsgType.CLOSE:
                    error = streaming.ended(message.data, message.extra)
                    return
                if message.type is not WSMsgType.BINARY:
                    error = ConnectionError(f"the stream failed: {message.data}")
                    return
                for request_id, status, body in streaming.replies(message.data):
                    self._reply(request_id or 0, status, body)
        except Exception as failure:
            error = ConnectionError(str(failure) or type(failure).__name__)
        finally:
            self._fail(error)
            await self._socket.close()  # if the server did not: nobody reads it any more

    def _reply(self, request_id: int, status: int, body: bytes) -> None:
        future = self._asked.get(request_id)
        if future is not None and not future.done():
            future.set_result((status, body))
        elif request_id in self._left:
            self._left.discard(request_id)
            self._give_back(status, body)

    def _give_back(self, status: int, body: bytes) -> None:
        """What was leased for a caller that has left is ready again, as if its connection had been closed."""
        leases = [job["lease_id"] for job in json.loads(body)["jobs"]] if status == 200 else []
        if leases:
            release = Operation("", "release", [])
            self._send(release.frame(next(self._ids), json.dumps({"leases": leases}).encode(), None))

    def _fail(self, error: Exception) -> None:
        for future in self._asked.values():
            if not future.done():
                future.set_exception(error)


class StreamConnection(Connection):
    """Sends what is asked of one realm over the stream of the realm. Its tasks share it."""

    def __init__(self, uri: str | None, requester: Requester | None, config: Config | None) -> None:
        """`requester` is for what goes over HTTP, and, where it is a `Session`, for opening streams."""
        super().__init__(uri, requester, config)
        self._streams: dict[str, asyncio.Task[Stream]] = {}
        self._refusals = streaming.Refusals()
        self._session = requester if isinstance(requester, Session) else Session()
        self._owns_session = requester is not self._session

    async def _send_once(self, call: Call[T], attempts: Attempts) -> T:
        operation = streaming.operation_of(call)
        if operation is None or self._refusals.hold(operation.realm, time.monotonic()):
            return await super()._send_once(call, attempts)
        try:
            stream = await self._stream(operation.realm, attempts.left(time.monotonic()))
        except StreamRefused:
            self._refusals.add(operation.realm, time.monotonic())
            return await super()._send_once(call, attempts)
        except OSError as error:
            if isinstance(error, RestqError):
                raise
            raise self.unopened(error, attempts.seconds) from error
        if len(call.content or b"") > stream.body_bytes_max:
            return await super()._send_once(call, attempts)
        try:
            left = attempts.left(time.monotonic())  # opening it was a part of the try
            status, body = await stream.ask(operation, call.content, attempts.key, left)
        except OSError as error:
            if isinstance(error, RestqError):
                raise
            raise self.unreachable(error, attempts.seconds) from error
        return self.result(call, status, lambda: json.loads(body))

    async def _stream(self, realm: str, seconds: float) -> Stream:
        """The stream to the realm, a new one where there is none that can be used."""
        opening = self._streams.get(realm)
        if opening is not None and opening.done() and (opening.exception() or not opening.result().is_open):
            opening = None
        if opening is None:
            opening = self._streams[realm] = asyncio.create_task(self._open(realm, seconds))
        async with asyncio.timeout(seconds):  # whoever opens it may have more time
            return await asyncio.shield(opening)

    async def _open(self, realm: str, seconds: float) -> Stream:
        async with asyncio.timeout(seconds):
            socket = await self._session.connect(self.uri + streaming.stream_path(realm))
            try:
                first = await socket.receive()
                if first.type is not WSMsgType.BINARY:
                    raise streaming.ended(first.data, first.extra)
                [(_, _, limits)] = streaming.replies(first.data)
                return Stream(socket, json.loads(limits)["body_bytes"])
            except BaseException:
                await socket.close()
                raise

    async def close(self) -> None:
        """Close all streams, and the Session, if there is one of our own. The next call would open another."""
        streams, self._streams = self._streams, {}
        for found in await asyncio.gather(*streams.values(), return_exceptions=True):
            if isinstance(found, Stream):
                await found.close()
        if self._owns_session:
            await self._session.close()
        await super().close()
