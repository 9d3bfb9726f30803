"""What can be seen of a realm: pages, counts, and why a job is not handed out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from realm_rig import LEASE, NOW, Rig, ids

from restq.errors import FieldInvalid
from restq.shards import leasing, listing, operating
from restq.shards.listing import Filter


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.check()


def listed(rig: Rig, limit: int = 100, **wanted: Any) -> list[str]:
    """All pages of a list, one after the other."""
    found: list[str] = []
    cursor = None
    while True:
        page, cursor = listing.list_jobs(rig.realm, Filter(**wanted), limit, cursor)
        assert len(page) <= limit
        found += ids(page)
        if cursor is None:
            return found


# -- pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_list_gives_jobs_in_the_order_of_adding_however_large_a_page(rig: Rig, limit: int) -> None:
    rig.add_all("zyx", 5)
    rig.add_all("abz", 1)
    assert listed(rig, limit) == ["z", "y", "x", "a", "b"]


def test_list_page_after_its_last_job_was_removed_goes_on_behind_it(rig: Rig) -> None:
    rig.add_all("abcde")
    page, cursor = listing.list_jobs(rig.realm, Filter(), 2, None)
    assert ids(page) == ["a", "b"]
    rig.realm.drop(rig.realm.get_job("b"))
    rig.add("f")
    page, _ = listing.list_jobs(rig.realm, Filter(), 100, cursor)
    assert ids(page) == ["c", "d", "e", "f"]


def test_list_cursor_is_good_after_a_restart(rig: Rig) -> None:
    rig.add_all("abc")
    _, cursor = listing.list_jobs(rig.realm, Filter(), 2, None)
    rig.restart()
    page, _ = listing.list_jobs(rig.realm, Filter(), 2, cursor)
    assert ids(page) == ["c"]


@pytest.mark.parametrize("tag", [None, "t"])
def test_list_looks_at_so_many_jobs_only_and_says_where_to_go_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tag: str | None
) -> None:
    monkeypatch.setattr(listing, "SCAN_MAX", 4)
    rig.add_all([f"{number:02}" for number in range(20)], 0, ["t"])
    for number in range(5, 9):
        rig.realm.drop(rig.realm.get_job(f"{number:02}"))
    page, cursor = listing.list_jobs(rig.realm, Filter(prefix="19", tag=tag), 5, None)
    assert (page, cursor is not None) == ([], True)
    assert listed(rig, 5, prefix="19", tag=tag) == ["19"]
    assert len(listed(rig, 3, tag=tag)) == 16


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "١", "9" * 19, " 1"])
def test_list_with_what_is_no_cursor_is_refused(rig: Rig, cursor: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        listing.list_jobs(rig.realm, Filter(), 5, cursor)
    assert caught.value.field == "cursor"


def every_state(rig: Rig) -> None:
    """A job in each state, by its name, in queue 0."""
    rig.settings(max_attempts=1)
    rig.add("dead", tags=["t"])
    rig.nack(rig.leased())
    rig.add("leased", tags=["t"])
    rig.leased()
    rig.add("delayed", delay=5.0, tags=["t"])
    rig.add("ready", tags=["t", "u"])
    rig.add("blocked", tags=["v"], after=("t",))


@pytest.mark.parametrize("state", listing.STATES)
def test_list_of_a_state_gives_the_jobs_in_it(rig: Rig, state: str) -> None:
    every_state(rig)
    rig.now += 1
    assert listed(rig, state=state) == [state]
    assert listed(rig, state=state, queue=1) == []


def test_list_of_state_and_queue_means_the_state_in_that_queue(rig: Rig) -> None:
    rig.add("a", 0)
    rig.add("a", 1)
    rig.leased()
    assert listed(rig, state="leased", queue=1) == []
    assert listed(rig, state="ready", queue=1) == listed(rig, state="leased", queue=0) == ["a"]


def test_list_of_prefix_and_tag_gives_what_fits_both(rig: Rig) -> None:
    rig.add("ab", tags=["t"])
    rig.add("ac")
    rig.add("b", tags=["t"])
    assert listed(rig, prefix="a", tag="t") == ["ab"]
    assert listed(rig, tag="nobody") == []


@pytest.mark.parametrize("tag", [None, "t"])
def test_list_page_begins_behind_the_last_one(rig: Rig, tag: str | None) -> None:
    rig.add_all("abc", 0, ["t"])
    _, cursor = listing.list_jobs(rig.realm, Filter(tag=tag), 1, None)
    page, _ = listing.list_jobs(rig.realm, Filter(tag=tag), 1, cursor)
    assert ids(page) == ["b"]


# -- what is shown -------------------------------------------------------------------------------------------------


def test_shown_job_tells_its_terms_and_its_queues_in_order(rig: Rig) -> None:
    for queue in ("x", 10, 2):
        rig.add("a", queue, tags=["t"], after=("z",), max_attempts=3, expires_in=50.0)
    shown = listing.shown_job(rig.realm, rig.realm.get_job("a"), rig.archive)
    assert [place.pop("queue_id") for place in shown.pop("queues")] == [2, 10, "x"]
    assert shown == {"job_id": "a", "tags": ("t",), "after": ("z",), "max_attempts": 3, "expires_at": NOW + 50}


def test_shown_place_of_leased_job_tells_of_its_lease(rig: Rig) -> None:
    rig.add("a")
    rig.pull(worker="w")
    expected = {"state": "leased", "attempt": 1, "leased_at": NOW, "lease_expires_at": NOW + LEASE, "worker": "w"}
    assert rig.shown("a") == {"queue_id": 0, **expected}


def test_shown_job_that_was_cancelled_says_so(rig: Rig) -> None:
    rig.add("a")
    rig.pull()
    operating.cancel_job(rig.realm, "a", NOW)
    assert listing.shown_job(rig.realm, rig.realm.get_job("a"), rig.archive)["cancelled"] is True


def test_shown_queue_and_tag_count_by_state(rig: Rig) -> None:
    every_state(rig)
    rig.now += 1
    rig.realm.advance(rig.now)
    queue = listing.shown_queue(rig.realm, rig.realm.queues[0])
    counts = {"ready": 1, "leased": 1, "delayed": 1, "blocked": 1, "dead": 1}
    assert {name: queue[name] for name in counts} == counts
    assert (queue["count"], queue["oldest_ready_seconds"]) == (5, 1.0)
    tag = listing.shown_tag(rig.realm, "t")
    assert {name: tag[name] for name in ("count", *counts)} == {**counts, "count": 4, "blocked": 0}
    assert listing.shown_tag(rig.realm, "v")["blocked"] == 1
    assert listing.shown_tag(rig.realm, "nobody")["count"] == 0


def test_shown_queue_without_ready_jobs_has_no_oldest(rig: Rig) -> None:
    rig.add("a", delay=5.0)
    assert listing.shown_queue(rig.realm, rig.realm.queues[0])["oldest_ready_seconds"] is None


def test_list_tags_gives_them_by_name_page_by_page(rig: Rig) -> None:
    rig.add("a", tags=["c", "a", "b2", "b1"])
    rig.tag_settings("d", paused=True)
    assert listing.list_tags(rig.realm, "", 3, None) == (["a", "b1", "b2"], "b2")
    assert listing.list_tags(rig.realm, "", 3, "b2") == (["c", "d"], None)
    assert listing.list_tags(rig.realm, "b", 2, None) == (["b1", "b2"], None)


# -- why -----------------------------------------------------------------------------------------------------------


def why(rig: Rig, job_id: str = "a") -> str:
    rig.realm.advance(rig.now)
    said = listing.explain(rig.realm, rig.realm.get_job(job_id), rig.archive)
    assert said["job_id"] == job_id
    sentence: str = said["explanation"]
    return sentence


def test_explain_of_ready_job_tells_how_many_come_before_it(rig: Rig) -> None:
    rig.add_all("xyz", 0)
    rig.add_all("ab", 1)
    assert "3 jobs are ready in queues before this one, 2 in this one" in why(rig)


def test_explain_of_leased_job_names_its_worker(rig: Rig) -> None:
    rig.add("a")
    rig.pull(worker="w")
    rig.now += 10
    assert "worker 'w' holds it for 590.0 more seconds, as attempt 1." in why(rig)
    operating.cancel_job(rig.realm, "a", rig.now)
    assert "is cancelled" in why(rig)


def test_explain_of_dead_delayed_and_blocked_job_says_what_must_happen(rig: Rig) -> None:
    every_state(rig)
    assert "dead after 1 attempts: redrive it" in why(rig, "dead")
    assert "delayed for 5.0 more seconds" in why(rig, "delayed")
    assert "comes after what is tagged 't' (4 jobs)" in why(rig, "blocked")


def test_explain_of_job_behind_a_limit_names_the_limit(rig: Rig) -> None:
    rig.tag_settings("t", max_leased=1)
    rig.add_all("xa", 0, ["t"])
    rig.leased()
    assert "held by tag 't': 1 of at most 1 jobs are leased" in why(rig)
    rig.tag_settings("t", paused=True)
    assert "held by tag 't': it is paused" in why(rig)
    rig.tag_settings("t")
    rig.queue_settings(0, rate=0.5)
    assert "jobs are ready in queues before" in why(rig)
    rig.add("y")
    leasing.pull(rig.realm, leasing.Wanted(1, tags=("t",)), rig.now)
    assert "held by queue 0: its rate of 0.5 a second lets the next one pass in 2.00 s" in why(rig, "y")


def test_explain_of_job_behind_several_limits_names_each(rig: Rig) -> None:
    rig.tag_settings("a", paused=True)
    rig.tag_settings("b", max_leased=1)
    rig.tag_settings("c", max_leased=9)
    rig.queue_settings(0, paused=True)
    rig.add("other", 1, tags=["b"])
    rig.leased()
    rig.add("x", 0, tags=["a", "b", "c"])
    assert (
        "held by tag 'a': it is paused, and by tag 'b': 1 of at most 1 jobs are leased, and by queue 0: it is paused."
        in why(rig, "x")
    )


def test_explain_gives_the_facts_beside_the_sentence(rig: Rig) -> None:
    rig.tag_settings("t", max_leased=3, rate=2.0)
    rig.add("x", tags=["t"])
    rig.add("a", tags=["t"], after=("t", "z"))
    (fact,) = listing.explain(rig.realm, rig.realm.get_job("a"), rig.archive)["queues"]
    assert fact["limits"] == [{"kind": "tag", "name": "t", "max_leased": 3, "rate": 2.0, "paused": False, "leased": 0}]
    assert fact["after"] == {"t": 1, "z": 0}
