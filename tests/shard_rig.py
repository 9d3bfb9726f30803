"""A shard without sockets, and somebody who sends it requests: for the tests of shards and of moves."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

from restq.errors import StorageFull
from restq.placement import Placement, home
from restq.protocol import Frames, Reply, Request, pack
from restq.shards.actor import Mail
from restq.shards.data import INLINE_BYTES_MAX
from restq.shards.full import refuse
from restq.shards.memory_store import MemoryStore
from restq.shards.shard import Shard

NOW = 1_000.0
LARGE = "x" * (INLINE_BYTES_MAX + 1)
A, B, C = "a", "b", "c"
FULL = StorageFull("there is no room left on the disk: nothing was done")


def completed(call: Coroutine[Any, Any, None]) -> None:
    """Run what waits for nothing, without a loop."""
    try:
        call.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


class Rig:
    """A shard over a store in memory, and somebody who sends it requests and keeps what it replies."""

    def __init__(self, index: int = 0, count: int = 1, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.now = NOW
        self.replies: dict[int, Reply] = {}
        self.answered: list[int] = []  # request ids, in the order of their replies
        self._index, self._count = index, count
        self._last_id = 0
        self._frames = Frames()
        self.start()

    def start(self) -> None:
        """Start from what the store holds, as after a crash."""
        self.shard = Shard(self._index, Placement(self._count), 600.0, self.store)
        loaded = self.store.load()
        self._group = loaded.mark.group
        self.shard.load(loaded, self.now)

    # From the shard, as a connection.
    def reply(self, reply: Reply) -> None:
        self.replies[reply.request_id] = reply
        self.answered.append(reply.request_id)

    def flush(self) -> None:
        """All is here."""

    def send(self, operation: str, realm: str = "", params: list[Any] | None = None, body: Any = b"") -> int:
        """A request, through its frame; returns its id."""
        self._last_id += 1
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        for frame in self._frames.feed(pack(Request(self._last_id, operation, realm, params or [], text))):
            self.shard.receive(Mail(self, 0.0, *frame))
        return self._last_id

    def turn(self) -> list[int]:
        """One turn and its commit; the ids of the requests that it answered."""
        self.shard.turn(self.now)
        if changes := self.shard.changes.take():
            self._group += 1
            completed(self.store.commit(changes, self.shard.mark(self._group, self.now)))
        self.shard.committed()
        return self._hand_out(self.shard.outbox)

    def full_turn(self) -> list[int]:
        """One turn whose commit finds the disk full, and what the process does then."""
        self.shard.turn(self.now)
        refused = refuse(self.shard, self.shard.outbox, FULL)
        self.shard.load(self.store.load(), self.now)
        return self._hand_out(refused)

    def _hand_out(self, outbox: list[tuple[Mail, Reply]]) -> list[int]:
        outbox, self.shard.outbox = list(outbox), []
        for mail, reply in outbox:
            assert mail.request_id == reply.request_id
            mail.sender.reply(reply)
        return [mail.request_id for mail, _ in outbox]

    @property
    def busy(self) -> bool:
        """Whether a turn would find something to do."""
        return self.shard.busy(self.now)

    def run(self) -> None:
        """Turns until there is nothing to do."""
        while self.busy:
            self.turn()

    def ask(self, operation: str, realm: str = "", params: list[Any] | None = None, body: Any = b"") -> Any:
        """Send a request, run, and read the reply, which must be a success."""
        reply = self.reply_to(operation, realm, params, body)
        assert reply.status == 200, reply
        return json.loads(reply.body)

    def reply_to(self, operation: str, realm: str = "", params: list[Any] | None = None, body: Any = b"") -> Reply:
        request_id = self.send(operation, realm, params, body)
        self.run()
        return self.replies[request_id]

    def add(self, realm: str, *job_ids: str, queue: Any = 0, **said: Any) -> None:
        jobs = [{"job_id": job_id, "queue_id": queue, **said} for job_id in job_ids]
        self.ask("add_jobs", realm, body={"jobs": jobs})

    def error(self, request_id: int) -> dict[str, Any]:
        reply = self.replies[request_id]
        error: dict[str, Any] = json.loads(reply.body)
        assert error["error"] == reply.status
        return error

    def row_count(self) -> int:
        return sum(len(rows) for rows in self.store._tables.values())


def ids(count: int) -> list[str]:
    return [f"job {number}" for number in range(count)]


HOME_0, HOME_1 = (next(name for name in ids(20) if home(name, 2) == shard) for shard in (0, 1))


def bulk(*jobs: tuple[str, str, Any]) -> dict[str, Any]:
    return {
        "jobs": [
            {"realm_id": realm, "job_id": job_id, "queue_id": 0, **({} if data is None else {"data": data})}
            for realm, job_id, data in jobs
        ]
    }


def only_rows_of(rig: Rig, *realms: str) -> bool:
    """Whether the store holds these realms and nothing of others."""
    tables = rig.store._tables
    keys = set(tables["realms"])
    jobs = set(tables["jobs"])
    return (
        sorted(row.name for row in tables["realms"].values()) == sorted(realms)
        and {row.realm for row in tables["queues"].values()} <= keys
        and {row[1] for row in tables["jobs"].values()} <= keys
        and {row[1] for row in tables["places"].values()} == jobs
        and set(tables["payloads"]) <= jobs
    )
