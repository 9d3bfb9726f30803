"""What the holder of a lease may do with it, what a failure leads to, and what a lease id proves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator

import msgspec
import pytest
from realm_rig import LEASE, NOW, Rig, called

from restq.errors import DataDiffers, LeaseStale
from restq.shards import finishing, leasing, operating
from restq.shards.finishing import Outcome
from restq.shards.renumbering import FirstKeys
from restq.shards.settings import Backoff

AN_HOUR = 3600.0


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.check()


def leased(rig: Rig, job_id: str = "a") -> str:
    """The lease of a job that is alone."""
    rig.add(job_id)
    return rig.leased()


# -- lease ids -----------------------------------------------------------------------------------------------------


def test_ack_with_lease_in_force_removes_the_job(rig: Rig) -> None:
    lease = leased(rig)
    assert rig.ack(lease) == {"acked": [lease], "stale": []}
    assert not rig.exists("a")


def test_ack_of_job_in_two_queues_takes_it_out_of_one(rig: Rig) -> None:
    rig.add("a", 0)
    rig.add("a", 1)
    rig.ack(rig.leased())
    assert rig.state("a", 1) == "ready"
    assert rig.realm.place("a", 0) is None


def test_ack_of_expired_lease_that_nobody_took_counts(rig: Rig) -> None:
    lease = leased(rig)
    rig.now += LEASE + 1
    assert rig.ack(lease)["acked"] == [lease]


@pytest.mark.parametrize("use", [Rig.ack, Rig.nack, Rig.release, Rig.extend])
def test_use_of_expired_lease_whose_job_was_handed_out_again_is_stale(rig: Rig, use: Callable[..., dict]) -> None:
    first = leased(rig)
    rig.now += LEASE
    second = rig.leased()
    before = rig.shown("a")
    assert use(rig, first)["stale"] == [first]
    assert rig.shown("a") == before
    assert rig.ack(second)["acked"] == [second]


@pytest.mark.parametrize("use", [Rig.ack, Rig.nack, Rig.release])
def test_use_of_a_lease_twice_in_one_call_counts_once(rig: Rig, use: Callable[..., dict]) -> None:
    lease = leased(rig)
    done = use(rig, lease, lease)
    assert done.pop("stale") == [lease]
    assert [found for names in done.values() for found in names] == [lease]


@pytest.mark.parametrize(
    "proof", ["", "x", "1", "1-", "-1", "1-1", "0-0", "01-1", "1-2-3", " 1-2", "١-٢", "9" * 50 + "-1"]
)
def test_lease_id_that_was_never_given_is_stale(rig: Rig, proof: str) -> None:
    leased(rig)
    assert rig.ack(proof) == {"acked": [], "stale": [proof]}
    assert rig.extend(proof)["stale"] == [proof]


def test_lease_id_of_one_place_with_the_number_of_another_pull_is_stale(rig: Rig) -> None:
    rig.add_all("ab")
    first, second = rig.leased(), rig.leased()
    crossed = f"{first.split('-')[0]}-{second.split('-')[1]}"
    assert rig.ack(crossed)["stale"] == [crossed]


def test_lease_id_whose_place_is_gone_proves_none_of_its_neighbour_after_a_move(rig: Rig) -> None:
    lease = leased(rig)
    pull, key, born = lease.split("-")
    rig.realm.first_keys = FirstKeys([(0, 0), (int(key) + 1, -1000)])  # as if 1,000 numbers that followed were gone
    stale = f"{pull}-{int(key) + 5}-{born}"
    assert rig.ack(stale)["stale"] == [stale]
    assert rig.ack(lease)["acked"] == [lease]


def test_lease_id_after_restart_is_still_good_and_never_given_again(rig: Rig) -> None:
    rig.add_all("ab")
    lease = rig.leased()
    rig.restart()
    assert rig.leased() != lease
    assert rig.ack(lease)["acked"] == [lease]


def test_lease_id_after_remove_and_add_again_is_stale(rig: Rig) -> None:
    lease = leased(rig)
    rig.add("a", on_conflict="replace")
    rig.pull()
    assert rig.ack(lease)["stale"] == [lease]


def test_check_ack_refuses_where_all_are_stale_and_names_some(rig: Rig) -> None:
    lease = leased(rig)
    finishing.check_ack(rig.realm, [], NOW)
    finishing.check_ack(rig.realm, ["1-1", lease], NOW)
    with pytest.raises(LeaseStale, match=r"'1-1', '1-2', '1-3' and 1 more: nothing was done"):
        finishing.check_ack(rig.realm, ["1-1", "1-2", "1-3", "1-4"], NOW)


# -- results -------------------------------------------------------------------------------------------------------


def test_ack_in_realm_that_keeps_no_results_keeps_none(rig: Rig) -> None:
    rig.ack(leased(rig), outcome=Outcome(msgspec.Raw(b"1"), 0, "out"))
    assert rig.realm.result_count == 0
    assert not rig.rows("results")


@pytest.mark.parametrize("keep", [{"keep_seconds": 60.0}, {"keep_count": 5}])
def test_ack_in_realm_that_keeps_results_keeps_what_was_said(rig: Rig, keep: dict[str, float]) -> None:
    rig.settings(**keep)
    rig.add("a", "q", tags=["t"])
    lease = rig.leased(worker="w")
    rig.now += 5
    rig.ack(lease, outcome=Outcome(msgspec.Raw(b'{"x": [1]}'), 0, "out"))
    (row,) = rig.rows("results").values()
    assert json.loads(row.text) == {
        "job_id": "a",
        "queue_id": "q",
        "state": "done",
        "tags": ["t"],
        "attempt": 1,
        "leased_at": NOW,
        "done_at": NOW + 5,
        "worker": "w",
        "result": {"x": [1]},
        "exit_code": 0,
        "output": "out",
    }
    assert (row.job_id, row.at, rig.realm.result_count) == ("a", NOW + 5, 1)


# -- failures ------------------------------------------------------------------------------------------------------


def test_nack_without_backoff_makes_job_ready_at_the_end_of_its_queue(rig: Rig) -> None:
    rig.add_all("ab")
    rig.now += 1
    rig.nack(rig.leased())
    assert rig.pulled() == ["b", "a"]


def test_nack_counts_an_attempt_and_keeps_the_error(rig: Rig) -> None:
    lease = leased(rig)
    rig.now += 2
    rig.nack(lease, error="boom", exit_code=3)
    shown = rig.shown("a")
    assert (shown["attempt"], shown["error"], shown["exit_code"], shown["failed_at"]) == (1, "boom", 3, NOW + 2)
    (place,) = rig.pull()
    assert place.history.attempt == 2


def test_nack_with_delay_hands_job_out_after_it(rig: Rig) -> None:
    rig.settings(backoff=Backoff(AN_HOUR))
    rig.nack(leased(rig), delay=7.0)
    assert rig.shown("a")["ready_at"] == NOW + 7
    rig.now += 6.5
    assert rig.pulled() == []
    rig.now += 0.5
    assert rig.pulled() == ["a"]


def test_nack_backs_off_by_nacks_and_not_by_expiries(rig: Rig) -> None:
    rig.settings(backoff=Backoff(1.0, 10.0, 50.0, 0.0))
    rig.add("a")
    rests = []
    for _ in range(3):
        rig.leased()
        rig.now += LEASE  # an expiry before each nack
        rig.nack(rig.leased())
        rests.append(rig.place("a").at - rig.now)
        rig.now += AN_HOUR
    assert rests == [1.0, 10.0, 50.0]


def test_nack_takes_jitter_off_by_chance(rig: Rig) -> None:
    rig.chance = 0.5
    rig.settings(backoff=Backoff(8.0, jitter=0.25))
    rig.nack(leased(rig))
    assert rig.place("a").at == NOW + 7.0


def test_nack_backs_off_as_the_queue_says_before_the_realm(rig: Rig) -> None:
    rig.settings(backoff=Backoff(100.0))
    rig.queue_settings(0, backoff=Backoff(1.0))
    rig.nack(leased(rig))
    assert rig.place("a").at == NOW + 1


@pytest.mark.parametrize(
    ("of_job", "of_queue", "of_realm", "expected"),
    [(1, 2, 3, 1), (0, 2, 3, 2), (0, 0, 3, 3), (3, 1, 1, 3), (0, 3, 1, 3)],
)
def test_nack_of_last_attempt_is_dead_by_job_then_queue_then_realm(
    rig: Rig, of_job: int, of_queue: int, of_realm: int, expected: int
) -> None:
    rig.settings(max_attempts=of_realm)
    rig.queue_settings(0, max_attempts=of_queue)
    rig.add("a", max_attempts=of_job)
    for attempt in range(1, expected + 1):
        assert rig.state("a") == "ready"
        lease = rig.leased()
        done = rig.nack(lease, error=f"{attempt}")
        assert done["dead" if attempt == expected else "nacked"] == [lease]
    assert rig.shown("a") | {"failed_at": 0} == {
        "queue_id": 0,
        "state": "dead",
        "attempt": expected,
        "ready_at": NOW,
        "error": f"{expected}",
        "failed_at": 0,
    }
    assert rig.pulled() == []


def test_nack_and_expiry_both_count_as_attempts(rig: Rig) -> None:
    rig.settings(max_attempts=2)
    rig.add("a")
    rig.leased()
    rig.now += LEASE
    assert rig.state("a") == "ready"
    lease = rig.leased()
    assert rig.nack(lease)["dead"] == [lease]
    assert rig.shown("a")["attempt"] == 2


def test_expiry_of_last_attempt_is_dead_and_says_whose_lease_it_was(rig: Rig) -> None:
    rig.settings(max_attempts=1)
    rig.add("a")
    rig.pull(worker="w")
    rig.now += LEASE + 5
    shown = rig.shown("a")
    assert (shown["state"], shown["attempt"]) == ("dead", 1)
    assert (shown["error"], shown["failed_at"]) == ("the lease of worker 'w' ran out", NOW + LEASE)


def test_crash_limit_counts_expiries_and_not_nacks(rig: Rig) -> None:
    rig.settings(crash_limit=2)
    rig.add("a")
    for _ in range(3):
        rig.nack(rig.leased())
    for _ in range(2):
        assert rig.state("a") == "ready"
        rig.leased()
        rig.now += LEASE
    assert rig.state("a") == "dead"
    assert rig.shown("a")["attempt"] == 5


def dead_by_expiry(rig: Rig) -> str:
    """The lease that a job died of."""
    rig.settings(crash_limit=1)
    lease = leased(rig)
    rig.now += LEASE
    assert rig.state("a") == "dead"
    return lease


def test_ack_with_the_lease_that_a_job_died_of_counts(rig: Rig) -> None:
    lease = dead_by_expiry(rig)
    assert rig.ack(lease)["acked"] == [lease]
    assert not rig.rows("failures")


def test_nack_with_the_lease_that_a_job_died_of_counts_it_once(rig: Rig) -> None:
    lease = dead_by_expiry(rig)
    assert rig.nack(lease, error="boom")["nacked"] == [lease]
    shown = rig.shown("a")
    assert (shown["state"], shown["attempt"], shown["error"]) == ("ready", 1, "boom")


def test_nack_with_the_lease_that_a_job_died_of_may_kill_it_anew(rig: Rig) -> None:
    lease = dead_by_expiry(rig)
    rig.settings(max_attempts=1)
    assert rig.nack(lease, error="boom")["dead"] == [lease]
    shown = rig.shown("a")
    assert (shown["state"], shown["attempt"], shown["error"]) == ("dead", 1, "boom")


@pytest.mark.parametrize("use", [Rig.release, Rig.extend])
def test_release_and_extend_of_the_lease_that_a_job_died_of_undo_its_death(rig: Rig, use: Callable[..., dict]) -> None:
    lease = dead_by_expiry(rig)
    assert use(rig, lease)["stale"] == []
    shown = rig.shown("a")
    assert shown["state"] == ("ready" if use is Rig.release else "leased")
    assert shown["attempt"] == (0 if use is Rig.release else 1)
    assert "error" not in shown
    assert not rig.rows("failures")


def test_undo_pull_of_the_lease_that_a_job_died_of_leaves_no_failure(rig: Rig) -> None:
    lease = dead_by_expiry(rig)
    assert leasing.undo_pull(rig.realm, int(lease.split("-")[0]), [("a", 0)], rig.now) == 1
    assert rig.state("a") == "ready"
    assert not rig.rows("failures")


def test_redrive_voids_the_lease_that_a_job_died_of(rig: Rig) -> None:
    lease = dead_by_expiry(rig)
    assert operating.redrive(rig.realm, rig.place("a"))
    assert rig.ack(lease)["stale"] == [lease]
    assert (rig.shown("a")["attempt"], rig.rows("failures")) == (0, {})


# -- release and extend --------------------------------------------------------------------------------------------


def test_release_counts_no_attempt(rig: Rig) -> None:
    lease = leased(rig)
    assert rig.release(lease) == {"released": [lease], "stale": []}
    assert (rig.state("a"), rig.shown("a")["attempt"]) == ("ready", 0)


def test_release_with_delay_hands_job_out_after_it(rig: Rig) -> None:
    rig.release(leased(rig), delay=5.0)
    assert (rig.state("a"), rig.place("a").at) == ("delayed", NOW + 5)


def test_release_keeps_what_failed_before(rig: Rig) -> None:
    rig.nack(leased(rig), error="boom")
    rig.release(rig.leased())
    shown = rig.shown("a")
    assert (shown["attempt"], shown["error"]) == (1, "boom")


@pytest.mark.parametrize(("lease_time", "expected"), [(None, LEASE), (5.0, 5.0), (AN_HOUR, AN_HOUR)])
def test_extend_holds_from_now_on(rig: Rig, lease_time: float | None, expected: float) -> None:
    lease = leased(rig)
    rig.now += 10
    assert rig.extend(lease, lease_time=lease_time)["extended"] == {lease: NOW + 10 + expected}
    rig.now += expected - 0.5
    assert rig.state("a") == "leased"
    rig.now += 0.5
    assert rig.state("a") == "ready"


def test_extend_of_expired_lease_that_nobody_took_brings_it_back(rig: Rig) -> None:
    lease = leased(rig)
    rig.now += LEASE + 1
    assert lease in rig.extend(lease)["extended"]
    assert (rig.state("a"), rig.shown("a")["attempt"], rig.pulled()) == ("leased", 1, [])


def test_extend_by_no_time_ends_the_lease_as_any_end(rig: Rig) -> None:
    rig.settings(crash_limit=1)
    lease = leased(rig)
    assert rig.extend(lease, lease_time=0.0)["extended"] == {lease: NOW}
    assert rig.state("a") == "dead"


def test_extend_of_expired_lease_without_room_under_the_limit_is_stale(rig: Rig) -> None:
    rig.queue_settings(0, max_leased=1)
    rig.add_all("ab")
    first = rig.leased()
    rig.now += LEASE
    rig.leased()
    assert rig.extend(first)["stale"] == [first]
    assert rig.state("a") == "ready"


def test_extend_of_lease_in_force_under_a_full_limit_is_done(rig: Rig) -> None:
    rig.queue_settings(0, max_leased=1)
    rig.add_all("ab")
    lease = rig.leased()
    assert lease in rig.extend(lease)["extended"]


# -- cancelled and expired jobs ------------------------------------------------------------------------------------


def cancelled(rig: Rig) -> str:
    lease = leased(rig)
    assert operating.cancel_job(rig.realm, "a", rig.now) is False
    return lease


def test_extend_of_cancelled_job_says_so_and_extends_nothing(rig: Rig) -> None:
    lease = cancelled(rig)
    rig.now += 5
    assert rig.extend(lease) == {"extended": {}, "stale": [], "cancelled": [lease]}
    assert rig.place("a").at == NOW + LEASE


@pytest.mark.parametrize("use", [Rig.ack, Rig.nack, Rig.release])
def test_end_of_lease_of_cancelled_job_removes_it(rig: Rig, use: Callable[..., dict]) -> None:
    lease = cancelled(rig)
    done = use(rig, lease)
    assert done.pop("stale") == []
    assert done.pop("dead", []) == []
    assert not rig.exists("a")
    assert not rig.rows("failures")


def test_expiry_of_lease_of_cancelled_job_removes_it(rig: Rig) -> None:
    cancelled(rig)
    rig.now += LEASE
    assert not rig.exists("a")


def test_expiry_of_lease_of_cancelled_job_while_a_task_held_the_realm_removes_it_after_a_restart(rig: Rig) -> None:
    """The shard's time goes on, and is noted, while the realm's stands still."""
    cancelled(rig)
    rig.now += LEASE
    rig.restart()
    assert not rig.exists("a")


def test_nack_of_cancelled_job_at_its_last_attempt_removes_it(rig: Rig) -> None:
    rig.settings(max_attempts=1)
    lease = cancelled(rig)
    assert rig.nack(lease)["nacked"] == [lease]
    assert not rig.exists("a")


@pytest.mark.parametrize("on_conflict", ["merge", "error"])
def test_exchange_may_add_what_its_nack_of_a_cancelled_job_frees(rig: Rig, on_conflict: str) -> None:
    rig.settings(max_jobs=1)
    rig.add("a", data=b"1")
    lease = rig.leased()
    operating.cancel_job(rig.realm, "a", rig.now)
    again = {"job_id": "a", "queue_id": 0, "data": 2, "on_conflict": on_conflict}
    called(rig.realm, "exchange", body={"nack": {"leases": [lease]}, "add": [again]}, now=rig.now)
    assert (rig.state("a"), rig.realm.get_job("a").data) == ("ready", b"2")
    lease = rig.leased()
    operating.cancel_job(rig.realm, "a", rig.now)
    body = {"nack": {"leases": [lease]}, "add": [{"job_id": "b", "queue_id": 0}]}
    called(rig.realm, "exchange", body=body, now=rig.now)
    assert list(rig.realm.jobs) == ["b"]


def test_exchange_may_add_what_its_nack_of_an_expired_job_frees(rig: Rig) -> None:
    rig.add("a", 0, data=b"1", expires_in=5.0)
    rig.add("a", 1)
    leases = [rig.leased(), rig.leased()]
    rig.now += 5
    again = {"job_id": "a", "queue_id": 0, "data": 2}
    with pytest.raises(DataDiffers):
        called(rig.realm, "exchange", body={"nack": {"leases": leases[:1]}, "add": [again]}, now=rig.now)
    body = {"ack": {"leases": leases[:1]}, "nack": {"leases": leases[1:]}, "add": [again]}
    called(rig.realm, "exchange", body=body, now=rig.now)
    assert (rig.state("a"), rig.realm.place("a", 1)) == ("ready", None)


def test_exchange_may_not_add_anew_what_its_nack_leaves_there(rig: Rig) -> None:
    rig.add("a", data=b"1")
    lease = rig.leased()
    body = {"nack": {"leases": [lease]}, "add": [{"job_id": "a", "queue_id": 0, "data": 2}]}
    with pytest.raises(DataDiffers):
        called(rig.realm, "exchange", body=body, now=rig.now)
    assert rig.state("a") == "leased"


def test_expiry_of_job_takes_it_out_of_queues_that_it_is_not_leased_out_of(rig: Rig) -> None:
    rig.add("a", 0, expires_in=5.0)
    rig.add("a", 1, delay=AN_HOUR)
    lease = rig.leased()
    rig.now += 5
    assert rig.state("a") == "leased"
    assert rig.realm.place("a", 1) is None
    assert lease in rig.extend(lease)["extended"]
    rig.release(lease)
    assert not rig.exists("a")


def test_expiry_of_job_at_the_very_instant_takes_it(rig: Rig) -> None:
    rig.add("a", expires_in=5.0)
    rig.now += 5
    assert rig.pulled() == []
    assert not rig.exists("a")


def test_add_of_expired_job_to_another_queue_while_leased_hands_it_out_there(rig: Rig) -> None:
    rig.add("a", 0, expires_in=5.0)
    lease = rig.leased()
    rig.now += 5
    rig.add("a", 1)
    assert rig.pulled() == ["a"]
    rig.release(lease)
    assert rig.state("a", 0) == "ready"


def test_add_of_expired_job_with_more_time_while_leased_keeps_it(rig: Rig) -> None:
    rig.add("a", 0, expires_in=5.0)
    lease = rig.leased()
    rig.now += 5
    rig.add("a", 0, expires_in=5.0)
    rig.release(lease)
    assert rig.state("a") == "ready"
    rig.now += 5
    assert not rig.exists("a")


def test_expiry_of_lease_after_the_time_of_its_job_removes_it(rig: Rig) -> None:
    rig.add("a", expires_in=5.0)
    rig.leased(lease_time=10.0)
    rig.now += 9.5
    assert rig.state("a") == "leased"
    rig.now += 0.5
    assert not rig.exists("a")


def dead_and_expired(rig: Rig) -> None:
    """`a` died in queue 0, and its time is over since; it was delayed in queue 1."""
    rig.add("a", 0, expires_in=5.0, max_attempts=1)
    rig.add("a", 1, delay=AN_HOUR)
    rig.nack(rig.leased())
    rig.now += 5


def test_expiry_of_dead_job_leaves_it_dead_with_how_it_failed(rig: Rig) -> None:
    dead_and_expired(rig)
    assert (rig.state("a"), rig.shown("a")["error"]) == ("dead", "boom")
    assert rig.realm.place("a", 1) is None
    rig.restart()
    rig.now += 5
    assert rig.state("a") == "dead"


def test_expiry_of_job_after_its_lease_ran_out_for_good_leaves_it_dead_over_a_restart(rig: Rig) -> None:
    rig.add("a", expires_in=5.0, max_attempts=1)
    rig.leased(lease_time=4.0)
    rig.commit()
    rig.now += 20
    rig.restart()
    assert rig.state("a") == "dead"


def test_redrive_of_expired_job_takes_its_expiry_away(rig: Rig) -> None:
    dead_and_expired(rig)
    assert rig.state("a") == "dead"
    assert operating.redrive(rig.realm, rig.place("a"))
    rig.restart()
    rig.now += AN_HOUR
    assert rig.pulled() == ["a"]
    assert rig.realm.get_job("a").terms.expires_at == 0.0


def test_move_of_dead_expired_job_takes_its_expiry_away(rig: Rig) -> None:
    dead_and_expired(rig)
    operating.move_job(rig.realm, "a", 0, 2, rig.now)
    rig.now += AN_HOUR
    assert rig.state("a", 2) == "ready"


def test_add_of_dead_expired_job_to_another_queue_hands_it_out_there(rig: Rig) -> None:
    dead_and_expired(rig)
    rig.add("a", 2)
    rig.now += AN_HOUR
    assert (rig.state("a"), rig.state("a", 2)) == ("dead", "ready")


def test_late_nack_of_dead_expired_job_leaves_it_dead(rig: Rig) -> None:
    rig.add("a", expires_in=5.0, max_attempts=1)
    lease = rig.leased(lease_time=1.0)
    rig.now += 10
    assert rig.nack(lease, error="late")["dead"] == [lease]
    assert (rig.state("a"), rig.shown("a")["error"]) == ("dead", "late")


def test_release_of_dead_expired_job_takes_it(rig: Rig) -> None:
    rig.add("a", expires_in=5.0, max_attempts=1)
    lease = rig.leased(lease_time=1.0)
    rig.now += 10
    assert rig.release(lease)["released"] == [lease]
    assert not rig.exists("a")
    assert not rig.rows("failures")


@pytest.mark.parametrize("delay", [0.0, 10.0])
def test_expiry_of_job_while_the_shard_was_down_removes_it(rig: Rig, delay: float) -> None:
    rig.add("a", expires_in=5.0, delay=delay)
    rig.commit()
    rig.now += 20
    rig.restart()
    assert not rig.exists("a")


def test_removal_of_job_that_would_expire_leaves_nothing_to_come(rig: Rig) -> None:
    rig.add("a", expires_in=5.0)
    assert rig.realm.next_deadline() == NOW + 5
    rig.realm.drop(rig.realm.get_job("a"))
    assert rig.realm.next_deadline() == math.inf
