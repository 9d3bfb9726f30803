"""A client of a stream that knows nothing of restq: a WebSocket, msgpack, and what the protocol says."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any, Self

import msgpack
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

DEADLINE_SECONDS = 10.0


def frame(to: Any, operation: Any, params: Any = (), body: Any = None, *key: Any) -> bytes:
    """One operation. A body that is neither bytes nor a string is sent as JSON."""
    if body is not None and not isinstance(body, (bytes, str)):
        body = json.dumps(body).encode()
    packed: bytes = msgpack.packb([to, operation, list(params), body, *key])
    return packed


def values(content: bytes) -> list[Any]:
    """The values of a message."""
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 30)
    unpacker.feed(content)
    return list(unpacker)


class StreamClient:
    """One stream, used in an `async with`."""

    def __init__(self, port: int, realm: str = "r", **options: Any) -> None:
        options = {"compression": None, "max_size": None, "proxy": None, **options}
        self._connecting = connect(f"ws://127.0.0.1:{port}/{realm}/stream", **options)
        self.websocket: ClientConnection
        self.limits: dict[str, int] = {}
        self.answers: dict[Any, tuple[int, Any]] = {}

    async def __aenter__(self) -> Self:
        self.websocket = await self._connecting
        status, self.limits = await self.answer(None)
        assert status == 200
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.websocket.close()

    async def send(self, *frames: bytes) -> None:
        """Send these in one message."""
        await self.websocket.send(b"".join(frames))

    async def message(self) -> list[Any]:
        """The values of the next message."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            content = await self.websocket.recv()
        assert isinstance(content, bytes)
        return values(content)

    async def answer(self, to: Any) -> tuple[int, Any]:
        """The status and the decoded body of the answer to this request."""
        while to not in self.answers:
            for request_id, status, body in await self.message():
                assert request_id not in self.answers, "answered twice"
                self.answers[request_id] = status, json.loads(body)
        return self.answers.pop(to)

    async def ask(self, to: Any, *said: Any) -> tuple[int, Any]:
        """Send one operation and wait for its answer."""
        await self.send(frame(to, *said))
        return await self.answer(to)

    async def closed(self) -> tuple[int, str]:
        """The code and the reason with which the server closes; what it says before is kept."""
        with pytest.raises(ConnectionClosed) as closed:
            await self._read_to_the_end()
        assert closed.value.rcvd is not None, "the connection was cut"
        return closed.value.rcvd.code, closed.value.rcvd.reason

    async def _read_to_the_end(self) -> None:
        while True:
            for request_id, status, body in await self.message():
                self.answers[request_id] = status, json.loads(body)

    def abort(self) -> None:
        """Go away without a word."""
        self.websocket.transport.abort()
