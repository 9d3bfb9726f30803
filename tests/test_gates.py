"""Limits and dependencies: what they hold up, and when they let pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realm_rig import LEASE, NOW, Rig, finish, ids

from restq.shards import leasing, limits, operating, sweeps
from restq.shards import queue as queues
from restq.shards.finishing import lease_id
from restq.shards.gates import Limit
from restq.shards.leasing import Pull, Wanted
from restq.shards.settings import UNLIMITED, LimitSettings


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.check()


# -- one limit by itself -------------------------------------------------------------------------------------------


def limit_of(rate: float | None = None, max_leased: int | None = None, paused: bool = False) -> Limit:
    limit = Limit(1, "tag", "t", UNLIMITED)
    limit.configure(LimitSettings(max_leased, rate, paused), NOW)
    return limit


def test_limit_of_number_is_shut_while_so_many_are_leased() -> None:
    limit = limit_of(max_leased=2)
    limit.took(NOW)
    assert not limit.is_shut
    limit.took(NOW)
    assert limit.is_shut
    limit.ended(NOW)
    assert not limit.is_shut


def test_limit_that_is_paused_is_shut_until_it_is_not() -> None:
    limit = limit_of(paused=True)
    assert limit.is_shut
    limit.configure(UNLIMITED, NOW)
    assert not limit.is_shut


@pytest.mark.parametrize(("rate", "count", "span"), [(1.0, 1, 1.0), (3.0, 3, 1.0), (0.25, 1, 4.0), (2.5, 2, 0.8)])
def test_rate_lets_so_many_pass_in_a_span(rate: float, count: int, span: float) -> None:
    limit = limit_of(rate)
    for number in range(count):
        assert not limit.is_shut
        limit.took(NOW + number / 128)
    assert limit.is_shut
    assert limit.opens_at == pytest.approx(NOW + span)
    limit.refresh(NOW + span - 0.001)
    assert limit.is_shut
    limit.refresh(NOW + span)
    assert not limit.is_shut


@given(
    st.sampled_from([0.1, 0.3, 1.0, 2.0, 3.7, 10.0]),
    st.lists(st.floats(0, 3), min_size=5, max_size=40),
    st.integers(0, 40),
)
def test_rate_is_never_exceeded_in_any_span_a_restart_between_them(
    rate: float, steps: list[float], restart: int
) -> None:
    limit, now, passed = limit_of(rate), NOW, []
    count = max(1, int(rate))
    for number, step in enumerate(steps):
        now += step
        if number == restart:
            limit = Limit(1, "tag", "t", limit.settings, limit.next_at)
        limit.refresh(now)
        if not limit.is_shut:
            limit.took(now)
            passed.append(now)
    for first, last in zip(passed, passed[count:], strict=False):
        assert last - first >= count / rate - 1e-9


def test_rate_that_was_lowered_counts_what_passed_under_it(rig: Rig) -> None:
    limit = limit_of(2.0)
    limit.took(NOW)
    limit.configure(LimitSettings(rate=0.125), NOW + 0.5)
    assert (limit.is_shut, limit.opens_at, limit.next_at) == (True, NOW + 8, NOW + 8)


def test_rate_that_was_lowered_after_its_span_forgets_what_passed() -> None:
    limit = limit_of(2.0)
    limit.took(NOW)
    limit.configure(LimitSettings(rate=0.125), NOW + 1.0)
    assert not limit.is_shut


def test_rate_that_was_raised_opens_sooner() -> None:
    limit = limit_of(0.125)
    limit.took(NOW)
    limit.configure(LimitSettings(rate=1.0), NOW + 0.5)
    assert (limit.opens_at, limit.next_at) == (NOW + 1, NOW + 1)


def test_rate_that_was_taken_away_is_forgotten() -> None:
    limit = limit_of(0.125)
    limit.took(NOW)
    limit.configure(UNLIMITED, NOW)
    assert (limit.is_shut, limit.next_at) == (False, 0.0)
    limit.configure(LimitSettings(rate=0.125), NOW)
    assert not limit.is_shut


# -- limits in a realm ---------------------------------------------------------------------------------------------


def test_pull_under_limit_of_tag_takes_what_it_lets_pass_and_others(rig: Rig) -> None:
    rig.tag_settings("t", max_leased=2)
    rig.add_all("abc", 0, ["t"])
    rig.add_all("d", 0)
    rig.add_all("e", 1, ["t"])
    assert rig.pulled() == ["a", "b", "d"]
    rig.ack(rig_lease(rig, "a"))
    assert rig.pulled() == ["c"]


def rig_lease(rig: Rig, job_id: str) -> str:
    place = rig.place(job_id)
    return lease_id(rig.realm, place)


def test_pull_under_two_limits_needs_both_open(rig: Rig) -> None:
    rig.tag_settings("t", max_leased=1)
    rig.tag_settings("u", max_leased=1)
    rig.add_all("a", 0, ["t"])
    rig.add_all("b", 0, ["t", "u"])
    rig.add_all("c", 0, ["u"])
    assert rig.pulled() == ["a", "c"]


def test_expiry_of_lease_under_full_limit_lets_the_next_pass(rig: Rig) -> None:
    rig.queue_settings(0, max_leased=1)
    rig.add_all("ab")
    assert rig.pulled() == ["a"]
    rig.now += LEASE
    assert rig.pulled() == ["b"], "it was added before the lease of the other ended"


def test_limit_set_while_jobs_are_leased_counts_them(rig: Rig) -> None:
    rig.add_all("abc", 0, ["t"])
    rig.pull(2)
    rig.tag_settings("t", max_leased=2)
    rig.queue_settings(0, max_leased=2)
    assert rig.pulled() == []
    rig.ack(rig_lease(rig, "a"))
    assert rig.pulled() == ["c"]


def test_limit_taken_away_lets_all_pass(rig: Rig) -> None:
    rig.tag_settings("t", paused=True)
    rig.add_all("abc", 0, ["t"])
    assert rig.pulled() == []
    rig.tag_settings("t")
    assert rig.realm.tags.limits == {}
    assert rig.rows("tags") == {}
    assert rig.pulled() == ["a", "b", "c"]


def test_limit_of_tag_given_later_holds_the_job(rig: Rig) -> None:
    rig.tag_settings("t", paused=True)
    rig.add_all("a")
    rig.add_all("a", 0, ["t"])
    assert rig.pulled() == []


def test_limit_stays_though_no_job_carries_its_tag(rig: Rig) -> None:
    rig.tag_settings("t", paused=True)
    rig.restart()
    rig.add_all("a", 0, ["t"])
    assert rig.pulled() == []


def test_pause_of_queue_holds_only_this_queue(rig: Rig) -> None:
    rig.queue_settings(0, paused=True)
    rig.add_all("a", 0)
    rig.add_all("ab", 1)
    assert rig.pulled() == ["a", "b"]
    rig.queue_settings(0)
    assert rig.pulled() == ["a"]


def test_rate_in_realm_lets_pass_again_by_itself(rig: Rig) -> None:
    rig.tag_settings("t", rate=2.0)
    rig.add_all("abcde", 0, ["t"])
    assert rig.pulled() == ["a", "b"]
    assert rig.realm.next_deadline() == NOW + 1
    rig.now += 1
    assert leasing.has_ready(rig.realm, Wanted()) is False, "time has not passed in the realm"
    rig.realm.advance(rig.now)
    assert leasing.has_ready(rig.realm, Wanted())
    assert rig.pulled() == ["c", "d"]


def test_rate_counts_hand_outs_that_were_released(rig: Rig) -> None:
    rig.queue_settings(0, rate=1.0)
    rig.add_all("a")
    rig.release(rig.leased())
    assert rig.pulled() == []
    rig.now += 1
    assert rig.pulled() == ["a"]


@pytest.mark.parametrize("of_tag", [True, False])
def test_rate_holds_over_a_restart(rig: Rig, of_tag: bool) -> None:
    rig.tag_settings("t", rate=0.125) if of_tag else rig.queue_settings(0, rate=0.125)
    rig.add_all("ab", 0, ["t"])
    assert rig.pulled() == ["a"]
    rig.restart()
    assert rig.pulled() == []
    assert rig.realm.next_deadline() == NOW + 8
    rig.now += 7.5
    assert rig.pulled() == []
    rig.now += 0.5
    assert rig.pulled() == ["b"]


@pytest.mark.parametrize("of_tag", [True, False])
def test_rate_that_was_lowered_holds_over_a_restart(rig: Rig, of_tag: bool) -> None:
    configure = rig.tag_settings if of_tag else rig.queue_settings
    name = "t" if of_tag else 0
    configure(name, rate=2.0)  # type: ignore[operator]
    rig.add_all("abc", 0, ["t"])
    assert rig.pulled(1) == ["a"]
    configure(name, rate=0.125)  # type: ignore[operator]
    rig.restart()
    rig.now += 7.5
    assert rig.pulled() == []


def test_number_of_leased_holds_over_a_restart(rig: Rig) -> None:
    rig.tag_settings("t", max_leased=1)
    rig.queue_settings(0, max_leased=2)
    rig.add_all("ab", 0, ["t"])
    rig.add_all("cd", 0)
    assert rig.pulled() == ["a", "c"]
    rig.restart()
    assert rig.pulled() == []
    rig.ack(rig_lease(rig, "a"))
    assert rig.pulled() == ["b"]


def test_lease_of_job_that_a_limit_holds_gives_none(rig: Rig) -> None:
    rig.tag_settings("t", paused=True)
    rig.queue_settings(1, paused=True)
    rig.add_all("a", 0, ["t"])
    rig.add_all("b", 1)
    for job_id, queue in (("a", 0), ("b", 1)):
        assert leasing.lease(rig.realm, job_id, queue, Pull(rig.realm, Wanted())) is None


def test_peek_looks_beyond_numbers_but_not_behind_what_is_shut(rig: Rig) -> None:
    rig.tag_settings("t", max_leased=1)
    rig.tag_settings("u", paused=True)
    rig.add_all("ab", 0, ["t"])
    rig.add_all("c", 0, ["u"])
    assert [place.job.job_id for place in leasing.peek(rig.realm, Wanted(9), NOW)] == ["a", "b"]


@pytest.mark.parametrize("crash_after", [0, 1, 2])
def test_limit_set_in_steps_with_a_crash_between_holds_all(rig: Rig, crash_after: int) -> None:
    rig.add_all("abcde", 0, ["t"])
    assert limits.configure_tag(rig.realm, "t", LimitSettings(paused=True))
    sweep = sweeps.rearrange(rig.realm, "t")
    for _ in range(crash_after):
        assert not sweep.step(2)
    rig.restart()
    assert rig.pulled() == []


# -- dependencies --------------------------------------------------------------------------------------------------


def test_job_after_a_tag_is_blocked_until_no_other_job_carries_it(rig: Rig) -> None:
    rig.add("a", tags=["first"])
    rig.add("b", tags=["first"])
    rig.add("later", after=("first",))
    assert rig.state("later") == "blocked"
    assert rig.pulled() == ["a", "b"]
    rig.ack(rig_lease(rig, "a"))
    assert rig.state("later") == "blocked"
    rig.ack(rig_lease(rig, "b"))
    assert rig.pulled() == ["later"]


def test_job_after_a_tag_that_nobody_carries_is_ready(rig: Rig) -> None:
    rig.add("a", after=("nobody", "nothing"))
    assert rig.state("a") == "ready"


def test_job_after_several_tags_waits_for_all(rig: Rig) -> None:
    rig.add("a", tags=["x"])
    rig.add("b", tags=["y"])
    rig.add("later", after=("x", "y"))
    rig.realm.drop(rig.realm.get_job("a"))
    assert rig.state("later") == "blocked"
    rig.realm.drop(rig.realm.get_job("b"))
    assert rig.state("later") == "ready"


def test_job_after_a_tag_that_it_carries_itself_does_not_wait_for_itself(rig: Rig) -> None:
    rig.add("a", tags=["t"], after=("t",))
    assert rig.state("a") == "ready"
    rig.add("b", tags=["t"], after=("t",))
    assert [rig.state("a"), rig.state("b")] == ["blocked", "blocked"]


def test_job_that_gets_the_tag_it_comes_after_waits_for_others_only(rig: Rig) -> None:
    rig.add("a", after=("t",))
    rig.add("a", tags=["t"])
    assert rig.state("a") == "ready"
    rig.add("b", tags=["t"])
    assert rig.state("a") == "blocked"
    rig.realm.drop(rig.realm.get_job("b"))
    assert rig.state("a") == "ready"


def test_job_is_blocked_again_when_its_tag_comes_back(rig: Rig) -> None:
    rig.add("later", after=("t",))
    rig.add("a", tags=["t"])
    assert rig.pulled() == ["a"]
    rig.nack(rig_lease(rig, "a"))
    assert rig.state("later") == "blocked"


def test_dead_job_still_blocks(rig: Rig) -> None:
    rig.settings(max_attempts=1)
    rig.add("a", tags=["t"])
    rig.add("later", after=("t",))
    rig.nack(rig.leased())
    assert [rig.state("a"), rig.state("later")] == ["dead", "blocked"]


def test_block_set_while_job_is_leased_leaves_its_lease(rig: Rig) -> None:
    rig.add("a")
    lease = rig.leased()
    rig.add("b", tags=["t"])
    rig.add("a", after=("t",))
    assert rig.state("a") == "leased"
    rig.release(lease)
    assert rig.state("a") == "blocked"


def test_dependency_holds_over_a_restart(rig: Rig) -> None:
    rig.add("a", tags=["t"])
    rig.add("later", after=("t",))
    rig.restart()
    assert rig.pulled() == ["a"]
    rig.ack(rig_lease(rig, "a"))
    assert rig.pulled() == ["later"]


def test_dependency_that_no_job_has_any_more_is_forgotten(rig: Rig) -> None:
    rig.add("later", after=("t",))
    rig.add("a", tags=["t"], after=("t",))
    assert rig.realm.tags._after
    finish(sweeps.clear_queue(rig.realm, 0))
    assert not rig.realm.tags._after


def test_limit_and_dependency_together_need_both(rig: Rig) -> None:
    rig.tag_settings("t", paused=True)
    rig.add("a", tags=["x"])
    rig.add("b", tags=["t"], after=("x",))
    assert rig.state("b") == "blocked"
    operating.cancel_job(rig.realm, "a", NOW)
    assert (rig.state("b"), rig.pulled()) == ("ready", [])
    rig.tag_settings("t")
    assert rig.pulled() == ["b"]


# -- pulls of some tags --------------------------------------------------------------------------------------------


def test_pull_of_tags_takes_what_carries_any_of_them_in_order(rig: Rig) -> None:
    rig.add("a", tags=["x"])
    rig.add("b", tags=["y"])
    rig.add("c")
    rig.add("d", tags=["x", "y"])
    assert rig.pulled(tags=("x", "y")) == ["a", "b", "d"]
    assert rig.pulled(tags=("nobody",)) == []
    assert rig.pulled() == ["c"]


def test_pull_of_no_tags_takes_none(rig: Rig) -> None:
    rig.add("a", tags=["x"])
    assert rig.pulled(tags=()) == []


def test_pull_of_more_tags_than_a_lane_keeps_heaps_for_ends_and_leaves_all_in_place(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heap that the same pull still needs is not forgotten: what it passed over would be found for ever."""
    monkeypatch.setattr(queues, "TAG_HEAPS_MAX", 2)
    tags = ("t", "u", "v", "w")
    for job_id, tag in zip("abcd", tags, strict=True):
        rig.add(job_id, 0, tags=[tag])
        rig.add(job_id, 1)
    assert rig.pulled(tags=tags) == list("abcd")
    rig.check()
    rig.pull(1, tags=("t",))
    assert len(rig.realm.queues[1].plain.tag_heaps) <= 4
    rig.pull(1, tags=("u",))
    assert len(rig.realm.queues[1].plain.tag_heaps) == 2
    assert rig.pulled() == ["c", "d"]


def test_pull_of_tags_under_limits_keeps_the_order_of_the_queue(rig: Rig) -> None:
    rig.tag_settings("x", max_leased=2)
    for number, tags in enumerate((["x"], ["y"], ["x", "y"], ["x"], ["y"])):
        rig.add(f"{number}", tags=tags)
    assert rig.pulled(tags=("x", "y")) == ["0", "1", "2", "4"]


def test_jobs_of_a_lane_that_empties_during_a_pull_are_put_back(rig: Rig) -> None:
    """Passed over in one queue as they were taken out of another, they stand behind gates that were forgotten."""
    rig.tag_settings("t", max_leased=9)
    rig.add_all("ab", 0, ["t"])
    rig.add_all("abc", 1, ["t"])
    assert rig.pulled() == ["a", "b", "c"]
    rig.check()
    assert rig.pulled() == ["a", "b"]
    assert ids(list(rig.realm.jobs.values())) == ["a", "b", "c"]


# -- what a pull takes ---------------------------------------------------------------------------------------------


def test_pull_stops_at_the_job_that_reaches_the_most_bytes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "PULL_BYTES_MAX", 5)
    for job_id in "abcd":
        rig.add(job_id, data=b"123")
    assert [rig.pulled(), rig.pulled(), rig.pulled()] == [["a", "b"], ["c", "d"], []]


def test_pull_in_slices_takes_no_more_than_it_asked_for_and_no_job_twice(rig: Rig) -> None:
    rig.add_all("abcdefg", 0)
    rig.add_all("abcdefg", 1)
    this = Pull(rig.realm, Wanted(5))
    slices = []
    while not this.is_over:
        slices.append([place.job.job_id for place in this.take(2)])
    assert slices == [["a", "b"], ["c", "d"], ["e"]]
    whole = Pull(rig.realm, Wanted(100))
    assert [place.job.job_id for place in (*whole.take(2), *whole.take(90))] == ["f", "g", "a", "b", "c", "d", "e"]


def test_limit_whose_jobs_all_are_leased_knows_no_lane(rig: Rig) -> None:
    rig.tag_settings("t", max_leased=99)
    for queue in range(5):
        rig.add_all("ab", queue, ["t"])
        rig.pull()
    assert not rig.realm.tags.limits["t"].lanes
    rig.add_all("c", 0, ["t"])
    assert len(rig.realm.tags.limits["t"].lanes) == 1


def test_rate_of_several_a_second_lets_as_many_pass_after_a_restart(rig: Rig) -> None:
    rig.tag_settings("t", rate=2.0)
    rig.add_all("abcd", 0, ["t"])
    assert rig.pulled(1) == ["a"]
    rig.restart()
    assert rig.pulled() == [], "the one that was last known may have been the last of two"
    rig.now += 1
    assert rig.pulled() == ["b", "c"]


def test_jobs_behind_many_limits_are_served_in_the_order_of_their_queue(rig: Rig) -> None:
    tags = [f"t{number}" for number in range(8)]
    for tag in tags:
        rig.tag_settings(tag, max_leased=9)
    for number in range(24):
        rig.add(f"{number:02}", tags=[tags[number * 5 % 8]] if number % 3 else [])
        rig.now += 0.25
    taken = rig.pulled(1) + rig.pulled(4) + rig.pulled(2)
    rig.nack(rig_lease(rig, "04"))
    rig.tag_settings("t0", paused=True)
    rig.tag_settings("t0", max_leased=9)
    assert taken + rig.pulled() == [*(f"{number:02}" for number in range(24)), "04"]


def test_job_that_comes_first_in_a_lane_by_a_tag_given_later_is_served_first(rig: Rig) -> None:
    rig.tag_settings("t", max_leased=9)
    rig.tag_settings("u", max_leased=9)
    for job_id, tags in (("a", []), ("b", ["u"]), ("c", ["t"])):
        rig.add(job_id, tags=tags)
        rig.now += 1
    rig.add("a", tags=["t"])
    assert rig.pulled() == ["a", "b", "c"]
