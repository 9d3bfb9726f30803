"""From HTTP to a WebSocket: the handshake, and the socket that goes over from Tornado to a protocol of our own."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from websockets.datastructures import Headers
from websockets.exceptions import InvalidUpgrade
from websockets.http11 import Request
from websockets.server import ServerProtocol

from restq.errors import FieldInvalid, OriginForbidden, UpgradeRequired

AHEAD_BYTES_MAX = 1 << 20  # of what a client sent before it had the answer to its handshake

quiet = logging.getLogger("restq.web.websocket")  # that a client comes or goes is no news
quiet.setLevel(logging.ERROR)


def shake_hands(target: str, headers: httputil.HTTPHeaders) -> bytes:
    """The answer to the handshake of a WebSocket. Raises why there can be none.

    A page in a browser may connect to the server that it came from, and to no other: else any site could read, from
    within its visitors' network, what CORS keeps from it over HTTP. Programs send no Origin.
    """
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("Host", "").lower():
        raise OriginForbidden(f"Origin: {origin[:200]!a} is another site than this server: a stream is not for it")
    protocol = ServerProtocol(logger=quiet)
    response = protocol.accept(Request(target, Headers(headers.get_all())))
    error = protocol.handshake_exc
    if isinstance(error, InvalidUpgrade):
        raise UpgradeRequired("a stream is a WebSocket: connect with a client for those, or use the other routes")
    if error is not None:
        raise FieldInvalid(f"this is no handshake of a WebSocket: {error}")
    protocol.send_response(response)
    answer = b"".join(protocol.data_to_send())
    dissolve(protocol)
    return answer


def dissolve(protocol: ServerProtocol) -> None:
    """Cut the cycles of references that a WebSocket is in, with its last message: a collector would come too late."""
    protocol.parser.close()
    if protocol.parser_exc is not None:
        protocol.parser_exc.__traceback__ = None


async def hand_over(connection: HTTP1Connection, protocol: Callable[[bytes], asyncio.Protocol]) -> None:
    """Let a protocol have the connection from now on. It is made with what came over it ahead of time."""
    stream = connection.detach()
    try:
        reading = asyncio.ensure_future(stream.read_bytes(AHEAD_BYTES_MAX, partial=True))
        ahead = reading.result() if reading.done() else b""
    except StreamClosedError:
        return
    if stream.closed():  # by that read, which saw its end
        return
    # Tornado lets go of its own descriptor of the socket; this one keeps the connection.
    try:
        taken = socket.socket(fileno=os.dup(stream.socket.fileno()))
    finally:
        stream.close()
    taken.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol(ahead), taken)
