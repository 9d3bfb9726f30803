"""A job, its place in each of its queues, and what became of it there. No rules live here.

A `Place` is a value that is never changed: whatever happens to it puts another one in its stead. An entry of a heap is
live while its job still holds that very Place, so what happens to a job touches no heap but by a count.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from restq.names import QueueId
from restq.shards.changes import PlaceRow
from restq.shards.data import Large
from restq.shards.gates import Gate

if TYPE_CHECKING:
    from restq.shards.queue import Queue

# The states of a place, as counts are indexed. What is queued is ready, unless a tag that it comes after blocks it.
QUEUED, LEASED, DELAYED, DEAD = range(4)

# Marks in the history of a place, for what its instants do not say.
MARK_NONE, MARK_DEAD, MARK_CANCELLED = range(3)


class Terms(NamedTuple):
    """What an add asked for beyond queue, data and tags. Those of one batch are shared."""

    after: tuple[str, ...] = ()  # sorted; blocked while another job carries one of these tags
    max_attempts: int = 0  # 0: as its queue or realm says
    expires_at: float = 0.0  # 0: never

    def text(self) -> str:
        """The terms as a row carries them."""
        return json.dumps({name: value for name, value in self._asdict().items() if value}) if any(self) else ""

    @classmethod
    def read(cls, text: str) -> Terms:
        """The terms of a row."""
        if not text:
            return PLAIN
        said = json.loads(text)
        return cls(tuple(said.get("after", ())), said.get("max_attempts", 0), said.get("expires_at", 0.0))


PLAIN = Terms()


class Job(msgspec.Struct, gc=False, eq=False):
    """A job of the realm, under every tag of `tags`, in one queue or more.

    Nearly every job stands in one queue, and a million tuples of one place each would be 48 MB: so its first
    place stands apart from the others. As a Struct that no collector looks at it takes 80 bytes and not 96, and is made
    in half the time of a class with slots.
    """

    key: int
    job_id: str
    data: bytes | Large | None
    tags: tuple[str, ...]
    terms: Terms = PLAIN
    gates: tuple[Gate, ...] = ()  # what holds it up: they name its lane in each of its queues
    first: Place | None = None
    others: tuple[Place, ...] = ()

    @property
    def data_bytes(self) -> int:
        """The length of its data as JSON."""
        return self.data.size if isinstance(self.data, Large) else len(self.data or b"")

    @property
    def inline_bytes(self) -> int:
        """Of its data, what memory holds."""
        return 0 if self.data is None or isinstance(self.data, Large) else len(self.data)

    @property
    def places(self) -> tuple[Place, ...]:
        """Its place in each of its queues."""
        return () if self.first is None else (self.first, *self.others)

    def holds(self, place: Place) -> bool:
        """Whether this very place is one of the job's."""
        return self.first is place or (bool(self.others) and any(held is place for held in self.others))

    def place_in(self, queue_id: QueueId) -> Place | None:
        """The job's place in a queue."""
        if self.first is not None and self.first.queue.queue_id == queue_id:  # as nearly always
            return self.first
        return next((place for place in self.others if place.queue.queue_id == queue_id), None)

    def place_of(self, key: int) -> Place | None:
        """The job's place of this key."""
        if self.first is not None and self.first.key == key:  # as nearly always
            return self.first
        return next((place for place in self.others if place.key == key), None)

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


class History(NamedTuple):
    """What became of a job in a queue so far. The jobs of one pull share theirs, as far as they can."""

    leased_at: float  # of the lease in force, else 0
    lease: int  # number of the pull whose lease is in force, also once it ran out and nobody took the job since; else 0
    nacks: int
    expiries: int  # leases that ran out, without the one in force
    mark: int
    worker: str  # the name that the worker of that lease gave

    @property
    def attempt(self) -> int:
        """The number of the last hand-out, from 1; 0 if none counts."""
        return self.nacks + self.expiries + (1 if self.lease and self.mark != MARK_DEAD else 0)


FRESH = History(0.0, 0, 0, 0, MARK_NONE, "")


class Place(msgspec.Struct, frozen=True, order=True, gc=False):
    """A job in a queue. Its first two fields order it there.

    As a Struct it takes 56 bytes and not 80, and its fields are read at a third of the cost.
    """

    at: float  # ready since then; while leased, the end of the lease; while delayed, when it will be ready
    key: int
    queue: Queue
    job: Job
    history: History

    @property
    def turn(self) -> tuple[float, int]:
        """What orders it."""
        return self.at, self.key

    def row(self) -> PlaceRow:
        """The place as the store keeps it."""
        return (self.key, self.job.key, self.queue.key, self.at, *self.history)


def is_live(place: Place) -> bool:
    """Whether the entry of a heap still counts."""
    return place.job.holds(place)


def live_of(places: list[Place]) -> list[Place]:
    """Those that still count. A call for each of a million would hold up the shard for a quarter of a second."""
    return [place for place in places if place.job.first is place or (place.job.others and place.job.holds(place))]
