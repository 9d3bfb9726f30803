"""The process of one front end: its listening socket, its pipes to all shards, its stop.

Started by the supervisor, which writes the settings as one line of JSON to standard input and hands over a socket that
listens already. Like a shard it ends, once what arrived is answered, when standard input does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from typing import Any

from tornado import httputil
from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from restq.loop import run
from restq.pipe import Pipe
from restq.placement import Placement
from restq.web.app import App

IDLE_SECONDS = 60.0  # an idle connection is closed; also the time that headers may take
BODY_SECONDS = 30.0
HEADER_BYTES_MAX = 32 << 10  # a job id of 8 KiB, percent-encoded, fits
CONNECTIONS_MAX = 10_000
DRAIN_SECONDS = 3.0

log = logging.getLogger("restq.web")


class Server(HTTPServer):
    """Tornado's server with a limit on connections, and without waiting for more data before an answer leaves."""

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """From Tornado: a connection."""
        if len(self._connections) >= CONNECTIONS_MAX:
            log.warning("there are %d connections; one more is refused", CONNECTIONS_MAX)
            stream.close()
            return
        stream.set_nodelay(True)
        super().handle_stream(stream, address)

    def close_idle(self) -> None:
        """Close what is left."""
        for connection in list(self._connections):
            assert isinstance(connection, HTTP1ServerConnection), "HTTP/1 is what Tornado speaks"
            connection.stream.close()


async def serve(settings: dict[str, Any]) -> None:
    """Connect to the shards, say "ready", serve until standard input ends."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    await loop.connect_read_pipe(lambda: _Lifeline(stopping), sys.stdin)
    pipes = [Pipe(path, shard) for shard, path in enumerate(settings["sockets"])]
    for pipe in pipes:
        pipe.open()
    for pipe in pipes:
        await pipe.connected()
    httputil.set_parse_body_config(httputil.ParseBodyConfig(multipart=httputil.ParseMultipartConfig(enabled=False)))
    app = App(pipes, Placement(len(pipes), settings["elsewhere"]), settings["body_bytes_max"], settings["debug"])
    server = Server(
        app,
        idle_connection_timeout=IDLE_SECONDS,
        body_timeout=BODY_SECONDS,
        max_header_size=HEADER_BYTES_MAX,
        max_body_size=settings["body_bytes_max"],
        max_buffer_size=settings["body_bytes_max"] + (1 << 20),
    )
    server.add_socket(socket.socket(fileno=settings["listen_fd"]))
    print("ready", flush=True)
    await stopping.wait()
    server.stop()
    await app.drain(DRAIN_SECONDS)
    server.close_idle()
    for pipe in pipes:
        pipe.close()


class _Lifeline(asyncio.Protocol):
    """Standard input: it ends when the supervisor says so, or is gone."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping

    def connection_lost(self, exc: Exception | None) -> None:
        self._stopping.set()


def main() -> int:
    """Run the front end that standard input describes; returns the exit status."""
    logging.basicConfig(format="restq: %(message)s", level=logging.INFO)
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)  # the supervisor has it too, and ends us in order
    run(serve(json.loads(sys.stdin.buffer.readline())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
