"""A shard without sockets: who is served when, what a failure leaves, and how a realm gets from one to another."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Coroutine
from typing import Any

import pytest

from restq.errors import ShardUnavailable, StorageFull
from restq.placement import Placement, home
from restq.protocol import MOVED, Frames, Reply, Request, pack
from restq.shards import commands, moving
from restq.shards import shard as shard_module
from restq.shards.actor import Mail
from restq.shards.data import INLINE_BYTES_MAX
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
        self.shard = Shard(self._index, Placement(self._count), 600.0, self.store.payload)
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
        return self._hand_out(self.shard.outbox)

    def full_turn(self) -> list[int]:
        """One turn whose commit finds the disk full, and what the process does then."""
        self.shard.turn(self.now)
        refused = self.shard.refuse(self.shard.outbox, FULL)
        self.shard.load(self.store.load(), self.now)
        return self._hand_out(refused)

    def _hand_out(self, outbox: list[tuple[Mail, Reply]]) -> list[int]:
        outbox, self.shard.outbox = list(outbox), []
        for mail, reply in outbox:
            assert mail.request_id == reply.request_id
            mail.sender.reply(reply)
        return [mail.request_id for mail, _ in outbox]

    def run(self) -> None:
        """Turns until there is nothing to do."""
        while self.shard.busy:
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


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_module, "STEP_COUNT", 10)


def ids(count: int) -> list[str]:
    return [f"job {number}" for number in range(count)]


# -- turns -----------------------------------------------------------------------------------------------------------


def test_turn_with_flood_in_one_realm_serves_neighbour_after_one_message(rig: Rig) -> None:
    flood = [rig.send("add_job", A, [job_id], {"queue_id": 0}) for job_id in ids(500)]
    neighbour = rig.send("add_job", B, ["x"], {"queue_id": 0})
    everybody = rig.send("get_stats")
    answered = rig.turn()
    assert answered[:3] == [flood[0], neighbour, everybody]


def test_turn_ends_when_its_group_is_full_and_next_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_module, "GROUP_ROWS_MAX", 20)
    flood = [rig.send("add_job", A, [job_id], {"queue_id": 0}) for job_id in ids(100)]
    neighbour = rig.send("add_job", B, ["x"], {"queue_id": 0})
    first = rig.turn()
    assert neighbour in first
    assert len(first) < 20
    assert rig.shard.busy
    rig.run()
    assert [request for request in rig.answered if request != neighbour] == flood
    assert rig.ask("get_status", A)["total_jobs"] == 100


def test_requests_to_one_realm_are_answered_in_the_order_of_arrival(rig: Rig) -> None:
    sent = []
    for number in range(50):
        sent.append(rig.send("add_job", A, [f"job {number}"], {"queue_id": 0}))
        sent.append(rig.send("pull_2013", A, [None, None]))
        sent.append(rig.send("remove_job", A, [f"job {number}"]))
        sent.append(rig.send("get_status", A))
    rig.run()
    assert rig.answered == sent
    assert [list(json.loads(rig.replies[pull].body)) for pull in sent[1::4]] == [[job_id] for job_id in ids(50)]
    assert {json.loads(rig.replies[status].body)["total_jobs"] for status in sent[3::4]} == {0}


def test_turn_with_bad_messages_serves_their_neighbours(rig: Rig) -> None:
    bad = [
        rig.send("add_job", A, ["x"], b"{"),
        rig.send("add_job", A, ["x"], {"queue_id": []}),
        rig.send("add_jobs", A, [], {"jobs": [{"job_id": "ok", "queue_id": 0}, {"job_id": "", "queue_id": 0}]}),
        rig.send("get_job", A, ["never"]),
        rig.send("clear_queue", A, ["never"]),
        rig.send("no such operation", A),
        rig.send("no such operation"),
    ]
    good = [rig.send("add_job", realm, ["good"], {"queue_id": 0}) for realm in (A, B)]
    assert sorted(rig.turn()) == sorted([*bad, *good])
    assert [rig.replies[request].status for request in bad] == [400, 400, 400, 404, 404, 500, 500]
    assert [rig.replies[request].status for request in good] == [200, 200]
    assert {name: status["total_jobs"] for name, status in rig.ask("get_statuses").items()} == {A: 1, B: 1}


def test_exception_before_any_change_is_an_internal_error_without_details(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(realm: Any, call: Any) -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setitem(commands.REALM_OPERATIONS, "get_status", broken)
    rig.add(A, "x")
    before = rig.row_count()
    request_id = rig.send("get_status", A)
    rig.run()
    error = rig.error(request_id)
    assert (error["code"], error["exception"]) == ("internal_error", "RuntimeError")
    assert "secret" not in str(error)
    assert rig.row_count() == before
    assert rig.ask("get_job", A, ["x"])["queues"] == [[0, 0]]


def test_exception_half_way_ends_the_turn(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the file knows what is true then: the process must not go on."""

    def broken(realm: Any, call: Any) -> Any:
        realm.add([("half", 0, None, ())], call.now)
        raise ZeroDivisionError

    monkeypatch.setitem(commands.REALM_OPERATIONS, "get_status", broken)
    rig.send("get_status", A)
    with pytest.raises(ZeroDivisionError):
        rig.shard.turn(NOW)


def test_read_of_realm_that_never_was_makes_nothing(rig: Rig) -> None:
    assert rig.ask("get_status", A) == {"total_jobs": 0, "total_tags": 0, "queues": {}}
    assert rig.ask("pull_2013", A, [None, None]) == {}
    assert rig.ask("delete_realm", A) == {}
    assert rig.ask("get_statuses") == {}
    assert rig.row_count() == 0


def test_names_that_are_asked_for_and_do_not_exist_take_no_memory(rig: Rig) -> None:
    rig.add("real", "x")
    for number in range(50):
        rig.reply_to("get_status", f"status {number}")
        rig.reply_to("get_job", f"job {number}", ["x"])
        rig.reply_to("add_job", f"bad {number}", ["x"], b"{")
        rig.reply_to("bulk_remove", "", [[[f"remove {number}", "x"]]])
        rig.reply_to("peek", "", [1, None, [f"peek {number}"]])
        rig.add(f"deleted {number}", "x")
        rig.ask("delete_realm", f"deleted {number}")
    assert list(rig.shard._actors) == ["real"]


def test_bytes_of_mail_are_counted_until_they_are_served(rig: Rig) -> None:
    body = {"queue_id": 0, "data": "x" * 100}
    rig.send("add_job", A, ["x"], body)
    rig.send("add_job", B, ["x"], b"{")
    rig.send("bulk_add", "", [[0]], {"jobs": [{"realm_id": A, "job_id": 1, "queue_id": 0}]})
    assert rig.shard.mail_bytes > 150
    rig.run()
    assert rig.shard.mail_bytes == 0


def test_large_data_is_read_back_within_its_turn_and_later(rig: Rig) -> None:
    rig.send("add_job", A, ["x"], {"queue_id": 0, "data": LARGE})
    same_turn = rig.send("get_job", A, ["x"])
    rig.turn()
    assert json.loads(rig.replies[same_turn].body)["data"] == LARGE
    assert rig.ask("get_job", A, ["x"])["data"] == LARGE
    assert rig.ask("pull_2013", A, [None, None]) == {"x": [0, LARGE]}


def test_undo_pull_gives_back_what_that_pull_leased(rig: Rig) -> None:
    rig.add(A, "x", "y")
    pull = rig.reply_to("pull_2013", A, [2, None])
    assert pull.extra > 0
    rig.ask("undo_pull", A, [pull.extra, [["x", 0], ["y", 0]]])
    assert list(rig.ask("pull_2013", A, [2, None])) == ["x", "y"]
    rig.ask("undo_pull", A, [pull.extra, [["x", 0], ["y", 0]]])
    assert rig.ask("pull_2013", A, [2, None]) == {}


# -- held realms -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("operation", "params"), [("clear_queue", ["0"]), ("remove_tagged_jobs", ["t"]), ("delete_realm", [])]
)
def test_removal_of_many_jobs_lets_neighbours_pass_and_its_own_realm_wait(
    rig: Rig, operation: str, params: list[Any]
) -> None:
    rig.add(A, *ids(55), tags=["t"])
    removal = rig.send(operation, A, params)
    own = rig.send("get_status", A)
    turns = 0
    while removal not in rig.answered:
        neighbour = rig.send("add_job", B, [f"during {turns}"], {"queue_id": 0})
        answered = rig.turn()
        turns += 1
        assert neighbour in answered
        assert own not in rig.answered or removal in answered
    assert turns >= 5
    rig.run()
    assert rig.answered.index(removal) < rig.answered.index(own)
    assert json.loads(rig.replies[own].body)["total_jobs"] == 0
    if operation == "clear_queue":
        assert json.loads(rig.replies[removal].body) == {"removed": 55}


@pytest.mark.usefixtures("small_steps")
def test_request_over_all_realms_waits_until_none_is_held(rig: Rig) -> None:
    rig.add(A, *ids(55))
    rig.add(B, "x")
    removal = rig.send("clear_queue", A, ["0"])
    rig.turn()
    statuses = rig.send("get_statuses")
    pull = rig.send("pull_2013", B, [None, None])
    assert pull in rig.turn()
    assert statuses not in rig.answered
    rig.run()
    assert rig.answered.index(removal) < rig.answered.index(statuses)
    assert json.loads(rig.replies[statuses].body)[A]["queues"] == {"0": 0}


@pytest.mark.usefixtures("small_steps")
def test_two_removals_at_once_take_turns(rig: Rig) -> None:
    rig.add(A, *ids(60))
    rig.add(B, *ids(60))
    removals = [rig.send("clear_queue", realm, ["0"]) for realm in (A, B)]
    rig.turn()
    left = []
    while rig.shard.busy:
        left.append([status["jobs"] for status in rig.shard._counts().values()])
        rig.turn()
    assert all(abs(one - other) <= 20 for one, other in left)
    assert rig.answered[-2:] == removals


# -- several realms --------------------------------------------------------------------------------------------------


def bulk(*jobs: tuple[str, str, Any]) -> dict[str, Any]:
    return {
        "jobs": [
            {"realm_id": realm, "job_id": job_id, "queue_id": 0, **({} if data is None else {"data": data})}
            for realm, job_id, data in jobs
        ]
    }


@pytest.mark.parametrize("operation", ["bulk_add", "bulk_check"])
def test_bulk_add_over_realms_with_other_data_changes_none_and_names_index(rig: Rig, operation: str) -> None:
    rig.add(B, "old", data=1)
    before = rig.row_count()
    body = bulk((A, "new", None), (B, "fine", None), (A, "newer", None), (B, "old", 2))
    reply = rig.reply_to(operation, "", [[10, 11, 12, 17]], body)
    error = json.loads(reply.body)
    assert (reply.status, error["code"]) == (409, "data_differs")
    assert error["message"].startswith("jobs[17]: job 'old' already exists with other data")
    assert rig.row_count() == before
    assert list(rig.ask("get_statuses")) == [B]


def test_bulk_add_of_one_job_of_a_realm_with_other_data_names_its_index_too(rig: Rig) -> None:
    rig.add(A, "old", data=1)
    reply = rig.reply_to("bulk_add", "", [[0, 1]], bulk((B, "x", None), (A, "old", 2)))
    assert json.loads(reply.body)["message"].startswith("jobs[1]: ")


def test_bulk_add_over_realms_with_bad_job_names_its_index(rig: Rig) -> None:
    reply = rig.reply_to("bulk_add", "", [[3, 8]], bulk((A, "x", None), (B, "", None)))
    assert reply.status == 400
    assert json.loads(reply.body)["field"] == "jobs[8].job_id"
    assert rig.ask("get_statuses") == {}


def test_bulk_add_over_realms_makes_them_all(rig: Rig) -> None:
    rig.ask("bulk_add", "", [[0, 1, 2]], bulk((A, "x", 1), (B, "y", None), (A, "z", LARGE)))
    assert {name: status["total_jobs"] for name, status in rig.ask("get_statuses").items()} == {A: 2, B: 1}
    assert rig.ask("get_job", A, ["z"])["data"] == LARGE


def test_bulk_check_changes_nothing(rig: Rig) -> None:
    rig.ask("bulk_check", "", [[0]], bulk((A, "x", 1)))
    assert rig.row_count() == 0
    assert rig.ask("get_statuses") == {}


def test_bulk_remove_over_realms_passes_over_what_is_not_there(rig: Rig) -> None:
    rig.add(A, "x", "y")
    rig.add(B, "x")
    rig.ask("bulk_remove", "", [[[A, "x"], [B, "x"], [A, "never"], [C, "never"], [A, "x"]]])
    assert {name: status["total_jobs"] for name, status in rig.ask("get_statuses").items()} == {A: 1, B: 0}


def test_peek_over_realms_leases_nothing_and_lease_takes_just_the_chosen(rig: Rig) -> None:
    rig.add(A, "x", queue=1, tags=["t"], data=LARGE)
    rig.now += 1
    rig.add(B, "y", queue=0)
    rig.add(B, "z", queue=5)
    peeked = rig.ask("peek", "", [10, 1, None])
    assert sorted(peeked) == [[NOW, A, "x", 1], [NOW + 1, B, "y", 0]]
    assert rig.ask("peek", "", [10, None, [B, C]]) == [[NOW + 1, B, "y", 0], [NOW + 1, B, "z", 5]]
    assert sorted(rig.ask("peek", "", [10, 1, None])) == sorted(peeked)
    reply = rig.reply_to("lease_peeked", "", [[[A, "x", 1], [C, "never", 0], [A, "x", 9], [A, "x", 1]]])
    first, *others = json.loads(reply.body)
    assert first == {
        "job_id": "x",
        "queue_id": 1,
        "data": LARGE,
        "tags": ["t"],
        "lease_expires_at": NOW + 601,
        "realm": A,
    }
    assert others == [None, None, None]
    assert reply.extra > 0
    assert rig.ask("pull_2013", A, [None, None]) == {}
    assert list(rig.ask("pull_2013", B, [5, None])) == ["y", "z"]
    assert list(rig.ask("get_statuses")) == [A, B]


@pytest.mark.usefixtures("small_steps")
def test_peek_leaves_out_realm_that_is_held(rig: Rig) -> None:
    rig.add(A, *ids(55))
    rig.add(B, "y")
    rig.send("clear_queue", A, ["0"])
    rig.turn()
    peek = rig.send("peek", "", [1, None, None])
    lease = rig.send("lease_peeked", "", [[[A, "job 50", 0], [B, "y", 0]]])
    rig.turn()
    assert [found[1] for found in json.loads(rig.replies[peek].body)] == [B]
    assert [found and found["realm"] for found in json.loads(rig.replies[lease].body)] == [None, B]


def test_get_stats_counts_realms_and_errors(rig: Rig) -> None:
    rig.add(A, "x", "y")
    rig.reply_to("get_job", A, ["never"])
    rig.reply_to("get_job", A, ["never"])
    stats = rig.ask("get_stats")
    assert stats["realms"] == {A: {"jobs": 2, "pinned": False}}
    assert (stats["shard"], stats["jobs"]) == (0, 2)
    assert stats["errors"] == [["get_job", "job_not_found", 2]]


# -- realms elsewhere ------------------------------------------------------------------------------------------------

HOME_0, HOME_1 = (next(name for name in ids(20) if home(name, 2) == shard) for shard in (0, 1))


def test_request_for_realm_of_another_shard_is_answered_by_where_it_is() -> None:
    rig = Rig(0, 2)
    reply = rig.reply_to("add_job", HOME_1, ["x"], {"queue_id": 0})
    assert (reply.status, reply.extra) == (MOVED, 1)
    many = bulk((HOME_0, "x", None), (HOME_1, "y", None))
    for operation, params, body in (
        ("bulk_add", [[0, 1]], many),
        ("bulk_check", [[0, 1]], many),
        ("bulk_remove", [[[HOME_0, "x"], [HOME_1, "y"]]], b""),
        ("peek", [1, None, [HOME_0, HOME_1]], b""),
        ("lease_peeked", [[[HOME_0, "x", 0], [HOME_1, "y", 0]]], b""),
    ):
        reply = rig.reply_to(operation, "", params, body)
        assert (reply.status, reply.body.decode(), reply.extra) == (MOVED, HOME_1, 1)
    assert rig.row_count() == 0
    assert list(rig.shard._actors) == []


def test_pin_of_realm_that_does_not_exist_is_refused() -> None:
    rig = Rig(0, 2)
    reply = rig.reply_to("place_realm", HOME_0, [1], {"shard": 1})
    assert (reply.status, json.loads(reply.body)["code"]) == (404, "realm_not_found")
    assert rig.shard.moves == []


def test_pin_to_where_the_realm_is_moves_nothing() -> None:
    rig = Rig(0, 2)
    rig.add(HOME_0, "x")
    rig.ask("place_realm", HOME_0, [1], {"shard": 0})
    assert rig.ask("get_stats")["realms"][HOME_0]["pinned"] is True
    rig.start()
    assert rig.ask("get_stats")["realms"][HOME_0]["pinned"] is True
    rig.ask("place_realm", HOME_0, [0])
    assert rig.ask("get_stats")["realms"][HOME_0]["pinned"] is False
    assert rig.shard.moves == []


class Wire:
    """In the place of a pipe: calls of the target, each of which may be the last."""

    def __init__(self, target: Rig, calls: int = 1_000_000) -> None:
        self.target = target
        self.calls = calls

    async def call(self, operation: str, realm: str, params: list[Any], body: bytes) -> Reply:
        if self.calls == 0:
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
    ((mail, shard),) = source.shard.moves
    send_rows(source, target, calls)
    source.shard.moves = []
    source.shard.depart(mail, shard)


def send_rows(source: Rig, target: Rig, calls: int = 1_000_000) -> None:
    ((mail, _),) = source.shard.moves
    realm = source.shard.held_realm(mail.realm)
    wire: Any = Wire(target, calls)
    asyncio.run(moving._send_once(realm, source.shard.keys.next_key, source.store.payload, wire))


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[Rig, Rig]:
    """Two shards; the first holds a realm with a bit of everything, and more jobs than fit into one chunk."""
    monkeypatch.setattr(moving, "CHUNK_COUNT", 7)
    monkeypatch.setattr(shard_module, "STEP_COUNT", 10)
    source, target = Rig(0, 2), Rig(1, 2)
    source.shard.keys.next_key = 5_000  # it has given out more numbers than the other
    source.ask("configure", HOME_0, body={"default_lease_time": 50, "queue_lease_time": ["late", 9]})
    source.add(HOME_0, *ids(30), tags=["t", "é"], data={"a": [1]})
    source.add(HOME_0, "large", queue=-5, data=LARGE)
    source.now += 1
    source.add(HOME_0, "job 3", "job 4", queue="late")
    assert len(source.ask("pull_2013", HOME_0, [10, None])) == 10
    source.ask("remove_job", HOME_0, ["job 7"])
    source.ask("move_job", HOME_0, ["job 20"], {"from_queue": 0, "to_queue": "late"})
    target.add(HOME_1, *ids(5))
    target.now = source.now
    return source, target


def seen(rig: Rig, realm: str) -> Any:
    """All that can be seen of a realm, the order of its jobs included, now and when all leases are over."""
    jobs = rig.ask("get_tagged_jobs", realm, ["t"]), rig.ask("get_job", realm, ["large"])
    rig.shard._actors[realm].realm.check()  # type: ignore[union-attr]
    order = [
        (place.at, place.job.job_id, place.queue.queue_id, place.lease.number)
        for queue in rig.shard._actors[realm].realm.served()  # type: ignore[union-attr]
        for place in sorted([*queue.ready.entries, *queue.waiting.entries])
        if place.job.holds(place)
    ]
    times = {queue.queue_id: queue.lease_time for queue in rig.shard._actors[realm].realm.served()}  # type: ignore[union-attr]
    return rig.ask("get_status", realm), jobs, order, times, rig.ask("peek", "", [100, None, [realm]])


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


def test_move_keeps_all_of_a_realm(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    before = seen(source, HOME_0)
    moved = pin(source, HOME_0, 1)
    carry_out(source, target)
    source.run()
    assert source.replies[moved].status == 200
    assert source.reply_to("get_status", HOME_0).extra == 1
    assert seen(target, HOME_0) == before
    assert only_rows_of(source)
    assert only_rows_of(target, HOME_0, HOME_1)
    for rig in pair:
        rig.start()
    assert source.reply_to("get_status", HOME_0)[1:] == (MOVED, b"", 1)
    assert seen(target, HOME_0) == before
    assert target.ask("get_stats")["realms"][HOME_0]["pinned"] is True
    assert target.ask("get_status", HOME_1)["total_jobs"] == 5


def test_move_and_back_keeps_all_of_a_realm(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    before = seen(source, HOME_0)
    pin(source, HOME_0, 1)
    carry_out(source, target)
    source.run()
    assert target.send("place_realm", HOME_0, [0])
    target.turn()
    carry_out(target, source)
    target.run()
    source.run()
    assert seen(source, HOME_0) == before
    assert target.reply_to("get_status", HOME_0).extra == 0
    for rig in pair:
        rig.start()
    assert seen(source, HOME_0) == before
    assert target.reply_to("get_status", HOME_0).extra == 0
    assert only_rows_of(source, HOME_0)
    assert source.ask("get_stats")["realms"][HOME_0]["pinned"] is False


def test_move_proves_leases_in_the_new_shard(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    pull = source.reply_to("pull_2013", HOME_0, [3, None])
    leased = json.loads(pull.body)
    pin(source, HOME_0, 1)
    carry_out(source, target)
    new = target.reply_to("pull_2013", HOME_0, [1, None])
    assert new.extra > pull.extra
    target.ask("undo_pull", HOME_0, [pull.extra, [[job_id, queue] for job_id, (queue, _) in leased.items()]])
    assert sorted(target.ask("pull_2013", HOME_0, [3, None])) == sorted(leased)


def test_move_holds_the_realm_and_only_it_until_it_is_done(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    pin(source, HOME_0, 1)
    waiting = source.send("add_job", HOME_0, ["late"], {"queue_id": 0})
    other = next(name for name in ids(50)[21:] if home(name, 2) == 0)
    source.add(other, "x")
    assert waiting not in source.replies
    carry_out(source, target)
    source.run()
    assert source.replies[waiting][1:] == (MOVED, b"", 1)


def test_call_over_all_realms_during_a_move_waits_without_turns_and_figures_do_not(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    pin(source, HOME_0, 1)
    statuses = source.send("get_statuses")
    stats = source.send("get_stats")
    source.run()
    assert stats in source.replies
    assert statuses not in source.replies
    assert not source.shard.busy, "who waits for a move costs no turns"
    carry_out(source, target)
    source.run()
    assert json.loads(source.replies[statuses].body) == {}


def test_move_interrupted_anywhere_begins_again(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    before = seen(source, HOME_0)
    pin(source, HOME_0, 1)
    for calls in range(4):
        with pytest.raises(ShardUnavailable):
            send_rows(source, target, calls)
    assert list(target.ask("get_statuses")) == [HOME_1], "what has not arrived does not count"
    carry_out(source, target)
    source.run()
    target.run()
    assert seen(target, HOME_0) == before
    assert only_rows_of(target, HOME_0, HOME_1)
    assert only_rows_of(source)


@pytest.mark.parametrize("calls", [0, 1, 2, 4])
def test_move_goes_on_after_both_shards_started_again(pair: tuple[Rig, Rig], calls: int) -> None:
    source, target = pair
    before = seen(source, HOME_0)
    pin(source, HOME_0, 1)
    with pytest.raises(ShardUnavailable):
        send_rows(source, target, calls)
    for rig in pair:
        rig.start()
    target.run()
    assert only_rows_of(target, HOME_1), "what came half is dropped"
    waiting = source.send("get_status", HOME_0)
    source.run()
    assert waiting not in source.replies, "it is held again"
    carry_out(source, target)
    source.run()
    assert source.replies[waiting].status == MOVED
    assert seen(target, HOME_0) == before


def test_move_that_was_done_before_the_source_knew_is_not_done_twice(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    pin(source, HOME_0, 1)
    send_rows(source, target)
    source.start()
    target.start()
    target.ask("remove_job", HOME_0, ["job 1"])
    after = seen(target, HOME_0)
    carry_out(source, target, calls=1)  # one call is answered by "have"
    source.run()
    assert seen(target, HOME_0) == after
    assert source.reply_to("get_status", HOME_0).status == MOVED
    assert only_rows_of(source)


def test_start_in_the_midst_of_removing_what_moved_away_leaves_the_realm_where_it_is(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    pin(source, HOME_0, 1)
    carry_out(source, target)
    source.turn()
    assert not only_rows_of(source), "some is left"
    for _ in range(2):
        source.start()
        assert source.shard.placement.shard_of(HOME_0) == 1
        asked = source.send("add_job", HOME_0, ["x"], {"queue_id": 0})
        source.turn()
        assert source.replies[asked][1:] == (MOVED, b"", 1)
    source.run()
    assert only_rows_of(source)
    assert source.reply_to("get_status", HOME_0).status == MOVED


def test_start_in_the_midst_of_dropping_half_an_arrival_leaves_the_realm_where_it_is(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    pin(source, HOME_0, 1)
    with pytest.raises(ShardUnavailable):
        send_rows(source, target, 4)
    for _ in range(2):
        target.start()
        target.turn()
        assert target.reply_to("get_status", HOME_0)[1:] == (MOVED, b"", 0)
    assert only_rows_of(target, HOME_1)


def test_realm_deleted_in_shard_it_was_pinned_to_comes_to_be_there_again(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    pin(source, HOME_0, 1)
    carry_out(source, target)
    source.run()
    target.ask("delete_realm", HOME_0)
    target.start()
    target.add(HOME_0, "new")
    assert source.reply_to("get_status", HOME_0).extra == 1
    assert target.ask("get_status", HOME_0)["total_jobs"] == 1


def test_realm_deleted_in_shard_that_is_not_its_home_leaves_a_note_there() -> None:
    rig = Rig(1, 2)
    rig.shard.placement.learn(HOME_0, 1)
    rig.add(HOME_0, "x")
    assert rig.ask("get_stats")["realms"][HOME_0]["pinned"] is True
    rig.ask("delete_realm", HOME_0)
    rig.start()
    assert rig.ask("get_status", HOME_0)["total_jobs"] == 0
    assert rig.store.load().moved == {HOME_0: 1}


# -- starts and a full disk ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("operation", "params", "left"),
    [("clear_queue", ["0"], ["both"]), ("remove_tagged_jobs", ["t"], ["untagged"]), ("delete_realm", [], [])],
)
@pytest.mark.parametrize("turns", [1, 3])
def test_start_in_the_midst_of_a_removal_finishes_it(
    rig: Rig, operation: str, params: list[Any], left: list[str], turns: int
) -> None:
    rig.add(A, *ids(50), tags=["t"])
    rig.add(A, "both", tags=["t"])
    rig.add(A, "both", queue=1)
    rig.add(A, "untagged")
    rig.add(B, "x")
    removal = rig.send(operation, A, params)
    for _ in range(turns):
        rig.turn()
    rig.start()
    status = rig.send("get_status", A)
    rig.turn()
    assert status not in rig.replies, "held until it is done"
    rig.run()
    assert removal not in rig.replies, "whoever waited is gone"
    assert json.loads(rig.replies[status].body)["total_jobs"] == len(left)
    for job_id in left:
        rig.ask("get_job", A, [job_id])
    assert sorted(rig.ask("get_statuses")) == ([A, B] if left else [B])
    rig.start()
    assert not rig.shard.busy
    assert only_rows_of(rig, *([A, B] if left else [B]))


def test_start_gives_out_no_number_twice(rig: Rig) -> None:
    pulls = []
    for number in range(5):
        rig.add(A, f"job {number}", data=LARGE)
        pulls.append(rig.reply_to("pull_2013", A, [1, None]).extra)
        rig.start()
    assert pulls == sorted(set(pulls))
    assert rig.ask("get_status", A)["queues"] == {"0": 5}
    assert len(rig.store._tables["payloads"]) == 5


def test_full_disk_refuses_the_turn_and_goes_back_to_what_is_kept(rig: Rig) -> None:
    rig.add(A, "kept")
    refused = [rig.send("add_job", realm, ["lost"], {"queue_id": 0}) for realm in (A, B)]
    pull = rig.send("pull_2013", A, [None, None])
    assert sorted(rig.full_turn()) == sorted([*refused, pull])
    assert {rig.error(request)["code"] for request in (*refused, pull)} == {"storage_full"}
    assert {rig.replies[request].status for request in (*refused, pull)} == {507}
    assert {name: status["total_jobs"] for name, status in rig.ask("get_statuses").items()} == {A: 1}
    assert rig.ask("pull_2013", A, [None, None]) == {"kept": [0, None]}
    rig.start()
    assert {name: status["total_jobs"] for name, status in rig.ask("get_statuses").items()} == {A: 1}


def test_full_disk_keeps_mail_that_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_module, "GROUP_ROWS_MAX", 3)
    first = rig.send("add_job", A, ["lost"], {"queue_id": 0})
    waiting = [
        rig.send("add_job", A, ["next"], {"queue_id": 0}),
        rig.send("add_job", B, ["other"], {"queue_id": 0}),
        rig.send("get_stats"),
        rig.send("get_statuses"),
    ]
    assert rig.full_turn() == [first]
    rig.run()
    assert [rig.replies[request].status for request in waiting] == [200] * 4
    assert rig.reply_to("get_job", A, ["lost"]).status == 404
    assert rig.shard.mail_bytes == 0


def test_full_disk_is_said_to_whoever_changes_something_and_not_to_who_reads(rig: Rig) -> None:
    rig.add(A, *ids(3))
    rig.shard.full = True
    for operation, realm, params, body in (
        ("add_job", A, ["x"], {"queue_id": 0}),
        ("add_jobs", A, [], {"jobs": []}),
        ("pull_2013", A, [None, None], None),
        ("clear_queue", A, ["0"], None),
        ("configure", A, [], {"default_lease_time": 1}),
        ("move_job", A, ["job 0"], {"from_queue": 0, "to_queue": 1}),
        ("remove_job", A, ["job 0"], None),
        ("bulk_add", "", [[0]], bulk((A, "x", None))),
        ("bulk_check", "", [[0]], bulk((A, "x", None))),
        ("place_realm", A, [1], {"shard": 0}),
    ):
        assert rig.reply_to(operation, realm, params, body).status == 507, operation
    assert len(rig.shard.changes) == 0
    assert rig.ask("get_status", A)["total_jobs"] == 3
    assert [found[2] for found in rig.ask("peek", "", [5, None, None])] == ids(3)
    rig.shard.full = False
    rig.add(A, "x")
    rig.ask("remove_job", A, ["job 0"])


@pytest.mark.usefixtures("small_steps")
def test_removal_under_way_rests_while_the_disk_is_full(rig: Rig) -> None:
    rig.add(A, *ids(55))
    removal = rig.send("clear_queue", A, ["0"])
    rig.turn()
    rig.shard.full = True
    assert not rig.shard.busy
    rig.shard.turn(rig.now)
    assert len(rig.shard.changes) == 0
    rig.shard.full = False
    rig.run()
    assert json.loads(rig.replies[removal].body) == {"removed": 55}


def test_message_that_does_not_fit_is_refused_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_module, "MAIL_BYTES_MAX", 100)
    rig.add(A, "x")
    kept = rig.send("add_job", A, ["y"], {"queue_id": 0, "data": "a" * 60})
    refused = rig.send("add_job", A, ["z"], {"queue_id": 0, "data": "a" * 60})
    rig.run()
    assert rig.replies[kept].status == 200
    assert rig.error(refused)["code"] == "overloaded"
    assert rig.reply_to("add_job", A, ["z"], {"queue_id": 0, "data": "a" * 60}).status == 200, "there is room again"


@pytest.mark.usefixtures("small_steps")
def test_full_disk_during_a_removal_tells_who_waits_for_it(rig: Rig) -> None:
    rig.add(A, *ids(55))
    removal = rig.send("clear_queue", A, ["0"])
    rig.turn()
    assert rig.full_turn() == [removal]
    assert rig.error(removal)["code"] == "storage_full"
    rig.run()
    assert rig.ask("get_status", A)["total_jobs"] == 0, "it was begun: it is finished"


def test_full_disk_when_a_move_is_asked_for_moves_nothing(pair: tuple[Rig, Rig]) -> None:
    source, _ = pair
    before = seen(source, HOME_0)
    asked = source.send("place_realm", HOME_0, [1], {"shard": 1})
    assert source.full_turn() == [asked]
    assert source.error(asked)["code"] == "storage_full"
    assert source.shard.moves == []
    assert seen(source, HOME_0) == before


def test_full_disk_during_a_move_goes_on_with_it(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    before = seen(source, HOME_0)
    asked = pin(source, HOME_0, 1)
    other = next(name for name in ids(50)[21:] if home(name, 2) == 0)
    lost = source.send("add_job", other, ["x"], {"queue_id": 0})
    assert sorted(source.full_turn()) == sorted([asked, lost])
    carry_out(source, target)
    source.run()
    assert seen(target, HOME_0) == before
    assert source.reply_to("get_status", HOME_0).status == MOVED


def test_reload_leaves_nothing_to_the_garbage_collector(rig: Rig) -> None:
    rig.add(A, *ids(300), tags=["t"])
    rig.add(A, *ids(100), queue=1)
    rig.ask("pull_2013", A, [50, None])

    def garbage(count: int) -> int:
        gc.collect()
        for _ in range(count):
            rig.send("pull_2013", A, [10, None])
            rig.full_turn()
        return gc.collect()

    gc.disable()
    try:
        garbage(1)
        few, many = garbage(2), garbage(20)
    finally:
        gc.enable()
    assert many <= few + 50
    assert rig.ask("get_status", A)["total_jobs"] == 300


def test_requests_of_all_kinds_leave_nothing_to_the_garbage_collector(rig: Rig) -> None:
    def garbage(count: int) -> int:
        gc.collect()
        for _ in range(count):
            rig.add(A, *ids(5), tags=["t"])
            rig.reply_to("pull", A, [], {"count": 3})
            rig.reply_to("pull", A, [], {"cuont": 3})
            rig.reply_to("add_job", A, ["x"], b"{")
            rig.reply_to("get_job", A, ["never"])
            rig.reply_to("no such operation", A)
            rig.reply_to("bulk_add", "", [[0]], bulk((B, "", None)))
            rig.reply_to("bulk_add", "", [[0]], bulk((B, "x", None)))
            rig.reply_to("get_statuses")
            rig.reply_to("clear_queue", A, ["0"])
            rig.reply_to("delete_realm", A)
            rig.reply_to("delete_realm", B)
            rig.replies.clear()
            rig.answered.clear()
        return gc.collect()

    gc.disable()
    try:
        garbage(3)
        few, many = garbage(3), garbage(60)
    finally:
        gc.enable()
    assert many <= few + 50


def test_arrival_that_a_reload_forgot_is_to_begin_again_and_leaves_nothing_to_the_collector(rig: Rig) -> None:
    source = Rig()
    source.add(A, *ids(200))
    realm = source.shard.find(A)
    assert realm is not None
    queues = [list(realm.queue_row(queue)) for queue in realm.queues.values()]
    (chunk,) = moving._chunks(realm, source.shard._payload)

    def arrive() -> int:
        gc.collect()
        begun = rig.reply_to("arrive_begin", "", [list(realm.row()), queues, source.shard.keys.next_key])
        assert begun.body == moving.TAKE
        assert rig.reply_to("arrive_rows", "", [A, chunk]).status == 200
        rig.shard.load(rig.store.load(), rig.now)
        rig.run()
        late = rig.reply_to("arrive_rows", "", [A, chunk])
        assert json.loads(late.body)["code"] == "arrival_unknown"
        return gc.collect()

    gc.disable()
    try:
        arrive()
        assert arrive() < 200
    finally:
        gc.enable()
    assert rig.shard.find(A) is None
