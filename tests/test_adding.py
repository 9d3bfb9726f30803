"""Adding jobs that exist already, jobs with wishes, and jobs for which there is no room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from realm_rig import NOW, Rig, ids

from restq.errors import DataDiffers, JobExists, QueueFull
from restq.shards import adding, finishing
from restq.shards.adding import Wishes
from restq.shards.data import INLINE_BYTES_MAX

LARGE = b'"' + b"x" * INLINE_BYTES_MAX + b'"'


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.check()


def in_order(rig: Rig) -> list[str]:
    return ids([job for job in rig.realm.roll.after(0) if job is not None])


# -- wishes --------------------------------------------------------------------------------------------------------


def test_add_with_delay_is_handed_out_after_it_by_its_instant(rig: Rig) -> None:
    rig.add("late", delay=9.0)
    rig.add("soon", delay=5.0)
    rig.now += 4.5
    assert rig.pulled() == []
    assert rig.realm.next_deadline() == NOW + 5
    rig.now += 0.5
    assert rig.pulled() == ["soon"]
    rig.now += 60
    rig.add("now")
    assert rig.pulled() == ["late", "now"]


def test_add_with_instant_in_the_past_is_ready_as_of_now(rig: Rig) -> None:
    rig.add("a")
    rig.now += 1
    rig.add("b", at=5.0)
    rig.add("c")
    assert rig.pulled() == ["a", "b", "c"]
    assert rig.place("b").history.leased_at == NOW + 1


def test_add_of_job_that_exists_says_nothing_about_what_it_does_not_name(rig: Rig) -> None:
    rig.add("a", after=("t",), max_attempts=2, expires_in=50.0)
    rig.add("a", 1)
    rig.add("a", 2, max_attempts=3)
    terms = rig.realm.get_job("a").terms
    assert (terms.after, terms.max_attempts, terms.expires_at) == (("t",), 3, NOW + 50)
    rig.add("a", after=(), expires_in=60.0)
    terms = rig.realm.get_job("a").terms
    assert (terms.after, terms.max_attempts, terms.expires_at) == ((), 3, NOW + 60)
    rig.restart()
    assert rig.realm.get_job("a").terms == terms


def test_add_with_delay_of_job_that_stands_in_the_queue_leaves_it_there(rig: Rig) -> None:
    rig.add("a")
    rig.add("a", delay=50.0)
    assert rig.pulled() == ["a"]


def test_add_with_other_expiry_expires_at_the_new_one(rig: Rig) -> None:
    rig.add("a", expires_in=5.0)
    rig.add("a", expires_in=50.0)
    rig.add("b", expires_in=50.0)
    rig.add("b", expires_in=5.0)
    rig.now += 5
    assert [rig.exists("a"), rig.exists("b")] == [True, False]
    rig.now += 45
    assert not rig.exists("a")


# -- conflicts -----------------------------------------------------------------------------------------------------


def test_add_that_ignores_what_exists_changes_nothing(rig: Rig) -> None:
    rig.add("a", data=b"1")
    rig.commit()
    rig.add("a", "new", tags=["t"], data=b"2", on_conflict="ignore")
    assert list(rig.realm.queues) == [0]
    assert not len(rig.changes)
    rig.add("b", on_conflict="ignore")
    assert rig.state("b") == "ready"


def test_add_that_replaces_what_exists_is_a_new_job(rig: Rig) -> None:
    rig.add("a", 0, tags=["t"], data=LARGE, max_attempts=2)
    rig.add("a", 1)
    rig.add("b")
    lease = finishing.lease_id(rig.realm, rig.pull(1)[0])
    rig.add("a", 2, data=b"2", on_conflict="replace")
    assert (in_order(rig), "t" in rig.realm.tags) == (["b", "a"], False)
    job = rig.realm.get_job("a")
    assert (job.data, job.terms.max_attempts, len(job.places)) == (b"2", 0, 1)
    assert rig.ack(lease)["stale"] == [lease]
    assert rig.rows("payloads") == {}


@pytest.mark.parametrize("on_conflict", ["replace", "error", "ignore", "merge"])
def test_add_of_new_job_whatever_a_conflict_would_do_adds_it(rig: Rig, on_conflict: str) -> None:
    rig.add("a", on_conflict=on_conflict)
    assert rig.state("a") == "ready"


def test_add_that_refuses_what_exists_names_it_and_changes_nothing(rig: Rig) -> None:
    rig.add("a")
    rig.commit()
    jobs = [("b", 0, None, (), None), ("a", 0, None, (), Wishes(on_conflict="error"))]
    with pytest.raises(JobExists, match=r"^jobs\[1\]: job 'a' already exists$"):
        adding.add(rig.realm, jobs, NOW)
    with pytest.raises(JobExists, match=r"^job 'a' already exists$"):
        rig.add("a", on_conflict="error")
    assert (in_order(rig), len(rig.changes)) == (["a"], 0)


def test_add_of_one_job_twice_in_a_batch_meets_itself(rig: Rig) -> None:
    error, replace = Wishes(on_conflict="error"), Wishes(on_conflict="replace")
    with pytest.raises(JobExists):
        adding.add(rig.realm, [("a", 0, None, (), error), ("a", 1, None, (), error)], NOW)
    with pytest.raises(DataDiffers):
        adding.add(rig.realm, [("a", 0, b"1", (), None), ("a", 0, b"2", (), replace), ("a", 0, b"1", (), None)], NOW)
    adding.add(rig.realm, [("a", 0, b"1", ("t",), None), ("a", 1, b"2", (), replace), ("a", 2, b"2", (), None)], NOW)
    job = rig.realm.get_job("a")
    assert (job.data, job.tags, [place.queue.queue_id for place in job.places]) == (b"2", (), [1, 2])


# -- room ----------------------------------------------------------------------------------------------------------


def test_add_beyond_the_most_jobs_is_refused_whole(rig: Rig) -> None:
    rig.settings(max_jobs=2)
    rig.add_all("a")
    rig.commit()
    with pytest.raises(QueueFull, match="holds 1 jobs and takes no more than 2"):
        rig.add_all("bc")
    assert (in_order(rig), len(rig.changes)) == (["a"], 0)
    rig.add_all("ab", 1)
    rig.add_all("ab", 2)
    assert in_order(rig) == ["a", "b"]


def test_add_of_known_job_to_a_realm_beyond_its_limit_is_done(rig: Rig) -> None:
    rig.add_all("abc")
    rig.settings(max_jobs=1, max_bytes=1)
    rig.add("a", 1, tags=["t"])
    assert len(rig.realm.get_job("a").places) == 2
    with pytest.raises(QueueFull):
        rig.add("d")


def test_add_beyond_the_most_bytes_is_refused(rig: Rig) -> None:
    rig.settings(max_bytes=10)
    rig.add("a", data=b"12345")
    with pytest.raises(QueueFull, match="holds 6 bytes and takes no more than 10"):
        rig.add("b", data=b"1234")
    rig.add("b", data=b"123")
    assert rig.realm.data_bytes == 10


def test_add_that_replaces_counts_what_it_replaces_as_gone(rig: Rig) -> None:
    rig.settings(max_jobs=1, max_bytes=10)
    rig.add("a", data=b"12345")
    rig.add("a", data=b"123456789", on_conflict="replace")
    with pytest.raises(QueueFull):
        rig.add("a", data=b"1234567890", on_conflict="replace")
    assert rig.realm.data_bytes == 10


def test_check_of_add_counts_jobs_that_are_as_good_as_gone_as_gone(rig: Rig) -> None:
    rig.settings(max_jobs=1, max_bytes=10)
    rig.add("a", data=b"12345")
    adding.check_add(rig.realm, [("b", 0, b"123456789", (), None)], gone={"a"})
    adding.check_add(rig.realm, [("a", 0, b"123456789", (), None)], gone={"a"})
    for job_id in "ab":
        with pytest.raises(QueueFull):
            adding.check_add(rig.realm, [(job_id, 0, b"1234567890", (), None)], gone={"a"})


def test_bytes_of_large_and_of_foreign_data_are_the_same_after_a_restart(rig: Rig) -> None:
    rig.add("ü", data='"äöü"'.encode())
    rig.add("l", data=LARGE)
    before = rig.realm.data_bytes
    rig.restart()
    assert rig.realm.data_bytes == before == 1 + 8 + 1 + len(LARGE)
    for job_id in ("ü", "l"):
        rig.realm.drop(rig.realm.get_job(job_id))
    assert rig.realm.data_bytes == 0
