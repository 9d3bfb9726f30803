"""The process of one front end: its listening socket, its pipes to all shards, its stop.

Run by the supervisor as `child` says, which hands over a socket that listens already; told to end, it first answers
all that arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import socket
import sys
import time
from typing import Any

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from restq import child, memory
from restq.loop import run
from restq.pipe import Pipe
from restq.placement import Placement
from restq.web.app import App
from restq.web.crowd import Crowd
from restq.web.exchange import Exchanges

HEADER_BYTES_MAX = 32 << 10  # a job id of 8 KiB, percent-encoded, fits
# A client that takes nothing of its reply for so long is cut off by the system, where it knows this option.
STALL_MILLISECONDS = 30_000
STALL_OPTION: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
GC_THRESHOLDS = (1_000, 20, 1_000)  # what lives long is hardly ever walked: see `serve`
CONNECTIONS_MAX = 30_000  # if the system lets this process have so many files: 10,000 may wait, and others go on
FILES_SPARE_COUNT = 64  # beside connections: pipes, logs, what the loop itself needs
DROP_SECONDS_MIN = 1.0  # between two looks for connections that ask nothing
DRAIN_SECONDS = 5.0
CLOSE_SECONDS = 0.5
FLUSH_SECONDS = 0.01  # between two looks at what is still to be sent

log = logging.getLogger("restq.web")


class Server(HTTPServer):
    """Tornado's server with a limit on connections, and without waiting for more data before an answer leaves."""

    connections_max = CONNECTIONS_MAX
    app: App

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """From Tornado: a connection. Where there are too many, the one that is idle for the longest gives way."""
        now = time.monotonic()
        count = len(self._connections) + len(self.app.streams)
        if count >= self.connections_max and not self.app.crowd.drop_idle(now):
            log.warning("there are %d connections that wait for answers; one more is refused", self.connections_max)
            stream.close()
            return
        stream.set_nodelay(True)
        if STALL_OPTION is not None:
            stream.socket.setsockopt(socket.IPPROTO_TCP, STALL_OPTION, STALL_MILLISECONDS)
        self.app.crowd.rests(stream, now)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        """From Tornado: a connection has ended."""
        assert isinstance(server_conn, HTTP1ServerConnection)
        self.app.crowd.gone(server_conn.stream)
        super().on_close(server_conn)

    async def flush(self, seconds: float) -> None:
        """Wait until every reply is sent whole, but no longer than this: large ones take the client's time."""
        for _ in range(int(seconds / FLUSH_SECONDS)):
            if not any(connection.stream.writing() for connection in self._http1_connections()) and not any(
                stream.writing for stream in self.app.streams
            ):
                return
            await asyncio.sleep(FLUSH_SECONDS)

    def _http1_connections(self) -> list[HTTP1ServerConnection]:
        return [connection for connection in self._connections if isinstance(connection, HTTP1ServerConnection)]

    async def close_connections(self, seconds: float) -> None:
        """Close what is left, in the midst of a request or not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.close_all_connections()


def new_server(app: App) -> Server:
    """What serves HTTP for it, as yet on no socket."""
    server = Server(
        Exchanges(app),
        max_header_size=HEADER_BYTES_MAX,
        max_body_size=app.body_bytes_max,
        max_buffer_size=app.body_bytes_max + (1 << 20),
    )
    server.app = app
    server.conn_params.header_timeout = None  # the crowd sees to that
    return server


async def serve(settings: dict[str, Any]) -> None:
    """Connect to the shards, say "ready", serve until told to end."""
    stopping = asyncio.Event()
    await child.on_end(stopping.set)
    pipes = [Pipe(path, shard) for shard, path in enumerate(settings["sockets"])]
    for pipe in pipes:
        pipe.open()
    connecting = asyncio.create_task(_connect(pipes))
    ending = asyncio.create_task(stopping.wait())
    await asyncio.wait([connecting, ending], return_when=asyncio.FIRST_COMPLETED)
    if stopping.is_set():
        return
    app = App(
        pipes,
        Placement(len(pipes), settings["elsewhere"]),
        settings["body_bytes_max"],
        settings["debug"],
        memory.total() / settings["frontends"],
    )
    server = new_server(app)
    server.connections_max = min(CONNECTIONS_MAX, allow_files() - FILES_SPARE_COUNT)
    app.waiting_max = server.connections_max * 2 // 3  # others find a place, however many wait
    server.add_socket(socket.socket(fileno=settings["listen_fd"]))
    # Requests and connections leave no cycles behind, but some errors do: these go soon, while they are young. To walk
    # all that ten thousand connections are made of takes 0.4 s, during which nobody is answered.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    child.say_ready()
    _drop_late(app.crowd)
    await stopping.wait()
    server.stop()
    ends_at = time.monotonic() + DRAIN_SECONDS
    await app.drain(DRAIN_SECONDS)
    await server.flush(ends_at - time.monotonic())
    await server.close_connections(CLOSE_SECONDS)
    for pipe in pipes:
        pipe.close()


def _drop_late(crowd: Crowd) -> None:
    """Close connections that ask nothing for too long, now and again whenever there may be such."""
    pause = max(crowd.drop_late(time.monotonic()), DROP_SECONDS_MIN)
    asyncio.get_running_loop().call_later(pause, _drop_late, crowd)


async def _connect(pipes: list[Pipe]) -> None:
    for pipe in pipes:
        await pipe.connected()


def allow_files() -> int:
    """Have this process open as many files as the system lets it; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + FILES_SPARE_COUNT if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # some systems refuse what they say that they allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return CONNECTIONS_MAX + FILES_SPARE_COUNT if soft == resource.RLIM_INFINITY else soft


def main() -> int:
    """Run the front end that standard input describes; returns the exit status."""
    settings = child.begin()
    if not settings["debug"]:
        logging.getLogger("tornado").setLevel(logging.WARNING)  # a client that speaks bad HTTP is no news
    run(serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
