"""What a turn changes, as rows: the language between realms and the store.

Each record is small and self-contained, "this row is now so" or "this row is gone", so that the same
records applied in order give the same state anywhere. Within a group the last word on a key counts, and
the groups themselves are ordered. Rows hold plain values, in the order of the columns of the tables.

To change the format: give the row a field here, the table a column in the store, and raise the store's
format number with a migration beside it.
"""

from __future__ import annotations

from typing import NamedTuple


class RealmRow(NamedTuple):
    """A realm. Of two realms of one name, in two files, the one with the higher `epoch` counts."""

    key: int
    name: str
    default_lease_time: float
    epoch: int
    pinned: int
    task: str | None  # JSON of the long task that holds the realm, to be resumed after a restart


class QueueRow(NamedTuple):
    """A queue of a realm."""

    key: int
    realm: int
    queue_id: int | str
    lease_time: float


class JobRow(NamedTuple):
    """A job. `data` is JSON text as it came; where it is large, `digest` stands here and the text in a payload."""

    key: int
    realm: int
    job_id: str
    tags: str  # JSON array of strings, sorted
    data: bytes | None
    digest: bytes | None
    size: int  # bytes of the payload; 0 where there is none


class PlaceRow(NamedTuple):
    """A job's place in one queue. Instants in seconds since the epoch; `lease` is 0 when it never was leased."""

    key: int
    job: int
    queue: int
    at: float
    leased_at: float
    lease: int


class Changes:
    """The changes of one group: by table, key to row, or to None where the row is gone."""

    __slots__ = ("jobs", "moved", "payloads", "places", "queues", "realms")

    def __init__(self) -> None:
        self.realms: dict[int, RealmRow | None] = {}
        self.queues: dict[int, QueueRow | None] = {}
        self.jobs: dict[int, JobRow | None] = {}
        self.places: dict[int, PlaceRow | None] = {}
        self.payloads: dict[int, bytes | None] = {}
        self.moved: dict[str, int | None] = {}  # realm to the shard it lives in, where that is not its home

    def __len__(self) -> int:
        """How many rows change."""
        return sum(len(getattr(self, table)) for table in self.__slots__)

    def take(self) -> Changes:
        """Hand over what is gathered, and be empty."""
        taken = Changes()
        for table in self.__slots__:
            setattr(taken, table, getattr(self, table))
            setattr(self, table, {})
        return taken


class Keys:
    """The shard's one counter, for keys and for the numbers of pulls: it only grows, restarts included."""

    __slots__ = ("next_key",)

    def __init__(self, next_key: int = 1) -> None:
        self.next_key = next_key

    def take(self) -> int:
        """A number that was never given out."""
        key = self.next_key
        self.next_key = key + 1
        return key
