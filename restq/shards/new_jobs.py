"""From the body of an add to jobs that a realm can take: names checked, data checked, tags sorted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from restq import bodies, names
from restq.errors import FieldInvalid, RestqError
from restq.names import QueueId
from restq.shards import data
from restq.shards.realm import NewJob


def new_job(job_id: Any, job: bodies.JobBody) -> NewJob:
    """The job of an add, checked."""
    text = bytes(job.data)
    if text == b"null":
        checked = None
    else:
        data.check(text, "data")
        checked = text
    return names.job_id(job_id), names.queue_id(job.queue_id), checked, _tags(job.tags or ())


def new_jobs(jobs: Sequence[bodies.BulkJob], indexes: Sequence[int] | None = None) -> list[NewJob]:
    """The jobs of a bulk add, checked; an error names the one it is about by its index, or by that in `indexes`."""
    if len(jobs) > bodies.COUNT_MAX:
        raise FieldInvalid(f"jobs: {len(jobs)} are more than the {bodies.COUNT_MAX} that one request takes", "jobs")
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
                tags = tag_sets[job.tags] = _tags(job.tags or ())
            checked.append((names.job_id(job.job_id), queue_id, None if text == b"null" else text, tags))
    except RestqError as error:
        index = len(checked)  # the one that was being checked
        where = index if indexes is None else indexes[index]
        raise type(error)(f"jobs[{where}].{error.message}", f"jobs[{where}].{error.field}") from None
    return checked


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({names.tag(tag) for tag in tags}))
