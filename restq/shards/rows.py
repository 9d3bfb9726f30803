"""The rows of a realm, of its queues, its tags' limits and its jobs: what the store keeps of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from restq.shards.changes import JobRow, QueueRow, RealmRow, TagRow
from restq.shards.data import Large
from restq.shards.job import PLAIN
from restq.shards.settings import PLAIN_QUEUE, text_of

if TYPE_CHECKING:
    from restq.shards.gates import Limit
    from restq.shards.job import Job
    from restq.shards.queue import Queue
    from restq.shards.realm import Realm


def realm_row(realm: Realm) -> RealmRow:
    """The realm's own row."""
    task = None if realm.task is None else realm.task.text()
    pinned, settings = int(realm.pinned), text_of(realm.settings)
    return RealmRow(
        realm.key,
        realm.name,
        realm.default_lease_time,
        realm.epoch,
        pinned,
        task,
        settings,
        realm.first_keys.text,
        realm.born,
    )


def queue_row(realm: Realm, queue: Queue) -> QueueRow:
    """The row of one of its queues."""
    settings = "{}" if queue.settings is PLAIN_QUEUE else text_of(queue.settings)
    next_at = 0.0 if queue.limit is None else queue.limit.next_at
    return QueueRow(queue.key, realm.key, queue.queue_id, queue.lease_time, settings, next_at)


def tag_row(realm: Realm, limit: Limit) -> TagRow:
    """The row of the limits of a tag."""
    return TagRow(limit.key, realm.key, str(limit.name), text_of(limit.settings), limit.next_at)


def job_row(realm: Realm, job: Job) -> JobRow:
    """The row of one of its jobs."""
    data, tags, terms = job.data, realm.tags.text(job.tags), "" if job.terms is PLAIN else job.terms.text()
    if isinstance(data, Large):
        return (job.key, realm.key, job.job_id, tags, "", data.digest, data.size, terms)
    return (job.key, realm.key, job.job_id, tags, data.decode() if data else "", "", 0, terms)
