"""A job in the hands of a worker, and what is to be done with its lease. No input or output, no clock.

`restq.client.Job` and `restq.aio.Job` are this, and send the calls that `JobCalls` describes.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from restq.client.call import Call
from restq.errors import LeaseStale

if TYPE_CHECKING:
    from restq.client.lease_calls import LeaseCalls

LOG = logging.getLogger("restq.client")

ERROR_BYTES_MAX = 4096  # of a traceback, its end: what was raised, and where
# Leases of any length are extended this often at least: then a worker whose clock is behind is in time, too.
EXTENSION_SECONDS_MAX = 200.0
# Where the length of a lease is only known as its end less this machine's time: a clock that is ahead asks no oftener.
EXTENSION_SECONDS_MIN = 1.0


class Leased:
    """A job that a pull has leased: what it is, and what became of its lease as far as this client knows.

    `realm` is the realm's name. `lease_expires_at` is in seconds since the epoch, by the server's clock; an
    extension moves it.
    """

    def __init__(self, reply: Mapping[str, Any], realm: str, lease_time: float | None) -> None:
        self.realm = realm
        self.job_id: str = reply["job_id"]
        self.queue_id: int | str = reply["queue_id"]
        self.data: Any = reply["data"]
        self.tags: list[str] = reply["tags"]
        self.attempt: int = reply["attempt"]
        self.lease_id: str = reply["lease_id"]
        self.lease_expires_at: float = reply["lease_expires_at"]
        self.lease_time = lease_time  # as the pull asked for it; None is its queue's
        self.keeps_going = False  # whether a `with` block keeps a failure from the loop around it
        self._is_ended = False
        self._is_lost = False
        self._is_cancelled = False

    def __repr__(self) -> str:
        return f"<restq job {self.job_id[:60]!r} of realm {self.realm!r}, attempt {self.attempt}>"

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled the job while it was leased. The work may stop: it will not be handed out again.

        Known after an extension, the background's or one of your own.
        """
        return self._is_cancelled

    @property
    def lost(self) -> bool:
        """Whether the lease is void without this worker having ended it: the job may be running somewhere else."""
        return self._is_lost and not self._is_ended

    @property
    def ended(self) -> bool:
        """Whether this worker ended the lease, with ack, nack or release: nothing is left to do."""
        return self._is_ended

    def extension_seconds(self, now: float) -> float:
        """How long from now until the lease is to be extended: a third of it. `now` is in seconds since the epoch."""
        if self.lease_time is not None:
            return min(self.lease_time / 3, EXTENSION_SECONDS_MAX)
        return min(max((self.lease_expires_at - now) / 3, EXTENSION_SECONDS_MIN), EXTENSION_SECONDS_MAX)

    def learn(self, reply: Mapping[str, Any]) -> None:
        """What the reply to an ack, nack, release or extend says of this lease."""
        if any(self.lease_id in reply.get(name, ()) for name in ("acked", "nacked", "dead", "released")):
            self._is_ended = True
        if self.lease_id in reply.get("stale", ()):
            self._is_lost = True
        if self.lease_id in reply.get("cancelled", ()):
            self._is_cancelled = True
        self.lease_expires_at = reply.get("extended", {}).get(self.lease_id, self.lease_expires_at)

    def learn_stale(self) -> None:
        """The server said that the lease is void."""
        self._is_lost = True

    def settle(self, error: BaseException | None, failure: Exception | None) -> bool:
        """Whether a `with` block keeps its `error` to itself. `failure` is that of the call that ended the lease.

        Otherwise `error` goes on as in any `with`, and where there is none, `failure` is raised; not where the job
        was cancelled, and so is gone with its lease. A job of `consume(keep_going=True)` logs both instead. What is no
        Exception, such as KeyboardInterrupt, always goes on.
        """
        if self.cancelled and isinstance(failure, LeaseStale):
            failure = None
        if error is not None and failure is not None:
            error.add_note(f"restq could not say so to the server: {failure}")
        if error is not None:
            if not self.keeps_going or not isinstance(error, Exception):
                return False
            LOG.error("%r failed", self, exc_info=error)
            return True
        if failure is not None:
            if not self.keeps_going:
                raise failure
            LOG.warning("%r was done, but restq could not say so to the server: %s", self, failure)
        return False


class JobCalls:
    """What can be done with one lease. Each raises LeaseStale, a ValueError, where it is void."""

    def __init__(self, job: Leased, calls: LeaseCalls[Any]) -> None:
        self._job = job
        self._calls = calls

    def ack(self, result: Any = None, exit_code: int | None = None, output: str | None = None) -> Call[None]:
        """The job is done, and gone.

        `result`, any JSON value, the exit code and the last 64 KiB of `output` are kept where the realm does so.
        """
        return self._calls.ack(self._job, result, exit_code, output).then(self._check)

    def nack(self, error: str | None = None, exit_code: int | None = None, delay: float | None = None) -> Call[None]:
        """The job failed. The last 4 KiB of `error` are kept.

        It is handed out again after its queue's backoff, or after `delay` seconds; after its last attempt it is dead.
        """
        return self._calls.nack(self._job, error, exit_code, delay).then(self._check)

    def release(self, delay: float | None = None) -> Call[None]:
        """Give the job back, after `delay` seconds: no attempt is counted."""
        return self._calls.release(self._job, delay).then(self._check)

    def extend(self, lease_time: float | None = None) -> Call[bool]:
        """Begin the lease anew, for `lease_time` seconds or as long as at the pull. False: the job was cancelled."""
        seconds = self._job.lease_time if lease_time is None else lease_time
        call = self._calls.extend(self._job, seconds).then(self._check)
        return call.then(lambda _: not self._job.cancelled)

    def ending(self, error: BaseException | None) -> Call[None] | None:
        """What the end of a `with` block sends: ack, or nack for an exception; None where the block ended the lease.

        A worker that was interrupted did not fail: what is no Exception, such as KeyboardInterrupt, releases the job.
        """
        if self._job.ended or (error is not None and self._job.lost):
            return None
        if error is None:
            return self.ack()
        if isinstance(error, Exception):
            return self.nack(traceback_tail(error))
        return self.release()

    def _check(self, _: Any) -> None:
        if self._job.lost:
            raise LeaseStale(f"the lease of job {self._job.job_id[:60]!r} is void: nothing was done", "leases")


def log_extension_failure(job: Leased, error: Exception) -> bool:
    """Say why a lease was not extended in the background. Returns whether to try again."""
    if isinstance(error, LeaseStale):
        if job.lost:  # and did not just end
            LOG.warning("the lease of %r was lost: it may be running somewhere else", job)
        return False
    LOG.warning("the lease of %r could not be extended, which is tried again: %s", job, error)
    return True


def traceback_tail(error: BaseException) -> str:
    """The last 4 KiB of the traceback as UTF-8."""
    text = "".join(traceback.format_exception(error)).encode(errors="backslashreplace")
    return text[-ERROR_BYTES_MAX:].decode(errors="ignore")


def lease_ids(leases: str | Leased | Iterable[str | Leased]) -> tuple[list[str], tuple[Leased, ...]]:
    """The ids of one lease or several, and those of them that were given as jobs."""
    listed = [leases] if isinstance(leases, (str, Leased)) else list(leases)
    for lease in listed:
        if not isinstance(lease, (str, Leased)):
            raise TypeError(f"leases are lease ids or jobs out of a pull, and {ascii(lease)[:60]} is neither")
    jobs = tuple(lease for lease in listed if isinstance(lease, Leased))
    return [lease.lease_id if isinstance(lease, Leased) else lease for lease in listed], jobs
