"""How clients run together in one process: over raw sockets, in threads, or on an asyncio loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol

from bench.connection import Connection, LoadError, run
from bench.peers.peer import Client, Op


class Team(Protocol):
    """The clients of one process."""

    def open(self, clients: Sequence[Client]) -> None:
        """Connect them all."""
        ...

    def run(self, scripts: Sequence[Op[None]]) -> float:
        """Run one script for each client, all at once; the seconds that it took."""
        ...

    def close(self) -> None:
        """Disconnect them all."""
        ...


class Wire:
    """One thread that does nothing but send and receive: what the scripts yield are requests."""

    def __init__(self) -> None:
        self._connections: list[Connection] = []

    def open(self, clients: Sequence[Any]) -> None:
        self._connections = [Connection(client.address, client.replies) for client in clients]
        self.run([client.open() for client in clients])

    def run(self, scripts: Sequence[Op[None]]) -> float:
        return run(self._connections, scripts).seconds

    def close(self) -> None:
        for connection in self._connections:
            connection.socket.close()


class Threads:
    """A thread for each client, or none where there is one: they block, and yield nothing."""

    def __init__(self) -> None:
        self._clients: Sequence[Client] = ()

    def open(self, clients: Sequence[Client]) -> None:
        self._clients = clients
        for client in clients:
            _exhaust(client.open())

    def run(self, scripts: Sequence[Op[None]]) -> float:
        if len(scripts) == 1:
            started = perf_counter()
            _exhaust(scripts[0])
            return perf_counter() - started
        failures: list[BaseException] = []
        threads = [threading.Thread(target=_caught, args=(script, failures)) for script in scripts]
        started = perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return perf_counter() - started

    def close(self) -> None:
        for client in self._clients:
            _exhaust(client.close())


class Loop:
    """A task for each client on one asyncio loop: what the scripts yield is awaited."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._clients: Sequence[Client] = ()

    def open(self, clients: Sequence[Client]) -> None:
        self._clients = clients
        self.run([client.open() for client in clients])

    def run(self, scripts: Sequence[Op[None]]) -> float:
        return self._runner.run(_together(scripts))

    def close(self) -> None:
        self.run([client.close() for client in self._clients])
        self._runner.close()


TEAMS: dict[str, Callable[[], Team]] = {"wire": Wire, "threads": Threads, "loop": Loop}


def _exhaust(script: Op[None]) -> None:
    for given in script:
        raise LoadError(f"a client that blocks yielded {given!r}")


def _caught(script: Op[None], failures: list[BaseException]) -> None:
    try:
        _exhaust(script)
    except Exception as error:
        failures.append(error)


async def _together(scripts: Sequence[Op[None]]) -> float:
    started = perf_counter()
    async with asyncio.TaskGroup() as group:
        for script in scripts:
            group.create_task(_awaited(script))
    return perf_counter() - started


async def _awaited(script: Op[None]) -> None:
    result: Any = None
    while True:
        try:
            waited = script.send(result)
        except StopIteration:
            return
        result = await waited
