"""Shorthands for tests of realms: what users ask, asked in a word, of realms that are looked over after each test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from restq.names import QueueId
from restq.shards import adding, finishing, leasing, limits, listing, sweeps
from restq.shards.adding import Wishes
from restq.shards.archive import Archive
from restq.shards.changes import Changes, Keys
from restq.shards.commands import REALM_OPERATIONS
from restq.shards.commands.call import Call, Done
from restq.shards.commands.settings import status
from restq.shards.finishing import Outcome
from restq.shards.job import Job, Place
from restq.shards.leasing import Wanted
from restq.shards.loader import Loader
from restq.shards.memory_store import MemoryStore
from restq.shards.realm import Realm
from restq.shards.settings import Backoff, LimitSettings, QueueSettings, RealmSettings
from restq.shards.store import Mark
from restq.shards.sweeps import Sweep

NOW = 1_000.0
LEASE = 600.0  # of queues whose lease time nobody set


class Rig:
    """One realm, the time, and the store that its rows go to."""

    def __init__(self) -> None:
        self.now = NOW
        self.store = MemoryStore()
        self.keys = Keys(2)
        self.changes = Changes()
        self.chance = 0.0
        self.realm = Realm(1, "tried", LEASE, self.keys, self.changes, lambda: self.chance)

    @property
    def archive(self) -> Archive:
        """What memory does not hold."""
        return Archive(self.store, self.changes)

    # -- jobs --------------------------------------------------------------------------------------------------------

    def add(
        self, job_id: str, queue: QueueId = 0, tags: Sequence[str] = (), data: bytes | None = None, **said: Any
    ) -> None:
        """Add a job; `said` is what `Wishes` can say, and `delay` or `expires_in` in seconds from now."""
        if "delay" in said:
            said["at"] = self.now + said.pop("delay")
        if "expires_in" in said:
            said["expires_at"] = self.now + said.pop("expires_in")
        wishes = Wishes(**said) if said else None
        adding.add(self.realm, [(job_id, queue, data, tuple(sorted(tags)), wishes)], self.now)

    def add_all(self, job_ids: Sequence[str], queue: QueueId = 0, tags: Sequence[str] = ()) -> None:
        """Add jobs in this order."""
        adding.add(self.realm, [(job_id, queue, None, tuple(tags), None) for job_id in job_ids], self.now)

    def pull(self, limit: int = 100, **wanted: Any) -> list[Place]:
        """Lease jobs."""
        return leasing.pull(self.realm, Wanted(limit, **wanted), self.now)

    def pulled(self, limit: int = 100, **wanted: Any) -> list[str]:
        """Lease jobs, and say which."""
        return [place.job.job_id for place in self.pull(limit, **wanted)]

    def leased(self, limit: int = 1, **wanted: Any) -> str:
        """Lease one job, and give the id of its lease."""
        (place,) = self.pull(limit, **wanted)
        return finishing.lease_id(self.realm, place)

    def place(self, job_id: str, queue: QueueId = 0) -> Place:
        """A job in a queue."""
        place = self.realm.place(job_id, queue)
        assert place is not None
        return place

    def state(self, job_id: str, queue: QueueId = 0) -> str:
        """The state of a job in a queue."""
        self.realm.advance(self.now)
        return listing.state(self.realm, self.place(job_id, queue))

    def shown(self, job_id: str, queue: QueueId = 0) -> dict[str, Any]:
        """A job in a queue, as lists show it."""
        self.realm.advance(self.now)
        return listing.shown_place(self.realm, self.place(job_id, queue), self.archive)

    def exists(self, job_id: str) -> bool:
        """Whether there is such a job by now."""
        self.realm.advance(self.now)
        return job_id in self.realm.jobs

    # -- leases ------------------------------------------------------------------------------------------------------

    def ack(self, *leases: str, outcome: Outcome = Outcome()) -> dict[str, Any]:  # noqa: B008 - it is a value
        """The work is done."""
        return finishing.ack(self.realm, leases, outcome, self.now)

    def nack(
        self, *leases: str, error: str = "boom", exit_code: int | None = None, delay: float | None = None
    ) -> dict[str, Any]:
        """The work failed."""
        return finishing.nack(self.realm, leases, error, exit_code, delay, self.now)

    def release(self, *leases: str, delay: float = 0.0) -> dict[str, Any]:
        """Nothing was done."""
        return finishing.release(self.realm, leases, delay, self.now)

    def extend(self, *leases: str, lease_time: float | None = None) -> dict[str, Any]:
        """The work goes on."""
        return finishing.extend(self.realm, leases, lease_time, self.now)

    # -- settings ----------------------------------------------------------------------------------------------------

    def settings(self, **settings: Any) -> None:
        """Configure the realm."""
        self.realm.advance(self.now)
        self.realm.settings = RealmSettings(**settings)
        self.realm.write(changed=True)

    def queue_settings(self, queue: QueueId = 0, lease_time: float = LEASE, **said: Any) -> None:
        """Configure a queue; `said` is what its settings and its limits can say."""
        self.realm.advance(self.now)
        own = {name: said.pop(name) for name in ("max_attempts", "backoff") if name in said}
        settings = QueueSettings(**own, limits=LimitSettings(**said))
        self.realm.write()
        limits.configure_queue(self.realm, self.realm.queue(queue), lease_time, settings)

    def tag_settings(self, tag: str, **said: Any) -> None:
        """Configure a tag."""
        self.realm.advance(self.now)
        if limits.configure_tag(self.realm, tag, LimitSettings(**said)) and tag in self.realm.tags:
            finish(sweeps.rearrange(self.realm, tag))

    # -- the rows ----------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Keep what changed."""
        call = self.store.commit(self.changes.take(), Mark(1, self.keys.next_key, self.now))
        try:
            call.send(None)
        except StopIteration:
            return
        raise AssertionError("it waits")

    def restart(self) -> None:
        """Keep what changed, and be what the rows say."""
        self.commit()
        loaded = self.store.load()
        self.keys, self.changes = Keys(loaded.mark.next_key), Changes()
        loader = Loader(self.keys, self.changes, lambda: self.chance)
        loader.add_all(loaded)
        (self.realm,) = loader.finish(self.now)
        self.realm.advance(self.now)

    def rows(self, table: str) -> dict[int, Any]:
        """What the store keeps in a table."""
        self.commit()
        kept: dict[int, Any] = self.store._tables[table]
        return kept

    def check(self) -> None:
        """All must be what the jobs say."""
        self.realm.check()


def finish(work: Sweep, step: int = 1_000) -> int:
    """Carry a sweep on to its end; how many steps it took."""
    steps = 1
    while not work.step(step):
        steps += 1
    return steps


def pairs(places: Sequence[Place]) -> list[tuple[str, QueueId]]:
    """The places as pairs of job id and queue id."""
    return [(place.job.job_id, place.queue.queue_id) for place in places]


def ids(jobs: Sequence[Job]) -> list[str]:
    """The ids of the jobs."""
    return [job.job_id for job in jobs]


def called(realm: Realm, operation: str, *params: Any, body: Any = None, now: float = NOW) -> Any:
    """What an operation that is done at once replies."""
    text = b"" if body is None else json.dumps(body).encode()
    outcome = REALM_OPERATIONS[operation](realm, Call(list(params), text, now, Archive(MemoryStore(), realm.changes)))
    assert isinstance(outcome, Done)
    return json.loads(outcome.body)


__all__ = ["Backoff", "Outcome", "Rig", "Wanted", "called", "finish", "ids", "pairs", "status"]
