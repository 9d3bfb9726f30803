"""The calls of one realm, described: each method is one operation of the server, under the same name.

Nothing is sent here: both clients have these methods, and send what they return.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from restq import names
from restq.client.call import Call, as_is, encoded, given, is_dots, nothing, part, path, query, several
from restq.client.lease_calls import J, LeaseCalls, QueueId, checked_jobs

# Jobs in one page of a list, without and with their data: a reply is to stay small.
PAGE_COUNT = 500
PAGE_COUNT_DATA = 50


class RealmCalls(LeaseCalls[J]):
    """The calls of one realm, those of leases among them."""

    def request(self, verb: str, *parts: str | int, body: Any = None) -> Call[Any]:
        """Send any request below the realm: `request("get", "job", "pwd")` is what `get_job` does."""
        content = None if body is None else encoded(body)
        return Call(verb.lower(), path(self._name, *parts), as_is, content)

    def status(self) -> Call[dict[str, Any]]:
        """Its counts: `{"total_jobs": n, "total_tags": n, "queues": {"0": n}}`. An unknown realm is an empty one."""
        return self.request("get", "status")

    # Adding.
    def add(
        self,
        job_id: str,
        queue_id: QueueId,
        data: Any = None,
        tags: Iterable[str] | None = None,
        *,
        delay: float | None = None,
        run_at: float | None = None,
        expires_in: float | None = None,
        max_attempts: int | None = None,
        after: Iterable[str] | None = None,
        on_conflict: str | None = None,
    ) -> Call[None]:
        """Add the job to the queue; if it exists, add the queue and the tags to it.

        `data` is any JSON value; None says nothing about it. With other data than the job has it raises
        DataDiffers, a ValueError, and changes nothing. `tags` is a list or a set; one text is refused.
        It is ready `delay` seconds from now, or at `run_at`, in seconds since the epoch, and not while another job
        carries one of the tags in `after`. It is gone `expires_in` seconds from now, and dead after `max_attempts`.
        `on_conflict` is what to do where the job exists: "merge", as above, "ignore", "replace", or "error", which
        raises JobExists, a ValueError. QueueFull, a ConnectionError, is raised beyond the realm's limits.
        """
        job = given(data=data, delay=delay, run_at=run_at, expires_in=expires_in, max_attempts=max_attempts)
        for name, values in (("tags", tags), ("after", after)):
            if values is not None:
                job[name] = [names.tag(value, name) for value in several(values, f"{name} is a list of tags")]
        if on_conflict is not None:
            job["on_conflict"] = on_conflict
        identity = names.job_id(job_id)
        job = {"queue_id": names.queue_id(queue_id), **job}
        if is_dots(identity):
            return self.bulk_add([{"job_id": identity, **job}])
        return self.request("put", "job", identity, body=job).then(nothing)

    def bulk_add(self, jobs: Iterable[Mapping[str, Any]] | Mapping[Any, Mapping[str, Any]]) -> Call[None]:
        """Add many jobs at once: all of them, or, if one is refused, none."""
        return self.request("post", "jobs", body={"jobs": checked_jobs(jobs)}).then(nothing)

    def flush(self, content: bytes) -> Call[None]:
        """Add the jobs of a buffer."""
        return Call("post", path(self._name, "jobs"), nothing, content)

    # Looking.
    def get_job(self, job_id: str) -> Call[dict[str, Any]]:
        """The job: `{"tags": [..], "data": .., "queues": [[queue_id, seconds since check-out, or 0], ..]}`.

        Raises JobNotFound, a KeyError, where there is none.
        """
        return self.request("get", "job", names.job_id(job_id))

    def explain(self, job_id: str) -> Call[dict[str, Any]]:
        """Why the job is where it is: a sentence in `explanation`, and in `queues` the facts behind it."""
        return self.request("get", "job", names.job_id(job_id), "explain")

    def get_tag_status(self, tag: str) -> Call[dict[str, Any]]:
        """How many jobs carry the tag: `{"count": n}`. TagNotFound, a KeyError, where none does."""
        return self.request("get", "tag", names.tag(tag), "status")

    def get_tagged_jobs(self, tag: str) -> Call[dict[str, dict[str, Any]]]:
        """Every job that carries the tag: `{job_id: as get_job}`."""
        return self.request("get", "tag", names.tag(tag))

    def page_of_jobs(
        self,
        cursor: str | None,
        state: str | None,
        queue: QueueId | None,
        tag: str | None,
        prefix: str | None,
        data: bool,
    ) -> Call[dict[str, Any]]:
        """One page of `list_jobs`: `{"jobs": [..], "cursor": where the next begins, or None}`."""
        listed = query(
            {
                "state": state,
                "queue": None if queue is None else names.queue_id(queue, "queue"),
                "tag": None if tag is None else names.tag(tag, "tag"),
                "prefix": prefix,
                "limit": PAGE_COUNT_DATA if data else PAGE_COUNT,
                "cursor": cursor,
                "data": 1 if data else None,
            }
        )
        return Call("get", path(self._name, "jobs") + listed, as_is)

    # Removing and moving.
    def remove_job(self, job_id: str) -> Call[None]:
        """Take the job out of every queue and tag. Removing what is not there is no error."""
        identity = names.job_id(job_id)
        if is_dots(identity):
            return self.bulk_remove([identity])
        return self.request("delete", "job", identity).then(nothing)

    def bulk_remove(self, job_ids: Iterable[str]) -> Call[None]:
        """Remove many jobs at once. Those that are not there are no error. One text is refused: it is no list."""
        listed = several(job_ids, "job_ids is a list of job ids")
        return self.request("delete", "jobs", body={"jobs": [names.job_id(job_id) for job_id in listed]}).then(nothing)

    def remove_tagged_jobs(self, tag: str) -> Call[None]:
        """Remove every job that carries the tag."""
        return self.request("delete", "tag", names.tag(tag)).then(nothing)

    def cancel_job(self, job_id: str) -> Call[str]:
        """Remove the job; while it is leased, once its lease ends, and its worker learns it from its next extend.

        Returns "removed" or "leased". JobNotFound, a KeyError, where there is none.
        """
        return self.request("post", "job", names.job_id(job_id), "cancel").then(part("cancelled"))

    def cancel_tagged_jobs(self, tag: str) -> Call[dict[str, int]]:
        """`cancel_job` of every job that carries the tag: `{"removed": n, "leased": n}`. TagNotFound, a KeyError."""
        return self.request("post", "tags", names.tag(tag), "cancel", body={})

    def move_job(self, job_id: str, from_q: QueueId, to_q: QueueId) -> Call[None]:
        """Take the job out of one queue and put it into another. It just leaves `from_q` if it is in `to_q`.

        JobNotInQueue where it is not in `from_q`, JobLeased while it is leased out of it: ValueErrors both.
        """
        body = {"from_queue": names.queue_id(from_q, "from_q"), "to_queue": names.queue_id(to_q, "to_q")}
        return self.request("post", "job", names.job_id(job_id), "move", body=body).then(nothing)

    def move_tagged_jobs(self, tag: str, from_queue: QueueId, to_queue: QueueId) -> Call[dict[str, int]]:
        """`move_job` of every job that carries the tag and is in `from_queue`: `{"moved": n, "leased": n}`.

        Those that are leased stay where they are. TagNotFound, a KeyError, where no job carries the tag.
        """
        body = {
            "from_queue": names.queue_id(from_queue, "from_queue"),
            "to_queue": names.queue_id(to_queue, "to_queue"),
        }
        return self.request("post", "tags", names.tag(tag), "move", body=body)

    def redrive(self, queue: QueueId | None = None, jobs: Iterable[str] | None = None) -> Call[int]:
        """Make dead jobs ready again, with no attempt counted: these, those of the queue, or all. Returns how many.

        QueueNotFound, a ValueError, where there is no such queue; of `jobs`, those not there are no error.
        """
        body: dict[str, Any] = {}
        if queue is not None:
            body["queue"] = names.queue_id(queue, "queue")
        if jobs is not None:
            body["jobs"] = [names.job_id(job_id) for job_id in several(jobs, "jobs is a list of job ids")]
        return self.request("post", "redrive", body=body).then(part("redriven"))

    def redrive_tagged_jobs(self, tag: str) -> Call[int]:
        """Make the dead among the jobs with the tag ready again, and return how many. TagNotFound, a KeyError."""
        return self.request("post", "tags", names.tag(tag), "redrive", body={}).then(part("redriven"))

    def clear_queue(self, queue_id: QueueId) -> Call[int]:
        """Empty the queue and return how many jobs are removed: those that stand in no other queue.

        QueueNotFound, a ValueError, where there is no such queue.
        """
        return self.request("post", "queues", names.queue_id(queue_id), "clear", body={}).then(part("removed"))

    # Queues, tags and settings.
    def list_queues(self) -> Call[list[dict[str, Any]]]:
        """Every queue, in the order in which they are served, each as `get_queue` has it."""
        return self.request("get", "queues").then(part("queues"))

    def get_queue(self, queue_id: QueueId) -> Call[dict[str, Any]]:
        """The queue's counts by state, its oldest ready job's age, its `settings`. QueueNotFound, a ValueError."""
        return self.request("get", "queues", names.queue_id(queue_id))

    def configure_queue(self, /, queue_id: QueueId, **settings: Any) -> Call[dict[str, Any]]:
        """Change settings of the queue, which is made if need be, and return all of them.

        There are `lease_time` (seconds), `max_attempts`, `backoff` (a dict of `base`, `factor`, `max` and `jitter`),
        `max_leased`, `rate` (hand-outs a second) and `paused`. What is not named stays; None takes it away.
        """
        return self.request("put", "queues", names.queue_id(queue_id), body=settings)

    def page_of_tags(self, cursor: str | None, prefix: str | None) -> Call[dict[str, Any]]:
        """One page of `list_tags`: `{"tags": [..], "cursor": where the next begins, or None}`."""
        listed = query({"prefix": prefix, "limit": PAGE_COUNT, "cursor": cursor})
        return Call("get", path(self._name, "tags") + listed, as_is)

    def get_tag(self, tag: str, wait: float = 0) -> Call[dict[str, Any]]:
        """The tag's `count` of jobs, its counts by state, and its `settings`. One that no job carries has count 0.

        With `wait`, in seconds, up to 300, it answers once no job carries the tag, or when the time is up.
        """
        return Call("get", path(self._name, "tags", names.tag(tag)) + query({"wait": wait or None}), as_is, None, wait)

    def configure_tag(self, /, tag: str, **settings: Any) -> Call[dict[str, Any]]:
        """Change limits that hold for the tag's jobs over all queues, and return all of them.

        There are `max_leased`, `rate` (hand-outs a second) and `paused`. What is not named stays; None takes it away.
        """
        return self.request("put", "tags", names.tag(tag), body=settings)

    def get_config(self) -> Call[dict[str, Any]]:
        """The realm's settings, those of `configure`; None is no limit."""
        return self.request("get", "config")

    def configure(self, /, **settings: Any) -> Call[dict[str, Any]]:
        """Change settings of the realm, and return all of them.

        There are `default_lease_time` (seconds), `max_attempts`, `crash_limit`, `backoff`, `max_jobs`, `max_bytes` and
        `keep_done` (a dict of `seconds` and `count`). What is not named stays; None takes it away.
        """
        return self.request("put", "config", body=settings)

    def set_default_lease_time(self, seconds: float) -> Call[None]:
        """Set the lease time of queues made from now on."""
        return self.request("post", "config", body={"default_lease_time": seconds}).then(nothing)

    def set_queue_lease_time(self, queue_id: QueueId, seconds: float) -> Call[None]:
        """Set the lease time of one queue, which is made if need be."""
        body = {"queue_lease_time": [names.queue_id(queue_id), seconds]}
        return self.request("post", "config", body=body).then(nothing)

    def pin(self, shard: int) -> Call[None]:
        """Move the realm to the shard, while the server runs, and keep it there."""
        return self.request("put", "shard", body={"shard": shard}).then(nothing)

    def unpin(self) -> Call[None]:
        """Let the server choose the realm's shard again."""
        return self.request("delete", "shard").then(nothing)
