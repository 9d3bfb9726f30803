"""The realm against a model so simple that it is obviously right, see `realm_model`.

Hypothesis drives both with the same calls, a made-up clock, and restarts from the rows that the realm noted; after
every step all that can be seen of the two must be the same. RESTQ_TEST_LONG=1 in the environment runs it for long.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Coroutine
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from realm_model import CHANCE, DEFAULT_LEASE_TIME, TEXTS, VALUES, Model, ModelLease, ModelPlace, meaning, queue_rank
from realm_views import shown_place

from restq.errors import JobNotFound, QueueNotFound, RestqError, TagNotFound
from restq.names import QueueId
from restq.shards import adding, finishing, leasing, limits, listing, operating, sweeps
from restq.shards import queue as queues
from restq.shards.adding import NewJob, Wishes
from restq.shards.archive import Archive
from restq.shards.changes import Changes, Keys
from restq.shards.chores import INTERVAL_SECONDS, Chores
from restq.shards.commands import REALM_OPERATIONS
from restq.shards.commands.call import Call, Done
from restq.shards.data import Large
from restq.shards.finishing import Outcome
from restq.shards.job import Place
from restq.shards.leasing import Pull, Wanted
from restq.shards.loader import Loader
from restq.shards.memory_store import MemoryStore
from restq.shards.realm import Realm
from restq.shards.replies import Replies
from restq.shards.settings import Backoff, LimitSettings, QueueSettings, RealmSettings
from restq.shards.store import Mark
from restq.shards.sweeps import Sweep

EVERYTHING = 1_000_000
TAGS = ("blue", "green", "red")
STATES = ("ready", "leased", "delayed", "blocked", "dead")


def completed(call: Coroutine[Any, Any, None]) -> None:
    """Run what waits for nothing, without a loop."""
    try:
        call.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


# All instants are multiples of 1/128, so that sums of them are exact, and equal instants are frequent.
spans = st.sampled_from([0.0, 0.25, 1.0, 5.0, 600.0])
job_ids = st.sampled_from(["a", "b", "c", "d", "e/f", "ü"])
queue_ids = st.sampled_from([0, 0, 0, 1, 1, 2, 10, -3, "a", "b10"])
tags = st.sampled_from(TAGS)
tag_sets = st.sets(tags, max_size=3).map(lambda found: tuple(sorted(found)))
some_pairs = st.lists(st.tuples(job_ids, queue_ids), min_size=2, max_size=8)
plain_jobs = st.tuples(job_ids, queue_ids, st.none() | st.sampled_from(TEXTS), tag_sets, st.none())
backoffs = st.builds(Backoff, st.sampled_from([0.5, 4.0]), st.sampled_from([1.0, 2.0]), st.just(10.0), st.just(0.5))
limit_settings = st.builds(
    LimitSettings,
    max_leased=st.none() | st.integers(1, 2),
    rate=st.none() | st.sampled_from([0.125, 0.5, 1.0, 2.0, 2.5]),
    paused=st.sampled_from([False, False, False, True]),
)
no_limits = st.just(LimitSettings())
queue_settings = st.builds(
    QueueSettings,
    max_attempts=st.integers(0, 3),
    backoff=st.none() | backoffs,
    limits=no_limits | limit_settings,
)
realm_settings = st.builds(
    RealmSettings,
    max_attempts=st.sampled_from([0, 0, 2, 3]),
    crash_limit=st.sampled_from([0, 1, 2]),
    backoff=st.none() | backoffs,
    max_jobs=st.sampled_from([0, 0, 0, 4]),
    max_bytes=st.sampled_from([0, 0, 0, 100, 6_000]),
    keep_seconds=st.sampled_from([0.0, 60.0]),
    keep_count=st.sampled_from([0, 3]),
)
wanted_jobs = st.builds(
    Wanted,
    limit=st.integers(0, 5),
    max_queue=st.none() | st.none() | queue_ids,
    queues=st.none() | st.none() | st.frozensets(queue_ids, max_size=3),
    tags=st.none() | st.none() | tag_sets,
    lease_time=st.none() | spans,
    worker=st.sampled_from(["", "w1", "ü"]),
)
step_sizes = st.integers(1, 3)
crashes = st.none() | st.none() | st.integers(0, 2)


def has_leases(machine: RealmAndModel) -> bool:
    return any(place.lease is not None for place in machine.model.places)


def has_dead(machine: RealmAndModel) -> bool:
    return any(place.dead for place in machine.model.places)


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
        self.has_crashed = False  # the last sweep, on its way
        self.patch = mock.patch.object(queues, "TAG_HEAPS_MAX", 2)
        self.patch.start()
        self.pulls: list[tuple[int, int, list[tuple[str, QueueId]]]] = []  # of the realm, of the model, what was got
        self.leases: dict[str, ModelLease] = {}  # by their ids: all that were ever given

    def teardown(self) -> None:
        self.patch.stop()

    def new_realm(self) -> Realm:
        realm = Realm(self.keys.take(), "tried", DEFAULT_LEASE_TIME, self.keys, self.changes, lambda: CHANCE)
        realm.clock = self.now
        return realm

    @property
    def archive(self) -> Archive:
        return Archive(self.store, self.changes)

    def text_of(self, job: Any) -> bytes | None:
        if not isinstance(job.data, Large):
            return bytes(job.data) if job.data is not None else None
        assert job.data.size == len(self.archive.payload(job.key))
        return self.archive.payload(job.key)

    def settle(self) -> None:
        """It is now, to both."""
        self.model.settle(self.now)
        assert self.realm.advance(self.now)

    @initialize(
        settings=st.none() | realm_settings,
        tag=tags,
        of_tag=no_limits | limit_settings,
        of_queue=queue_settings,
        jobs=st.lists(st.tuples(st.tuples(job_ids, queue_ids), tag_sets), max_size=8),
    )
    def begin(
        self,
        settings: RealmSettings | None,
        tag: str,
        of_tag: LimitSettings,
        of_queue: QueueSettings,
        jobs: list[tuple[tuple[str, QueueId], tuple[str, ...]]],
    ) -> None:
        """Most of a run goes by under what was configured first."""
        if settings is not None:
            self.configure_realm(settings._replace(max_jobs=0, max_bytes=0))
            self.configure_tag(tag, of_tag, 1, None)
            self.configure_queue(0, 5.0, of_queue)
        if jobs:
            self.add([(job_id, queue, None, own_tags, None) for (job_id, queue), own_tags in jobs])

    # -- adding ----------------------------------------------------------------------------------------------------

    @rule(jobs=st.lists(plain_jobs, min_size=1, max_size=6))
    def add(self, jobs: list[NewJob]) -> None:
        self.settle()
        error = self.model.add_error(jobs)
        if error is not None:
            before = (len(self.changes), self.realm.exists)
            with pytest.raises(error):
                adding.add(self.realm, jobs, self.now)
            assert (len(self.changes), self.realm.exists) == before
        else:
            self.model.add(jobs)
            adding.add(self.realm, jobs, self.now)

    @rule(pairs=some_pairs, own_tags=tag_sets)
    def add_many_again(self, pairs: list[tuple[str, QueueId]], own_tags: tuple[str, ...]) -> None:
        """An add that hardly ever is refused, so that there are many jobs in many queues."""
        self.add([(job_id, queue, None, own_tags, None) for job_id, queue in pairs])

    @rule(pairs=some_pairs, after=tag_sets, own_tags=tag_sets)
    def add_what_comes_after(
        self, pairs: list[tuple[str, QueueId]], after: tuple[str, ...], own_tags: tuple[str, ...]
    ) -> None:
        self.add([(*pairs[0], None, after, None)])
        self.add([(job_id, queue, None, own_tags, Wishes(after=after)) for job_id, queue in pairs[1:]])

    @precondition(lambda self: any(job.text is not None for job in self.model.jobs))
    @rule(data=st.data(), queue=queue_ids, text=st.sampled_from(TEXTS))
    def add_with_data_again(self, data: st.DataObject, queue: QueueId, text: bytes) -> None:
        """The same value, written in every way there is, and perhaps another one."""
        job = data.draw(st.sampled_from([job for job in self.model.jobs if job.text is not None]))
        assert job.text is not None
        self.add([(job.job_id, queue, written, (), None) for written in VALUES[meaning(job.text)]])
        self.add([(job.job_id, queue, text, (), None)])

    @rule(
        jobs=st.lists(plain_jobs, min_size=1, max_size=3),
        delay=st.none() | spans | st.just(-5.0),
        expires_in=st.none() | st.sampled_from([0.25, 5.0, 601.0]),
        max_attempts=st.none() | st.integers(1, 2),
        after=st.none() | tag_sets,
        on_conflict=st.sampled_from(["merge", "merge", "ignore", "replace", "error"]),
    )
    def add_with_wishes(
        self,
        jobs: list[NewJob],
        delay: float | None,
        expires_in: float | None,
        max_attempts: int | None,
        after: tuple[str, ...] | None,
        on_conflict: str,
    ) -> None:
        at = None if delay is None else self.now + delay
        expires_at = None if expires_in is None else self.now + expires_in
        wishes = Wishes(at, expires_at, max_attempts, after, on_conflict)
        self.add([(*job[:4], wishes) for job in jobs])
        self.add([(*jobs[0][:2], None, jobs[0][3], wishes._replace(on_conflict="merge"))])

    # -- pulling ---------------------------------------------------------------------------------------------------

    @rule(wanted=wanted_jobs)
    def pull(self, wanted: Wanted) -> None:
        self.model.settle(self.now)
        expected = self.model.pull(wanted)
        got = leasing.pull(self.realm, wanted, self.now)
        assert shown(got) == [(place.job.job_id, place.queue) for place in expected]
        self.got(got, expected)

    @rule(count=st.integers(1, 5))
    def pull_some(self, count: int) -> None:
        self.pull(Wanted(count, worker="w"))

    @rule(count=st.integers(1, 5), seconds=st.sampled_from([1.0, 5.0, 600.0]))
    def pull_again_later(self, count: int, seconds: float) -> None:
        """Perhaps what was leased just before."""
        self.now += seconds
        self.pull(Wanted(count, lease_time=5.0))

    def got(self, got: list[Place], expected: list[ModelPlace]) -> None:
        assert [place.at for place in got] == [place.at for place in expected]
        assert [place.history.attempt for place in got] == [self.model.attempt(place) for place in expected]
        for place, leased in zip(got, expected, strict=True):
            lease_id = finishing.lease_id(self.realm, place)
            assert lease_id not in self.leases, "never used twice"
            assert leased.lease is not None
            self.leases[lease_id] = leased.lease
        if got:
            (number,) = {place.history.lease for place in got}
            assert number not in [used for used, _, _ in self.pulls], "never used twice"
            assert expected[0].lease is not None
            self.pulls.append((number, expected[0].lease.pull, shown(got)))

    @rule(wanted=wanted_jobs)
    def peek(self, wanted: Wanted) -> None:
        self.settle()
        expected = [(place.job.job_id, place.queue) for place in self.model.peek(wanted)]
        noted = len(self.changes)
        for _ in range(2):
            assert shown(leasing.peek(self.realm, wanted, self.now)) == expected
        assert leasing.has_ready(self.realm, wanted._replace(limit=1)) == bool(
            self.model.peek(wanted._replace(limit=1))
        )
        assert len(self.changes) == noted

    @rule(data=st.data(), wanted=wanted_jobs)
    def lease_one(self, data: st.DataObject, wanted: Wanted) -> None:
        pairs = [(place.job.job_id, place.queue) for place in self.model.places]
        likely = st.sampled_from(pairs) if pairs else st.tuples(job_ids, queue_ids)
        self.lease(*data.draw(likely | likely | st.tuples(job_ids, queue_ids)), wanted)

    def lease(self, job_id: str, queue: QueueId, wanted: Wanted) -> None:
        self.settle()
        place = self.model.place(job_id, queue)
        got = leasing.lease(self.realm, job_id, queue, Pull(self.realm, wanted))
        if place is None or not self.model.can_have(place):
            assert got is None
        else:
            self.model.lease(place, wanted)
            assert got is not None
            assert shown([got]) == [(job_id, queue)]
            self.got([got], [place])

    @precondition(lambda self: self.pulls)
    @rule(data=st.data())
    def undo_pull(self, data: st.DataObject) -> None:
        """Give back what a pull leased and, of what it did not, nothing."""
        number, pull, pairs = data.draw(st.sampled_from(self.pulls[-5:]))
        self.model.settle(self.now)
        others = [(place.job.job_id, place.queue) for place in self.model.places if data.draw(st.booleans())]
        pairs = list(dict.fromkeys([*pairs, *others]))
        assert leasing.undo_pull(self.realm, number, pairs, self.now) == self.model.undo(pull, pairs)

    # -- what workers do with leases -------------------------------------------------------------------------------

    def some_leases(self, data: st.DataObject) -> list[str]:
        """Lease ids, mostly in force, perhaps stale, twice or never given."""
        self.settle()
        in_force = [proof for proof, lease in self.leases.items() if self.model.place_of(lease)]
        known = st.sampled_from(list(self.leases)[-8:] + in_force[-8:] if self.leases else ["1-1"])
        likely = st.sampled_from(in_force) if in_force else known
        return data.draw(st.lists(likely | likely | known | never_given, min_size=1, max_size=3))

    def place_of(self, proof: str) -> ModelPlace | None:
        lease = self.leases.get(proof)
        return None if lease is None else self.model.place_of(lease)

    @precondition(has_leases)
    @rule(data=st.data(), exit_code=st.none() | st.just(3))
    def ack(self, data: st.DataObject, exit_code: int | None) -> None:
        proofs = self.some_leases(data)
        expected: dict[str, list[str]] = {"acked": [], "stale": []}
        if not any(self.place_of(proof) for proof in proofs):
            with pytest.raises(finishing.LeaseStale):
                finishing.check_ack(self.realm, proofs, self.now)
        else:
            finishing.check_ack(self.realm, proofs, self.now)
        for proof in proofs:
            place = self.place_of(proof)
            expected["stale" if place is None else "acked"].append(proof)
            if place is not None:
                self.model.ack(place, {"result": [1]} if exit_code is None else {"result": [1], "exit_code": exit_code})
        assert finishing.ack(self.realm, proofs, Outcome(msgspec.Raw(b"[1]"), exit_code), self.now) == expected

    @precondition(has_leases)
    @rule(data=st.data(), error=st.sampled_from(["boom", ""]), code=st.none() | st.just(1), delay=st.none() | spans)
    def nack(self, data: st.DataObject, error: str, code: int | None, delay: float | None) -> None:
        proofs = self.some_leases(data)
        expected: dict[str, list[str]] = {"nacked": [], "dead": [], "stale": []}
        for proof in proofs:
            place = self.place_of(proof)
            if place is None:
                expected["stale"].append(proof)
            else:
                expected["dead" if self.model.nack(place, error, code, delay) else "nacked"].append(proof)
        assert finishing.nack(self.realm, proofs, error, code, delay, self.now) == expected

    @precondition(has_leases)
    @rule(data=st.data(), delay=spans)
    def release(self, data: st.DataObject, delay: float) -> None:
        proofs = self.some_leases(data)
        expected: dict[str, list[str]] = {"released": [], "stale": []}
        for proof in proofs:
            place = self.place_of(proof)
            expected["stale" if place is None else "released"].append(proof)
            if place is not None:
                self.model.give_up(place, self.now + delay)
        assert finishing.release(self.realm, proofs, delay, self.now) == expected

    @precondition(has_leases)
    @rule(data=st.data(), lease_time=st.none() | spans)
    def extend(self, data: st.DataObject, lease_time: float | None) -> None:
        proofs = self.some_leases(data)
        extended: dict[str, float] = {}
        expected: dict[str, list[str]] = {"stale": [], "cancelled": []}
        for proof in proofs:
            place = self.place_of(proof)
            answer = "stale" if place is None else self.model.extend(place, lease_time)
            if isinstance(answer, str):
                expected[answer].append(proof)
            else:
                extended[proof] = answer
                self.model.settle(self.now)
        got = finishing.extend(self.realm, proofs, lease_time, self.now)
        assert got == {"extended": extended, **expected}

    @precondition(has_leases)
    @rule(
        data=st.data(),
        jobs=st.lists(plain_jobs, max_size=3),
        on_conflict=st.sampled_from(["merge", "merge", "ignore", "replace", "error"]),
    )
    def exchange(self, data: st.DataObject, jobs: list[NewJob], on_conflict: str) -> None:
        """What an ack, a nack and an add come to one after the other, or nothing where one of them is refused."""
        self.settle()
        acked = self.some_leases(data) if data.draw(st.booleans()) else []
        nacked = self.some_leases(data) if data.draw(st.booleans()) else []
        jobs = [(*job[:4], Wishes(on_conflict=on_conflict)) for job in jobs]
        added = [
            {"job_id": job_id, "queue_id": queue, "data": msgspec.Raw(text or b"null"), "tags": own_tags}
            for job_id, queue, text, own_tags, _ in jobs
        ]
        body = msgspec.json.encode(
            {
                "ack": {"leases": acked},
                "nack": {"leases": nacked, "error": "boom"},
                "add": [{**job, "on_conflict": on_conflict} for job in added],
            }
        )
        call = Call([], body, self.now, self.archive)
        known = {proof: self.leases[proof] for proof in (*acked, *nacked) if proof in self.leases}
        expected = exchanged(*copy.deepcopy((self.model, known)), acked, nacked, jobs)
        if isinstance(expected, type):
            before = len(self.changes)
            with pytest.raises(expected):
                REALM_OPERATIONS["exchange"](self.realm, call)
            assert len(self.changes) == before
            return
        assert exchanged(self.model, known, acked, nacked, jobs) == expected
        done = REALM_OPERATIONS["exchange"](self.realm, call)
        assert isinstance(done, Done)
        assert json.loads(done.body) == expected

    # -- time ------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.75, 5.0, 8.0, 600.0, 601.0, 100_000.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([1.0, 5.0, 600.0]), count=st.integers(1, 2))
    def pass_time_bit_by_bit(self, seconds: float, count: int) -> None:
        self.now += seconds
        self.model.settle(self.now)
        while not self.realm.advance(self.now, count):
            assert self.realm.clock <= self.now

    @rule(seconds=st.sampled_from([0.25, 5.0, 600.0]))
    def set_clock_back(self, seconds: float) -> None:
        """An instant behind the last one is that one."""
        self.settle()
        assert self.realm.advance(self.now - seconds)
        assert self.realm.clock == self.now

    # -- what operators do -----------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(["job", "job", "queue", "tag", "realm"]), data=st.data(), chance=st.integers(0, 2))
    def remove(self, kind: str, data: st.DataObject, chance: int) -> None:
        """Now and then, or hardly any realm would grow."""
        size, crash, lapse = data.draw(step_sizes), data.draw(crashes), data.draw(spans)
        if chance:
            self.add([("a", 0, None, ("red",), None), ("b", 1, None, ("green",), None)])
        elif kind == "job":
            self.remove_job(data.draw(job_ids))
        elif kind == "queue":
            self.clear_queue(data.draw(queue_ids), size, crash, lapse)
        elif kind == "tag":
            self.remove_tagged_jobs(data.draw(tags), size, crash, lapse)
        elif self.model.exists:
            self.delete(size, crash, lapse)

    def remove_job(self, job_id: str) -> None:
        self.settle()
        if self.model.job(job_id) is None:
            with pytest.raises(JobNotFound):
                self.realm.get_job(job_id)
        else:
            self.model.remove(job_id)
            self.realm.drop(self.realm.get_job(job_id))

    def move_job(self, job_id: str, from_queue: QueueId, to_queue: QueueId) -> None:
        self.settle()
        error = self.model.move_error(job_id, from_queue)
        if error is not None:
            before = len(self.changes)
            with pytest.raises(error):
                operating.move_job(self.realm, job_id, from_queue, to_queue, self.now)
            assert len(self.changes) == before
        else:
            place = self.model.place(job_id, from_queue)
            assert place is not None
            self.model.move(place, to_queue)
            operating.move_job(self.realm, job_id, from_queue, to_queue, self.now)

    @rule(data=st.data(), to_queue=queue_ids)
    def move(self, data: st.DataObject, to_queue: QueueId) -> None:
        pairs = [(place.job.job_id, place.queue) for place in self.model.places]
        likely = st.sampled_from(pairs) if pairs else st.tuples(job_ids, queue_ids)
        self.move_job(*data.draw(likely | likely | st.tuples(job_ids, queue_ids)), to_queue)

    @rule(job_id=job_ids)
    def cancel_job(self, job_id: str) -> None:
        self.settle()
        job = self.model.job(job_id)
        if job is None:
            with pytest.raises(JobNotFound):
                operating.cancel_job(self.realm, job_id, self.now)
        else:
            assert operating.cancel_job(self.realm, job_id, self.now) == self.model.cancel(job)

    @precondition(has_dead)
    @rule(data=st.data())
    def redrive_job(self, data: st.DataObject) -> None:
        self.settle()
        dead = [place for place in self.model.places if place.dead]
        if self.model.places:
            expected = data.draw(st.sampled_from(dead or self.model.places))
            place = self.realm.place(expected.job.job_id, expected.queue)
            assert place is not None
            assert operating.redrive(self.realm, place) == self.model.redrive(expected)

    def set_default_lease_time(self, seconds: float) -> None:
        self.model.exists = True
        self.model.default_lease_time = seconds
        self.realm.default_lease_time = seconds
        self.realm.write(changed=True)

    @rule(queue=queue_ids, seconds=spans, default=spans)
    def set_lease_times(self, queue: QueueId, seconds: float, default: float) -> None:
        self.set_default_lease_time(default)
        known = self.model.queue_settings.get(queue, QueueSettings())
        self.configure_queue(queue, seconds, known)

    @rule(settings=realm_settings)
    def configure_realm(self, settings: RealmSettings) -> None:
        self.settle()
        self.model.configure_realm(settings)
        self.realm.settings = settings.after(self.realm.settings, self.realm.clock)
        self.realm.write(changed=True)

    @precondition(lambda self: self.model.results)
    @rule(keep_seconds=st.sampled_from([0.0, 0.25, 5.0, 60.0]), keep_count=st.sampled_from([0, 0, 1, 3]))
    def keep_other_results(self, keep_seconds: float, keep_count: int) -> None:
        self.configure_realm(self.model.settings._replace(keep_seconds=keep_seconds, keep_count=keep_count))

    @precondition(lambda self: self.model.results)
    @rule()
    def tidy_up(self) -> None:
        self.settle()
        self.model.tidy_up()
        chores = Chores(self.archive, self.changes, Replies(self.keys, self.changes))
        chores.load([], True, self.now - INTERVAL_SECONDS)
        chores.do([self.realm], self.now)

    @rule(queue=queue_ids, seconds=spans, settings=queue_settings)
    def configure_queue(self, queue: QueueId, seconds: float, settings: QueueSettings) -> None:
        self.settle()
        self.model.configure_queue(queue, seconds, settings)
        self.realm.write()
        limits.configure_queue(self.realm, self.realm.queue(queue), seconds, settings)

    @rule(tag=tags, settings=no_limits | limit_settings, size=step_sizes, crash=crashes)
    def configure_tag(self, tag: str, settings: LimitSettings, size: int, crash: int | None) -> None:
        self.settle()
        self.model.configure_tag(tag, settings)
        if limits.configure_tag(self.realm, tag, settings) and tag in self.realm.tags:
            self.carry_on(sweeps.rearrange(self.realm, tag), size, crash)

    # -- what concerns many jobs, in steps, a restart in their midst -------------------------------------------------

    def clear_queue(self, queue: QueueId, size: int, crash: int | None, lapse: float) -> None:
        self.settle()
        if queue not in self.model.lease_times:
            with pytest.raises(QueueNotFound):
                sweeps.clear_queue(self.realm, queue)
            return
        before = len(self.model.jobs)
        self.model.clear(queue)
        removed = before - len(self.model.jobs)
        done = self.carry_on(sweeps.clear_queue(self.realm, queue), size, crash, lapse)
        assert crash is not None or done["removed"] == removed

    def remove_tagged_jobs(self, tag: str, size: int, crash: int | None, lapse: float) -> None:
        tagged = self.tagged(tag, "remove_tagged_jobs")
        for job_id in tagged:
            self.model.remove(job_id)
        if tagged:
            done = self.carry_on(sweeps.of_tag(self.realm, "remove_tagged_jobs", tag), size, crash, lapse)
            assert crash is not None or done["removed"] == len(tagged)

    @rule(tag=tags, size=step_sizes, crash=crashes, lapse=spans)
    def cancel_tagged_jobs(self, tag: str, size: int, crash: int | None, lapse: float) -> None:
        tagged = self.tagged(tag, "cancel_tagged_jobs")
        gone = [self.model.cancel(self.model.job(job_id)) for job_id in tagged]  # type: ignore[arg-type]
        if tagged:
            done = self.carry_on(sweeps.of_tag(self.realm, "cancel_tagged_jobs", tag), size, crash, lapse)
            assert crash is not None or (done["removed"], done["leased"]) == (sum(gone), len(gone) - sum(gone))

    @rule(tag=tags, from_queue=queue_ids, to_queue=queue_ids, size=step_sizes, crash=crashes)
    def move_tagged_jobs(self, tag: str, from_queue: QueueId, to_queue: QueueId, size: int, crash: int | None) -> None:
        tagged = self.tagged(tag, "move_tagged_jobs", (from_queue, to_queue))
        places = [place for job_id in tagged if (place := self.model.place(job_id, from_queue))]
        leased = [place for place in places if self.model.state(place) == "leased"]
        if from_queue == to_queue:
            places = leased = []
        for place in places:
            if place not in leased:
                self.model.move(place, to_queue)
        if tagged:
            sweep = sweeps.of_tag(self.realm, "move_tagged_jobs", tag, (from_queue, to_queue))
            done = self.carry_on(sweep, size, crash)
            assert crash is not None or (done["moved"], done["leased"]) == (len(places) - len(leased), len(leased))

    @precondition(has_dead)
    @rule(tag=tags, size=step_sizes, crash=crashes)
    def redrive_tagged_jobs(self, tag: str, size: int, crash: int | None) -> None:
        tagged = self.tagged(tag, "redrive_tagged_jobs")
        places = [place for place in self.model.places if tag in place.job.tags]
        redriven = [place.job for place in places if self.model.redrive(place)]
        if tagged:
            done = self.carry_on(sweeps.of_tag(self.realm, "redrive_tagged_jobs", tag), size, crash)
            self.redrive_what_died_meanwhile(places)
            assert crash is not None or done["redriven"] == len({job.job_id for job in redriven})

    @precondition(has_dead)
    @rule(queue=st.none() | queue_ids, size=step_sizes, crash=crashes)
    def redrive(self, queue: QueueId | None, size: int, crash: int | None) -> None:
        self.settle()
        if not self.model.exists or (queue is not None and queue not in self.model.lease_times):
            return
        places = [place for place in self.model.places if queue is None or place.queue == queue]
        redriven = sum(self.model.redrive(place) for place in places)
        done = self.carry_on(sweeps.redrive(self.realm, queue), size, crash)
        self.redrive_what_died_meanwhile(places)
        assert crash is not None or done["redriven"] == redriven

    def redrive_what_died_meanwhile(self, places: list[ModelPlace]) -> None:
        """A restart may find dead what was not, as settings changed: a sweep that goes on after it finds these, too."""
        if self.has_crashed:
            for place in places:
                self.model.redrive(place)

    def delete(self, size: int, crash: int | None, lapse: float) -> None:
        self.settle()
        self.carry_on(sweeps.delete(self.realm), size, crash, lapse)
        assert not self.realm.exists
        self.model = self.model.empty()
        self.commit()
        for row in self.store.results(self.realm.key, 0, EVERYTHING):  # they are left to the shard
            self.changes.results[row.key] = None
        self.commit()
        self.realm = self.new_realm()
        self.model.settle(self.now)
        assert row_count(self.store) == 0

    def tagged(self, tag: str, kind: str, details: tuple[QueueId, ...] = ()) -> list[str]:
        self.settle()
        tagged = self.model.tagged(tag)
        if not tagged:
            with pytest.raises(TagNotFound):
                sweeps.of_tag(self.realm, kind, tag, details)
        return tagged

    def carry_on(self, work: Sweep, size: int, crash: int | None, lapse: float = 0.0) -> dict[str, int]:
        """Do it to its end. With `crash`, after so many steps all is lost but for the rows; time went on meanwhile."""
        is_kept = self.realm.task is not None
        self.has_crashed = False
        done = False
        while not done:
            if crash == 0:
                self.now += lapse
                self.rebuild()
                self.has_crashed = True
                self.model.settle(self.now)
                if not is_kept:
                    break
                assert self.realm.task is not None
                work = Sweep(self.realm, self.realm.task)
            crash = None if crash is None else crash - 1
            done = work.step(size)
        assert not self.realm.exists or self.realm.task is None
        return work.counts

    # -- what is durable -------------------------------------------------------------------------------------------

    @rule()
    def commit(self) -> None:
        self.group += 1
        completed(self.store.commit(self.changes.take(), Mark(self.group, self.keys.next_key, self.now)))

    @rule(lapse=spans, is_down=st.booleans())
    def restart(self, lapse: float, is_down: bool) -> None:
        """Time goes on while the shard is down; or before, noted by the store, while something held the realm."""
        if is_down:
            self.commit()
        self.now += lapse
        if not is_down:
            self.commit()
        self.rebuild()
        assert self.realm.task is None, "nothing is under way"

    def rebuild(self) -> None:
        """All that is in memory is lost."""
        if len(self.changes):
            self.commit()
        loaded = self.store.load()
        self.keys, self.changes = Keys(loaded.mark.next_key), Changes()
        loader = Loader(self.keys, self.changes, lambda: CHANCE)
        loader.add_all(loaded)
        realms = loader.finish(self.now)
        assert len(realms) <= 1
        self.realm = realms[0] if realms else self.new_realm()
        self.realm.advance(self.now)
        self.model.restart()
        self.model.settle(self.now)

    # -- what is listed --------------------------------------------------------------------------------------------

    @rule(
        state=st.none() | st.sampled_from(STATES),
        queue=st.none() | queue_ids,
        tag=st.none() | tags,
        prefix=st.sampled_from(["", "", "a", "e/", "z"]),
        limit=st.integers(1, 4),
        scan_max=st.integers(1, 5),
    )
    def list_jobs(
        self, state: str | None, queue: QueueId | None, tag: str | None, prefix: str, limit: int, scan_max: int
    ) -> None:
        self.settle()
        wanted = listing.Filter(state, queue, tag, prefix)
        found: list[str] = []
        cursor: str | None = None
        with mock.patch.object(listing, "SCAN_MAX", scan_max):
            while True:
                page, following = listing.list_jobs(self.realm, wanted, limit, cursor)
                assert len(page) <= limit
                found += [job.job_id for job in page]
                if following is None:
                    break
                assert cursor is None or int(following) > int(cursor)
                cursor = following
        expected = [
            job.job_id
            for job in self.model.jobs
            if job.job_id.startswith(prefix)
            and (tag is None or tag in job.tags)
            and any(
                queue in (None, place.queue) and state in (None, self.model.state(place))
                for place in self.model.places_of(job)
            )
        ]
        assert found == expected

    @rule(limit=st.integers(1, 3))
    def list_results(self, limit: int) -> None:
        self.settle()
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            params = ["done", None, None, None, str(limit), cursor, None]
            done = REALM_OPERATIONS["list_jobs"](self.realm, Call(params, b"", self.now, self.archive))
            assert isinstance(done, Done)
            page = json.loads(done.body)
            found += page["jobs"]
            cursor = page["cursor"]
            if cursor is None:
                break
        assert found == [result.said for result in self.model.kept_results()]

    @rule(prefix=st.sampled_from(["", "", "g", "z"]), limit=st.integers(1, 3))
    def list_tags(self, prefix: str, limit: int) -> None:
        self.settle()
        found: list[str] = []
        cursor: str | None = None
        while True:
            page, cursor = listing.list_tags(self.realm, prefix, limit, cursor)
            found += page
            if cursor is None:
                break
        known = {tag for job in self.model.jobs for tag in job.tags} | set(self.model.tag_limits)
        assert found == sorted(tag for tag in known if tag.startswith(prefix))

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def explain(self, data: st.DataObject) -> None:
        self.settle()
        for job in self.model.jobs:
            said = listing.explain(self.realm, self.realm.get_job(job.job_id), self.archive)
            for place, shown in zip(self.model.places_of(job), said["queues"], strict=True):
                limits_of = self.model.limits_of(place)
                is_open = {(kind, name): self.model.lets_pass(limit) for kind, name, limit in limits_of}
                assert all((limit["kind"], limit["name"]) in is_open for limit in shown.get("limits", []))
                is_held = self.model.state(place) == "ready" and not all(is_open.values())
                assert ("and held by" in shown["explanation"]) == is_held
                for (kind, name), lets_pass in is_open.items():
                    assert (f"by {kind} {name!r}: " in shown["explanation"]) == (is_held and not lets_pass)
                others = [other for other in self.model.jobs if other is not job]
                expected = {tag: sum(tag in other.tags for other in others) for tag in job.after}
                assert shown.get("after", {}) == expected

    # -- what must be the same -------------------------------------------------------------------------------------

    @invariant()
    def both_are_the_same(self) -> None:
        """As of the realm's clock: time may have gone on without it."""
        self.realm.check()
        self.model.settle(self.realm.clock)
        self.counts_are_the_same()
        self.jobs_are_the_same()
        self.leases_are_the_same()
        self.order_is_the_same()
        self.rows_are_the_same()

    def counts_are_the_same(self) -> None:
        model, realm = self.model, self.realm
        assert realm.exists == model.exists
        assert realm.default_lease_time == model.default_lease_time
        assert [queue.queue_id for queue in realm.served()] == sorted(model.lease_times, key=queue_rank)
        assert {key: queue.lease_time for key, queue in realm.queues.items()} == model.lease_times
        for queue in realm.served():
            shown = listing.shown_queue(realm, queue)
            places = model.in_queue(queue.queue_id)
            assert shown["count"] == len(places)
            assert {state: shown[state] for state in STATES} == model.counts(places)
            ready = [place.at for place in places if model.state(place) == "ready"]
            if 0.0 in ready:  # given back by a pull: since just now, and what stands behind it may be overlooked
                assert 0.0 <= shown["oldest_ready_seconds"] <= max(model.clock - (at or model.clock) for at in ready)
            else:
                assert shown["oldest_ready_seconds"] == (model.clock - min(ready) if ready else None)
        for tag in TAGS:
            shown = listing.shown_tag(realm, tag)
            places = [place for place in model.places if tag in place.job.tags]
            assert shown["count"] == len(model.tagged(tag)) == (len(realm.tags[tag].jobs) if tag in realm.tags else 0)
            assert {state: shown[state] for state in STATES} == model.counts(places)

    def jobs_are_the_same(self) -> None:
        jobs = [job for job in self.realm.roll.after(0) if job is not None]
        assert [job.job_id for job in jobs] == [job.job_id for job in self.model.jobs]
        for job, expected in zip(jobs, self.model.jobs, strict=True):
            assert self.realm.get_job(job.job_id) is job
            assert self.text_of(job) == expected.text
            shown = listing.shown_job(self.realm, job, self.archive)
            places = shown.pop("queues")
            cancelled = any(place.lease and place.lease.cancelled for place in self.model.places_of(expected))
            about = {"after": expected.after, "max_attempts": expected.max_attempts, "expires_at": expected.expires_at}
            assert shown == {
                "job_id": expected.job_id,
                "tags": tuple(sorted(expected.tags)),
                **{name: value for name, value in about.items() if value},
                **({"cancelled": True} if cancelled else {}),
            }
            assert len(places) == len(self.model.places_of(expected))
            for place, of_model in zip(places, self.model.places_of(expected), strict=True):
                place.pop("failed_at", None)
                assert place == shown_place(self.model, of_model)

    def leases_are_the_same(self) -> None:
        for proof, lease in self.leases.items():
            expected, place = self.model.place_of(lease), finishing.leased_place(self.realm, proof)
            assert (place is None) == (expected is None)
            if place is not None and expected is not None:
                assert shown([place]) == [(expected.job.job_id, expected.queue)]

    def order_is_the_same(self) -> None:
        everything = Wanted(EVERYTHING)
        expected = self.model.peek(everything)
        clock = self.realm.clock
        assert shown(leasing.peek(self.realm, everything, clock)) == [(p.job.job_id, p.queue) for p in expected]
        for queue_id, queue in self.realm.queues.items():  # of the leased ones, too
            places = [p for job in self.realm.jobs.values() for p in job.places if p.queue is queue]
            in_order = [place.job.job_id for place in sorted(places, key=lambda place: (place.at, place.key))]
            assert in_order == [place.job.job_id for place in self.model.in_queue(queue_id)]

    def rows_are_the_same(self) -> None:
        rows = self.archive.results(self.realm.key, 0, EVERYTHING)
        assert [json.loads(row.text) for row in rows] == [result.said for result in self.model.results]
        assert self.realm.result_count == len(self.model.results)
        if not len(self.changes) and self.realm.exists:
            jobs, places = self.model.jobs, self.model.places
            large = sum(1 for job in jobs if job.text is not None and len(job.text) > 4096)
            failures = sum(place.failure is not None for place in places)
            settings = 1 + len(self.model.lease_times) + len(self.model.tag_limits)
            expected = settings + len(jobs) + len(places) + large + failures + len(rows)
            assert row_count(self.store) == expected, "nothing is left behind"


def exchanged(
    model: Model, leases: dict[str, ModelLease], acked: list[str], nacked: list[str], jobs: list[NewJob]
) -> type[RestqError] | dict[str, dict[str, list[str]]]:
    """Ack, nack and add; what the first two reply, or the error that one of the three raises."""

    def place_of(proof: str) -> ModelPlace | None:
        return model.place_of(leases[proof]) if proof in leases else None

    if acked and not any(place_of(proof) for proof in acked):
        return finishing.LeaseStale
    reply: dict[str, dict[str, list[str]]]
    reply = {"ack": {"acked": [], "stale": []}, "nack": {"nacked": [], "dead": [], "stale": []}}
    for proof in acked:
        place = place_of(proof)
        reply["ack"]["stale" if place is None else "acked"].append(proof)
        if place is not None:
            model.ack(place, {})
    for proof in nacked:
        place = place_of(proof)
        dies = place is not None and model.nack(place, "boom", None, None)
        reply["nack"]["stale" if place is None else "dead" if dies else "nacked"].append(proof)
    error = model.add_error(jobs)
    if error is not None:
        return error
    if jobs:
        model.add(jobs)
    return reply


never_given = st.sampled_from(["1-1", "0-0", "x", "999999999-1", "-", "1-2-3", "٣-٤", "1-01"])


def shown(places: list[Place]) -> list[tuple[str, QueueId]]:
    return [(place.job.job_id, place.queue.queue_id) for place in places]


def row_count(store: MemoryStore) -> int:
    """How many rows the store keeps; none of them may be left behind by what is gone."""
    kept = store._tables
    assert {row[1] for row in kept["places"].values()} == set(kept["jobs"]), "no job without a place"
    assert {row[2] for row in kept["places"].values()} <= set(kept["queues"])
    owned = ("queues", "jobs", "tags", "failures", "results")
    assert {row[1] for table in owned for row in kept[table].values()} <= set(kept["realms"])
    assert set(kept["payloads"]) == {key for key, row in kept["jobs"].items() if row[6]}
    assert set(kept["failures"]) <= set(kept["places"])
    return sum(len(rows) for rows in kept.values())


TestRealmAgainstModel = RealmAndModel.TestCase
TestRealmAgainstModel.settings = settings(
    max_examples=2_500 if os.environ.get("RESTQ_TEST_LONG") else 400,
    stateful_step_count=200 if os.environ.get("RESTQ_TEST_LONG") else 60,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],  # to explain takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
