"""Workers that race for one job: expiry, ack, nack, extend and release of leases that last for milliseconds.

Each notes when it asked, when it was answered, and what. Then each history is searched for an order of all requests,
each between its two instants, in which one job that is leased to one worker at a time answers just so. Where there is
no such order, two of them were told what can't both be true. RESTQ_TEST_LONG=1 runs 10,000 races.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from conftest import Server
from longrun import seeds
from realm_calls import RealmCalls
from wire import JSON, Wire

SEEDS = seeds(150, 10_000)
BATCHES = [SEEDS[start : start + 500] for start in range(0, len(SEEDS), 500)]  # each is over in some minutes at most
SIDE_BY_SIDE = 8  # races
WORKERS = 2
STEPS = 7  # requests of each worker
LEASE_SECONDS = (0.010, 0.050)
HOUR = 3600.0


class Asked(NamedTuple):
    """A request that was answered, with its instants by the clock of the clients."""

    worker: int
    verb: str
    lease: str  # the one that it speaks of, or that a pull was given; "" where that got none
    seconds: float  # how long the lease is to last from then on
    is_done: bool  # else the lease was stale, or there was no job
    attempt: int  # of a pull that got the job
    asked_at: float
    answered_at: float


class Job(NamedTuple):
    """What there is to know of the job. The end of its lease is known but for the time that its request took."""

    lease: str = ""  # of the worker who has it; "" where nobody has
    attempts: int = 0  # that count
    ends_after: float = 0.0
    ends_before: float = 0.0
    is_gone: bool = False

    def after(self, this: Asked) -> Job | None:
        """What it is after this request was done and answered so; None where it could not have been answered so."""
        if this.verb == "pull":
            return self._pulled(this) if this.is_done else self._missed(this)
        if self.is_gone or self.lease != this.lease:
            return None if this.is_done else self
        if not this.is_done:
            return None
        match this.verb:
            case "ack":
                return Job(is_gone=True)
            case "nack":
                return Job(attempts=self.attempts)
            case "release":
                return Job(attempts=self.attempts - 1)
            case _:
                return self._replace(**_end(this))

    def _pulled(self, this: Asked) -> Job | None:
        is_free = not self.lease or this.answered_at >= self.ends_after
        if self.is_gone or not is_free or this.attempt != self.attempts + 1 or this.lease == self.lease:
            return None
        return Job(this.lease, this.attempt, **_end(this))

    def _missed(self, this: Asked) -> Job | None:
        is_held = self.lease and this.asked_at <= self.ends_before
        return self if self.is_gone or is_held else None


def _end(this: Asked) -> dict[str, float]:
    return {"ends_after": this.asked_at + this.seconds, "ends_before": this.answered_at + this.seconds}


def order_of(history: list[Asked]) -> list[Asked] | None:
    """An order in which these can have been done, one after the other, each while it was under way; or None."""
    seen: set[tuple[frozenset[int], Job]] = set()
    # What is done, what the job is then, and the order that led there.
    ways: list[tuple[frozenset[int], Job, tuple[Asked, ...]]] = [(frozenset(), Job(), ())]
    while ways:
        done, job, order = ways.pop()
        if len(done) == len(history):
            return list(order)
        left = [index for index in range(len(history)) if index not in done]
        first_answer = min(history[index].answered_at for index in left)
        for index in left:
            this = history[index]
            if this.asked_at > first_answer:
                continue  # another one was answered before this was asked
            after = job.after(this)
            if after is not None and (state := (done | {index}, after)) not in seen:
                seen.add(state)
                ways.append((*state, (*order, this)))
    return None


class Worker:
    """One worker of a race. What it does, and how long it rests, hangs on its seed."""

    def __init__(self, realm: RealmCalls, number: int, chance: random.Random) -> None:
        self.history: list[Asked] = []
        self._name = realm.name
        self._number = number
        self._chance = chance
        self._wire = Wire(realm.server.port)
        self._lease = ""
        self._seconds = 0.0

    def run(self, start: threading.Barrier) -> None:
        """Take a few steps."""
        self._wire.ask("GET", "/healthz").ok()
        start.wait()
        try:
            for _ in range(STEPS):
                self.step()
        finally:
            self._wire.close()

    def step(self) -> None:
        """Pull, or do something with the lease, around the time at which it ends."""
        if not self._lease or self._chance.random() < 0.25:
            self.pull(self._chance.uniform(*LEASE_SECONDS))
            return
        time.sleep(self._seconds * self._chance.choice([0, self._chance.uniform(0.8, 1.2), 1.0]))
        verb = self._chance.choices(["extend", "ack", "nack", "release"], [4, 1, 2, 2])[0]
        self.end(verb, self._chance.uniform(*LEASE_SECONDS))

    def pull(self, seconds: float) -> None:
        """Ask for the job."""
        body = {"lease_time": seconds, "wait": self._chance.choice([0, 0, 0.02])}
        path = f"/{self._name}/pull"
        if self._chance.random() < 0.3:
            path, body = "/pull", {**body, "realms": [self._name]}  # type: ignore[dict-item]
        asked_at = time.monotonic()
        jobs = self._wire.ask("POST", path, body, JSON).ok()["jobs"]
        lease, attempt = (jobs[0]["lease_id"], jobs[0]["attempt"]) if jobs else ("", 0)
        self._note("pull", lease, seconds, bool(jobs), attempt, asked_at)
        if jobs:
            self._lease, self._seconds = lease, seconds

    def end(self, verb: str, seconds: float) -> None:
        """Ack, nack, release or extend the last lease that it got."""
        body: dict[str, Any] = {"leases": [self._lease]}
        if verb == "extend":
            body["lease_time"] = seconds
        asked_at = time.monotonic()
        answer = self._wire.ask("POST", f"/{self._name}/{verb}", body, JSON)
        assert answer.status in (200, 409), answer
        is_done = answer.status == 200 and not answer.json["stale"]
        self._note(verb, self._lease, seconds, is_done, 0, asked_at)
        if verb == "extend" and is_done:
            self._seconds = seconds
        elif self._chance.random() < 0.5:
            self._lease = ""  # else it tries with what it has given back, too

    def _note(self, verb: str, lease: str, seconds: float, is_done: bool, attempt: int, asked_at: float) -> None:
        now = time.monotonic()
        self.history.append(Asked(self._number, verb, lease, seconds, is_done, attempt, asked_at, now))


def race(server: Server, seed: int) -> list[Asked]:
    """Have workers race for a job; the history, to the end of the job."""
    realm = RealmCalls(server, f"race-{seed}")
    realm.add("j").ok()
    start = threading.Barrier(WORKERS)
    workers = [Worker(realm, number, random.Random(f"{seed} {number}")) for number in range(WORKERS)]
    threads = [threading.Thread(target=worker.run, args=(start,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = Worker(realm, WORKERS, random.Random(seed))
    while realm.ids():
        last.pull(HOUR)
        if last.history[-1].is_done:
            last.end("ack", 0)
    last._wire.close()
    realm.ask("DELETE", "").ok()
    return sorted((asked for worker in (*workers, last) for asked in worker.history), key=lambda asked: asked.asked_at)


def check(history: list[Asked], seed: int) -> None:
    leases = [asked.lease for asked in history if asked.verb == "pull" and asked.is_done]
    assert len(set(leases)) == len(leases), f"RESTQ_SEED={seed}: a lease id came twice: {leases}"
    if order_of(history) is None:
        shown = "\n".join(map(str, history))
        raise AssertionError(f"RESTQ_SEED={seed}: in no order can these have been answered so:\n{shown}")


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: f"seed {batch[0]}")
def test_race_for_one_job_is_answered_as_if_one_worker_came_after_the_other(
    server: Server, record_property: Callable[[str, object], None], batch: range
) -> None:
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        histories = list(pool.map(lambda seed: race(server, seed), batch))
    for seed, history in zip(batch, histories, strict=True):
        check(history, seed)
    asked = [asked for history in histories for asked in history]
    for verb in ("pull", "extend", "ack", "nack", "release"):
        done = [this.is_done for this in asked if this.verb == verb]
        record_property(verb, f"{sum(done)} of {len(done)} done")
        print(f"{verb}: {sum(done)} of {len(done)} done")
        assert len(batch) < 50 or 0 < sum(done) < len(done), f"no race: each {verb} ended in the same way"


# -- the search itself -----------------------------------------------------------------------------------------------


def pulled(lease: str, attempt: int, asked_at: float, answered_at: float, seconds: float = 1.0) -> Asked:
    return Asked(0, "pull", lease, seconds, bool(lease), attempt, asked_at, answered_at)


def said(verb: str, lease: str, is_done: bool, asked_at: float, answered_at: float) -> Asked:
    return Asked(0, verb, lease, 1.0, is_done, 0, asked_at, answered_at)


IMPOSSIBLE = {
    "pull within another's lease": [pulled("a", 1, 0.0, 0.1), pulled("b", 2, 0.5, 0.9)],
    "attempt that is not counted": [pulled("a", 1, 0.0, 0.1), pulled("b", 1, 2.0, 2.1)],
    "attempt that is counted twice": [pulled("a", 1, 0.0, 0.1), pulled("b", 3, 2.0, 2.1)],
    "ack of a lease that another has": [
        pulled("a", 1, 0.0, 0.1),
        pulled("b", 2, 2.0, 2.1),
        said("ack", "a", True, 2.2, 2.3),
    ],
    "pull after the ack": [pulled("a", 1, 0.0, 0.1), said("ack", "a", True, 0.2, 0.3), pulled("b", 2, 2.0, 2.1)],
    "extend after the release": [
        pulled("a", 1, 0.0, 0.1),
        said("release", "a", True, 0.2, 0.3),
        said("extend", "a", True, 0.4, 0.5),
    ],
    "stale while nobody took it": [pulled("a", 1, 0.0, 0.1), said("ack", "a", False, 2.0, 2.1)],
    "two acks": [pulled("a", 1, 0.0, 0.1), said("ack", "a", True, 0.2, 0.6), said("ack", "a", True, 0.3, 0.5)],
    "nothing while it is ready": [pulled("", 0, 0.0, 0.1)],
    "nothing after its lease": [pulled("a", 1, 0.0, 0.1), pulled("", 0, 1.2, 1.3)],
    "pull within a lease that was extended": [
        pulled("a", 1, 0.0, 0.1),
        said("extend", "a", True, 0.9, 1.0),
        pulled("b", 2, 1.5, 1.6),
    ],
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_search_order_of_what_cannot_be_finds_none(case: str) -> None:
    history = IMPOSSIBLE[case]
    assert order_of(history) is None
    assert order_of(history[:-1]) == history[:-1] or case == "two acks"


POSSIBLE = {
    "pull while the lease may have ended": [
        pulled("a", 1, 0.0, 0.1),
        pulled("", 0, 0.5, 0.6),
        pulled("b", 2, 0.9, 1.2),
        said("ack", "a", False, 1.3, 1.4),
    ],
    "ack after the lease": [pulled("a", 1, 0.0, 0.1), said("ack", "a", True, 1.5, 1.9), pulled("", 0, 2.0, 2.1)],
    "pull after the release": [
        pulled("a", 1, 0.0, 0.1),
        said("release", "a", True, 0.2, 0.3),
        pulled("b", 1, 0.4, 0.5),
    ],
    "pull that waits": [pulled("b", 2, 0.0, 2.0), pulled("a", 1, 0.1, 0.3), said("nack", "a", True, 0.4, 0.5)],
}


@pytest.mark.parametrize("case", POSSIBLE)
def test_search_order_of_what_can_be_finds_one(case: str) -> None:
    assert sorted(order_of(POSSIBLE[case]) or []) == sorted(POSSIBLE[case])
