"""A shard without sockets: who is served when, and what a failure leaves."""

from __future__ import annotations

import gc
import itertools
import json
from typing import Any

import pytest
from realm_looks import left_over
from shard_rig import LARGE, NOW, A, B, C, Rig, bulk, ids, only_rows_of
from wire import names_on

from restq.shards import adding, commands, mailboxes
from restq.shards import shard as shard_module
from restq.shards.commands import batches, jobs
from restq.shards.store import Room

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
    assert rig.busy
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
        adding.add(realm, [("half", 0, None, (), None)], call.now)
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
        rig.reply_to("remove_jobs", f"remove {number}", [], {"jobs": ["x"]})
        rig.reply_to("peek", "", [1, None, [f"peek {number}"], None, None])
        rig.add(f"deleted {number}", "x")
        rig.ask("delete_realm", f"deleted {number}")
    assert list(rig.shard.mailboxes.actors) == ["real"]


def test_bytes_of_mail_are_counted_until_they_are_served(rig: Rig) -> None:
    body = {"queue_id": 0, "data": "x" * 100}
    rig.send("add_job", A, ["x"], body)
    rig.send("add_job", B, ["x"], b"{")
    rig.send("check_jobs", A, [[0]], {"jobs": [{"realm_id": A, "job_id": 1, "queue_id": 0}]})
    assert rig.shard.mailboxes.bytes > 150
    rig.run()
    assert rig.shard.mailboxes.bytes == 0


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
@pytest.mark.parametrize("is_lease", [True, False])
def test_much_that_is_due_at_once_lets_neighbours_pass_and_its_own_realm_wait(rig: Rig, is_lease: bool) -> None:
    rig.ask("configure", A, [], {"crash_limit": 1})
    rig.add(A, *ids(55), **({} if is_lease else {"delay": 20}))
    if is_lease:
        rig.leases(A, 55, lease_time=20)
    rig.add(B, "x")
    rig.now += 20
    own = rig.send("get_status", A)
    turns = 0
    while own not in rig.replies:
        neighbour = rig.send("add_job", B, [f"during {turns}"], {"queue_id": 0})
        peek = rig.send("peek", "", [1, None, None, None, None])
        assert {neighbour, peek} <= set(rig.turn())
        assert own in rig.replies or [found[1] for found in rig.read(peek)] == [B], "half of it is shown to nobody"
        turns += 1
    assert turns >= 5
    assert rig.read(own)["total_jobs"] == 55
    assert len(rig.ids(A, "dead" if is_lease else "ready")) == 55


@pytest.mark.usefixtures("small_steps")
def test_much_that_is_due_in_many_realms_is_settled_in_turns_of_bounded_length(rig: Rig) -> None:
    realms = [f"r{number}" for number in range(5)]
    for realm in realms:
        rig.ask("configure", realm, [], {"crash_limit": 1})
        rig.add(realm, *ids(35))
        rig.leases(realm, 35, lease_time=20)
    rig.now += 20
    own = [rig.send("get_status", realm) for realm in realms]
    settled = []
    while rig.busy:
        rig.turn()
        settled.append(sum(len(realm.queues[0].dead) for realm in rig.shard.realms()))
    assert settled[-1] == 5 * 35
    assert max(after - before for before, after in itertools.pairwise([40, *settled])) <= 10
    assert [rig.read(request)["total_jobs"] for request in own] == [35] * 5


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
    while rig.busy:
        left.append([len(realm.jobs) for realm in rig.shard.realms()])
        rig.turn()
    assert all(abs(one - other) <= 20 for one, other in left)
    assert rig.answered[-2:] == removals


# -- several realms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 1500])
def test_add_names_the_index_of_a_job_in_the_body_that_the_client_sent(rig: Rig, count: int) -> None:
    rig.add(A, "old", data=1)
    body = bulk(*((A, job_id, None) for job_id in ids(count - 1)), (A, "old", 2))
    reply = rig.reply_to("add_jobs", A, [list(range(7, 7 + count))], body)
    assert json.loads(reply.body)["message"].startswith(f"jobs[{6 + count}]: ")


@pytest.mark.parametrize("count", [3, 1500])
@pytest.mark.parametrize("realm", [A, B])
def test_check_of_jobs_refuses_what_the_add_would_and_changes_nothing(rig: Rig, realm: str, count: int) -> None:
    rig.add(A, "old", data=1)
    before = rig.rows()
    indexes = [list(range(10, 10 + 2 * count, 2))]
    new = [(realm, job_id, None) for job_id in ids(count - 1)]
    bad = rig.reply_to("check_jobs", realm, indexes, bulk(*new, (realm, "", None)))
    assert (bad.status, json.loads(bad.body)["field"]) == (400, f"jobs[{8 + 2 * count}].job_id")
    twice = rig.reply_to("check_jobs", realm, indexes, bulk((realm, "job 1", 1), *new[1:], (realm, "job 1", 2)))
    assert (twice.status, json.loads(twice.body)["code"]) == (409, "data_differs")
    old = rig.reply_to("check_jobs", realm, indexes, bulk(*new, (realm, "old", 2)))
    assert old.status == (409 if realm == A else 200)
    assert rig.rows() == before
    assert list(rig.ask("get_statuses")) == [A]
    assert list(rig.shard.mailboxes.actors) == [A]


def test_peek_over_realms_leases_nothing_and_lease_takes_just_the_chosen(rig: Rig) -> None:
    rig.add(A, "x", queue=1, tags=["t"], data=LARGE)
    rig.now += 1
    rig.add(B, "y", queue=0)
    rig.add(B, "z", queue=5)
    peeked = rig.ask("peek", "", [10, 1, None, None, None])
    assert sorted(peeked) == [[NOW, A, "x", 1], [NOW + 1, B, "y", 0]]
    assert rig.ask("peek", "", [10, None, [B, C], None, None]) == [[NOW + 1, B, "y", 0], [NOW + 1, B, "z", 5]]
    assert sorted(rig.ask("peek", "", [10, 1, None, None, None])) == sorted(peeked)
    reply = rig.reply_to(
        "lease_peeked", "", [[[A, "x", 9, 0], [A, "x", 1, 1], [C, "never", 0, 2], [A, "x", 1, 3]], None, "", ()]
    )
    [[index, first]] = json.loads(reply.body)
    assert index == 1
    assert first == {
        "job_id": "x",
        "queue_id": 1,
        "data": LARGE,
        "tags": ["t"],
        "attempt": 1,
        "lease_id": first["lease_id"],
        "lease_expires_at": NOW + 601,
        "realm": A,
    }
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
    peek = rig.send("peek", "", [1, None, None, None, None])
    lease = rig.send("lease_peeked", "", [[[A, "job 50", 0, 0], [B, "y", 0, 1]], None, "", ()])
    rig.turn()
    assert [found[1] for found in json.loads(rig.replies[peek].body)] == [B]
    assert [(index, job["realm"]) for index, job in json.loads(rig.replies[lease].body)] == [(1, B)]


def test_get_stats_counts_realms_and_errors(rig: Rig) -> None:
    rig.add(A, "x", "y")
    rig.reply_to("get_job", A, ["never"])
    rig.reply_to("get_job", A, ["never"])
    stats = rig.ask("get_stats")
    assert stats["realms"] == {A: {"jobs": 2, "pinned": False}}
    assert (stats["shard"], stats["jobs"]) == (0, 2)
    assert stats["errors"] == [["get_job", "job_not_found", 2]]


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
    assert not rig.busy
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


def test_full_disk_keeps_what_time_brings_about_until_there_is_room(rig: Rig) -> None:
    """A start finds leases that ran out: that is not tried in vain again and again, each time from the file."""
    rig.add(A, "x", expires_in=10)
    rig.leases(A, lease_time=20)
    rig.send("add_job", B, ["lost"], {"queue_id": 0})
    rig.now += 30
    rig.full_turn()
    rig.shard.set_room(Room.NONE)
    rig.run()
    assert len(rig.shard.changes) == 0
    assert not rig.busy
    assert rig.ids(A) == ["x"]
    assert len(rig.store._tables["jobs"]) == 1
    rig.shard.set_room(Room.ENOUGH)
    rig.run()
    assert rig.store._tables["jobs"] == {}


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("task", ["", "ack", "redrive"])
def test_start_that_finds_many_leases_that_ran_out_sees_to_them_in_groups_of_bounded_size(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """One group for all of them may not fit on a disk that is full, and no remove would pass ever again."""
    for module in (batches, jobs):
        monkeypatch.setattr(module, "SLICE_COUNT", 10)
    rig.ask("configure", A, [], {"crash_limit": 1})
    for number in range(8):
        rig.add(A, *ids(80)[number * 10 : number * 10 + 10])
    leases = [lease for _ in range(8) for lease in rig.leases(A, 10, lease_time=20)]
    if task:
        rig.send(task, A, [], {"leases": leases[:15]} if task == "ack" else {"jobs": ids(15)})
        while rig.shard.find(A).task is None:  # type: ignore[union-attr]
            rig.turn()
    rig.now += 30
    rig.start()
    own, neighbour = rig.send("remove_job", A, ["job 79"]), rig.send("get_status", B)
    sizes = []
    while rig.busy:
        rig.shard.turn(rig.now)
        sizes.append(len(rig.shard.changes.places))
        rig.turn()
        assert neighbour in rig.replies
    assert max(sizes) <= 10
    assert rig.read(own) == {}
    assert len(rig.ids(A, "dead")) == {"": 79, "ack": 79 - 15, "redrive": 79 - 15}[task]
    assert len(rig.ids(A)) == (79 - 15 if task == "ack" else 79)


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
    assert rig.shard.mailboxes.bytes == 0


def test_full_disk_is_said_to_whoever_changes_something_and_not_to_who_reads(rig: Rig) -> None:
    rig.add(A, *ids(3))
    rig.shard.set_room(Room.NONE)
    for operation, realm, params, body in (
        ("add_job", A, ["x"], {"queue_id": 0}),
        ("add_jobs", A, [], {"jobs": []}),
        ("pull_2013", A, [None, None], None),
        ("clear_queue", A, ["0"], None),
        ("configure_2013", A, [], {"default_lease_time": 1}),
        ("move_job", A, ["job 0"], {"from_queue": 0, "to_queue": 1}),
        ("remove_job", A, ["job 0"], None),
        ("check_jobs", A, [[0]], bulk((A, "x", None))),
        ("place_realm", A, [1], {"shard": 0}),
    ):
        assert rig.reply_to(operation, realm, params, body).status == 507, operation
    assert len(rig.shard.changes) == 0
    assert rig.ask("get_status", A)["total_jobs"] == 3
    assert [found[2] for found in rig.ask("peek", "", [5, None, None, None, None])] == ids(3)
    rig.shard.set_room(Room.ENOUGH)
    rig.add(A, "x")
    rig.ask("remove_job", A, ["job 0"])


def test_look_over_realms_while_the_disk_is_full_settles_nothing_of_what_is_due(rig: Rig) -> None:
    """Else all of that would have to fit into one group, once there is a little room."""
    rig.ask("configure", A, [], {"crash_limit": 1})
    rig.add(A, "x", "y")
    rig.leases(A, lease_time=20)
    rig.now += 20
    rig.shard.set_room(Room.NONE)
    assert rig.ask("peek", "", [5, None, None, None, None]) == []
    assert rig.ask("get_statuses")[A]["total_jobs"] == 2
    assert len(rig.shard.changes) == 0
    rig.shard.set_room(Room.ENOUGH)
    assert [found[2] for found in rig.ask("peek", "", [5, None, None, None, None])] == ["y"]


@pytest.mark.usefixtures("small_steps")
def test_removal_under_way_rests_while_the_disk_is_full(rig: Rig) -> None:
    rig.add(A, *ids(55))
    removal = rig.send("clear_queue", A, ["0"])
    rig.turn()
    rig.shard.set_room(Room.NONE)
    assert not rig.busy
    rig.shard.turn(rig.now)
    assert len(rig.shard.changes) == 0
    rig.shard.set_room(Room.ENOUGH)
    rig.run()
    assert json.loads(rig.replies[removal].body) == {"removed": 55}


def test_message_that_does_not_fit_is_refused_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailboxes, "BYTES_MAX", 100)
    rig.add(A, "x")
    kept = rig.send("add_job", A, ["y"], {"queue_id": 0, "data": "a" * 60})
    refused = rig.send("add_job", A, ["z"], {"queue_id": 0, "data": "a" * 60})
    rig.run()
    assert rig.replies[kept].status == 200
    assert rig.error(refused)["code"] == "overloaded"
    assert rig.reply_to("add_job", A, ["z"], {"queue_id": 0, "data": "a" * 60}).status == 200, "there is room again"


def test_message_that_is_larger_than_all_that_may_wait_is_served_where_nothing_waits(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailboxes, "BYTES_MAX", 10)
    assert rig.reply_to("add_job", A, ["x"], {"queue_id": 0, "data": "a" * 60}).status == 200


@pytest.mark.usefixtures("small_steps")
def test_full_disk_during_a_removal_tells_who_waits_for_it(rig: Rig) -> None:
    rig.add(A, *ids(55))
    removal = rig.send("clear_queue", A, ["0"])
    rig.turn()
    assert rig.full_turn() == [removal]
    assert rig.error(removal)["code"] == "storage_full"
    rig.run()
    assert rig.ask("get_status", A)["total_jobs"] == 0, "it was begun: it is finished"


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("room", [Room.NONE, Room.LITTLE])
def test_full_disk_at_the_last_step_of_a_removal_does_not_say_that_nothing_was_done(rig: Rig, room: Room) -> None:
    rig.add(A, *ids(55), tags=["t"])
    removal = rig.send("remove_tagged_jobs", A, ["t"])
    while len(rig.store._tables["jobs"]) > 5:
        rig.turn()
    assert removal not in rig.replies
    assert rig.full_turn(room) == ([removal] if room == Room.NONE else [])
    rig.run()
    if room == Room.NONE:
        assert "if this had begun, it goes on" in rig.error(removal)["message"]
    else:
        assert rig.read(removal) == {}
    assert rig.ids(A) == []


@pytest.mark.parametrize("room", [Room.NONE, Room.LITTLE])
def test_full_disk_at_a_removal_that_begins_and_ends_in_one_group_does_nothing_or_all(rig: Rig, room: Room) -> None:
    rig.add(A, *ids(5), tags=["t"])
    removal = rig.send("remove_tagged_jobs", A, ["t"])
    assert rig.full_turn(room) == ([removal] if room == Room.NONE else [])
    rig.run()
    if room == Room.NONE:
        assert "nothing was done" in rig.error(removal)["message"]
    assert rig.ids(A) == (ids(5) if room == Room.NONE else [])


def test_reload_leaves_nothing_to_the_garbage_collector(rig: Rig) -> None:
    rig.add(A, *ids(300), tags=["t"])
    rig.add(A, *ids(100), queue=1)
    rig.ask("pull_2013", A, [50, None])

    def garbage(count: int) -> int:
        gc.collect()
        for _ in range(count):
            rig.send("pull_2013", A, [10, None])
            rig.full_turn()
        return left_over()

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
            rig.reply_to("check_jobs", B, [[0]], bulk((B, "", None)))
            rig.reply_to("check_jobs", B, [[0]], bulk((B, "x", None)))
            rig.add(B, "x")
            rig.reply_to("get_statuses")
            rig.reply_to("clear_queue", A, ["0"])
            rig.reply_to("delete_realm", A)
            rig.reply_to("delete_realm", B)
            rig.now += 1_000  # until then somebody knows when the leases would have ended
            rig.turn()
            rig.replies.clear()
            rig.answered.clear()
        return left_over()

    gc.disable()
    try:
        garbage(3)
        few, many = garbage(3), garbage(60)
    finally:
        gc.enable()
    assert many <= few + 200  # one job in each round would be 400


def test_lease_ids_of_two_shards_differ_where_all_else_is_equal() -> None:
    """Realms that came to be in the same millisecond, on shards whose counters stand alike."""
    names = [next(names_on(shard, "r")) for shard in range(2)]
    rigs = [Rig(shard, 2) for shard in range(2)]
    for rig, name in zip(rigs, names, strict=True):
        rig.add(name, "x")
    first, second = (
        rig.ask("pull", name, [], {})["jobs"][0]["lease_id"] for rig, name in zip(rigs, names, strict=True)
    )
    assert first != second
