"""The calls that span several realms of a server, described. Nothing is sent here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic

from restq import names
from restq.client.call import Call, as_is, encoded, nothing, part, path, several
from restq.client.lease_calls import J, QueueId, checked_jobs, pull_body
from restq.client.peer import Peer


class RealmsCalls(Generic[J]):
    """The calls of a server. `job` makes the job of a pull's reply; the float is the lease time that was asked for."""

    def __init__(self, peer: Peer, job: Callable[[Mapping[str, Any], float | None], J]) -> None:
        self._peer = peer
        self._job = job

    def list_realms(self) -> Call[list[str]]:
        """The names of the live realms, sorted."""
        return Call("get", "", lambda statuses: sorted(statuses))

    def pull(self, count: int | None = None, realms: Iterable[str] | None = None) -> Call[dict[str, list[Any]]]:
        """Lease up to `count` jobs of the realms, default all: `{job_id: [realm, queue_id, data]}`.

        The lowest queue id over all of them comes first. Of an id that is ready in several realms only the job
        that comes first is leased; the others stay ready, for later pulls.
        """
        body = pull_body(self._peer, count) | _named(realms) | {"distinct": True}
        return self._post("pull", body).then(
            lambda reply: {job["job_id"]: [job["realm"], job["queue_id"], job["data"]] for job in reply["jobs"]}
        )

    def pull_jobs(
        self,
        count: int | None = None,
        max_queue: QueueId | None = None,
        *,
        realms: Iterable[str] | None = None,
        queues: Iterable[QueueId] | None = None,
        tags: Iterable[str] | None = None,
        wait: float = 0,
        lease_time: float | None = None,
        worker: str | None = None,
    ) -> Call[list[J]]:
        """Lease up to `count` jobs of the realms, default all, as `Realm.pull_jobs` does of one.

        The lowest queue id over all of them comes first. `job.realm` is the name of a job's realm.
        """
        body = pull_body(self._peer, count, max_queue, queues, tags, wait, lease_time, worker) | _named(realms)
        call = self._post("pull", body, wait)
        return call.then(lambda reply: [self._job(job, lease_time) for job in reply["jobs"]])

    def bulk_add(self, jobs: Iterable[Mapping[str, Any]] | Mapping[Any, Mapping[str, Any]]) -> Call[None]:
        """Add jobs to several realms: as `Realm.bulk_add`, each with its `realm_id` as well. Sends at once."""
        return self._post("jobs", {"jobs": checked_jobs(jobs)}).then(nothing)

    def bulk_remove(self, jobs: Iterable[tuple[str, str]]) -> Call[None]:
        """Remove jobs of several realms, given as pairs of realm and job id. Those not there are no error."""
        return Call("delete", "jobs", nothing, encoded({"jobs": [_pair(job) for job in jobs]}))

    def shards(self) -> Call[list[dict[str, Any]]]:
        """The server's shards: what each holds and how busy it is, from 0 to 1.

        Each is `{"shard": 0, "pid": .., "busy": .., "requests": .., "jobs": .., "realms": {name: {"jobs": ..,
        "pinned": ..}}}`.
        """
        return Call("get", path("performance", "shards"), part("shards"))

    def _post(self, word: str, body: Any, wait: float = 0) -> Call[Any]:
        return Call("post", word, as_is, encoded(body), wait)


def _named(realms: Iterable[str] | None) -> dict[str, Any]:
    if realms is None:
        return {}
    return {"realms": [names.realm_name(name) for name in several(realms, "realms is a list of realm names")]}


def _pair(job: Any) -> list[str]:
    """Realm and job id, checked. A text of two letters is no pair of them."""
    if not isinstance(job, (tuple, list)) or len(job) != 2:
        raise TypeError(f"jobs is a list of pairs such as ('mail', 'letter 1'), and {ascii(job)[:60]} is none")
    return [names.realm_name(job[0]), names.job_id(job[1])]
