"""The realm against a model so simple that it is obviously right: lists, and a scan for every question.

Hypothesis drives both with the same calls, a made-up clock, and restarts from the rows that the realm noted; after
every step all that can be seen of the two must be the same. RESTQ_TEST_LONG=1 in the environment runs it for long.
"""

from __future__ import annotations

import json
import os
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from restq.errors import (
    DataDiffers,
    FieldInvalid,
    JobLeased,
    JobNotFound,
    JobNotInQueue,
    QueueNotFound,
    RestqError,
    TagNotFound,
)
from restq.names import QueueId
from restq.shards import removal
from restq.shards.changes import Changes, Keys
from restq.shards.data import Large
from restq.shards.loader import Loader
from restq.shards.memory_store import MemoryStore
from restq.shards.queue import Place
from restq.shards.realm import NewJob, Realm
from restq.shards.removal import Removal
from restq.shards.store import Mark

EVERYTHING = 1_000_000
DEFAULT_LEASE_TIME = 600.0

# Texts of one row say the same value; no two rows do. The last is too large for memory.
VALUES = (
    (b'{"a": [1, true], "b": null}', b'{"b":null,"a":[1.0,true]}'),
    (b'{"a": [1, 1], "b": null}',),
    (b"1", b"1.0", b"1e0"),
    (b"true",),
    (b'"caf\\u00e9"', '"café"'.encode()),
    (json.dumps(["x" * 5000, 1]).encode(), json.dumps(["x" * 5000, 1.0], indent=4).encode()),
)
TEXTS = [text for texts in VALUES for text in texts]


def meaning(text: bytes) -> int:
    """Which value a text says."""
    return next(index for index, texts in enumerate(VALUES) if text in texts)


@dataclass
class ModelPlace:
    """A job in a queue. `entered` grows with every place that was ever made."""

    job: ModelJob
    queue: QueueId
    entered: int
    at: float  # enqueued then; after a check-out, the end of the lease
    leased_at: float = 0.0
    pull: int = 0  # which pull leased it last


@dataclass
class ModelJob:
    job_id: str
    text: bytes | None
    tags: set[str] = field(default_factory=set)


def queue_rank(queue: QueueId) -> tuple[bool, QueueId]:
    return (isinstance(queue, str), queue)


class Model:
    """The realm as its users know it."""

    def __init__(self, pulls: int = 0) -> None:
        self.jobs: list[ModelJob] = []
        self.places: list[ModelPlace] = []
        self.lease_times: dict[QueueId, float] = {}
        self.default_lease_time = DEFAULT_LEASE_TIME
        self.exists = False
        self._entered = 0
        self._pulls = pulls

    def empty(self) -> Model:
        """The realm once it was deleted. A pull of before is none of those to come."""
        return Model(self._pulls)

    def job(self, job_id: str) -> ModelJob | None:
        return next((job for job in self.jobs if job.job_id == job_id), None)

    def place(self, job_id: str, queue: QueueId) -> ModelPlace | None:
        return next((place for place in self.places if place.job.job_id == job_id and place.queue == queue), None)

    def places_of(self, job: ModelJob) -> list[ModelPlace]:
        return sorted((place for place in self.places if place.job is job), key=lambda place: queue_rank(place.queue))

    def in_queue(self, queue: QueueId) -> list[ModelPlace]:
        return sorted((place for place in self.places if place.queue == queue), key=lambda p: (p.at, p.entered))

    def tagged(self, tag: str) -> list[str]:
        return [job.job_id for job in self.jobs if tag in job.tags]

    def add_refused(self, new_jobs: list[NewJob]) -> bool:
        said: dict[str, bytes | None] = {job.job_id: job.text for job in self.jobs}
        for job_id, _, text, _ in new_jobs:
            if job_id not in said:
                said[job_id] = text
            elif text is not None:
                known = said[job_id]
                if known is None or meaning(known) != meaning(text):
                    return True
        return False

    def add(self, new_jobs: list[NewJob], now: float) -> None:
        self.exists = True
        for job_id, queue, text, tags in new_jobs:
            job = self.job(job_id)
            if job is None:
                job = ModelJob(job_id, text)
                self.jobs.append(job)
            job.tags.update(tags)
            self.lease_times.setdefault(queue, self.default_lease_time)
            if self.place(job_id, queue) is None:
                self._entered += 1
                self.places.append(ModelPlace(job, queue, self._entered, now))

    def ready(self, count: int, max_queue: QueueId | None, now: float) -> list[ModelPlace]:
        """What a pull gives: lowest queue first, by time within it, no job twice."""
        chosen: list[ModelPlace] = []
        for queue in sorted(self.lease_times, key=queue_rank):
            if max_queue is not None and queue_rank(queue) > queue_rank(max_queue):
                break
            for place in self.in_queue(queue):
                if place.at <= now and len(chosen) < count and all(place.job is not other.job for other in chosen):
                    chosen.append(place)
        return chosen

    def check_out(self, places: list[ModelPlace], now: float) -> int:
        self._pulls += 1
        for place in places:
            place.at, place.leased_at, place.pull = now + self.lease_times[place.queue], now, self._pulls
        return self._pulls

    def undo(self, pull: int, pairs: list[tuple[str, QueueId]]) -> int:
        undone = [place for pair in pairs if (place := self.place(*pair)) is not None and place.pull == pull]
        for place in undone:
            place.at, place.leased_at, place.pull = 0.0, 0.0, 0
        return len(undone)

    def remove(self, job_id: str) -> None:
        self.jobs = [job for job in self.jobs if job.job_id != job_id]
        self.places = [place for place in self.places if place.job.job_id != job_id]

    def clear(self, queue: QueueId) -> None:
        self.places = [place for place in self.places if place.queue != queue]
        standing = [place.job for place in self.places]
        self.jobs = [job for job in self.jobs if any(job is other for other in standing)]

    def move_error(self, job_id: str, from_queue: QueueId, now: float) -> type[RestqError] | None:
        place = self.place(job_id, from_queue)
        if place is None:  # no such job, no such queue, or the job is not in it
            return JobNotInQueue
        return JobLeased if place.pull and place.at > now else None

    def move(self, job_id: str, from_queue: QueueId, to_queue: QueueId, now: float) -> None:
        if from_queue != to_queue:
            self.add([(job_id, to_queue, None, ())], now)
            self.places.remove(self.place(job_id, from_queue))  # type: ignore[arg-type]


def completed(call: Coroutine[Any, Any, None]) -> None:
    """Run what waits for nothing, without a loop."""
    try:
        call.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


job_ids = st.sampled_from(["a", "b", "c", "d", "e/f", "ü"])
queue_ids = st.sampled_from([0, 1, 2, 10, -3, "a", "b10"])
tags = st.sampled_from(["red", "green", "blue"])
tag_sets = st.sets(tags, max_size=3).map(lambda found: tuple(sorted(found)))
new_jobs = st.tuples(job_ids, queue_ids, st.none() | st.sampled_from(TEXTS), tag_sets)
step_sizes = st.integers(1, 3)


class RealmAndModel(RuleBasedStateMachine):
    """Every rule does one thing to both."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.model = Model()
        self.store = MemoryStore()
        self.keys = Keys()
        self.changes = Changes()
        self.group = 0
        self.realm = self.new_realm()
        self.pulls: list[tuple[int, int, list[tuple[str, QueueId]]]] = []  # of the realm, of the model, what was got

    def new_realm(self) -> Realm:
        return Realm(self.keys.take(), "tried", DEFAULT_LEASE_TIME, self.keys, self.changes)

    def text_of(self, place_or_job: Any) -> bytes | None:
        data = place_or_job.data
        if not isinstance(data, Large):
            return bytes(data) if data is not None else None
        assert data.size == len(self.payload(place_or_job.key))
        return self.payload(place_or_job.key)

    def payload(self, key: int) -> bytes:
        return self.changes.payloads.get(key) or self.store.payload(key)

    # -- what users do ---------------------------------------------------------------------------------------------

    @rule(jobs=st.lists(new_jobs, min_size=1, max_size=6))
    def add(self, jobs: list[NewJob]) -> None:
        if self.model.add_refused(jobs):
            before = (len(self.changes), self.realm.exists)
            with pytest.raises(DataDiffers):
                self.realm.add(jobs, self.now)
            assert (len(self.changes), self.realm.exists) == before
        else:
            self.model.add(jobs, self.now)
            self.realm.add(jobs, self.now)

    @rule(job_id=job_ids, queue=queue_ids, own_tags=tag_sets)
    def add_one_again(self, job_id: str, queue: QueueId, own_tags: tuple[str, ...]) -> None:
        """An add that never is refused, so that there are many jobs in many queues."""
        self.model.add([(job_id, queue, None, own_tags)], self.now)
        self.realm.add([(job_id, queue, None, own_tags)], self.now)

    @precondition(lambda self: any(job.text is not None for job in self.model.jobs))
    @rule(data=st.data(), queue=queue_ids, text=st.sampled_from(TEXTS))
    def add_with_data_again(self, data: st.DataObject, queue: QueueId, text: bytes) -> None:
        """The same value, written in every way there is, and perhaps another one."""
        job = data.draw(st.sampled_from([job for job in self.model.jobs if job.text is not None]))
        assert job.text is not None
        self.add([(job.job_id, queue, written, ()) for written in VALUES[meaning(job.text)]])
        self.add([(job.job_id, queue, text, ())])

    @rule(count=st.integers(0, 5), max_queue=st.none() | queue_ids)
    def pull(self, count: int, max_queue: QueueId | None) -> None:
        expected = self.model.ready(count, max_queue, self.now)
        pull = self.model.check_out(expected, self.now)
        got = self.realm.pull(count, max_queue, self.now)
        pairs = [(place.job.job_id, place.queue) for place in expected]
        assert [(place.job.job_id, place.queue.queue_id) for place in got] == pairs
        assert [place.at for place in got] == [place.at for place in expected]
        if got:
            (number,) = {place.row()[5] for place in got}
            assert number not in [used for used, _, _ in self.pulls], "never used twice"
            self.pulls.append((number, pull, pairs))

    @rule(count=st.integers(0, 5), max_queue=st.none() | queue_ids)
    def peek(self, count: int, max_queue: QueueId | None) -> None:
        expected = [(place.job.job_id, place.queue) for place in self.model.ready(count, max_queue, self.now)]
        noted = len(self.changes)
        for _ in range(2):
            assert shown(self.realm.peek(count, max_queue, self.now)) == expected
        assert len(self.changes) == noted

    @precondition(lambda self: self.model.places)
    @rule(data=st.data())
    def lease_existing_job(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(self.model.places))
        self.lease(place.job.job_id, place.queue)

    @rule(job_id=job_ids, queue=queue_ids)
    def lease(self, job_id: str, queue: QueueId) -> None:
        place = self.model.place(job_id, queue)
        lease = self.realm.next_lease(self.now)
        got = self.realm.lease(job_id, queue, lease)
        if place is None or place.at > self.now:
            assert got is None
        else:
            pull = self.model.check_out([place], self.now)
            assert got is not None
            assert got.row()[3:] == (place.at, self.now, lease.number)
            self.pulls.append((lease.number, pull, [(job_id, queue)]))

    @precondition(lambda self: self.pulls)
    @rule(data=st.data())
    def undo_pull(self, data: st.DataObject) -> None:
        """Give back what a pull leased and, of what it did not, nothing."""
        number, pull, pairs = data.draw(st.sampled_from(self.pulls))
        others = [(place.job.job_id, place.queue) for place in self.model.places if data.draw(st.booleans())]
        pairs = list(dict.fromkeys([*pairs, *others]))
        assert self.realm.undo_pull(number, pairs) == self.model.undo(pull, pairs)

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.75, 5.0, 600.0, 601.0, 100_000.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(job_id=job_ids)
    def remove_job(self, job_id: str) -> None:
        if self.model.job(job_id) is None:
            with pytest.raises(JobNotFound):
                self.realm.remove_job(job_id)
        else:
            self.model.remove(job_id)
            self.realm.remove_job(job_id)

    @rule(ids=st.lists(job_ids, max_size=3))
    def remove_jobs(self, ids: list[str]) -> None:
        removed = len({job_id for job_id in ids if self.model.job(job_id)})
        for job_id in ids:
            self.model.remove(job_id)
        assert self.realm.remove_jobs(ids) == removed

    @rule(job_id=job_ids, from_queue=queue_ids, to_queue=queue_ids)
    def move_job(self, job_id: str, from_queue: QueueId, to_queue: QueueId) -> None:
        error = self.model.move_error(job_id, from_queue, self.now)
        if error is not None:
            before = len(self.changes)
            with pytest.raises(error):
                self.realm.move_job(job_id, from_queue, to_queue, self.now)
            assert len(self.changes) == before
        else:
            self.model.move(job_id, from_queue, to_queue, self.now)
            self.realm.move_job(job_id, from_queue, to_queue, self.now)

    @precondition(lambda self: self.model.places)
    @rule(data=st.data(), to_queue=queue_ids)
    def move_existing_job(self, data: st.DataObject, to_queue: QueueId) -> None:
        place = data.draw(st.sampled_from(self.model.places))
        self.move_job(place.job.job_id, place.queue, to_queue)

    @rule(seconds=st.sampled_from([0, 1.0, 5, 600.0, -1, float("nan")]))
    def set_default_lease_time(self, seconds: float) -> None:
        if not seconds >= 0:
            with pytest.raises(FieldInvalid):
                self.realm.configure(seconds, (0, 5.0))
            return
        self.model.exists = True
        self.model.default_lease_time = seconds
        self.realm.configure(seconds, None)

    @rule(queue=queue_ids, seconds=st.sampled_from([0, 1.0, 5, 600.0, -1, 2e9]))
    def set_queue_lease_time(self, queue: QueueId, seconds: float) -> None:
        if not 0 <= seconds <= 1e9:
            with pytest.raises(FieldInvalid):
                self.realm.configure(7.0, (queue, seconds))
            return
        self.model.exists = True
        self.model.lease_times[queue] = seconds
        self.realm.configure(None, (queue, seconds))

    # -- removals of many, in steps, a restart in their midst ------------------------------------------------------

    @rule(queue=queue_ids, size=step_sizes, crash=st.none() | st.integers(0, 2))
    def clear_queue(self, queue: QueueId, size: int, crash: int | None) -> None:
        if queue not in self.model.lease_times:
            with pytest.raises(QueueNotFound):
                removal.clear_queue(self.realm, queue)
            return
        before = len(self.model.jobs)
        self.model.clear(queue)
        removed = self.carry_on(removal.clear_queue(self.realm, queue), size, crash)
        assert crash is not None or removed == before - len(self.model.jobs)

    @rule(tag=tags, size=step_sizes, crash=st.none() | st.integers(0, 2))
    def remove_tagged_jobs(self, tag: str, size: int, crash: int | None) -> None:
        tagged = self.model.tagged(tag)
        if not tagged:
            with pytest.raises(TagNotFound):
                removal.remove_tagged_jobs(self.realm, tag)
            return
        for job_id in tagged:
            self.model.remove(job_id)
        removed = self.carry_on(removal.remove_tagged_jobs(self.realm, tag), size, crash)
        assert crash is not None or removed == len(tagged)

    @precondition(lambda self: self.model.exists)
    @rule(chance=st.integers(0, 3), size=step_sizes, crash=st.none() | st.integers(0, 2))
    def delete(self, chance: int, size: int, crash: int | None) -> None:
        if chance:  # or hardly any realm would grow
            return
        self.carry_on(removal.delete(self.realm), size, crash)
        assert not self.realm.exists
        self.model = self.model.empty()
        self.commit()
        self.realm = self.new_realm()
        assert row_count(self.store) == 0

    def carry_on(self, work: Removal, size: int, crash: int | None) -> int:
        done = False
        while not done:
            if crash == 0:
                self.rebuild()
                assert self.realm.task is not None
                work = Removal(self.realm, self.realm.task)
            crash = None if crash is None else crash - 1
            done = work.step(size)
        assert not self.realm.exists or self.realm.task is None
        return work.removed_count

    # -- what is durable -------------------------------------------------------------------------------------------

    @rule()
    def commit(self) -> None:
        self.group += 1
        completed(self.store.commit(self.changes.take(), Mark(self.group, self.keys.next_key, self.now)))

    @rule()
    def restart(self) -> None:
        self.rebuild()
        assert self.realm.task is None, "nothing is under way"
        jobs, places = self.model.jobs, self.model.places
        large = sum(1 for job in jobs if job.text is not None and len(job.text) > 4096)
        rows = int(self.model.exists) + len(self.model.lease_times) + len(jobs) + len(places) + large
        assert row_count(self.store) == rows, "nothing is left behind"

    def rebuild(self) -> None:
        """All that is in memory is lost."""
        self.commit()
        loaded = self.store.load()
        self.keys, self.changes = Keys(loaded.mark.next_key), Changes()
        loader = Loader(self.keys, self.changes)
        loader.add_all(loaded)
        realms = loader.finish(self.now)
        assert len(realms) <= 1
        self.realm = realms[0] if realms else self.new_realm()

    # -- what must be the same -------------------------------------------------------------------------------------

    @invariant()
    def realm_is_consistent(self) -> None:
        self.realm.check()

    @invariant()
    def status_is_the_same(self) -> None:
        carried: set[str] = set().union(*(job.tags for job in self.model.jobs))
        queues = sorted(self.model.lease_times, key=queue_rank)
        assert self.realm.status() == {
            "total_jobs": len(self.model.jobs),
            "total_tags": len(carried),
            "queues": {str(queue): len(self.model.in_queue(queue)) for queue in queues},
        }
        assert list(self.realm.status()["queues"]) == [str(queue) for queue in queues]
        assert self.realm.exists == self.model.exists
        assert self.realm.default_lease_time == self.model.default_lease_time
        assert {key: queue.lease_time for key, queue in self.realm.queues.items()} == self.model.lease_times

    @invariant()
    def jobs_are_the_same(self) -> None:
        assert set(self.realm.jobs) == {job.job_id for job in self.model.jobs}
        for expected in self.model.jobs:
            job = self.realm.get_job(expected.job_id)
            assert job.tags == tuple(sorted(expected.tags))
            assert self.text_of(job) == expected.text
            places = sorted(job.places, key=lambda place: queue_rank(place.queue.queue_id))
            seen = [(place.queue.queue_id, *place.row()[3:5], place.lease.number > 0) for place in places]
            assert seen == [
                (place.queue, place.at, place.leased_at, place.pull > 0) for place in self.model.places_of(expected)
            ]

    @invariant()
    def tags_are_the_same(self) -> None:
        for tag in ("red", "green", "blue"):
            tagged = self.model.tagged(tag)
            if tagged:
                assert self.realm.get_tag_status(tag) == len(tagged)
                assert [job.job_id for job in self.realm.get_tagged_jobs(tag)] == tagged
            else:
                for look in (self.realm.get_tag_status, self.realm.get_tagged_jobs):
                    with pytest.raises(TagNotFound):
                        look(tag)

    @invariant()
    def order_is_the_same(self) -> None:
        expected = self.model.ready(EVERYTHING, None, self.now)
        assert shown(self.realm.peek(EVERYTHING, None, self.now)) == [(p.job.job_id, p.queue) for p in expected]
        for queue_id, queue in self.realm.queues.items():  # of the leased ones, too
            places = [p for job in self.realm.jobs.values() for p in job.places if p.queue is queue]
            in_order = [place.job.job_id for place in sorted(places, key=lambda place: (place.at, place.key))]
            assert in_order == [place.job.job_id for place in self.model.in_queue(queue_id)]


def shown(places: list[Place]) -> list[tuple[str, QueueId]]:
    return [(place.job.job_id, place.queue.queue_id) for place in places]


def row_count(store: MemoryStore) -> int:
    """How many rows the store keeps; none of them may be left behind by what is gone."""
    kept = store._tables
    assert {row[1] for row in kept["places"].values()} == set(kept["jobs"]), "no job without a place"
    assert {row[2] for row in kept["places"].values()} <= set(kept["queues"])
    assert {row[1] for row in [*kept["queues"].values(), *kept["jobs"].values()]} <= set(kept["realms"])
    assert set(kept["payloads"]) == {key for key, row in kept["jobs"].items() if row[6]}
    return sum(len(rows) for rows in kept.values())


TestRealmAgainstModel = RealmAndModel.TestCase
TestRealmAgainstModel.settings = settings(
    max_examples=10_000 if os.environ.get("RESTQ_TEST_LONG") else 500,
    stateful_step_count=200 if os.environ.get("RESTQ_TEST_LONG") else 60,
    deadline=None,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],  # to explain takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
