"""What is to happen and when: things on an agenda once each, jobs that expire."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from restq.shards.agenda import Agenda, Expiries
from restq.shards.job import Job


class Thing:
    """Something that can be due."""

    def __init__(self) -> None:
        self.due_at = math.inf


def test_agenda_with_nothing_on_it_is_never_due() -> None:
    assert Agenda().next_at() == math.inf


def test_agenda_gives_things_in_the_order_of_their_instants() -> None:
    agenda, first, second, third = Agenda(), Thing(), Thing(), Thing()
    agenda.put(second, 2.0)
    agenda.put(third, 3.0)
    agenda.put(first, 1.0)
    assert [agenda.pop(), agenda.pop(), agenda.pop()] == [first, second, third]
    assert agenda.next_at() == math.inf


def test_agenda_gives_things_of_one_instant_in_the_order_of_putting() -> None:
    agenda, things = Agenda(), [Thing(), Thing(), Thing()]
    for thing in things:
        agenda.put(thing, 1.0)
    assert [agenda.pop() for _ in things] == things


def test_agenda_holds_a_thing_for_the_earliest_of_its_instants_and_once() -> None:
    agenda, thing = Agenda(), Thing()
    for at in (5.0, 3.0, 4.0, 3.0):
        agenda.put(thing, at)
    assert (agenda.next_at(), thing.due_at) == (3.0, 3.0)
    assert agenda.pop() is thing
    assert (agenda.next_at(), thing.due_at) == (math.inf, math.inf)


def test_agenda_holds_a_thing_again_after_it_came_up() -> None:
    agenda, thing = Agenda(), Thing()
    agenda.put(thing, 3.0)
    agenda.put(thing, 1.0)
    agenda.pop()
    agenda.put(thing, 3.0)
    assert agenda.next_at() == 3.0
    assert agenda.pop() is thing
    assert agenda.next_at() == math.inf


@given(st.lists(st.tuples(st.sampled_from(["put", "put", "pop"]), st.integers(0, 3), st.integers(0, 9)), max_size=60))
def test_any_calls_in_a_row_give_what_a_scan_of_the_things_gives(calls: list[tuple[str, int, int]]) -> None:
    agenda, things = Agenda(), [Thing() for _ in range(4)]
    expected: dict[int, float] = {}
    for call, index, at in calls:
        if call == "put":
            agenda.put(things[index], float(at))
            expected[index] = min(expected.get(index, math.inf), at)
        elif expected:
            earliest = min(expected.values())
            popped = agenda.pop()
            assert isinstance(popped, Thing)
            assert expected.pop(things.index(popped)) == earliest
        assert agenda.next_at() == min(expected.values(), default=math.inf)


def job(key: int) -> Job:
    return Job(key, f"job {key}", None, ())


def test_expiries_give_jobs_in_the_order_of_their_instants() -> None:
    expiries, early, late = Expiries(), job(2), job(1)
    expiries.put(late, 9.0)
    expiries.put(early, 4.0)
    assert expiries.next_at() == 4.0
    assert [expiries.pop(), expiries.pop()] == [early, late]
    assert expiries.next_at() == math.inf


def test_expiries_hold_a_job_for_its_last_instant_only() -> None:
    expiries, only = Expiries(), job(1)
    for at in (5.0, 9.0, 7.0, 9.0, 7.0):
        expiries.put(only, at)
    assert expiries.next_at() == 7.0
    assert expiries.pop() is only
    assert expiries.next_at() == math.inf


def test_expiries_forget_a_job_that_was_discarded() -> None:
    expiries, gone, kept = Expiries(), job(1), job(2)
    expiries.put(gone, 1.0)
    expiries.put(kept, 2.0)
    expiries.discard(gone)
    expiries.discard(gone)
    assert expiries.next_at() == 2.0
    assert expiries.pop() is kept


def test_expiries_of_a_job_whose_instant_changes_often_take_no_more_memory() -> None:
    expiries, only = Expiries(), job(1)
    expiries.put(job(2), 0.0)
    for at in range(1, 2_000):
        expiries.put(only, float(at))
    assert len(expiries._heap.entries) < 200
