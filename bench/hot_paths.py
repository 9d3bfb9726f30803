"""The hot paths whose instructions `bench.regress` counts, from the realm outwards. No case waits for anything.

The pipe, the shard's process and the front end are the real ones, in a loop as in their processes; what stands at
their far ends is made of a few lines, so that nearly all that is counted is theirs.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, cast

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from bench import hot_realm
from bench.callgrind import Case, Counting
from bench.connection import request
from bench.hot_realm import JOB, LEASE_SECONDS, NOW, body_of
from restq.errors import ShardUnavailable
from restq.loop import run
from restq.pipe import Pipe
from restq.placement import Placement
from restq.protocol import Reply, Request, pack
from restq.shards.commands.call import NOTHING
from restq.shards.memory_store import MemoryStore
from restq.shards.process import Connection, ShardProcess
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import Mark, Store
from restq.web.app import App
from restq.web.process import new_server

BODY = body_of(JOB)
GROUP = 1_000  # jobs in one commit
TURN = 32  # requests that arrive together
BODY_BYTES_MAX = 16 << 20
REPLY_BYTES_MAX = 1 << 12


class Wire(asyncio.Transport):
    """The far end of a connection: each write is answered, or noticed, once the loop comes round."""

    def __init__(self, other: asyncio.Protocol, answers: list[bytes]) -> None:
        super().__init__()
        self._other = other
        self._answers = answers  # the last first
        self.written = asyncio.Event()

    def write(self, data: Any) -> None:
        """Answer with what is next, if there is an answer."""
        self.written.set()
        if self._answers:
            asyncio.get_running_loop().call_soon(self._other.data_received, self._answers.pop())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """It takes all."""


def shard(size: int, times: int, counting: Counting) -> int:
    """One request of a turn of so many, from their frames to the frames of their replies."""
    run(_shard(size, times, counting))
    return times // size * size


async def _shard(size: int, times: int, counting: Counting) -> None:
    settings = {"index": 0, "count": 1, "elsewhere": {}, "default_lease_time": LEASE_SECONDS}
    process = ShardProcess(settings, cast(Store, MemoryStore()))  # which has all but the copying of a file
    serving = asyncio.ensure_future(process.run())
    connection = Connection(process)
    wire = Wire(connection, [])
    connection.connection_made(wire)
    frames = [pack(Request(number, "add_job", "counted", [f"job-{number:08d}"], BODY)) for number in range(times)]
    turns = [b"".join(frames[first : first + size]) for first in range(0, times // size * size, size)]
    await asyncio.sleep(0)
    with counting:
        for turn in turns:
            wire.written.clear()
            connection.data_received(turn)
            await wire.written.wait()
    process.stop()
    await serving


def commit(times: int, counting: Counting) -> int:
    """A job of a group that is written to SQLite."""
    rig = hot_realm.Rig()
    groups = []
    for number in range(1 + times // GROUP):
        rig.do("add_job", rig.adds(GROUP, number * GROUP))
        groups.append(rig.changes.take())
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "counted.db")
        with counting:
            for number, changes in enumerate(groups):
                _completed(store.commit(changes, Mark(number + 1, 1 << 20, NOW)))
        store.close()
    return len(groups) * GROUP


def _completed(call: Coroutine[Any, Any, None]) -> None:
    """Run what waits for nothing, without a loop."""
    try:
        call.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


class Asker:
    """Asks for the next as soon as it is replied."""

    def __init__(self, pipe: Pipe, times: int) -> None:
        self._pipe = pipe
        self._ids = iter([[f"job-{number:08d}"] for number in range(times)])
        self.is_done = asyncio.Event()

    def ask(self) -> None:
        """One more, if there is one."""
        params = next(self._ids, None)
        if params is None:
            self.is_done.set()
        else:
            self._pipe.ask(self, "add_job", "counted", params, BODY)

    def replied(self, reply: Reply) -> None:
        """From the pipe."""
        self.ask()

    def lost(self, error: ShardUnavailable) -> None:
        """From the pipe; not of this one."""
        raise error


def pipe(times: int, counting: Counting) -> int:
    """A request and its frame, and the frame of its reply and who gets it."""
    run(_pipe(times, counting))
    return times


async def _pipe(times: int, counting: Counting) -> None:
    asker = Asker(_open_pipe(times), times)
    with counting:
        asker.ask()
        await asker.is_done.wait()


def _open_pipe(times: int) -> Pipe:
    """A pipe to a shard that answers so many calls."""
    pipe = Pipe("", 0)
    pipe.connection_made(Wire(pipe, [pack(Reply(number, 200, NOTHING)) for number in range(times, 0, -1)]))
    return pipe


def http(times: int, counting: Counting) -> int:
    """A request, from its bytes to its frame, and from the frame of its reply to the bytes of the response."""
    run(_http(times, counting))
    return times


async def _http(times: int, counting: Counting) -> None:
    loop, pipe = asyncio.get_running_loop(), _open_pipe(times)
    app = App([pipe], Placement(1), BODY_BYTES_MAX)
    server = new_server(app)
    near, far = socket.socketpair()  # what is sent is there at once, so that each count is the same
    near.setblocking(False)
    HTTPServer.handle_stream(server, IOStream(far), ("", 0))  # it takes none of the options that ours sets for TCP
    requests = [request("PUT", f"/counted/job/job-{number:08d}", BODY) for number in range(times)]
    with counting:
        for data in requests:
            near.send(data)
            received = await loop.sock_recv(near, REPLY_BYTES_MAX)
            assert received.startswith(b"HTTP/1.1 200"), "it comes in one piece"
    near.close()
    await server.close_all_connections()


CASES: dict[str, Case] = {
    **hot_realm.CASES,
    "shard: a turn of 1": partial(shard, 1),
    f"shard: request of a turn of {TURN}": partial(shard, TURN),
    f"store: job of a commit of {GROUP}": commit,
    "pipe: request and reply": pipe,
    "front end: request and response": http,
}
