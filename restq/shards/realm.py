"""The core: one realm's jobs, queues and tags, and the one way in which a job goes from state to state.

A realm is a data structure. It does no input or output, reads no clock (`now` is an argument, in seconds
since the epoch), starts nothing, and knows neither web nor store. A method decides: it changes the structure,
notes the rows that changed in the `Changes` it was made with, and returns its reply. Whoever drives it keeps
the rows and only then shows the reply. What raises has changed nothing. What users ask of a realm stands beside it, a
noun a file: `adding`, `leasing`, `finishing`, `operating`, `sweeps`, `listing`.

The theory. A job stands in one or more queues; each (job, queue) pair is a `Place`, a value that is never
changed: whatever happens to it puts another one in its stead. Its state follows from the value and the realm's clock:

    dead       it is marked so
    leased     its `at`, the end of the lease, is yet to come
    delayed    its `at` is yet to come, and there is no lease
    queued     else: ready, or blocked by a tag that its job comes after

`advance` moves the clock: only there do leases run out, delays end and jobs expire, in the order of their instants.
Each queue holds its places where their state says (see `queue`), so a pull never meets one that it can't have.

`key` orders what `at` cannot: keys come from one counter of the shard that only grows, so equal instants are
served in the order in which they were added, also after a restart.
"""

from __future__ import annotations

import sys
from bisect import insort
from collections.abc import Callable, Iterator
from typing import Any

from restq.errors import JobNotFound
from restq.names import QueueId, queue_order
from restq.shards import endings, limits, rows
from restq.shards.agenda import Agenda, Expiries
from restq.shards.bounds import UNBOUNDED
from restq.shards.changes import Changes, Keys, Task
from restq.shards.data import INLINE_BYTES_MAX, Large, large
from restq.shards.events import Event
from restq.shards.gates import Limit
from restq.shards.heap import LazyHeap
from restq.shards.invariants import check
from restq.shards.job import DEAD, DELAYED, FRESH, LEASED, MARK_DEAD, QUEUED, History, Job, Place, Terms
from restq.shards.queue import Queue
from restq.shards.renumbering import UNMOVED, FirstKeys
from restq.shards.roll import Roll
from restq.shards.settings import PLAIN_REALM, RealmSettings
from restq.shards.tags import TagIndex


class Realm:
    """One named, isolated world of jobs.

    `keys` gives numbers that only grow; `changes` gathers the rows; `chance` gives numbers between 0 and 1, for jitter.
    A new realm is not noted before something is written to it: reading one that never was makes nothing.
    """

    __slots__ = tuple(
        "agenda born bounds changes chance clock data_bytes default_lease_time epoch events exists expiries first_keys"
        " inline_bytes jobs key keys name other_leases pinned place_count queues result_count roll settings tags task"
        " _order".split()
    )

    def __init__(
        self,
        key: int,
        name: str,
        default_lease_time: float,
        keys: Keys,
        changes: Changes,
        chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.key = key
        self.name = name
        self.default_lease_time = default_lease_time
        self.settings: RealmSettings = PLAIN_REALM
        self.epoch = 1
        self.first_keys: FirstKeys = UNMOVED
        self.born = 0
        self.pinned = False
        self.exists = False
        self.task: Task | None = None
        self.clock = 0.0
        self.jobs: dict[str, Job] = {}
        self.roll = Roll()
        self.data_bytes = 0  # of the ids and the data of all jobs
        self.inline_bytes = 0  # of these, what memory holds
        self.place_count = 0
        self.tags = TagIndex()
        self.queues: dict[QueueId, Queue] = {}
        self.other_leases: dict[int, Job] = {}  # see `finishing.held_under`
        self.result_count = 0
        self.agenda = Agenda()
        self.expiries = Expiries()
        self.keys = keys
        self.changes = changes
        self.chance = chance
        self.bounds = UNBOUNDED  # of all realms that are together in a shard
        self.events: list[Event] | None = None  # what happens goes there while somebody listens
        self._order: list[Queue] = []  # the queues, in the order in which they are served

    def __del__(self) -> None:
        """Cut the cycles between its jobs, places, lanes and queues: no collector would."""
        for job in self.jobs.values():
            job.let_go()
        for queue in self.queues.values():
            queue.dissolve()

    # -- time --------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When something is to happen by itself; infinity if never."""
        return min(self.agenda.next_at(), self.expiries.next_at())

    def advance(self, now: float, count: int = sys.maxsize) -> int:
        """Let time pass until `now`: leases run out, delays end, jobs expire, rates let pass again.

        Stops after `count` of these; returns how much of it is left. Where that is none, nothing else may be asked
        before a further call has left some. An instant that lies behind the last one is that one.
        """
        while count > 0 and (at := self.next_deadline()) <= now:
            self.clock = max(self.clock, at)
            if self.agenda.next_at() <= at:
                count -= self._come_due(count)
            else:
                endings.expire(self, self.expiries.pop())
                count -= 1
        if count > 0:
            self.clock = max(self.clock, now)
        return count

    def _come_due(self, count: int) -> int:
        """What the agenda says; returns how much that was."""
        thing = self.agenda.pop()
        if isinstance(thing, Limit):
            limits.refresh(self, thing)
            return 1
        assert isinstance(thing, Queue), "the agenda holds queues and limits"
        done = endings.settle_lapsed(self, thing.lapsed, count)
        while done < count and (place := thing.waiting.peek()) is not None and place.at <= self.clock:
            thing.waiting.pop()
            state = LEASED if place.history.lease else DELAYED
            self.let_go(place, state, thing.waiting)
            self.hold(place)
            if state == LEASED:
                endings.lease_ran_out(self, place)
            done += 1
        self.agenda.put(thing, thing.next_at)
        return done or 1

    # -- from state to state -----------------------------------------------------------------------------------

    def state_of(self, place: Place) -> int:
        """QUEUED, LEASED, DELAYED or DEAD."""
        if place.history.mark == MARK_DEAD:
            return DEAD
        if place.at <= self.clock:
            return QUEUED
        return LEASED if place.history.lease else DELAYED

    def enter(self, job: Job, queue: Queue, key: int, at: float, history: History) -> None:
        """Put the job into one more queue."""
        place = Place(at, key, queue, job, history)
        job.add(place)
        self.place_count += 1
        if job.gates or at > self.clock or history is not FRESH:
            self.hold(place)
        else:  # as nearly every add
            queue.plain.push(place)
            queue.counts[QUEUED] += 1
            for tag in job.tags:
                self.tags[tag].counts[QUEUED] += 1
        self.changes.places[key] = (key, job.key, queue.key, at, *history)
        if self.events is not None:
            self.tell("added", place)

    def replace(self, old: Place, at: float, history: History) -> Place:
        """Put a new place in the stead of `old`."""
        key, queue, job = old.key, old.queue, old.job
        state = self.state_of(old)
        new = Place(at, key, queue, job, history)
        job.replace(old, new)
        self.let_go(old, state)
        self.hold(new)
        self.changes.places[key] = (key, job.key, queue.key, at, *history)
        return new

    def check_out(self, old: Place, at: float, history: History, popped_from: LazyHeap[Place] | None) -> Place:
        """Lease a queued place until `at`: `replace` for the one thing that restq does most, and limits count it."""
        key, queue, job = old.key, old.queue, old.job
        new = Place(at, key, queue, job, history)
        job.replace(old, new)
        lane = queue.plain
        if job.gates or lane.tag_heaps or popped_from is not lane.heap:
            lane = queue.lane(job.gates)
            lane.discard(job, popped_from)
            queue.drop_if_empty(lane)
        queue.waiting.push(new)
        if at < queue.due_at:
            self.agenda.put(queue, at)
        queue.counts[QUEUED] -= 1
        queue.counts[LEASED] += 1
        for tag in job.tags:
            counts = self.tags[tag].counts
            counts[QUEUED] -= 1
            counts[LEASED] += 1
        if key != job.key:
            self.other_leases[key] = job
        if job.gates or queue.limit is not None:
            for limit in limits.of(new):
                limit.took(self.clock)
                limits.passed(self, limit)
        self.changes.places[key] = (key, job.key, queue.key, at, *history)
        if self.events is not None:
            self.tell("leased", new, attempt=history.attempt, worker=history.worker)
        return new

    def tell(self, kind: str, place: Place, **facts: Any) -> None:
        """Say what happened to a place, if somebody listens."""
        if self.events is not None:
            self.events.append((kind, self.name, place.job.job_id, place.queue.queue_id, self.clock, facts))

    def hold(self, place: Place) -> None:
        """Have a place, which its job holds already, where its state says."""
        at, key, queue, job, history = place.at, place.key, place.queue, place.job, place.history
        if history.mark == MARK_DEAD:
            state = DEAD
            queue.dead[key] = place
        elif at <= self.clock:
            state = QUEUED
            queue.lane(job.gates).push(place)
        else:
            state = LEASED if history.lease else DELAYED
            queue.waiting.push(place)
            if at < queue.due_at:
                self.agenda.put(queue, at)
        if history.lease:
            if key != job.key:
                self.other_leases[key] = job
            if state == LEASED and (job.gates or queue.limit is not None):
                for limit in limits.of(place):
                    limit.leased_count += 1
                    limit.refresh(self.clock)
        queue.counts[state] += 1
        for tag in job.tags:
            self.tags[tag].counts[state] += 1

    def let_go(self, place: Place, state: int, popped_from: LazyHeap[Place] | None = None) -> None:
        """Have a place no more, which was in this state and which its job let go of or is to be held anew."""
        key, queue, job, history = place.key, place.queue, place.job, place.history
        if state == QUEUED:
            lane = queue.lane(job.gates) if job.gates else queue.plain
            lane.discard(job, popped_from)
            if job.gates:
                queue.drop_if_empty(lane)
        elif state == DEAD:
            del queue.dead[key]
        elif popped_from is not queue.waiting:
            queue.waiting.discard()
        if history.lease:
            if key != job.key:
                del self.other_leases[key]
            if state == LEASED and (job.gates or queue.limit is not None):
                for limit in limits.of(place):
                    limit.ended(self.clock)
        queue.counts[state] -= 1
        for tag in job.tags:
            self.tags[tag].counts[state] -= 1

    # -- jobs come and go --------------------------------------------------------------------------------------

    def make_job(self, key: int, job_id: str, text: bytes | None, new_tags: tuple[str, ...], terms: Terms) -> Job:
        """A job that stands in no queue yet."""
        tags = self.tags.shared(new_tags)
        job = self.jobs[job_id] = Job(key, job_id, text, tags)
        self.roll.append(job)
        for tag in tags:
            self.tags.carry(tag, job)
        if text is not None and len(text) > INLINE_BYTES_MAX:
            job.data = large(text)
            self.changes.payloads[key] = text
        self.data_bytes += len(job_id) + (len(text) if text else 0)
        self.inline_bytes += len(job_id) + job.inline_bytes
        if any(terms):
            job.terms = self.tags.shared_terms(terms)
            if terms.expires_at:
                self.expiries.put(job, terms.expires_at)
        if terms.after or self.tags.limits:
            self.tags.set_gates(job, self.tags.gates_of(job))
        self.note_job(job)
        return job

    def drop(
        self, job: Job, popped: Place | None = None, popped_from: LazyHeap[Place] | None = None, event: str = "removed"
    ) -> None:
        """Let go of the job; its place `popped` is out of the heap `popped_from` already."""
        changes = self.changes
        self.data_bytes -= len(job.job_id) + job.data_bytes
        self.inline_bytes -= len(job.job_id) + job.inline_bytes
        if isinstance(job.data, Large):
            changes.payloads[job.key] = None
        if job.terms.expires_at:
            self.expiries.discard(job)
        for place in job.let_go():
            self.let_go(place, self.state_of(place), popped_from if place is popped else None)
            self._forget_place(place, event)
        if job.gates:
            self.tags.set_gates(job, ())
        self.tags.drop(job)
        del self.jobs[job.job_id]
        self.roll.dropped()
        changes.jobs[job.key] = None

    def take_out(self, place: Place, popped_from: LazyHeap[Place] | None = None, event: str = "removed") -> bool:
        """Take a job out of one of its queues; returns whether it stood in no other and is gone."""
        job = place.job
        if not job.others:
            self.drop(job, place, popped_from, event)
            return True
        state = self.state_of(place)
        job.leave(place)
        self.let_go(place, state, popped_from)
        self._forget_place(place, event)
        return False

    def _forget_place(self, place: Place, event: str) -> None:
        if self.events is not None:
            self.tell(event, place)
        self.place_count -= 1
        self.changes.places[place.key] = None
        if place.history.nacks or place.history.expiries:
            self.changes.failures[place.key] = None

    # -- looking -----------------------------------------------------------------------------------------------

    def get_job(self, job_id: str) -> Job:
        """The job. Raises JobNotFound."""
        job = self.jobs.get(job_id)
        if job is None:
            raise JobNotFound(f"realm {self.name!r} has no job {job_id!r}", "job_id")
        return job

    def place(self, job_id: str, queue_id: QueueId) -> Place | None:
        """The job's place in a queue, if it has one."""
        job = self.jobs.get(job_id)
        return None if job is None else job.place_in(queue_id)

    def served(self, max_queue: QueueId | None = None) -> Iterator[Queue]:
        """The queues up to and with `max_queue`, in the order in which they are served."""
        if max_queue is None:
            return iter(self._order)
        last = queue_order(max_queue)
        return (queue for queue in self._order if queue_order(queue.queue_id) <= last)

    # -- queues, settings and rows -----------------------------------------------------------------------------

    def queue(self, queue_id: QueueId) -> Queue:
        """The queue of this id, made if need be."""
        queue = self.queues.get(queue_id)
        if queue is None:
            queue = Queue(self.keys.take(), queue_id, self.default_lease_time)
            self.hold_queue(queue)
            self.note_queue(queue)
        return queue

    def hold_queue(self, queue: Queue) -> None:
        """Have this queue among those that are served."""
        self.queues[queue.queue_id] = queue
        insort(self._order, queue, key=lambda held: queue_order(held.queue_id))

    def note_job(self, job: Job) -> None:
        """The job's row changed."""
        self.changes.jobs[job.key] = rows.job_row(self, job)

    def note_queue(self, queue: Queue) -> None:
        """The queue's row changed."""
        self.changes.queues[queue.key] = rows.queue_row(self, queue)

    def set_task(self, task: Task | None) -> None:
        """Note in the realm's row which long task holds the realm from now on, or that none does."""
        self.task = task
        self.write(changed=True)

    def write(self, changed: bool = False) -> None:
        """Something is written to the realm: it exists from now on."""
        if not self.exists:
            self.exists, self.born = True, self.keys.birth(self.clock)
            changed = True
        if changed:
            self.changes.realms[self.key] = rows.realm_row(self)

    def check(self) -> None:
        """Assert that tag index, heaps and counts are what the jobs alone say. For tests: O(everything)."""
        check(self)
