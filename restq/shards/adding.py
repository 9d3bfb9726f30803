"""Adding jobs to a realm: all of them, or none."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from restq.errors import DataDiffers, JobExists, QueueFull
from restq.names import QueueId
from restq.shards import endings, limits
from restq.shards.bounds import JOB, growth
from restq.shards.data import Large, same
from restq.shards.job import FRESH, MARK_CANCELLED, MARK_NONE, PLAIN, Job, Terms
from restq.shards.queue import Queue

if TYPE_CHECKING:
    from restq.shards.realm import Realm


class Wishes(NamedTuple):
    """What an add asks for beyond queue, data and tags; None says nothing about it."""

    at: float | None = None  # ready from then on
    expires_at: float | None = None
    max_attempts: int | None = None
    after: tuple[str, ...] | None = None  # sorted
    on_conflict: str = "merge"  # with a job that exists: merge, ignore, replace or error

    def terms(self, before: Terms) -> Terms:
        """The terms of a job, which were `before`."""
        return Terms(
            before.after if self.after is None else self.after,
            before.max_attempts if self.max_attempts is None else self.max_attempts,
            before.expires_at if self.expires_at is None else self.expires_at,
        )


PLAINLY = Wishes()

# A job to add, its names checked: job id, queue id, data as JSON text or None to say nothing about it, sorted tags, and
# what else is wished for, if anything.
NewJob = tuple[str, QueueId, bytes | None, tuple[str, ...], Wishes | None]


class AddCheck:
    """Whether jobs can be added, looked at part by part. The jobs `gone` are as good as removed."""

    def __init__(self, realm: Realm, where: str = "jobs", gone: Collection[str] = ()) -> None:
        self._realm = realm
        self._where = where
        self._gone = gone
        self._fresh: dict[str, bytes | None] = {}  # jobs that would come to be, with their data
        self.jobs_added = self.memory_added = 0  # by these, as far as it must be known

    def take(self, new_jobs: Sequence[NewJob], indexes: Sequence[int] | None = None) -> None:
        """Raise DataDiffers or JobExists, with the job's index out of `indexes` or among these."""
        fresh, jobs = self._fresh, self._realm.jobs
        if self._realm.bounds.are_set:
            self.memory_added += growth(self._realm, new_jobs)
        for position, (job_id, _, data, _, wishes) in enumerate(new_jobs):
            known: bytes | Large | None
            job = jobs.get(job_id)
            on_conflict = "merge" if wishes is None else wishes.on_conflict
            if job_id in fresh:
                known = fresh[job_id]
            elif job is not None and on_conflict != "replace" and job_id not in self._gone:
                known = job.data
            else:
                fresh[job_id] = data
                continue
            if on_conflict == "replace":
                fresh[job_id] = data
            elif on_conflict == "error" or (on_conflict == "merge" and data is not None and not same(known, data)):
                is_one = len(new_jobs) == 1 and not indexes
                at = "" if is_one else f"{self._where}[{indexes[position] if indexes else position}]: "
                if on_conflict == "error":
                    raise JobExists(f"{at}job {job_id!r} already exists", "job_id")
                raise DataDiffers(f"{at}job {job_id!r} already exists with other data", "data")

    def finish(self) -> None:
        """Raise QueueFull if there is no room for all of them."""
        realm, fresh = self._realm, self._fresh
        jobs_max, bytes_max = realm.settings.max_jobs, realm.settings.max_bytes
        if not (jobs_max or bytes_max or realm.bounds.are_set):
            return
        new_count = sum(job_id not in realm.jobs or job_id in self._gone for job_id in fresh)
        self._check_realm(new_count)
        freed = [realm.jobs[job_id] for job_id in self._gone if job_id in realm.jobs]
        self.jobs_added = new_count - len(freed)
        self.memory_added -= sum(JOB + len(job.job_id) + job.inline_bytes for job in freed)
        realm.bounds.check(self.jobs_added, self.memory_added)

    def _check_realm(self, new_count: int) -> None:
        realm, fresh = self._realm, self._fresh
        jobs_max, bytes_max = realm.settings.max_jobs, realm.settings.max_bytes
        if not fresh:
            return
        if jobs_max and len(realm.jobs) - len(self._gone) + new_count > jobs_max:
            told = f"realm {realm.name!r} holds {len(realm.jobs)} jobs and takes no more than {jobs_max}"
            raise QueueFull(f"{told}: this would add {new_count}")
        added = sum(len(job_id) + len(data or b"") for job_id, data in fresh.items())
        freed = [realm.jobs[job_id] for job_id in {*fresh, *self._gone} if job_id in realm.jobs]
        added -= sum(len(job.job_id) + job.data_bytes for job in freed)
        if bytes_max and realm.data_bytes + added > bytes_max:
            told = f"realm {realm.name!r} holds {realm.data_bytes} bytes and takes no more than {bytes_max}"
            raise QueueFull(f"{told}: this would add {added}")


def check_add(
    realm: Realm,
    new_jobs: Sequence[NewJob],
    indexes: Sequence[int] | None = None,
    where: str = "jobs",
    gone: Collection[str] = (),
) -> None:
    """Raise what `add` would: DataDiffers or JobExists, with the index out of `indexes`, or QueueFull.

    The jobs `gone` are as good as removed.
    """
    check = AddCheck(realm, where, gone)
    check.take(new_jobs, indexes)
    check.finish()


def add(realm: Realm, new_jobs: Sequence[NewJob], now: float, indexes: Sequence[int] | None = None) -> None:
    """Put every job into its queue: all of them, or, where one can't be, none; an error names its index of `indexes`.

    A job that exists gets the queue and the tags added; its leases stay as they are.
    """
    realm.advance(now)
    check_add(realm, new_jobs, indexes)
    if new_jobs:
        realm.write()
    put(realm, new_jobs)


def put(realm: Realm, new_jobs: Sequence[NewJob]) -> None:
    """Add what was checked."""
    jobs, keys, now = realm.jobs, realm.keys, realm.clock
    queue: Queue | None = None
    for job_id, queue_id, data, tags, wishes in new_jobs:
        job = jobs.get(job_id)
        if job is not None and wishes is not None and wishes.on_conflict == "ignore":
            continue
        if job is not None and wishes is not None and wishes.on_conflict == "replace":
            realm.drop(job)
            job = None
        if queue is None or queue.queue_id != queue_id:
            queue = realm.queue(queue_id)
        key = keys.take()
        if job is None:  # a job shares the key of its first place
            job = realm.make_job(key, job_id, data, tags, PLAIN if wishes is None else wishes.terms(PLAIN))
        else:
            _merge(realm, job, tags, wishes)
            if job.place_in(queue_id) is not None:
                continue
        at = now if wishes is None or wishes.at is None or wishes.at < now else wishes.at
        realm.enter(job, queue, key, at, FRESH)


def _merge(realm: Realm, job: Job, tags: tuple[str, ...], wishes: Wishes | None) -> None:
    for place in job.places:
        if place.history.mark == MARK_CANCELLED:  # it is wanted after all; the lease stays as it is
            realm.replace(place, place.at, place.history._replace(mark=MARK_NONE))
    if endings.is_expired(job, realm.clock):  # it is leased or dead, and wanted after all, too
        endings.outlive(realm, job)
    added = [tag for tag in tags if tag not in job.tags]
    terms = job.terms if wishes is None else wishes.terms(job.terms)
    if not added and terms == job.terms:
        return
    limits.rearrange(realm, job, tuple(sorted((*job.tags, *added))), terms)
    realm.note_job(job)
