"""What a turn changes, as rows: the language between realms and the store.

Each record is small and self-contained, "this row is now so" or "this row is gone", so that the same
records applied in order give the same state anywhere. Within a group the last word on a key counts, and
the groups themselves are ordered. Rows hold plain values, in the order of the columns of the tables.

To change the format: give the row a field here, the table a column in the store, and raise the store's
format number with a migration beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from restq.names import QueueId

BATCH = "batch"
SHARD_BITS = 10  # of the number of a shard: `webapp.shards` is 1,024 at most


class Task(NamedTuple):
    """What holds a realm for long: the kind of a sweep, "move", "arrive" or BATCH.

    `target` is a queue, a tag, a shard, the number of a pull, or the key of the payload that is the body of a batch.
    `details` of a move is whether the realm was pinned before it.
    `once` is the idempotency key and the digest of the request that began it, if it came with one.
    """

    kind: str
    target: QueueId | None = None
    details: tuple[QueueId, ...] = ()
    once: tuple[str, ...] = ()

    def text(self) -> str:
        """The task as a row carries it."""
        return json.dumps(self)

    @classmethod
    def read(cls, text: str | None) -> Task | None:
        """The task of a row."""
        if text is None:
            return None
        kind, target, *more = json.loads(text)
        return cls(kind, target, *map(tuple, more))


def payload_keys(batch: Task) -> list[int]:
    """The keys of the payloads of a batch: its body, and what each slice replied that is done."""
    first = int(batch.target or 0)
    return list(range(first, first + 1 + int(batch.details[2])))


class RealmRow(NamedTuple):
    """A realm. Of all of its name in all files, notes (`MovedRow`) too, the one with the highest `epoch` counts."""

    key: int
    name: str
    default_lease_time: float
    epoch: int  # how often the name came to another shard; a realm that is made anew goes on from there
    pinned: int
    task: str | None  # JSON of the Task that holds the realm, to be resumed after a restart
    settings: str = "{}"  # JSON of what else was configured
    first_keys: int | str = 0  # see `FirstKeys`; column `shift`
    born: int = 0  # see `Keys.birth`: lease ids of an earlier realm of this name are void, and no other realm has them


class QueueRow(NamedTuple):
    """A queue of a realm."""

    key: int
    realm: int
    queue_id: int | str
    lease_time: float
    settings: str = "{}"  # JSON of what else was configured
    next_at: float = 0.0  # its rate allows the next hand-out then


class TagRow(NamedTuple):
    """What was configured for a tag of a realm, whether a job carries it or not."""

    key: int
    realm: int
    tag: str
    settings: str
    next_at: float  # its rate allows the next hand-out then


class FailureRow(NamedTuple):
    """How the last failed hand-out of a place ended. Read when somebody looks, and not held in memory."""

    key: int  # the place's
    realm: int
    error: str
    exit_code: int | None
    at: float


class ResultRow(NamedTuple):
    """What is kept of a job that was acked. Not held in memory."""

    key: int
    realm: int
    job_id: str
    at: float
    text: str  # JSON, as a list shows it


class ReplyRow(NamedTuple):
    """The reply to a request that came with an idempotency key. Memory holds all but the body."""

    key: int
    realm: int  # see `Replies`
    name: str  # the idempotency key
    digest: str  # of path and body
    at: float
    body: bytes


class MovedRow(NamedTuple):
    """Where a realm of this name is, or would come to be, as far as the shard knows. It outlives the realm."""

    name: str
    shard: int
    epoch: int  # no realm of this name has a lower one any more: what is left of such a one does not count


# The rows that come in millions are plain tuples of numbers and text, never None: SQLite binds those twice as fast.

# A job: its key, its realm's key, job id, tags as a JSON array of strings, sorted, data as JSON text as it came, or ""
# if there is none. Where the data is large, its digest and its size in bytes stand here (else "" and 0), and the text
# in a payload. At last its terms as JSON, "" if there are none.
JobRow = tuple[int, int, str, str, str, str, int, str]

# A job's place in one queue: its key, the job's key, the queue's key, `at` as in `Place`, then its history: instant and
# number of its last lease, 0.0 and 0 if none is in force, nacks, expiries, mark, worker.
PlaceRow = tuple[int, int, int, float, float, int, int, int, int, str]


# A place together with its job, as a load reads them: the PlaceRow without the job's key, then the JobRow.
Stored = tuple[int, int, float, float, int, int, int, int, str, int, int, str, str, str, str, int, str]


def renumbered(row: Stored, new: Callable[[int], int], realm_key: int) -> Stored:
    """The row as it stands in another file, where `new` gives its keys."""
    key, queue_key, *history = row[:9]
    return (new(key), new(queue_key), *history, new(row[9]), realm_key, *row[11:])  # type: ignore[return-value]


class Changes:
    """The changes of one group: by table, key to row, or to None where the row is gone."""

    __slots__ = ("failures", "jobs", "moved", "payloads", "places", "queues", "realms", "replies", "results", "tags")

    def __init__(self) -> None:
        self.realms: dict[int, RealmRow | None] = {}
        self.queues: dict[int, QueueRow | None] = {}
        self.tags: dict[int, TagRow | None] = {}
        self.jobs: dict[int, JobRow | None] = {}
        self.places: dict[int, PlaceRow | None] = {}
        self.payloads: dict[int, bytes | None] = {}
        self.failures: dict[int, FailureRow | None] = {}
        self.results: dict[int, ResultRow | None] = {}
        self.replies: dict[int, ReplyRow | None] = {}
        self.moved: dict[str, MovedRow | None] = {}

    def __len__(self) -> int:
        """How many rows change."""
        many = len(self.jobs) + len(self.places) + len(self.payloads) + len(self.failures) + len(self.results)
        few = len(self.realms) + len(self.queues) + len(self.tags) + len(self.replies) + len(self.moved)
        return many + few

    def put(self, row: Stored, payload: bytes | None) -> None:
        """Note a place, its job and the job's large data."""
        job_key = row[9]
        self.places[row[0]] = (row[0], job_key, *row[1:9])
        self.jobs[job_key] = row[9:]
        if payload is not None:
            self.payloads[job_key] = payload

    def take(self) -> Changes:
        """Hand over what is gathered, and be empty."""
        taken = Changes()
        for table in self.__slots__:
            if rows := getattr(self, table):
                setattr(taken, table, rows)
                setattr(self, table, {})
        return taken


class Keys:
    """The shard's one counter, for keys and for the numbers of pulls: it only grows, restarts included."""

    __slots__ = ("_shard", "next_key")

    def __init__(self, next_key: int = 1, shard: int = 0) -> None:
        self.next_key = next_key
        self._shard = shard

    def take(self) -> int:
        """A number that was never given out."""
        key = self.next_key
        self.next_key = key + 1
        return key

    def birth(self, now: float) -> int:
        """What tells a realm that comes to be now from those of other shards, whose counters give the same numbers."""
        return int(now * 1000) << SHARD_BITS | self._shard
