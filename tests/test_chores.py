"""Results that a realm keeps: what is kept, how long, how many, and what tidies them up."""

from __future__ import annotations

from typing import Any

import pytest
from shard_rig import HOME_0, NOW, A, B, Rig, carry_out, ids, move, pin

from restq.shards import chores, listing, moving
from restq.shards.chores import INTERVAL_SECONDS


def keep(rig: Rig, realm: str, **keep_done: Any) -> None:
    rig.ask("configure", realm, [], {"keep_done": keep_done})


def done(rig: Rig, realm: str, *job_ids: str, queue: Any = 0, tags: Any = (), **said: Any) -> None:
    """Add these jobs, lease them and ack each."""
    rig.add(realm, *job_ids, queue=queue, tags=tags)
    for lease in rig.leases(realm, len(job_ids), queues=[queue], worker="w"):
        rig.ask("ack", realm, [], {"leases": [lease], **said})


def check(rig: Rig, *realms: str) -> None:
    """Assert that each of these realms counts what the store holds, and that it holds nothing of others."""
    counts = dict.fromkeys(realms, 0)
    keys = {rig.shard.find(realm).key: realm for realm in realms}  # type: ignore[union-attr]
    for row in rig.store._tables["results"].values():
        counts[keys[row.realm]] += 1
    assert counts == {realm: rig.shard.find(realm).result_count for realm in realms}  # type: ignore[union-attr]


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_ack_keeps_all_that_is_said_of_a_job(rig: Rig) -> None:
    keep(rig, A, count=10)
    rig.add(A, "x", queue="é", tags=["t"])
    rig.ask("nack", A, [], {"leases": rig.leases(A)})
    rig.now += 3
    lease = rig.leases(A, worker="wörker")
    rig.now += 4
    rig.ask("ack", A, [], {"leases": lease, "result": {"a": [1.5, None]}, "exit_code": 3, "output": "o" * 70_000})
    [result] = rig.list(A, "done")
    assert result == {
        "job_id": "x",
        "queue_id": "é",
        "state": "done",
        "tags": ["t"],
        "attempt": 2,
        "leased_at": NOW + 3,
        "done_at": NOW + 7,
        "worker": "wörker",
        "result": {"a": [1.5, None]},
        "exit_code": 3,
        "output": "o" * 65_536,
    }
    rig.start()
    assert rig.list(A, "done") == [result]
    check(rig, A)


def test_job_in_two_queues_leaves_a_result_of_each(rig: Rig) -> None:
    keep(rig, A, count=10)
    rig.add(A, "x")
    rig.add(A, "x", queue=1)
    for _ in range(2):
        rig.ask("ack", A, [], {"leases": rig.leases(A)})
    assert [result["queue_id"] for result in rig.list(A, "done")] == [0, 1]


@pytest.mark.parametrize("end", ["remove_job", "nack", "release", "cancel_job"])
def test_end_without_ack_leaves_no_result(rig: Rig, end: str) -> None:
    keep(rig, A, count=10)
    rig.add(A, "x")
    lease = rig.leases(A)
    rig.ask(end, A, ["x"], b"" if end.endswith("job") else {"leases": lease})
    assert rig.list(A, "done") == []


def test_realm_that_keeps_nothing_leaves_no_row(rig: Rig) -> None:
    done(rig, A, *ids(3))
    assert rig.store._tables["results"] == {}
    rig.run_until(NOW + 700)  # when the leases would have ended
    assert rig.shard.next_deadline() > NOW + 1e9, "and nothing is ever to be tidied up"


# -- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_list_of_results_goes_through_all_in_the_order_in_which_they_were_done(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(listing, "SCAN_MAX", 5)
    keep(rig, A, count=100)
    keep(rig, B, count=100)
    for number in range(7):
        done(rig, A, f"x {number}", queue=number % 2, tags=["t"] if number % 3 else [])
        done(rig, B, f"other {number}")
        done(rig, A, f"y {number}", queue="late", tags=["u", "t"])
    order = [name for number in range(7) for name in (f"x {number}", f"y {number}")]
    for _ in range(2):
        assert [job["job_id"] for job in rig.list(A, "done", limit)] == order
        assert rig.ids(A, "done", limit=limit, prefix="y") == [name for name in order if name[0] == "y"]
        assert rig.ids(A, "done", limit=limit, queue="1") == ["x 1", "x 3", "x 5"]
        assert rig.ids(A, "done", limit=limit, queue="late", prefix="x") == []
        assert rig.ids(A, "done", limit=limit, tag="t") == [name for name in order if name not in ("x 0", "x 3", "x 6")]
        assert rig.ids(A, "done", limit=limit, tag="u", queue="late") == [name for name in order if name[0] == "y"]
        assert rig.ids(A, limit=limit) == []
        rig.start()


def test_list_of_results_goes_on_after_moves_with_the_same_cursor() -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    target.shard.keys.next_key = 9_000
    keep(source, HOME_0, count=100)
    done(source, HOME_0, *ids(6))
    wanted = ["done", None, None, None, "2", None, None]
    page = source.ask("list_jobs", HOME_0, wanted)
    for here, there in ((source, target), (target, source)):
        move(here, there, HOME_0)
        done(there, HOME_0, f"in shard {there.shard.index}")
        check(there, HOME_0)
        wanted[5] = page["cursor"]
        found = [job["job_id"] for job in page["jobs"]]
        page = there.ask("list_jobs", HOME_0, wanted)
        assert [job["job_id"] for job in page["jobs"]] != found
    assert [job["job_id"] for job in page["jobs"]] == ["job 4", "job 5"]
    assert source.ids(HOME_0, "done") == [*ids(6), "in shard 1", "in shard 0"]
    assert target.store._tables["results"] == {}


# -- how long, and how many ------------------------------------------------------------------------------------------


def test_results_that_are_too_many_leave_the_latest_at_once(rig: Rig) -> None:
    keep(rig, A, count=4)
    keep(rig, B, count=2)
    for number in range(10):
        done(rig, A, f"job {number}")
        done(rig, B, f"job {number}")
        assert rig.ids(A, "done") == ids(number + 1)[-4:]
        check(rig, A, B)
    assert rig.ids(B, "done") == ["job 8", "job 9"]
    rig.add(A, *ids(30))
    rig.ask("ack", A, [], {"leases": rig.leases(A, 30)})
    assert rig.ids(A, "done") == ids(30)[-4:]
    check(rig, A, B)


def test_results_that_are_far_too_many_go_a_part_a_turn(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "ROWS_MAX", 40)
    keep(rig, A, count=1_000)
    rig.add(A, *ids(500))
    rig.ask("ack", A, [], {"leases": rig.leases(A, 500)})
    check(rig, A)
    keep_less = rig.send("configure", A, [], {"keep_done": {"count": 3}})
    turns = 0
    while rig.busy:
        rig.shard.turn(rig.now)
        assert len(rig.shard.changes.results) <= 60
        rig._hand_out(rig.shard.outbox)
        rig.turn()
        turns += 1
    assert rig.read(keep_less)["keep_done"]["count"] == 3
    assert turns >= 5
    assert rig.ids(A, "done") == ids(500)[-3:]
    check(rig, A)


def test_results_that_are_too_old_are_not_shown_and_soon_gone(rig: Rig) -> None:
    keep(rig, A, seconds=100)
    for number in range(6):
        done(rig, A, f"job {number}")
        rig.now += 20
    assert rig.ids(A, "done") == ids(6)[1:], "the first one is 120 s old"
    rig.run_until(rig.now + INTERVAL_SECONDS)
    assert len(rig.store._tables["results"]) == 4, "by now the second one is too old, too"
    check(rig, A)
    rig.run_until(NOW + 800)
    assert rig.store._tables["results"] == {}
    check(rig, A)
    assert rig.shard.next_deadline() > NOW + 1e9, "nothing is left to be tidied up"


def test_results_of_a_shard_that_started_and_rests_go_in_time(rig: Rig) -> None:
    keep(rig, A, seconds=100)
    done(rig, A, *ids(3))
    rig.start()
    rig.run_until(NOW + 200)
    assert rig.store._tables["results"] == {}
    check(rig, A)


def test_results_that_moved_in_go_in_time() -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    keep(source, HOME_0, seconds=100)
    done(source, HOME_0, *ids(3))
    move(source, target, HOME_0)
    check(target, HOME_0)
    assert len(target.store._tables["results"]) == 3
    target.run_until(NOW + 200)
    assert target.store._tables["results"] == {}
    check(target, HOME_0)


def test_results_go_by_age_and_by_count_where_both_are_set(rig: Rig) -> None:
    keep(rig, A, seconds=100, count=3)
    done(rig, A, *ids(5))
    assert rig.ids(A, "done") == ids(5)[2:]
    rig.now += 60
    done(rig, A, "later")
    assert rig.ids(A, "done") == ["job 3", "job 4", "later"]
    rig.run_until(NOW + 110)
    assert rig.ids(A, "done") == ["later"]
    check(rig, A)


def test_keep_less_or_nothing_drops_what_is_too_much(rig: Rig) -> None:
    keep(rig, A, count=100)
    done(rig, A, *ids(10))
    keep(rig, A, count=4)
    assert rig.ids(A, "done") == ids(10)[6:]
    rig.ask("configure", A, [], {"keep_done": None})
    assert rig.ids(A, "done") == []
    rig.run_until(rig.now + INTERVAL_SECONDS + 1)
    assert rig.store._tables["results"] == {}
    check(rig, A)


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("before", [{"seconds": 1}, None])
@pytest.mark.parametrize("after", [{"seconds": 60}, {"count": 5}, {"seconds": 60, "count": 5}])
def test_results_that_were_dropped_stay_so_when_more_is_kept_before_they_are_gone(
    rig: Rig, before: Any, after: Any, starts: bool
) -> None:
    keep(rig, A, seconds=1)
    done(rig, A, *ids(3))
    rig.now += 1.5 if before else 0
    rig.ask("configure", A, [], {"keep_done": before})
    assert rig.ids(A, "done") == []
    if starts:
        rig.start()
    rig.ask("configure", A, [], {"keep_done": after})
    done(rig, A, "later")
    assert rig.ids(A, "done") == ["later"]
    if starts:
        rig.start()
    rig.run_until(rig.now + INTERVAL_SECONDS + 1)
    assert rig.ids(A, "done") == ["later"]
    assert len(rig.store._tables["results"]) == 1
    check(rig, A)


def test_results_that_were_not_dropped_stay_when_more_is_kept(rig: Rig) -> None:
    keep(rig, A, seconds=1)
    done(rig, A, "old")
    rig.now += 0.75
    done(rig, A, "new")
    rig.now += 0.5
    keep(rig, A, count=5)
    rig.now += 100
    assert rig.ids(A, "done") == ["new"]


def test_results_read_one_by_one_are_few_where_nothing_is_to_go(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may have a hundred KiB: an ack in a realm that keeps its last thousand reads a handful, not a thousand."""
    keep(rig, A, count=200, seconds=10_000)
    done(rig, A, *ids(200))
    read = 0
    results = rig.store.results

    def counted(*said: Any) -> Any:
        nonlocal read
        found = results(*said)
        read += len(found)
        return found

    monkeypatch.setattr(rig.store, "results", counted)
    done(rig, A, "one more")
    rig.run_until(rig.now + 2 * INTERVAL_SECONDS)
    assert read <= 100
    assert len(rig.store._tables["results"]) == 200


# -- realms that go --------------------------------------------------------------------------------------------------


def test_delete_of_realm_takes_its_results_along(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "ROWS_MAX", 10)
    for realm in (A, B):
        keep(rig, realm, count=100)
        done(rig, realm, *ids(35))
    rig.ask("delete_realm", A)
    assert len(rig.store._tables["results"]) == 35
    check(rig, B)
    rig.add(A, "new")
    assert rig.list(A, "done") == []
    check(rig, A, B)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_start_right_after_the_delete_of_a_realm_takes_its_results_along(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    monkeypatch.setattr(chores, "ROWS_MAX", 10)
    keep(rig, A, count=100)
    done(rig, A, *ids(35))
    rig.send("delete_realm", A)
    for _ in range(turns):
        rig.turn()
    assert rig.store._tables["realms"] == {}
    assert rig.store._tables["results"] != {}
    rig.start()
    rig.run()
    assert rig.row_count() == 0


def test_full_disk_at_the_delete_of_a_realm_keeps_its_results(rig: Rig) -> None:
    keep(rig, A, count=100)
    done(rig, A, *ids(5))
    request = rig.send("delete_realm", A)
    assert rig.full_turn() == [request]
    rig.run_until(rig.now + 100)
    assert rig.ids(A, "done") == ids(5)
    check(rig, A)


def test_full_disk_at_an_ack_leaves_no_result(rig: Rig) -> None:
    keep(rig, A, count=2)
    done(rig, A, *ids(2))
    rig.add(A, "x")
    lease = rig.leases(A)
    rig.send("ack", A, [], {"leases": lease})
    rig.full_turn()
    assert rig.ids(A, "done") == ids(2)
    check(rig, A)
    rig.ask("ack", A, [], {"leases": lease})
    assert rig.ids(A, "done") == ["job 1", "x"]
    check(rig, A)


def test_move_takes_all_results_along_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "LOOK_COUNT", 7)
    source, target = Rig(0, 2), Rig(1, 2)
    keep(source, HOME_0, count=100)
    done(source, HOME_0, *ids(30), result=["r"], tags=["t"])
    before = source.list(HOME_0, "done")
    for here, there in ((source, target), (target, source)):
        move(here, there, HOME_0)
        assert here.store._tables["results"] == {}
        for _ in range(2):
            assert there.list(HOME_0, "done") == before
            check(there, HOME_0)
            there.start()


def test_results_that_fall_due_during_a_move_are_counted_once() -> None:
    source, target = Rig(0, 2), Rig(1, 2)
    keep(source, HOME_0, seconds=50)
    done(source, HOME_0, *ids(5))
    pin(source, HOME_0, 1)
    source.run_until(NOW + 60)
    carry_out(source, target)
    source.run()
    check(target, HOME_0)
    target.now = source.now
    target.run_until(NOW + 120)
    assert (target.store._tables["results"], source.store._tables["results"]) == ({}, {})
    check(target, HOME_0)
