"""Limits and dependencies at work in a realm: who stands behind which gate, and when a rate lets pass again."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING

from restq.shards import rows
from restq.shards.gates import Limit
from restq.shards.job import LEASED
from restq.shards.settings import UNLIMITED, LimitSettings, QueueSettings

if TYPE_CHECKING:
    from restq.shards.job import Job, Place, Terms
    from restq.shards.queue import Queue
    from restq.shards.realm import Realm


def of(place: Place) -> Iterator[Limit]:
    """The limits that hold for a place: those of its job's tags, and its queue's."""
    yield from (gate for gate in place.job.gates if isinstance(gate, Limit))
    if place.queue.limit is not None:
        yield place.queue.limit


def refresh(realm: Realm, limit: Limit) -> None:
    """Open or shut a limit as things stand, and have it looked at again when its rate lets pass."""
    limit.refresh(realm.clock)
    if (opens_at := limit.opens_at) is not None:
        realm.agenda.put(limit, opens_at)


def passed(realm: Realm, limit: Limit) -> None:
    """After a hand-out under it: its rate counts on, after a restart too."""
    if not limit.settings.rate:
        return
    if (opens_at := limit.opens_at) is not None:
        realm.agenda.put(limit, opens_at)
    if limit.kind == "tag":
        realm.changes.tags[limit.key] = rows.tag_row(realm, limit)
    else:
        realm.note_queue(realm.queues[limit.name])


def rearrange(realm: Realm, job: Job, tags: tuple[str, ...], terms: Terms) -> None:
    """Give the job these tags, none less than it had, and terms, and put it behind the gates that they name by now.

    No place changes its state; every one is a new value, so what the heaps of its old lane hold of it is dead.
    """
    for place in job.places:
        state = realm.state_of(place)
        job.replace(place, copy(place))
        realm.let_go(place, state)
    for tag in tags:
        if tag not in job.tags:
            realm.tags.carry(tag, job)
    job.tags = realm.tags.shared(tags)
    if terms.expires_at != job.terms.expires_at:
        realm.expiries.put(job, terms.expires_at)
    job.terms = terms
    realm.tags.set_gates(job, realm.tags.gates_of(job))
    for place in job.places:
        realm.hold(place)


def configure_queue(realm: Realm, queue: Queue, lease_time: float, settings: QueueSettings) -> None:
    """Have a queue work by these settings from now on; leases that were given stay as long as they are."""
    queue.lease_time = lease_time
    queue.settings = settings
    if queue.limit is None and any(settings.limits):
        queue.limit = Limit(queue.key, "queue", queue.queue_id, UNLIMITED)
        queue.limit.leased_count = queue.counts[LEASED]
    if queue.limit is not None:
        queue.limit.configure(settings.limits, realm.clock)
        refresh(realm, queue.limit)
    realm.note_queue(queue)


def configure_tag(realm: Realm, tag: str, settings: LimitSettings) -> bool:
    """Have a tag work by these limits from now on, over all queues; none at all are forgotten.

    Returns whether it had none before, or has none now: then every job that carries it needs `rearrange`.
    """
    limit = realm.tags.limits.get(tag)
    if limit is None and settings == UNLIMITED:
        return False
    is_new = limit is None
    if limit is None:
        limit = realm.tags.limits[tag] = Limit(realm.keys.take(), "tag", tag, UNLIMITED)
    limit.configure(settings, realm.clock)
    refresh(realm, limit)
    realm.write()
    if settings == UNLIMITED:
        del realm.tags.limits[tag]
        realm.changes.tags[limit.key] = None
        return True
    realm.changes.tags[limit.key] = rows.tag_row(realm, limit)
    return is_new
