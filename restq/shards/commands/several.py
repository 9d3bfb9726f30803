"""The operations on several realms of a shard at once: each asks for all it needs before it changes any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from restq.names import queue_order
from restq.shards import leasing
from restq.shards.commands.batches import SLICE_COUNT
from restq.shards.commands.call import Call, Done, Wait, encode
from restq.shards.commands.leases import LeasedJob, leased, leased_job, with_data
from restq.shards.commands.settings import status
from restq.shards.job import Place
from restq.shards.leasing import Pull, Wanted
from restq.shards.realm import Realm

NO_JOBS = b"[]"


class Realms(Protocol):
    """The realms of a shard, to operations on more than one: ask for all that is needed before changing any.

    `get` gives one, an empty one if there is none; it refuses, by an exception that the shard knows, one that a task
    holds or that lives elsewhere. `is_free` says whether no task holds it, and refuses one that lives elsewhere.
    `claim` refuses a request that has an idempotency key if the same began again later, and was here; `keep` notes what
    it did in a realm, under its key; `recalled` are the lists that it kept before in these realms, None for all, as
    one.
    """

    def get(self, name: str) -> Realm: ...

    def names(self) -> Iterable[str]: ...

    def is_free(self, name: str) -> bool: ...

    def claim(self, claim: Sequence[float]) -> None: ...

    def keep(self, realm: Realm, done: Done, now: float) -> None: ...

    def recalled(self, names: Iterable[str] | None, call: Call) -> bytes: ...


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
        for name, place in _ready(realms, wanted_realms, wanted, call.now)
    ]
    return Done(encode(found))


def _ready(realms: Realms, names: Iterable[str] | None, wanted: Wanted, now: float) -> Iterator[tuple[str, Place]]:
    for name in realms.names() if names is None else names:
        if realms.is_free(name):
            yield from ((name, place) for place in leasing.peek(realms.get(name), wanted, now))


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
    jobs_of: dict[str, list[tuple[int, LeasedJob]]] = {}
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
            jobs_of.setdefault(name, []).append((index, leased_job(realm, place, call, with_realm=True)))
    parts = {name: encode(jobs) for name, jobs in jobs_of.items()}
    for name, part in parts.items():
        held_until = max(job.lease_expires_at for _, job in jobs_of[name])
        realms.keep(realms.get(name), Done(part, pulls[name].number, held_until), call.now)
    return Done(b"[" + b",".join(part[1:-1] for part in parts.values()) + b"]", number)


def pull_waiting(realms: Realms, call: Call) -> Done | Wait:
    """Lease the jobs of one of these realms, that whose first comes first, or wait in the lines of all of them.

    `params`: realms, or null for all; count, last queue, queues, tags, lease time, worker, claim; how many seconds to
    wait.
    The reply is as `lease_peeked` gives it. What this very request leased here before is given again.
    """
    wanted_realms, count, max_queue, queues, tags, lease_time, worker, claim, seconds = call.params
    realms.claim(claim)
    if (recalled := realms.recalled(wanted_realms, call)) != NO_JOBS:
        return Done(recalled)
    one = _wanted(1, max_queue, queues, tags)
    wanted = one._replace(limit=min(count, SLICE_COUNT), lease_time=lease_time, worker=worker)
    found = _ready(realms, wanted_realms, one, call.now)
    for *_, name in sorted((queue_order(place.queue.queue_id), place.at, name) for name, place in found):
        done = _pulled(realms.get(name), call, wanted)
        if done is not None:
            realms.keep(realms.get(name), done, call.now)
            return done
    return Wait(
        seconds,
        one,
        lambda realm, call: _pulled(realm, call, wanted),
        lambda realm, call: Done(NO_JOBS),
        realms=None if wanted_realms is None else tuple(wanted_realms),
    )


def _pulled(realm: Realm, call: Call, wanted: Wanted) -> Done | None:
    places = with_data(realm, call, leasing.pull(realm, wanted, call.now))
    jobs = [leased_job(realm, place, call, with_realm=True) for place in places]
    return leased(list(enumerate(jobs)), places) if places else None
