"""A realm so simple that it is obviously right: lists, and a scan for every question.

Time is told by `settle`, before anything else is asked: whatever ended by then has ended. Instants are seconds.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

from restq.errors import DataDiffers, JobExists, JobLeased, JobNotInQueue, QueueFull, RestqError
from restq.names import QueueId
from restq.shards.adding import NewJob, Wishes
from restq.shards.leasing import Wanted
from restq.shards.settings import PLAIN_QUEUE, PLAIN_REALM, Backoff, LimitSettings, QueueSettings, RealmSettings

DEFAULT_LEASE_TIME = 600.0
CHANCE = 0.25  # what decides on jitter
NO_WISHES = Wishes()

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


@dataclass(eq=False)
class ModelJob:
    job_id: str
    text: bytes | None
    tags: set[str] = field(default_factory=set)
    after: tuple[str, ...] = ()
    max_attempts: int | None = None
    expires_at: float | None = None


@dataclass(eq=False)
class ModelLease:
    """One hand-out of a place; it is in force while it is the place's."""

    pull: int
    leased_at: float
    worker: str
    cancelled: bool = False
    ran_out: bool = False


@dataclass(eq=False)
class ModelPlace:
    """A job in a queue. `entered` grows with every place that was ever made."""

    job: ModelJob
    queue: QueueId
    entered: int
    at: float  # ready since then, or from then on; while leased, the end of the lease
    lease: ModelLease | None = None
    nacks: int = 0
    expiries: int = 0  # leases that ran out, after which the job was handed out again
    dead: bool = False
    failure: tuple[str, int | None] | None = None

    @property
    def failed_leases(self) -> int:
        return self.expiries + (1 if self.lease is not None and self.lease.ran_out else 0)


@dataclass(eq=False)
class ModelResult:
    """What is left of a job that was acked; once it is dropped, only until somebody tidies up."""

    said: dict[str, Any]
    at: float
    dropped: bool = False


@dataclass(eq=False)
class ModelLimit:
    settings: LimitSettings
    handed_out: list[float] = field(default_factory=list)  # when, as far as the rate asks

    def forget(self, now: float) -> None:
        """What was handed out before the span of the rate that holds is not remembered."""
        span = self.count_max / self.settings.rate if self.settings.rate else 0
        self.handed_out = [at for at in self.handed_out if at + span > now]

    @property
    def count_max(self) -> int:
        return max(1, math.floor(self.settings.rate or 0))


def queue_rank(queue: QueueId) -> tuple[bool, QueueId]:
    return (isinstance(queue, str), queue)


class Model:
    """The realm as its users know it."""

    def __init__(self, pulls: int = 0) -> None:
        self.clock = 0.0
        self.exists = False
        self.jobs: list[ModelJob] = []
        self.places: list[ModelPlace] = []
        self.settings: RealmSettings = PLAIN_REALM
        self.default_lease_time = DEFAULT_LEASE_TIME
        self.lease_times: dict[QueueId, float] = {}
        self.queue_settings: dict[QueueId, QueueSettings] = {}
        self.queue_limits: dict[QueueId, ModelLimit] = {}
        self.tag_limits: dict[str, ModelLimit] = {}
        self.results: list[ModelResult] = []
        self._entered = 0
        self._pulls = pulls

    def empty(self) -> Model:
        """The realm once it was deleted. A pull of before is none of those to come."""
        return Model(self._pulls)

    def copy(self) -> Model:
        """Another one that is the same by now."""
        other = copy.copy(self)
        jobs = {job: replace(job, tags=set(job.tags)) for job in self.jobs}
        other.jobs = list(jobs.values())
        other.places = [
            replace(place, job=jobs[place.job], lease=place.lease and replace(place.lease)) for place in self.places
        ]
        other.lease_times, other.queue_settings = dict(self.lease_times), dict(self.queue_settings)
        for name in ("queue_limits", "tag_limits"):
            limits = {
                key: ModelLimit(limit.settings, [*limit.handed_out]) for key, limit in getattr(self, name).items()
            }
            setattr(other, name, limits)
        other.results = [replace(result) for result in self.results]
        return other

    # -- looking -------------------------------------------------------------------------------------------------

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

    def place_of(self, lease: ModelLease) -> ModelPlace | None:
        """The place that the lease is in force for."""
        return next((place for place in self.places if place.lease is lease), None)

    def is_blocked(self, job: ModelJob) -> bool:
        return any(tag in other.tags for other in self.jobs if other is not job for tag in job.after)

    def state(self, place: ModelPlace) -> str:
        if place.dead:
            return "dead"
        if place.lease is not None and not place.lease.ran_out:
            return "leased"
        if place.at > self.clock:
            return "delayed"
        return "blocked" if self.is_blocked(place.job) else "ready"

    def counts(self, places: list[ModelPlace]) -> dict[str, int]:
        states = [self.state(place) for place in places]
        return {state: states.count(state) for state in ("ready", "leased", "delayed", "blocked", "dead")}

    def attempt(self, place: ModelPlace) -> int:
        under_way = place.lease is not None and not place.lease.ran_out
        return place.nacks + place.failed_leases + (1 if under_way else 0)

    def is_expired(self, job: ModelJob) -> bool:
        return job.expires_at is not None and job.expires_at <= self.clock

    def is_worn_out(self, place: ModelPlace) -> bool:
        of_queue = self.queue_settings.get(place.queue, PLAIN_QUEUE).max_attempts
        attempts_max = place.job.max_attempts or of_queue or self.settings.max_attempts
        crash_limit = self.settings.crash_limit
        return bool(attempts_max and place.nacks + place.failed_leases >= attempts_max) or bool(
            crash_limit and place.failed_leases >= crash_limit
        )

    # -- time ----------------------------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Time passes: leases run out, jobs expire."""
        self.let_leases_run_out(now)
        for place in list(self.places):
            if self.is_expired(place.job) and self.state(place) not in ("leased", "dead"):
                self.leave(place)

    def let_leases_run_out(self, now: float) -> None:
        """What a start makes of the time that passed: jobs expire with the first look at the realm."""
        self.clock = max(self.clock, now)
        for place in list(self.places):
            if place.lease is not None and not place.lease.ran_out and place.at <= self.clock:
                place.lease.ran_out = True
                self.judge(place)

    def judge(self, place: ModelPlace) -> None:
        """The lease of a place ran out."""
        assert place.lease is not None
        expires_at = place.job.expires_at
        if place.lease.cancelled or (expires_at is not None and expires_at <= place.at):
            self.leave(place)
        elif self.is_worn_out(place):
            worker = f" of worker {place.lease.worker!r}" if place.lease.worker else ""
            place.dead, place.failure = True, (f"the lease{worker} ran out", None)

    def restart(self) -> None:
        """What is not kept over a restart.

        Of the hand-outs under a rate only the last one is known: all that the rate allows may have been then. And
        whether a job is dead is looked at anew, as settings may have changed since its lease ran out.
        """
        for limit in (*self.tag_limits.values(), *self.queue_limits.values()):
            limit.handed_out = limit.handed_out[-1:] * limit.count_max
        for place in list(self.places):
            if place.lease is not None and place.lease.ran_out and not place.dead:
                self.judge(place)

    # -- adding --------------------------------------------------------------------------------------------------

    def add_error(self, new_jobs: list[NewJob]) -> type[RestqError] | None:
        """What an add is refused for, if anything."""
        said: dict[str, bytes | None] = {job.job_id: job.text for job in self.jobs}
        made = False
        for job_id, _, text, _, wishes in new_jobs:
            on_conflict = (wishes or NO_WISHES).on_conflict
            if job_id not in said or on_conflict == "replace":
                said[job_id] = text
                made = True
            elif on_conflict == "error":
                return JobExists
            elif on_conflict == "merge" and text is not None:
                known = said[job_id]
                if known is None or meaning(known) != meaning(text):
                    return DataDiffers
        size = sum(len(job_id) + len(text or b"") for job_id, text in said.items())
        jobs_max, bytes_max = self.settings.max_jobs, self.settings.max_bytes
        is_full = (jobs_max and len(said) > jobs_max) or (bytes_max and size > bytes_max)
        return QueueFull if made and is_full else None

    def add(self, new_jobs: list[NewJob]) -> None:
        self.exists = True
        for job_id, queue, text, tags, said in new_jobs:
            wishes = said or NO_WISHES
            job = self.job(job_id)
            if job is not None and wishes.on_conflict == "ignore":
                continue
            if job is not None and wishes.on_conflict == "replace":
                self.remove(job_id)
                job = None
            self.make_queue(queue)
            if job is None:
                job = ModelJob(job_id, text)
                self.jobs.append(job)
            job.tags.update(tags)
            job.after = job.after if wishes.after is None else wishes.after
            job.max_attempts = job.max_attempts if wishes.max_attempts is None else wishes.max_attempts
            if wishes.expires_at is not None or self.is_expired(job):
                job.expires_at = wishes.expires_at
            for place in self.places_of(job):
                if place.lease is not None:
                    place.lease.cancelled = False
            if self.place(job_id, queue) is None:
                self.enter(job, queue, max(self.clock, wishes.at or 0.0))

    def enter(self, job: ModelJob, queue: QueueId, at: float) -> None:
        self._entered += 1
        self.places.append(ModelPlace(job, queue, self._entered, at))

    def make_queue(self, queue: QueueId) -> None:
        self.lease_times.setdefault(queue, self.default_lease_time)

    # -- pulling -------------------------------------------------------------------------------------------------

    def limits_of(self, place: ModelPlace) -> list[tuple[str, QueueId, ModelLimit]]:
        of_tags: list[tuple[str, QueueId, ModelLimit]]
        of_tags = [("tag", tag, self.tag_limits[tag]) for tag in sorted(place.job.tags) if tag in self.tag_limits]
        own = self.queue_limits.get(place.queue)
        return of_tags if own is None else [*of_tags, ("queue", place.queue, own)]

    def leased_under(self, limit: ModelLimit) -> int:
        under = [place for place in self.places if any(limit is other for _, _, other in self.limits_of(place))]
        return sum(self.state(place) == "leased" for place in under)

    def has_room(self, limit: ModelLimit) -> bool:
        most = limit.settings.max_leased
        return most is None or self.leased_under(limit) < most

    def lets_pass(self, limit: ModelLimit) -> bool:
        limit.forget(self.clock)
        in_rate = not limit.settings.rate or len(limit.handed_out) < limit.count_max
        return not limit.settings.paused and self.has_room(limit) and in_rate

    def can_have(self, place: ModelPlace) -> bool:
        return self.state(place) == "ready" and all(self.lets_pass(limit) for _, _, limit in self.limits_of(place))

    def candidates(self, wanted: Wanted) -> list[ModelPlace]:
        """What a pull looks at, in its order."""
        queues = [queue for queue in self.lease_times if wanted.queues is None or queue in wanted.queues]
        if wanted.max_queue is not None:
            queues = [queue for queue in queues if queue_rank(queue) <= queue_rank(wanted.max_queue)]
        places = [place for queue in sorted(queues, key=queue_rank) for place in self.in_queue(queue)]
        return [place for place in places if wanted.tags is None or place.job.tags & set(wanted.tags)]

    def peek(self, wanted: Wanted) -> list[ModelPlace]:
        """What could be had now, were there no limits by number or rate."""
        found: list[ModelPlace] = []
        for place in self.candidates(wanted):
            if len(found) < wanted.limit and self.can_have(place) and all(place.job is not p.job for p in found):
                found.append(place)
        return found

    def pull(self, wanted: Wanted) -> list[ModelPlace]:
        self._pulls += 1
        leased: list[ModelPlace] = []
        for place in self.candidates(wanted):
            if len(leased) < wanted.limit and self.can_have(place) and all(place.job is not p.job for p in leased):
                self.check_out(place, wanted)
                leased.append(place)
        return leased

    def lease(self, place: ModelPlace, wanted: Wanted) -> None:
        self._pulls += 1
        self.check_out(place, wanted)

    def check_out(self, place: ModelPlace, wanted: Wanted) -> None:
        seconds = self.lease_times[place.queue] if wanted.lease_time is None else wanted.lease_time
        place.expiries = place.failed_leases
        place.at, place.lease = self.clock + seconds, ModelLease(self._pulls, self.clock, wanted.worker)
        for _, _, limit in self.limits_of(place):
            if limit.settings.rate:
                limit.handed_out.append(self.clock)

    def undo(self, pull: int, pairs: list[tuple[str, QueueId]]) -> int:
        places = [self.place(*pair) for pair in pairs]
        undone = [place for place in places if place is not None and place.lease and place.lease.pull == pull]
        for place in undone:
            self.give_up(place, 0.0)
        return len(undone)

    # -- what a worker does with a lease ---------------------------------------------------------------------------

    def give_up(self, place: ModelPlace, at: float) -> None:
        """The lease ends without an ack: the job stands again, unless it is to go."""
        assert place.lease is not None
        if place.lease.cancelled or self.is_expired(place.job):
            self.leave(place)
            return
        if place.dead:  # of this lease
            place.failure = None
        place.at, place.lease, place.dead = at, None, False

    def ack(self, place: ModelPlace, said: dict[str, Any]) -> None:
        assert place.lease is not None
        if self.settings.keep_seconds or self.settings.keep_count:
            about = {"job_id": place.job.job_id, "queue_id": place.queue, "state": "done"}
            about |= {"tags": sorted(place.job.tags), "leased_at": place.lease.leased_at, "done_at": self.clock}
            place.dead = False
            attempt = place.nacks + place.expiries + 1
            worker = {"worker": place.lease.worker} if place.lease.worker else {}
            self.results.append(ModelResult(about | {"attempt": attempt} | worker | said, self.clock))
        self.leave(place)

    def nack(self, place: ModelPlace, error: str, exit_code: int | None, delay: float | None) -> bool:
        """Whether it is dead of it."""
        backoff = self.queue_settings.get(place.queue, PLAIN_QUEUE).backoff or self.settings.backoff
        seconds = self.backoff(backoff, place.nacks + 1) if delay is None else delay
        if place.dead and self.stays_dead(place):
            place.at, place.lease, place.dead = self.clock, None, False
        else:
            self.give_up(place, self.clock + seconds)
        if place not in self.places:
            return False
        place.nacks += 1
        place.failure = (error, exit_code)
        if self.is_worn_out(place):
            place.dead, place.at = True, self.clock
        return place.dead

    def stays_dead(self, place: ModelPlace) -> bool:
        """Whether a place whose lease ran out once too often is dead as well if that was a nack."""
        nacked = replace(place, lease=None, nacks=place.nacks + 1)
        return self.is_worn_out(nacked)

    def backoff(self, backoff: Backoff | None, nacks: int) -> float:
        if backoff is None:
            return 0.0
        return min(backoff.max, backoff.base * backoff.factor ** (nacks - 1)) * (1 - backoff.jitter * CHANCE)

    def extend(self, place: ModelPlace, lease_time: float | None) -> float | str:
        """The new end of the lease; or "stale" where a limit has no room any more, or "cancelled"."""
        assert place.lease is not None
        if self.state(place) != "leased" and not all(self.has_room(limit) for _, _, limit in self.limits_of(place)):
            return "stale"
        if place.lease.cancelled:
            return "cancelled"
        if place.dead:
            place.failure = None
        place.dead = place.lease.ran_out = False
        place.at = self.clock + (self.lease_times[place.queue] if lease_time is None else lease_time)
        return place.at

    # -- what an operator does -------------------------------------------------------------------------------------

    def leave(self, place: ModelPlace) -> None:
        """A job leaves one of its queues, and is gone with the last one."""
        self.places.remove(place)
        if not self.places_of(place.job):
            self.jobs.remove(place.job)

    def remove(self, job_id: str) -> None:
        self.jobs = [job for job in self.jobs if job.job_id != job_id]
        self.places = [place for place in self.places if place.job.job_id != job_id]

    def clear(self, queue: QueueId) -> None:
        for place in self.in_queue(queue):
            self.leave(place)

    def cancel(self, job: ModelJob) -> bool:
        """Whether it is gone by now."""
        for place in self.places_of(job):
            if self.state(place) != "leased":
                self.leave(place)
            elif place.lease is not None:
                place.lease.cancelled = True
        return job not in self.jobs

    def redrive(self, place: ModelPlace) -> bool:
        if not place.dead:
            return False
        place.dead, place.at, place.lease, place.failure = False, self.clock, None, None
        place.job.expires_at = None
        place.nacks = place.expiries = 0
        return True

    def move_error(self, job_id: str, from_queue: QueueId) -> type[RestqError] | None:
        place = self.place(job_id, from_queue)
        if place is None:  # no such job, no such queue, or the job is not in it
            return JobNotInQueue
        return JobLeased if self.state(place) == "leased" else None

    def move(self, place: ModelPlace, to_queue: QueueId) -> None:
        if place.queue != to_queue:
            at = place.at if self.state(place) == "delayed" else self.clock
            if self.place(place.job.job_id, to_queue) is None:
                place.job.expires_at = None if place.dead else place.job.expires_at
                self.make_queue(to_queue)
                self.enter(place.job, to_queue, at)
            self.leave(place)

    def configure_realm(self, settings: RealmSettings) -> None:
        self.exists = True
        kept = self.kept_results()
        for result in self.results:
            result.dropped = result not in kept
        self.settings = settings

    def kept_results(self, now: float = 0.0) -> list[ModelResult]:
        """Those that were not dropped by now, or by the instant that was told last."""
        if not self.settings.keeps_results:
            return []
        oldest_at = (now or self.clock) - (self.settings.keep_seconds or math.inf)
        return [result for result in self.results if not result.dropped and result.at >= oldest_at]

    def tidy_up(self) -> None:
        self.results = self.kept_results()[-self.settings.keep_count :]

    def configure_queue(self, queue: QueueId, lease_time: float, settings: QueueSettings) -> None:
        self.exists = True
        self.lease_times[queue] = lease_time
        self.queue_settings[queue] = settings
        self._limit(self.queue_limits, queue, settings.limits)

    def configure_tag(self, tag: str, settings: LimitSettings) -> None:
        if settings == LimitSettings():
            self.tag_limits.pop(tag, None)
        else:
            self.exists = True
            self._limit(self.tag_limits, tag, settings)

    def _limit(self, limits: dict[Any, ModelLimit], name: QueueId, settings: LimitSettings) -> None:
        limit = limits.setdefault(name, ModelLimit(settings))
        limit.forget(self.clock)
        limit.settings = settings
        if not settings.rate:
            limit.handed_out = []
