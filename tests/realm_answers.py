"""What the simple realm does when it is asked as a shard is, and replies: JSON, with stand-ins for what it can't say.

Most operations are done at once. A batch is done part by part and a sweep job by job, so that it can be said what is
left of one after a crash. None of them looks at the realm that is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import realm_views as views
from realm_model import Model, ModelPlace, queue_rank

from restq.errors import JobNotFound, LeaseStale, QueueNotFound, RestqError, TagNotFound
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
        oldest_at = request.served_at - model.settings.keep_seconds if model.settings.keep_seconds else 0.0
        keeps = model.settings.keep_seconds or model.settings.keep_count
        return {
            "jobs": [result for result in model.results if keeps and result["done_at"] >= oldest_at],
            "cursor": None,
        }
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
    places = [place_of(model, request, proof) for proof in acked]
    if acked and not any(places):
        return Refused(LeaseStale)
    gone = {place.job.job_id for place in places if place is not None and len(model.places_of(place.job)) == 1}
    jobs = [new_job(job, request.served_at) for job in said.get("add", [])]
    if error := model.add_error(jobs, gone):
        return Refused(error)
    reply: dict[str, Any] = {}
    if "ack" in said:
        reply["ack"] = _ack_all(model, request, said["ack"], acked)
    if "nack" in said:
        reply["nack"] = _nack_all(model, request, said["nack"], said["nack"]["leases"])
    if jobs:
        model.add(jobs)
    if "pull" not in said:
        return reply
    leased = model.pull(wanted(said["pull"]))
    return _handed_out({**reply, "pull": {"jobs": _leased(model, leased)}}, leased)


def _ack_all(model: Model, request: Request, said: dict[str, Any], proofs: Sequence[str]) -> Any:
    reply: dict[str, list[str]] = {"acked": [], "stale": []}
    kept = {name: said[name] for name in ("result", "exit_code", "output") if name in said}
    for proof in proofs:
        place = place_of(model, request, proof)
        reply["stale" if place is None else "acked"].append(proof)
        if place is not None:
            model.ack(place, kept)
    return reply


def _nack_all(model: Model, request: Request, said: dict[str, Any], proofs: Sequence[str]) -> Any:
    reply: dict[str, list[str]] = {"nacked": [], "dead": [], "stale": []}
    for proof in proofs:
        place = place_of(model, request, proof)
        if place is None:
            reply["stale"].append(proof)
        else:
            is_dead = model.nack(place, said.get("error", ""), said.get("exit_code"), said.get("delay"))
            reply["dead" if is_dead else "nacked"].append(proof)
    return reply


def _release_all(model: Model, request: Request, said: dict[str, Any], proofs: Sequence[str]) -> Any:
    reply: dict[str, list[str]] = {"released": [], "stale": []}
    for proof in proofs:
        place = place_of(model, request, proof)
        reply["stale" if place is None else "released"].append(proof)
        if place is not None:
            model.give_up(place, model.clock + said.get("delay", 0.0))
    return reply


def _extend_all(model: Model, request: Request, said: dict[str, Any], proofs: Sequence[str]) -> Any:
    reply: dict[str, Any] = {"extended": {}, "stale": [], "cancelled": []}
    for proof in proofs:
        place = place_of(model, request, proof)
        answer = "stale" if place is None else model.extend(place, said.get("lease_time"))
        if isinstance(answer, str):
            reply[answer].append(proof)
        else:
            reply["extended"][proof] = answer
            model.settle(model.clock)
    return reply


# -- settings --------------------------------------------------------------------------------------------------------


def _configure(model: Model, request: Request) -> Any:
    said = dict(request.said)
    model.exists = True
    model.default_lease_time = said.pop("default_lease_time", model.default_lease_time)
    if "keep_done" in said:
        keep = said.pop("keep_done") or {}
        model.settings = model.settings._replace(
            keep_seconds=keep.get("seconds") or 0.0, keep_count=keep.get("count") or 0
        )
    if "backoff" in said:
        model.settings = model.settings._replace(backoff=_backoff(said.pop("backoff")))
    model.settings = model.settings._replace(**{name: value or 0 for name, value in said.items()})
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

# -- batches: what each of the parts of a body does --------------------------------------------------------------------


class Batch(NamedTuple):
    """A body in parts: what it is refused for, if anything; the parts; what to do with some of them."""

    error: type[RestqError] | None
    parts: list[Any]
    do: Callable[[list[Any]], Any]


def _add_jobs(model: Model, request: Request) -> Batch:
    jobs = [new_job(job, request.served_at) for job in request.said["jobs"]]

    def add(some: list[NewJob]) -> Any:
        model.add(some)
        return {}

    return Batch(model.add_error(jobs), jobs, add)


def _remove_jobs(model: Model, request: Request) -> Batch:
    def remove(job_ids: list[str]) -> Any:
        for job_id in job_ids:
            model.remove(job_id)
        return {}

    return Batch(None, request.said["jobs"], remove)


def _redrive_jobs(model: Model, request: Request) -> Batch:
    queue = request.said.get("queue")

    def redrive(job_ids: list[str]) -> Any:
        jobs = [job for job_id in job_ids if (job := model.job(job_id))]
        places = [[place for place in model.places_of(job) if queue in (None, place.queue)] for job in jobs]
        return {"redriven": _redrive_each(model, places)}

    return Batch(None, list(dict.fromkeys(request.said["jobs"])), redrive)


def _redrive_each(model: Model, places: list[list[ModelPlace]]) -> int:
    """How many jobs were dead in any of their places."""
    return sum(sum(map(model.redrive, of_job)) > 0 for of_job in places)


def _of_leases(do: Callable[[Model, Request, Any, Sequence[str]], Any]) -> Callable[[Model, Request], Batch]:
    def batch(model: Model, request: Request) -> Batch:
        proofs = request.said["leases"]
        is_in_vain = request.operation == "ack" and not any(place_of(model, request, proof) for proof in proofs)
        error = LeaseStale if is_in_vain else None
        return Batch(error, proofs, lambda some: do(model, request, request.said, some))

    return batch


BATCHES: dict[str, Callable[[Model, Request], Batch]] = {
    "ack": _of_leases(_ack_all),
    "add_jobs": _add_jobs,
    "extend": _of_leases(_extend_all),
    "nack": _of_leases(_nack_all),
    "redrive_jobs": _redrive_jobs,
    "release": _of_leases(_release_all),
    "remove_jobs": _remove_jobs,
}


def joined(reply: Any, more: Any) -> Any:
    """What two halves of a batch reply together."""
    whole = dict(reply)
    for name, value in more.items():
        if name not in whole:
            whole[name] = value
        else:
            whole[name] = {**whole[name], **value} if isinstance(value, dict) else whole[name] + value
    return whole


# -- sweeps: what is done to each job of many --------------------------------------------------------------------------

Includes = Callable[[ModelPlace], bool]  # whether what is done to this place is done by now


def _clear_queue(model: Model, request: Request, includes: Includes) -> Any:
    before = len(model.jobs)
    for place in model.in_queue(request.params[0]):
        if includes(place):
            model.leave(place)
    removed = {"removed": before - len(model.jobs)}
    return {} if request.operation == "clear_queue_2013" else removed


def _tagged(model: Model, request: Request) -> list[Any]:
    return [job for job in model.jobs if request.params[0] in job.tags]


def _remove_tagged_jobs(model: Model, request: Request, includes: Includes) -> Any:
    for job in _tagged(model, request):
        model.remove(job.job_id)
    return {}


def _cancel_tagged_jobs(model: Model, request: Request, includes: Includes) -> Any:
    tagged = [job for job in _tagged(model, request) if all(map(includes, model.places_of(job)))]
    gone = [model.cancel(job) for job in tagged]
    return {"removed": sum(gone), "leased": len(gone) - sum(gone)}


def _redrive_tagged_jobs(model: Model, request: Request, includes: Includes) -> Any:
    places = [[place for place in model.places_of(job) if includes(place)] for job in _tagged(model, request)]
    return {"redriven": _redrive_each(model, places)}


def _redrive(model: Model, request: Request, includes: Includes) -> Any:
    queue = request.said.get("queue")
    places = [place for place in model.places if queue in (None, place.queue) and includes(place)]
    return {"redriven": sum(model.redrive(place) for place in places)}


def _move_tagged_jobs(model: Model, request: Request, includes: Includes) -> Any:
    from_queue, to_queue = request.said["from_queue"], request.said["to_queue"]
    tagged = _tagged(model, request) if from_queue != to_queue else []
    places = [place for job in tagged if (place := model.place(job.job_id, from_queue)) and includes(place)]
    leased = [place for place in places if model.state(place) == "leased"]
    for place in places:
        if place not in leased:
            model.move(place, to_queue)
    return {"moved": len(places) - len(leased), "leased": len(leased)}


SWEEPS: dict[str, Callable[[Model, Request, Includes], Any]] = {
    "cancel_tagged_jobs": _cancel_tagged_jobs,
    "clear_queue": _clear_queue,
    "clear_queue_2013": _clear_queue,
    "move_tagged_jobs": _move_tagged_jobs,
    "redrive": _redrive,
    "redrive_tagged_jobs": _redrive_tagged_jobs,
    "remove_tagged_jobs": _remove_tagged_jobs,
}


def sweep_error(model: Model, request: Request) -> type[RestqError] | None:
    """What a sweep is refused for, if anything."""
    queue: QueueId | None = None
    if request.operation in ("clear_queue", "clear_queue_2013"):
        queue = request.params[0]
    elif request.operation == "move_tagged_jobs":
        queue = request.said["from_queue"]
    elif request.operation == "redrive" and model.exists:
        queue = request.said.get("queue")
    if queue is not None and queue not in model.lease_times:
        return QueueNotFound
    is_of_tag = request.operation in ("cancel_tagged_jobs", "move_tagged_jobs", "redrive_tagged_jobs")
    return TagNotFound if is_of_tag and not _tagged(model, request) else None
