"""The core: one realm's jobs, queues, leases and tags. Every rule about them lives here and nowhere else.

A realm is a data structure. It does no input or output, reads no clock (`now` is an argument, in seconds
since the epoch), starts nothing, and knows neither web nor store. A method decides: it changes the structure,
notes the rows that changed in the `Changes` it was made with, and returns its reply. Whoever drives it keeps
the rows and only then shows the reply. What raises has changed nothing.

The theory. A job stands in one or more queues; each (job, queue) pair is a `Place`, a value that is never
changed: a lease replaces it by another one. A queue holds its places in two heaps, ordered by the instant
`at`: `ready`, those whose `at` has come, and `waiting`, those that are leased until then. So a pull never
meets a leased place, and a lease that ends needs no action but the passing of time. An entry of a heap is
live while its job still holds that very Place, so removing a job touches no heap but by a count.

`key` orders what `at` cannot: keys come from one counter of the shard that only grows, so equal instants are
served in the order in which they were added, also after a restart.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from restq.errors import (
    DataDiffers,
    FieldInvalid,
    JobLeased,
    JobNotFound,
    JobNotInQueue,
    TagNotFound,
)
from restq.names import QueueId, queue_order
from restq.shards.changes import Changes, JobRow, Keys, QueueRow, RealmRow, Task
from restq.shards.data import INLINE_BYTES_MAX, Large, large, same
from restq.shards.invariants import check
from restq.shards.queue import NEVER, Job, Lease, Place, Queue, make_place
from restq.shards.tags import TagIndex

LEASE_SECONDS_MAX = 1e9
PULL_BYTES_MAX = 32 << 20  # of data in one pull: the job that reaches it is the last


# A job to add, its names checked: job id, queue id, data as JSON text or None to say nothing about it, sorted tags.
NewJob = tuple[str, QueueId, bytes | None, tuple[str, ...]]


class Realm:
    """One named, isolated world of jobs.

    `keys` gives numbers that only grow; `changes` gathers the rows. A new realm is not noted there before
    something is written to it: reading one that never was makes nothing.
    """

    __slots__ = (
        *("default_lease_time", "epoch", "exists", "jobs", "key", "name", "pinned", "queues", "tags", "task"),
        *("_changes", "_keys", "_order"),
    )

    def __init__(self, key: int, name: str, default_lease_time: float, keys: Keys, changes: Changes) -> None:
        self.key = key
        self.name = name
        self.default_lease_time = default_lease_time
        self.epoch = 1
        self.pinned = False
        self.exists = False
        self.task: Task | None = None
        self.jobs: dict[str, Job] = {}
        self.tags = TagIndex()
        self.queues: dict[QueueId, Queue] = {}
        self._order: list[Queue] = []  # the queues, in the order in which they are served
        self._keys = keys
        self._changes = changes

    # -- adding ------------------------------------------------------------------------------------------------

    def check_add(self, new_jobs: Sequence[NewJob], indexes: Sequence[int] | None = None) -> None:
        """Raise DataDiffers if a job exists, in the realm or further up, with other data; `indexes` say which it is."""
        jobs = self.jobs
        fresh: dict[str, bytes | None] = {}
        for index, (job_id, _, data, _) in zip(indexes or range(len(new_jobs)), new_jobs, strict=True):
            known: bytes | Large | None
            if job_id in jobs:
                known = jobs[job_id].data
            elif job_id in fresh:
                known = fresh[job_id]
            else:
                fresh[job_id] = data
                continue
            if data is not None and not same(known, data):
                where = f"jobs[{index}]: " if indexes or len(new_jobs) > 1 else ""
                raise DataDiffers(f"{where}job {job_id!r} already exists with other data", "data")

    def add(self, new_jobs: Sequence[NewJob], now: float) -> None:
        """Put every job into its queue: all of them, or, where one has other data than before, none.

        A job that exists gets the queue and the tags added; its leases stay as they are.
        """
        self.check_add(new_jobs)
        if new_jobs:
            self._write()
        jobs, rows, keys = self.jobs, self._changes.places, self._keys
        queue: Queue | None = None
        for job_id, queue_id, data, tags in new_jobs:
            if queue is None or queue.queue_id != queue_id:
                queue = self._queue(queue_id)
                queue.advance(now)
            job = jobs.get(job_id)
            key = keys.take()
            if job is None:
                job = self._make_job(key, job_id, data, tags)  # a job shares the key of its first place
            else:
                self._tag(job, tags)
                if job.place_in(queue_id) is not None:
                    continue
            place = make_place((now, key, queue, job, NEVER))
            job.add(place)
            queue.ready.push(place)
            rows[key] = (key, job.key, queue.key, now, 0.0, 0)

    def _make_job(self, key: int, job_id: str, text: bytes | None, new_tags: tuple[str, ...]) -> Job:
        tags = self.tags.shared(new_tags)
        job = self.jobs[job_id] = Job(key, job_id, text, tags)
        for tag in tags:
            self.tags.carry(tag, job)
        if text is not None and len(text) > INLINE_BYTES_MAX:
            job.data = large(text)
            self._changes.payloads[key] = text
        self._changes.jobs[key] = self.job_row(job)
        return job

    def _queue(self, queue_id: QueueId) -> Queue:
        queue = self.queues.get(queue_id)
        if queue is not None:
            return queue
        queue = Queue(self._keys.take(), queue_id, self.default_lease_time)
        self.hold_queue(queue)
        self._changes.queues[queue.key] = self.queue_row(queue)
        return queue

    def hold_queue(self, queue: Queue) -> None:
        """Have this queue among those that are served."""
        self.queues[queue.queue_id] = queue
        insort(self._order, queue, key=lambda held: queue_order(held.queue_id))

    def _tag(self, job: Job, tags: tuple[str, ...]) -> None:
        added = [tag for tag in tags if tag not in job.tags]
        if added:
            job.tags = self.tags.shared(tuple(sorted((*job.tags, *added))))
            for tag in added:
                self.tags.carry(tag, job)
            self._changes.jobs[job.key] = self.job_row(job)

    # -- leasing -----------------------------------------------------------------------------------------------
    def pull(self, count: int, max_queue: QueueId | None, now: float) -> list[Place]:
        """Lease up to `count` jobs: lowest queue first, longest ready first within it.

        A job is never returned twice by one pull, even where it is ready in two queues. Queues above `max_queue`
        are left alone; so is all else once PULL_BYTES_MAX are reached. An empty realm gives none: that is no error.
        """
        taken: set[str] = set()
        size = 0
        leased: list[Place] = []
        if not self.jobs or count < 1:
            return leased
        lease = self.next_lease(now)
        for queue in self.served(max_queue):
            if len(leased) >= count:
                break
            queue.advance(now)
            passed_over: list[Place] = []
            while len(leased) < count and size < PULL_BYTES_MAX and (place := queue.ready.pop()) is not None:
                if place.job.job_id in taken:
                    passed_over.append(place)
                    continue
                taken.add(place.job.job_id)
                size += place.job.data_bytes
                leased.append(self._replace(place, now + queue.lease_time, lease))
            for place in passed_over:
                queue.ready.push(place)
        return leased

    def peek(self, count: int, max_queue: QueueId | None, now: float) -> list[Place]:
        """What `pull` would lease now, in its order; nothing is leased."""
        found: dict[str, Place] = {}
        for queue in self.served(max_queue):
            if len(found) >= count:
                break
            queue.advance(now)
            seen: list[Place] = []
            while len(found) < count and (place := queue.ready.pop()) is not None:
                seen.append(place)
                found.setdefault(place.job.job_id, place)
            for place in seen:
                queue.ready.push(place)
        return list(found.values())

    def next_lease(self, now: float) -> Lease:
        """The lease of a pull, with a number that was never used."""
        return Lease(self._keys.take(), now)

    def lease(self, job_id: str, queue_id: QueueId, lease: Lease) -> Place | None:
        """Lease this job out of this queue as of `lease.at`; None where it is not ready there (any more)."""
        place = self._place(job_id, queue_id)
        if place is None or place.at > lease.at:
            return None
        place.queue.advance(lease.at)
        return self._replace(place, lease.at + place.queue.lease_time, lease, held=True)

    def _place(self, job_id: str, queue_id: QueueId) -> Place | None:
        job = self.jobs.get(job_id)
        return None if job is None else job.place_in(queue_id)

    def undo_pull(self, lease: int, pairs: Iterable[tuple[str, QueueId]]) -> int:
        """Give back what pull number `lease` leased and nobody received: ready again, ahead of its queue.

        Of the (job id, queue id) pairs only those count that this very pull still holds. Returns how many.
        """
        undone = 0
        for job_id, queue_id in pairs:
            place = self._place(job_id, queue_id)
            if place is not None and place.lease.number == lease:
                self._replace(place, 0.0, NEVER, held=True)
                undone += 1
        return undone

    def served(self, max_queue: QueueId | None = None) -> Iterator[Queue]:
        """The queues up to and with `max_queue`, in the order in which they are served."""
        if max_queue is None:
            return iter(self._order)
        last = queue_order(max_queue)
        return (queue for queue in self._order if queue_order(queue.queue_id) <= last)

    def _replace(self, old: Place, at: float, lease: Lease, held: bool = False) -> Place:
        """A new place in the stead of `old`, which its heap still holds if `held`."""
        _, key, queue, job, _ = old
        new = make_place((at, key, queue, job, lease))
        job.replace(old, new)
        if held:
            queue.discard(old)
        queue.push(new)
        number, leased_at = lease
        self._changes.places[key] = (key, job.key, queue.key, at, leased_at, number)
        return new

    # -- removing and moving -----------------------------------------------------------------------------------

    def remove_job(self, job_id: str) -> None:
        """Take the job out of every queue and tag. Raises JobNotFound."""
        self.drop(self.get_job(job_id))

    def remove_jobs(self, job_ids: Iterable[str]) -> int:
        """Remove those that are there; returns how many."""
        count = len(self.jobs)
        for job_id in job_ids:
            if job_id in self.jobs:
                self.drop(self.jobs[job_id])
        return count - len(self.jobs)

    def drop(self, job: Job, popped: Place | None = None) -> None:
        """Let go of the job; its place `popped` is out of its heap already."""
        changes = self._changes
        is_large = isinstance(job.data, Large)
        for place in job.let_go():
            if place is not popped:
                place.queue.discard(place)
            changes.places[place.key] = None
        self.tags.drop(job)
        del self.jobs[job.job_id]
        changes.jobs[job.key] = None
        if is_large:
            changes.payloads[job.key] = None

    def move_job(self, job_id: str, from_queue: QueueId, to_queue: QueueId, now: float) -> None:
        """Take the job out of one queue and put it at the end of another, which comes to be if need be.

        Raises JobNotInQueue where there is no such job in `from_queue`, JobLeased while it is leased out of it.
        A job that stands in `to_queue` already just leaves `from_queue`.
        """
        job = self.jobs.get(job_id)
        if job is None:
            raise JobNotInQueue(f"realm {self.name!r} has no job {job_id!r}", "job_id")
        if from_queue not in self.queues:
            raise JobNotInQueue(f"realm {self.name!r} has no queue {from_queue!r}", "from_queue")
        old = self._place(job_id, from_queue)
        if old is None:
            raise JobNotInQueue(f"job {job_id!r} is not in queue {from_queue!r}", "from_queue")
        if old.lease.number and old.at > now:
            raise JobLeased(f"job {job_id!r} is leased out of queue {from_queue!r}", "from_queue")
        if from_queue == to_queue:
            return
        self.add([(job_id, to_queue, None, ())], now)
        self.leave(old)

    def leave(self, place: Place, popped: bool = False) -> None:
        """Take a job out of one of its queues; it stays in others."""
        place.job.leave(place)
        if not popped:
            place.queue.discard(place)
        self._changes.places[place.key] = None

    # -- looking -----------------------------------------------------------------------------------------------

    def get_job(self, job_id: str) -> Job:
        """The job. Raises JobNotFound."""
        job = self.jobs.get(job_id)
        if job is None:
            raise JobNotFound(f"realm {self.name!r} has no job {job_id!r}", "job_id")
        return job

    def get_tagged_jobs(self, tag: str) -> list[Job]:
        """Every job that carries the tag, in the order in which they were added. Raises TagNotFound."""
        return sorted(self._carriers(tag), key=lambda job: job.key)

    def get_tag_status(self, tag: str) -> int:
        """How many jobs carry the tag: O(1). Raises TagNotFound."""
        return len(self._carriers(tag))

    def _carriers(self, tag: str) -> set[Job]:
        if tag not in self.tags:
            raise TagNotFound(f"no job of realm {self.name!r} is tagged {tag!r}", "tag")
        return self.tags[tag]

    def status(self) -> dict[str, Any]:
        """The counts of the realm: its jobs, its tags, the jobs that stand in each queue, leased or not."""
        return {
            "total_jobs": len(self.jobs),
            "total_tags": len(self.tags),
            "queues": {str(queue.queue_id): len(queue) for queue in self._order},
        }

    # -- settings ----------------------------------------------------------------------------------------------

    def configure(self, default_lease_time: float | None, queue_lease_time: tuple[QueueId, float] | None) -> None:
        """Set the lease time (seconds) of queues that come to be from now on, that of one queue, or both.

        The queue comes to be if need be. Leases that were given stay as long as they are.
        """
        if default_lease_time is not None:
            _check_lease_seconds(default_lease_time, "default_lease_time")
        if queue_lease_time is not None:
            _check_lease_seconds(queue_lease_time[1], "queue_lease_time")
        if default_lease_time is not None:
            self.default_lease_time = default_lease_time
            self._write(changed=True)
        if queue_lease_time is not None:
            self._write()
            queue_id, seconds = queue_lease_time
            queue = self._queue(queue_id)
            queue.lease_time = seconds
            self._changes.queues[queue.key] = self.queue_row(queue)

    def set_task(self, task: Task | None) -> None:
        """Note in the realm's row which long task holds the realm from now on, or that none does."""
        self.task = task
        self._write(changed=True)

    def set_pinned(self, pinned: bool) -> None:
        """Whether the realm stays in its shard whatever its name hashes to."""
        self.pinned = pinned
        self._write(changed=True)

    def vanish(self) -> None:
        """The realm, which holds no job any more, exists no more."""
        self.exists = False
        self._changes.realms[self.key] = None
        for queue in self.queues.values():
            self._changes.queues[queue.key] = None

    # -- rows --------------------------------------------------------------------------------------------------

    def row(self) -> RealmRow:
        """The realm's own row."""
        task = None if self.task is None else self.task.text()
        return RealmRow(self.key, self.name, self.default_lease_time, self.epoch, int(self.pinned), task)

    def _write(self, changed: bool = False) -> None:
        """Something is written to the realm: it exists from now on."""
        if changed or not self.exists:
            self.exists = True
            self._changes.realms[self.key] = self.row()

    def queue_row(self, queue: Queue) -> QueueRow:
        """The row of one of its queues."""
        return QueueRow(queue.key, self.key, queue.queue_id, queue.lease_time)

    def job_row(self, job: Job) -> JobRow:
        """The row of one of its jobs."""
        data, tags = job.data, self.tags.text(job.tags)
        if isinstance(data, Large):
            return (job.key, self.key, job.job_id, tags, "", data.digest, data.size)
        return (job.key, self.key, job.job_id, tags, data.decode() if data else "", "", 0)

    def check(self) -> None:
        """Assert that tag index, heaps and counts are what the jobs alone say. For tests: O(everything)."""
        check(self)


def _check_lease_seconds(seconds: float, field: str) -> None:
    if not 0 <= seconds <= LEASE_SECONDS_MAX:
        raise FieldInvalid(f"{field}: a lease time lies between 0 and {LEASE_SECONDS_MAX:,.0f} seconds", field)
