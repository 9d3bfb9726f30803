"""The operations on several realms of a shard at once: each asks for all it needs before it changes any."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from restq import bodies
from restq.shards import adding, leasing
from restq.shards.adding import NewJob
from restq.shards.commands.call import NOTHING, Call, Done, encode
from restq.shards.commands.leases import LeasedJob, leased_job
from restq.shards.commands.settings import status
from restq.shards.leasing import Pull, Wanted
from restq.shards.new_jobs import new_jobs
from restq.shards.realm import Realm

_read_bulk_add = bodies.reader(bodies.BulkAdd)


class Realms(Protocol):
    """The realms of a shard, to operations on more than one: ask for all that is needed before changing any.

    `get` gives one, an empty one if there is none; it refuses, by an exception that the shard knows, one that a task
    holds or that lives elsewhere. `is_free` says whether no task holds it, and refuses one that lives elsewhere.
    `is_done` says whether this very request, by its idempotency key, did its part in a realm before; `keep` notes that
    it did, until then, and what it replied.
    """

    def get(self, name: str) -> Realm: ...

    def names(self) -> Iterable[str]: ...

    def is_free(self, name: str) -> bool: ...

    def is_done(self, realm: Realm) -> bool: ...

    def keep(self, realm: Realm, body: bytes, held_until: float = 0.0) -> None: ...


def get_statuses(realms: Realms, call: Call) -> Done:
    """GET /."""
    return Done(encode({name: status(realms.get(name)) for name in realms.names()}))


def bulk_check(realms: Realms, call: Call) -> Done:
    """Whether adding these jobs to their realms would be refused. `params[0]`: the index of each in the client's body.

    A realm that did its part of this very request before is not asked.
    """
    jobs = bodies.bulk_jobs(_read_bulk_add(call.body))
    by_realm: dict[str, list[NewJob]] = {}
    indexes: dict[str, list[int]] = {}
    for index, job, new in zip(call.params[0], jobs, new_jobs(jobs, call.now, call.params[0]), strict=True):
        by_realm.setdefault(job.realm_id or "", []).append(new)
        indexes.setdefault(job.realm_id or "", []).append(index)
    for name, realm_jobs in by_realm.items():
        realm = realms.get(name)
        realm.advance(call.now)
        if not realms.is_done(realm):
            adding.check_add(realm, realm_jobs, indexes[name])
    return Done(NOTHING)


def peek(realms: Realms, call: Call) -> Done:
    """The jobs that a pull over these realms would lease: [at, realm, job id, queue id], best first, per realm.

    A realm that is held has nothing to give at this moment.
    """
    count, max_queue, wanted_realms, queues, tags = call.params
    wanted = _wanted(count, max_queue, queues, tags)
    found = [
        (place.at, name, place.job.job_id, place.queue.queue_id)
        for name in (realms.names() if wanted_realms is None else wanted_realms)
        if realms.is_free(name)
        for place in leasing.peek(realms.get(name), wanted, call.now)
    ]
    return Done(encode(found))


def _wanted(count: int, max_queue: Any, queues: Any, tags: Any) -> Wanted:
    return Wanted(
        count, max_queue, None if queues is None else frozenset(queues), None if tags is None else tuple(tags)
    )


def lease_peeked(realms: Realms, call: Call) -> Done:
    """Lease these [realm, job id, queue id, index], for so long and for this worker.

    The reply is of [index, job], without those that are gone; `index` is where a job stands in the reply to the client.
    """
    candidates, lease_time, worker = call.params
    wanted = Wanted(lease_time=lease_time, worker=worker or "")
    free = {name for name in dict.fromkeys(candidate[0] for candidate in candidates) if realms.is_free(name)}
    pulls: dict[str, Pull] = {}
    number = 0
    leased: dict[str, list[tuple[int, LeasedJob]]] = {}
    for name, job_id, queue_id, index in candidates:
        if name not in free:
            continue
        realm = realms.get(name)
        realm.advance(call.now)
        if name not in pulls:
            pulls[name] = Pull(realm, wanted, number)
            number = pulls[name].number
        place = leasing.lease(realm, job_id, queue_id, pulls[name])
        if place is not None:
            leased.setdefault(name, []).append((index, leased_job(realm, place, call, with_realm=True)))
    parts = {name: encode(jobs) for name, jobs in leased.items()}
    for name, part in parts.items():
        realms.keep(realms.get(name), part, max(job.lease_expires_at for _, job in leased[name]))
    return Done(b"[" + b",".join(part[1:-1] for part in parts.values()) + b"]", number)


def has_ready(realms: Realms, call: Call) -> bool:
    """Whether a pull over these realms would find something; `params` as those of `wait_ready`."""
    max_queue, queues, tags, wanted_realms, _ = call.params
    wanted = _wanted(1, max_queue, queues, tags)
    for name in realms.names() if wanted_realms is None else wanted_realms:
        if realms.is_free(name):
            realm = realms.get(name)
            realm.advance(call.now)
            if leasing.has_ready(realm, wanted):
                return True
    return False
