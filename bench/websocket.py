"""A stream of restq over a raw socket: its WebSocket, as far as one that asks one thing at a time needs it."""

from __future__ import annotations

import msgpack

from bench.connection import LoadError


def opening(path: str) -> bytes:
    """What asks for a stream. Its answer is the first reply of `Replies`."""
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: restq\r\n{upgrade}{key}\r\n".encode()


def message(content: bytes) -> bytes:
    """A client's frame of a WebSocket, masked with zeros: which mask it has costs the server nothing."""
    size = len(content)
    if size < 126:
        length = bytes([0x80 | size])
    else:
        length = b"\xfe" + size.to_bytes(2) if size < 1 << 16 else b"\xff" + size.to_bytes(8)
    return b"\x82" + length + bytes(4) + content


class Replies:
    """Replies, of which one is under way at a time: their bodies. The first one is what it begins with."""

    def __init__(self) -> None:
        self._received = b""
        self._is_open = False

    def feed(self, chunk: bytes) -> bytes | None:
        self._received += chunk
        if not self._is_open:
            head, end, self._received = self._received.partition(b"\r\n\r\n")
            if not end or not head.startswith(b"HTTP/1.1 101 "):
                raise LoadError(f"no stream was opened: {head[:200]!r}")
            self._is_open = True
        size, at = int.from_bytes(self._received[1:2]), 2
        if size >= 126:
            at = 4 if size == 126 else 10
            size = int.from_bytes(self._received[2:at])
        if len(self._received) < max(at + size, 3):  # no reply is empty
            return None
        message, self._received = self._received[at : at + size], self._received[at + size :]
        _, status, body = msgpack.unpackb(message)
        if status != 200:
            raise LoadError(f"{status} with {body[:300]!r}")
        return bytes(body)
