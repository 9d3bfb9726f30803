"""The seam between a shard and what keeps its truth: load all, commit one group, read one payload.

Two stand behind it: `sqlite_store` for users, `memory_store` for tests; both pass the same contract. A store
on a replicated engine would be a third: so a group is a set of small records that gives the same state wherever
it is applied in order, and carries a number that only grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from restq.errors import RestqError
from restq.shards.changes import Changes, QueueRow, RealmRow, Stored


class StoreFailed(RestqError, OSError):
    """The store can't go on: what it holds is certain only after it was opened anew."""

    code = "store_failed"
    status = 503
    builtin = OSError


class StoreRefused(RestqError, OSError):
    """The store can't be opened: another process holds it, it is damaged, or it is of a newer restq."""

    code = "store_refused"
    status = 503
    builtin = OSError


class Mark(NamedTuple):
    """What the last group left behind, kept in the same transaction."""

    group: int  # number of the group; grows by one
    next_key: int  # no key at or above it was ever given out
    clock: float  # the shard's time when the group was made; time never falls behind it


class Loaded(NamedTuple):
    """All that a store holds. `places` streams: read it once, before anything else is asked of the store."""

    mark: Mark
    realms: list[RealmRow]
    queues: list[QueueRow]
    moved: dict[str, int]
    places: Iterable[Stored]  # in the order of their keys


class Store(Protocol):
    """What a shard asks of its store."""

    def load(self) -> Loaded:
        """All that was committed."""

    async def commit(self, changes: Changes, mark: Mark) -> None:
        """Keep the group, whole or not at all; when this returns it survives a power cut.

        Raises StorageFull where there is no room: then the store is as it was and may be used on.
        Raises StoreFailed where it is not known what was kept: then it must be opened anew.
        """

    def payload(self, job_key: int) -> bytes:
        """The large data of a job."""

    def close(self) -> None:
        """Let go of the file."""
