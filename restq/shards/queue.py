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
    """A job of the realm, under every tag of `tags`, in one queue or more.

    Nearly every job stands in one queue, and a million tuples of one place each would be 48 MB: so its first
    place stands apart from the others.
    """

    __slots__ = ("data", "first", "job_id", "key", "others", "tags")

    def __init__(self, key: int, job_id: str, data: bytes | Large | None, tags: tuple[str, ...]) -> None:
        self.key = key
        self.job_id = job_id
        self.data = data
        self.tags = tags
        self.first: Place | None = None
        self.others: tuple[Place, ...] = ()

    @property
    def data_bytes(self) -> int:
        """The length of its data as JSON."""
        return self.data.size if isinstance(self.data, Large) else len(self.data or b"")

    @property
    def places(self) -> tuple[Place, ...]:
        """Its place in each of its queues."""
        return () if self.first is None else (self.first, *self.others)

    def holds(self, place: Place) -> bool:
        """Whether this very place is one of the job's."""
        return self.first is place or (bool(self.others) and any(held is place for held in self.others))

    def place_in(self, queue_id: QueueId) -> Place | None:
        """The job's place in a queue."""
        return next((place for place in self.places if place.queue.queue_id == queue_id), None)

    def add(self, place: Place) -> None:
        """Stand in one more queue."""
        if self.first is None:
            self.first = place
        else:
            self.others = (*self.others, place)

    def replace(self, old: Place, new: Place) -> None:
        """Have `new` in the stead of `old`."""
        if self.first is old:
            self.first = new
        else:
            self.others = tuple(new if place is old else place for place in self.others)

    def leave(self, place: Place) -> None:
        """Stand in one queue less, but in one at least."""
        kept = [held for held in self.places if held is not place]
        self.first, self.others = kept[0], tuple(kept[1:])

    def let_go(self) -> tuple[Place, ...]:
        """Stand in no queue: what was held. Ends the cycle job -> place -> job, so that no collector is needed."""
        places = self.places
        self.first, self.others = None, ()
        self.data = None  # heaps may hold the dead places for a while
        return places


class Lease(NamedTuple):
    """What the jobs of one pull share: its number, which is never used twice, and when it was."""

    number: int
    at: float


NEVER = Lease(0, 0.0)  # not None: heaps compare places, in the end by their leases


class Place(NamedTuple):
    """A job in a queue. Its first two fields order it there; a new lease makes a new Place of the same key."""

    at: float  # ready since then; while leased, the end of the lease
    key: int
    queue: Queue
    job: Job
    lease: Lease  # the last one, or NEVER

    def row(self) -> PlaceRow:
        """The place as the store keeps it."""
        number, leased_at = self.lease
        return (self.key, self.job.key, self.queue.key, self.at, leased_at, number)


# Naming the fields of a tuple costs more than the rest of a lease: where millions are made, they go in by order.
make_place: Callable[[tuple[float, int, Queue, Job, Lease]], Place] = partial(tuple.__new__, Place)


def _is_live(place: Place) -> bool:
    return place.job.holds(place)


def _live_of(places: list[Place]) -> list[Place]:
    # A call for each of a million places would hold up the shard for a quarter of a second.
    return [place for place in places if place.job.first is place or (place.job.others and place.job.holds(place))]


class Queue:
    """The places of one queue id, split by whether their time has come as of `clock`."""

    __slots__ = ("_clock", "key", "lease_time", "queue_id", "ready", "waiting")

    def __init__(self, key: int, queue_id: QueueId, lease_time: float) -> None:
        self.key = key
        self.queue_id = queue_id
        self.lease_time = lease_time
        self.ready: LazyHeap[Place] = LazyHeap(_is_live, _live_of)
        self.waiting: LazyHeap[Place] = LazyHeap(_is_live, _live_of)
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
