"""A whole server in one process with a made-up clock: front ends, pipes, shards, their stores, and what befalls them.

What runs is the very code of the server: the front end's `Exchange` and what is behind it, its pipes, the shard's
process with its loop and its turns, the moves between shards. Made up are the sockets, the clock and the disk (see
`sim_loop` and `Disk`), and nobody sends HTTP's bytes: a request begins where its headers and its body are read. All is
drawn by one seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from sim_loop import LATENCY_SECONDS, Loop, Node
from tornado import httputil
from tornado.http1connection import HTTP1Connection

from restq.errors import StorageFull
from restq.pipe import Pipe
from restq.placement import Placement
from restq.shards import moving, process, shard, tasks
from restq.shards.changes import Changes
from restq.shards.commands import batches, jobs, leases
from restq.shards.invariants import check
from restq.shards.memory_store import MemoryStore
from restq.shards.store import StoreFailed
from restq.web.app import App
from restq.web.exchange import Exchanges

EPOCH = 1_000_000.0  # of the wall clock when a simulation begins
LEASE_SECONDS = 20.0  # where nobody says otherwise
RESTART_SECONDS = 0.5
COMMIT_SECONDS = 0.004
FULL = "there is no room left on the disk: nothing was done"
# What is large elsewhere, so that a dozen jobs are a batch, a sweep in steps or a move in chunks.
SMALL = [
    (batches, "SLICE_COUNT", 3),
    (jobs, "SLICE_COUNT", 3),
    (leases, "SLICE_COUNT", 3),
    (tasks, "STEP_COUNT", 2),
    (tasks, "LITTLE_COUNT", 1),
    (shard, "GROUP_ROWS_MAX", 20),
    (moving, "CHUNK_COUNT", 2),
    (moving, "LOOK_COUNT", 2),
]


class Answer(NamedTuple):
    """A response."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body)


class Http(HTTP1Connection):
    """In the place of a client's connection to a front end: one request, and its answer or the end of it."""

    def __init__(self, frontend: Frontend, answered: asyncio.Future[Answer | None], asker: Node) -> None:
        self.stream: Any = self
        self._frontend = frontend
        self._node = frontend.node
        self._answered = answered
        self._asker = asker
        self._on_close: Callable[[], None] = lambda: None
        self._is_closed = False
        frontend.open[self] = None

    def begin(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> None:
        """In the front end: the request arrived."""
        exchange = Exchanges(self._frontend.app).start_request(self, self)
        exchange.headers_received(httputil.RequestStartLine(method, target, "HTTP/1.1"), httputil.HTTPHeaders(headers))
        if body:
            exchange.data_received(body)
        exchange.finish()

    def go(self) -> None:
        """In the front end: it learns that the client is gone."""
        self._is_closed = True
        self._frontend.open.pop(self, None)
        self._on_close()

    def answer(self, answer: Answer | None) -> None:
        """Have the client learn the answer, or that there will be none."""
        self._frontend.open.pop(self, None)
        self._asker.later(self._node.loop.draw(LATENCY_SECONDS), self._learn, answer)

    def _learn(self, answer: Answer | None) -> None:
        if not self._answered.done():
            self._answered.set_result(answer)

    # From the front end, as a connection and as its stream.

    def set_max_body_size(self, max_body_size: int) -> None:
        """There is none."""

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """What is to be done once the client is gone."""
        self._on_close = callback or (lambda: None)
        if self._is_closed:
            self._on_close()

    def closed(self) -> bool:
        """Whether the front end knows that the client is gone."""
        return self._is_closed

    def writing(self) -> bool:
        """All is sent at once."""
        return False

    def write_headers(self, start_line: Any, headers: Any, chunk: Any = None) -> Any:
        """The answer."""
        self.answer(Answer(start_line.code, chunk))
        return None

    def write(self, chunk: bytes) -> Any:
        """The answer, with its head."""
        head, _, body = chunk.partition(b"\r\n\r\n")
        self.answer(Answer(int(head.split()[1]), body))
        return None

    def finish(self) -> None:
        """It is whole."""


class Frontend:
    """A front end, which is started again whenever it dies."""

    def __init__(self, world: World, index: int) -> None:
        self._world = world
        self.name = f"front {index}"
        self.open: dict[Http, None] = {}
        self.app: Any = None
        self.start()

    def start(self) -> None:
        """Connect to all shards, and then serve."""
        self.node = self._world.loop.node(self.name, self._died)
        self.node.run(self._serve())

    async def _serve(self) -> None:
        pipes = [Pipe(path, index) for index, path in enumerate(self._world.paths)]
        for pipe in pipes:
            pipe.open()
        for pipe in pipes:
            await pipe.connected()
        self.app = App(pipes, Placement(len(pipes), {}), 1 << 20)

    def _died(self) -> None:
        self.app = None
        for connection in list(self.open):
            connection.answer(None)
        self._world.loop.root.later(self._world.loop.draw(RESTART_SECONDS), self.start)


class Disk:
    """A store, and what befalls it. It outlives the shard."""

    def __init__(
        self, loop: Loop, name: str, open_store: Callable[[], Any], on_commit: Callable[[Changes], None]
    ) -> None:
        self._loop = loop
        self._name = name
        self._on_commit = on_commit
        self._open = open_store
        self._store = open_store()
        self.fails = False  # the next commit does, and whether it is kept is drawn
        self.is_full = False
        self.is_slow = False

    def open_again(self) -> Disk:
        """As a new process opens it."""
        self._store.close()
        self._store = self._open()
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, changes: Any, mark: Any) -> None:
        """Keep the group, or fail in one of the ways in which a disk does."""
        if self.is_slow:
            await asyncio.sleep(self._loop.draw(COMMIT_SECONDS))
        if self.fails:
            self.fails = False
            is_kept = self._loop.chance.random() < 0.5
            self._loop.note("fails", self._name, mark.group, is_kept)
            if is_kept:
                await self._keep(changes, mark)
            raise StoreFailed("I/O error")
        if self.is_full:
            self._loop.note("full", self._name, mark.group)
            raise StorageFull(FULL)
        await self._keep(changes, mark)
        self._loop.note("commits", self._name, mark.group, len(changes))
        if self.is_slow:
            await asyncio.sleep(self._loop.draw(COMMIT_SECONDS))

    async def _keep(self, changes: Changes, mark: Any) -> None:
        await self._store.commit(changes, mark)
        self._on_commit(changes)

    @property
    def rows(self) -> Any:
        """The store itself."""
        return self._store


class Connection(process.Connection):
    """A shard's end of a connection, with the same hash in every run."""

    _hash = 0

    def __hash__(self) -> int:
        self._hash = self._hash or asyncio.get_running_loop().number()  # type: ignore[attr-defined]
        return self._hash


class ShardNode:
    """A shard, which is started again whenever it ends."""

    def __init__(self, world: World, index: int, disk: Disk) -> None:
        self._world = world
        self.index = index
        self.name = f"shard {index}"
        self.disk = disk
        self.process: process.ShardProcess | None = None
        self.start()

    def start(self) -> None:
        """Load what the store holds, and serve."""
        self.node = self._world.loop.node(self.name, self._died)
        self.node.run(self._serve())

    async def _serve(self) -> None:
        settings = {
            "index": self.index,
            "count": len(self._world.paths),
            "elsewhere": {},
            "default_lease_time": LEASE_SECONDS,
            "sockets": self._world.paths,
            "path": self._world.paths[self.index],
        }
        try:
            self.process = serving = process.ShardProcess(settings, self.disk.open_again())
            await asyncio.get_running_loop().create_unix_server(
                lambda: Connection(serving), self._world.paths[self.index]
            )
            await serving.run()
        except StoreFailed as failed:
            self._world.loop.note("ends", self.name, str(failed))
        except Exception as error:
            self._world.loop.failures.append(f"{self.name} ended: {error!r}")
        self.node.kill()

    def _died(self) -> None:
        self.process = None
        self._world.loop.root.later(self._world.loop.draw(RESTART_SECONDS), self.start)

    def check(self) -> None:
        """Raise AssertionError where what is in memory does not fit together."""
        if self.process is not None:
            for actor in self.process.shard.mailboxes.actors.values():
                if actor.realm is not None and not actor.held:
                    check(actor.realm)
            here = self.process.shard.placement.shard_of
            for waiter in self.process.shard.waking._waiting.all():
                name = waiter.mail.realm
                if name and here(name) != self.index:
                    raise AssertionError(f"somebody waits for {name}, which is elsewhere")


class World:
    """All of it. Make it within `made_up`."""

    def __init__(self, loop: Loop, shard_count: int, frontend_count: int, open_store: Callable[[int], Any]) -> None:
        self.loop = loop
        self.is_calm = False  # no shard dies, and no connection is lost
        self.paths = [f"socket {index}" for index in range(shard_count)]
        self.on_commit: Callable[[int, Changes], None] = lambda index, changes: None  # of which shard, and what
        disks = [
            Disk(loop, f"disk {index}", partial(open_store, index), partial(self._committed, index))
            for index in range(shard_count)
        ]
        self.shards = [ShardNode(self, index, disk) for index, disk in enumerate(disks)]
        self.frontends = [Frontend(self, index) for index in range(frontend_count)]

    def _committed(self, index: int, changes: Changes) -> None:
        self.on_commit(index, changes)

    def now(self) -> float:
        """The time of all clocks."""
        return EPOCH + self.loop.time()

    def is_whole(self) -> bool:
        """Whether everything runs."""
        return all(frontend.app is not None for frontend in self.frontends) and all(
            pipe.is_connected for frontend in self.frontends for pipe in frontend.app.shards.pipes
        )

    async def ask(
        self, asker: Node, frontend: Frontend, request: tuple[str, str, bytes, dict[str, str]], patience: float
    ) -> Answer | None:
        """Send a request to a front end; None where no answer came within so many seconds."""
        if frontend.app is None:
            await asyncio.sleep(self.loop.draw(LATENCY_SECONDS))
            return Answer(503, b'{"message": "nobody listens, nothing was done", "code": "server_unreachable"}')
        answered: asyncio.Future[Answer | None] = self.loop.create_future()
        connection = Http(frontend, answered, asker)
        frontend.node.later(self.loop.draw(LATENCY_SECONDS), connection.begin, *request)
        try:
            async with asyncio.timeout(patience):
                return await answered
        except TimeoutError:
            if self.loop.chance.random() < 0.6:  # else it goes without a word
                frontend.node.later(self.loop.draw(self.loop.chance.choice((LATENCY_SECONDS, 1.0))), connection.go)
            return None


@contextlib.contextmanager
def made_up(loop: Loop, has_room: Callable[[], bool]) -> Iterator[None]:
    """The clock, the dice and the sizes of a simulation, in the stead of the real ones."""
    clock = SimpleNamespace(monotonic=loop.time, time=lambda: EPOCH + loop.time())
    disk = SimpleNamespace(statvfs=lambda path: SimpleNamespace(f_bavail=(1 << 20) * has_room(), f_frsize=4096))
    with contextlib.ExitStack() as stack:
        for module, name, value in SMALL:
            stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(mock.patch.object(process, "time", clock))
        stack.enter_context(mock.patch.object(process, "os", disk))
        stack.enter_context(mock.patch.object(process, "memory", SimpleNamespace(for_jobs=lambda: 1 << 40)))
        stack.enter_context(mock.patch.object(process, "random", random.Random(loop.chance.random())))
        yield


def memory_stores() -> Callable[[int], Any]:
    """Stores in memory: opening one again is to go on using it."""
    stores: dict[int, MemoryStore] = {}
    return lambda index: stores.setdefault(index, MemoryStore())
