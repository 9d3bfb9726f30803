"""The client of one realm: each method is one operation of the server, under the same name."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from restq import names
from restq.client.buffer import Buffer
from restq.client.connection import Closing, Connection, Requester, is_dots, path
from restq.config import Config

QueueId = names.QueueId


class Realm(Closing):
    """A named, isolated world of jobs on a restq server. It comes to be when it is first written to.

    Making one sends nothing. Used in a `with`, it sends what `bulk_add` buffered when it is left.
    """

    __iter__ = None  # not a sequence: without this, `for` would ask for the jobs 0, 1, 2, ..

    def __init__(
        self,
        name: str,
        uri: str | None = None,
        requester: Requester | None = None,
        *,
        config: Config | None = None,
        connection: Connection | None = None,
    ) -> None:
        """`connection` is for `Realms`, whose realms share one; it replaces the other three."""
        self._name = names.realm_name(name)
        self._connection = connection or Connection(uri, requester, config)
        self._buffer = Buffer()
        self._lock = threading.Lock()  # of the buffer

    def __repr__(self) -> str:
        return f"<restq realm {self._name!r}>"

    @property
    def name(self) -> str:
        """The realm's name."""
        return self._name

    @property
    def requester(self) -> Requester:
        """What sends the requests: the one that was given, else a requests.Session."""
        return self._connection.requester

    @property
    def status(self) -> dict[str, Any]:
        """Its counts: `{"total_jobs": n, "total_tags": n, "queues": {"0": n}}`. An unknown realm is an empty one."""
        return self._get("status")

    def request(self, verb: str, *parts: str | int, body: Any = None) -> Any:
        """Send any request below the realm: `request("get", "job", "pwd")` is what `get_job` does."""
        return self._connection.request(verb, path(self._name, *parts), body)

    # Adding.
    def add(self, job_id: str, queue_id: QueueId, data: Any = None, tags: Iterable[str] | None = None) -> None:
        """Add the job to the queue; if it exists, add the queue and the tags to it.

        `data` is any JSON value; None says nothing about it. With other data than the job has it raises
        DataDiffers, a ValueError, and changes nothing. `tags` is a list or a set; one text is refused.
        """
        job = _job(job_id, queue_id, data, tags)
        identity = job.pop("job_id")
        if is_dots(identity):
            self.bulk_add([{"job_id": identity, **job}])
        else:
            self.request("put", "job", identity, body=job)

    def bulk_add(
        self, jobs: Iterable[Mapping[str, Any]] | Mapping[Any, Mapping[str, Any]], buffer: bool = False
    ) -> None:
        """Add many jobs at once: all of them, or, if one is refused, none.

        `jobs` is a list of dicts with `job_id`, `queue_id` and, where wanted, `data` and `tags`, or a dict
        whose values they are. Everything is sent before this returns, unless `buffer` is true: then the
        jobs are kept and sent together when 1,000 of them or 1 MiB have gathered, by `bulk_flush`, by
        `close` and by any later call without `buffer`. Jobs that could not be sent stay in the buffer.
        """
        listed = jobs.values() if isinstance(jobs, Mapping) else jobs
        if buffer:
            with self._lock:
                for job in listed:
                    self._buffer.append(checked(job))
                    if self._buffer.is_full:
                        self._flush()
            return
        all_jobs = [checked(job) for job in listed]
        self.bulk_flush()
        if all_jobs:
            self.request("post", "jobs", body={"jobs": all_jobs})

    def bulk_flush(self) -> None:
        """Send what `bulk_add` buffered. Nothing is sent when nothing is."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if len(self._buffer):
            self._connection.send("post", path(self._name, "jobs"), self._buffer.content())
            self._buffer.clear()

    # Taking and looking.
    def pull(self, count: int | None = None, max_queue: QueueId | None = None) -> dict[str, list[Any]]:
        """Lease up to `count` jobs, lowest queue first: `{job_id: [queue_id, data]}`, in that order.

        `count` defaults to the configured one; `max_queue` leaves out the queues above it. Each job is
        handed out again if it is not removed within its queue's lease time.
        """
        body: dict[str, Any] = {"count": self._count(count)}
        if max_queue is not None:
            body["max_queue"] = names.queue_id(max_queue, "max_queue")
        reply = self.request("post", "pull", body=body)
        return {job["job_id"]: [job["queue_id"], job["data"]] for job in reply["jobs"]}

    def get_job(self, job_id: str) -> dict[str, Any]:
        """The job: `{"tags": [..], "data": .., "queues": [[queue_id, seconds since check-out, or 0], ..]}`.

        Raises JobNotFound, a KeyError, where there is none.
        """
        return self._get("job", names.job_id(job_id))

    __getitem__ = get_job

    def get_tag_status(self, tag: str) -> dict[str, Any]:
        """How many jobs carry the tag: `{"count": n}`. TagNotFound, a KeyError, where none does."""
        return self._get("tag", names.tag(tag), "status")

    def get_tagged_jobs(self, tag: str) -> dict[str, dict[str, Any]]:
        """Every job that carries the tag: `{job_id: as get_job}`."""
        return self._get("tag", names.tag(tag))

    # Removing and moving.
    def remove_job(self, job_id: str) -> None:
        """Take the job out of every queue and tag. Removing what is not there is no error."""
        identity = names.job_id(job_id)
        if is_dots(identity):
            self.bulk_remove([identity])
        else:
            self.request("delete", "job", identity)

    def bulk_remove(self, job_ids: Iterable[str]) -> None:
        """Remove many jobs at once. Those that are not there are no error. One text is refused: it is no list."""
        listed = several(job_ids, "job_ids is a list of job ids")
        self.request("delete", "jobs", body={"jobs": [names.job_id(job_id) for job_id in listed]})

    def remove_tagged_jobs(self, tag: str) -> None:
        """Remove every job that carries the tag."""
        if is_dots(names.tag(tag)):
            self.bulk_remove(self.get_tagged_jobs(tag))
        else:
            self.request("delete", "tag", tag)

    def move_job(self, job_id: str, from_q: QueueId, to_q: QueueId) -> None:
        """Take the job out of one queue and put it into another. It just leaves `from_q` if it is in `to_q`.

        JobNotInQueue where it is not in `from_q`, JobLeased while it is leased out of it: ValueErrors both.
        """
        body = {"from_queue": names.queue_id(from_q, "from_q"), "to_queue": names.queue_id(to_q, "to_q")}
        self.request("post", "job", names.job_id(job_id), "move", body=body)

    def clear_queue(self, queue_id: QueueId) -> int:
        """Empty the queue and return how many jobs left it; those that stand in no other are removed.

        QueueNotFound, a ValueError, where there is no such queue.
        """
        removed: int = self.request("post", "queues", names.queue_id(queue_id), "clear", body={})["removed"]
        return removed

    # Settings.
    def set_default_lease_time(self, seconds: float) -> None:
        """Set the lease time of queues made from now on."""
        self.request("post", "config", body={"default_lease_time": seconds})

    def set_queue_lease_time(self, queue_id: QueueId, seconds: float) -> None:
        """Set the lease time of one queue, which is made if need be."""
        self.request("post", "config", body={"queue_lease_time": [names.queue_id(queue_id), seconds]})

    def pin(self, shard: int) -> None:
        """Move the realm to the shard, while the server runs, and keep it there."""
        self.request("put", "shard", body={"shard": shard})

    def unpin(self) -> None:
        """Let the server choose the realm's shard again."""
        self.request("delete", "shard")

    def _get(self, *parts: str) -> dict[str, Any]:
        found: dict[str, Any] = self.request("get", *parts)
        return found

    def _count(self, count: int | None) -> int:
        return self._connection.config.client.count if count is None else count


def _job(job_id: str, queue_id: QueueId, data: Any, tags: Iterable[str] | None) -> dict[str, Any]:
    """The job as the server takes it, its names checked; what was not given is left out."""
    job: dict[str, Any] = {"job_id": names.job_id(job_id), "queue_id": names.queue_id(queue_id)}
    if data is not None:
        job["data"] = data
    if tags is not None:
        job["tags"] = [names.tag(tag) for tag in several(tags, "tags is a list of tags")]
    return job


def checked(job: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a job out of `bulk_add` that JSON can carry; what it lacks is the server's to say."""
    if not isinstance(job, Mapping):
        raise TypeError(f"a job is a dict with job_id and queue_id, not {type(job).__name__}")
    copy = dict(job)
    tags = several(copy.get("tags"), "tags is a list of tags")
    if isinstance(tags, (set, frozenset)):
        copy["tags"] = list(tags)
    return copy


def several(values: Any, what: str) -> Any:
    """The values as they are; TypeError for one text, of which Python would make a list of its letters."""
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{what}, not one: write [{values[:60]!r}]")
    return values
