"""What the simple realm does with many jobs: a batch part by part, a sweep job by job, as a crash may come between.

What a whole one is refused for is looked at before any of it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from realm_answers import Request, ack_all, nack_all, new_job, place_of
from realm_model import Model, ModelPlace

from restq.errors import LeaseStale, QueueNotFound, RestqError, TagNotFound
from restq.names import QueueId
from restq.shards.adding import NewJob

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


def _of_leases(do: Callable[[Model, Request, Any, Sequence[str]], Any]) -> Callable[[Model, Request], Batch]:
    def batch(model: Model, request: Request) -> Batch:
        proofs = request.said["leases"]
        is_in_vain = request.operation == "ack" and not any(place_of(model, request, proof) for proof in proofs)
        error = LeaseStale if is_in_vain else None
        return Batch(error, proofs, lambda some: do(model, request, request.said, some))

    return batch


BATCHES: dict[str, Callable[[Model, Request], Batch]] = {
    "ack": _of_leases(ack_all),
    "add_jobs": _add_jobs,
    "extend": _of_leases(_extend_all),
    "nack": _of_leases(nack_all),
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
    elif request.operation == "redrive":
        queue = request.said.get("queue")
    if queue is not None and queue not in model.lease_times:
        return QueueNotFound
    is_of_tag = request.operation in ("cancel_tagged_jobs", "move_tagged_jobs", "redrive_tagged_jobs")
    return TagNotFound if is_of_tag and not _tagged(model, request) else None
