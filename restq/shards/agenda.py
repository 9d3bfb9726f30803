"""What is to happen in a realm, and when: things that are due, and jobs that expire. Whoever asks knows the time."""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import Protocol

from restq.shards.heap import LazyHeap
from restq.shards.job import Job


class Due(Protocol):
    """Something that can be on an agenda, once; `due_at` is infinite while it is not."""

    due_at: float


class Agenda:
    """Things in the order of the instants for which they were put down."""

    __slots__ = ("_entries", "_last")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Due]] = []
        self._last = 0

    def put(self, thing: Due, at: float) -> None:
        """Have the thing come up at this instant, or when it was to come up before, whichever is first."""
        if at < thing.due_at:
            thing.due_at = at
            self._last += 1
            heappush(self._entries, (at, self._last, thing))

    def next_at(self) -> float:
        """When the next thing is due; infinity if there is none."""
        entries = self._entries
        while entries and entries[0][0] != entries[0][2].due_at:  # it was put down for earlier, and is done
            heappop(entries)
        return entries[0][0] if entries else math.inf

    def pop(self) -> Due:
        """Take the next thing off the agenda; there must be one."""
        self.next_at()
        thing = heappop(self._entries)[2]
        thing.due_at = math.inf
        return thing


class Expiries:
    """The jobs that expire, in the order in which they do."""

    __slots__ = ("_heap", "_jobs")

    def __init__(self) -> None:
        jobs: dict[Job, float] = {}
        self._jobs = jobs
        # Not a method of this object: the two would keep each other alive where no collector runs.
        self._heap: LazyHeap[tuple[float, int, Job]] = LazyHeap(lambda entry: jobs.get(entry[2]) == entry[0])

    def put(self, job: Job, at: float) -> None:
        """The job expires at this instant, and at no other."""
        self.discard(job)
        self._jobs[job] = at
        self._heap.push((at, job.key, job))

    def discard(self, job: Job) -> None:
        """The job does not expire any more, or never was to."""
        if self._jobs.pop(job, None) is not None:
            self._heap.discard()

    def next_at(self) -> float:
        """When the next job expires; infinity if none does."""
        first = self._heap.peek()
        return math.inf if first is None else first[0]

    def pop(self) -> Job:
        """Take the next job out; there must be one."""
        entry = self._heap.pop()
        assert entry is not None, "some job expires"
        del self._jobs[entry[2]]
        return entry[2]
