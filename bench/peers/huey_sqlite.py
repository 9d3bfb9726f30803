"""Huey on SQLite with its option `fsync`: the store is a file that each client opens, and there is no server."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from huey import SqliteHuey

from bench.peers.peer import NUMBER_DIGITS, Client, Op, Peer, payload

BUSY_SECONDS = 60  # that a client waits for the file while others write


class HueySqlite(Peer):
    """Huey on SQLite."""

    name = "huey"
    client = "huey, which is all of it"
    promise = "synced before the answer"
    team = "threads"
    processes_max = 4

    def start(self, folder: Path) -> None:
        self._file = folder / "huey.db"
        _opened(self._file)

    def connect(self, index: int) -> Client:
        return HueyClient(self._file)

    def left(self) -> int:
        return int(_opened(self._file).pending_count())

    def version(self) -> str:
        return f"huey {metadata.version('huey')}"


class HueyClient(Client):
    """A producer and a consumer. A job that it takes is gone from the file before it runs."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def open(self) -> Op[None]:
        self._huey = _opened(self._file)
        self._ran: list[int] = []
        self._task = self._huey.task(name="noop")(lambda data: self._ran.append(int(data[:NUMBER_DIGITS])))
        yield from ()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        self._task(payload(number, data_bytes))
        yield from ()

    def take(self) -> Op[int | None]:
        yield from ()
        task = self._huey.dequeue()
        if task is None:
            return None
        self._huey.execute(task)
        return self._ran.pop()


def _opened(file: Path) -> SqliteHuey:
    return SqliteHuey("bench", filename=str(file), fsync=True, timeout=BUSY_SECONDS, results=False)
