"""What must hold of a realm at every moment: recomputed from its jobs alone, and compared. For tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from restq.names import queue_order
from restq.shards import finishing, limits
from restq.shards.gates import After, Limit
from restq.shards.job import DEAD, LEASED, QUEUED

if TYPE_CHECKING:
    from restq.shards.heap import LazyHeap
    from restq.shards.job import Place
    from restq.shards.queue import Lane, Queue
    from restq.shards.realm import Realm


def check(realm: Realm) -> None:
    """Raise AssertionError where tag index, heaps, gates, counts or order differ from what the jobs say."""
    realm.advance(realm.clock)  # a lease of no time at all ends before anybody looks
    places: dict[int, list[Place]] = {id(queue): [] for queue in realm.queues.values()}
    for job_id, job in realm.jobs.items():
        _expect(job.job_id == job_id, f"{job_id!r} is held under its own id")
        _expect(bool(job.places), f"{job_id!r} stands in a queue")
        _expect(list(job.tags) == sorted(set(job.tags)), f"tags of {job_id!r} are sorted, each once")
        for place in job.places:
            _expect(place.job is job, f"a place of {job_id!r} is its own")
            _expect(realm.queues.get(place.queue.queue_id) is place.queue, f"{job_id!r} stands in a queue of the realm")
            places[id(place.queue)].append(place)
        _expect(len({id(place.queue) for place in job.places}) == len(job.places), f"{job_id!r} is in a queue once")
    every = [place for held in places.values() for place in held]
    _expect(len({job.key for job in realm.jobs.values()}) == len(realm.jobs), "no job's key is used twice")
    _expect(len({place.key for place in every}) == len(every), "no place's key is used twice")
    leases = {place.key: place.job for place in every if place.history.lease and place.key != place.job.key}
    _expect(realm.other_leases == leases, "the leases of places with keys of their own are known")
    for place in every:
        found = finishing.held_under(realm, place.key)
        _expect(found is (place if place.history.lease else None), f"the lease of {place.job.job_id!r} is found")
    order = [queue.queue_id for queue in realm.served()]
    _expect(order == sorted(realm.queues, key=queue_order), "the queues are served in order")
    in_order = [job for job in realm.roll.after(0) if job is not None]
    _expect(in_order == sorted(realm.jobs.values(), key=lambda job: job.key), "the roll holds the jobs in order")
    size = sum(len(job.job_id) + job.data_bytes for job in realm.jobs.values())
    _expect(realm.data_bytes == size, "the bytes are counted")
    inline = sum(len(job.job_id) + job.inline_bytes for job in realm.jobs.values())
    _expect(realm.inline_bytes == inline, "the bytes in memory are counted")
    _expect(realm.place_count == sum(len(job.places) for job in realm.jobs.values()), "the places are counted")
    _expect(realm.tags.carried_count == sum(len(job.tags) for job in realm.jobs.values()), "what is carried is counted")
    _check_tags(realm, every)
    _check_limits(realm, every)
    for queue in realm.queues.values():
        _check_queue(realm, queue, places[id(queue)])


def _check_tags(realm: Realm, places: list[Place]) -> None:
    carried: dict[str, set[str]] = {}
    for job in realm.jobs.values():
        for tag in job.tags:
            carried.setdefault(tag, set()).add(job.job_id)
    index = {tag: {job.job_id for job in found.jobs} for tag, found in realm.tags.items()}
    _expect(index == carried, "the tag index is right")
    for tag, found in realm.tags.items():
        counts = [0, 0, 0, 0]
        for place in places:
            if tag in place.job.tags:
                counts[realm.state_of(place)] += 1
        _expect(found.counts == counts, f"the states of tag {tag!r} are counted")


def _check_limits(realm: Realm, places: list[Place]) -> None:
    leased = [place for place in places if realm.state_of(place) == LEASED]
    for job in realm.jobs.values():
        named = [gate.name for gate in job.gates if isinstance(gate, Limit)]
        _expect(named == [tag for tag in job.tags if tag in realm.tags.limits], f"{job.job_id!r} is behind its limits")
        after = tuple(gate.tag for gate in job.gates if isinstance(gate, After))
        _expect(after == job.terms.after, f"{job.job_id!r} comes after what it names")
        for gate in job.gates:
            if isinstance(gate, After):
                others = [held for held in realm.jobs.values() if gate.tag in held.tags and held is not job]
                _expect(
                    gate.is_shut == bool(others), f"{job.job_id!r} is blocked by {gate.tag!r} while others carry it"
                )
    for limit in [*realm.tags.limits.values(), *(queue.limit for queue in realm.queues.values() if queue.limit)]:
        mine = [place for place in leased if limit in list(limits.of(place))]
        _expect(limit.leased_count == len(mine), f"limit {limit.name!r} counts what is leased")
        most = limit.settings.max_leased
        full = most is not None and limit.leased_count >= most
        _expect(limit.is_shut or not (limit.settings.paused or full), f"limit {limit.name!r} is shut where it must be")


def _check_queue(realm: Realm, queue: Queue, places: list[Place]) -> None:
    name = f"queue {queue.queue_id!r}"
    _expect(len(queue) == len(places), f"{name} counts its places")
    states = [realm.state_of(place) for place in places]
    _expect(queue.counts == [states.count(state) for state in range(4)], f"{name} counts its states")
    _expect(set(queue.dead) == {p.key for p in places if realm.state_of(p) == DEAD}, f"{name} holds what is dead")
    queued = [place for place in places if realm.state_of(place) == QUEUED]
    held = [place for lane in queue.lanes.values() for place in _live(lane.heap)]
    _expect(sorted(map(id, held)) == sorted(map(id, queued)), f"{name} holds what is queued, each once")
    waiting = [p for p in places if realm.state_of(p) not in (QUEUED, DEAD)]
    _expect(sorted(map(id, _live(queue.waiting))) == sorted(map(id, waiting)), f"{name} holds what waits, each once")
    _expect(len(queue.waiting) == len(waiting), f"{name} counts what waits")
    _expect(not waiting or queue.due_at <= min(place.at for place in waiting), f"{name} is on the agenda")
    for lane in queue.lanes.values():
        _check_lane(queue, lane)


def _check_lane(queue: Queue, lane: Lane) -> None:
    name = f"a lane of queue {queue.queue_id!r}"
    live = _live(lane.heap)
    _expect(len(lane.heap) == len(live), f"{name} counts what it holds")
    _expect(bool(live) or lane is queue.plain, f"{name} holds something")
    _expect(all(place.job.gates == lane.gates for place in live), f"{name} holds what its gates hold")
    _expect(lane.shut_count == sum(gate.is_shut for gate in lane.gates), f"{name} counts its gates")
    blocked = sum(gate.is_shut for gate in lane.gates if isinstance(gate, After))
    _expect(lane.blocked_count == blocked, f"{name} counts what blocks it")
    _expect((lane in queue.open) == (not lane.shut_count), f"{name} is open where no gate is shut")
    _expect(all(lane in gate.lanes for gate in lane.gates), f"{name} is known to its gates")
    for tag, heap in lane.tag_heaps.items():
        mine = [place for place in live if tag in place.job.tags]
        _expect(sorted(map(id, _live(heap))) == sorted(map(id, mine)), f"{name} holds those of tag {tag!r} apart, too")
        _expect(len(heap) == len(mine), f"{name} counts those of tag {tag!r}")
    if lane.tag_counts is not None:
        counts: dict[str, int] = {}
        for place in live:
            for tag in place.job.tags:
                counts[tag] = counts.get(tag, 0) + 1
        _expect({tag: n for tag, n in lane.tag_counts.items() if n} == counts, f"{name} counts its tags")


def _live(heap: LazyHeap[Place]) -> list[Place]:
    entries = heap.entries
    for index, entry in enumerate(entries[1:], 1):
        _expect(entries[(index - 1) // 2].turn <= entry.turn, "a heap is in order")
    return [entry for entry in entries if entry.job.holds(entry)]


def _expect(holds: bool, what: str) -> None:
    # Not `assert`: the check must work under `python -O` too.
    if not holds:
        raise AssertionError(f"not so: {what}")
