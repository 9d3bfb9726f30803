"""Leasing jobs out of a realm: lowest queue first, longest ready first within it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from restq.names import QueueId
from restq.shards import endings
from restq.shards.heap import LazyHeap
from restq.shards.job import FRESH, MARK_NONE, QUEUED, History, Place
from restq.shards.queue import Queue
from restq.shards.roll import Roll

if TYPE_CHECKING:
    from restq.shards.realm import Realm

PULL_BYTES_MAX = 32 << 20  # of data in one pull: the job that reaches it is the last


class Wanted(NamedTuple):
    """What a pull asks for."""

    limit: int = 1  # as many jobs
    max_queue: QueueId | None = None  # the last queue to pull from
    queues: frozenset[QueueId] | None = None  # only these
    tags: tuple[str, ...] | None = None  # only jobs with any of these
    lease_time: float | None = None  # in the stead of the queue's
    worker: str = ""


class Pull:
    """One pull under way: its number, which is never used twice, and the histories that its jobs share."""

    def __init__(self, realm: Realm, wanted: Wanted, number: int = 0) -> None:
        """`number`: that of the same pull in another realm. The realm's time must have passed until now."""
        self._realm = realm
        self._wanted = wanted
        self.number = number or realm.keys.take()
        self._first = History(realm.clock, self.number, 0, 0, MARK_NONE, wanted.worker)
        self._taken: set[str] = set()
        self._bytes = 0
        self._lease_time, self._ends_at = 0.0, realm.clock  # of the last lease: those of equal length share the instant

    @property
    def is_over(self) -> bool:
        """Whether it has all that it asked for, or all that one pull takes."""
        return len(self._taken) >= self._wanted.limit or self._bytes >= PULL_BYTES_MAX

    def lease(self, place: Place, heap: LazyHeap[Place] | None) -> Place:
        """Lease a queued place; the heap does not have it any more."""
        before = place.history
        if before is FRESH:
            history = self._first
        else:  # a lease that is still in force ran out, or the place would not be queued
            expiries = before.expiries + (1 if before.lease else 0)
            history = self._first._replace(nacks=before.nacks, expiries=expiries)
        seconds = place.queue.lease_time if self._wanted.lease_time is None else self._wanted.lease_time
        if seconds != self._lease_time:
            self._lease_time, self._ends_at = seconds, self._realm.clock + seconds
        return self._realm.check_out(place, self._ends_at, history, heap)

    def take(self, count: int) -> list[Place]:
        """Lease up to so many more; fewer if there are no more to be had."""
        leased: list[Place] = []
        count = min(count, self._wanted.limit - len(self._taken))
        for queue, carriers in _sources(self._realm, self._wanted):
            if len(leased) >= count:
                break
            passed_over: list[tuple[Place, LazyHeap[Place]]] = []
            while len(leased) < count and self._bytes < PULL_BYTES_MAX and not queue.is_shut:
                found = _take(queue, carriers, self._realm.clock)
                if found is None:
                    break
                place, heap = found
                if place.job.job_id in self._taken:
                    passed_over.append(found)
                    continue
                self._taken.add(place.job.job_id)
                self._bytes += place.job.data_bytes
                leased.append(self.lease(place, heap))
            for place, heap in passed_over:
                queue.put_back(place, heap)
        return leased


def pull(realm: Realm, wanted: Wanted, now: float) -> list[Place]:
    """Lease up to `wanted.limit` jobs; what is held up by a limit, or blocked, is left alone.

    A job is never returned twice by one pull, even where it is ready in two queues. Once PULL_BYTES_MAX are reached no
    more is taken. An empty realm gives none: that is no error.
    """
    realm.advance(now)
    return Pull(realm, wanted).take(wanted.limit) if has_ready(realm, wanted) else []


def _sources(realm: Realm, wanted: Wanted) -> Iterator[tuple[Queue, dict[str, Roll] | None]]:
    carriers: dict[str, Roll] | None = None
    if wanted.tags is not None:
        carriers = {tag: realm.tags[tag].jobs for tag in wanted.tags if tag in realm.tags}
        if not carriers:
            return
    for queue in realm.served(wanted.max_queue):
        if wanted.queues is None or queue.queue_id in wanted.queues:
            yield queue, carriers


def _take(queue: Queue, carriers: dict[str, Roll] | None, now: float) -> tuple[Place, LazyHeap[Place]] | None:
    """Take the place that is first in line out of its heap."""
    if carriers is None:
        first = queue.first()
        if first is None:
            return None
        heap = first[1].heap
        heap.pop()
        return first[0], heap
    best: tuple[Place, LazyHeap[Place]] | None = None
    for lane in queue.open:
        for heap in lane.heaps(carriers, now):
            place = heap.peek()
            if place is not None and (best is None or place < best[0]):
                best = place, heap
    if best is not None:
        best[1].pop()
    return best


def has_ready(realm: Realm, wanted: Wanted) -> bool:
    """Whether a pull would find something."""
    for queue, carriers in _sources(realm, wanted):
        if queue.is_shut:
            continue
        if carriers is None:
            if queue.first() is not None:
                return True
        elif any(heap.peek() is not None for lane in queue.open for heap in lane.heaps(carriers, realm.clock)):
            return True
    return False


def peek(realm: Realm, wanted: Wanted, now: float) -> list[Place]:
    """What `pull` would lease now, in its order, were there no limits by number or rate; nothing is leased."""
    realm.advance(now)
    found: dict[str, Place] = {}
    for queue, carriers in _sources(realm, wanted):
        seen: list[tuple[Place, LazyHeap[Place]]] = []
        while len(found) < wanted.limit and not queue.is_shut:
            taken = _take(queue, carriers, realm.clock)
            if taken is None:
                break
            seen.append(taken)
            found.setdefault(taken[0].job.job_id, taken[0])
        for place, heap in seen:
            queue.put_back(place, heap)
        if len(found) >= wanted.limit:
            break
    return list(found.values())


def lease(realm: Realm, job_id: str, queue_id: QueueId, this: Pull) -> Place | None:
    """Lease this job out of this queue; None where it is not to be had there (any more)."""
    place = realm.place(job_id, queue_id)
    if place is None or realm.state_of(place) != QUEUED or place.queue.is_shut:
        return None
    if place.queue.lane(place.job.gates).shut_count:
        return None
    return this.lease(place, None)


def undo_pull(realm: Realm, number: int, pairs: Iterable[tuple[str, QueueId]], now: float) -> int:
    """Give back what pull `number` leased and nobody received: ready again, ahead of its queue, no attempt counted.

    Of the (job id, queue id) pairs only those count whose lease is still in force. Returns how many.
    """
    realm.advance(now)
    undone = 0
    for job_id, queue_id in pairs:
        place = realm.place(job_id, queue_id)
        if place is not None and place.history.lease == number:
            endings.stand_again(realm, place, 0.0)
            undone += 1
    return undone
