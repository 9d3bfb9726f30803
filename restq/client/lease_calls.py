"""The calls of a worker, described: pull, and what ends or extends a lease. Nothing is sent here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from restq import names
from restq.client.call import Call, encoded, given, path, several
from restq.client.leased import Leased, lease_ids
from restq.client.peer import Peer

QueueId = names.QueueId
Leases = str | Leased | Iterable[str | Leased]
J = TypeVar("J", bound=Leased)


class LeaseCalls(Generic[J]):
    """The calls of one realm that speak of leases. `leases` is a lease's id, a job out of a pull, or a list of them."""

    def __init__(self, name: str, peer: Peer, job: Callable[[Mapping[str, Any], float | None], J]) -> None:
        """`job` makes the job of a pull's reply; the float is the lease time that the pull asked for."""
        self._name = name
        self._peer = peer
        self._job = job

    def pull(self, count: int | None = None, max_queue: QueueId | None = None) -> Call[dict[str, list[Any]]]:
        """Lease up to `count` jobs, lowest queue first: `{job_id: [queue_id, data]}`, in that order.

        `count` defaults to the configured one; `max_queue` leaves out the queues above it. Each job is
        handed out again if it is not removed within its queue's lease time.
        """
        body = pull_body(self._peer, count, max_queue)
        return self._post("pull", body=body).then(
            lambda reply: {job["job_id"]: [job["queue_id"], job["data"]] for job in reply["jobs"]}
        )

    def pull_jobs(
        self,
        count: int | None = None,
        max_queue: QueueId | None = None,
        *,
        queues: Iterable[QueueId] | None = None,
        tags: Iterable[str] | None = None,
        wait: float = 0,
        lease_time: float | None = None,
        worker: str | None = None,
    ) -> Call[list[J]]:
        """Lease up to `count` jobs, lowest queue first: a list of `Job`, in that order; empty where none was ready.

        `count` defaults to the configured one. `queues` and `tags` leave out what stands in no queue of these, or
        carries none of these tags; `wait` is how many seconds, up to 300, to wait for the first job; `lease_time`,
        in seconds, replaces the queue's; `worker` is a name to show.
        """
        body = pull_body(self._peer, count, max_queue, queues, tags, wait, lease_time, worker)
        call = self._post("pull", body=body, wait=wait)
        return call.then(lambda reply: self._jobs(reply, lease_time))

    def ack(
        self, leases: Leases, result: Any = None, exit_code: int | None = None, output: str | None = None
    ) -> Call[dict[str, Any]]:
        """The jobs are done, and gone: `{"acked": [ids], "stale": [ids]}`. LeaseStale where all leases are void.

        `result` is any JSON value; it, the exit code and the last 64 KiB of `output` are kept where the realm does.
        """
        return self._ending("ack", leases, given(result=result, exit_code=exit_code, output=output))

    def nack(
        self, leases: Leases, error: str | None = None, exit_code: int | None = None, delay: float | None = None
    ) -> Call[dict[str, Any]]:
        """The jobs failed: `{"nacked": [ids], "dead": [ids], "stale": [ids]}`, where the dead had their last attempt.

        The others are handed out again after their queue's backoff, or after `delay` seconds. The last 4 KiB of
        `error` are kept.
        """
        return self._ending("nack", leases, given(error=error, exit_code=exit_code, delay=delay))

    def release(self, leases: Leases, delay: float | None = None) -> Call[dict[str, Any]]:
        """Give jobs back, ready after `delay` seconds; no attempt is counted: `{"released": [ids], "stale": [ids]}`."""
        return self._ending("release", leases, given(delay=delay))

    def extend(self, leases: Leases, lease_time: float | None = None) -> Call[dict[str, Any]]:
        """Begin leases anew: `{"extended": {id: expires_at}, "stale": [ids], "cancelled": [ids]}`.

        They last `lease_time` seconds, or as long as their queue's do. A job that was cancelled is not extended.
        """
        return self._ending("extend", leases, given(lease_time=lease_time))

    def exchange(
        self,
        ack: Mapping[str, Any] | Leases | None = None,
        nack: Mapping[str, Any] | Leases | None = None,
        add: Iterable[Mapping[str, Any]] | None = None,
        pull: Mapping[str, Any] | None = None,
    ) -> Call[dict[str, Any]]:
        """Finish jobs, add what follows from them, and take the next, in one step: all of it is done, or nothing.

        `ack` and `nack` are leases, or dicts such as `{"leases": job, "result": 5}` with what `ack` and `nack` take;
        `add` is as for `bulk_add`; `pull` a dict of what `pull_jobs` takes, but `wait`. The reply is `{"ack": {..},
        "nack": {..}, "pull": {"jobs": [Job, ..]}}`, each part where it was asked for.
        """
        body: dict[str, Any] = {}
        jobs: dict[str, tuple[Leased, ...]] = {}
        for name, leases in (("ack", ack), ("nack", nack)):
            if leases is not None:
                fields = dict(leases) if isinstance(leases, Mapping) else {"leases": leases}
                fields["leases"], jobs[name] = lease_ids(fields.get("leases", ()))
                body[name] = fields
        if add is not None:
            body["add"] = checked_jobs(add)
        if pull is not None:
            body["pull"] = pull_fields(pull)
        lease_time = None if pull is None else pull.get("lease_time")

        def read(reply: dict[str, Any]) -> dict[str, Any]:
            for name, finished in jobs.items():
                for job in finished:
                    job.learn(reply[name])
            if "pull" in reply:
                reply["pull"]["jobs"] = self._jobs(reply["pull"], lease_time)
            return reply

        # Refused as stale is the ack alone: of the nack's leases that says nothing.
        return self._post("exchange", body=body, jobs=jobs.get("ack", ())).then(read)

    def _ending(self, verb: str, leases: Leases, fields: dict[str, Any]) -> Call[dict[str, Any]]:
        ids, jobs = lease_ids(leases)

        def read(reply: dict[str, Any]) -> dict[str, Any]:
            for job in jobs:
                job.learn(reply)
            return reply

        return self._post(verb, body={"leases": ids, **fields}, jobs=jobs).then(read)

    def _jobs(self, reply: Mapping[str, Any], lease_time: float | None) -> list[J]:
        return [self._job(job, lease_time) for job in reply["jobs"]]

    def _post(self, *parts: str | int, body: Any, wait: float = 0, jobs: tuple[Leased, ...] = ()) -> Call[Any]:
        return Call("post", path(self._name, *parts), lambda reply: reply, encoded(body), wait, jobs)


def pull_body(
    peer: Peer,
    count: int | None = None,
    max_queue: QueueId | None = None,
    queues: Iterable[QueueId] | None = None,
    tags: Iterable[str] | None = None,
    wait: float = 0,
    lease_time: float | None = None,
    worker: str | None = None,
) -> dict[str, Any]:
    """The body of a pull: what was given, its names checked."""
    fields = given(
        max_queue=max_queue, queues=queues, tags=tags, wait=wait or None, lease_time=lease_time, worker=worker
    )
    return {"count": peer.config.client.count if count is None else count, **pull_fields(fields)}


def pull_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a pull's fields, the names in them checked; which fields there are is the server's to say."""
    copy = dict(fields)
    if "max_queue" in copy:
        copy["max_queue"] = names.queue_id(copy["max_queue"], "max_queue")
    if "queues" in copy:
        listed = several(copy["queues"], "queues is a list of queue ids")
        copy["queues"] = [names.queue_id(queue, "queues") for queue in listed]
    if "tags" in copy:
        copy["tags"] = [names.tag(tag) for tag in several(copy["tags"], "tags is a list of tags")]
    return copy


def checked_jobs(jobs: Iterable[Mapping[str, Any]] | Mapping[Any, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the jobs of a bulk add, a list of dicts or a dict whose values they are."""
    return [checked_job(job) for job in (jobs.values() if isinstance(jobs, Mapping) else jobs)]


def checked_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a job out of `bulk_add` that JSON can carry; what it lacks is the server's to say."""
    if not isinstance(job, Mapping):
        raise TypeError(f"a job is a dict with job_id and queue_id, not {type(job).__name__}")
    copy = dict(job)
    for name in ("tags", "after"):
        tags = several(copy.get(name), f"{name} is a list of tags")
        if isinstance(tags, (set, frozenset)):
            copy[name] = list(tags)
    return copy
