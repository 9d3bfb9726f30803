"""What must hold of a realm at every moment: recomputed from its jobs alone, and compared. For tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from restq.names import queue_order

if TYPE_CHECKING:
    from restq.shards.heap import LazyHeap
    from restq.shards.queue import Place, Queue
    from restq.shards.realm import Realm


def check(realm: Realm) -> None:
    """Raise AssertionError where tag index, heaps, counts or order differ from what the jobs say."""
    tags: dict[str, set[str]] = {}
    places: dict[int, list[Place]] = {id(queue): [] for queue in realm.queues.values()}
    job_keys = [job.key for job in realm.jobs.values()]
    place_keys = [place.key for job in realm.jobs.values() for place in job.places]
    for job_id, job in realm.jobs.items():
        _expect(job.job_id == job_id, f"{job_id!r} is held under its own id")
        _expect(bool(job.places), f"{job_id!r} stands in a queue")
        _expect(list(job.tags) == sorted(set(job.tags)), f"tags of {job_id!r} are sorted, each once")
        for tag in job.tags:
            tags.setdefault(tag, set()).add(job_id)
        for place in job.places:
            _expect(place.job is job, f"a place of {job_id!r} is its own")
            _expect(realm.queues.get(place.queue.queue_id) is place.queue, f"{job_id!r} stands in a queue of the realm")
            places[id(place.queue)].append(place)
        _expect(len({id(place.queue) for place in job.places}) == len(job.places), f"{job_id!r} is in a queue once")
    _expect(len(set(job_keys)) == len(job_keys), "no job's key is used twice")
    _expect(len(set(place_keys)) == len(place_keys), "no place's key is used twice")
    _expect({tag: {job.job_id for job in jobs} for tag, jobs in realm.tags.items()} == tags, "the tag index is right")
    order = [queue.queue_id for queue in realm.served()]
    _expect(order == sorted(realm.queues, key=queue_order), "the queues are served in order")
    for queue in realm.queues.values():
        _check_queue(queue, places[id(queue)])


def _check_queue(queue: Queue, places: list[Place]) -> None:
    _expect(len(queue) == len(places), f"queue {queue.queue_id!r} counts its places")
    held = _live(queue.ready) + _live(queue.waiting)
    _expect(sorted(map(id, held)) == sorted(map(id, places)), f"queue {queue.queue_id!r} holds its places, each once")
    _expect(len(queue.ready) == len(_live(queue.ready)), f"queue {queue.queue_id!r} counts what is ready")


def _live(heap: LazyHeap[Place]) -> list[Place]:
    entries = heap.entries
    for index, entry in enumerate(entries[1:], 1):
        _expect(entries[(index - 1) // 2][:2] <= entry[:2], "a heap is in order")
    return [entry for entry in entries if entry.job.holds(entry)]


def _expect(holds: bool, what: str) -> None:
    # Not `assert`: the check must work under `python -O` too.
    if not holds:
        raise AssertionError(f"not so: {what}")
