"""A shard without sockets, and somebody who sends it requests: for the tests of shards and of moves."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from restq.errors import ShardUnavailable, StorageFull
from restq.placement import Placement, home
from restq.protocol import Frames, Reply, Request, pack
from restq.shards import moving
from restq.shards.actor import Mail
from restq.shards.bounds import Bounds
from restq.shards.data import INLINE_BYTES_MAX
from restq.shards.full import refuse
from restq.shards.memory_store import MemoryStore
from restq.shards.shard import Shard
from restq.shards.store import Room

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


class Sender:
    """A front end that keeps what it is replied."""

    def __init__(self) -> None:
        self.replies: dict[int, Reply] = {}
        self.answered: list[int] = []  # request ids, in the order of their replies

    # From the shard, as a connection.
    is_gone = False

    def reply(self, reply: Reply) -> None:
        assert reply.request_id not in self.replies, "nobody is answered twice"
        self.replies[reply.request_id] = reply
        self.answered.append(reply.request_id)

    def flush(self) -> None:
        """All is here."""

    async def drain(self) -> None:
        """All was taken."""


class Rig(Sender):
    """A shard over a store in memory, and somebody who sends it requests and keeps what it replies."""

    _bounds = (0, 0)

    def __init__(
        self, index: int = 0, count: int = 1, store: MemoryStore | None = None, bounds: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.store = store or MemoryStore()
        self.now = NOW
        self._index, self._count, self._bounds = index, count, bounds
        self._last_id = 0
        self._frames = Frames()
        self.start()

    def start(self) -> None:
        """Start from what the store holds, as after a crash."""
        bounds = Bounds(*self._bounds)
        self.shard = Shard(self._index, Placement(self._count), 600.0, self.store, bounds=bounds)
        loaded = self.store.load()
        self._group = loaded.mark.group
        self.shard.load(loaded, self.now)

    def send(
        self,
        operation: str,
        realm: str = "",
        params: list[Any] | None = None,
        body: Any = b"",
        once: Sequence[str] = (),
        sender: Sender | None = None,
        waited: float = 0,
    ) -> int:
        """A request, through its frame, of this front end or of another; returns its id."""
        self._last_id += 1
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = Request(self._last_id, operation, realm, params or [], text, once, waited)
        for frame in self._frames.feed(pack(request)):
            self.shard.receive(Mail(sender or self, 0.0, *frame))
        return self._last_id

    def leave(self, request_id: int) -> None:
        """Nobody waits for the reply to this request any more."""
        self.send("leave", "", [request_id])

    def turn(self) -> list[int]:
        """One turn and its commit; the ids of the requests that it answered."""
        self.shard.turn(self.now)
        if changes := self.shard.take_changes():
            self._group += 1
            completed(self.store.commit(changes, self.shard.mark(self._group, self.now)))
        self.shard.committed(self.shard.outbox)
        return self._hand_out(self.shard.outbox)

    def full_turn(self, room: Room = Room.NONE) -> list[int]:
        """One turn whose commit finds the disk full, and what the process does then; there is enough room at once.

        `room` is what there is for what is asked, or goes on, once more.
        """
        self.shard.turn(self.now)
        self.shard.set_room(room)
        refused = refuse(self.shard, self.shard.outbox, FULL)
        self.shard.load(self.store.load(), self.now)
        self.shard.committed(refused)
        self.shard.set_room(Room.ENOUGH)
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
        """Turns until there is nothing to do, as the process makes them."""
        while self.busy or self.shard.outbox or (self.shard.changes and not self.shard.full):
            self.turn()

    def run_until(self, at: float) -> None:
        """Let time pass until this instant, with turns only when the shard asks for them."""
        self.run()
        while (due_at := self.shard.next_deadline()) <= at:
            self.now = max(self.now, due_at)
            self.run()
        self.now = at

    def ask(
        self,
        operation: str,
        realm: str = "",
        params: list[Any] | None = None,
        body: Any = b"",
        once: Sequence[str] = (),
    ) -> Any:
        """Send a request, run, and read the reply, which must be a success."""
        reply = self.reply_to(operation, realm, params, body, once)
        assert reply.status == 200, reply
        return json.loads(reply.body)

    def reply_to(
        self,
        operation: str,
        realm: str = "",
        params: list[Any] | None = None,
        body: Any = b"",
        once: Sequence[str] = (),
    ) -> Reply:
        request_id = self.send(operation, realm, params, body, once)
        self.run()
        return self.replies[request_id]

    def waiting(self, operation: str, realm: str, params: list[Any] | None = None, body: Any = b"") -> int:
        """Send a request that must then wait; returns its id."""
        request_id = self.send(operation, realm, params, body)
        self.run()
        assert request_id not in self.replies, self.replies[request_id]
        return request_id

    def waiting_pull(self, realm: str, **said: Any) -> int:
        """Send a pull that must then wait for a minute; returns its id."""
        return self.waiting("pull", realm, [], {"wait": 60, **said})

    def pull(self, realm: str, count: int = 1, **said: Any) -> list[dict[str, Any]]:
        """The jobs that a pull gives."""
        jobs: list[dict[str, Any]] = self.ask("pull", realm, [], {"count": count, **said})["jobs"]
        return jobs

    def leases(self, realm: str, count: int = 1, **said: Any) -> list[str]:
        """The lease ids that a pull gives, which must be so many."""
        jobs = self.pull(realm, count, **said)
        assert len(jobs) == count
        return [job["lease_id"] for job in jobs]

    def read(self, request_id: int) -> Any:
        """The reply that came, which must be a success."""
        reply = self.replies[request_id]
        assert reply.status == 200, reply
        return json.loads(reply.body)

    def given(self, request_id: int) -> list[str] | None:
        """The ids of the jobs that a pull was answered with; None if it still waits."""
        return [job["job_id"] for job in self.read(request_id)["jobs"]] if request_id in self.replies else None

    def list(self, realm: str, state: str | None = None, limit: int = 1000, **said: Any) -> list[dict[str, Any]]:
        """What a list shows, all pages of it."""
        jobs: list[dict[str, Any]] = []
        cursor = None
        while True:
            wanted = [state, said.get("queue"), said.get("tag"), said.get("prefix"), str(limit), cursor, "1"]
            page = self.ask("list_jobs", realm, wanted)
            assert len(page["jobs"]) <= limit
            jobs += page["jobs"]
            cursor = page["cursor"]
            if cursor is None:
                return jobs

    def ids(self, realm: str, state: str | None = None, **said: Any) -> list[str]:
        """The ids on a list."""
        return [job["job_id"] for job in self.list(realm, state, **said)]

    def add(self, realm: str, *job_ids: str, queue: Any = 0, **said: Any) -> None:
        jobs = [{"job_id": job_id, "queue_id": queue, **said} for job_id in job_ids]
        self.ask("add_jobs", realm, body={"jobs": jobs})

    def error(self, request_id: int) -> dict[str, Any]:
        reply = self.replies[request_id]
        error: dict[str, Any] = json.loads(reply.body)
        assert error["error"] == reply.status
        return error

    def rows(self) -> dict[str, dict[Any, Any]]:
        """All that the store holds, as of now."""
        return copy.deepcopy(self.store._tables)

    def row_count(self) -> int:
        return sum(len(rows) for rows in self.store._tables.values())


def calls_made(do: Callable[[], object]) -> int:
    """How many calls of functions this takes: work, measured without a clock."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        do()
    finally:
        sys.setprofile(None)
    return count


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


# -- moves -----------------------------------------------------------------------------------------------------------


class Wire:
    """In the place of a pipe: calls of the target, each of which may be the last. It breaks before it sends `lost`."""

    def __init__(self, target: Rig, calls: int = 1_000_000, lost: str = "") -> None:
        self.target = target
        self.calls = calls
        self.lost = lost

    async def call(self, operation: str, realm: str, params: list[Any], body: bytes) -> Reply:
        if self.calls == 0 or operation == self.lost:
            raise ShardUnavailable("gone")
        self.calls -= 1
        request_id = self.target.send(operation, realm, params, body)
        while request_id not in self.target.replies:
            self.target.turn()
        return self.target.replies[request_id]


def pin(source: Rig, realm: str, shard: int) -> int:
    """Ask for a move; the realm is held from then on."""
    request_id = source.send("place_realm", realm, [1], {"shard": shard})
    source.turn()
    assert request_id not in source.replies
    return request_id


def carry_out(source: Rig, target: Rig, calls: int = 1_000_000) -> None:
    """What the process of the source does with a move: send all, and then say that the realm is gone."""
    ((mail, shard),) = source.shard.moves.asked
    send_rows(source, target, calls)
    source.shard.moves.take()
    source.shard.moves.depart(mail, shard)


def send_rows(source: Rig, target: Rig, calls: int = 1_000_000, lost: str = "") -> None:
    ((mail, _),) = source.shard.moves.asked
    realm = source.shard.moves.held_realm(mail.realm)
    wire: Any = Wire(target, calls, lost)
    sending = moving.Sending(realm, source.shard.keys.next_key, source.store)
    completed(sending.attempt(wire))


def move(source: Rig, target: Rig, realm: str) -> None:
    """Move the realm, and be done with it on both sides."""
    pin(source, realm, target.shard.index)
    carry_out(source, target)
    source.run()
    target.run()
