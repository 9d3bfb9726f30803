"""What can be seen of the simple realm, in the words of the replies that show it."""

from __future__ import annotations

from typing import Any

from realm_model import Model, ModelJob, ModelPlace, queue_rank

from restq.names import QueueId
from restq.shards.settings import PLAIN_QUEUE, Backoff, LimitSettings, QueueSettings


def shown_place(model: Model, place: ModelPlace) -> dict[str, Any]:
    """A job in one of its queues; without `failed_at`."""
    state = model.state(place)
    shown: dict[str, Any] = {"queue_id": place.queue, "state": state, "attempt": model.attempt(place)}
    if state == "leased":
        assert place.lease is not None
        shown |= {"lease_expires_at": place.at, "leased_at": place.lease.leased_at}
        shown |= {"worker": place.lease.worker} if place.lease.worker else {}
    else:
        shown["ready_at"] = place.at or model.clock  # given back: since just now
    failure = place.failure
    if place.lease is not None and place.lease.ran_out and not place.dead:
        failure = ("the lease ran out", None)
    if failure is not None:
        error, exit_code = failure
        shown |= {"error": error} if exit_code is None else {"error": error, "exit_code": exit_code}
    return shown


def shown_job(model: Model, job: ModelJob) -> dict[str, Any]:
    """A job on a list, without its data."""
    places = model.places_of(job)
    about = {"after": list(job.after), "max_attempts": job.max_attempts, "expires_at": job.expires_at}
    is_cancelled = any(place.lease and place.lease.cancelled for place in places)
    return {
        "job_id": job.job_id,
        "tags": sorted(job.tags),
        "queues": [shown_place(model, place) for place in places],
        **{name: value for name, value in about.items() if value},
        **({"cancelled": True} if is_cancelled else {}),
    }


def shown_status(model: Model) -> dict[str, Any]:
    """The counts of the realm."""
    queues = sorted(model.lease_times, key=queue_rank)
    return {
        "total_jobs": len(model.jobs),
        "total_tags": len({tag for job in model.jobs for tag in job.tags}),
        "queues": {str(queue): sum(place.queue == queue for place in model.places) for queue in queues},
    }


def shown_queue(model: Model, queue: QueueId) -> dict[str, Any]:
    """A queue, without the age of what is ready in it: see `ages`."""
    places = [place for place in model.places if place.queue == queue]
    settings = model.queue_settings.get(queue, PLAIN_QUEUE)
    return {
        "queue_id": queue,
        "count": len(places),
        **model.counts(places),
        "settings": queue_settings(model.lease_times[queue], settings),
    }


def ages(model: Model, queue: QueueId) -> tuple[float | None, float | None]:
    """Between what the age of the oldest ready job of a queue lies.

    What a pull gave back stands ahead of all, and is ready since just now: what stands behind it may be overlooked.
    """
    ready = [place.at for place in model.places if place.queue == queue and model.state(place) == "ready"]
    if not ready:
        return None, None
    oldest = max(model.clock - (at or model.clock) for at in ready)
    return (0.0 if 0.0 in ready else oldest), oldest


def shown_tag(model: Model, tag: str) -> dict[str, Any]:
    """A tag, carried or not."""
    limit = model.tag_limits.get(tag)
    return {
        "tag": tag,
        "count": len(model.tagged(tag)),
        **model.counts([place for place in model.places if tag in place.job.tags]),
        "settings": limit_settings(LimitSettings() if limit is None else limit.settings),
    }


def shown_tags(model: Model) -> list[dict[str, Any]]:
    """All tags, those with limits that no job carries included."""
    tags = {tag for job in model.jobs for tag in job.tags} | set(model.tag_limits)
    return [shown_tag(model, tag) for tag in sorted(tags)]


# -- settings --------------------------------------------------------------------------------------------------------


def shown_config(model: Model) -> dict[str, Any]:
    """The settings of the realm; null is "no limit"."""
    settings = model.settings
    keep = {"seconds": settings.keep_seconds or None, "count": settings.keep_count or None}
    limits = {
        name: getattr(settings, name) or None for name in ("max_attempts", "crash_limit", "max_jobs", "max_bytes")
    }
    return {
        "default_lease_time": model.default_lease_time,
        **limits,
        "backoff": _backoff(settings.backoff),
        "keep_done": keep if any(keep.values()) else None,
    }


def queue_settings(lease_time: float, settings: QueueSettings) -> dict[str, Any]:
    """The settings of a queue; what is not limited is not named."""
    shown: dict[str, Any] = {"lease_time": lease_time}
    shown |= {"max_attempts": settings.max_attempts} if settings.max_attempts else {}
    shown |= {"backoff": _backoff(settings.backoff)} if settings.backoff is not None else {}
    return shown | limit_settings(settings.limits)


def limit_settings(settings: LimitSettings) -> dict[str, Any]:
    """Limits; what is not limited is not named."""
    named = {"max_leased": settings.max_leased, "rate": settings.rate, "paused": settings.paused}
    return {name: value for name, value in named.items() if value is not None}


def _backoff(backoff: Backoff | None) -> dict[str, Any] | None:
    if backoff is None:
        return None
    return {"base": backoff.base, "factor": backoff.factor, "max": backoff.max, "jitter": backoff.jitter}
