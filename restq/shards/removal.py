"""Removals of many jobs, in steps: clear a queue, remove a tag's jobs, delete a realm.

In memory a removal of a million jobs takes seconds, which no neighbour may wait. So it is a task of the realm:
noted in the realm's row with the first rows that go, carried on step by step while nobody looks at the realm, and
resumed after a crash. To everybody else it happens at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from restq.errors import QueueNotFound, TagNotFound
from restq.names import QueueId
from restq.shards.changes import Task
from restq.shards.queue import Job, Queue
from restq.shards.realm import Realm

KINDS = frozenset({"clear_queue", "remove_tagged_jobs", "delete"})


class Removal:
    """One removal under way. `removed_count` is how many jobs are gone so far."""

    def __init__(self, realm: Realm, task: Task) -> None:
        self._realm = realm
        self._task = task
        self._candidates: Iterator[Job] = iter(())
        self.removed_count = 0
        if task.kind == "remove_tagged_jobs":
            self._candidates = self._carriers(str(task.target))

    def step(self, count: int) -> bool:
        """Remove up to `count` places or jobs. True once all is done; a deleted realm has vanished then."""
        if self._task.kind == "remove_tagged_jobs":
            done = self._remove_carriers(count)
        else:
            done = self._clear(self._queues(), count)
        if done and self._task.kind == "delete":
            self._realm.vanish()
        elif done:
            self._realm.set_task(None)
        return done

    def _queues(self) -> Iterable[Queue]:
        queues = self._realm.queues
        if self._task.kind == "delete":
            return queues.values()
        assert self._task.target is not None, "clear_queue names a queue"
        return [queues[self._task.target]]

    def _clear(self, queues: Iterable[Queue], count: int) -> bool:
        for queue in queues:
            while count > 0 and (place := queue.pop()) is not None:
                count -= 1
                if len(place.job.places) > 1:
                    self._realm.leave(place, popped=True)
                else:
                    self._realm.drop(place.job, popped=place)
                    self.removed_count += 1
            if count <= 0:
                return False
        return True

    def _carriers(self, tag: str) -> Iterator[Job]:
        """The jobs that carry the tag, which leaves the index at once.

        Where they are many, in the order in which they were added, among all jobs: what dies in order costs the heaps
        least, and to sort a million would hold up the shard.
        """
        carriers = self._realm.tags.pop(tag, set())
        if len(carriers) * 4 < len(self._realm.jobs):
            return iter(carriers)
        return iter(list(self._realm.jobs.values()))

    def _remove_carriers(self, count: int) -> bool:
        for job in itertools.islice(self._candidates, count):
            if self._task.target in job.tags:
                self._realm.drop(job)
                self.removed_count += 1
            count -= 1
        return count > 0


def clear_queue(realm: Realm, queue_id: QueueId) -> Removal:
    """Empty one queue; jobs that stand in no other are removed, the queue itself stays. Raises QueueNotFound."""
    if queue_id not in realm.queues:
        raise QueueNotFound(f"realm {realm.name!r} has no queue {queue_id!r}", "queue_id")
    return _start(realm, Task("clear_queue", queue_id))


def remove_tagged_jobs(realm: Realm, tag: str) -> Removal:
    """Remove every job that carries the tag. Raises TagNotFound."""
    if tag not in realm.tags:
        raise TagNotFound(f"no job of realm {realm.name!r} is tagged {tag!r}", "tag")
    return _start(realm, Task("remove_tagged_jobs", tag))


def delete(realm: Realm) -> Removal:
    """Remove the realm and all that is in it."""
    return _start(realm, Task("delete"))


def dissolve(realm: Realm) -> None:
    """Cut the cycles between jobs, places and queues of a realm that memory forgets: no collector would."""
    for job in realm.jobs.values():
        job.let_go()
    for queue in realm.queues.values():
        queue.restore([], 0.0)


def _start(realm: Realm, task: Task) -> Removal:
    realm.set_task(task)
    return Removal(realm, task)
