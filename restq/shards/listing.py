"""What can be seen of a realm: its jobs page by page, why one is not handed out, its queues and tags with their counts.

Nothing here changes anything. A page looks at SCAN_MAX jobs at most, so that no list holds up the shard: it may hold
fewer than were asked for, and its cursor says where to go on.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from restq.errors import FieldInvalid
from restq.names import QueueId, queue_order
from restq.shards import configuring, limits
from restq.shards.archive import Archive
from restq.shards.gates import After, Limit
from restq.shards.job import DEAD, DELAYED, LEASED, MARK_CANCELLED, QUEUED, Job, Place
from restq.shards.queue import Queue
from restq.shards.realm import Realm
from restq.shards.settings import UNLIMITED

SCAN_MAX = 5_000
STATES = ("ready", "leased", "delayed", "blocked", "dead")
DONE = "done"


class Filter(NamedTuple):
    """Which jobs to list."""

    state: str | None = None
    queue: QueueId | None = None
    tag: str | None = None
    prefix: str = ""

    def fits(self, realm: Realm, job: Job) -> bool:
        """Whether the job is one of them."""
        if not job.job_id.startswith(self.prefix) or (self.tag is not None and self.tag not in job.tags):
            return False
        if self.state is None and self.queue is None:
            return True
        return any(
            (self.queue is None or place.queue.queue_id == self.queue)
            and (self.state is None or state(realm, place) == self.state)
            for place in job.places
        )


def state(realm: Realm, place: Place) -> str:
    """The state of a place, in a word."""
    found = realm.state_of(place)
    if found == QUEUED and any(isinstance(gate, After) and gate.is_shut for gate in place.job.gates):
        return "blocked"
    return {QUEUED: "ready", LEASED: "leased", DELAYED: "delayed", DEAD: "dead"}[found]


def list_jobs(realm: Realm, wanted: Filter, limit: int, cursor: str | None) -> tuple[list[Job], str | None]:
    """A page of jobs in the order in which they were added, and where the next one begins; None if there is none."""
    after = cursor_key(realm, cursor)
    page: list[Job] = []
    for looked_at, job in enumerate(_candidates(realm, wanted.tag, after), 1):
        if job is not None and wanted.fits(realm, job):
            page.append(job)
        if job is not None and (len(page) >= limit or looked_at >= SCAN_MAX):
            return page, str(realm.first_keys.first(job.key))
    return page, None


def _candidates(realm: Realm, tag: str | None, after: int) -> Iterable[Job | None]:
    if tag is None:
        return realm.roll.after(after)
    carriers = realm.tags[tag].jobs if tag in realm.tags else ()
    if len(carriers) > SCAN_MAX:
        return realm.roll.after(after)
    return sorted((job for job in carriers if job.key > after), key=lambda job: job.key)


def cursor_key(realm: Realm, cursor: str | None) -> int:
    """The key that a cursor stands for; 0 for the beginning."""
    if cursor is None:
        return 0
    if not cursor.isascii() or not cursor.isdecimal() or len(cursor) > 18:
        raise FieldInvalid(f"cursor: {ascii(cursor)[:60]} is not a cursor of a list", "cursor")
    return realm.first_keys.key(int(cursor))


def shown_job(realm: Realm, job: Job, archive: Archive) -> dict[str, Any]:
    """A job as lists show it, without its data."""
    places = sorted(job.places, key=lambda place: queue_order(place.queue.queue_id))
    shown: dict[str, Any] = {
        "job_id": job.job_id,
        "tags": job.tags,
        "queues": [shown_place(realm, place, archive) for place in places],
    }
    shown.update({name: value for name, value in job.terms._asdict().items() if value})
    if any(place.history.mark == MARK_CANCELLED for place in places):
        shown["cancelled"] = True
    return shown


def shown_place(realm: Realm, place: Place, archive: Archive) -> dict[str, Any]:
    """A job in one of its queues, as lists show it."""
    history = place.history
    shown: dict[str, Any] = {
        "queue_id": place.queue.queue_id,
        "state": state(realm, place),
        "attempt": history.attempt,
    }
    if shown["state"] == "leased":
        shown.update(leased_at=history.leased_at, lease_expires_at=place.at)
        if history.worker:
            shown["worker"] = history.worker
    else:
        shown["ready_at"] = place.at or realm.clock
    failure = archive.failure(place.key) if history.nacks or history.expiries else None
    if history.lease and shown["state"] in ("ready", "blocked"):  # and nobody took it since
        shown.update(error="the lease ran out", failed_at=place.at)
    elif failure is not None:
        shown.update(error=failure.error, failed_at=failure.at)
        if failure.exit_code is not None:
            shown["exit_code"] = failure.exit_code
    return shown


# -- queues and tags -------------------------------------------------------------------------------------------------


def shown_queue(realm: Realm, queue: Queue) -> dict[str, Any]:
    """A queue, its counts and its settings."""
    ready = [lane.heap.peek() for lane in queue.lanes.values() if not lane.blocked_count]
    # What a pull gave back because its client was gone stands ahead of its queue, at 0: since just now.
    since = min((place.at for place in ready if place is not None), default=None)
    return {
        "queue_id": queue.queue_id,
        "count": len(queue),
        **_counts(queue.counts, queue.blocked_count),
        "oldest_ready_seconds": None if since is None else max(0.0, realm.clock - (since or realm.clock)),
        "settings": configuring.shown_queue(queue.lease_time, queue.settings),
    }


def shown_tag(realm: Realm, tag: str) -> dict[str, Any]:
    """A tag, its counts and its limits; one that no job carries counts 0."""
    found = realm.tags.get(tag)
    limit = realm.tags.limits.get(tag)
    blocked = sum(
        lane.tag_counts.get(tag, 0)
        for queue in realm.queues.values()
        for lane in queue.lanes.values()
        if lane.blocked_count and lane.tag_counts is not None
    )
    return {
        "tag": tag,
        "count": 0 if found is None else len(found.jobs),
        **_counts([0, 0, 0, 0] if found is None else found.counts, blocked),
        "settings": configuring.shown_limits(UNLIMITED if limit is None else limit.settings),
    }


def _counts(counts: list[int], blocked: int) -> dict[str, int]:
    return {
        "ready": counts[QUEUED] - blocked,
        "leased": counts[LEASED],
        "delayed": counts[DELAYED],
        "blocked": blocked,
        "dead": counts[DEAD],
    }


def list_tags(realm: Realm, prefix: str, limit: int, cursor: str | None) -> tuple[list[str], str | None]:
    """A page of tags by name, those with limits that no job carries included, and where the next one begins."""
    known = {**realm.tags, **realm.tags.limits} if realm.tags.limits else realm.tags
    names = (tag for tag in known if tag.startswith(prefix) and (cursor is None or tag > cursor))
    page = heapq.nsmallest(limit + 1, names)
    return page[:limit], page[limit - 1] if len(page) > limit else None


# -- why ---------------------------------------------------------------------------------------------------------------


def explain(realm: Realm, job: Job, archive: Archive) -> dict[str, Any]:
    """Why a job is not being handed out: a sentence, and for each of its queues one and the facts behind it."""
    places = sorted(job.places, key=lambda place: queue_order(place.queue.queue_id))
    explained = []
    for place in places:
        shown = shown_place(realm, place, archive)
        shown["explanation"] = _why(realm, place, shown)
        if found := [_shown_limit(limit) for limit in limits.of(place)]:
            shown["limits"] = found
        if job.terms.after:
            shown["after"] = dict(_carried_by_others(realm, job))
        explained.append(shown)
    sentences = [f"In queue {shown['queue_id']!r} {shown['explanation']}" for shown in explained]
    return {"job_id": job.job_id, "explanation": " ".join(sentences), "queues": explained}


def _carried_by_others(realm: Realm, job: Job) -> Iterator[tuple[str, int]]:
    for tag in job.terms.after:
        found = realm.tags.get(tag)
        yield tag, 0 if found is None else len(found.jobs) - (tag in job.tags)


def _shown_limit(limit: Limit) -> dict[str, Any]:
    shown = {"kind": limit.kind, "name": limit.name, **configuring.shown_limits(limit.settings)}
    if limit.settings.max_leased is not None:
        shown["leased"] = limit.leased_count
    if limit.opens_at is not None:
        shown["next_at"] = limit.opens_at
    return shown


def _why(realm: Realm, place: Place, shown: dict[str, Any]) -> str:
    history, seconds = place.history, place.at - realm.clock
    if shown["state"] == "dead":
        return f"it is dead after {history.attempt} attempts: redrive it to have it handed out again."
    if shown["state"] == "leased":
        worker = f"worker {history.worker!r}" if history.worker else "a worker"
        ends = ", and is cancelled: it goes with the end of the lease" if history.mark == MARK_CANCELLED else ""
        return f"{worker} holds it for {seconds:.1f} more seconds, as attempt {history.attempt}{ends}."
    if shown["state"] == "delayed":
        return f"it is delayed for {seconds:.1f} more seconds."
    if shown["state"] == "blocked":
        blocking = [f"{tag!r} ({count} jobs)" for tag, count in _carried_by_others(realm, place.job) if count]
        return f"it comes after what is tagged {', '.join(blocking)}."
    shut = [limit for limit in limits.of(place) if limit.is_shut]
    if shut:
        holding = [f"by {limit.kind} {limit.name!r}: {_what_holds(realm, limit)}" for limit in shut]
        return f"it is ready, and held {', and '.join(holding)}."
    lower = sum(
        queue.counts[QUEUED] - queue.blocked_count
        for queue in realm.served(place.queue.queue_id)
        if queue is not place.queue
    )
    own = place.queue.counts[QUEUED] - place.queue.blocked_count
    return (
        f"it is ready, and next pulls have it in turn: {lower} jobs are ready in queues before this one,"
        f" {own} in this one."
    )


def _what_holds(realm: Realm, limit: Limit) -> str:
    settings = limit.settings
    if settings.paused:
        return "it is paused"
    if settings.max_leased is not None and limit.leased_count >= settings.max_leased:
        return f"{limit.leased_count} of at most {settings.max_leased} jobs are leased"
    return (
        f"its rate of {settings.rate:g} a second lets the next one pass in {(limit.opens_at or 0) - realm.clock:.2f} s"
    )
