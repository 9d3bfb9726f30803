"""From the body of an add to jobs that a realm can take: names checked, data checked, tags sorted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from restq import bodies, names
from restq.errors import FieldInvalid, RestqError
from restq.names import QueueId
from restq.shards import data
from restq.shards.adding import NewJob, Wishes

INSTANT_MAX = 1e11  # of `run_at`: some thousand years from now
ATTEMPTS_MAX = 1_000_000_000
ON_CONFLICT = ("merge", "ignore", "replace", "error")


def new_job(job_id: Any, job: bodies.JobBody, now: float) -> NewJob:
    """The job of an add, checked."""
    text = bytes(job.data)
    if text == b"null":
        checked = None
    else:
        data.check(text, "data")
        checked = text
    return names.job_id(job_id), names.queue_id(job.queue_id), checked, sorted_tags(job.tags or ()), _wishes(job, now)


def new_jobs(
    jobs: Sequence[bodies.BulkJob], now: float, indexes: Sequence[int] | None = None, where: str = "jobs"
) -> list[NewJob]:
    """The jobs of a bulk add, checked; an error names the one it is about by its index, or by that in `indexes`."""
    bodies.check_count(len(jobs), where)
    checked: list[NewJob] = []
    # Jobs of a batch have few queues and few sets of tags: each is checked once.
    queues: dict[int | str, QueueId] = {}
    tag_sets: dict[tuple[str, ...] | None, tuple[str, ...]] = {None: ()}
    try:
        for job in jobs:
            text = bytes(job.data)
            if text != b"null":
                data.check(text, "data")
            queue_id = queues.get(job.queue_id)
            if queue_id is None:
                queue_id = queues[job.queue_id] = names.queue_id(job.queue_id)
            tags = tag_sets.get(job.tags)
            if tags is None:
                tags = tag_sets[job.tags] = sorted_tags(job.tags or ())
            job_id = names.job_id(job.job_id)
            checked.append((job_id, queue_id, None if text == b"null" else text, tags, _wishes(job, now)))
    except RestqError as error:
        index = len(checked)  # the one that was being checked
        at = f"{where}[{index if indexes is None else indexes[index]}]"
        raise type(error)(f"{at}.{error.message}", f"{at}.{error.field}") from None
    return checked


def sorted_tags(tags: Sequence[str], field: str = "tags") -> tuple[str, ...]:
    """The tags, checked, sorted, each once."""
    return tuple(sorted({names.tag(tag, field) for tag in tags}))


def seconds(value: float | None, field: str, low: float = 0) -> float | None:
    """A span of time, or None where none is given."""
    if value is not None and not low <= value <= bodies.LEASE_SECONDS_MAX:
        raise FieldInvalid(f"{field}: must lie between {low:g} and {bodies.LEASE_SECONDS_MAX:,.0f} seconds", field)
    return None if value is None else float(value)


def _wishes(job: bodies.JobBody, now: float) -> Wishes | None:
    if (
        job.on_conflict is None
        and job.delay is None
        and job.run_at is None
        and job.expires_in is None
        and job.max_attempts is None
        and job.after is None
    ):
        return None
    delay, expires_in = seconds(job.delay, "delay"), seconds(job.expires_in, "expires_in", 0.001)
    if delay is not None and job.run_at is not None:
        raise FieldInvalid("run_at: a job has either a delay or a run_at", "run_at")
    if job.run_at is not None and not 0 <= job.run_at <= INSTANT_MAX:
        raise FieldInvalid(f"run_at: must lie between 0 and {INSTANT_MAX:.0f} seconds since 1970", "run_at")
    if job.max_attempts is not None and not 1 <= job.max_attempts <= ATTEMPTS_MAX:
        raise FieldInvalid(f"max_attempts: must lie between 1 and {ATTEMPTS_MAX}", "max_attempts")
    if job.on_conflict is not None and job.on_conflict not in ON_CONFLICT:
        raise FieldInvalid(f"on_conflict: is one of {', '.join(ON_CONFLICT)}", "on_conflict")
    return Wishes(
        at=now + delay if delay is not None else job.run_at,
        expires_at=None if expires_in is None else now + expires_in,
        max_attempts=job.max_attempts,
        after=None if job.after is None else sorted_tags(job.after, "after"),
        on_conflict=job.on_conflict or "merge",
    )
