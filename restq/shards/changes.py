"""What a turn changes, as rows: the language between realms and the store.

Each record is small and self-contained, "this row is now so" or "this row is gone", so that the same
records applied in order give the same state anywhere. Within a group the last word on a key counts, and
the groups themselves are ordered. Rows hold plain values, in the order of the columns of the tables.

To change the format: give the row a field here, the table a column in the store, and raise the store's
format number with a migration beside it.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from restq.names import QueueId


class Task(NamedTuple):
    """What holds a realm for long: "clear_queue", "remove_tagged_jobs", "delete", "move" or "arrive"."""

    kind: str
    target: QueueId | None = None

    def text(self) -> str:
        """The task as a row carries it."""
        return json.dumps(self)

    @classmethod
    def read(cls, text: str | None) -> Task | None:
        """The task of a row."""
        return None if text is None else cls(*json.loads(text))


class RealmRow(NamedTuple):
    """A realm. Of two realms of one name, in two files, the one with the higher `epoch` counts."""

    key: int
    name: str
    default_lease_time: float
    epoch: int
    pinned: int
    task: str | None  # JSON of the Task that holds the realm, to be resumed after a restart


class QueueRow(NamedTuple):
    """A queue of a realm."""

    key: int
    realm: int
    queue_id: int | str
    lease_time: float


# The rows that come in millions are plain tuples of numbers and text, never None: SQLite binds those twice as fast.

# A job: its key, its realm's key, job id, tags as a JSON array of strings, sorted, data as JSON text as it came, or ""
# if there is none. Where the data is large, its digest and its size in bytes stand here (else "" and 0), and the text
# in a payload.
JobRow = tuple[int, int, str, str, str, str, int]

# A job's place in one queue: its key, the job's key, the queue's key, `at` as in `Place`, and instant and number of its
# last lease, 0.0 and 0 if there was none.
PlaceRow = tuple[int, int, int, float, float, int]


# A place together with its job, as a load reads them: the PlaceRow without the job's key, then the JobRow.
Stored = tuple[int, int, float, float, int, int, int, str, str, str, str, int]


def shifted(row: Stored, shift: int, realm_key: int) -> Stored:
    """The row as it stands in another file, whose keys are higher by `shift`."""
    key, queue_key, at, leased_at, lease, job_key = row[:6]
    return (key + shift, queue_key + shift, at, leased_at, lease, job_key + shift, realm_key, *row[7:])


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

    def put(self, row: Stored, payload: bytes | None) -> None:
        """Note a place, its job and the job's large data."""
        key, queue_key, at, leased_at, lease, job_key = row[:6]
        self.places[key] = (key, job_key, queue_key, at, leased_at, lease)
        self.jobs[job_key] = row[5:]
        if payload is not None:
            self.payloads[job_key] = payload

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
