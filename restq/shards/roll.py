"""Jobs in the order in which they came: those of a realm, and those that carry a tag. No rules live here."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from restq.shards.job import Job

# Dropped jobs that a roll keeps before it is built anew to be rid of them. Few, for the roll of a tag may be small and
# there may be very many of them, each with so many; below that, to build it anew is not worth its call.
DEAD_COUNT_MIN = 64
# Jobs that one drop lets go of at the beginning, at most. With one for each drop it would never catch up with what was
# dropped before its turn; with two it does, and a drop still costs next to nothing.
TRIMMED_COUNT = 2

_key: Callable[[Any], int] = attrgetter("key")  # of a job, which stands behind what was let go of


class Roll:
    """A list of jobs. Those that were dropped stay until they are the first, or outnumber the others.

    Jobs are mostly dropped in their order, so they are let go of one by one: a million at once would hold up the shard.
    A set would take four times the memory.
    """

    __slots__ = ("_dead_count", "_first", "_jobs")

    def __init__(self) -> None:
        self._jobs: list[Job | None] = []
        self._first = 0  # before it there is nothing but None, from it on nothing but jobs
        self._dead_count = 0

    def append(self, job: Job) -> None:
        """Add a job that is not there."""
        if self._dead_count > DEAD_COUNT_MIN and self._dead_count * 2 > len(self._jobs):
            self.restore([held for held in self._jobs if held is not None and held.first is not None])
        self._jobs.append(job)

    def dropped(self) -> bool:
        """One of its jobs let go of all its places. Returns whether others are left."""
        self._dead_count += 1
        jobs = self._jobs
        if self._dead_count == len(jobs):
            self.restore([])
            return False
        for _ in range(TRIMMED_COUNT):
            if (job := jobs[self._first]) is not None and job.first is not None:
                break
            jobs[self._first] = None
            self._first += 1
        return True

    def restore(self, jobs: list[Job]) -> None:
        """Hold exactly these."""
        self._jobs = list(jobs)
        self._first = 0
        self._dead_count = 0

    def find(self, key: int) -> Job | None:
        """The job of this key, for a roll whose jobs were appended by growing key."""
        jobs, first = self._jobs, self._first
        last = len(jobs) - 1
        if first > last:
            return None
        # No two have the same key: so from either end it is no further away than its key is from the key there.
        low, high = max(first, last - (_key(jobs[last]) - key)), min(last, first + key - _key(jobs[first]))
        index = bisect_left(jobs, key, low, high + 1, key=_key) if low <= high else high
        job = jobs[index] if first <= index <= high else None
        return job if job is not None and job.key == key and job.first is not None else None

    def __len__(self) -> int:
        return len(self._jobs) - self._dead_count

    def __iter__(self) -> Iterator[Job]:
        return (job for job in self.after(0) if job is not None)

    def after(self, key: int) -> Iterator[Job | None]:
        """The jobs with higher keys; None in the stead of each that was dropped. Nothing may be added meanwhile.

        For a roll whose jobs were appended by growing key, or from 0 on.
        """
        jobs = self._jobs
        start = bisect_right(jobs, key, self._first, key=_key) if key else self._first
        for index in range(start, len(jobs)):
            job = jobs[index]
            yield None if job is None or job.first is None else job
