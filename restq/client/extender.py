"""What keeps the leases of running jobs alive while their workers work: one thread for all jobs of a connection.

A thread a job would be started for nothing nearly every time, as most jobs end long before a third of their lease
has passed. This one starts with the first job, sleeps until the earliest third is over, and ends when, then, no job is
held any more: so the short jobs of a worker cost a look at a dict each.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from restq.client.leased import log_extension_failure

if TYPE_CHECKING:
    from restq.client.job import Job


class Extender:
    """Holds jobs whose leases are to be extended at each third. Errors of it reach the log and the job, no worker."""

    def __init__(self) -> None:
        self._due_at: dict[Job, float] = {}
        self._wakes_at = 0.0
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    def hold(self, job: Job) -> None:
        """Extend the job's lease from now on."""
        now = time.monotonic()
        with self._changed:
            due_at = self._due_at[job] = now + job.extension_seconds(time.time())
            # A process that was forked has the thread's object, and no thread.
            if self._thread is None or not self._thread.is_alive():
                self._wakes_at = due_at
                self._thread = threading.Thread(target=self._run, name="restq-extender", daemon=True)
                self._thread.start()
            elif due_at < self._wakes_at:
                self._changed.notify()

    def drop(self, job: Job) -> None:
        """Extend it no more. One that is not held is no error."""
        with self._changed:
            self._due_at.pop(job, None)

    def close(self) -> None:
        """End the thread now if no job is held."""
        with self._changed:
            self._wakes_at = 0.0
            self._changed.notify()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            goes_on = extended(job)
            with self._changed:
                if goes_on and job in self._due_at:
                    self._due_at[job] = time.monotonic() + job.extension_seconds(time.time())
                else:
                    self._due_at.pop(job, None)

    def _next(self) -> Job | None:
        """Wait for the job whose third is over first. None where no job is held then: this thread is no more."""
        with self._changed:
            while True:
                # Where no job is held, it sleeps on until the last one's third would have been over.
                job = min(self._due_at, key=self._due_at.__getitem__, default=None)
                if job is not None:
                    self._wakes_at = self._due_at[job]
                left = self._wakes_at - time.monotonic()
                if left <= 0:
                    if job is None:
                        self._thread = None
                    return job
                self._changed.wait(left)


def extended(job: Job) -> bool:
    """Extend the job's lease; whether to go on with that. Never raises: the job may be done all the same."""
    try:
        return not job.ended and job.extend()
    except Exception as error:
        return log_extension_failure(job, error)
