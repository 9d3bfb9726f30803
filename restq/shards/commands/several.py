"""The operations on several realms of a shard at once: each asks for all it needs before it changes any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from restq.shards import leasing
from restq.shards.commands.call import Call, Done, encode
from restq.shards.commands.leases import LeasedJob, leased_job, with_data
from restq.shards.commands.settings import status
from restq.shards.leasing import Pull, Wanted
from restq.shards.realm import Realm


class Realms(Protocol):
    """The realms of a shard, to operations on more than one: ask for all that is needed before changing any.

    `get` gives one, an empty one if there is none; it refuses, by an exception that the shard knows, one that a task
    holds or that lives elsewhere. `is_free` says whether no task holds it, and refuses one that lives elsewhere.
    `claim` refuses a request that has an idempotency key if the same began again later, and was here; `keep` notes what
    it did in a realm, under its key.
    """

    def get(self, name: str) -> Realm: ...

    def names(self) -> Iterable[str]: ...

    def is_free(self, name: str) -> bool: ...

    def claim(self, claim: Sequence[float]) -> None: ...

    def keep(self, realm: Realm, done: Done) -> None: ...


def get_statuses(realms: Realms, call: Call) -> Done:
    """GET /."""
    return Done(encode({name: status(realms.get(name)) for name in realms.names()}))


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
    """Lease these [realm, job id, queue id, index], for so long, for this worker and under this claim.

    The reply is of [index, job], without those that are gone; `index` is where a job stands in the reply to the client.
    """
    candidates, lease_time, worker, claim = call.params
    realms.claim(claim)
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
        if place is not None and with_data(realm, call, [place]):
            leased.setdefault(name, []).append((index, leased_job(realm, place, call, with_realm=True)))
    parts = {name: encode(jobs) for name, jobs in leased.items()}
    for name, part in parts.items():
        held_until = max(job.lease_expires_at for _, job in leased[name])
        realms.keep(realms.get(name), Done(part, pulls[name].number, held_until))
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
