"""The roll of a realm's jobs: in order, from any key on, without those that were dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from restq.shards.changes import Keys
from restq.shards.job import FRESH, Job, Place
from restq.shards.queue import Queue
from restq.shards.roll import DEAD_COUNT_MIN, Roll

QUEUE = Queue(1, 0, 600.0)


def job_on(roll: Roll, key: int) -> Job:
    """A job that stands in a queue, added to the roll."""
    job = Job(key, f"job {key}", None, ())
    job.add(Place(0.0, key, QUEUE, job, FRESH))
    roll.append(job)
    return job


def drop(roll: Roll, job: Job) -> bool:
    """Whether others are left."""
    job.let_go()
    return roll.dropped()


def keys(roll: Roll, after: int = 0) -> list[int]:
    return [job.key for job in roll.after(after) if job is not None]


def test_after_of_empty_roll_gives_none() -> None:
    assert list(Roll().after(0)) == []


def test_after_gives_jobs_with_higher_keys_in_order() -> None:
    roll = Roll()
    for key in (3, 5, 9):
        job_on(roll, key)
    assert [keys(roll, after) for after in (0, 2, 3, 4, 9, 10)] == [[3, 5, 9], [3, 5, 9], [5, 9], [5, 9], [], []]


def test_after_gives_none_in_the_stead_of_a_dropped_job() -> None:
    roll = Roll()
    jobs = [job_on(roll, key) for key in (1, 2, 3)]
    drop(roll, jobs[1])
    assert list(roll.after(0)) == [jobs[0], None, jobs[2]]


def test_after_goes_on_while_all_of_them_are_dropped() -> None:
    roll = Roll()
    for key in (1, 2, 3):
        job_on(roll, key)
    for job in roll.after(0):
        assert job is not None
        drop(roll, job)
    assert list(roll.after(0)) == []


def test_roll_of_few_living_among_many_dropped_forgets_these() -> None:
    roll = Roll()
    kept = job_on(roll, 1)
    for key in range(2, 2 * DEAD_COUNT_MIN + 10):
        drop(roll, job_on(roll, key))
    assert keys(roll) == [kept.key]
    assert len(list(roll.after(0))) <= DEAD_COUNT_MIN + 10


def test_restore_holds_exactly_the_given_jobs() -> None:
    roll, other = Roll(), Roll()
    drop(roll, job_on(roll, 1))
    roll.restore([job_on(other, 5), job_on(other, 7)])
    assert keys(roll) == [5, 7]
    assert keys(roll, 5) == [7]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=80), st.integers(0, 80))
def test_any_calls_in_a_row_give_what_a_list_gives(calls: list[tuple[bool, int]], after: int) -> None:
    roll = Roll()
    living: list[Job] = []
    counter = Keys(1)
    for is_add, chance in calls:
        if is_add or not living:
            counter.next_key += chance % 3  # something else took these
            living.append(job_on(roll, counter.take()))
        else:
            assert drop(roll, living.pop(chance % len(living))) == bool(living)
        assert (list(roll), len(roll)) == (living, len(living))
    assert keys(roll, after) == [job.key for job in living if job.key > after]
    found = [roll.find(key) for key in range(counter.next_key + 2)]
    assert [job for job in found if job is not None] == living
    assert all(job is None or job.key == key for key, job in enumerate(found))
