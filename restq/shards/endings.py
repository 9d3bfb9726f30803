"""How a hand-out of a job ends without an ack: by its lease running out, by the job's own time, or as a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from restq.shards.changes import FailureRow
from restq.shards.job import DEAD, FRESH, LEASED, MARK_CANCELLED, MARK_DEAD, MARK_NONE, History, Job, Place

if TYPE_CHECKING:
    from restq.shards.realm import Realm


def lease_ran_out(realm: Realm, place: Place) -> None:
    """A place is queued again because its lease ran out: it stays so, unless that was once too often."""
    realm.tell("expired", place, attempt=place.history.attempt, worker=place.history.worker)
    _wear(realm, place)


def settle_lapsed(realm: Realm, lapsed: list[Place], count: int) -> int:
    """Have up to `count` of these places, whose leases ran out before a start, die or go if that was once too often.

    Returns how many it took from the list. No event tells that the leases ran out: that was before the start.
    """
    count = min(count, len(lapsed))
    for _ in range(count):
        place = lapsed.pop()
        if place.job.holds(place):  # else something else became of it
            _wear(realm, place)
    return count


def _wear(realm: Realm, place: Place) -> None:
    history = place.history
    # As of the lease's end: a shard that was down then must not take away what died before its job expired.
    if history.mark == MARK_CANCELLED or is_expired(place.job, place.at):
        realm.take_out(place)
    elif is_worn_out(realm, place, history.nacks, history.expiries + 1):
        worker = f" of worker {history.worker!r}" if history.worker else ""
        note_failure(realm, place, f"the lease{worker} ran out", None)
        realm.tell("dead", place, attempt=history.attempt)
        realm.replace(place, place.at, history._replace(expiries=history.expiries + 1, mark=MARK_DEAD))


def stand_again(realm: Realm, place: Place, at: float, nacks: int = 0) -> None:
    """The lease of a place is given up: from `at` on it is queued again, unless its job is to go.

    `nacks`: by how many more attempts it failed.
    """
    history = place.history
    if history.mark == MARK_CANCELLED or is_expired(place.job, realm.clock):
        realm.take_out(place)
        return
    expiries = history.expiries
    if history.mark == MARK_DEAD:  # of this very lease
        expiries -= 1
        if not nacks:
            realm.changes.failures[place.key] = None
    after = History(0.0, 0, history.nacks + nacks, expiries, MARK_NONE, "")
    realm.replace(place, at, FRESH if after == FRESH else after)


def die(realm: Realm, place: Place, nacks: int) -> None:
    """The job is handed out no more in this queue; it stays until it is redriven or removed."""
    history = place.history
    expiries = history.expiries - (1 if history.mark == MARK_DEAD else 0)
    realm.replace(place, realm.clock, History(0.0, 0, history.nacks + nacks, expiries, MARK_DEAD, ""))


def expire(realm: Realm, job: Job) -> None:
    """The job's time is over: it leaves the queues in which it is ready, blocked or delayed.

    Where it is leased it stays until the lease ends, and where it is dead until somebody sees to it.
    """
    for place in job.places:
        if realm.state_of(place) not in (LEASED, DEAD):
            realm.take_out(place)


def outlive(realm: Realm, job: Job) -> None:
    """The job does not expire any more: somebody wants it done after all."""
    if job.terms.expires_at:
        realm.expiries.discard(job)
        job.terms = realm.tags.shared_terms(job.terms._replace(expires_at=0.0))
        realm.note_job(job)


def is_expired(job: Job, at: float) -> bool:
    """Whether the job's time is over at this instant."""
    return 0.0 < job.terms.expires_at <= at


def is_worn_out(realm: Realm, place: Place, nacks: int, expiries: int) -> bool:
    """Whether a job that failed so often in this queue is dead."""
    settings = realm.settings
    attempts = place.job.terms.max_attempts or place.queue.settings.max_attempts or settings.max_attempts
    return bool(attempts and nacks + expiries >= attempts) or bool(
        settings.crash_limit and expiries >= settings.crash_limit
    )


def note_failure(realm: Realm, place: Place, error: str, exit_code: int | None) -> None:
    """Keep how the last hand-out of a place ended."""
    realm.changes.failures[place.key] = FailureRow(place.key, realm.key, error, exit_code, realm.clock)
