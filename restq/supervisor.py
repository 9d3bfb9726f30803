"""Starts, watches, restarts and stops the processes of a server. Serves nothing itself.

Owns the data directory's lock and the listening sockets, so that a front end that is started again finds the
connections that waited. How a process is started, told to end and started again stands in `child`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from restq.child import Child
from restq.config import Config
from restq.data_dir import LOCK_NAME, shard_path, socket_path
from restq.errors import RestqError
from restq.shards.relocation import relocate
from restq.shards.store import StoreRefused

BACKLOG = 1024
PORT_WAIT_SECONDS = 2.0  # processes whose supervisor was killed as they began have its port until they notice
PORT_PAUSE_SECONDS = 0.05
STOP_SECONDS = 6.0  # for each of the two waves: front ends, then shards
CLOCK_BEHIND_SECONDS = 60.0  # from here on it is worth a word; less is a clock that is being set right
SOCKET_PATH_BYTES_MAX = 100  # of the about 108 that a UNIX socket's address holds

log = logging.getLogger("restq")


class ServerRefused(RestqError, OSError):
    """The server can't start; the sentence says why, and nothing was changed."""

    code = "server_refused"
    builtin = OSError


class Supervisor:
    """One server: its lock, its sockets and its processes."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._data_dir = Path(config.realms.realms_config_root).expanduser().absolute()
        self.log_level = logging.ERROR if config.webapp.quiet else logging.INFO
        self._stop = asyncio.Event()
        self._shards: list[Child] = []
        self._frontends: list[Child] = []

    async def run(self) -> int:
        """Start all, serve until SIGTERM or SIGINT, stop all; returns the exit status. Raises ServerRefused."""
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self._stop.set)
        webapp = self._config.webapp
        sockets = listen(webapp.host, webapp.port, webapp.frontends)
        lock = lock_directory(self._data_dir, sockets[0])
        try:
            found = await asyncio.to_thread(relocate, self._data_dir, webapp.shards)
            self._prepare(found.pinned, clock_offset(found.clock), sockets)
            return await self._serve(sockets)
        except StoreRefused as refused:
            raise ServerRefused(str(refused)) from refused
        finally:
            for listening in sockets:
                listening.close()
            os.close(lock)

    def _prepare(self, pinned: dict[str, int], offset: float, sockets: list[socket.socket]) -> None:
        webapp = self._config.webapp
        paths = [str(socket_path(self._data_dir, shard)) for shard in range(webapp.shards)]
        for shard in range(webapp.shards):
            settings = {
                "index": shard,
                "count": webapp.shards,
                "path": str(shard_path(self._data_dir, shard)),
                "sockets": paths,
                "elsewhere": pinned,
                "default_lease_time": self._config.realms.default_lease_time,
                "clock_offset": offset,
                "jobs_max": webapp.shard_jobs_max,
                "memory_max": webapp.shard_memory_max,
                "log_level": self.log_level,
            }
            self._shards.append(Child("restq.shards.process", f"shard {shard}", settings))
        for number, listening in enumerate(sockets):
            settings = {
                "sockets": paths,
                "elsewhere": pinned,
                "body_bytes_max": webapp.body_bytes_max,
                "debug": webapp.debug,
                "frontends": webapp.frontends,
                "listen_fd": listening.fileno(),
                "log_level": self.log_level,
            }
            self._frontends.append(Child("restq.web.process", f"front end {number}", settings, (listening.fileno(),)))

    async def _serve(self, sockets: list[socket.socket]) -> int:
        children = [*self._shards, *self._frontends]
        stopped: asyncio.Task[Any] = asyncio.create_task(self._stop.wait())
        ready: asyncio.Task[Any] = asyncio.create_task(_all_ready(children))
        kept: list[asyncio.Task[Any]] = [asyncio.create_task(child.keep()) for child in children]
        try:
            await asyncio.wait([stopped, ready, *kept], return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                self._announce(sockets[0])
                await asyncio.wait([stopped, *kept], return_when=asyncio.FIRST_COMPLETED)
            refused = any(child.refused for child in children)
        finally:
            ready.cancel()
            for listening in sockets:
                listening.close()  # who comes now is refused instead of kept waiting
            for wave in (self._frontends, self._shards):
                await asyncio.gather(*(child.stop(STOP_SECONDS) for child in wave))
            await asyncio.gather(*kept)
            stopped.cancel()
        if not self._config.webapp.quiet and not refused:
            print("restq ended; everything that was answered is in", self._data_dir, flush=True)
        return 1 if refused else 0

    def _announce(self, listening: socket.socket) -> None:
        """One line that programs may wait for; the others are for people."""
        uri = address_of(listening)
        webapp = self._config.webapp
        print(f"restq serves {uri} with {webapp.shards} shards; its data is in {self._data_dir}", flush=True)
        if not webapp.quiet:
            print("Try in another shell:", flush=True)
            usual = self._config.client.uri.replace("//localhost:", "//127.0.0.1:")
            option = "" if uri == usual else f" --uri {uri}"
            print(f"  restq add{option} --tags=work 'ls -lah'", flush=True)
            print(f"  restq pull{option}", flush=True)
            print(f"  restq status{option}", flush=True)
            print(f"  curl {uri}", flush=True)
            print("Ctrl-C ends it, in order.", flush=True)


async def _all_ready(children: list[Child]) -> None:
    for child in children:
        await child.ready.wait()


def clock_offset(seen: float) -> float:
    """How far the time of this server is ahead of the monotonic clock: the wall's, but not behind what was `seen`."""
    wall = time.time()
    if seen - wall > CLOCK_BEHIND_SECONDS:
        log.warning(
            "the wall clock is %.0f s behind the time up to which the data were written; restq goes on from that time,"
            " so what is to run at an instant runs that much earlier",
            seen - wall,
        )
    return max(wall, seen) - time.monotonic()


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets that listen at one address, which the kernel spreads connections over. Raises ServerRefused."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
    except OSError as error:
        raise ServerRefused(f"{host!r} is no address to listen on: {error.strerror}") from None
    sockets = [_bind(family, address, host, shared=False)]
    if count > 1:
        # The first one found out whether the port is free, which sockets that share it would not.
        address = sockets[0].getsockname()
        sockets.pop().close()
        sockets = [_bind(family, address, host, shared=True) for _ in range(count)]
    for listening in sockets:
        listening.listen(BACKLOG)
        listening.setblocking(False)
    return sockets


def _bind(family: int, address: Any, host: str, shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    ends_at = time.monotonic() + PORT_WAIT_SECONDS
    while True:
        try:
            bound.bind(address)
            return bound
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= ends_at:
                bound.close()
                raise ServerRefused(f"can't listen on {host or '*'} port {address[1]}: {error.strerror}") from None
        time.sleep(PORT_PAUSE_SECONDS)


def address_of(listening: socket.socket) -> str:
    """The URI that a client on this machine can use."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def lock_directory(data_dir: Path, listening: socket.socket) -> int:
    """Take the data directory for this process, or raise ServerRefused with the name of who has it."""
    if len(os.fsencode(data_dir)) + len("/shard-0000.sock") > SOCKET_PATH_BYTES_MAX:
        raise ServerRefused(f"the path of the data directory is too long for the sockets in it: {data_dir}")
    if data_dir.exists() and not data_dir.is_dir():
        raise ServerRefused(f"the data directory {data_dir} can't be used: it is not a directory")
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ServerRefused(f"the data directory {data_dir} can't be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(lock, 200).decode(errors="replace").strip()
        os.close(lock)
        raise ServerRefused(f"the data directory {data_dir} is in use by {holder or 'another server'}") from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()}, which serves {address_of(listening)}\n".encode(), 0)
    except OSError as error:
        os.close(lock)
        raise ServerRefused(f"the data directory {data_dir} can't be used: {error.strerror}") from None
    return lock


def serve(config: Config) -> int:
    """Run a server in the foreground until SIGTERM or SIGINT; returns the exit status. Raises ServerRefused."""
    supervisor = Supervisor(config)
    logging.basicConfig(format="restq: %(message)s", level=supervisor.log_level)
    return asyncio.run(supervisor.run())
