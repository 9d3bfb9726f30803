"""A way to a server that is cut where a test says, or that carries one byte at a time."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

PIECE_BYTES = 1 << 16
REQUEST, REPLY = "request", "reply"  # the two ways on a connection
RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: what close() sends is no FIN


class Cut(NamedTuple):
    """Pass on so many more bytes of this way, whichever connection has them, and end that connection on both sides."""

    way: str
    at: int
    reset: bool = False


class Proxy:
    """Carries connections to a port on this machine. What it was told last holds for all connections from then on."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.byte_by_byte = False
        self.passed = {REQUEST: 0, REPLY: 0}
        self._to = port
        self._cuts: deque[Cut] = deque()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def uri(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def cuts_left(self) -> int:
        """How many cuts have not happened yet."""
        return len(self._cuts)

    def plan(self, *cuts: Cut) -> None:
        """Cut so, one after the other, each counted from the cut before it, the first from now on."""
        self._cuts = deque(cuts)
        self.passed = {REQUEST: 0, REPLY: 0}

    def start(self) -> None:
        """Listen, in a thread of its own."""
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """End, with all connections."""
        assert self._loop is not None
        assert self._stop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self, ready: threading.Event) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._connected(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        beyond_reader, beyond_writer = await asyncio.open_connection("127.0.0.1", self._to)
        ends = (writer, beyond_writer)
        for end in ends:
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pumps = [
            asyncio.ensure_future(self._carry(REQUEST, reader, beyond_writer, ends)),
            asyncio.ensure_future(self._carry(REPLY, beyond_reader, writer, ends)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in ends:
                end.close()

    async def _carry(
        self,
        way: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        """Until this way has ended, or is cut."""
        while data := await reader.read(PIECE_BYTES):
            cut = self._cuts[0] if self._cuts and self._cuts[0].way == way else None
            left = len(data) if cut is None else cut.at - self.passed[way]
            data = data[: max(left, 0)]
            self.passed[way] += len(data)  # before the other side can know
            for piece in _pieces(data, 1 if self.byte_by_byte else PIECE_BYTES):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if cut is not None and self.passed[way] >= cut.at:
                self._cuts.popleft()
                self.passed = {REQUEST: 0, REPLY: 0}
                for end in ends:
                    _end(end, cut.reset)
                return


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _end(writer: asyncio.StreamWriter, reset: bool) -> None:
    if reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
    else:
        writer.close()


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """A way to this port, for a while."""
    made = Proxy(port)
    made.start()
    try:
        yield made
    finally:
        made.stop()
