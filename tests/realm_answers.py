"""What the simple realm does when it is asked as a shard is, and replies: JSON, with stand-ins for what it can't say.

Here are the operations that are done at once; what goes on in steps is in `realm_works`. None of them looks at the
realm that is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import realm_views as views
from realm_model import Model, ModelPlace, queue_rank

from restq.errors import JobNotFound, LeaseStale, RestqError, TagNotFound
from restq.names import QueueId
from restq.shards.adding import NewJob, Wishes
from restq.shards.leasing import Wanted
from restq.shards.settings import PLAIN_QUEUE, Backoff, LimitSettings, QueueSettings

Lease = tuple[int, str, QueueId]  # the model's number of the pull, and what it leased


class Refused(NamedTuple):
    """It is refused, and nothing was done."""

    error: type[RestqError]


class Proof(NamedTuple):
    """Stands for the id of a lease."""

    lease: Lease


class Data(NamedTuple):
    """Stands for a job's data, as it came."""

    text: bytes | None


class Between(NamedTuple):
    """Stands for a number of which only this much is certain."""

    low: float | None
    high: float | None


@dataclass(eq=False)
class Request:
    """One message. `said` is its body, read; `known` says of lease ids what they prove."""

    operation: str
    realm: str
    params: list[Any] = field(default_factory=list)
    said: Any = None
    body: bytes = b""
    once: tuple[str, ...] = ()
    known: dict[str, Lease] = field(default_factory=dict)
    refused: type[RestqError] | None = None  # it is wrong in itself
    served_at: float = 0.0


class Leased(NamedTuple):
    """A reply that hands out leases: the number of the pull (0: none), and when the last one ends."""

    reply: Any
    pull: int
    held_until: float


def place_of(model: Model, request: Request, proof: str) -> ModelPlace | None:
    """The place that a lease id is in force for."""
    if proof not in request.known:
        return None
    return in_force(model, request.known[proof])


def in_force(model: Model, lease: Lease) -> ModelPlace | None:
    """The place whose lease this is."""
    pull, job_id, queue = lease
    place = model.place(job_id, queue)
    return place if place is not None and place.lease is not None and place.lease.pull == pull else None


# -- jobs ------------------------------------------------------------------------------------------------------------


def new_job(said: dict[str, Any], at: float) -> NewJob:
    """A job as an add says it."""
    wishes = None
    if said.keys() & {"delay", "expires_in", "max_attempts", "after", "on_conflict"}:
        wishes = Wishes(
            at=at + said["delay"] if "delay" in said else None,
            expires_at=at + said["expires_in"] if "expires_in" in said else None,
            max_attempts=said.get("max_attempts"),
            after=tuple(sorted(set(said["after"]))) if "after" in said else None,
            on_conflict=said.get("on_conflict", "merge"),
        )
    text = bytes(said["data"]) if "data" in said else None
    return said["job_id"], said["queue_id"], text, tuple(sorted(set(said.get("tags", ())))), wishes


def _add_job(model: Model, request: Request) -> Any:
    jobs = [new_job({**request.said, "job_id": request.params[0]}, request.served_at)]
    if error := model.add_error(jobs):
        return Refused(error)
    model.add(jobs)
    return {}


def _remove_job(model: Model, request: Request) -> Any:
    model.remove(request.params[0])
    return {}


def _cancel_job(model: Model, request: Request) -> Any:
    job = model.job(request.params[0])
    if job is None:
        return Refused(JobNotFound)
    return {"cancelled": "removed" if model.cancel(job) else "leased"}


def _move_job(model: Model, request: Request) -> Any:
    job_id, from_queue, to_queue = request.params[0], request.said["from_queue"], request.said["to_queue"]
    if error := model.move_error(job_id, from_queue):
        return Refused(error)
    place = model.place(job_id, from_queue)
    assert place is not None
    model.move(place, to_queue)
    return {}


# -- looking ---------------------------------------------------------------------------------------------------------


def _get_job(model: Model, request: Request) -> Any:
    job = model.job(request.params[0])
    if job is None:
        return Refused(JobNotFound)
    queues = [
        [place.queue, max(0.0, model.clock - place.lease.leased_at) if place.lease else 0]
        for place in model.places_of(job)
    ]
    return {"tags": sorted(job.tags), "data": Data(job.text), "queues": queues}


def list_jobs(model: Model, request: Request) -> Any:
    """All jobs, with their data; or the results."""
    state, queue, tag, prefix, *_ = request.params
    if state == "done":
        return {"jobs": [result.said for result in model.kept_results(request.served_at)], "cursor": None}
    jobs = [
        {**views.shown_job(model, job), "data": job.text and Data(job.text)}
        for job in model.jobs
        if job.job_id.startswith(prefix or "")
        and (tag is None or tag in job.tags)
        and any(queue in (None, place.queue) and state in (None, model.state(place)) for place in model.places_of(job))
    ]
    return {"jobs": jobs, "cursor": None}


def get_queues(model: Model, request: Request) -> Any:
    """All queues."""
    queues = sorted(model.lease_times, key=queue_rank)
    return {
        "queues": [
            {**views.shown_queue(model, queue), "oldest_ready_seconds": _age(*views.ages(model, queue))}
            for queue in queues
        ]
    }


def _age(low: float | None, high: float | None) -> Any:
    return low if low == high else Between(low, high)


def _get_tag_status(model: Model, request: Request) -> Any:
    tagged = model.tagged(request.params[0])
    return {"count": len(tagged)} if tagged else Refused(TagNotFound)


# -- leases ----------------------------------------------------------------------------------------------------------


def wanted(said: dict[str, Any]) -> Wanted:
    """What a pull asks for."""
    queues, tags = said.get("queues"), said.get("tags")
    return Wanted(
        said.get("count", 1),
        said.get("max_queue"),
        None if queues is None else frozenset(queues),
        None if tags is None else tuple(sorted(set(tags))),
        said.get("lease_time"),
        said.get("worker", ""),
    )


def _leased(model: Model, places: list[ModelPlace]) -> list[Any]:
    return [
        {
            "job_id": place.job.job_id,
            "queue_id": place.queue,
            "data": Data(place.job.text),
            "tags": sorted(place.job.tags),
            "attempt": model.attempt(place),
            "lease_id": Proof(lease_of(place)),
            "lease_expires_at": place.at,
        }
        for place in places
    ]


def lease_of(place: ModelPlace) -> Lease:
    """The lease of a place."""
    assert place.lease is not None
    return place.lease.pull, place.job.job_id, place.queue


def _handed_out(reply: Any, places: list[ModelPlace]) -> Any:
    if not places:
        return reply
    return Leased(reply, lease_of(places[0])[0], max(place.at for place in places))


def _pull(model: Model, request: Request) -> Any:
    places = model.pull(wanted(request.said))
    return _handed_out({"jobs": _leased(model, places)}, places)


def peek(model: Model, name: str, request: Request) -> list[Any]:
    """What a pull over several realms would find in this one."""
    count, max_queue, _, queues, tags = request.params
    asked = wanted({"count": count, "max_queue": max_queue, "queues": queues, "tags": tags})
    return [[place.at, name, place.job.job_id, place.queue] for place in model.peek(asked)]


def lease_peeked(model: Model, name: str, request: Request) -> tuple[list[Any], list[ModelPlace]]:
    """What is leased of what was found in this realm; the places, too."""
    candidates, lease_time, worker, _ = request.params
    leased, shown = [], []
    for realm, job_id, queue, index in candidates:
        place = model.place(job_id, queue)
        if realm == name and place is not None and model.can_have(place):
            model.lease(place, Wanted(lease_time=lease_time, worker=worker or ""))
            leased.append(place)
            [job] = _leased(model, [place])
            shown.append([index, {**job, "realm": name}])
            model.settle(model.clock)
    return shown, leased


def _pull_2013(model: Model, request: Request) -> Any:
    places = model.pull(Wanted(int(request.params[0] or 1)))
    return _handed_out({place.job.job_id: [place.queue, Data(place.job.text)] for place in places}, places)


def _exchange(model: Model, request: Request) -> Any:
    said = request.said
    acked = said.get("ack", {}).get("leases", [])
    if acked and not any(place_of(model, request, proof) for proof in acked):
        return Refused(LeaseStale)
    jobs = [new_job(job, request.served_at) for job in said.get("add", [])]
    finished = model.copy()
    _finish(finished, request)
    if error := finished.add_error(jobs):
        return Refused(error)
    reply = _finish(model, request)
    if jobs:
        model.add(jobs)
    if "pull" not in said:
        return reply
    leased = model.pull(wanted(said["pull"]))
    return _handed_out({**reply, "pull": {"jobs": _leased(model, leased)}}, leased)


def _finish(model: Model, request: Request) -> dict[str, Any]:
    """What an exchange does before it adds."""
    said, reply = request.said, {}
    if "ack" in said:
        reply["ack"] = ack_all(model, request, said["ack"], said["ack"]["leases"])
    if "nack" in said:
        reply["nack"] = nack_all(model, request, said["nack"], said["nack"]["leases"])
    return reply


def ack_all(model: Model, request: Request, said: dict[str, Any], proofs: Sequence[str]) -> Any:
    """The work of these leases is done."""
    reply: dict[str, list[str]] = {"acked": [], "stale": []}
    kept = {name: said[name] for name in ("result", "exit_code", "output") if name in said}
    for proof in proofs:
        place = place_of(model, request, proof)
        reply["stale" if place is None else "acked"].append(proof)
        if place is not None:
            model.ack(place, kept)
    return reply


def nack_all(model: Model, request: Request, said: dict[str, Any], proofs: Sequence[str]) -> Any:
    """The work of these leases failed."""
    reply: dict[str, list[str]] = {"nacked": [], "dead": [], "stale": []}
    for proof in proofs:
        place = place_of(model, request, proof)
        if place is None:
            reply["stale"].append(proof)
        else:
            is_dead = model.nack(place, said.get("error", ""), said.get("exit_code"), said.get("delay"))
            reply["dead" if is_dead else "nacked"].append(proof)
    return reply


# -- settings --------------------------------------------------------------------------------------------------------


def _configure(model: Model, request: Request) -> Any:
    said, settings = dict(request.said), model.settings
    model.default_lease_time = said.pop("default_lease_time", model.default_lease_time)
    if "keep_done" in said:
        keep = said.pop("keep_done") or {}
        settings = settings._replace(keep_seconds=keep.get("seconds") or 0.0, keep_count=keep.get("count") or 0)
    if "backoff" in said:
        settings = settings._replace(backoff=_backoff(said.pop("backoff")))
    model.configure_realm(settings._replace(**{name: value or 0 for name, value in said.items()}))
    return views.shown_config(model)


def _backoff(said: dict[str, Any] | None) -> Backoff | None:
    return None if said is None else Backoff(**said)


def _limits(before: LimitSettings, said: dict[str, Any]) -> LimitSettings:
    return before._replace(**{name: said[name] for name in ("max_leased", "rate", "paused") if name in said})


def _configure_queue(model: Model, request: Request) -> Any:
    queue, said = request.params[0], request.said
    model.make_queue(queue)
    before = model.queue_settings.get(queue, PLAIN_QUEUE)
    settings = QueueSettings(
        said.get("max_attempts", before.max_attempts) or 0,
        _backoff(said["backoff"]) if "backoff" in said else before.backoff,
        _limits(before.limits, said),
    )
    model.configure_queue(queue, said.get("lease_time", model.lease_times[queue]), settings)
    return views.queue_settings(model.lease_times[queue], settings)


def _configure_tag(model: Model, request: Request) -> Any:
    tag = request.params[0]
    before = model.tag_limits.get(tag)
    settings = _limits(LimitSettings() if before is None else before.settings, request.said)
    model.configure_tag(tag, settings)
    return views.limit_settings(settings)


def _configure_2013(model: Model, request: Request) -> Any:
    model.exists = True
    model.default_lease_time = request.said.get("default_lease_time", model.default_lease_time)
    if "queue_lease_time" in request.said:
        queue, seconds = request.said["queue_lease_time"]
        model.make_queue(queue)
        model.lease_times[queue] = seconds
    return {}


AT_ONCE: dict[str, Callable[[Model, Request], Any]] = {
    "add_job": _add_job,
    "cancel_job": _cancel_job,
    "configure": _configure,
    "configure_2013": _configure_2013,
    "configure_queue": _configure_queue,
    "configure_tag": _configure_tag,
    "exchange": _exchange,
    "get_config": lambda model, request: views.shown_config(model),
    "get_job": _get_job,
    "get_queues": get_queues,
    "get_status": lambda model, request: views.shown_status(model),
    "get_tag": lambda model, request: views.shown_tag(model, request.params[0]),
    "get_tag_status": _get_tag_status,
    "get_tags": lambda model, request: {"tags": views.shown_tags(model), "cursor": None},
    "list_jobs": list_jobs,
    "move_job": _move_job,
    "pull": _pull,
    "pull_2013": _pull_2013,
    "remove_job": _remove_job,
}
