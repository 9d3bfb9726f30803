"""What concerns many jobs at once, in steps: clear a queue, remove, cancel, redrive or move a tag's jobs, and the like.

A million jobs take seconds, which no neighbour may wait. So a sweep is a task of the realm: noted in the realm's row
with the first rows that change, carried on step by step while nobody looks at the realm, and resumed after a crash,
where it begins anew: what it has done already it finds done. To everybody else it happens at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

from restq.errors import QueueNotFound, TagNotFound
from restq.names import QueueId
from restq.shards import leasing, limits, operating
from restq.shards.changes import Task
from restq.shards.job import LEASED, Job
from restq.shards.queue import Queue
from restq.shards.realm import Realm

# Of a pull that gives its jobs in slices: it is noted with the first, and sweeps only where a start finds it.
UNDO_PULL = "undo_pull"


class Sweep:
    """One sweep under way. `counts` says how many jobs it did what to, `reply` which of these are told."""

    def __init__(self, realm: Realm, task: Task) -> None:
        self._realm = realm
        self._task = task
        self.counts = {"removed": 0, "redriven": 0, "moved": 0, "leased": 0}
        self._jobs: Iterator[Job | None] = iter(())
        if task.kind in _EACH_CARRIER:
            self._jobs = self._carriers(str(task.target))
        elif task.kind == UNDO_PULL:
            self._jobs = realm.roll.after(0)

    def step(self, count: int) -> bool:
        """Do up to `count` jobs. True once all is done; a deleted realm has vanished then."""
        if self._task.kind in _EACH_CARRIER:
            done = self._step_carriers(count)
        elif self._task.kind == "redrive":
            done = self._redrive(count)
        elif self._task.kind == UNDO_PULL:
            done = self._undo_pull(count)
        else:
            done = self._clear(count)
        if done and self._task.kind == "delete":
            _vanish(self._realm)
        elif done and self._realm.task is not None:
            self._realm.set_task(None)
        return done

    @property
    def reply(self) -> dict[str, int]:
        """The counts that the request is answered with; where it began before a start, only of what was left to do."""
        return {name: self.counts[name] for name in _REPLIED.get(self._task.kind, ())}

    def _queues(self) -> Iterable[Queue]:
        queues = self._realm.queues
        return queues.values() if self._task.target is None else [queues[self._task.target]]

    def _clear(self, count: int) -> bool:
        for queue in self._queues():
            while count > 0 and (found := queue.pop()) is not None:
                count -= 1
                self.counts["removed"] += self._realm.take_out(*found)
            if count <= 0:
                return False
        return True

    def _redrive(self, count: int) -> bool:
        for queue in self._queues():
            for place in list(itertools.islice(queue.dead.values(), count)):
                count -= 1
                self.counts["redriven"] += operating.redrive(self._realm, place)
            if count <= 0:
                return False
        return True

    def _undo_pull(self, count: int) -> bool:
        for job in itertools.islice(self._jobs, count):
            if job is not None:
                queue_ids = [(job.job_id, place.queue.queue_id) for place in job.places]
                leasing.undo_pull(self._realm, int(self._task.target or 0), queue_ids, self._realm.clock)
            count -= 1
        return count > 0

    def _carriers(self, tag: str) -> Iterator[Job | None]:
        """The jobs that carry the tag, in the order in which they were added.

        Where they are many, among all jobs: what dies in order costs the heaps least, and to sort a million would hold
        up the shard.
        """
        carriers = self._realm.tags[tag].jobs if tag in self._realm.tags else ()
        if len(carriers) * 4 < len(self._realm.jobs):
            return iter(sorted(carriers, key=lambda job: job.key))
        return self._realm.roll.after(0)

    def _step_carriers(self, count: int) -> bool:
        do = _EACH_CARRIER[self._task.kind]
        for job in itertools.islice(self._jobs, count):
            if job is not None and job.first is not None and self._task.target in job.tags:
                do(self, job)
            count -= 1
        return count > 0

    # -- what is done to each job ------------------------------------------------------------------------------------

    def _remove(self, job: Job) -> None:
        self._realm.drop(job)
        self.counts["removed"] += 1

    def _cancel(self, job: Job) -> None:
        self.counts["removed" if operating.cancel(self._realm, job) else "leased"] += 1

    def _redrive_job(self, job: Job) -> None:
        self.counts["redriven"] += sum(operating.redrive(self._realm, place) for place in job.places) > 0

    def _move(self, job: Job) -> None:
        from_queue, to_queue = self._task.details
        place = job.place_in(from_queue)
        if place is None or from_queue == to_queue:
            return
        if self._realm.state_of(place) == LEASED:
            self.counts["leased"] += 1
        else:
            operating.move_place(self._realm, place, to_queue)
            self.counts["moved"] += 1

    def _rearrange(self, job: Job) -> None:
        limits.rearrange(self._realm, job, job.tags, job.terms)


_EACH_CARRIER: dict[str, Callable[[Sweep, Job], None]] = {
    "cancel_tagged_jobs": Sweep._cancel,
    "move_tagged_jobs": Sweep._move,
    "rearrange_tagged_jobs": Sweep._rearrange,
    "redrive_tagged_jobs": Sweep._redrive_job,
    "remove_tagged_jobs": Sweep._remove,
}
_REPLIED = {
    "cancel_tagged_jobs": ("removed", "leased"),
    "clear_queue": ("removed",),
    "move_tagged_jobs": ("moved", "leased"),
    "redrive": ("redriven",),
    "redrive_tagged_jobs": ("redriven",),
}
KINDS = frozenset({*_EACH_CARRIER, UNDO_PULL, "clear_queue", "delete", "redrive"})


def clear_queue(realm: Realm, queue_id: QueueId) -> Sweep:
    """Empty one queue; jobs that stand in no other are removed, the queue itself stays. Raises QueueNotFound."""
    get_queue(realm, queue_id)
    return _start(realm, Task("clear_queue", queue_id))


def delete(realm: Realm) -> Sweep:
    """Remove the realm and all that is in it."""
    return _start(realm, Task("delete"))


def redrive(realm: Realm, queue_id: QueueId | None) -> Sweep:
    """Hand out again what is dead in a queue, or in all of them. Raises QueueNotFound."""
    if queue_id is not None:
        get_queue(realm, queue_id)
    return _start(realm, Task("redrive", queue_id))


def of_tag(realm: Realm, kind: str, tag: str, details: tuple[QueueId, ...] = ()) -> Sweep:
    """Do to every job that carries the tag what `kind` says, such as "remove_tagged_jobs". Raises TagNotFound."""
    if tag not in realm.tags:
        raise TagNotFound(f"no job of realm {realm.name!r} is tagged {tag!r}", "tag")
    return _start(realm, Task(kind, tag, details))


def note_pull(realm: Realm, number: int) -> None:
    """Have a start undo this pull, which gives its jobs in slices, should it come before the last of them."""
    realm.set_task(Task(UNDO_PULL, number))


def rearrange(realm: Realm, tag: str) -> Sweep:
    """Put every job that carries the tag behind its limits, which changed: nothing of that is stored."""
    return Sweep(realm, Task("rearrange_tagged_jobs", tag))


def get_queue(realm: Realm, queue_id: QueueId) -> Queue:
    """The queue. Raises QueueNotFound."""
    queue = realm.queues.get(queue_id)
    if queue is None:
        raise QueueNotFound(f"realm {realm.name!r} has no queue {queue_id!r}", "queue_id")
    return queue


def _start(realm: Realm, task: Task) -> Sweep:
    realm.set_task(task)
    return Sweep(realm, task)


def _vanish(realm: Realm) -> None:
    """The realm, which holds no job any more, exists no more."""
    realm.exists = False
    realm.changes.realms[realm.key] = None
    for queue in realm.queues.values():
        realm.changes.queues[queue.key] = None
    for limit in realm.tags.limits.values():
        realm.changes.tags[limit.key] = None
