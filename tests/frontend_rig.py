"""A front end over shards that a test plays itself: for what no real shard does on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tornado.netutil import bind_sockets

from restq.pipe import Pipe
from restq.placement import Placement
from restq.protocol import Frames, Reply, Request, pack
from restq.web.app import App
from restq.web.process import Server, new_server

DEADLINE_SECONDS = 10.0

Found = TypeVar("Found")


async def until(look: Callable[[], Found]) -> Found:
    """The first true value that `look` returns, asked again and again."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if found := look():
                return found
            await asyncio.sleep(0.001)


class StandIn:
    """A shard that keeps what it is asked, and answers what it was told to; the rest waits for `reply`."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.asked: list[Request] = []
        self.answers: dict[str, tuple[int, Any, int]] = {}  # by operation: status, body, extra
        self._writers: dict[int, asyncio.StreamWriter] = {}  # by request
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """Go away, in the midst of whatever is asked."""
        assert self._server is not None
        self._server.close()
        for writer in set(self._writers.values()):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Frames()
        while data := await reader.read(1 << 16):
            for frame in frames.feed(data):
                request = Request(*frame)
                self.asked.append(request)
                self._writers[request.request_id] = writer
                if request.operation in self.answers:
                    status, body, extra = self.answers[request.operation]
                    self.reply(request, body, status, extra)

    def reply(self, request: Request, body: Any, status: int = 200, extra: int = 0) -> None:
        """Answer a request."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._writers[request.request_id].write(pack(Reply(request.request_id, status, text, extra)))

    def reply_all(self, requests: Iterable[Request], body: Any) -> None:
        """Answer these in one write."""
        text, frames = json.dumps(body).encode(), b""
        for request in requests:
            frames += pack(Reply(request.request_id, 200, text))
            writer = self._writers[request.request_id]
        writer.write(frames)

    def calls(self, operation: str) -> list[Request]:
        """What was asked of this operation so far."""
        return [request for request in self.asked if request.operation == operation]

    async def call(self, operation: str, count: int = 1) -> Request:
        """The request of this operation that makes the number full, once it is there."""
        await until(lambda: len(self.calls(operation)) >= count)
        return self.calls(operation)[count - 1]


class Answer(NamedTuple):
    """A response."""

    status: int
    phrase: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body)


class Client:
    """One connection to the front end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, method: str, target: str, body: Any = None, key: str | None = None, **headers: str) -> None:
        """Send a request, and do not wait for its answer."""
        text = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {target} HTTP/1.1", "Host: restq", f"Content-Length: {len(text)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if key is not None:
            lines.append(f"Idempotency-Key: {key}")
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + text)

    async def answer(self) -> Answer:
        """The next answer."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            start, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await self._reader.readexactly(int(headers["content-length"]))
        _, status, phrase = start.split(" ", 2)
        return Answer(int(status), phrase, headers, body)

    async def ask(self, method: str, target: str, body: Any = None, key: str | None = None) -> Answer:
        """Send a request and wait for its answer."""
        self.send(method, target, body, key)
        return await self.answer()

    def close(self) -> None:
        """Go away."""
        self._writer.close()


class Frontend:
    """A front end, the shards behind it, and connections to it."""

    def __init__(self, app: App, shards: list[StandIn], server: Server, port: int) -> None:
        self.app = app
        self.shards = shards
        self.server = server
        self.port = port
        self._clients: list[Client] = []

    async def connect(self) -> Client:
        """One more connection."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        return client

    async def lose(self, client: Client) -> None:
        """Close this connection, and wait until the front end knows."""
        count = len(self.server._connections)
        client.close()
        await until(lambda: len(self.server._connections) < count)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()


@contextlib.asynccontextmanager
async def frontend(folder: Path, shard_count: int = 1) -> AsyncIterator[Frontend]:
    """A front end that runs in this loop."""
    shards = [StandIn(folder / str(number)) for number in range(shard_count)]
    pipes = [Pipe(shard.path, number) for number, shard in enumerate(shards)]
    for shard, pipe in zip(shards, pipes, strict=True):
        await shard.start()
        pipe.open()
        await pipe.connected()
    app = App(pipes, Placement(shard_count), 1 << 20)
    server = new_server(app)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    running = Frontend(app, shards, server, sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        running.close()
        server.stop()
        await server.close_all_connections()
        for pipe in pipes:
            pipe.close()
        for shard in shards:
            await shard.stop()
