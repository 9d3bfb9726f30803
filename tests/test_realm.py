"""What a realm promises, a sentence at a time, and what its operations cost."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from realm_looks import left_over
from realm_rig import LEASE, NOW, called, finish, pairs

from restq.errors import (
    DataDiffers,
    FieldInvalid,
    JobLeased,
    JobNotFound,
    JobNotInQueue,
    QueueNotFound,
    RestqError,
    TagNotFound,
)
from restq.names import QueueId
from restq.shards import adding, leasing, operating, sweeps
from restq.shards.changes import Changes, Keys
from restq.shards.commands.jobs import remove
from restq.shards.commands.settings import status
from restq.shards.data import INLINE_BYTES_MAX, Large
from restq.shards.heap import DEAD_COUNT_MIN
from restq.shards.job import FRESH, Place
from restq.shards.leasing import Pull, Wanted
from restq.shards.realm import Realm

made: list[Realm] = []


@pytest.fixture(autouse=True)
def _realms_hold_together() -> Iterator[None]:
    """After every test all realms in it must be what their jobs say."""
    made.clear()
    yield
    for realm in made:
        realm.check()


def new_realm() -> Realm:
    changes = Changes()
    realm = Realm(1, "tried", LEASE, Keys(2), changes)
    made.append(realm)
    return realm


@pytest.fixture
def realm() -> Realm:
    return new_realm()


def add(realm: Realm, job_id: str, queue: QueueId = 0, now: float = NOW, **said: Any) -> None:
    add_all(realm, [(job_id, queue, said.get("data"), tuple(said.get("tags", ())))], now)


def add_all(realm: Realm, jobs: list[tuple[str, QueueId, bytes | None, tuple[str, ...]]], now: float = NOW) -> None:
    adding.add(realm, [(*job, None) for job in jobs], now)


def pull(realm: Realm, count: int, max_queue: QueueId | None = None, now: float = NOW) -> list[Place]:
    return leasing.pull(realm, Wanted(count, max_queue), now)


def peek(realm: Realm, count: int, now: float = NOW) -> list[Place]:
    return leasing.peek(realm, Wanted(count), now)


def pulled(realm: Realm, count: int = 100, max_queue: QueueId | None = None, now: float = NOW) -> list[str]:
    return [place.job.job_id for place in pull(realm, count, max_queue, now)]


def undo_pull(realm: Realm, places: list[Place]) -> int:
    return leasing.undo_pull(realm, places[0].history.lease, pairs(places), realm.clock)


def set_lease_time(realm: Realm, queue: QueueId, seconds: float) -> None:
    called(realm, "configure_2013", body={"queue_lease_time": [queue, seconds]})


def tag_count(realm: Realm, tag: str) -> int:
    count: int = called(realm, "get_tag_status", tag)["count"]
    return count


def rows(realm: Realm) -> int:
    return len(realm.changes)


# -- jobs and queues -----------------------------------------------------------------------------------------------


def test_status_of_realm_never_written_to_is_empty_and_makes_nothing(realm: Realm) -> None:
    assert status(realm) == {"total_jobs": 0, "total_tags": 0, "queues": {}}
    assert pull(realm, 5) == []
    assert peek(realm, 5) == []
    remove(realm, ["a"])
    assert (realm.exists, rows(realm)) == (False, 0)


def test_add_of_first_job_makes_the_realm(realm: Realm) -> None:
    add(realm, "a")
    assert realm.exists
    assert status(realm) == {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1}}


def test_pull_of_queue_gives_jobs_by_enqueue_time(realm: Realm) -> None:
    for number, job_id in enumerate(["c", "a", "b"]):
        add(realm, job_id, now=NOW + number)
    assert pulled(realm, now=NOW + 3) == ["c", "a", "b"]


def test_pull_of_jobs_added_at_one_instant_gives_them_in_order_of_adding(realm: Realm) -> None:
    add_all(realm, [(job_id, 0, None, ()) for job_id in "zyxab"], NOW)
    assert pulled(realm) == list("zyxab")


def test_pull_serves_integer_queues_numerically_and_before_strings_by_code_point(realm: Realm) -> None:
    queues: list[QueueId] = ["b", 10, "é", 2, -1, "B", 0]
    for number, queue in enumerate(queues):
        add(realm, f"in {queue}", queue, now=NOW - number)
    assert pulled(realm) == ["in -1", "in 0", "in 2", "in 10", "in B", "in b", "in é"]
    assert list(status(realm)["queues"]) == ["-1", "0", "2", "10", "B", "b", "é"]


@pytest.mark.parametrize(
    ("last", "expected"), [(-1, []), (0, ["0"]), (5, ["0", "2"]), (10, ["0", "2", "10"]), ("a", ["0", "2", "10", "a"])]
)
def test_pull_up_to_a_queue_leaves_those_after_it_alone(realm: Realm, last: QueueId, expected: list[str]) -> None:
    for queue in ("b", "a", 10, 2, 0):
        add(realm, str(queue), queue)
    assert pulled(realm, max_queue=last) == expected


@pytest.mark.parametrize("count", [0, -1])
def test_pull_of_no_jobs_leases_none(realm: Realm, count: int) -> None:
    add(realm, "a")
    assert pull(realm, count) == []
    assert pulled(realm) == ["a"]


def test_pull_of_some_leaves_the_rest(realm: Realm) -> None:
    add_all(realm, [(job_id, 0, None, ()) for job_id in "abcde"], NOW)
    assert [pulled(realm, 2), pulled(realm, 2), pulled(realm, 2), pulled(realm, 2)] == [
        ["a", "b"],
        ["c", "d"],
        ["e"],
        [],
    ]


def test_pull_never_gives_a_job_twice_though_it_is_ready_in_two_queues(realm: Realm) -> None:
    for queue in (0, 1, "x"):
        add(realm, "a", queue)
    add(realm, "b", 1)
    assert pairs(pull(realm, 10)) == [("a", 0), ("b", 1)]
    assert pairs(pull(realm, 10)) == [("a", 1)]
    assert pairs(pull(realm, 10)) == [("a", "x")]
    assert pull(realm, 10) == []


# -- leases --------------------------------------------------------------------------------------------------------


def test_pull_before_lease_expiry_does_not_give_job_again(realm: Realm) -> None:
    add(realm, "a")
    assert pulled(realm) == ["a"]
    assert pulled(realm, now=NOW + LEASE - 0.001) == []


def test_pull_after_lease_expiry_hands_job_out_again(realm: Realm) -> None:
    add(realm, "a")
    assert pulled(realm) == ["a"]
    assert pulled(realm, now=NOW + LEASE) == ["a"]


def test_pull_after_lease_expiry_orders_by_the_end_of_the_lease(realm: Realm) -> None:
    add(realm, "early")
    assert pulled(realm) == ["early"]
    add(realm, "before the end", now=NOW + LEASE - 1)
    add(realm, "after the end", now=NOW + LEASE + 1)
    assert pulled(realm, now=NOW + LEASE + 2) == ["before the end", "early", "after the end"]


def test_pull_of_job_leased_from_one_queue_gives_it_from_another(realm: Realm) -> None:
    add(realm, "a", 0)
    add(realm, "a", 1)
    assert pairs(pull(realm, 1)) == [("a", 0)]
    assert pairs(pull(realm, 1, now=NOW + 10)) == [("a", 1)]
    assert pairs(pull(realm, 9, now=NOW + LEASE)) == [("a", 0)]
    assert pairs(pull(realm, 9, now=NOW + LEASE + 10)) == [("a", 1)]


def test_add_of_leased_job_neither_renews_nor_breaks_its_lease(realm: Realm) -> None:
    add(realm, "a", data=b"1")
    assert pulled(realm) == ["a"]
    add(realm, "a", data=b"1", tags=["t"], now=NOW + LEASE - 1)
    assert pulled(realm, now=NOW + LEASE - 1) == []
    assert pulled(realm, now=NOW + LEASE) == ["a"]


def test_add_of_waiting_job_does_not_send_it_to_the_back(realm: Realm) -> None:
    add(realm, "a")
    add(realm, "b", now=NOW + 1)
    add(realm, "a", now=NOW + 2)
    assert pulled(realm, now=NOW + 3) == ["a", "b"]


def test_pull_at_time_before_the_last_one_keeps_leases(realm: Realm) -> None:
    add(realm, "a")
    assert pulled(realm, now=NOW + 100) == ["a"]
    assert pulled(realm, now=NOW - 500) == []
    add(realm, "b", now=NOW - 500)
    assert pulled(realm, now=NOW - 400) == ["b"]


def test_default_lease_time_holds_for_queues_made_from_then_on(realm: Realm) -> None:
    add(realm, "old", 0)
    called(realm, "configure_2013", body={"default_lease_time": 10.0})
    add(realm, "new", 1)
    assert pulled(realm) == ["old", "new"]
    assert pulled(realm, now=NOW + 10) == ["new"]
    assert pulled(realm, now=NOW + LEASE) == ["old", "new"]


def test_queue_lease_time_makes_the_queue(realm: Realm) -> None:
    set_lease_time(realm, "x", 5)
    assert realm.exists
    assert status(realm)["queues"] == {"x": 0}
    add(realm, "a", "x")
    assert pulled(realm) == ["a"]
    assert pulled(realm, now=NOW + 5) == ["a"]


def test_queue_lease_time_leaves_given_leases_as_long_as_they_are(realm: Realm) -> None:
    add(realm, "a")
    assert pulled(realm) == ["a"]
    set_lease_time(realm, 0, 5)
    assert pulled(realm, now=NOW + LEASE - 1) == []
    assert pulled(realm, now=NOW + LEASE) == ["a"]
    assert pulled(realm, now=NOW + LEASE + 5) == ["a"]


def test_queue_lease_time_of_zero_hands_job_out_with_every_pull(realm: Realm) -> None:
    set_lease_time(realm, 0, 0)
    add_all(realm, [("a", 0, None, ()), ("b", 0, None, ())], NOW)
    assert [pulled(realm), pulled(realm)] == [["a", "b"], ["a", "b"]]
    operating.move_job(realm, "a", 0, 1, NOW)


@pytest.mark.parametrize("seconds", [-1, -0.001, 1e10])
def test_lease_time_out_of_limits_is_refused_and_changes_nothing(realm: Realm, seconds: float) -> None:
    of_default, of_queue = {"default_lease_time": seconds}, {"queue_lease_time": [0, seconds]}
    good: dict[str, Any] = {"default_lease_time": 5.0, "queue_lease_time": [0, 5.0]}
    for body in (of_default, of_queue, good | of_default, good | of_queue):
        with pytest.raises(FieldInvalid, match="lease_time"):
            called(realm, "configure_2013", body=body)
    assert (realm.default_lease_time, realm.exists, rows(realm)) == (LEASE, False, 0)


def test_peek_gives_what_pull_would_and_leases_nothing(realm: Realm) -> None:
    for queue in (1, 0):
        for job_id in "abc":
            add(realm, job_id, queue)
    noted = rows(realm)
    seen = pairs(peek(realm, 4))
    assert seen == pairs(peek(realm, 4))
    assert rows(realm) == noted
    assert pairs(pull(realm, 4)) == seen == [("a", 0), ("b", 0), ("c", 0)]


def test_lease_of_ready_job_takes_it_out_of_that_queue_only(realm: Realm) -> None:
    for queue in (0, 1):
        add_all(realm, [("a", queue, None, ()), ("b", queue, None, ())], NOW)
    this = Pull(realm, Wanted())
    place = leasing.lease(realm, "b", 0, this)
    assert place is not None
    assert (place.at, place.history.lease) == (NOW + LEASE, this.number)
    assert leasing.lease(realm, "b", 0, this) is None
    assert pairs(pull(realm, 9, 0)) == [("a", 0)]
    assert pairs(pull(realm, 9)) == [("a", 1), ("b", 1)]


def test_lease_that_ends_at_once_keeps_the_order(realm: Realm) -> None:
    """The place before the lease and the one after it differ in nothing but the lease."""
    set_lease_time(realm, 0, 0)
    add_all(realm, [(job_id, 0, None, ()) for job_id in "abc"], NOW)
    assert leasing.lease(realm, "a", 0, Pull(realm, Wanted())) is not None
    assert leasing.lease(realm, "b", 0, Pull(realm, Wanted())) is not None
    assert pulled(realm) == ["a", "b", "c"]


def test_lease_of_what_is_not_there_gives_none(realm: Realm) -> None:
    add(realm, "a", 0)
    this = Pull(realm, Wanted())
    assert leasing.lease(realm, "b", 0, this) is None
    assert leasing.lease(realm, "a", 1, this) is None


def test_undo_pull_makes_jobs_ready_ahead_of_their_queue(realm: Realm) -> None:
    add_all(realm, [(job_id, 0, None, ()) for job_id in "abcd"], NOW)
    assert pulled(realm, 1) == ["a"]
    second = pull(realm, 2)
    assert undo_pull(realm, second) == 2
    assert all(place.history is FRESH for place in realm.get_job("b").places)
    assert pulled(realm) == ["b", "c", "d"]


def test_undo_pull_that_is_stale_leaves_the_next_lease_alone(realm: Realm) -> None:
    add(realm, "a")
    (first,) = pull(realm, 1)
    assert pulled(realm, now=NOW + LEASE) == ["a"]
    assert undo_pull(realm, [first]) == 0
    assert pulled(realm, now=NOW + LEASE) == []


def test_undo_pull_of_jobs_that_are_gone_undoes_none(realm: Realm) -> None:
    add(realm, "a")
    (place,) = pull(realm, 1)
    realm.drop(realm.get_job("a"))
    assert leasing.undo_pull(realm, place.history.lease, [("a", 0), ("never", 5)], NOW) == 0


# -- data ----------------------------------------------------------------------------------------------------------


def test_add_with_same_data_written_otherwise_is_the_same_job(realm: Realm) -> None:
    add(realm, "a", data=b'{"x": 1, "y": [true]}')
    add(realm, "a", 1, data=b'{"y":[true],"x":1.0}')
    assert realm.get_job("a").data == b'{"x": 1, "y": [true]}', "as it came first"
    assert status(realm) == {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1, "1": 1}}


def test_add_with_other_data_is_refused_and_changes_nothing(realm: Realm) -> None:
    add(realm, "a", data=b"1")
    noted = rows(realm)
    with pytest.raises(ValueError, match="already exists with other data"):
        add(realm, "a", 1, data=b"2", tags=["t"])
    assert rows(realm) == noted
    assert status(realm) == {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1}}


def test_add_without_data_says_nothing_about_it(realm: Realm) -> None:
    add(realm, "a", data=b'"a file"')
    add(realm, "a", 1, tags=["later"])
    assert realm.get_job("a").data == b'"a file"'
    assert tag_count(realm, "later") == 1


def test_add_with_data_to_job_that_has_none_is_refused(realm: Realm) -> None:
    add(realm, "a")
    with pytest.raises(DataDiffers):
        add(realm, "a", data=b"0")
    assert realm.get_job("a").data is None


def test_add_of_many_with_one_bad_applies_none_and_names_its_index(realm: Realm) -> None:
    add(realm, "old", data=b"1")
    noted = rows(realm)
    with pytest.raises(DataDiffers, match=r"jobs\[1\]"):
        add_all(realm, [("new", 0, None, ("t",)), ("old", 5, b"2", ())], NOW)
    assert rows(realm) == noted
    assert status(realm) == {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1}}


def test_add_of_many_that_differ_among_themselves_applies_none(realm: Realm) -> None:
    with pytest.raises(DataDiffers, match=r"jobs\[2\]"):
        add_all(realm, [("a", 0, b"1", ()), ("b", 0, b"1", ()), ("a", 1, b"2", ())], NOW)
    assert (realm.exists, status(realm)["total_jobs"], rows(realm)) == (False, 0, 0)


def test_add_of_one_job_several_times_in_a_body_is_one_job(realm: Realm) -> None:
    add_all(realm, [("a", 0, b"1", ("x",)), ("a", 1, None, ("y",)), ("a", 0, b"1.0", ("x", "z"))], NOW)
    job = realm.get_job("a")
    assert job.tags == ("x", "y", "z")
    assert [place.queue.queue_id for place in job.places] == [0, 1]


def test_add_of_large_data_keeps_only_its_digest_in_memory(realm: Realm) -> None:
    text = b'"' + b"x" * INLINE_BYTES_MAX + b'"'
    add(realm, "a", data=text)
    job = realm.get_job("a")
    assert isinstance(job.data, Large)
    assert job.inline_bytes == 0
    assert realm.changes.payloads[job.key] == text
    add(realm, "a", 1, data=b" " + text)
    with pytest.raises(DataDiffers):
        add(realm, "a", data=text.replace(b"x", b"y"))
    realm.drop(realm.get_job("a"))
    assert realm.changes.payloads[job.key] is None


# -- removing ------------------------------------------------------------------------------------------------------


def test_remove_job_takes_it_out_of_every_queue_and_tag(realm: Realm) -> None:
    for queue in (0, 1, "x"):
        add(realm, "a", queue, tags=["t", "u"])
    assert pulled(realm, 1) == ["a"]
    realm.drop(realm.get_job("a"))
    assert status(realm) == {"total_jobs": 0, "total_tags": 0, "queues": {"0": 0, "1": 0, "x": 0}}
    assert pulled(realm, now=NOW + LEASE) == []


def test_remove_job_that_is_not_there_says_so(realm: Realm) -> None:
    with pytest.raises(KeyError, match="no job 'a'"):
        realm.drop(realm.get_job("a"))


def test_remove_jobs_passes_over_what_is_not_there(realm: Realm) -> None:
    add_all(realm, [("a", 0, None, ()), ("b", 0, None, ())], NOW)
    remove(realm, ["a", "never", "a"])
    assert pulled(realm) == ["b"]


def test_add_after_remove_is_another_job(realm: Realm) -> None:
    add(realm, "a", data=b"1", tags=["t"])
    assert pulled(realm) == ["a"]
    realm.drop(realm.get_job("a"))
    add(realm, "a", data=b"2")
    assert realm.get_job("a").tags == ()
    assert pulled(realm) == ["a"], "without the lease of the one before"


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_clear_queue_removes_jobs_that_stand_in_no_other(realm: Realm, step: int) -> None:
    add_all(realm, [(f"only {number}", 0, None, ("t",)) for number in range(5)], NOW)
    add_all(realm, [(f"both {number}", queue, None, ("t",)) for number in range(4) for queue in (0, 1)], NOW)
    assert len(pull(realm, 3, 0)) == 3
    work = sweeps.clear_queue(realm, 0)
    assert (finish(work, step) > 1) == (step < 1000)
    assert work.counts["removed"] == 5
    assert status(realm) == {"total_jobs": 4, "total_tags": 1, "queues": {"0": 0, "1": 4}}
    assert tag_count(realm, "t") == 4
    assert realm.task is None


def test_clear_queue_that_does_not_exist_is_refused(realm: Realm) -> None:
    with pytest.raises(QueueNotFound) as caught:
        sweeps.clear_queue(realm, 0)
    assert isinstance(caught.value, ValueError)
    assert not realm.exists


def test_clear_queue_keeps_its_lease_time(realm: Realm) -> None:
    set_lease_time(realm, 0, 5.0)
    add(realm, "a")
    finish(sweeps.clear_queue(realm, 0), 10)
    add(realm, "b")
    assert pulled(realm) == ["b"]
    assert pulled(realm, now=NOW + 5) == ["b"]


@pytest.mark.parametrize("step", [1, 2, 1000])
def test_remove_tagged_jobs_removes_every_carrier(realm: Realm, step: int) -> None:
    add_all(realm, [(f"with {number}", number % 2, None, ("t", "u")) for number in range(5)], NOW)
    add_all(realm, [("without", 0, None, ("u",))], NOW)
    work = sweeps.of_tag(realm, "remove_tagged_jobs", "t")
    finish(work, step)
    assert work.counts["removed"] == 5
    assert tag_count(realm, "u") == 1
    assert pulled(realm) == ["without"]
    with pytest.raises(TagNotFound):
        sweeps.of_tag(realm, "remove_tagged_jobs", "t")


@pytest.mark.parametrize("step", [1, 1000])
def test_delete_realm_leaves_no_row(realm: Realm, step: int) -> None:
    text = b'"' + b"x" * INLINE_BYTES_MAX + b'"'
    add_all(realm, [(job_id, queue, text, ("t",)) for job_id in "abc" for queue in (0, 1)], NOW)
    finish(sweeps.delete(realm), step)
    assert not realm.exists
    changes = realm.changes
    for table in (changes.realms, changes.queues, changes.jobs, changes.places, changes.payloads):
        assert table
        assert not any(table.values())


# -- tags ----------------------------------------------------------------------------------------------------------


def test_tag_exists_while_a_job_carries_it(realm: Realm) -> None:
    add(realm, "a", tags=["t"])
    add(realm, "b", tags=["t"])
    assert (tag_count(realm, "t"), status(realm)["total_tags"]) == (2, 1)
    realm.drop(realm.get_job("a"))
    assert tag_count(realm, "t") == 1
    realm.drop(realm.get_job("b"))
    assert status(realm)["total_tags"] == 0
    with pytest.raises(KeyError, match="tagged 't'"):
        tag_count(realm, "t")


def test_add_of_job_that_exists_adds_its_tags(realm: Realm) -> None:
    add(realm, "a", tags=["b"])
    add(realm, "a", tags=["a", "c"])
    assert realm.get_job("a").tags == ("a", "b", "c")
    assert [tag_count(realm, tag) for tag in "abc"] == [1, 1, 1]


def test_tag_counts_leased_jobs_too(realm: Realm) -> None:
    add(realm, "a", tags=["t"])
    assert pulled(realm) == ["a"]
    assert tag_count(realm, "t") == 1


def test_get_tagged_jobs_gives_them_in_order_of_adding(realm: Realm) -> None:
    for job_id in ("z", "a", "m"):
        add(realm, job_id, tags=["t"])
    add(realm, "other")
    operating.move_job(realm, "z", 0, 1, NOW)
    assert list(called(realm, "get_tagged_jobs", "t")) == ["z", "a", "m"]


def test_get_of_unknown_job_or_tag_is_a_key_error(realm: Realm) -> None:
    with pytest.raises(JobNotFound) as no_job:
        realm.get_job("a")
    with pytest.raises(TagNotFound) as no_tag:
        called(realm, "get_tagged_jobs", "t")
    assert isinstance(no_job.value, KeyError)
    assert isinstance(no_tag.value, KeyError)


# -- moving --------------------------------------------------------------------------------------------------------


def test_move_job_puts_it_at_the_end_of_the_other_queue(realm: Realm) -> None:
    add(realm, "a", 0)
    add(realm, "b", 1, now=NOW + 1)
    operating.move_job(realm, "a", 0, 1, NOW + 2)
    assert status(realm)["queues"] == {"0": 0, "1": 2}
    assert pulled(realm, now=NOW + 3) == ["b", "a"]


def test_move_job_makes_the_other_queue(realm: Realm) -> None:
    add(realm, "a", 0)
    operating.move_job(realm, "a", 0, "new", NOW)
    assert status(realm)["queues"] == {"0": 0, "new": 1}


def test_move_job_that_is_in_the_other_queue_just_leaves_the_first(realm: Realm) -> None:
    add(realm, "a", 1)
    assert pulled(realm) == ["a"]
    add(realm, "a", 0)
    operating.move_job(realm, "a", 0, 1, NOW)
    assert status(realm)["queues"] == {"0": 0, "1": 1}
    assert pulled(realm) == [], "its lease there is as it was"
    assert pulled(realm, now=NOW + LEASE) == ["a"]


def test_move_job_to_its_own_queue_changes_nothing(realm: Realm) -> None:
    add(realm, "a")
    add(realm, "b", now=NOW + 1)
    operating.move_job(realm, "a", 0, 0, NOW + 2)
    assert pulled(realm, now=NOW + 2) == ["a", "b"]


def test_move_job_whose_lease_ended_is_done(realm: Realm) -> None:
    add(realm, "a")
    assert pulled(realm) == ["a"]
    operating.move_job(realm, "a", 0, 1, NOW + LEASE)
    assert status(realm)["queues"] == {"0": 0, "1": 1}


def test_move_job_leased_out_of_another_queue_is_done(realm: Realm) -> None:
    add(realm, "a", 0)
    assert pulled(realm) == ["a"]
    add(realm, "a", 1)
    operating.move_job(realm, "a", 1, 2, NOW)
    assert status(realm)["queues"] == {"0": 1, "1": 0, "2": 1}


@pytest.mark.parametrize(
    ("job_id", "from_queue", "error"),
    [("never", 0, JobNotInQueue), ("a", 9, JobNotInQueue), ("a", 1, JobNotInQueue), ("leased", 0, JobLeased)],
)
def test_move_job_that_cannot_be_is_a_value_error(
    realm: Realm, job_id: str, from_queue: QueueId, error: type[RestqError]
) -> None:
    add(realm, "leased")
    assert pulled(realm) == ["leased"]
    add(realm, "a", 0)
    add(realm, "b", 1)
    noted = rows(realm)
    with pytest.raises(error) as caught:
        operating.move_job(realm, job_id, from_queue, 5, NOW)
    assert isinstance(caught.value, ValueError)
    assert rows(realm) == noted
    assert status(realm)["queues"] == {"0": 2, "1": 1}


# -- costs ---------------------------------------------------------------------------------------------------------


class Counted(float):
    """An instant that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: float) -> bool:
        Counted.compared += 1
        return float.__lt__(self, other)

    def __le__(self, other: float) -> bool:
        Counted.compared += 1
        return float.__le__(self, other)

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return float.__eq__(self, other)

    def __add__(self, other: float) -> Counted:
        return Counted(float.__add__(self, other))

    __hash__ = float.__hash__


@pytest.fixture
def leased_out() -> Realm:
    """A realm whose 100,000 jobs are all leased, by counted instants."""
    realm = new_realm()
    made.clear()  # to check it takes longer than to try it
    add_all(realm, [(f"job {number}", 0, None, ("t",)) for number in range(100_000)], Counted(NOW))
    assert len(pull(realm, 100_000, now=Counted(NOW))) == 100_000
    Counted.compared = 0
    return realm


def test_pull_with_many_leased_jobs_touches_none_of_them(leased_out: Realm) -> None:
    assert pull(leased_out, 100, now=Counted(NOW + 1)) == []
    assert peek(leased_out, 100, now=Counted(NOW + 1)) == []
    assert Counted.compared < 20


def test_pull_of_one_ready_job_among_many_leased_costs_little(leased_out: Realm) -> None:
    add(leased_out, "ready", now=Counted(NOW + 1))
    assert pulled(leased_out, 5, now=Counted(NOW + 1)) == ["ready"]
    assert Counted.compared < 200, "a few times log n"


def test_tag_count_and_removal_of_one_among_many_leased_cost_little(leased_out: Realm) -> None:
    assert tag_count(leased_out, "t") == 100_000
    leased_out.drop(leased_out.get_job("job 50000"))
    assert tag_count(leased_out, "t") == 99_999
    assert status(leased_out)["queues"] == {"0": 99_999}
    assert Counted.compared < 20


def entries(realm: Realm) -> int:
    return sum(len(heap.entries) for queue in realm.queues.values() for heap in (queue.plain.heap, queue.waiting))


def test_heaps_after_removals_hold_at_most_twice_what_is_there(realm: Realm) -> None:
    for number in range(3_000):
        add(realm, f"job {number}", number % 2)
        if number % 3 == 0:
            pull(realm, 1)
        if number >= 100:
            realm.drop(realm.get_job(f"job {number - 100}"))
        assert entries(realm) <= 2 * len(realm.jobs) + 4 * DEAD_COUNT_MIN


def test_heaps_after_many_undone_pulls_hold_at_most_twice_what_is_there(realm: Realm) -> None:
    add_all(realm, [(f"job {number}", 0, None, ()) for number in range(100)], NOW)
    for _ in range(500):
        places = pull(realm, 10)
        assert undo_pull(realm, places) == 10
        assert entries(realm) <= 2 * 100 + 2 * DEAD_COUNT_MIN


def work_through(realm: Realm, number: int) -> None:
    """A bit of everything, errors included, after which the realm is as empty as before."""
    now = NOW + number
    jobs: list[Any] = [(f"{number} {index}", index % 3, b'{"a":[1]}', ("t", f"t{index}")) for index in range(8)]
    add_all(realm, jobs, now)
    places = pull(realm, 3, now=now)
    undo_pull(realm, places)
    peek(realm, 5, now=now)
    add(realm, f"{number} 0", "other", now=now)
    operating.move_job(realm, f"{number} 1", 1, 2, now)
    pull(realm, 2, now=now)
    for refuse in (
        lambda: add(realm, f"{number} 0", data=b"2"),
        lambda: operating.move_job(realm, "never", 0, 1, now),
        lambda: operating.move_job(realm, f"{number} 0", 0, 1, now),
        lambda: realm.get_job("never"),
        lambda: tag_count(realm, "never"),
        lambda: called(realm, "configure_2013", body={"default_lease_time": -1}),
        lambda: sweeps.clear_queue(realm, "never"),
    ):
        with pytest.raises(RestqError):
            refuse()
    remove(realm, [f"{number} 7", "never"])
    finish(sweeps.clear_queue(realm, 2), 2)
    finish(sweeps.of_tag(realm, "remove_tagged_jobs", "t"), 2)
    assert status(realm)["total_jobs"] == 0
    realm.changes.take()


def test_operations_of_all_kinds_leave_nothing_to_the_garbage_collector(realm: Realm) -> None:
    def garbage(count: int) -> int:
        gc.collect()
        for number in range(count):
            work_through(realm, number)
        return left_over()

    gc.disable()
    try:
        garbage(5)  # what is made once
        few, many = garbage(10), garbage(200)
    finally:
        gc.enable()
    assert many <= few + 20


def test_delete_of_realm_leaves_nothing_to_the_garbage_collector() -> None:
    def garbage(count: int) -> int:
        gc.collect()
        for _ in range(count):
            realm = new_realm()
            add_all(realm, [(f"job {index}", index % 2, None, ("t",)) for index in range(50)], NOW)
            pull(realm, 10)
            finish(sweeps.delete(realm), 7)
            made.clear()
            del realm
        return left_over()

    gc.disable()
    try:
        garbage(1)
        few, many = garbage(2), garbage(40)
    finally:
        gc.enable()
    assert many <= few + 20
