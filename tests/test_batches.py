"""Bodies with very many parts: all or nothing, a slice at a time, whatever comes in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from realm_looks import leased_places
from shard_rig import HOME_0, NOW, A, B, Rig, Sender, ids, only_rows_of

from restq.placement import home
from restq.shards import shard as shard_module
from restq.shards.changes import Changes
from restq.shards.commands import batches, jobs, leases
from restq.shards.relocation import relocate, shard_path
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import Mark, Room

SLICE_COUNT = 10
COUNT = 35  # parts of a batch: four slices
LARGE_COUNT = 1_000_000  # a slice that holds any batch

pytestmark = pytest.mark.usefixtures("small_slices")


def set_slices(patch: pytest.MonkeyPatch, count: int) -> None:
    for module in (batches, jobs, leases):
        patch.setattr(module, "SLICE_COUNT", count)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slices(monkeypatch, SLICE_COUNT)


def leased(rig: Rig) -> list[str]:
    """Jobs that are leased, some of them in two queues, some already failed or cancelled; returns their proofs."""
    rig.ask("configure", A, [], {"keep_done": {"count": 1_000}, "backoff": {"base": 5, "jitter": 0}})
    rig.add(A, *ids(COUNT), tags=["t"], max_attempts=2, data={"a": 1})
    rig.add(A, *ids(5), queue=1)
    rig.ask("nack", A, [], {"leases": rig.leases(A, 12, queues=[0]), "error": "first", "delay": 0})
    rig.add(A, *ids(50)[COUNT:], tags=["u"], queue=2)
    rig.now += 3
    proofs = rig.leases(A, COUNT, queues=[0], worker="w")
    rig.ask("cancel_job", A, ["job 20"])
    rig.ask("add_job", A, ["then"], {"queue_id": 9, "after": ["t"]})
    return [*proofs[:17], "7-7", *proofs[17:], proofs[0]]


def dead(rig: Rig) -> list[str]:
    """Dead jobs and others; returns ids of both."""
    rig.add(A, *ids(COUNT), tags=["t"], max_attempts=1)
    rig.ask("nack", A, [], {"leases": rig.leases(A, 30)[:25], "error": "e"})
    return [*ids(COUNT), "never"]


def new_jobs(rig: Rig) -> list[dict[str, Any]]:
    """Jobs to add, to a realm that holds some of them, some by other ways of meeting a conflict."""
    rig.add(A, "job 3", "job 14", "job 31", tags=["old"], data=1)
    rig.add(A, "job 4", queue=5)
    rig.leases(A, 2)
    jobs: list[dict[str, Any]] = [
        {"job_id": job_id, "queue_id": number % 3, "tags": ["t", f"t{number % 2}"]}
        for number, job_id in enumerate(ids(COUNT))
    ]
    jobs[14].update(on_conflict="replace", data={"large": "x" * 100_000})
    jobs[31].update(on_conflict="ignore", data=2)
    jobs[5].update(delay=7.5, expires_in=100, max_attempts=3)
    jobs[6].update(run_at=NOW + 50)
    jobs[7].update(after=["old"], data=[1])
    jobs.append({"job_id": "job 5", "queue_id": "more", "tags": ["again"]})
    jobs.append({"job_id": "job 6", "queue_id": 0, "on_conflict": "replace"})
    return jobs


class Kind(NamedTuple):
    """A batch: what there is before, which is asked for with what comes of it, and what is asked."""

    before: Callable[[Rig], Any]
    operation: str
    body: Callable[[Any], dict[str, Any]]


KINDS = {
    "add": Kind(new_jobs, "add_jobs", lambda jobs: {"jobs": jobs}),
    "remove": Kind(dead, "remove_jobs", lambda job_ids: {"jobs": [*job_ids[:30], "never"]}),
    "redrive": Kind(dead, "redrive", lambda job_ids: {"jobs": job_ids}),
    "redrive one queue": Kind(dead, "redrive", lambda job_ids: {"jobs": job_ids, "queue": 0}),
    "ack": Kind(leased, "ack", lambda leases: {"leases": leases, "result": [1], "output": "text"}),
    "nack": Kind(leased, "nack", lambda leases: {"leases": leases, "error": "e", "exit_code": 2}),
    "release": Kind(leased, "release", lambda leases: {"leases": leases, "delay": 4}),
    "extend": Kind(leased, "extend", lambda leases: {"leases": leases, "lease_time": 99}),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def begun(kind: Kind) -> tuple[Rig, int]:
    """A shard that got the batch, and has not served it."""
    rig = Rig()
    with pytest.MonkeyPatch.context() as patch:
        set_slices(patch, LARGE_COUNT)
        body = kind.body(kind.before(rig))
    return rig, rig.send(kind.operation, A, [], body)


def seen(rig: Rig) -> Any:
    """All that can be seen of the realm, in order, but for large data."""
    realm = rig.shard.find(A)
    if realm is not None:
        realm.check()
        assert realm.task is None
    jobs = rig.list(A)
    for job in jobs:
        job["data"] = str(job["data"])[:50]
    shown = {
        "jobs": jobs,
        "results": rig.list(A, "done"),
        "queues": rig.ask("get_queues", A),
        "tags": rig.ask("get_tags", A, [None, "100", None]),
        "status": rig.ask("get_status", A),
        "next": rig.ask("peek", "", [1_000, None, [A], None, None]),
        "leases": [place.key for place in leased_places(realm)] if realm is not None else [],
    }
    rows = {table: len(found) for table, found in rig.store._tables.items()}
    return shown, rows


def in_one_go(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """What is seen, and what is replied, where the batch is done at once."""
    with monkeypatch.context() as patch:
        set_slices(patch, LARGE_COUNT)
        rig, request = begun(kind)
        answered = rig.turn()
        assert answered == [request], "it was done at once"
        return seen(rig), rig.read(request)


def without_keys(found: Any) -> Any:
    """What is seen, but for numbers that a batch takes for itself."""
    shown, rows = found
    return {name: value for name, value in shown.items() if name != "leases"}, len(shown["leases"]), rows


# -- all, or nothing -------------------------------------------------------------------------------------------------


def test_batch_is_the_same_as_in_one_go(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, reply = in_one_go(kind, monkeypatch)
    rig, request = begun(kind)
    turns = 0
    while request not in rig.replies:
        rig.turn()
        turns += 1
    assert turns >= COUNT / SLICE_COUNT, "it was done in slices"
    assert rig.read(request) == reply
    rig.run()
    assert without_keys(seen(rig)) == without_keys(expected)
    rig.start()
    assert without_keys(seen(rig)) == without_keys(expected)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ({"job_id": ""}, "name_invalid"),
        ({"job_id": "old", "data": 2}, "data_differs"),
        ({"job_id": "old", "on_conflict": "error"}, "job_exists"),
        ({"job_id": "job 3", "data": 2}, "data_differs"),
        ({"job_id": "x", "tags": ["\0"]}, "name_invalid"),
        ({"job_id": "x", "delay": -1}, "field_invalid"),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_add_in_slices_whose_last_job_is_bad_adds_none(rig: Rig, bad: dict[str, Any], code: str, exists: bool) -> None:
    if exists or bad["job_id"] == "old":
        rig.add(A, "old", data=1)
    before = rig.rows()
    jobs = [{"job_id": job_id, "queue_id": 0, "data": 1} for job_id in ids(COUNT)]
    refused = rig.reply_to("add_jobs", A, [], {"jobs": [*jobs, {"queue_id": 0, **bad}]})
    error = json.loads(refused.body)
    assert error["message"].startswith(f"jobs[{COUNT}]"), error
    if code != "name_invalid":
        assert error["code"] == code
    assert rig.rows() == before
    assert rig.ids(A) == (["old"] if before["jobs"] else [])
    assert rig.shard.mailboxes.actors.keys() == ({A} if before["jobs"] else set())
    rig.add(A, "x")


def test_add_in_slices_beyond_the_limit_of_the_realm_adds_none(rig: Rig) -> None:
    rig.ask("configure", A, [], {"max_jobs": COUNT})
    rig.add(A, "old")
    before = rig.rows()
    jobs = [{"job_id": job_id, "queue_id": 0} for job_id in ids(COUNT)]
    refused = rig.reply_to("add_jobs", A, [], {"jobs": jobs})
    assert (refused.status, json.loads(refused.body)["code"]) == (429, "queue_full")
    assert rig.rows() == before
    rig.ask("add_jobs", A, [], {"jobs": jobs[1:]})
    assert len(rig.ids(A)) == COUNT


def test_ack_in_slices_of_void_leases_alone_is_a_conflict(rig: Rig) -> None:
    rig.add(A, "x")
    before = rig.rows()
    refused = rig.reply_to("ack", A, [], {"leases": [f"{number}-1" for number in range(1, COUNT)]})
    assert (refused.status, json.loads(refused.body)["code"]) == (409, "lease_stale")
    assert rig.rows() == before


def test_ack_in_slices_whose_only_lease_in_force_is_the_last_acks_it(rig: Rig) -> None:
    rig.add(A, "x")
    void = [f"{number}-1" for number in range(1_000, 1_000 + COUNT)]
    [lease] = rig.leases(A)
    assert rig.ask("ack", A, [], {"leases": [*void, lease]}) == {"acked": [lease], "stale": void}
    assert rig.ids(A) == []


@pytest.mark.parametrize("operation", ["remove_jobs", "redrive", "nack", "release", "extend"])
def test_batch_on_realm_that_does_not_exist_makes_none(rig: Rig, operation: str) -> None:
    parts = ids(COUNT)
    body = {"jobs": parts} if operation in ("remove_jobs", "redrive") else {"leases": parts}
    reply = rig.ask(operation, A, [], body)
    assert reply.get("stale", parts) == parts
    assert rig.row_count() == 0
    assert rig.ask("get_statuses") == {}
    assert not rig.shard.mailboxes.actors


# -- who waits meanwhile ---------------------------------------------------------------------------------------------


def test_batch_lets_neighbours_pass_between_its_slices_and_its_own_realm_wait(kind: Kind) -> None:
    rig, request = begun(kind)
    own = rig.send("get_status", A)
    passed = 0
    while request not in rig.replies:
        neighbour = rig.send("add_job", B, [f"x {passed}"], {"queue_id": 0})
        everybody = rig.send("get_stats")
        answered = rig.turn()
        assert {neighbour, everybody} <= set(answered)
        assert own not in answered or request in answered
        passed += 1
    assert passed >= COUNT / SLICE_COUNT
    rig.run()
    assert rig.answered.index(request) < rig.answered.index(own)


def test_batch_changes_no_more_than_a_slice_in_each_turn(kind: Kind) -> None:
    rig, request = begun(kind)
    while request not in rig.replies:
        rig.shard.turn(rig.now)
        assert len(rig.shard.changes.places) <= 2 * SLICE_COUNT
        changes = rig.shard.take_changes()
        rig._group += 1
        asyncio.run(rig.store.commit(changes, rig.shard.mark(rig._group, rig.now)))
        rig._hand_out(rig.shard.outbox)


def test_add_in_slices_is_seen_at_once_by_those_who_wait(rig: Rig) -> None:
    waiters = [rig.waiting_pull(A, count=20) for _ in range(2)]
    request = rig.send("add_jobs", A, [], {"jobs": [{"job_id": job_id, "queue_id": 0} for job_id in ids(COUNT)]})
    while request not in rig.replies:
        assert not any(waiter in rig.replies for waiter in waiters)
        rig.turn()
    rig.run()
    assert [len(rig.given(waiter) or ()) for waiter in waiters] == [10, 10], "who waited gets a slice at most"


def test_batch_whose_sender_is_gone_is_done_all_the_same(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = in_one_go(kind, monkeypatch)
    rig, _ = begun(kind)
    rig.turn()
    rig.shard.waking.gone(rig)
    rig.run()
    assert without_keys(seen(rig)) == without_keys(expected)


def test_leases_that_run_out_during_a_batch_count_while_it_lasts(rig: Rig) -> None:
    """It is done as of when it came, however long it takes."""
    rig.add(A, *ids(COUNT))
    leases = rig.leases(A, COUNT, lease_time=10)
    rig.now += 9
    request = rig.send("ack", A, [], {"leases": leases})
    rig.turn()
    rig.now += 60
    rig.run()
    assert rig.read(request) == {"acked": leases, "stale": []}
    assert rig.ids(A) == []


# -- crashes, and a full disk ----------------------------------------------------------------------------------------


def test_start_after_any_commit_of_a_batch_ends_as_in_one_go(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = in_one_go(kind, monkeypatch)
    untouched_rig, _ = begun(kind)
    untouched = seen_before(untouched_rig)
    outcomes = []
    for turns in range(100):
        rig, request = begun(kind)
        for _ in range(turns):
            rig.turn()
        is_answered = request in rig.replies
        is_begun = any(row.task for row in rig.store._tables["realms"].values())
        rig.start()
        waiting = rig.send("get_status", A)
        if is_begun:
            rig.turn()
            assert waiting not in rig.replies, "it is held until it is done"
        rig.run()
        found = without_keys(seen(rig))
        if is_begun or is_answered:
            assert found == without_keys(expected), f"after {turns} turns"
        else:
            assert found == untouched
        rig.start()
        assert not rig.busy
        assert without_keys(seen(rig)) == found
        outcomes.append(is_begun)
        if is_answered:
            break
    assert sum(outcomes) >= COUNT / SLICE_COUNT
    assert only_rows_of(rig, A)


def seen_before(rig: Rig) -> Any:
    """What is seen of a shard that got a batch and never served it."""
    rig.start()
    return without_keys(seen(rig))


def test_start_again_and_again_in_the_midst_of_a_batch_ends_as_in_one_go(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = in_one_go(kind, monkeypatch)
    rig, _ = begun(kind)
    for _ in range(5):
        rig.turn()
    assert any(row.task for row in rig.store._tables["realms"].values()), "it is under way"
    for turns in (1, 2, 3, 5, 7):
        for _ in range(turns):
            rig.turn()
        rig.start()
    rig.run()
    assert without_keys(seen(rig)) == without_keys(expected)


def test_full_disk_at_any_turn_of_a_batch_leaves_nothing_or_ends_as_in_one_go(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = in_one_go(kind, monkeypatch)
    untouched = seen_before(begun(kind)[0])
    for turns in range(100):
        rig, request = begun(kind)
        for _ in range(turns):
            rig.turn()
        if request in rig.replies:
            break
        is_begun = any(row.task for row in rig.store._tables["realms"].values())
        assert rig.full_turn() == [request]
        assert rig.error(request)["code"] == "storage_full"
        assert ("if this had begun" in rig.error(request)["message"]) == is_begun
        assert ("nothing was done" in rig.error(request)["message"]) != is_begun
        rig.shard.set_room(Room.NONE)
        assert not rig.busy, "it rests while there is no room"
        rig.shard.set_room(Room.ENOUGH)
        rig.run()
        assert without_keys(seen(rig)) == (without_keys(expected) if is_begun else untouched), f"after {turns} turns"
    assert turns > COUNT / SLICE_COUNT


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].operation not in ("add_jobs", "redrive")])
def test_disk_with_little_room_at_any_turn_of_a_batch_that_takes_away_replies_as_in_one_go(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    expected, reply = in_one_go(kind, monkeypatch)
    for turns in range(100):
        rig, request = begun(kind)
        for _ in range(turns):
            rig.turn()
        if request in rig.replies:
            break
        assert rig.full_turn(Room.LITTLE) == []
        rig.turn()
        assert rig.full_turn(Room.LITTLE) == []
        rig.run()
        assert rig.read(request) == reply, f"after {turns} turns"
        assert without_keys(seen(rig)) == without_keys(expected)
    assert turns > COUNT / SLICE_COUNT


def test_full_disk_during_the_check_of_a_new_realm_leaves_none(rig: Rig) -> None:
    request = rig.send("add_jobs", A, [], {"jobs": [{"job_id": job_id, "queue_id": 0} for job_id in ids(COUNT)]})
    rig.turn()
    lost = rig.send("add_job", B, ["x"], {"queue_id": 0})
    assert sorted(rig.full_turn()) == sorted([request, lost])
    rig.run()
    assert rig.row_count() == 0
    assert not rig.shard.mailboxes.actors


def test_batch_of_a_full_group_lets_the_turn_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_module, "GROUP_ROWS_MAX", 5)
    rig.ask("add_jobs", A, [], {"jobs": [{"job_id": job_id, "queue_id": 0} for job_id in ids(COUNT)]})
    assert len(rig.ids(A)) == COUNT


# -- another number of shards ----------------------------------------------------------------------------------------


def kept_in_file(rig: Rig, path: Path) -> None:
    """Put all that the store of the shard holds into a file."""
    store = SqliteStore(path)
    changes = Changes()
    for table in Changes.__slots__:
        getattr(changes, table).update(rig.rows()[table])
    asyncio.run(store.commit(changes, Mark(1, rig.shard.keys.next_key, rig.now)))
    store.close()


def loaded_from_file(path: Path, index: int, count: int, now: float) -> Rig:
    """A shard over what a file holds."""
    store: Any = SqliteStore(path)
    rig = Rig.__new__(Rig)
    Sender.__init__(rig)
    rig.store, rig.now, rig._index, rig._count, rig._last_id = store, now, index, count, 0
    rig._frames = Rig()._frames
    rig.start()
    return rig


def test_time_does_not_pass_between_the_slices_of_a_batch_that_goes_on_after_a_start(rig: Rig) -> None:
    """A job whose time is over by the start is wanted after all by a later slice: it must not be gone by then."""
    jobs = [{"job_id": job_id, "queue_id": 0} for job_id in ids(COUNT)]
    short = [{"job_id": "short", "queue_id": 0, "expires_in": 5.0}, {"job_id": "short", "queue_id": 1}]
    rig.send("add_jobs", A, [], {"jobs": [short[0], *jobs, short[1]]})
    while not rig.store._tables["jobs"]:
        rig.turn()
    rig.now += 10
    rig.start()
    rig.run()
    (short_job,) = [job for job in rig.list(A) if job["job_id"] == "short"]
    assert [place["queue_id"] for place in short_job["queues"]] == [0, 1]


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("turns", [5, 6, 7])
def test_start_with_another_number_of_shards_in_the_midst_of_a_batch_ends_as_in_one_go(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, turns: int, is_killed: bool
) -> None:
    expected, _ = in_one_go(kind, monkeypatch)
    rig, request = begun(kind)
    for _ in range(turns):
        rig.turn()
    assert request not in rig.replies
    assert any(row.task for row in rig.store._tables["realms"].values()), "it is under way"
    kept_in_file(rig, shard_path(tmp_path, 0))
    count = next(count for count in range(2, 20) if home(A, count) != 0)
    if is_killed:
        killed = mock.patch.object(SqliteStore, "remove_realms", side_effect=RuntimeError)
        with killed, pytest.raises(RuntimeError):
            relocate(tmp_path, count)
    relocate(tmp_path, count)
    moved = loaded_from_file(shard_path(tmp_path, home(A, count)), home(A, count), count, rig.now)
    moved.run()
    realm = moved.shard.find(A)
    assert realm is not None
    realm.check()
    shown, _ = expected
    jobs = moved.list(A)
    for job in jobs:
        job["data"] = str(job["data"])[:50]
    assert jobs == shown["jobs"]
    assert moved.list(A, "done") == shown["results"]
    assert moved.ask("get_queues", A) == shown["queues"]
    assert moved.ask("peek", "", [1_000, None, [A], None, None]) == shown["next"]
    database = moved.store._database  # type: ignore[attr-defined]
    larges = database.execute("SELECT count(*) FROM jobs WHERE size > 0").fetchone()
    assert database.execute("SELECT count(*) FROM payloads").fetchone() == larges, "the body of the batch is gone"
    moved.store.close()
    left = SqliteStore(shard_path(tmp_path, 0))
    assert left._database.execute("SELECT count(*) FROM payloads").fetchone() == (0,)
    left.close()


# -- a move that is asked for ----------------------------------------------------------------------------------------


def test_move_that_is_asked_for_during_a_batch_waits_for_it() -> None:
    source = Rig(0, 2)
    request = source.send(
        "add_jobs", HOME_0, [], {"jobs": [{"job_id": job_id, "queue_id": 0} for job_id in ids(COUNT)]}
    )
    source.turn()
    asked = source.send("place_realm", HOME_0, [1], {"shard": 1})
    while request not in source.replies:
        assert source.shard.moves.asked == []
        source.turn()
    source.run()
    assert [mail.request_id for mail, _ in source.shard.moves.asked] == [asked]


# -- pulls -----------------------------------------------------------------------------------------------------------


def test_pull_in_slices_gives_all_in_order_under_one_number(rig: Rig) -> None:
    rig.add(A, *ids(COUNT))
    rig.add(A, "first", "job 3", queue=-1)
    request = rig.send("pull", A, [], {"count": 30, "worker": "w"})
    turns = 0
    while request not in rig.replies:
        neighbour = rig.send("add_job", B, [f"x {turns}"], {"queue_id": 0})
        assert neighbour in rig.turn()
        turns += 1
    assert turns >= 2
    given = rig.read(request)["jobs"]
    expected = ["first", "job 3", *(job_id for job_id in ids(COUNT) if job_id != "job 3")]
    assert [job["job_id"] for job in given] == expected[:30]
    assert {job["lease_id"].split("-")[0] for job in given} == {str(rig.replies[request].extra)}
    assert rig.ask("ack", A, [], {"leases": [job["lease_id"] for job in given]})["stale"] == []
    assert len(rig.ids(A)) == COUNT + 1 - 30 + 1


def test_pull_in_slices_again_under_its_key_gives_the_same(rig: Rig) -> None:
    rig.add(A, *ids(COUNT))
    sent = [rig.send("pull", A, [], {"count": 30}, ("key", "digest")) for _ in range(2)]
    rig.run()
    assert len({rig.replies[request].body for request in sent}) == 1
    assert len(rig.given(sent[0]) or ()) == 30
    rig.start()
    assert rig.reply_to("pull", A, [], {"count": 30}, ("key", "digest")).body == rig.replies[sent[0]].body
    assert len(rig.ids(A, "leased")) == 30


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("again", [1, 3])
def test_start_in_the_midst_of_a_pull_in_slices_leases_nothing(rig: Rig, turns: int, again: int) -> None:
    rig.add(A, *ids(COUNT))
    others = rig.leases(A, 3)
    request = rig.send("pull", A, [], {"count": 31}, ("key", "digest"))
    for _ in range(turns):
        rig.turn()
    assert request not in rig.replies
    for _ in range(again):  # also in the midst of undoing it
        rig.start()
        rig.turn()
    rig.run()
    assert rig.ids(A, "leased") == ids(3)
    assert rig.store._tables["replies"] == {}
    assert [job["attempt"] for job in rig.ask("pull", A, [], {"count": 31}, ("key", "digest"))["jobs"]] == [1] * 31
    assert len(rig.ask("ack", A, [], {"leases": others})["acked"]) == 3


def test_pull_in_slices_that_was_answered_is_leased_after_a_start(rig: Rig) -> None:
    rig.add(A, *ids(COUNT))
    given = rig.pull(A, 31)
    rig.start()
    rig.run()
    assert rig.ids(A, "leased") == [job["job_id"] for job in given]
