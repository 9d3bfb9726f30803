"""What an operator does with one job: move it to another queue, cancel it, redrive it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from restq.errors import JobLeased, JobNotInQueue
from restq.names import QueueId
from restq.shards import endings
from restq.shards.job import DEAD, DELAYED, FRESH, LEASED, MARK_CANCELLED, Job, Place

if TYPE_CHECKING:
    from restq.shards.realm import Realm


def move_job(realm: Realm, job_id: str, from_queue: QueueId, to_queue: QueueId, now: float) -> None:
    """Take the job out of one queue and put it at the end of another, which comes to be if need be.

    Raises JobNotInQueue where there is no such job in `from_queue`, JobLeased while it is leased out of it. A job that
    stands in `to_queue` already just leaves `from_queue`. A delayed one stays so; a dead one starts anew.
    """
    realm.advance(now)
    if job_id not in realm.jobs:
        raise JobNotInQueue(f"realm {realm.name!r} has no job {job_id!r}", "job_id")
    if from_queue not in realm.queues:
        raise JobNotInQueue(f"realm {realm.name!r} has no queue {from_queue!r}", "from_queue")
    place = realm.place(job_id, from_queue)
    if place is None:
        raise JobNotInQueue(f"job {job_id!r} is not in queue {from_queue!r}", "from_queue")
    if realm.state_of(place) == LEASED:
        raise JobLeased(f"job {job_id!r} is leased out of queue {from_queue!r}", "from_queue")
    if from_queue != to_queue:
        move_place(realm, place, to_queue)


def move_place(realm: Realm, place: Place, to_queue: QueueId) -> None:
    """Move a job that is not leased out of this queue into another one."""
    job = place.job
    if job.place_in(to_queue) is None:
        state = realm.state_of(place)
        at = place.at if state == DELAYED else realm.clock
        if state == DEAD:  # as by a redrive
            endings.outlive(realm, job)
        realm.enter(job, realm.queue(to_queue), realm.keys.take(), at, FRESH)
    realm.take_out(place)


def cancel_job(realm: Realm, job_id: str, now: float) -> bool:
    """Hand the job out no more: it leaves each queue that it is not leased out of, others with the end of the lease.

    Returns whether it is gone by now. The worker learns it from its next extend. Raises JobNotFound.
    """
    realm.advance(now)
    return cancel(realm, realm.get_job(job_id))


def cancel(realm: Realm, job: Job) -> bool:
    """Cancel a job; returns whether it is gone by now."""
    for place in job.places:
        if realm.state_of(place) != LEASED:
            realm.take_out(place)
        elif place.history.mark != MARK_CANCELLED:
            realm.replace(place, place.at, place.history._replace(mark=MARK_CANCELLED))
    return job.first is None


def redrive(realm: Realm, place: Place) -> bool:
    """Hand a dead job out again in this queue, its attempts at 0; returns whether it was dead.

    It expires no more, in none of its queues.
    """
    if realm.state_of(place) != DEAD:
        return False
    endings.outlive(realm, place.job)
    realm.replace(place, realm.clock, FRESH)
    realm.changes.failures[place.key] = None
    return True
