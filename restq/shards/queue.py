"""A job, its place in a queue, and the queue: two heaps that time moves places between. No rules live here.

A `Place` is a value that is never changed: a lease replaces it by another one. An entry of a heap is live
while its job still holds that very Place, so what happens to a job touches no heap but by a count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from restq.names import QueueId
from restq.shards.changes import PlaceRow
from restq.shards.data import Large
from restq.shards.heap import LazyHeap


class Job:
    """A job of the realm: in every queue of `places`, under every tag of `tags`."""

    __slots__ = ("data", "job_id", "key", "places", "tags")

    def __init__(self, key: int, job_id: str, data: bytes | Large | None, tags: tuple[str, ...]) -> None:
        self.key = key
        self.job_id = job_id
        self.data = data
        self.tags = tags
        self.places: tuple[Place, ...] = ()


class Place(NamedTuple):
    """A job in a queue. Its first two fields order it there; a new lease makes a new Place of the same key."""

    at: float  # ready since then; while leased, the end of the lease
    key: int
    queue: Queue
    job: Job
    leased_at: float  # the last check-out; 0.0: never
    lease: int  # number of the pull that leased it, never used twice; 0: never

    def row(self) -> PlaceRow:
        return (self.key, self.job.key, self.queue.key, self.at, self.leased_at, self.lease)


# Naming the fields of a tuple costs more than the rest of a lease: where millions are made, they go in by order.
make_place: Callable[[tuple[float, int, Queue, Job, float, int]], Place] = partial(tuple.__new__, Place)


def _is_live(place: Place) -> bool:
    places = place.job.places
    if len(places) == 1:
        return places[0] is place
    return any(held is place for held in places)


class Queue:
    """The places of one queue id, split by whether their time has come as of `clock`."""

    __slots__ = ("_clock", "key", "lease_time", "queue_id", "ready", "waiting")

    def __init__(self, key: int, queue_id: QueueId, lease_time: float) -> None:
        self.key = key
        self.queue_id = queue_id
        self.lease_time = lease_time
        self.ready: LazyHeap[Place] = LazyHeap(_is_live)
        self.waiting: LazyHeap[Place] = LazyHeap(_is_live)
        self._clock = 0.0

    def __len__(self) -> int:
        return len(self.ready) + len(self.waiting)

    def advance(self, now: float) -> None:
        """Move the places whose time has come to `ready`. An instant that lies behind the last one is that one."""
        if now <= self._clock:
            return
        self._clock = now
        while (place := self.waiting.peek()) is not None and place.at <= now:
            self.waiting.pop()
            self.ready.push(place)

    def push(self, place: Place) -> None:
        """Hold a place, which its job holds already."""
        (self.ready if place.at <= self._clock else self.waiting).push(place)

    def discard(self, place: Place) -> None:
        """Forget a place that its job just let go of."""
        (self.ready if place.at <= self._clock else self.waiting).discard()

    def restore(self, places: list[Place], now: float) -> None:
        """Hold exactly these places, in any order: O(n)."""
        self._clock = now
        self.ready.rebuild([place for place in places if place.at <= now])
        self.waiting.rebuild([place for place in places if place.at > now])

    def pop(self) -> Place | None:
        """Take any place, ready ones first; None when there is none."""
        return self.ready.pop() or self.waiting.pop()
