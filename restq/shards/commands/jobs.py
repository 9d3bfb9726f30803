"""The operations on jobs: add, remove, get, list, explain, move, cancel, redrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from restq import bodies, names
from restq.errors import FieldInvalid, ReplyTooLarge, TagNotFound
from restq.shards import adding, listing, operating, sweeps
from restq.shards.adding import NewJob
from restq.shards.commands.batches import SLICE_COUNT, Batch, in_slices, slices
from restq.shards.commands.call import NOTHING, Call, Done, Outcome, Work, encode
from restq.shards.job import Job
from restq.shards.new_jobs import new_job, new_jobs
from restq.shards.realm import Realm

REPLY_BYTES_MAX = 256 << 20  # of data in the answer to one question
RESULTS_COUNT = 50  # that are read at once: each may have more than a hundred KiB
PAGE_BYTES_MAX = 32 << 20  # of data on one page of a list

_read_job = bodies.reader(bodies.JobBody)
_read_bulk_add = bodies.reader(bodies.BulkAdd)
_read_bulk_remove = bodies.reader(bodies.BulkRemove)
_read_move = bodies.reader(bodies.Move)
_read_redrive = bodies.reader(bodies.Redrive)


def add_job(realm: Realm, call: Call) -> Done:
    """PUT /{realm}/job/{job_id}."""
    adding.add(realm, [new_job(call.params[0], _read_job(call.body), call.now)], call.now)
    return Done(NOTHING)


def add_jobs(realm: Realm, call: Call) -> Outcome:
    """POST /{realm}/jobs. `params[0]`, if given: the index of each job in the body that the client sent."""
    jobs = bodies.bulk_jobs(_read_bulk_add(call.body))
    if len(jobs) <= SLICE_COUNT:
        indexes = call.params[0] if call.params else None
        adding.add(realm, new_jobs(jobs, call.now, indexes), call.now, indexes)
        return Done(NOTHING)
    bodies.check_count(len(jobs), "jobs")
    batch = Batch(realm, call, "add_jobs", _checked(realm, jobs, call), lambda some: _put(realm, some))
    return Work(batch, batch.reply)


def check_jobs(realm: Realm, call: Call) -> Outcome:
    """Whether `add_jobs` would refuse: it does not, once this did not, unless others came between."""
    jobs = bodies.bulk_jobs(_read_bulk_add(call.body))
    checking = _Checking(_checked(realm, jobs, call))
    if len(jobs) > SLICE_COUNT:
        return Work(checking, lambda: Done(NOTHING))
    while not checking.step(SLICE_COUNT):
        pass
    return Done(NOTHING)


class _Checking:
    """The jobs of one body, checked slice by slice."""

    def __init__(self, checked: Iterator[list[NewJob]]) -> None:
        self._checked = checked

    def step(self, count: int) -> bool:
        """Check one slice; True once there are no more."""
        return next(self._checked, None) is None


def _checked(realm: Realm, jobs: Sequence[bodies.BulkJob], call: Call) -> Iterator[list[NewJob]]:
    check = adding.AddCheck(realm)
    indexes = slices(call.params[0] if call.params else range(len(jobs)))
    for some, at in zip(slices(jobs), indexes, strict=True):
        checked = new_jobs(some, call.now, at)
        if not call.is_resumed:
            check.take(checked, at)
        yield checked
    if not call.is_resumed:
        check.finish()
        if realm.bounds.are_set:
            realm.bounds.promise(realm, check.jobs_added, check.memory_added)


def _put(realm: Realm, jobs: list[NewJob]) -> dict[str, Any]:
    adding.put(realm, jobs)
    return {}


def remove_job(realm: Realm, call: Call) -> Done:
    """DELETE /{realm}/job/{job_id}."""
    remove(realm, [names.job_id(call.params[0])])
    return Done(NOTHING)


def remove_jobs(realm: Realm, call: Call) -> Outcome:
    """DELETE /{realm}/jobs."""
    job_ids = bodies.job_ids(_read_bulk_remove(call.body).jobs, realm.name)
    return in_slices(realm, call, "remove_jobs", job_ids, lambda some: remove(realm, some))


def remove(realm: Realm, job_ids: list[str]) -> dict[str, Any]:
    """Remove those that are there: what is not there is no error over HTTP, and nothing is said of it."""
    for job_id in job_ids:
        if (job := realm.jobs.get(job_id)) is not None:
            realm.drop(job)
    return {}


def get_job(realm: Realm, call: Call) -> Done:
    """GET /{realm}/job/{job_id}, as in 2013."""
    return Done(encode(_shown_2013(realm.get_job(names.job_id(call.params[0])), call)))


def _shown_2013(job: Job, call: Call) -> dict[str, Any]:
    places = sorted(job.places, key=lambda place: names.queue_order(place.queue.queue_id))
    queues = [
        (place.queue.queue_id, max(0.0, call.now - place.history.leased_at) if place.history.lease else 0)
        for place in places
    ]
    return {"tags": job.tags, "data": call.data(job), "queues": queues}


def get_tagged_jobs(realm: Realm, call: Call) -> Done:
    """GET /{realm}/tag/{tag}."""
    tag = names.tag(call.params[0], "tag")
    if tag not in realm.tags:
        raise TagNotFound(f"no job of realm {realm.name!r} is tagged {tag!r}", "tag")
    jobs = sorted(realm.tags[tag].jobs, key=lambda job: job.key)
    if sum(job.data_bytes for job in jobs) > REPLY_BYTES_MAX:
        raise ReplyTooLarge(f"the data of the {len(jobs)} jobs tagged {tag!r} is more than one reply carries")
    return Done(encode({job.job_id: _shown_2013(job, call) for job in jobs}))


def list_jobs(realm: Realm, call: Call) -> Done:
    """GET /{realm}/jobs."""
    state, queue, tag, prefix, limit, cursor, data = call.params
    if state is not None and state not in (*listing.STATES, listing.DONE):
        raise FieldInvalid(f"state: is one of {', '.join(listing.STATES)}, {listing.DONE}", "state")
    wanted = listing.Filter(
        state,
        None if queue is None else names.queue_id(queue, "queue"),
        None if tag is None else names.tag(tag, "tag"),
        prefix or "",
    )
    count, with_data = bodies.limit(limit), bodies.flag(data, "data")
    if state == listing.DONE:
        return _list_results(realm, call, wanted, count, cursor)
    jobs, following = listing.list_jobs(realm, wanted, count, cursor)
    page: list[dict[str, Any]] = []
    size = 0
    for job in jobs:
        shown = listing.shown_job(realm, job, call.archive)
        if with_data:
            size += job.data_bytes
            if page and size > PAGE_BYTES_MAX:
                following = str(realm.first_keys.first(jobs[len(page) - 1].key))
                break
            shown["data"] = call.data(job)
        page.append(shown)
    return Done(encode({"jobs": page, "cursor": following}))


def _list_results(realm: Realm, call: Call, wanted: listing.Filter, limit: int, cursor: str | None) -> Done:
    found: list[msgspec.Raw] = []
    after, size, looked_at = listing.cursor_key(realm, cursor), 0, 0
    oldest_at = realm.settings.oldest_at(call.now)
    rows = call.archive.results(realm.key, after, RESULTS_COUNT) if realm.settings.keeps_results else []
    while rows:
        for row in rows:
            if len(found) >= limit or size > PAGE_BYTES_MAX or looked_at >= listing.SCAN_MAX:
                return Done(encode({"jobs": found, "cursor": str(realm.first_keys.first(after))}))
            after, looked_at = row.key, looked_at + 1
            if row.at >= oldest_at and row.job_id.startswith(wanted.prefix) and _result_fits(row.text, wanted):
                found.append(msgspec.Raw(row.text.encode()))
                size += len(row.text)
        rows = call.archive.results(realm.key, after, RESULTS_COUNT)
    return Done(encode({"jobs": found, "cursor": None}))


def _result_fits(text: str, wanted: listing.Filter) -> bool:
    if wanted.queue is None and wanted.tag is None:
        return True
    said = msgspec.json.decode(text)
    return wanted.queue in (None, said["queue_id"]) and (wanted.tag is None or wanted.tag in said["tags"])


def explain_job(realm: Realm, call: Call) -> Done:
    """GET /{realm}/job/{job_id}/explain."""
    return Done(encode(listing.explain(realm, realm.get_job(names.job_id(call.params[0])), call.archive)))


def move_job(realm: Realm, call: Call) -> Done:
    """POST /{realm}/job/{job_id}/move."""
    move = _read_move(call.body)
    return _move(realm, call, move.from_queue, move.to_queue, ("from_queue", "to_queue"))


def move_job_2013(realm: Realm, call: Call) -> Done:
    """GET /{realm}/job/{job_id}/from_q/{a}/to_q/{b}."""
    return _move(realm, call, call.params[1], call.params[2], ("from_q", "to_q"))


def _move(realm: Realm, call: Call, from_queue: Any, to_queue: Any, fields: tuple[str, str]) -> Done:
    source, target = names.queue_id(from_queue, fields[0]), names.queue_id(to_queue, fields[1])
    operating.move_job(realm, names.job_id(call.params[0]), source, target, call.now)
    return Done(NOTHING)


def cancel_job(realm: Realm, call: Call) -> Done:
    """POST /{realm}/job/{job_id}/cancel."""
    bodies.check_nothing(call.body)
    gone = operating.cancel_job(realm, names.job_id(call.params[0]), call.now)
    return Done(encode({"cancelled": "removed" if gone else "leased"}))


def redrive(realm: Realm, call: Call) -> Outcome:
    """POST /{realm}/redrive."""
    wanted = _read_redrive(call.body or NOTHING)
    queue_id = None if wanted.queue is None else names.queue_id(wanted.queue, "queue")
    if wanted.jobs is None:
        if queue_id is None and not realm.exists:
            return Done(encode({"redriven": 0}))
        return swept(sweeps.redrive(realm, queue_id))
    bodies.check_count(len(wanted.jobs), "jobs")
    job_ids = [names.job_id(job_id, f"jobs[{index}]") for index, job_id in enumerate(wanted.jobs)]
    return in_slices(
        realm, call, "redrive", list(dict.fromkeys(job_ids)), lambda some: _redrive_jobs(realm, some, queue_id)
    )


def _redrive_jobs(realm: Realm, job_ids: list[str], queue_id: names.QueueId | None) -> dict[str, Any]:
    count = 0
    for job in [realm.jobs[job_id] for job_id in job_ids if job_id in realm.jobs]:
        places = [place for place in job.places if queue_id is None or place.queue.queue_id == queue_id]
        count += sum(operating.redrive(realm, place) for place in places) > 0
    return {"redriven": count}


def remove_tagged_jobs(realm: Realm, call: Call) -> Outcome:
    """DELETE /{realm}/tag/{tag}."""
    tag = names.tag(call.params[0], "tag")
    if tag not in realm.tags:
        return Done(NOTHING)  # removing what is not there is no error over HTTP
    return swept(sweeps.of_tag(realm, "remove_tagged_jobs", tag))


def cancel_tagged_jobs(realm: Realm, call: Call) -> Work:
    """POST /{realm}/tags/{tag}/cancel."""
    bodies.check_nothing(call.body)
    return swept(sweeps.of_tag(realm, "cancel_tagged_jobs", names.tag(call.params[0], "tag")))


def redrive_tagged_jobs(realm: Realm, call: Call) -> Work:
    """POST /{realm}/tags/{tag}/redrive."""
    bodies.check_nothing(call.body)
    return swept(sweeps.of_tag(realm, "redrive_tagged_jobs", names.tag(call.params[0], "tag")))


def move_tagged_jobs(realm: Realm, call: Call) -> Work:
    """POST /{realm}/tags/{tag}/move."""
    move = _read_move(call.body)
    queues = names.queue_id(move.from_queue, "from_queue"), names.queue_id(move.to_queue, "to_queue")
    tag = names.tag(call.params[0], "tag")
    sweeps.get_queue(realm, queues[0])
    return swept(sweeps.of_tag(realm, "move_tagged_jobs", tag, queues))


def swept(sweep: sweeps.Sweep) -> Work:
    """The sweep, and its reply."""
    return Work(sweep, lambda: Done(encode(sweep.reply)))
