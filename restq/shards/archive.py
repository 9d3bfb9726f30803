"""What a shard has in its file and not in memory, as of this turn: large data, failures, results, kept replies."""

from __future__ import annotations

from typing import Protocol

from restq.shards.changes import Changes, FailureRow, ResultRow


class Reading(Protocol):
    """What an archive asks of the store."""

    def payload(self, job_key: int) -> bytes: ...

    def failure(self, place_key: int) -> FailureRow | None: ...

    def results(self, realm_key: int, after_key: int, limit: int) -> list[ResultRow]: ...

    def reply(self, key: int) -> bytes | None: ...

    def growable(self) -> float: ...


class Archive:
    """The store, and over it what was changed since its last commit."""

    def __init__(self, store: Reading, changes: Changes) -> None:
        self._store = store
        self._changes = changes

    def payload(self, job_key: int) -> bytes:
        """The large data of a job."""
        return self._changes.payloads.get(job_key) or self._store.payload(job_key)

    def failure(self, place_key: int) -> FailureRow | None:
        """How the last failed hand-out of a place ended."""
        if place_key in self._changes.failures:
            return self._changes.failures[place_key]
        return self._store.failure(place_key)

    def results(self, realm_key: int, after_key: int, limit: int) -> list[ResultRow]:
        """Up to `limit` results of a realm with higher keys, in their order."""
        changed = self._changes.results
        gone = sum(row is None for row in changed.values())
        found = [row for row in self._store.results(realm_key, after_key, limit + gone) if row.key not in changed]
        fresh = [row for row in changed.values() if row is not None and row.realm == realm_key and row.key > after_key]
        return sorted((*found, *fresh))[:limit]

    def reply(self, key: int) -> bytes | None:
        """The body of a kept reply."""
        fresh = self._changes.replies.get(key)
        return self._store.reply(key) if fresh is None else fresh.body
