"""Requests that wait in a shard: who is answered, when, in which order, and what that costs. No sockets, no clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from shard_rig import (
    HOME_0,
    NOW,
    A,
    B,
    C,
    Rig,
    Sender,
    calls_made,
    carry_out,
    ids,
    move,
    pin,
)

from restq.placement import home
from restq.protocol import MOVED
from restq.shards import leasing, mailboxes, waking
from restq.shards.store import Room

KEY = ("k", "digest")


def nothing(rig: Rig, request_id: int) -> bool:
    """Whether the pull was answered, with no job."""
    return rig.given(request_id) == []


def waiting_tag(rig: Rig, realm: str, tag: str, seconds: str = "60") -> int:
    return rig.waiting("get_tag", realm, [tag, seconds])


def send_several(
    rig: Rig,
    realms: list[str] | None = None,
    count: int = 1,
    seconds: float = 60.0,
    once: Sequence[str] = (),
    waited: float = 0,
    sender: Sender | None = None,
    **said: Any,
) -> int:
    """What a front end sends for a pull over several realms, or all, that waits."""
    filters = [said.get(name) for name in ("max_queue", "queues", "tags", "lease_time", "worker")]
    filters[-1] = filters[-1] or ""
    return rig.send("pull_waiting", "", [realms, count, *filters, [], seconds], b"", once, sender, waited)


def waiting_several(rig: Rig, realms: list[str] | None = None, **said: Any) -> int:
    """The same, which must then wait."""
    request_id = send_several(rig, realms, **said)
    rig.run()
    assert request_id not in rig.replies, rig.replies[request_id]
    return request_id


def several_given(rig: Rig, request_id: int) -> list[tuple[str, str]] | None:
    """The realm and id of each job that a pull over several realms was answered with; None if it still waits."""
    if request_id not in rig.replies:
        return None
    found = rig.read(request_id)
    assert [index for index, _ in found] == list(range(len(found)))
    return [(job["realm"], job["job_id"]) for _, job in found]


# -- who is answered -------------------------------------------------------------------------------------------------


def test_wait_with_different_wishes_is_served_in_the_order_of_arrival(rig: Rig) -> None:
    rig.add(A, "other", queue=9)
    rig.pull(A)
    wishes: list[dict[str, Any]] = [{}, {"count": 3}, {}, {"queues": [0, 1]}, {"worker": "w"}, {}, {"tags": ["t"]}]
    waiters = [rig.waiting_pull(A, **said) for said in wishes]
    for job_id in ids(7):
        rig.add(A, job_id, tags=["t"])
    assert [rig.given(waiter) for waiter in waiters] == [[job_id] for job_id in ids(7)]


def test_add_of_many_jobs_serves_as_many_waiters_as_there_are_jobs(rig: Rig) -> None:
    waiters = [rig.waiting_pull(A, count=count) for count in (1, 2, 1, 2, 1)]
    rig.add(A, *ids(5))
    given = [rig.given(waiter) for waiter in waiters]
    assert given == [["job 0"], ["job 1", "job 2"], ["job 3"], ["job 4"], None]


def test_add_of_one_job_answers_one_waiter_and_leaves_the_others_waiting(rig: Rig) -> None:
    waiters = [rig.waiting_pull(A) for _ in range(3)]
    rig.add(A, "x")
    assert [rig.given(waiter) for waiter in waiters] == [["x"], None, None]
    assert rig.list(A)[0]["queues"][0]["attempt"] == 1


def test_pull_of_a_waiter_is_leased_as_any_other(rig: Rig) -> None:
    waiter = rig.waiting_pull(A, lease_time=7, worker="wörker")
    rig.now += 10
    rig.add(A, "x", data={"a": 1}, tags=["t"])
    [job] = rig.read(waiter)["jobs"]
    assert (job["job_id"], job["data"], job["tags"], job["attempt"]) == ("x", {"a": 1}, ["t"], 1)
    assert job["lease_expires_at"] == NOW + 17
    assert rig.list(A)[0]["queues"][0]["worker"] == "wörker"
    assert rig.replies[waiter].extra > 0, "the front end can undo it"
    assert rig.ask("ack", A, [], {"leases": [job["lease_id"]]})["acked"] == [job["lease_id"]]


@pytest.mark.parametrize(
    ("wanted", "missed"),
    [
        ({"queues": [5]}, {"queue": 4}),
        ({"max_queue": 5}, {"queue": 6}),
        ({"max_queue": 5}, {"queue": "text"}),
        ({"tags": ["t", "u"]}, {"queue": 5, "tags": ["v"]}),
        ({"queues": [5], "tags": ["t"]}, {"queue": 5}),
        ({"queues": [5], "tags": ["t"]}, {"queue": 4, "tags": ["t"]}),
    ],
)
def test_wait_for_what_does_not_come_lets_others_pass(rig: Rig, wanted: Any, missed: Any) -> None:
    picky = [rig.waiting_pull(A, **wanted) for _ in range(2)]
    anybody = rig.waiting_pull(A)
    rig.add(A, "missed", **missed)
    assert rig.given(anybody) == ["missed"]
    rig.add(A, "left", **missed)
    assert [rig.given(waiter) for waiter in picky] == [None, None]
    rig.add(A, "wanted", queue=5, tags=["t"])
    assert [rig.given(waiter) for waiter in picky] == [["wanted"], None]


def test_wait_in_one_realm_gets_nothing_of_another(rig: Rig) -> None:
    waiter = rig.waiting_pull(A)
    rig.add(B, "x")
    rig.add(C, "x")
    assert rig.given(waiter) is None


def test_wait_in_realm_that_does_not_exist_gets_its_first_job(rig: Rig) -> None:
    waiters = {realm: rig.waiting_pull(realm) for realm in (A, B, C)}
    assert rig.row_count() == 0, "waiting makes no realm"
    rig.add(A, "of a")
    rig.add(B, "of b")
    rig.add(C, "of c")
    assert {realm: rig.given(waiter) for realm, waiter in waiters.items()} == {
        realm: [f"of {realm}"] for realm in (A, B, C)
    }


def test_add_of_several_jobs_in_one_turn_serves_each_waiter_before_the_next_message(rig: Rig) -> None:
    waiter = rig.waiting_pull(A, count=5)
    added = rig.send("add_job", A, ["first"], {"queue_id": 0})
    pull = rig.send("pull", A, [], {"count": 5})
    rig.send("add_job", A, ["second"], {"queue_id": 0})
    rig.run()
    assert rig.answered[-4:-2] == [added, waiter], "who waited is ahead of who comes after the job"
    assert rig.given(waiter) == ["first"]
    assert nothing(rig, pull)


# -- what wakes ------------------------------------------------------------------------------------------------------


def test_resume_of_paused_queue_wakes(rig: Rig) -> None:
    rig.ask("configure_queue", A, ["0"], {"paused": True})
    rig.add(A, "x")
    waiter = rig.waiting_pull(A)
    rig.ask("configure_queue", A, ["0"], {"lease_time": 5})
    assert rig.given(waiter) is None
    rig.ask("configure_queue", A, ["0"], {"paused": False})
    assert rig.given(waiter) == ["x"]


def test_resume_of_paused_tag_wakes(rig: Rig) -> None:
    rig.add(A, "x", tags=["t"])
    rig.ask("configure_tag", A, ["t"], {"paused": True})
    waiter = rig.waiting_pull(A)
    rig.ask("configure_tag", A, ["t"], {"paused": False})
    assert rig.given(waiter) == ["x"]


@pytest.mark.parametrize("kind", ["queue", "tag"])
@pytest.mark.parametrize("end", ["ack", "remove_job", "expiry", "release", "cancel and nack"])
def test_end_of_a_lease_frees_its_limit_and_wakes(rig: Rig, kind: str, end: str) -> None:
    rig.ask(f"configure_{kind}", A, ["0" if kind == "queue" else "t"], {"max_leased": 1})
    rig.add(A, "x", "y", tags=["t"])
    [lease] = rig.leases(A, lease_time=20)
    waiter = rig.waiting_pull(A)
    if end == "expiry":
        assert rig.shard.next_deadline() == NOW + 20
        rig.run_until(NOW + 20)
    elif end == "remove_job":
        rig.ask("remove_job", A, ["x"])
    elif end == "cancel and nack":
        rig.ask("cancel_job", A, ["x"])
        assert rig.given(waiter) is None
        rig.ask("nack", A, [], {"leases": [lease]})
    else:
        rig.now += 1  # what was given back has waited since then
        rig.ask(end, A, [], {"leases": [lease]})
    assert rig.given(waiter) == ["y"]


def test_end_of_several_leases_by_time_wakes_as_many(rig: Rig) -> None:
    rig.ask("configure_tag", A, ["t"], {"max_leased": 3})
    rig.add(A, *ids(6), tags=["t"])
    rig.leases(A, 3, lease_time=20)
    waiters = [rig.waiting_pull(A) for _ in range(4)]
    rig.run_until(NOW + 20)
    assert [rig.given(waiter) for waiter in waiters] == [["job 3"], ["job 4"], ["job 5"], None]


@pytest.mark.parametrize("kind", ["queue", "tag"])
def test_rate_wakes_at_its_instants(rig: Rig, kind: str) -> None:
    rig.ask(f"configure_{kind}", A, ["0" if kind == "queue" else "t"], {"rate": 0.25})
    rig.add(A, *ids(4), tags=["t"])
    rig.leases(A)
    waiters = [rig.waiting_pull(A) for _ in range(2)]
    for number, waiter in enumerate(waiters, 1):
        assert rig.shard.next_deadline() == NOW + 4 * number
        rig.run_until(NOW + 4 * number - 0.01)
        assert rig.given(waiter) is None
        rig.run_until(NOW + 4 * number)
        assert rig.given(waiter) == [f"job {number}"]


def test_delay_wakes_at_its_end_and_the_shard_says_so(rig: Rig) -> None:
    rig.add(A, "later", delay=30)
    rig.add(A, "soon", delay=5.5)
    rig.ask("add_job", A, ["at"], {"queue_id": 0, "run_at": NOW + 12})
    waiters = [rig.waiting_pull(A) for _ in range(3)]
    for at, waiter, job_id in zip((5.5, 12, 30), waiters, ("soon", "at", "later"), strict=True):
        assert rig.shard.next_deadline() == NOW + at
        rig.now = NOW + at - 0.001
        assert not rig.busy
        rig.now = NOW + at
        assert rig.busy
        rig.turn()
        assert rig.given(waiter) == [job_id]


def test_backoff_wakes_at_its_end(rig: Rig) -> None:
    rig.ask("configure_queue", A, ["0"], {"backoff": {"base": 8, "jitter": 0}})
    rig.add(A, "x")
    rig.ask("nack", A, [], {"leases": rig.leases(A)})
    waiter = rig.waiting_pull(A)
    assert rig.shard.next_deadline() == NOW + 8
    rig.run_until(NOW + 8)
    assert rig.read(waiter)["jobs"][0]["attempt"] == 2


@pytest.mark.parametrize("end", ["ack", "remove_job", "remove_tagged_jobs", "expiry", "cancel_job", "clear_queue"])
def test_dependency_that_empties_wakes(rig: Rig, end: str) -> None:
    rig.add(A, "first", queue=1, tags=["stage"], **({"expires_in": 20} if end == "expiry" else {}))
    rig.add(A, "then", after=["stage"])
    waiter = rig.waiting_pull(A, queues=[0])
    if end == "ack":
        rig.ask("ack", A, [], {"leases": rig.leases(A)})
    elif end == "expiry":
        rig.run_until(NOW + 20)
    else:
        rig.ask(end, A, [{"remove_tagged_jobs": "stage", "clear_queue": "1"}.get(end, "first")])
    assert rig.given(waiter) == ["then"]


@pytest.mark.parametrize(
    ("operation", "params", "body"),
    [
        ("redrive", [], None),
        ("redrive", [], {"jobs": ["x"]}),
        ("redrive_tagged_jobs", ["t"], None),
        ("move_job", ["x"], {"from_queue": 0, "to_queue": 1}),
        ("move_tagged_jobs", ["t"], {"from_queue": 0, "to_queue": 1}),
    ],
)
def test_redrive_or_move_of_dead_job_wakes(rig: Rig, operation: str, params: list[Any], body: Any) -> None:
    rig.add(A, "x", tags=["t"], max_attempts=1)
    rig.ask("nack", A, [], {"leases": rig.leases(A)})
    waiter = rig.waiting_pull(A)
    rig.ask(operation, A, params, b"" if body is None else body)
    assert rig.given(waiter) == ["x"]


def test_undo_of_a_pull_wakes_the_next(rig: Rig) -> None:
    rig.add(A, "x")
    lost = rig.reply_to("pull", A, [], {})
    waiter = rig.waiting_pull(A)
    rig.ask("undo_pull", A, [lost.extra, [["x", 0]]])
    assert rig.given(waiter) == ["x"]
    assert rig.read(waiter)["jobs"][0]["attempt"] == 1


@pytest.mark.usefixtures("small_steps")
def test_wait_while_its_realm_is_held_is_served_after_the_task(rig: Rig) -> None:
    rig.add(A, *ids(55), queue=1, tags=["t"])
    rig.add(A, "later", queue=0, delay=5)
    waiter = rig.waiting_pull(A, queues=[0])
    removal = rig.send("remove_tagged_jobs", A, ["t"])
    rig.turn()
    rig.now += 5
    rig.turn()
    assert rig.given(waiter) is None, "the realm is held"
    rig.run()
    assert rig.given(waiter) == ["later"]
    assert rig.answered.index(removal) < rig.answered.index(waiter)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("is_left", [True, False])
@pytest.mark.parametrize("added", [[], ["new"]])
def test_wait_for_a_tag_that_is_over_during_a_task_is_told_nothing_of_the_half_of_it(
    rig: Rig, is_left: bool, added: list[str]
) -> None:
    rig.add(A, *ids(55), tags=["t"])
    asked = waiting_tag(rig, A, "t", "60")
    removal = rig.send("remove_tagged_jobs", A, ["t"])
    rig.send("add_jobs", A, [], {"jobs": [{"job_id": job_id, "queue_id": 0, "tags": ["t"]} for job_id in added]})
    rig.turn()
    if is_left:
        rig.leave(asked)
    else:
        rig.now += 60
    rig.turn()
    assert not {removal, asked} & set(rig.replies)
    rig.run()
    assert rig.read(asked)["count"] == len(added)


@pytest.mark.usefixtures("small_steps")
def test_many_leases_that_end_at_once_are_not_settled_in_one_turn_for_the_sake_of_a_waiter(rig: Rig) -> None:
    rig.add(A, *ids(100))
    rig.leases(A, 100, lease_time=20)
    waiter = rig.waiting_pull(A, queues=[7])
    several = waiting_several(rig, queues=[7])
    rig.now += 20
    counts = []
    while rig.busy:
        rig.turn()
        counts.append(rig.shard.find(A).queues[0].counts[0])  # type: ignore[union-attr]
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= 10
    assert counts[-1] == 100
    assert (rig.given(waiter), several in rig.replies) == (None, False)


# -- the end of waiting ----------------------------------------------------------------------------------------------


def test_wait_whose_time_is_up_gives_nothing_at_that_instant(rig: Rig) -> None:
    long = rig.waiting_pull(A)
    rig.now += 1
    short = rig.waiting("pull", A, [], {"wait": 5.5})
    tag_of = rig.waiting_pull(B)
    assert rig.shard.next_deadline() == NOW + 6.5
    rig.now = NOW + 6.4
    assert not rig.busy
    rig.run_until(NOW + 6.5)
    assert nothing(rig, short)
    assert rig.given(long) is None
    rig.run_until(NOW + 60)
    assert nothing(rig, long)
    assert rig.given(tag_of) is None
    rig.run_until(NOW + 61)
    assert nothing(rig, tag_of)
    assert rig.shard.next_deadline() > NOW + 1_000
    rig.add(A, "x")
    assert [job["job_id"] for job in rig.pull(A)] == ["x"]


def test_leave_while_waiting_answers_with_nothing_and_passes_the_turn_on(rig: Rig) -> None:
    waiters = [rig.waiting_pull(A) for _ in range(3)]
    rig.leave(waiters[0])
    rig.run()
    rig.turn()
    assert nothing(rig, waiters[0])
    rig.add(A, "x")
    assert [rig.given(waiter) for waiter in waiters] == [[], ["x"], None]


def test_leave_before_the_request_is_served_waits_for_nothing(rig: Rig) -> None:
    request = rig.send("pull", A, [], {"wait": 60})
    tag_asked = rig.send("get_tag", A, ["t", "60"])
    rig.leave(request)
    rig.leave(tag_asked)
    rig.run()
    assert nothing(rig, request)
    assert rig.read(tag_asked)["count"] == 0
    rig.add(A, "x")
    assert len(rig.answered) == 3


def test_leave_of_request_that_was_answered_is_forgotten_by_and_by(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "LEFT_MAX", 3)
    for _ in range(10):
        rig.add(A, "x")
        rig.leave(rig.send("get_status", A))
        rig.run()
        rig.leave(rig.answered[-1])  # it crossed the reply
    request = rig.send("pull", B, [], {"wait": 60})
    rig.leave(request)
    rig.run()
    assert nothing(rig, request)


def test_leave_of_another_front_end_with_the_same_number_leaves_the_first_waiting(rig: Rig) -> None:
    other = Sender()
    mine = rig.waiting_pull(A)
    rig._last_id = mine - 1
    theirs = rig.send("pull", A, [], {"wait": 60}, sender=other)
    rig.run()
    assert theirs == mine
    rig.send("leave", "", [theirs], sender=other)
    rig.run()
    rig.turn()
    assert list(other.replies) == [theirs]
    rig.add(A, "x")
    assert rig.given(mine) == ["x"]


def test_front_end_that_is_gone_waits_for_nothing_and_takes_no_job(rig: Rig) -> None:
    other = Sender()
    gone = [rig.send("pull", A, [], {"wait": 60}, sender=other) for _ in range(3)]
    rig.send("get_tag", A, ["t", "60"], sender=other)
    send_several(rig, sender=other)
    rig.run()
    there = rig.waiting_pull(A)
    before = rig.shard.next_deadline()
    rig.shard.waking.gone(other)
    assert rig.shard.next_deadline() == before
    rig.add(A, "x", "y", tags=["t"])
    assert rig.given(there) == ["x"]
    assert rig.list(A)[1]["queues"][0]["state"] == "ready"
    rig.run_until(NOW + 100)
    assert set(other.replies) <= {gone[-1] + 1}, "only the tag, which nobody carried, was answered"


def test_end_of_the_shard_answers_all_who_wait(rig: Rig) -> None:
    rig.add(B, "x", tags=["t"])
    rig.pull(B)
    requests = [rig.waiting_pull(A), rig.waiting_pull(B), waiting_tag(rig, B, "t"), waiting_several(rig)]
    rig.shard.waking.end(rig.now)
    rig.turn()
    assert [rig.replies[request].status for request in requests] == [200] * 4
    assert rig.read(requests[2])["count"] == 1


# -- the end of a tag ------------------------------------------------------------------------------------------------


def test_tag_whose_last_job_goes_answers_all_who_wait_for_it_and_no_other(rig: Rig) -> None:
    rig.add(A, "x", "y", tags=["t"])
    rig.add(A, "z", tags=["u"])
    first, second, other = waiting_tag(rig, A, "t"), waiting_tag(rig, A, "t"), waiting_tag(rig, A, "u")
    rig.ask("remove_job", A, ["x"])
    assert first not in rig.replies
    rig.ask("remove_job", A, ["y"])
    assert [rig.read(request)["count"] for request in (first, second)] == [0, 0]
    assert other not in rig.replies
    rig.run_until(NOW + 60)
    assert rig.read(other)["count"] == 1


def test_tag_that_goes_and_comes_in_one_request_is_still_waited_for(rig: Rig) -> None:
    rig.add(A, "x", tags=["t"])
    request = waiting_tag(rig, A, "t")
    rig.add(A, "x", tags=["t"], on_conflict="replace")
    assert request not in rig.replies
    lease = rig.leases(A)
    rig.ask("exchange", A, [], {"ack": {"leases": lease}, "add": [{"job_id": "y", "queue_id": 0, "tags": ["t"]}]})
    assert request not in rig.replies
    rig.ask("remove_job", A, ["y"])
    assert rig.read(request)["count"] == 0


def test_tag_that_goes_and_comes_in_two_requests_of_one_turn_is_answered(rig: Rig) -> None:
    rig.add(A, "x", tags=["t"])
    request = waiting_tag(rig, A, "t")
    rig.send("remove_job", A, ["x"])
    rig.send("add_job", A, ["x"], {"queue_id": 0, "tags": ["t"]})
    rig.run()
    assert rig.read(request)["count"] == 0


@pytest.mark.usefixtures("small_steps")
def test_delete_of_realm_answers_who_waits_for_a_tag_and_leaves_pulls_waiting(rig: Rig) -> None:
    rig.add(A, *ids(35), tags=["t"])
    rig.leases(A, 35)
    tag, pull = waiting_tag(rig, A, "t"), rig.waiting_pull(A)
    rig.ask("delete_realm", A)
    assert rig.read(tag) == {
        "tag": "t",
        "count": 0,
        **dict.fromkeys(("ready", "leased", "delayed", "blocked", "dead"), 0),
        "settings": {"paused": False},
    }
    assert rig.given(pull) is None
    assert rig.row_count() == 0
    rig.add(A, "again")
    assert rig.given(pull) == ["again"]


def test_tag_that_was_once_waited_for_comes_and_goes_without_a_trace(rig: Rig) -> None:
    rig.add(A, "stays")
    rig.add(A, "x", tags=["t"])
    request = waiting_tag(rig, A, "t", "5")
    rig.run_until(NOW + 5)
    assert rig.read(request)["count"] == 1
    for _ in range(10):
        rig.add(A, "x", tags=["t"])
        rig.ask("remove_job", A, ["x"])
    tags = rig.shard.find(A).tags  # type: ignore[union-attr]
    assert (len(tags.vanished), len(tags.watched)) == (0, 0)


# -- moves, starts, and a full disk ----------------------------------------------------------------------------------


def test_wait_in_realm_that_moves_is_told_where_it_went() -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    source.add(HOME_0, "x", tags=["t"])
    source.pull(HOME_0)
    waiters = [source.waiting_pull(HOME_0), waiting_tag(source, HOME_0, "t")]
    stays = next(name for name in ids(20) if home(name, 2) == 0 and name != HOME_0)
    several = waiting_several(source, [stays, HOME_0])
    everywhere = waiting_several(source)
    pin(source, HOME_0, 1)
    source.run()
    assert not any(waiter in source.replies for waiter in waiters)
    carry_out(source, target)
    source.run()
    for waiter in (*waiters, several):
        assert (source.replies[waiter].status, source.replies[waiter].extra) == (MOVED, 1)
        assert source.replies[waiter].body.decode() == HOME_0
    assert everywhere not in source.replies
    there = target.waiting_pull(HOME_0)
    target.add(HOME_0, "y")
    assert target.given(there) == ["y"]


def test_wait_whose_time_is_up_during_a_move_gives_nothing() -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    source.add(HOME_0, "x")
    source.pull(HOME_0)
    waiter = source.waiting_pull(HOME_0)
    pin(source, HOME_0, 1)
    source.run_until(NOW + 60)
    assert nothing(source, waiter)
    carry_out(source, target)
    source.run()
    assert source.answered.count(waiter) == 1


def test_lease_that_runs_out_during_a_move_wakes_in_the_new_shard() -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    source.add(HOME_0, "x")
    source.leases(HOME_0, lease_time=5)
    move(source, target, HOME_0)
    waiter = target.waiting_pull(HOME_0)
    assert target.shard.next_deadline() == NOW + 5
    target.run_until(NOW + 5)
    assert target.given(waiter) == ["x"]


def test_full_disk_lets_those_who_wait_wait_on(rig: Rig) -> None:
    rig.add(A, "x", tags=["t"])
    [lease] = rig.leases(A)
    pull, tag, several = rig.waiting_pull(A), waiting_tag(rig, A, "t"), waiting_several(rig, [A, C])
    lost = rig.send("add_job", B, ["lost"], {"queue_id": 0})
    assert rig.full_turn() == [lost], "the one that had to wake is not told of a job that is not kept"
    rig.run()
    assert len({pull, tag, several} & set(rig.replies)) == 0
    rig.add(A, "y")
    assert rig.given(pull) == ["y"]
    rig.add(C, "z")
    assert several_given(rig, several) == [(C, "z")]
    rig.ask("ack", A, [], {"leases": [lease]})
    assert rig.read(tag)["count"] == 0


@pytest.mark.parametrize("over_realms", [False, True])
def test_full_disk_takes_back_the_job_that_a_waiter_was_to_get(rig: Rig, over_realms: bool) -> None:
    waiter = waiting_several(rig) if over_realms else rig.waiting_pull(A)
    added = rig.send("add_job", A, ["lost"], {"queue_id": 0})
    assert sorted(rig.full_turn()) == sorted([added, waiter])
    assert {rig.replies[request].status for request in (added, waiter)} == {507}
    rig.run()
    assert rig.reply_to("get_job", A, ["lost"]).status == 404


def test_full_disk_makes_nobody_wait_longer_than_asked(rig: Rig) -> None:
    rig.add(A, "x", tags=["t"])
    rig.pull(A)
    requests = [rig.waiting_pull(A), waiting_tag(rig, A, "t"), waiting_several(rig)]
    for _ in range(3):
        rig.run_until(rig.now + 15)
        rig.send("add_job", A, ["lost"], {"queue_id": 0, "delay": 500})
        rig.full_turn()
        rig.run()
    rig.run_until(NOW + 60)
    assert all(request in rig.replies for request in requests)


def test_full_disk_in_the_turn_in_which_a_wait_ends_or_is_left_makes_nobody_wait_on(rig: Rig) -> None:
    rig.add(A, "x", tags=["t"])
    rig.pull(A)
    left = [rig.waiting_pull(A), waiting_tag(rig, A, "t"), waiting_several(rig)]
    rig.run_until(NOW + 30)
    over = [rig.waiting("pull", A, [], {"wait": 5}), waiting_tag(rig, A, "t", "5"), waiting_several(rig, seconds=5)]
    for request in left:
        rig.leave(request)
    rig.now += 5
    rig.send("add_job", A, ["lost"], {"queue_id": 0, "delay": 500})
    rig.full_turn(Room.LITTLE)
    rig.run()
    assert {*left, *over} <= set(rig.replies)
    assert nothing(rig, left[0])
    rig.add(A, "new")
    assert rig.ids(A, "ready") == ["new"]
    assert not rig.shard.waking._left
    assert not rig.shard.waking._orders


def test_full_disk_changes_nothing_for_those_who_wait_for_several_realms(rig: Rig) -> None:
    """What a look at what is ready brings about is kept once there is room, and not tried in vain again and again."""
    rig.add(A, "x", expires_in=10)
    rig.add(A, "y", "z", queue=1, max_attempts=1)
    rig.leases(A, 2, queues=[1], lease_time=10)
    several = waiting_several(rig, queues=[7])
    rig.shard.set_room(Room.NONE)
    rig.now += 10
    for operation, params in (("get_stats", []), ("peek", [5, None, None, None, None])):
        request = rig.send(operation, "", params)
        rig.shard.turn(rig.now)
        assert len(rig.shard.take_changes()) == 0, operation
        rig._hand_out(rig.shard.outbox)
        assert rig.replies[request].status == 200
        assert not rig.busy
    assert several not in rig.replies
    assert len(rig.store._tables["jobs"]) == 3
    rig.shard.set_room(Room.ENOUGH)
    rig.run()
    assert sorted(row[2] for row in rig.store._tables["jobs"].values()) == ["y", "z"]


# -- several realms --------------------------------------------------------------------------------------------------


def test_wait_for_several_realms_is_leased_the_first_jobs_that_come(rig: Rig) -> None:
    everybody = [waiting_several(rig, count=2, lease_time=7, worker="wörker") for _ in range(3)]
    some, none = waiting_several(rig, [C, B]), waiting_several(rig, max_queue=3, queues=[9], tags=["t"])
    rig.now += 10
    rig.add(A, "x", "y", "z", data={"a": 1}, tags=["u"])
    assert [several_given(rig, request) for request in everybody] == [[(A, "x"), (A, "y")], [(A, "z")], None]
    assert not {some, none} & set(rig.replies)
    [[_, job]] = rig.read(everybody[1])
    assert (job["data"], job["tags"], job["attempt"]) == ({"a": 1}, ["u"], 1)
    assert job["lease_expires_at"] == NOW + 17
    assert rig.list(A)[0]["queues"][0]["worker"] == "wörker"
    assert rig.replies[everybody[1]].extra > 0, "the front end can undo it"
    assert rig.ask("ack", A, [], {"leases": [job["lease_id"]]})["acked"] == [job["lease_id"]]
    rig.add(B, "of b", queue=9, tags=["t"])
    assert several_given(rig, everybody[2]) == [(B, "of b")]
    rig.add(B, "again")
    assert several_given(rig, some) == [(B, "again")]
    rig.add(C, "y", queue=9, tags=["t"])
    assert none not in rig.replies, "queue 9 is after the last one that it asks for"


def test_wait_for_one_or_several_realms_is_served_in_the_order_of_arrival(rig: Rig) -> None:
    waiters = [
        waiting_several(rig, [A]),
        rig.waiting_pull(A),
        waiting_several(rig, [B, C, A]),
        waiting_several(rig),
        rig.waiting_pull(A, worker="w"),
        waiting_several(rig, [A]),
        waiting_several(rig, [B, C, A], count=5),
    ]
    for count in range(len(waiters)):
        assert [waiter in rig.replies for waiter in waiters] == [True] * count + [False] * (len(waiters) - count)
        rig.add(A, f"job {count}")


def test_wait_for_overlapping_realms_is_served_in_the_order_of_arrival(rig: Rig) -> None:
    first, second, third = (waiting_several(rig, realms) for realms in ([A, B], [C, "d", A], [A]))
    rig.add(A, "x", "y")
    assert [several_given(rig, waiter) for waiter in (first, second, third)] == [[(A, "x")], [(A, "y")], None]
    rig.add("d", "z")
    assert third not in rig.replies
    rig.add(A, "z")
    assert several_given(rig, third) == [(A, "z")]


def test_wait_for_several_realms_is_not_overtaken_though_others_keep_coming(rig: Rig) -> None:
    several = waiting_several(rig, [A])
    workers = [rig.waiting_pull(A) for _ in range(2)]
    rig.add(A, "x")
    assert [several_given(rig, several), *map(rig.given, workers)] == [[(A, "x")], None, None]


def test_wait_for_several_realms_takes_what_is_there_from_where_it_comes_first(rig: Rig) -> None:
    rig.add(A, "late", queue=5)
    rig.add(B, "first", queue=2)
    rig.now += 1
    rig.add(C, "young", queue=2)
    rig.add(B, "next", queue=7)
    assert several_given(rig, rig_run(rig, send_several(rig, count=9))) == [(B, "first"), (B, "next")]
    assert several_given(rig, rig_run(rig, send_several(rig, [A, C], count=9))) == [(C, "young")]
    assert several_given(rig, rig_run(rig, send_several(rig, [A, C], count=9, max_queue=4, seconds=0))) == []


def rig_run(rig: Rig, request_id: int) -> int:
    rig.run()
    return request_id


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("way", ["came while it was held", "waited before", "waited before in one realm"])
def test_wait_while_a_realm_is_held_is_served_after_the_task_and_before_who_comes_later(rig: Rig, way: str) -> None:
    rig.add(A, *ids(55), queue=1, tags=["t"])
    rig.add(A, "later", queue=0, delay=5)
    if way == "waited before":
        waiter = waiting_several(rig, [A, B], queues=[0])
    elif way == "waited before in one realm":
        waiter = rig.waiting_pull(A, queues=[0])
    removal = rig.send("remove_tagged_jobs", A, ["t"])
    rig.turn()
    if way == "came while it was held":
        waiter = send_several(rig, [A, B], queues=[0])
    rig.now += 5
    rig.turn()
    late = rig.send("pull", A, [], {"wait": 60})
    rig.turn()
    assert waiter not in rig.replies, "the realm is held"
    rig.run()
    assert "later" in rig.replies[waiter].body.decode()
    assert rig.answered.index(removal) < rig.answered.index(waiter)
    assert rig.given(late) is None


def test_wait_for_several_realms_is_leased_a_job_when_its_delay_or_the_lease_of_another_ends(rig: Rig) -> None:
    rig.add(A, "x", delay=5)
    requests = [waiting_several(rig) for _ in range(2)]
    assert rig.shard.next_deadline() == NOW + 5
    rig.run_until(NOW + 5)
    [[_, job]] = rig.read(requests[0])
    rig.run_until(job["lease_expires_at"] - 560)
    rig.ask("nack", A, [], {"leases": [job["lease_id"]]})
    assert rig.read(requests[1])[0][1]["attempt"] == 2


def test_wait_for_several_realms_is_leased_jobs_that_come_with_a_realm() -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    source.add(HOME_0, "x")
    request, late = waiting_several(target), waiting_several(target, queues=[7])
    move(source, target, HOME_0)
    assert several_given(target, request) == [(HOME_0, "x")]
    assert late not in target.replies


def test_wait_for_several_realms_ends_with_its_time_or_when_it_is_left(rig: Rig) -> None:
    short, left = waiting_several(rig, seconds=5.0), waiting_several(rig, max_queue=4)
    rig.leave(left)
    rig.turn()
    assert several_given(rig, left) == []
    rig.run_until(NOW + 5)
    assert several_given(rig, short) == []
    assert rig.row_count() == 0
    rig.add(A, "x")
    assert rig.ids(A, "ready") == ["x"]


def test_wait_for_several_realms_that_was_left_is_undone_and_passes_its_job_on(rig: Rig) -> None:
    several, after = waiting_several(rig, [A, B]), waiting_several(rig, [A])
    rig.add(A, "x")
    rig.leave(several)  # it crossed the reply
    rig.ask("undo_pull", A, [rig.replies[several].extra, [["x", 0]], ""])
    assert several_given(rig, after) == [(A, "x")]
    assert rig.read(after)[0][1]["attempt"] == 1


def test_wait_that_waited_elsewhere_before_is_served_by_when_it_came(rig: Rig) -> None:
    here = rig.waiting_pull(A)
    rig.now += 10
    later = rig.send("pull", A, [], {"wait": 60, "worker": "moved"}, waited=5)
    before = send_several(rig, [A], seconds=30, waited=11)
    same = rig.send("pull", A, [], {"wait": 60}, waited=12)
    rig.run()
    assert rig.shard.next_deadline() == NOW - 1 + 30, "the time that it waited counts"
    for number, request in enumerate((same, before, here, later)):
        assert request not in rig.replies
        rig.add(A, f"job {number}")
        assert request in rig.replies


def test_full_disk_gives_nobody_what_is_not_kept(rig: Rig) -> None:
    rig.add(A, "x", delay=10)
    rig.add(B, "y", delay=10)
    waiters = [waiting_several(rig, [A]), rig.waiting_pull(B)]
    rig.shard.set_room(Room.NONE)
    rig.now += 10
    for _ in range(2):
        looked = rig.send("peek", "", [5, None, None, None, None])
        rig.shard.turn(rig.now)
        assert len(rig.shard.take_changes()) == 0
        rig._hand_out(rig.shard.outbox)
        assert looked in rig.replies
        assert not set(waiters) & set(rig.replies)
        assert not rig.busy
    rig.shard.set_room(Room.ENOUGH)
    rig.run()
    assert several_given(rig, waiters[0]) == [(A, "x")]
    assert rig.given(waiters[1]) == ["y"]


def test_full_disk_lets_those_who_wait_keep_their_order(rig: Rig) -> None:
    waiters = []
    for number in range(12):
        realms = [[A], [A, B], None][number % 3]
        waiters.append(waiting_several(rig, realms) if number % 4 else rig.waiting_pull(A))
    for _ in range(2):
        late = rig.send("pull", A, [], {"wait": 60})
        rig.send("add_job", B, ["lost"], {"queue_id": 5, "delay": 500})
        rig.full_turn()
        waiters.append(late)
    rig.run()
    waiting = [waiter for waiter in waiters if waiter not in rig.replies]
    assert waiting[:12] == waiters[:12]
    for number in range(len(waiting)):
        rig.add(A, f"job {number}")
        assert [waiter in rig.replies for waiter in waiting] == [True] * (number + 1) + [False] * (
            len(waiting) - number - 1
        )


# -- the same request once more --------------------------------------------------------------------------------------


def test_pull_sent_again_under_its_key_takes_the_place_of_the_one_that_waits(rig: Rig) -> None:
    first, second, other = (
        rig.send("pull", A, [], {"wait": 60}, once) for once in (KEY, KEY, ("another key", "digest"))
    )
    rig.run()
    assert nothing(rig, first)
    rig.add(A, "x")
    assert [rig.given(request) for request in (second, other)] == [["x"], None]
    again = rig.reply_to("pull", A, [], {"wait": 60}, KEY)
    assert again.body == rig.replies[second].body


def test_pull_that_waited_in_vain_under_its_key_is_tried_anew(rig: Rig) -> None:
    request = rig.send("pull", A, [], {"wait": 5}, KEY)
    rig.run_until(NOW + 5)
    assert nothing(rig, request)
    rig.add(A, "x")
    assert rig.given(rig.send("pull", A, [], {"wait": 5}, KEY)) is None
    rig.run()
    assert rig.given(rig.answered[-1]) == ["x"]


def test_pull_over_realms_sent_again_under_its_key_takes_the_place_of_the_one_that_waits(rig: Rig) -> None:
    other = Sender()
    first = send_several(rig, [A, B], once=KEY, sender=other)
    rig.run()
    second, third = waiting_several(rig, [A, B], once=KEY), waiting_several(rig, [A, B], once=("another key", "digest"))
    assert json.loads(other.replies[first].body) == []
    assert rig.error(rig_run(rig, send_several(rig, [A], once=("k", "other"))))["code"] == "idempotency_key_reused"
    rig.add(B, "x")
    assert [several_given(rig, request) for request in (second, third)] == [[(B, "x")], None]


def test_pull_over_realms_that_waited_is_kept_under_its_key(rig: Rig) -> None:
    request = waiting_several(rig, [A, B], once=KEY)
    rig.now += 50
    rig.add(B, "x")
    given = rig.read(request)
    for _ in range(2):
        assert rig.ask("recall", "", [None, []], b"", KEY) == given
        assert rig.ask("recall", "", [[B, C], []], b"", KEY) == given
        assert rig.ask("recall", "", [[A], []], b"", KEY) == []
        again = rig_run(rig, send_several(rig, [A, B], once=KEY))
        assert (rig.read(again), rig.replies[again].extra) == (given, 0)
        rig.start()
    rig.now += 500  # ten minutes from the lease on
    assert rig.ask("recall", "", [None, []], b"", KEY) == given


def test_pull_over_realms_that_waited_and_is_undone_is_leased_anew(rig: Rig) -> None:
    request = waiting_several(rig, once=KEY)
    rig.add(B, "x")
    rig.ask("undo_pull", B, [rig.replies[request].extra, [["x", 0]], KEY[0]])
    assert rig.ask("recall", "", [None, []], b"", KEY) == []
    again = rig_run(rig, send_several(rig, once=KEY))
    assert several_given(rig, again) == [(B, "x")]
    assert rig.read(again)[0][1]["attempt"] == 1


def test_pull_over_realms_that_waited_in_vain_under_its_key_is_tried_anew(rig: Rig) -> None:
    request = waiting_several(rig, once=KEY, seconds=5)
    rig.run_until(NOW + 5)
    assert several_given(rig, request) == []
    assert rig.row_count() == 0
    rig.add(A, "x")
    assert several_given(rig, rig_run(rig, send_several(rig, once=KEY))) == [(A, "x")]


# -- what it costs ---------------------------------------------------------------------------------------------------

MANY = 10_000


def workers(rig: Rig, count: int) -> list[int]:
    """Pulls that wait, each of a worker of its own, and each under its own key, as clients send them."""
    requests = []
    for number in range(count):
        said = {"wait": 60 + number % 240, "worker": f"worker {number}", "lease_time": 30 + number % 7}
        requests.append(rig.send("pull", A, [], said, (f"key {number}", "digest")))
    rig.run()
    return requests


def test_wait_by_thousands_asks_few_for_each_job_that_comes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    pull = leasing.pull

    def counted(*said: Any) -> Any:
        nonlocal asked
        asked += 1
        return pull(*said)

    requests = workers(rig, MANY)
    monkeypatch.setattr(leasing, "pull", counted)
    turns = 0
    for job_id in ids(50):
        rig.send("add_job", A, [job_id], {"queue_id": 0})
        while rig.busy:
            rig.turn()
            turns += 1
    assert asked <= 2 * 50
    assert turns <= 50
    assert [rig.given(request) for request in requests[:50]] == [[job_id] for job_id in ids(50)]
    asked = 0
    rig.add(A, *ids(1_000)[50:])
    assert asked <= 951
    assert rig.given(requests[999]) == ["job 999"]
    assert rig.given(requests[1000]) is None


def test_wait_by_thousands_costs_no_turn_and_each_arrival_no_more_than_the_first(rig: Rig) -> None:
    def one_more() -> None:
        rig.send("pull", A, [], {"wait": 60, "worker": f"late {rig._last_id}"}, (f"late {rig._last_id}", "digest"))
        rig.turn()

    workers(rig, 100)
    few = calls_made(one_more)
    workers(rig, MANY)
    assert calls_made(one_more) <= few + 40
    assert not rig.busy


def test_wait_by_thousands_makes_a_job_cost_no_more_than_a_few(rig: Rig) -> None:
    def one_job() -> None:
        rig.add(A, f"job {rig._last_id}")

    workers(rig, 100)
    one_job()
    few = calls_made(one_job)
    workers(rig, MANY)
    assert calls_made(one_job) <= few + 40


def test_wait_by_thousands_ends_in_one_turn(rig: Rig) -> None:
    for _ in range(MANY):
        rig.send("pull", A, [], {"wait": 60})
    rig.run()
    assert rig.answered == []
    rig.now += 60
    assert len(rig.turn()) == MANY
    assert not rig.busy


def test_leave_by_thousands_leaves_nothing(rig: Rig) -> None:
    requests = workers(rig, 1_000)
    for request in requests[::2]:
        rig.leave(request)
    rig.turn()
    assert len(rig.answered) == 500
    rig.add(A, *ids(600))
    assert all(rig.given(request) for request in requests[1::2])
    assert len(rig.ids(A, "ready")) == 100
    assert rig.shard.next_deadline() >= rig.now + 5, "nobody waits any more"


def test_message_that_does_not_fit_is_refused_and_does_not_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    waiter = rig.waiting_pull(A)
    monkeypatch.setattr(mailboxes, "BYTES_MAX", 10)
    rig.send("pull", A, [], {"count": 1, "max_queue": -1})
    refused = rig.send("pull", A, [], {"wait": 60})
    rig.run()
    rig.turn()
    assert json.loads(rig.replies[refused].body)["code"] == "overloaded"
    assert rig.given(waiter) is None


@pytest.mark.parametrize("realms", [None, [A, B, C]])
def test_wait_for_several_realms_by_thousands_costs_no_more_than_by_a_few(rig: Rig, realms: list[str] | None) -> None:
    def come(count: int) -> None:
        for number in range(count):
            send_several(rig, realms, once=(f"key {rig._last_id}", "digest"), worker=f"worker {number}")
        rig.run()

    def one_job() -> None:
        rig.add(A, f"job {rig._last_id}")

    def one_more() -> None:
        come(1)

    def pass_by() -> None:
        rig.add("d" if realms else A, f"job {rig._last_id}", delay=1_000)

    for realm in (A, "d"):
        rig.add(realm, "there", delay=1_000)
    come(100)
    for do in (one_job, one_more, pass_by):
        do()
    few = [calls_made(do) for do in (one_job, one_more, pass_by)]
    come(MANY)
    assert not rig.busy
    many = [calls_made(do) for do in (one_job, one_more, pass_by)]
    assert all(after <= before + 60 for before, after in zip(few, many, strict=True)), (few, many)
