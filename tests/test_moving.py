"""How a realm gets from one shard to another while both run, wherever it is interrupted."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from realm_looks import left_over
from shard_rig import (
    HOME_0,
    HOME_1,
    LARGE,
    NOW,
    A,
    B,
    Rig,
    Sender,
    Wire,
    carry_out,
    completed,
    ids,
    move,
    only_rows_of,
    pin,
    send_rows,
)

from restq.errors import RestqError, RowDamaged, ShardUnavailable, StorageFull
from restq.placement import home
from restq.protocol import MOVED, Reply
from restq.shards import moving, replies, rows, tasks
from restq.shards.actor import Mail
from restq.shards.changes import Changes, MovedRow
from restq.shards.memory_store import MemoryStore
from restq.shards.process import ShardProcess
from restq.shards.store import Mark, Room

# -- realms elsewhere ------------------------------------------------------------------------------------------------


def test_request_for_realm_of_another_shard_is_answered_by_where_it_is() -> None:
    rig = Rig(0, 2)
    reply = rig.reply_to("add_job", HOME_1, ["x"], {"queue_id": 0})
    assert (reply.status, reply.extra) == (MOVED, 1)
    for operation, params, body in (
        ("peek", [1, None, [HOME_0, HOME_1], None, None], b""),
        ("lease_peeked", [[[HOME_0, "x", 0, 0], [HOME_1, "y", 0, 1]], None, "", ()], b""),
    ):
        reply = rig.reply_to(operation, "", params, body)
        assert (reply.status, reply.body.decode(), reply.extra) == (MOVED, HOME_1, 1)
    assert rig.row_count() == 0
    assert list(rig.shard.mailboxes.actors) == []


def test_lease_over_realms_of_which_one_is_elsewhere_leases_nothing() -> None:
    rig = Rig(0, 2)
    rig.add(HOME_0, "x")
    before = rig.rows()
    reply = rig.reply_to("lease_peeked", "", [[[HOME_0, "x", 0, 0], [HOME_1, "y", 0, 1]], None, "", ()])
    assert reply.status == MOVED
    assert rig.rows() == before


def test_pin_of_realm_that_does_not_exist_is_refused() -> None:
    rig = Rig(0, 2)
    reply = rig.reply_to("place_realm", HOME_0, [1], {"shard": 1})
    assert (reply.status, json.loads(reply.body)["code"]) == (404, "realm_not_found")
    assert rig.shard.moves.asked == []


def test_pin_to_where_the_realm_is_moves_nothing() -> None:
    rig = Rig(0, 2)
    rig.add(HOME_0, "x")
    rig.ask("place_realm", HOME_0, [1], {"shard": 0})
    assert rig.ask("get_stats")["realms"][HOME_0]["pinned"] is True
    rig.start()
    assert rig.ask("get_stats")["realms"][HOME_0]["pinned"] is True
    rig.ask("place_realm", HOME_0, [0])
    assert rig.ask("get_stats")["realms"][HOME_0]["pinned"] is False
    assert rig.shard.moves.asked == []


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[Rig, Rig]:
    """Two shards; the first holds a realm with a bit of everything, and more jobs than fit into one chunk."""
    monkeypatch.setattr(moving, "CHUNK_COUNT", 7)
    monkeypatch.setattr(tasks, "STEP_COUNT", 10)
    source, target = Rig(0, 2), Rig(1, 2)
    source.shard.keys.next_key = 5_000  # it has given out more numbers than the other
    source.ask("configure_2013", HOME_0, body={"default_lease_time": 50, "queue_lease_time": ["late", 9]})
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
    rig.shard.mailboxes.actors[realm].realm.check()  # type: ignore[union-attr]
    order = [
        (place.at, place.job.job_id, place.queue.queue_id, place.history.lease)
        for queue in rig.shard.mailboxes.actors[realm].realm.served()  # type: ignore[union-attr]
        for place in sorted([*queue.plain.heap.entries, *queue.waiting.entries])
        if place.job.holds(place)
    ]
    times = {queue.queue_id: queue.lease_time for queue in rig.shard.mailboxes.actors[realm].realm.served()}  # type: ignore[union-attr]
    return rig.ask("get_status", realm), jobs, order, times, rig.ask("peek", "", [100, None, [realm], None, None])


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
    assert not source.busy, "who waits for a move costs no turns"
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


@pytest.mark.parametrize("operation", ["arrive_rows", "arrive_kept", "arrive_end"])
def test_move_that_begins_again_takes_nothing_that_its_earlier_connection_still_brings(
    pair: tuple[Rig, Rig], operation: str
) -> None:
    """Of a source that was killed, what it had sent is read when its connection's turn comes."""
    source, target = pair
    before = seen(source, HOME_0)
    pin(source, HOME_0, 1)
    realm = source.shard.moves.held_realm(HOME_0)
    (chunk, *_) = moving._chunks(realm, source.store.payload)
    late = {"arrive_rows": [HOME_0, chunk], "arrive_kept": [HOME_0, "failures", []], "arrive_end": [HOME_0]}

    def bring_late() -> None:
        asked = target.send(operation, "", late[operation], sender=earlier)
        target.turn()
        assert json.loads(earlier.replies[asked].body)["code"] == "arrival_unknown"

    earlier = Sender()
    call = Wire.call

    async def call_and_bring_late(wire: Wire, *call_of: Any) -> Any:
        reply = await call(wire, *call_of)
        if call_of[0] in ("arrive_begin", "arrive_rows"):
            bring_late()
        return reply

    with mock.patch.object(Wire, "call", call_and_bring_late):
        carry_out(source, target)
    source.run()
    target.run()
    assert seen(target, HOME_0) == before
    assert only_rows_of(target, HOME_0, HOME_1)


def test_move_whose_connection_is_lost_leaves_nothing_in_the_target(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    pin(source, HOME_0, 1)
    with pytest.raises(ShardUnavailable):
        send_rows(source, target, 4)
    target.shard.arrivals.gone(Sender(), target.now)
    target.run()
    assert not only_rows_of(target, HOME_1), "another's connection is no matter"
    target.shard.arrivals.gone(target, target.now)
    target.run()
    assert only_rows_of(target, HOME_1)


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


@pytest.mark.parametrize("is_started_again", [False, True])
def test_realm_that_comes_back_before_its_source_knew_that_it_had_arrived_is_whole(
    pair: tuple[Rig, Rig], is_started_again: bool
) -> None:
    """The answer that it had arrived is late; what it then says is true of the earlier realm alone."""
    source, target = pair
    before = seen(source, HOME_0)
    moved = pin(source, HOME_0, 1)
    send_rows(source, target)
    if is_started_again:
        source.start()
    stale = source.shard.moves.held_realm(HOME_0)
    target.send("place_realm", HOME_0, [0])
    target.turn()
    carry_out(target, source)
    source.run()
    target.run()
    assert is_started_again or source.replies[moved].status == 200
    assert source.shard.moves.asked == []
    wire: Any = Wire(target)
    with pytest.raises(moving.MoveOver):
        completed(moving.Sending(stale, source.shard.keys.next_key, source.store).attempt(wire))
    for _ in range(2):
        assert seen(source, HOME_0) == before
        assert only_rows_of(source, HOME_0)
        assert only_rows_of(target, HOME_1)
        source.start()
        target.start()


def test_realm_that_is_new_where_it_moved_to_is_not_replaced_by_the_one_that_was_deleted(pair: tuple[Rig, Rig]) -> None:
    """The answer that it had arrived was lost with its source, and comes when others have gone on."""
    source, target = pair
    pin(source, HOME_0, 1)
    send_rows(source, target)
    target.run()
    target.ask("delete_realm", HOME_0)
    target.now += 1
    target.add(HOME_0, "new")
    source.start()
    carry_out(source, target, calls=1)
    source.run()
    assert [job["job_id"] for job in target.list(HOME_0)] == ["new"]
    assert only_rows_of(source)


def came_home_unknown_to_the_other(source: Rig, target: Rig) -> None:
    """The realm goes to the other shard and comes home; the other is killed before it knows that it came."""
    move(source, target, HOME_0)
    target.send("place_realm", HOME_0, [0])
    target.turn()
    send_rows(target, source)
    target.start()


@pytest.mark.parametrize("added", [[], ["new"]])
def test_realm_deleted_before_the_other_shard_knew_that_it_came_does_not_come_back(
    pair: tuple[Rig, Rig], added: list[str]
) -> None:
    source, target = pair
    came_home_unknown_to_the_other(source, target)
    source.ask("delete_realm", HOME_0)
    if added:
        source.add(HOME_0, *added)
    source.start()
    target.run()
    carry_out(target, source)
    target.run()
    source.run()
    assert source.ids(HOME_0) == added
    assert only_rows_of(target, HOME_1)
    move(source, target, HOME_0) if added else None
    assert not added or target.ids(HOME_0) == added, "the new one moves as the old one did"


def test_move_on_to_a_third_shard_before_the_first_knew_leaves_one_realm() -> None:
    rigs = [Rig(shard, 3) for shard in range(3)]
    first, second, third = rigs
    name = next(name for name in ids(20) if home(name, 3) == 0)
    first.add(name, "x")
    pin(first, name, 1)
    send_rows(first, second)
    first.start()
    pin(second, name, 2)
    carry_out(second, third)
    second.run()
    third.ask("remove_job", name, ["x"])
    third.add(name, "y")
    carry_out(first, second)
    for rig in rigs:
        rig.run()
    assert [rig.shard.find(name) is not None for rig in rigs] == [False, False, True]
    assert third.ids(name) == ["y"]
    assert first.reply_to("get_status", name).extra == 1


def test_arrival_whose_last_commit_finds_the_disk_full_leaves_the_realm_elsewhere(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    pin(source, HOME_0, 1)
    with pytest.raises(ShardUnavailable):
        send_rows(source, target, lost="arrive_end")
    late = target.send("arrive_end", "", [HOME_0])
    target.full_turn()
    target.run()
    assert target.replies[late].status == 507
    assert target.reply_to("add_job", HOME_0, ["x"], {"queue_id": 0})[1:] == (MOVED, b"", 0)


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
    assert rig.store.load().moved == [MovedRow(HOME_0, 1, 0)]


def test_full_disk_when_a_move_is_asked_for_moves_nothing(pair: tuple[Rig, Rig]) -> None:
    source, _ = pair
    before = seen(source, HOME_0)
    asked = source.send("place_realm", HOME_0, [1], {"shard": 1})
    assert source.full_turn() == [asked]
    assert source.error(asked)["code"] == "storage_full"
    assert source.shard.moves.asked == []
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


def test_full_disk_at_the_end_of_a_move_does_not_say_that_nothing_was_done(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    before = seen(source, HOME_0)
    asked = pin(source, HOME_0, 1)
    carry_out(source, target)
    assert source.full_turn() == [asked]
    assert "if this had begun, it goes on" in source.error(asked)["message"]
    assert seen(target, HOME_0) == before


def test_arrival_that_a_reload_forgot_is_to_begin_again_and_leaves_nothing_to_the_collector(rig: Rig) -> None:
    source = Rig()
    source.add(A, *ids(200))
    realm = source.shard.find(A)
    assert realm is not None
    queues = [list(rows.queue_row(realm, queue)) for queue in realm.queues.values()]
    (chunk,) = moving._chunks(realm, source.shard.archive.payload)

    def arrive() -> int:
        gc.collect()
        begin = [list(rows.realm_row(realm)), queues, [], source.shard.keys.next_key, source.store.blocks()]
        begun = rig.reply_to("arrive_begin", "", begin)
        assert begun.body == moving.TAKE
        assert rig.reply_to("arrive_rows", "", [A, chunk]).status == 200
        rig.shard.load(rig.store.load(), rig.now)
        rig.run()
        late = rig.reply_to("arrive_rows", "", [A, chunk])
        assert json.loads(late.body)["code"] == "arrival_unknown"
        return left_over()

    gc.disable()
    try:
        first = arrive()
        assert arrive() < first + 200
    finally:
        gc.enable()
    assert rig.shard.find(A) is None


def test_arrival_of_a_connection_that_is_gone_does_not_begin(rig: Rig) -> None:
    """What was read of it is served late: nobody would drop what began then."""
    gone, source = Sender(), Rig()
    gone.is_gone = True
    source.add(A, "x")
    row = list(rows.realm_row(source.shard.find(A)))  # type: ignore[arg-type]
    rig.send("arrive_begin", "", [row, [], [], source.shard.keys.next_key, source.store.blocks()], sender=gone)
    rig.run()
    assert [json.loads(reply.body)["code"] for reply in gone.replies.values()] == ["arrival_unknown"]
    assert rig.row_count() == 0


def test_arrivals_that_began_before_either_ended_have_different_numbers(rig: Rig) -> None:
    """Or a pull that comes again overlooks the second: it takes the shard for one in which nothing arrived since."""
    numbers = [rig.reply_to("recall", "", [None, (1.0, 1)], b"", ("key", "digest")).extra]
    source = Rig()
    source.add(A, "x")
    source.add(B, "y")
    for realm in (A, B):
        row = list(rows.realm_row(source.shard.find(realm)))  # type: ignore[arg-type]
        rig.reply_to("arrive_begin", "", [row, [], [], source.shard.keys.next_key, source.store.blocks()])
    for realm in (A, B):
        assert rig.reply_to("arrive_end", "", [realm]).body == moving.HAVE
        numbers.append(rig.reply_to("recall", "", [None, (1.0, 1)], b"", ("key", "digest")).extra)
    rig.start()
    numbers.append(rig.reply_to("recall", "", [None, (1.0, 1)], b"", ("key", "digest")).extra)
    assert len(set(numbers)) == 4


def test_replies_of_attempts_that_failed_go_before_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    source.now += 5  # what is kept there is to be kept longer
    for rig, name in ((source, HOME_0), (target, HOME_1)):
        rig.add(name, "x")
        rig.ask("redrive", name, [], {"jobs": ["none"]}, ONCE)
    target.now = source.now
    pin(source, HOME_0, 1)
    for _ in range(5):
        with pytest.raises(ShardUnavailable):
            send_rows(source, target, lost="arrive_end")
    monkeypatch.setattr(replies, "KEPT_COUNT_MAX", 2)
    carry_out(source, target)
    target.run_until(target.now + 10)
    assert target.shard.replies.count == 2
    assert sorted(row.realm for row in target.rows()["replies"].values()) == sorted(target.rows()["realms"])


@pytest.mark.parametrize("is_started_again", [False, True])
def test_replies_of_realms_that_left_go_before_any_other(
    monkeypatch: pytest.MonkeyPatch, is_started_again: bool
) -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    other = next(name for name in ids(50)[21:] if home(name, 2) == 0)
    for name in (other, HOME_0):  # what the realm that leaves keeps is to be kept longer
        source.add(name, "x")
        source.ask("redrive", name, [], {"jobs": ["none"]}, ONCE)
        source.now += 5
    target.now = source.now
    move(source, target, HOME_0)
    if is_started_again:
        source.start()
    monkeypatch.setattr(replies, "KEPT_COUNT_MAX", 1)
    source.run_until(source.now + 10)
    assert [row.realm for row in source.rows()["replies"].values()] == list(source.rows()["realms"])
    target.run_until(target.now + 10)
    assert [row.realm for row in target.rows()["replies"].values()] == list(target.rows()["realms"])


class Line(Wire):
    """A pipe to the target. Of those in `lost` each breaks once, after the target had it; a dead target is `None`."""

    def __init__(self, target: Rig | None, lost: str = "") -> None:
        super().__init__(target or Rig(1, 2))
        self.is_dead = target is None
        self.lost_later = lost
        self.asked: list[str] = []

    def open(self) -> None:
        """It is."""

    def close(self) -> None:
        """The target sees that."""
        self.target.shard.arrivals.gone(self.target, self.target.now)

    async def connected(self) -> None:
        if self.is_dead:
            await asyncio.Event().wait()

    async def call(self, operation: str, realm: str, params: list[Any], body: bytes) -> Reply:
        self.asked.append(operation)
        reply = await super().call(operation, realm, params, body)
        if operation == self.lost_later:
            self.lost_later = ""
            raise ShardUnavailable("gone")
        return reply


def send_over(line: Line, source: Rig, may_be_there: bool = False) -> None:
    """As the process of the source does, for a second at most."""
    ((mail, shard),) = source.shard.moves.take()
    realm = source.shard.moves.held_realm(mail.realm)
    sending = moving.Sending(realm, source.shard.keys.next_key, source.store, may_be_there)

    async def run() -> None:
        with mock.patch.object(moving, "Pipe", return_value=line), mock.patch.object(moving, "RETRY_SECONDS", 0.001):
            await asyncio.wait_for(moving.send(sending, "", shard), 1.0)

    try:
        asyncio.run(run())
    except RestqError as error:
        source.shard.moves.stay(mail, error)
    else:
        source.shard.moves.depart(mail, shard)


@pytest.mark.parametrize("pinned", [False, True])
def test_move_to_a_dead_shard_is_refused_and_the_realm_served_on(
    pair: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    source, _ = pair
    monkeypatch.setattr(moving, "CONNECT_SECONDS", 0.01)
    source.ask("place_realm", HOME_0, [int(pinned)], {"shard": 0})
    before = seen(source, HOME_0)
    asked = pin(source, HOME_0, 1)
    waiting = [source.send("add_job", HOME_0, ["late"], {"queue_id": 0}), source.send("get_statuses")]
    source.run()
    assert not set(waiting) & set(source.replies)
    send_over(Line(None), source)
    source.run()
    assert source.error(asked)["code"] == "shard_starting"
    assert [source.replies[request_id].status for request_id in waiting] == [200, 200]
    source.ask("remove_job", HOME_0, ["late"])
    source.start()
    source.run()
    assert seen(source, HOME_0) == before
    assert source.shard.moves.asked == []
    assert source.ask("get_stats")["realms"][HOME_0]["pinned"] is pinned


def test_move_of_a_realm_with_a_damaged_row_is_refused_and_leaves_nothing_in_the_other_shard(
    pair: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    asked = pin(source, HOME_0, 1)

    def payload(key: int) -> bytes:
        raise RowDamaged("row 5 of table 'payloads' is not what was written")

    with monkeypatch.context() as patch:
        patch.setattr(source.store, "payload", payload)
        send_over(Line(target), source)
    source.run()
    target.run()
    assert source.error(asked)["code"] == "row_damaged"
    assert source.ask("get_status", HOME_0)["total_jobs"]
    assert only_rows_of(target, HOME_1)


def test_move_to_a_shard_whose_disk_is_full_is_refused_as_that(pair: tuple[Rig, Rig]) -> None:
    """Not as if it were starting: then clients would ask again and again."""
    source, target = pair
    before = seen(source, HOME_0)
    asked = pin(source, HOME_0, 1)
    target.shard.set_room(Room.LITTLE)
    send_over(Line(target), source)
    source.run()
    refused = source.error(asked)
    assert (refused["error"], refused["code"]) == (507, "storage_full")
    assert "nothing was done" in refused["message"]
    assert seen(source, HOME_0) == before


def test_move_whose_target_goes_away_before_the_end_is_refused(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    before = seen(source, HOME_0)
    asked = pin(source, HOME_0, 1)
    send_over(Line(target, "arrive_rows"), source)
    source.run()
    target.run()
    assert source.error(asked)["code"] == "shard_starting"
    assert seen(source, HOME_0) == before
    assert only_rows_of(target, HOME_1)


def test_move_whose_end_was_not_answered_is_asked_for_until_it_is(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    before = seen(source, HOME_0)
    asked = pin(source, HOME_0, 1)
    send_over(line := Line(target, "arrive_end"), source)
    source.run()
    assert line.asked[-2:] == ["arrive_end", "arrive_begin"]
    assert source.replies[asked].status == 200
    assert seen(target, HOME_0) == before


@pytest.mark.parametrize("is_started_again", [False, True])
def test_move_to_a_shard_whose_disk_is_full_is_refused_and_the_realm_served_on(
    pair: tuple[Rig, Rig], is_started_again: bool
) -> None:
    """Also at the last message, and after a start: on a full disk what waits is what would make room."""
    source, target = pair
    before = seen(source, HOME_0)
    asked = pin(source, HOME_0, 1)

    class FullAtTheEnd(Line):
        async def call(self, operation: str, realm: str, params: list[Any], body: bytes) -> Reply:
            if operation == "arrive_end":
                self.target.shard.set_room(Room.SCARCE)
            return await super().call(operation, realm, params, body)

    if is_started_again:
        source.start()
        target.shard.set_room(Room.SCARCE)
    send_over(FullAtTheEnd(target), source, may_be_there=is_started_again)
    source.run()
    target.run()
    assert is_started_again or source.error(asked)["code"] == "storage_full"
    assert seen(source, HOME_0) == before
    assert only_rows_of(target, HOME_1)


def test_shard_whose_disk_is_full_says_that_it_has_the_realm(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    before = seen(source, HOME_0)
    pin(source, HOME_0, 1)
    send_rows(source, target)
    source.start()
    target.shard.set_room(Room.NONE)
    send_over(Line(target), source, may_be_there=True)
    source.run()
    assert source.reply_to("get_status", HOME_0).status == MOVED
    target.shard.set_room(Room.ENOUGH)
    assert seen(target, HOME_0) == before


def test_arrival_whose_first_commit_finds_the_disk_full_is_refused_then(pair: tuple[Rig, Rig]) -> None:
    source, target = pair
    pin(source, HOME_0, 1)

    class Full(Line):
        async def call(self, operation: str, realm: str, params: list[Any], body: bytes) -> Reply:
            request_id = self.target.send(operation, realm, params, body)
            self.target.full_turn(Room.LITTLE)
            self.target.shard.set_room(Room.LITTLE)
            self.target.run()
            return self.target.replies[request_id]

    send_over(Full(target), source)
    source.run()
    assert source.ask("get_status", HOME_0)["total_jobs"]
    assert only_rows_of(target, HOME_1)


def test_move_that_began_before_a_start_holds_the_realm_until_the_other_shard_says_whether_it_has_it(
    pair: tuple[Rig, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    monkeypatch.setattr(moving, "CONNECT_SECONDS", 0.01)
    pin(source, HOME_0, 1)
    source.start()
    with pytest.raises(TimeoutError):
        send_over(Line(None), source, may_be_there=True)
    source.start()
    send_over(Line(target, "arrive_rows"), source, may_be_there=True)
    assert source.ask("get_status", HOME_0)["total_jobs"], "the other shard said no"


def test_process_whose_move_finds_no_shard_refuses_it_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "CONNECT_SECONDS", 0.01)
    all_answered = asyncio.Event()

    class Asking(Sender):
        def reply(self, reply: Reply) -> None:
            super().reply(reply)
            if len(self.replies) == 3:
                all_answered.set()

    sender = Asking()
    paths = [str(tmp_path / name) for name in "ab"]
    settings = {"index": 0, "count": 2, "elsewhere": {}, "sockets": paths, "default_lease_time": 600.0}

    async def run() -> None:
        process = ShardProcess(settings, MemoryStore())
        loop = asyncio.ensure_future(process.run())
        for request_id, (operation, params, body) in enumerate(
            [("add_job", ["x"], b'{"queue_id": 0}'), ("place_realm", [1], b'{"shard": 1}'), ("get_status", [], b"")]
        ):
            process.shard.receive(Mail(sender, 1.0, request_id, operation, HOME_0, params, body))
        process.wake()
        async with asyncio.timeout(10):
            await all_answered.wait()
        process.stop()
        await loop

    asyncio.run(run())
    assert [sender.replies[number].status for number in range(3)] == [200, 503, 200]


@pytest.mark.parametrize("does_more", [False, True])
def test_process_whose_disk_is_full_while_its_move_finds_no_shard_serves_the_realm_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does_more: bool
) -> None:
    """The group that is undone is that which refuses the move, or another's during it."""
    monkeypatch.setattr(moving, "CONNECT_SECONDS", 0.05)
    is_served = asyncio.Event()

    class FullOnce(MemoryStore):
        count = 0

        async def commit(self, changes: Changes, mark: Mark) -> None:
            self.count += 1
            if self.count == 2:
                raise StorageFull("there is no room left on the disk: nothing was done")
            await super().commit(changes, mark)

    class Asking(Sender):
        def reply(self, reply: Reply) -> None:
            super().reply(reply)
            if reply.request_id == 2:
                is_served.set()

    sender = Asking()
    paths = [str(tmp_path / name) for name in "ab"]
    settings = {"index": 0, "count": 2, "elsewhere": {}, "sockets": paths, "default_lease_time": 600.0}
    other = next(name for name in ids(50)[21:] if home(name, 2) == 0)

    async def run() -> None:
        process = ShardProcess(settings, FullOnce())
        loop = asyncio.ensure_future(process.run())

        def ask(request_id: int, operation: str, realm: str, params: list[Any], body: bytes) -> None:
            process.shard.receive(Mail(sender, 1.0, request_id, operation, realm, params, body))
            process.wake()

        ask(0, "add_job", HOME_0, ["x"], b'{"queue_id": 0}')
        ask(1, "place_realm", HOME_0, [1], b'{"shard": 1}')
        ask(2, "get_status", HOME_0, [], b"")
        await asyncio.sleep(0.01)
        if does_more:
            ask(3, "add_job", other, ["x"], b'{"queue_id": 0}')
        async with asyncio.timeout(5):
            await is_served.wait()
        process.stop()
        await loop

    asyncio.run(run())
    assert [sender.replies[number].status for number in range(3)] == [200, 507, 200]


# -- all that a job's life leaves in a realm ---------------------------------------------------------------------------

ONCE = ("key", "digest")


def lived_in(rig: Rig) -> dict[str, Any]:
    """A realm in which everything happened; returns proofs of leases by what they are for, and a kept reply."""
    rig.ask("configure", HOME_0, [], {"max_attempts": 3, "crash_limit": 2, "keep_done": {"count": 20, "seconds": 5e3}})
    rig.ask("configure", HOME_0, [], {"max_jobs": 500, "max_bytes": 9_000_000, "backoff": {"base": 40, "jitter": 0}})
    rig.ask("configure_queue", HOME_0, ["0"], {"lease_time": 70, "max_attempts": 2, "max_leased": 6})
    rig.ask("configure_queue", HOME_0, ["slow"], {"rate": 0.1, "backoff": {"base": 7, "factor": 3, "jitter": 0}})
    rig.ask("configure_queue", HOME_0, ["shut"], {"paused": True})
    for tag, limits in (("few", {"max_leased": 2}), ("rare", {"rate": 0.05}), ("off", {"paused": True})):
        rig.ask("configure_tag", HOME_0, [tag], limits)
    rig.add(HOME_0, *(f"done {number}" for number in range(8)), queue=1, tags=["d"])
    rig.ask("ack", HOME_0, [], {"leases": rig.leases(HOME_0, 8), "result": {"a": [1]}, "exit_code": 0, "output": "o"})
    rig.add(HOME_0, "dead", queue=2, max_attempts=1)
    dead = {"leases": rig.leases(HOME_0, worker="w"), "error": "died\nof é", "exit_code": -9}
    rig.ask("nack", HOME_0, [], dead)
    rig.add(HOME_0, "failed", queue=3)
    rig.ask("nack", HOME_0, [], {"leases": rig.leases(HOME_0), "error": "once"})
    rig.now += 1
    rig.add(HOME_0, "first", "second", "third", tags=["few"], data=LARGE)
    rig.add(HOME_0, "seldom", "later", queue=4, tags=["rare"])
    rig.add(HOME_0, "slow 1", "slow 2", queue="slow")
    leases = {job["job_id"]: job["lease_id"] for job in rig.pull(HOME_0, 9, lease_time=90, worker="wörker")}
    assert sorted(leases) == ["first", "second", "seldom", "slow 1"]
    rig.add(HOME_0, "cancelled", queue=5)
    rig.ask("cancel_job", HOME_0, [rig.pull(HOME_0, lease_time=20)[0]["job_id"]])
    rig.add(HOME_0, "delayed", delay=33, tags=["off"])
    rig.ask("add_job", HOME_0, ["runs at"], {"queue_id": "shut", "run_at": NOW + 44, "expires_in": 300})
    rig.add(HOME_0, "blocked", queue=6, after=["few", "never"], max_attempts=7)
    rig.add(HOME_0, "expires", queue="shut", expires_in=60)
    rig.add(HOME_0, "twice", queue=7, tags=["off"])
    rig.add(HOME_0, "twice", queue="shut")
    reply = rig.reply_to("redrive", HOME_0, [], {"jobs": ["none"]}, ONCE)
    return {**leases, "reply": reply.body}


def all_seen(rig: Rig) -> Any:
    """Everything that the realm shows of itself, failures, results and explanations included."""
    realm = rig.shard.find(HOME_0)
    assert realm is not None
    realm.check()
    jobs = rig.list(HOME_0)
    return (
        jobs,
        rig.list(HOME_0, "done"),
        [rig.ask("explain_job", HOME_0, [job["job_id"]]) for job in jobs],
        [rig.ask(operation, HOME_0) for operation in ("get_config", "get_queues", "get_status")],
        rig.ask("get_tags", HOME_0, [None, "100", None]),
        rig.ask("peek", "", [100, None, [HOME_0], None, None]),
        (realm.result_count, realm.data_bytes, rig.shard.next_deadline()),
    )


@pytest.fixture
def lived(monkeypatch: pytest.MonkeyPatch) -> tuple[Rig, Rig, dict[str, Any]]:
    """Two shards, and what `lived_in` gave in the first; few rows go at once."""
    monkeypatch.setattr(moving, "CHUNK_COUNT", 4)
    monkeypatch.setattr(moving, "LOOK_COUNT", 3)
    source, target = Rig(0, 2), Rig(1, 2)
    source.shard.keys.next_key = 5_000
    given = lived_in(source)
    target.now = source.now
    return source, target, given


def without_deadline(found: Any) -> Any:
    """What was seen, but for what is to be tidied up when."""
    return (*found[:-1], found[-1][:2])


@pytest.mark.parametrize("starts", [False, True])
def test_move_and_back_keeps_all_that_a_jobs_life_leaves(lived: tuple[Rig, Rig, dict[str, Any]], starts: bool) -> None:
    source, target, _ = lived
    before = without_deadline(all_seen(source))
    for here, there in ((source, target), (target, source)):
        move(here, there, HOME_0)
        assert without_deadline(all_seen(there)) == before
        # Kept replies may stay until the shard tidies up; nothing else of the realm does.
        assert {table for table, rows_left in here.rows().items() if rows_left} - {"replies"} == {"moved"}
        if starts:
            source.start()
            target.start()
            assert without_deadline(all_seen(there)) == before


def test_moves_there_and_back_do_not_use_the_numbers_up() -> None:
    """Shifted by all that the other shard gave out, keys doubled with each move: 60 of them, and they ended."""
    rigs = Rig(0, 2), Rig(1, 2)
    names = [name for name in map(str, range(100)) if home(name, 2) == 0][:4]
    at = dict.fromkeys(names, 0)
    chance = random.Random(1)
    for turn in range(100):
        for name, shard in at.items():
            rigs[shard].add(name, str(turn))
        name = chance.choice(names)
        move(rigs[at[name]], rigs[1 - at[name]], name)
        at[name] = 1 - at[name]
    assert max(rig.shard.keys.next_key for rig in rigs) < 2**40
    for name, shard in at.items():
        assert list(rigs[shard].ask("pull_2013", name, [1000, None])) == [str(turn) for turn in range(100)]


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_move_changes_nothing_that_happens_later(lived: tuple[Rig, Rig, dict[str, Any]], moves: int) -> None:
    """Each instant comes as it would have come, and each lease counts, in whatever shard."""
    source, target, given = lived
    rig = source
    for here, there in [(source, target), (target, source)][:moves]:
        move(here, there, HOME_0)
        rig = there
    start = rig.now
    assert rig.reply_to("redrive", HOME_0, [], {"jobs": ["none"]}, ONCE).body == given["reply"]
    assert rig.reply_to("redrive", HOME_0, [], {"jobs": ["dead"]}, ("key", "other")).status == 422
    extended = rig.ask("extend", HOME_0, [], {"leases": [given["second"], given["first"]], "lease_time": 500})
    assert extended["extended"] == {given["second"]: start + 500, given["first"]: start + 500}
    assert rig.pull(HOME_0, 9) == [], "limits hold"
    rig.run_until(NOW + 11.5)
    assert [job["job_id"] for job in rig.pull(HOME_0, 9, lease_time=500)] == ["slow 2"], "the rate of its queue goes on"
    rig.run_until(start + 19.5)
    assert [job["job_id"] for job in rig.pull(HOME_0, 9, lease_time=500)] == [], "the rate of the tag goes on"
    rig.run_until(start + 20)
    assert "cancelled" not in rig.ids(HOME_0), "it goes with the end of its lease"
    assert [job["job_id"] for job in rig.pull(HOME_0, 9, lease_time=500)] == ["later"]
    rig.run_until(NOW + 40)
    [failed] = rig.pull(HOME_0, 9, lease_time=500)
    assert (failed["job_id"], failed["attempt"]) == ("failed", 2), "its backoff is over"
    acked = rig.ask("ack", HOME_0, [], {"leases": [given["first"]], "result": "late"})
    assert acked == {"acked": [given["first"]], "stale": []}
    assert rig.list(HOME_0, "done")[-1]["result"] == "late"
    [third] = rig.pull(HOME_0, 9, lease_time=500)
    assert (third["job_id"], third["data"]) == ("third", LARGE), "the limit of its tag has room again"
    rig.run_until(start + 60)
    assert "expires" not in rig.ids(HOME_0)
    rig.ask("configure_tag", HOME_0, ["off"], {"paused": False})
    assert sorted(job["job_id"] for job in rig.pull(HOME_0, 9, lease_time=500)) == ["delayed", "twice"]
    assert rig.ask("ack", HOME_0, [], {"leases": [given["second"], third["lease_id"]]})["stale"] == []
    assert [job["job_id"] for job in rig.pull(HOME_0, 9)] == ["blocked"], "nothing that it comes after is left"
    nacked = rig.ask("nack", HOME_0, [], {"leases": [failed["lease_id"]], "delay": 5})
    assert nacked["nacked"] == [failed["lease_id"]], "2 of 3 attempts"
    assert rig.ask("redrive", HOME_0) == {"redriven": 1}
    assert [job["job_id"] for job in rig.pull(HOME_0, 9, queues=[2])] == ["dead"]
    realm = rig.shard.find(HOME_0)
    assert realm is not None
    realm.check()


def test_lease_of_cancelled_job_that_runs_out_during_a_move_ends_the_job(
    lived: tuple[Rig, Rig, dict[str, Any]],
) -> None:
    source, target, _ = lived
    pin(source, HOME_0, 1)
    source.now += 30
    target.now = source.now
    carry_out(source, target)
    source.run()
    target.run()
    assert "cancelled" not in target.ids(HOME_0)
    assert "cancelled" not in [row[2] for row in target.store._tables["jobs"].values()]


def test_lease_that_runs_out_once_too_often_during_a_move_leaves_the_job_dead() -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    source.ask("configure", HOME_0, [], {"crash_limit": 1})
    source.add(HOME_0, "x")
    source.leases(HOME_0, lease_time=5, worker="w")
    pin(source, HOME_0, 1)
    source.now += 10
    target.now = source.now
    carry_out(source, target)
    source.run()
    [job] = target.list(HOME_0)
    assert (job["queues"][0]["state"], job["queues"][0]["error"]) == ("dead", "the lease of worker 'w' ran out")
    target.start()
    assert target.list(HOME_0) == [job]
