"""A queue: the places of one queue id, each where its state says. No rules live here.

What waits for an instant, leased or delayed, is in `waiting`, ordered by it; what is dead is in `dead`; all else is
ready or blocked and stands in a `Lane`, ordered by since when. Places that no gate concerns share one lane, `plain`;
for each set of gates there is another, so that what is held up is never looked at.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

from restq.names import QueueId
from restq.shards.gates import After, Gate, Limit
from restq.shards.heap import LazyHeap
from restq.shards.job import Job, Place, is_live, live_of
from restq.shards.roll import Roll
from restq.shards.settings import PLAIN_QUEUE, QueueSettings

TAG_HEAPS_MAX = 256  # of one lane, for pulls that ask for tags


def _new_heap() -> LazyHeap[Place]:
    return LazyHeap(is_live, live_of)


class Lane:
    """The ready places of a queue that the very same gates hold up: served while none of these is shut."""

    __slots__ = ("blocked_count", "gates", "heap", "in_line", "queue", "shut_count", "tag_counts", "tag_heaps")

    def __init__(self, queue: Queue, gates: tuple[Gate, ...]) -> None:
        self.queue = queue
        self.gates = gates
        self.heap = _new_heap()
        self.in_line: tuple[float, int] | None = None  # under which of its places it stands in its queue's line
        # A second heap for a tag that pulls asked for, made when it is first asked for.
        self.tag_heaps: dict[str, LazyHeap[Place]] = {}
        comes_after = [gate for gate in gates if isinstance(gate, After)]
        self.tag_counts: dict[str, int] | None = {} if comes_after else None  # places by tag, where they may be blocked
        self.shut_count = sum(gate.is_shut for gate in gates)
        self.blocked_count = sum(gate.is_shut for gate in comes_after)
        for gate in gates:
            gate.lanes[self] = None

    def gate_turned(self, gate: Gate) -> None:
        """One of its gates was opened or shut."""
        step = 1 if gate.is_shut else -1
        self.shut_count += step
        if isinstance(gate, After):
            self.blocked_count += step
        self.queue.lane_turned(self)

    def push(self, place: Place) -> None:
        """Hold a place, which its job holds already."""
        self.heap.push(place)
        if self.gates and not self.shut_count:
            self.queue.line_up(self)
        if self.tag_heaps:
            for tag in place.job.tags:
                if tag in self.tag_heaps:
                    self.tag_heaps[tag].push(place)
        if self.tag_counts is not None:
            for tag in place.job.tags:
                self.tag_counts[tag] = self.tag_counts.get(tag, 0) + 1

    def discard(self, job: Job, popped_from: LazyHeap[Place] | None = None) -> None:
        """Forget a place that its job just let go of; `popped_from` does not have it any more."""
        if self.heap is not popped_from:
            self.heap.discard()
        if self.tag_heaps:
            for tag in job.tags:
                heap = self.tag_heaps.get(tag)
                if heap is not None and heap is not popped_from:
                    heap.discard()
        if self.tag_counts is not None:
            for tag in job.tags:
                self.tag_counts[tag] -= 1

    def heaps(self, tags: dict[str, Roll] | None, now: float) -> list[LazyHeap[Place]]:
        """What to pull from: all of it, or what carries one of these tags, given with the jobs that carry each."""
        if tags is None:
            return [self.heap]
        found = [self._tag_heap(tag, carriers, now) for tag, carriers in tags.items()]
        while len(self.tag_heaps) > max(TAG_HEAPS_MAX, len(tags)):
            del self.tag_heaps[next(iter(self.tag_heaps))]  # the one that nobody asked for the longest
        return found

    def _tag_heap(self, tag: str, carriers: Roll, now: float) -> LazyHeap[Place]:
        heap = self.tag_heaps.pop(tag, None)
        if heap is None:
            heap = _new_heap()
            if len(carriers) < len(self.heap):
                heap.rebuild(self._held_of(carriers, now))
            else:
                heap.rebuild([place for place in live_of(self.heap.entries) if tag in place.job.tags])
        self.tag_heaps[tag] = heap
        return heap

    def _held_of(self, jobs: Roll, now: float) -> list[Place]:
        found = []
        for job in jobs:
            place = job.place_in(self.queue.queue_id)
            if place is not None and job.gates == self.gates and place.at <= now and place.key not in self.queue.dead:
                found.append(place)
        return found


class Queue:
    """The places of one queue id."""

    __slots__ = (
        *("counts", "dead", "due_at", "key", "lanes", "lapsed", "lease_time", "limit", "open", "plain", "queue_id"),
        *("settings", "waiting", "_line", "_line_count"),
    )

    def __init__(self, key: int, queue_id: QueueId, lease_time: float) -> None:
        self.key = key
        self.queue_id = queue_id
        self.lease_time = lease_time
        self.settings: QueueSettings = PLAIN_QUEUE
        self.limit: Limit | None = None
        self.counts = [0, 0, 0, 0]  # by state
        self.due_at = math.inf  # it is on the agenda for then
        self.waiting = _new_heap()
        self.lapsed: list[Place] = []  # queued; leases ran out before a start: for `endings.settle_lapsed`
        self.dead: dict[int, Place] = {}
        self.plain = Lane(self, ())
        self.lanes: dict[tuple[Gate, ...], Lane] = {(): self.plain}
        self.open: dict[Lane, None] = {self.plain: None}
        # The open lanes but for the plain one, by the first place of each, or an earlier one: put right when looked at.
        self._line: list[tuple[tuple[float, int], int, Lane]] = []
        self._line_count = 0

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def next_at(self) -> float:
        """When something is to happen to its places; infinity if never."""
        first = self.waiting.peek()
        return 0.0 if self.lapsed else math.inf if first is None else first.at

    @property
    def is_shut(self) -> bool:
        """Whether its own limit holds everything."""
        return self.limit is not None and self.limit.is_shut

    @property
    def blocked_count(self) -> int:
        """Places that stand behind a tag which jobs still carry."""
        return sum(len(lane.heap) for lane in self.lanes.values() if lane.blocked_count)

    def lane(self, gates: tuple[Gate, ...]) -> Lane:
        """The lane behind these gates, made if need be."""
        if not gates:
            return self.plain
        found = self.lanes.get(gates)
        if found is None:
            found = self.lanes[gates] = Lane(self, gates)
            self.lane_turned(found)
        return found

    def lane_turned(self, lane: Lane) -> None:
        """A lane can be served from now on, or can't."""
        if lane.shut_count:
            self.open.pop(lane, None)
        else:
            self.open[lane] = None
            self.line_up(lane)

    def line_up(self, lane: Lane) -> None:
        """Have an open lane stand in line under its first place, unless it stands there under an earlier one."""
        first = lane.heap.peek()
        if first is not None and (lane.in_line is None or first.turn < lane.in_line):
            lane.in_line = first.turn
            self._line_count += 1
            heappush(self._line, (lane.in_line, self._line_count, lane))

    def first(self) -> tuple[Place, Lane] | None:
        """The place that is next, of all open lanes, and its lane: O(log lanes), however many there are."""
        best = self.plain.heap.peek()
        while self._line:
            at, _, lane = self._line[0]
            if at != lane.in_line:  # it stands in line elsewhere
                heappop(self._line)
                continue
            place = None if lane.shut_count else lane.heap.peek()
            if place is not None and place.turn == at:
                return (place, lane) if best is None or place < best else (best, self.plain)
            lane.in_line = None
            heappop(self._line)
            if place is not None:
                self.line_up(lane)
        return None if best is None else (best, self.plain)

    def drop_if_empty(self, lane: Lane) -> None:
        """Forget a lane that holds nothing; the plain one stays."""
        if lane is self.plain or len(lane.heap):
            return
        del self.lanes[lane.gates]
        self.open.pop(lane, None)
        lane.in_line = None
        for gate in lane.gates:
            del gate.lanes[lane]

    def pop(self) -> tuple[Place, LazyHeap[Place] | None] | None:
        """Any of its places, and the heap that it was taken out of; None when there is none."""
        for lane in self.lanes.values():  # one that is empty is not among them, but for the plain one
            if (place := lane.heap.pop()) is not None:
                return place, lane.heap
        if (place := self.waiting.pop()) is not None:
            return place, self.waiting
        # The last one: the first would be looked for behind all that were taken before.
        return (self.dead[next(reversed(self.dead))], None) if self.dead else None

    def put_back(self, place: Place, heap: LazyHeap[Place]) -> None:
        """Hold a place again that was taken out of the heap of one of its lanes, which may be gone by now."""
        lane = self.lane(place.job.gates)
        if heap is lane.heap or any(heap is other for other in lane.tag_heaps.values()):
            heap.push(place)
            if lane.gates and not lane.shut_count:
                self.line_up(lane)
        else:
            lane.push(place)

    def dissolve(self) -> None:
        """Let go of everything, and of the cycles in it."""
        for lane in list(self.lanes.values()):
            lane.heap.rebuild([])
            lane.tag_heaps.clear()
            for gate in lane.gates:
                gate.lanes.pop(lane, None)
        self.waiting.rebuild([])
        self.lapsed.clear()
        self._line.clear()
        for container in (self.dead, self.lanes, self.open):
            container.clear()
        del self.plain
