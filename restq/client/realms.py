"""The client of a server: the mapping of its realms, and what spans several of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from restq.client.connection import Closing, Requester, connect, sent
from restq.client.job import Job
from restq.client.realm import Realm
from restq.client.realms_calls import RealmsCalls
from restq.config import Config
from restq.errors import RealmNameInvalid, RestqError


class _Calls(RealmsCalls[Job]):
    """The calls of a server whose jobs are those of this client."""


class Realms(Closing, Mapping[str, Realm]):
    """The realms of a restq server: `realms.test` and `realms["test"]` are the client of the realm `test`.

    Any name gives a client, and none makes a call; length, iteration and `in` ask the server which realms
    live. Where a realm has the name of a method, say `pull`, write `realms["pull"]`. Without `uri` the
    server is the configured one; `requester` is anything with requests' verbs.
    """

    def __init__(
        self,
        uri: str | None = None,
        requester: Requester | None = None,
        *,
        config: Config | None = None,
        stream: bool = False,
    ) -> None:
        """`config` is used in place of the configured files and environment.

        With `stream` the calls of each realm go over a WebSocket, which makes small ones several times faster.
        """
        self._connection = connect(uri, requester, config, stream)
        self._calls = _Calls(self._connection, self._leased_job)
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
        live = self._connection.send(self._calls.list_realms())
        return iter(live)

    def __len__(self) -> int:
        return len(self._connection.send(self._calls.list_realms()))

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
    pull = sent(_Calls.pull)
    pull_jobs = sent(_Calls.pull_jobs)
    bulk_add = sent(_Calls.bulk_add)

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

    def bulk_discard(self) -> dict[str, list[dict[str, Any]]]:
        """Forget what its realms buffered, and return it: by the names of realms, what each would return."""
        discarded = {name: realm.bulk_discard() for name, realm in list(self._realms.items())}
        return {name: jobs for name, jobs in discarded.items() if jobs}

    bulk_remove = sent(_Calls.bulk_remove)
    shards = sent(_Calls.shards)

    def _leased_job(self, reply: Mapping[str, Any], lease_time: float | None) -> Job:
        return self[reply["realm"]]._leased_job(reply, lease_time)
