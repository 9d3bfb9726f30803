"""A server on bare Tornado that answers `{}` to whatever is asked, run as `python -m bench.peers.answering KIND PORT`.

It is the limit of the framework: on the loop that restq runs on, for the same request, with no work to do.
KIND is `handler`, for Tornado's `RequestHandler`, or `delegate`, for its `HTTPMessageDelegate`.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable
from typing import Any

from tornado import httputil
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application, RequestHandler

from bench.peers.daemon import HOST
from restq.loop import run


class Server(HTTPServer):
    """As restq's front end: no waiting for more data before an answer leaves."""

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """From Tornado: a connection."""
        stream.set_nodelay(True)
        super().handle_stream(stream, address)


class Handler(RequestHandler):
    """The framework's usual way."""

    def put(self, _: str) -> None:
        """Answer `{}`."""
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(b"{}")


class Delegate(httputil.HTTPMessageDelegate):
    """The framework's quick way: the request's bytes are gathered, and answered."""

    def __init__(self, connection: httputil.HTTPConnection) -> None:
        self._connection = connection
        self._body = b""

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        """From Tornado: a request begins."""
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """From Tornado: a part of its body."""
        self._body += chunk
        return None

    def finish(self) -> None:
        """From Tornado: it is whole."""
        headers = httputil.HTTPHeaders({"Content-Length": "2", "Content-Type": "application/json; charset=UTF-8"})
        self._connection.write_headers(httputil.ResponseStartLine("HTTP/1.1", 200, "OK"), headers, b"{}")
        self._connection.finish()

    def on_connection_close(self) -> None:
        """From Tornado: nobody waits for the answer."""


class Delegates(httputil.HTTPServerConnectionDelegate):
    """A delegate for each request."""

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """From Tornado: a request comes."""
        return Delegate(request_conn)


async def serve(kind: str, port: int) -> None:
    """Answer until the process is ended."""
    listening = socket.create_server((HOST, port), backlog=1024)
    server = Server(Application([(r"/(.*)", Handler)]) if kind == "handler" else Delegates())
    server.add_socket(listening)
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(serve(sys.argv[1], int(sys.argv[2])))
