"""How the client sends its calls over streams: one WebSocket for each thread and realm, used by one call at a time.

The WebSocket is websockets' without input and output, over a socket of our own: a call costs a fraction of what it does
in requests. What spans realms, is too large for a stream, or finds none goes over HTTP all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from typing import TypeVar

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, InvalidURI
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from restq.client import streaming
from restq.client.call import Call
from restq.client.connection import Connection, Requester
from restq.client.peer import Attempts
from restq.client.streaming import Operation
from restq.config import Config
from restq.errors import RestqError

T = TypeVar("T")

RECEIVE_BYTES = 1 << 16


class Refused(Exception):
    """The server opens no stream there: over HTTP it says why, or does all the same what is asked."""


class Stream:
    """One WebSocket to one realm, for one thread.

    Opening it and asking raise OSError where the connection fails, TimeoutError among them: then it is closed.
    """

    def __init__(self, address: str, seconds: float) -> None:
        """`address` is that of the stream, over http or https. Raises Refused where there is none."""
        to = _parsed(address)
        self.pid = os.getpid()
        self._deadline = time.monotonic() + seconds
        self._websocket = ClientProtocol(to, max_size=None)
        self._parts: list[bytes] = []
        self._replies: dict[int | None, tuple[int, bytes]] = {}
        self._last_id = 0
        self._socket = socket.create_connection((to.host, to.port), seconds)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if to.secure:
                context = ssl.create_default_context()
                self._socket = context.wrap_socket(self._socket, server_hostname=to.host)
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
            self._websocket.send_request(self._websocket.connect())
            self._send()
            self._wait(lambda: None in self._replies)
            self.body_bytes_max: int = json.loads(self._replies.pop(None)[1])["body_bytes"]
        except BaseException:
            self.close()
            raise

    def ask(self, operation: Operation, content: bytes | None, key: str | None, seconds: float) -> tuple[int, bytes]:
        """The status and the body of the reply. Overloaded where the server ended the stream and did nothing."""
        self._last_id += 1
        try:
            self.send(operation.frame(self._last_id, content, key), seconds)
            self._wait(lambda: self._last_id in self._replies)
        except BaseException:  # a reply that comes later must not be taken for that to another call
            self.close()
            raise
        return self._replies.pop(self._last_id)

    def send(self, message: bytes, seconds: float) -> None:
        """Send frames, and do not wait for their replies."""
        self._deadline = time.monotonic() + seconds
        if self._websocket.state is not State.OPEN:
            raise self._ended()
        self._websocket.send_binary(message)
        self._send()

    def receive(self, seconds: float) -> list[tuple[int | None, int, bytes]]:
        """The id, the status and the body of what was answered since: one reply at least."""
        self._deadline = time.monotonic() + seconds
        self._wait(lambda: bool(self._replies))
        replies = [(request_id, *said) for request_id, said in self._replies.items()]
        self._replies.clear()
        return replies

    def is_open(self) -> bool:
        """Whether it can be used still, as far as is known here: the server may have ended it meanwhile."""
        if self.pid != os.getpid():  # the parent's, which goes on with it
            return False
        try:
            self._deadline = time.monotonic() + 1  # what is there already takes no time
            while self._websocket.state is State.OPEN and self._poll.poll(0):
                self._receive()
        except OSError:
            self.close()
        return self._websocket.state is State.OPEN and self._socket.fileno() >= 0

    def close(self) -> None:
        """Close it."""
        if self.pid == os.getpid() and self._websocket.state is State.OPEN:
            self._websocket.send_close(1000)
            with contextlib.suppress(OSError):
                self._socket.settimeout(0)
                self._socket.send(b"".join(self._websocket.data_to_send()))
        self._socket.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it never had a socket
            self._socket.close()

    def _send(self) -> None:
        self._socket.settimeout(self._left())
        self._socket.sendall(b"".join(self._websocket.data_to_send()))

    def _wait(self, is_there: Callable[[], bool]) -> None:
        """Take what the server says until this is so. Raises what the end of the stream means."""
        while not is_there():
            if self._websocket.state not in (State.CONNECTING, State.OPEN):
                raise self._ended()
            self._receive()

    def _receive(self) -> None:
        """Take what the server says next."""
        self._socket.settimeout(self._left())
        data = self._socket.recv(RECEIVE_BYTES)
        if data:
            self._websocket.receive_data(data)
        else:
            self._websocket.receive_eof()
        for event in self._websocket.events_received():
            if isinstance(event, Frame):
                self._take(event)
        if self._websocket.state is State.CONNECTING and self._websocket.handshake_exc is not None:
            self._refused(self._websocket.handshake_exc)
        if self._websocket.state is State.OPEN and (written := self._websocket.data_to_send()):  # a pong
            self._socket.sendall(b"".join(written))

    def _take(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.BINARY and frame.opcode is not Opcode.CONT:
            return
        self._parts.append(bytes(frame.data))
        if frame.fin:
            message = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            for request_id, status, body in streaming.replies(message):
                self._replies[request_id] = status, body

    def _ended(self) -> Exception:
        closed = self._websocket.close_rcvd
        return streaming.ended(closed.code, closed.reason) if closed else ConnectionError("the stream was cut")

    def _refused(self, error: Exception) -> None:
        if isinstance(error, InvalidStatus):
            raise Refused(str(error))
        raise ConnectionError(f"no stream was opened: {error}")

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class NotSent(OSError, ValueError):
    """The address is none: nothing was sent. Both, as requests has it."""


_SCHEMES = {"http": "ws", "https": "wss"}


def _parsed(address: str) -> WebSocketURI:
    """Raises NotSent where it is no address of a server."""
    scheme, colon, rest = address.partition(":")
    try:
        found = parse_uri(_SCHEMES[scheme.lower()] + colon + rest)
        found.host.encode("idna")  # as the look-up of the name does, which raises no OSError of it
        return found
    except (KeyError, ValueError, InvalidURI) as error:
        raise NotSent(f"{address} is no address of a server: {error}") from None


class StreamConnection(Connection):
    """Sends what is asked of one realm over streams. Threads may share it: each has streams of its own."""

    def __init__(self, uri: str | None, requester: Requester | None, config: Config | None) -> None:
        """`requester` is for what goes over HTTP."""
        super().__init__(uri, requester, config)
        self._local = threading.local()
        self._refusals = streaming.Refusals()
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    def _send_once(self, call: Call[T], attempts: Attempts) -> T:
        operation = streaming.operation_of(call)
        if operation is None or self._refusals.hold(operation.realm, time.monotonic()):
            return super()._send_once(call, attempts)
        try:
            stream = self._stream(operation.realm, attempts.left(time.monotonic()))
        except Refused:
            self._refusals.add(operation.realm, time.monotonic())
            return super()._send_once(call, attempts)
        except OSError as error:
            if isinstance(error, RestqError):
                raise
            raise self.unopened(error, attempts.seconds) from error
        if len(call.content or b"") > stream.body_bytes_max:
            return super()._send_once(call, attempts)
        try:
            left = attempts.left(time.monotonic())  # opening it was a part of the try
            status, body = stream.ask(operation, call.content, attempts.key, left)
        except OSError as error:
            if isinstance(error, RestqError):
                raise
            raise self.unreachable(error, attempts.seconds) from error
        return self.result(call, status, lambda: json.loads(body))

    def _stream(self, realm: str, seconds: float) -> Stream:
        """This thread's stream to the realm, a new one where there is none that can be used."""
        streams: dict[str, Stream] = self._local.__dict__.setdefault("streams", {})
        stream = streams.get(realm)
        if stream is None or not stream.is_open():
            streams.pop(realm, None)
            stream = streams[realm] = Stream(self.uri + streaming.stream_path(realm), seconds)
            with self._lock:
                self._streams.add(stream)
        return stream

    def close(self) -> None:
        """Close all streams, and the Session, if there is one of our own. The next call would open another."""
        with self._lock:  # for no other thread adds one meanwhile
            streams = list(self._streams)
        for stream in streams:
            stream.close()
        super().close()
