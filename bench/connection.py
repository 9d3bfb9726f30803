"""Keep-alive connections, all driven by one thread at next to no cost: what is measured is the server.

A script is a generator that yields its next request, ready made, and is sent the body of the reply. Each
connection runs one script, so it has one request in flight (a closed loop: a slow reply delays the next
request, and no latency hides behind another). Of HTTP, nothing is parsed but the status and Content-Length; for
another protocol there is another `Replies`.
"""

from __future__ import annotations

import re
import selectors
import socket
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

REPLY_SECONDS_MAX = 120.0
RECEIVE_BYTES = 1 << 18

Address = tuple[str, int]
Request = tuple[str, bytes]  # what its latency is filed under, and the bytes to send
Script = Generator[Request, bytes, None]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class LoadError(Exception):
    """The server did something else than what the load needs: the sentence says what."""


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """One HTTP/1.1 request as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: restq\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode("ascii") + body


@dataclass
class Timings:
    """How long it all took, and the latency of every request by kind, in seconds."""

    seconds: float = 0.0
    latencies: dict[str, array[float]] = field(default_factory=dict)


class Replies(Protocol):
    """Tells one reply from the next in what a connection receives. Raises `LoadError` for one that says no."""

    def feed(self, chunk: bytes) -> bytes | None:
        """Take what arrived; the reply, once it is here whole. Only one is on its way at a time."""
        ...


class HttpReplies:
    """Replies of HTTP/1.1 with status 200: their bodies."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._head = b""
        self._missing: int | None = None  # bytes of the reply still to come; None until its head is here

    def feed(self, chunk: bytes) -> bytes | None:
        self._chunks.append(chunk)
        if self._missing is None:
            head, end, rest = b"".join(self._chunks).partition(b"\r\n\r\n")
            if not end:
                return None
            length = _LENGTH.search(head)
            if length is None:
                raise LoadError(f"a reply without Content-Length: {head[:200]!r}")
            self._head, self._chunks, self._missing = head, [rest], int(length[1]) - len(rest)
        else:
            self._missing -= len(chunk)
        return None if self._missing > 0 else self._body()

    def _body(self) -> bytes:
        body = b"".join(self._chunks)
        self._chunks, self._missing = [], None
        if self._head[9:12] != b"200":
            raise LoadError(f"{self._head[9:40].decode('latin-1')!r} with {body[:300]!r}")
        return body


class Connection:
    """One socket, and the script that runs over it."""

    def __init__(self, address: Address, replies: Replies | None = None) -> None:
        self.socket = socket.create_connection(address, timeout=REPLY_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._replies = replies or HttpReplies()
        self._script: Script
        self._timings = Timings()
        self._kind = ""
        self._sent_at = 0.0
        self._unsent = memoryview(b"")

    def start(self, script: Script, timings: Timings) -> bool:
        """Send the script's first request; False if it has none."""
        self._script, self._timings = script, timings
        first = next(script, None)
        if first is None:
            return False
        self._send(first)
        return True

    def flush(self) -> None:
        """Send as much as the socket takes; `waits_to_send` tells whether some is left."""
        with suppress(BlockingIOError):
            self._unsent = self._unsent[self.socket.send(self._unsent) :]

    def advance(self) -> bool:
        """Take what arrived; with a whole reply, send the next request. False when the script has ended."""
        chunk = self.socket.recv(RECEIVE_BYTES)
        if not chunk:
            raise LoadError("the server closed a connection")
        try:
            reply = self._replies.feed(chunk)
        except LoadError as error:
            raise LoadError(f"{self._kind}: {error}") from error
        if reply is None:
            return True
        self._timings.latencies.setdefault(self._kind, array("d")).append(perf_counter() - self._sent_at)
        try:
            self._send(self._script.send(reply))
        except StopIteration:
            return False
        return True

    @property
    def waits_to_send(self) -> bool:
        return len(self._unsent) > 0

    def _send(self, request: Request) -> None:
        self._kind, data = request
        self._unsent = memoryview(data)
        self._sent_at = perf_counter()
        self.flush()


def run(connections: Sequence[Connection], scripts: Sequence[Script]) -> Timings:
    """Run each script over its connection; all are connected already."""
    timings = Timings()
    with selectors.DefaultSelector() as selector:
        started = perf_counter()
        for connection, script in zip(connections, scripts, strict=True):
            if connection.start(script, timings):
                selector.register(connection.socket, _events(connection), connection)
        while selector.get_map():
            _turn(selector)
        timings.seconds = perf_counter() - started
    return timings


def drive(address: Address, scripts: Iterable[Script]) -> Timings:
    """Run each script on a connection of its own. The clock starts when all are connected."""
    every = list(scripts)
    connections = [Connection(address) for _ in every]
    try:
        return run(connections, every)
    finally:
        for connection in connections:
            connection.socket.close()


def each(kind: str, requests: Iterator[bytes]) -> Script:
    """Send one after the other. Scripts over the same iterator share its requests."""
    for data in requests:
        yield kind, data


def call(address: Address, method: str, path: str, body: bytes = b"") -> bytes:
    """One request on a connection of its own, and its reply's body."""
    replies: list[bytes] = []

    def script() -> Script:
        replies.append((yield path, request(method, path, body)))

    drive(address, [script()])
    return replies[0]


def _turn(selector: selectors.BaseSelector) -> None:
    ready = selector.select(REPLY_SECONDS_MAX)
    if not ready:
        raise LoadError(f"no reply within {REPLY_SECONDS_MAX:.0f} s")
    for key, events in ready:
        connection: Connection = key.data
        if events & selectors.EVENT_WRITE:
            connection.flush()
        if events & selectors.EVENT_READ and not connection.advance():
            selector.unregister(connection.socket)
        elif key.events != _events(connection):
            selector.modify(connection.socket, _events(connection), connection)


def _events(connection: Connection) -> int:
    return selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.waits_to_send else 0)
