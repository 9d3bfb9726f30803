"""The seam between a shard and what keeps its truth: load all, commit one group, read what memory does not hold.

Two stand behind it: `sqlite_store` for users, `memory_store` for tests; both pass the same contract. A store
on a replicated engine would be a third: so a group is a set of small records that gives the same state wherever
it is applied in order, and carries a number that only grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Protocol

from restq.errors import RestqError
from restq.shards.changes import Changes, FailureRow, MovedRow, QueueRow, RealmRow, ReplyRow, ResultRow, Stored, TagRow

# A reply without its body: its key, its realm's key, name, digest and instant as in ReplyRow, the length of its body.
ReplyNote = tuple[int, int, str, str, float, int]

# The tables whose rows belong to a realm and to no queue or job of it that memory holds. A move carries them along.
Kept = FailureRow | ReplyRow | ResultRow | TagRow
KEPT: dict[str, type[FailureRow] | type[ReplyRow] | type[ResultRow] | type[TagRow]] = {
    "failures": FailureRow,
    "replies": ReplyRow,
    "results": ResultRow,
    "tags": TagRow,
}

LOOK_BYTES_MAX = 4 << 20  # beside one more row: see `Store.rows_of`


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


class Room(IntEnum):
    """How much room there is: for nothing, for what takes away, for all that does not add, or for everything."""

    NONE = 0
    SCARCE = 1
    LITTLE = 2
    ENOUGH = 3


class Loaded(NamedTuple):
    """What a shard holds in memory. `places` streams: read it once, before anything else is asked of the store."""

    mark: Mark
    realms: list[RealmRow]
    queues: list[QueueRow]
    tags: list[TagRow]
    replies: list[ReplyNote]  # in the order of their keys
    result_counts: dict[int, int]  # by the key of the realm; a realm without results is not named
    moved: list[MovedRow]
    places: Iterable[Stored]  # in the order of their keys


class Store(Protocol):
    """What a shard asks of its store."""

    def load(self) -> Loaded:
        """All that was committed, but for what the other methods read."""

    async def commit(self, changes: Changes, mark: Mark) -> None:
        """Keep the group, whole or not at all; when this returns it survives a power cut.

        Raises StorageFull where there is no room: then the store is as it was and may be used on.
        Raises StoreFailed where it is not known what was kept: then it must be opened anew.
        """

    async def back_up(self, path: Path, is_over: Callable[[], bool]) -> None:
        """Copy all that was committed when this ends to a new file, synced. Raises StoreRefused.

        Once `is_over` the copy is given up.
        """

    def room(self) -> Room:
        """How much room there is now, never NONE; a group that needs more is refused, from here on.

        Raises StoreFailed where that is not to be learned.
        """

    def growable(self) -> float:
        """By how many bytes the data may grow at this moment, as an estimate; infinity where nothing bounds them."""

    def payload(self, job_key: int) -> bytes:
        """The large data of a job. Raises RowDamaged where it is not what was written."""

    def failure(self, place_key: int) -> FailureRow | None:
        """How the last failed hand-out of a place ended."""

    def results(self, realm_key: int, after_key: int, limit: int) -> list[ResultRow]:
        """The realm's oldest results whose keys are above `after_key`, in the order of their keys."""

    def reply(self, key: int) -> bytes | None:
        """The body of a reply."""

    def rows_of(self, table: str, realm_key: int, after_key: int, limit: int) -> tuple[list[Kept], int | None]:
        """The realm's rows of a table of `KEPT` among the next whose keys are above `after_key`, in their order.

        It looks at up to `limit` rows, of whichever realms, and at no more once these have `LOOK_BYTES_MAX` bytes. The
        second value is the key after which to go on, or None where that was all.
        """

    def blocks(self) -> list[int]:
        """The numbers of the blocks of keys in which there are rows: see `Renumbering`."""

    def close(self) -> None:
        """Let go of the file."""
