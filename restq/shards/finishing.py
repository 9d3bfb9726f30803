"""What the holder of a lease may do with it: ack, nack, release, extend. A lease is proven by its id.

The id names the pull and the place, by numbers that are never used twice, and when the realm came to be. A void one
changes nothing and is returned as stale. A lease is void once it was ended, its job was removed, or the lease ran out
*and* the job was handed out again: one that ran out, but whose job nobody took, still counts, as the work was done.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from restq.errors import LeaseStale
from restq.shards import endings, limits
from restq.shards.changes import ResultRow
from restq.shards.job import LEASED, MARK_CANCELLED, MARK_DEAD, MARK_NONE, Place

if TYPE_CHECKING:
    from restq.shards.realm import Realm

_LEASE_ID = re.compile(r"([1-9][0-9]{0,18})-([1-9][0-9]{0,18})-([0-9a-f]{1,16})")
_SHOWN_MAX = 3  # lease ids that a message names

encode = msgspec.json.Encoder().encode


class Outcome(NamedTuple):
    """What an ack says of the work."""

    result: msgspec.Raw | None = None
    exit_code: int | None = None
    output: str | None = None


def lease_id(realm: Realm, place: Place) -> str:
    """The proof of the lease of a place; the same after a restart, and after the realm moved to another shard."""
    return f"{place.history.lease}-{realm.first_keys.first(place.key)}-{realm.born:x}"


def leased_place(realm: Realm, proof: str) -> Place | None:
    """The place whose lease this proves, if it is still in force."""
    numbers = _LEASE_ID.fullmatch(proof)
    if numbers is None or numbers[3] != f"{realm.born:x}":
        return None
    first = int(numbers[2])
    key = realm.first_keys.key(first)
    if realm.first_keys.first(key) != first:
        return None  # of what is gone: the key is that of a neighbour
    place = held_under(realm, key)
    return place if place is not None and place.history.lease == int(numbers[1]) else None


def held_under(realm: Realm, key: int) -> Place | None:
    """The place of this key, if its lease is in force.

    Nearly every place has the key of its job, which is soon found in the roll: an index of all leases would take 42
    bytes each, so there is one only for those of other places.
    """
    job = realm.roll.find(key) or realm.other_leases.get(key)
    place = None if job is None else job.place_of(key)
    return place if place is not None and place.history.lease else None


def check_ack(realm: Realm, leases: Sequence[str], now: float) -> None:
    """Raise LeaseStale if there are leases to ack and all of them are void."""
    realm.advance(now)
    if leases and not any(leased_place(realm, proof) for proof in leases):
        named = ", ".join(ascii(proof)[:60] for proof in leases[:_SHOWN_MAX])
        more = f" and {len(leases) - _SHOWN_MAX} more" if len(leases) > _SHOWN_MAX else ""
        raise LeaseStale(f"no lease is in force of {named}{more}: nothing was done", "leases")


def ack(realm: Realm, leases: Sequence[str], outcome: Outcome, now: float) -> dict[str, Any]:
    """The work is done: each job leaves the queue that it was leased out of, and is gone if it stood in no other."""
    realm.advance(now)
    acked, stale = [], []
    for proof in leases:
        place = leased_place(realm, proof)
        if place is None:
            stale.append(proof)
            continue
        if realm.settings.keeps_results:
            _keep_result(realm, place, outcome)
        realm.take_out(place, event="acked")
        acked.append(proof)
    return {"acked": acked, "stale": stale}


def _keep_result(realm: Realm, place: Place, outcome: Outcome) -> None:
    job, history = place.job, place.history
    said: dict[str, Any] = {
        "job_id": job.job_id,
        "queue_id": place.queue.queue_id,
        "state": "done",
        "tags": job.tags,
        "attempt": history.attempt,
        "leased_at": history.leased_at,
        "done_at": realm.clock,
    }
    if history.worker:
        said["worker"] = history.worker
    said.update({name: value for name, value in outcome._asdict().items() if value is not None})
    key = realm.keys.take()
    at = max(realm.clock, realm.settings.kept_from)  # see `RealmSettings.after`
    realm.changes.results[key] = ResultRow(key, realm.key, job.job_id, at, encode(said).decode())
    realm.result_count += 1


def nack(
    realm: Realm, leases: Sequence[str], error: str, exit_code: int | None, delay: float | None, now: float
) -> dict[str, Any]:
    """The work failed: each job is handed out again after `delay` seconds, else after its backoff, or it is dead."""
    realm.advance(now)
    nacked, dead, stale = [], [], []
    for proof in leases:
        place = leased_place(realm, proof)
        if place is None:
            stale.append(proof)
            continue
        nacks, expiries = _after_nack(place)
        leaves = leaves_by_nack(realm, place)
        endings.note_failure(realm, place, error, exit_code)
        if not leaves and endings.is_worn_out(realm, place, nacks, expiries):
            endings.die(realm, place, 1)
            realm.tell("dead", place, attempt=nacks + expiries, error=error)
            dead.append(proof)
            continue
        seconds = _backoff_seconds(realm, place, nacks) if delay is None else delay
        realm.tell("nacked", place, attempt=nacks + expiries, error=error)
        endings.stand_again(realm, place, realm.clock + seconds, 1)
        if leaves:
            realm.changes.failures[place.key] = None
        nacked.append(proof)
    return {"nacked": nacked, "dead": dead, "stale": stale}


def _after_nack(place: Place) -> tuple[int, int]:
    """The nacks of a place once its lease is nacked, and the leases that ran out: without this one, if it did."""
    history = place.history
    return history.nacks + 1, history.expiries - (1 if history.mark == MARK_DEAD else 0)


def leaves_by_nack(realm: Realm, place: Place) -> bool:
    """Whether a nack takes the place out: it was cancelled, or its time is over, unless it is dead and stays so."""
    if place.history.mark == MARK_DEAD and endings.is_worn_out(realm, place, *_after_nack(place)):
        return False
    return place.history.mark == MARK_CANCELLED or endings.is_expired(place.job, realm.clock)


def gone_after(realm: Realm, acked: Sequence[str], nacked: Sequence[str]) -> set[str]:
    """The jobs that these acks, and then these nacks, will take out of the last of their queues."""
    leaving = {place.key: place for proof in acked if (place := leased_place(realm, proof))}
    for proof in nacked:
        place = leased_place(realm, proof)
        if place is not None and leaves_by_nack(realm, place):
            leaving[place.key] = place
    jobs = {place.job for place in leaving.values()}
    return {job.job_id for job in jobs if all(place.key in leaving for place in job.places)}


def _backoff_seconds(realm: Realm, place: Place, nacks: int) -> float:
    backoff = place.queue.settings.backoff or realm.settings.backoff
    return 0.0 if backoff is None else backoff.delay(nacks, realm.chance())


def release(realm: Realm, leases: Sequence[str], delay: float, now: float) -> dict[str, Any]:
    """Nothing was done: each job is handed out again after `delay` seconds, and the attempt does not count."""
    realm.advance(now)
    released, stale = [], []
    for proof in leases:
        place = leased_place(realm, proof)
        if place is None:
            stale.append(proof)
            continue
        realm.tell("released", place)
        endings.stand_again(realm, place, realm.clock + delay)
        released.append(proof)
    return {"released": released, "stale": stale}


def extend(realm: Realm, leases: Sequence[str], lease_time: float | None, now: float) -> dict[str, Any]:
    """The work goes on: each lease holds for `lease_time` seconds from now, else for its queue's.

    Those of jobs that were cancelled are not extended. One that ran out is stale where a limit has no room for it.
    """
    realm.advance(now)
    extended: dict[str, float] = {}
    stale, cancelled = [], []
    for proof in leases:
        place = leased_place(realm, proof)
        if place is None or not _has_room(realm, place):
            stale.append(proof)
        elif place.history.mark == MARK_CANCELLED:
            cancelled.append(proof)
        else:
            history = place.history
            if history.mark == MARK_DEAD:  # of this very lease
                history = history._replace(mark=MARK_NONE, expiries=history.expiries - 1)
                realm.changes.failures[place.key] = None
            seconds = place.queue.lease_time if lease_time is None else lease_time
            place = realm.replace(place, realm.clock + seconds, history)
            extended[proof] = place.at
            if place.at <= realm.clock:
                endings.lease_ran_out(realm, place)
    return {"extended": extended, "stale": stale, "cancelled": cancelled}


def _has_room(realm: Realm, place: Place) -> bool:
    """Whether a lease that ran out may come back under the limits of its job."""
    if realm.state_of(place) == LEASED:
        return True
    return all(
        limit.settings.max_leased is None or limit.leased_count < limit.settings.max_leased
        for limit in limits.of(place)
    )
