"""The jobs of a realm in the order in which they were added, to be looked through page by page. No rules live here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from restq.shards.job import Job

DEAD_COUNT_MIN = 1024


class Roll:
    """A list of jobs by growing key. Jobs that were dropped stay in it until they outnumber the others."""

    __slots__ = ("_dead_count", "_jobs")

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._dead_count = 0

    def append(self, job: Job) -> None:
        """Add a job, whose key is above all others."""
        if self._dead_count > DEAD_COUNT_MIN and self._dead_count * 2 > len(self._jobs):
            self.restore([held for held in self._jobs if held.first is not None])
        self._jobs.append(job)

    def dropped(self) -> None:
        """One of its jobs let go of all its places."""
        self._dead_count += 1
        if self._dead_count == len(self._jobs):
            self.restore([])

    def restore(self, jobs: list[Job]) -> None:
        """Hold exactly these, in the order of their keys."""
        self._jobs = jobs
        self._dead_count = 0

    def after(self, key: int) -> Iterator[Job | None]:
        """The jobs with higher keys; None in the stead of each that was dropped. Nothing may be added meanwhile."""
        jobs = self._jobs
        start = bisect_right(jobs, key, key=lambda job: job.key) if key else 0
        for index in range(start, len(jobs)):
            job = jobs[index]
            yield None if job.first is None else job
