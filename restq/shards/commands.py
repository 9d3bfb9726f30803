"""The table of operations: each reads its arguments, calls the realm, and writes the reply's JSON.

No rule about queues lives here, and no socket. An operation either raises and has changed nothing, or returns
the reply. One that removes many jobs returns a `Work`: the shard carries it on, step by step, and then asks it
for its reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import msgspec

from restq import bodies, names
from restq.errors import ReplyTooLarge, TagNotFound
from restq.shards import removal
from restq.shards.data import Large
from restq.shards.new_jobs import new_job, new_jobs
from restq.shards.queue import Job, Lease, Place
from restq.shards.realm import Realm
from restq.shards.removal import Removal

REPLY_BYTES_MAX = 256 << 20  # of data in the answer to one question

NOTHING = b"{}"
_NULL = msgspec.Raw(b"null")

encode = msgspec.json.Encoder().encode


class Call(NamedTuple):
    """One call of an operation. `params` are the path's and the query's, as text; None where the query has none."""

    params: list[Any]
    body: bytes
    now: float
    payload: Callable[[int], bytes]  # the large data of a job, by the job's key

    def data(self, job: Job) -> msgspec.Raw:
        """A job's data as it came."""
        if job.data is None:
            return _NULL
        return msgspec.Raw(self.payload(job.key) if isinstance(job.data, Large) else job.data)


class Done(NamedTuple):
    """The reply; `lease` is the number of the pull if it leased any."""

    body: bytes
    lease: int = 0


class Work(NamedTuple):
    """A removal that goes on in steps, and what to reply once it is done."""

    removal: Removal
    reply: Callable[[Removal], bytes]


class LeasedJob(msgspec.Struct, omit_defaults=True):
    """A job as a pull by POST gives it."""

    job_id: str
    queue_id: names.QueueId
    data: msgspec.Raw
    tags: tuple[str, ...]
    lease_expires_at: float
    realm: str | None = None


def leased_job(place: Place, call: Call, realm: str | None = None) -> LeasedJob:
    """What a pull by POST says of a job it leased."""
    job = place.job
    return LeasedJob(job.job_id, place.queue.queue_id, call.data(job), job.tags, place.at, realm)


def _add_job(realm: Realm, call: Call) -> Done:
    realm.add([new_job(call.params[0], _read_job(call.body))], call.now)
    return Done(NOTHING)


def _add_jobs(realm: Realm, call: Call) -> Done:
    realm.add(new_jobs(bodies.bulk_jobs(read_bulk_add(call.body))), call.now)
    return Done(NOTHING)


def _remove_job(realm: Realm, call: Call) -> Done:
    realm.remove_jobs([names.job_id(call.params[0])])
    return Done(NOTHING)


def _remove_jobs(realm: Realm, call: Call) -> Done:
    realm.remove_jobs(bodies.job_ids(_read_bulk_remove(call.body).jobs, realm.name))
    return Done(NOTHING)


def _get_job(realm: Realm, call: Call) -> Done:
    return Done(encode(_shown(realm.get_job(names.job_id(call.params[0])), call)))


def _shown(job: Job, call: Call) -> dict[str, Any]:
    places = sorted(job.places, key=lambda place: names.queue_order(place.queue.queue_id))
    queues = [
        (place.queue.queue_id, max(0.0, call.now - place.lease.at) if place.lease.number else 0) for place in places
    ]
    return {"tags": job.tags, "data": call.data(job), "queues": queues}


def _pull_2013(realm: Realm, call: Call) -> Done:
    """The pull of 2013: an object of job ids."""
    count, max_queue = bodies.count(call.params[0]), bodies.max_queue(call.params[1], "max-queue")
    places = realm.pull(count, max_queue, call.now)
    jobs = {place.job.job_id: (place.queue.queue_id, call.data(place.job)) for place in places}
    return Done(encode(jobs), _lease(places))


def _pull(realm: Realm, call: Call) -> Done:
    wanted = read_pull(call.body or NOTHING)
    places = realm.pull(bodies.count(wanted.count), bodies.max_queue(wanted.max_queue), call.now)
    return Done(encode({"jobs": [leased_job(place, call) for place in places]}), _lease(places))


def _lease(places: list[Place]) -> int:
    return places[0].lease.number if places else 0


def _undo_pull(realm: Realm, call: Call) -> Done:
    """From the front end: the client was gone before the jobs of this pull reached it."""
    lease, pairs = call.params
    realm.undo_pull(lease, ((job_id, queue_id) for job_id, queue_id in pairs))
    return Done(NOTHING)


def _move_job(realm: Realm, call: Call) -> Done:
    move = _read_move(call.body)
    return _move(realm, call, move.from_queue, move.to_queue, ("from_queue", "to_queue"))


def _move_job_2013(realm: Realm, call: Call) -> Done:
    return _move(realm, call, call.params[1], call.params[2], ("from_q", "to_q"))


def _move(realm: Realm, call: Call, from_queue: Any, to_queue: Any, fields: tuple[str, str]) -> Done:
    realm.move_job(
        names.job_id(call.params[0]),
        names.queue_id(from_queue, fields[0]),
        names.queue_id(to_queue, fields[1]),
        call.now,
    )
    return Done(NOTHING)


def _get_tagged_jobs(realm: Realm, call: Call) -> Done:
    tag = names.tag(call.params[0], "tag")
    jobs = realm.get_tagged_jobs(tag)
    if sum(job.data_bytes for job in jobs) > REPLY_BYTES_MAX:
        raise ReplyTooLarge(f"the data of the {len(jobs)} jobs tagged {tag!r} is more than one reply carries")
    return Done(encode({job.job_id: _shown(job, call) for job in jobs}))


def _get_tag_status(realm: Realm, call: Call) -> Done:
    return Done(encode({"count": realm.get_tag_status(names.tag(call.params[0], "tag"))}))


def _remove_tagged_jobs(realm: Realm, call: Call) -> Done | Work:
    try:
        return Work(removal.remove_tagged_jobs(realm, names.tag(call.params[0], "tag")), _nothing)
    except TagNotFound:
        return Done(NOTHING)  # removing what is not there is no error over HTTP


def _clear_queue(realm: Realm, call: Call) -> Work:
    return Work(removal.clear_queue(realm, names.queue_id(call.params[0])), _removed)


def _clear_queue_2013(realm: Realm, call: Call) -> Work:
    return Work(removal.clear_queue(realm, names.queue_id(call.params[0])), _nothing)


def _delete_realm(realm: Realm, call: Call) -> Done | Work:
    return Work(removal.delete(realm), _nothing) if realm.exists else Done(NOTHING)


def _nothing(_: Removal) -> bytes:
    return NOTHING


def _removed(removed: Removal) -> bytes:
    return encode({"removed": removed.removed_count})


def _get_status(realm: Realm, call: Call) -> Done:
    return Done(encode(realm.status()))


def _configure(realm: Realm, call: Call) -> Done:
    config = _read_config(call.body)
    queue = config.queue_lease_time
    if queue is not None:
        queue = (names.queue_id(queue[0], "queue_lease_time"), queue[1])
    realm.configure(config.default_lease_time, queue)
    return Done(NOTHING)


_read_job = bodies.reader(bodies.JobBody)
_read_bulk_remove = bodies.reader(bodies.BulkRemove)
_read_move = bodies.reader(bodies.Move)
_read_config = bodies.reader(bodies.Config)
read_bulk_add = bodies.reader(bodies.BulkAdd)
read_pull = bodies.reader(bodies.Pull)

REALM_OPERATIONS: dict[str, Callable[[Realm, Call], Done | Work]] = {
    "add_job": _add_job,
    "add_jobs": _add_jobs,
    "pull_2013": _pull_2013,
    "clear_queue": _clear_queue,
    "clear_queue_2013": _clear_queue_2013,
    "configure": _configure,
    "delete_realm": _delete_realm,
    "get_job": _get_job,
    "get_status": _get_status,
    "get_tag_status": _get_tag_status,
    "get_tagged_jobs": _get_tagged_jobs,
    "move_job": _move_job,
    "move_job_2013": _move_job_2013,
    "pull": _pull,
    "remove_job": _remove_job,
    "remove_jobs": _remove_jobs,
    "remove_tagged_jobs": _remove_tagged_jobs,
    "undo_pull": _undo_pull,
}


# -- operations on all realms of the shard -------------------------------------------------------------------------


class Realms(Protocol):
    """The realms of a shard, to operations on more than one: ask for all that is needed before changing any.

    `get` gives one, an empty one if there is none; it refuses, by an exception that the shard knows, one that a task
    holds or that lives elsewhere. `is_free` says whether no task holds it, and refuses one that lives elsewhere.
    """

    def get(self, name: str) -> Realm: ...

    def names(self) -> Iterable[str]: ...

    def is_free(self, name: str) -> bool: ...


def _get_statuses(realms: Realms, call: Call) -> Done:
    return Done(encode({name: realms.get(name).status() for name in realms.names()}))


def _bulk_add(realms: Realms, call: Call) -> Done:
    """`params[0]`: the index of each job in the body that the client sent."""
    by_realm = _bulk_by_realm(realms, call)
    for name, jobs in by_realm.items():
        realms.get(name).add(jobs, call.now)
    return Done(NOTHING)


def _bulk_check(realms: Realms, call: Call) -> Done:
    """Whether `bulk_add` would refuse: it does not, once this did not, unless others came between."""
    _bulk_by_realm(realms, call)
    return Done(NOTHING)


def _bulk_by_realm(realms: Realms, call: Call) -> dict[str, list[Any]]:
    jobs = read_bulk_add(call.body).jobs
    assert isinstance(jobs, list), "the front end sends lists"
    by_realm: dict[str, list[Any]] = {}
    indexes: dict[str, list[int]] = {}
    for index, job, new in zip(call.params[0], jobs, new_jobs(jobs, call.params[0]), strict=True):
        by_realm.setdefault(job.realm_id or "", []).append(new)
        indexes.setdefault(job.realm_id or "", []).append(index)
    for name, realm_jobs in by_realm.items():
        realms.get(name).check_add(realm_jobs, indexes[name])
    return by_realm


def _bulk_remove(realms: Realms, call: Call) -> Done:
    """`params[0]`: pairs of realm and job id, checked by the front end."""
    for realm, job_id in [(realms.get(name), job_id) for name, job_id in call.params[0]]:
        realm.remove_jobs([job_id])
    return Done(NOTHING)


def _peek(realms: Realms, call: Call) -> Done:
    """The jobs that a pull over these realms would lease: [at, realm, job id, queue id], best first, per realm.

    A realm that is held has nothing to give at this moment.
    """
    count, max_queue, wanted = call.params
    found = [
        (place.at, name, place.job.job_id, place.queue.queue_id)
        for name in (realms.names() if wanted is None else wanted)
        if realms.is_free(name)
        for place in realms.get(name).peek(count, max_queue, call.now)
    ]
    return Done(encode(found))


def _lease_peeked(realms: Realms, call: Call) -> Done:
    """Lease these [realm, job id, queue id], in order; null for one that is not ready any more."""
    lease: Lease | None = None
    leased: list[LeasedJob | None] = []
    for name, job_id, queue_id in call.params[0]:
        place = None
        if realms.is_free(name):
            realm = realms.get(name)
            lease = lease or realm.next_lease(call.now)
            place = realm.lease(job_id, queue_id, lease)
        leased.append(None if place is None else leased_job(place, call, name))
    return Done(encode(leased), lease.number if lease else 0)


# What changes nothing: a full disk does not hold it up.
READING = frozenset({"get_job", "get_stats", "get_status", "get_statuses", "get_tag_status", "get_tagged_jobs", "peek"})

SHARD_OPERATIONS: dict[str, Callable[[Realms, Call], Done]] = {
    "bulk_add": _bulk_add,
    "bulk_check": _bulk_check,
    "bulk_remove": _bulk_remove,
    "get_statuses": _get_statuses,
    "lease_peeked": _lease_peeked,
    "peek": _peek,
}
