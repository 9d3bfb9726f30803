"""The client of a server: the mapping of its realms, and what spans several of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from restq import names
from restq.client.connection import Closing, Connection, Requester, path
from restq.client.realm import Realm, checked, several
from restq.config import Config
from restq.errors import RealmNameInvalid, RestqError


class Realms(Closing, Mapping[str, Realm]):
    """The realms of a restq server: `realms.test` and `realms["test"]` are the client of the realm `test`.

    Any name gives a client, and none makes a call; length, iteration and `in` ask the server which realms
    live. Where a realm has the name of a method, say `pull`, write `realms["pull"]`. Without `uri` the
    server is the configured one; `requester` is anything with requests' verbs.
    """

    def __init__(
        self, uri: str | None = None, requester: Requester | None = None, *, config: Config | None = None
    ) -> None:
        """`config` is used in place of the configured files and environment."""
        self._connection = Connection(uri, requester, config)
        self._realms: dict[str, Realm] = {}

    # The mapping.
    def __getitem__(self, name: str) -> Realm:
        """The client of the realm of that name, the same one each time. RealmNameInvalid where none can have it."""
        if name not in self._realms:
            # setdefault: of two threads that ask at once both get the same one, with its one buffer.
            self._realms.setdefault(name, Realm(name, connection=self._connection))
        return self._realms[name]

    def __getattr__(self, name: str) -> Realm:
        # Names with an underscore are what Python and IPython look for on any object.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            return self[name]
        except RealmNameInvalid as error:
            raise AttributeError(str(error)) from error

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._connection.request("get", "")))

    def __len__(self) -> int:
        return len(self._connection.request("get", ""))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    # As an object it is a connection, not a value: comparing two must not ask two servers.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __str__(self) -> str:
        return f"Realms of {self._connection.uri}: {', '.join(self) or 'none'}"

    def __dir__(self) -> list[str]:
        """Methods and, where the server can be reached, the live realms: IPython completes them."""
        try:
            live = [name for name in self if name.isidentifier()]
        except (RestqError, ValueError):
            live = []  # who only looks around is not told off
        return [*super().__dir__(), *live]

    @property
    def requester(self) -> Requester:
        """What sends the requests: the one that was given, else a requests.Session."""
        return self._connection.requester

    # What spans several realms.
    def pull(self, count: int | None = None, realms: Iterable[str] | None = None) -> dict[str, list[Any]]:
        """Lease up to `count` jobs of the realms, default all: `{job_id: [realm, queue_id, data]}`.

        The lowest queue id over all of them comes first. Of an id that is ready in several realms only the job
        that comes first is leased; the others stay ready, for later pulls.
        """
        body: dict[str, Any] = {"count": self._connection.config.client.count if count is None else count}
        if realms is not None:
            listed = several(realms, "realms is a list of realm names")
            body["realms"] = [names.realm_name(name) for name in listed]
        reply = self._connection.request("post", "pull", body)
        return {job["job_id"]: [job["realm"], job["queue_id"], job["data"]] for job in reply["jobs"]}

    def bulk_add(self, jobs: Iterable[Mapping[str, Any]] | Mapping[Any, Mapping[str, Any]]) -> None:
        """Add jobs to several realms: as `Realm.bulk_add`, each with its `realm_id` as well. Sends at once."""
        listed = jobs.values() if isinstance(jobs, Mapping) else jobs
        self._connection.request("post", "jobs", {"jobs": [checked(job) for job in listed]})

    def bulk_flush(self) -> None:
        """Send what any of its realms buffered. One that fails keeps no other from being sent; then it raises."""
        failures: list[Exception] = []
        for realm in list(self._realms.values()):
            try:
                realm.bulk_flush()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def bulk_remove(self, jobs: Iterable[tuple[str, str]]) -> None:
        """Remove jobs of several realms, given as pairs of realm and job id. Those not there are no error."""
        pairs = [_pair(job) for job in jobs]
        self._connection.request("delete", "jobs", {"jobs": pairs})

    def shards(self) -> list[dict[str, Any]]:
        """The server's shards: what each holds and how busy it is, from 0 to 1.

        Each is `{"shard": 0, "pid": .., "busy": .., "requests": .., "jobs": .., "realms": {name: {"jobs": ..,
        "pinned": ..}}}`.
        """
        found: list[dict[str, Any]] = self._connection.request("get", path("performance", "shards"))["shards"]
        return found


def _pair(job: Any) -> list[str]:
    """Realm and job id, checked. A text of two letters is no pair of them."""
    if not isinstance(job, (tuple, list)) or len(job) != 2:
        raise TypeError(f"jobs is a list of pairs such as ('mail', 'letter 1'), and {ascii(job)[:60]} is none")
    return [names.realm_name(job[0]), names.job_id(job[1])]
