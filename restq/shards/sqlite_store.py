"""The store on one SQLite file. Opened by the shard's process alone, after it was started, with an exclusive lock.

Rows stand under integer keys that only grow, so that a batch is written to neighbouring pages. What is looked up
by name is looked up in memory, so there is no other index, but one for results, which memory does not hold: to page
through those of a realm and to count them. It costs only who keeps results. `synchronous=FULL` with WAL syncs the log
before a commit returns; the log is moved into the database every `WAL_PAGES_MAX` pages, so neither it nor a start grows
with the age of the server. Read it with the `sqlite3` shell: while no server holds it.

To change the format: raise `FORMAT`, and give `_MIGRATIONS` the statements that lead from the one before. A column
that is added at the end with a constant as its default is there at once, however many the rows: none is written.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from restq.errors import StorageFull
from restq.shards.changes import Changes, FailureRow, QueueRow, RealmRow, ResultRow, Stored, TagRow
from restq.shards.store import KEPT, Kept, Loaded, Mark, StoreFailed, StoreRefused

FORMAT = 2
APPLICATION_ID = 0x52535451  # "RSTQ": `file` and we tell it from other SQLite files
LOCK_WAIT_SECONDS = 10.0  # a shard that was killed may take a moment to let go of its file
WAL_PAGES_MAX = 4096
CACHE_KIB = 16384  # what is written stands side by side: a larger cache made nothing faster

_MIGRATIONS: dict[int, str] = {
    1: """
    CREATE TABLE mark (id INTEGER PRIMARY KEY CHECK (id = 1), last_group INTEGER, next_key INTEGER, clock REAL);
    INSERT INTO mark VALUES (1, 0, 1, 0.0);
    CREATE TABLE realms (key INTEGER PRIMARY KEY, name TEXT NOT NULL, default_lease_time REAL NOT NULL,
        epoch INTEGER NOT NULL, pinned INTEGER NOT NULL, task TEXT);
    CREATE TABLE queues (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, queue_id NOT NULL, lease_time REAL NOT NULL);
    CREATE TABLE jobs (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, job_id TEXT NOT NULL, tags TEXT NOT NULL,
        data TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL);
    CREATE TABLE places (key INTEGER PRIMARY KEY, job INTEGER NOT NULL, queue INTEGER NOT NULL, at REAL NOT NULL,
        leased_at REAL NOT NULL, lease INTEGER NOT NULL);
    CREATE TABLE payloads (key INTEGER PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE moved (name TEXT PRIMARY KEY, shard INTEGER NOT NULL) WITHOUT ROWID;
    """,
    2: """
    ALTER TABLE realms ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE realms ADD COLUMN shift INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE queues ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE realms ADD COLUMN born INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE queues ADD COLUMN next_at REAL NOT NULL DEFAULT 0.0;
    ALTER TABLE jobs ADD COLUMN terms TEXT NOT NULL DEFAULT '';
    ALTER TABLE places ADD COLUMN nacks INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE places ADD COLUMN expiries INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE places ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE places ADD COLUMN worker TEXT NOT NULL DEFAULT '';
    CREATE TABLE tags (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, tag TEXT NOT NULL, settings TEXT NOT NULL,
        next_at REAL NOT NULL);
    CREATE TABLE failures (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, error TEXT NOT NULL, exit_code INTEGER,
        at REAL NOT NULL);
    CREATE TABLE results (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, job_id TEXT NOT NULL, at REAL NOT NULL,
        text TEXT NOT NULL);
    CREATE INDEX results_by_realm ON results (realm);
    CREATE TABLE replies (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL,
        at REAL NOT NULL, body BLOB NOT NULL);
    """,
}

_COLUMN_COUNTS = {
    "realms": 9,
    "queues": 6,
    "tags": 5,
    "jobs": 8,
    "places": 10,
    "payloads": 2,
    "failures": 5,
    "results": 5,
    "replies": 6,
    "moved": 2,
}
_PAIRS = ("payloads", "moved")  # tables whose row is a key and one value
_PUT = {
    table: f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * count)})" for table, count in _COLUMN_COUNTS.items()
}
_DROP = {table: f"DELETE FROM {table} WHERE {'name' if table == 'moved' else 'key'} = ?" for table in _COLUMN_COUNTS}
_PLACE_COLUMNS = ", ".join(
    f"places.{column}" for column in "key queue at leased_at lease nacks expiries mark worker".split()
)
_LISTED = "(SELECT value FROM json_each(?))"  # of a JSON array: however long, it is one parameter


class SqliteStore:
    """One shard's truth. Raises StoreRefused where the file can't be had, or is of a newer restq."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._database = sqlite3.connect(path, timeout=LOCK_WAIT_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreRefused(_refusal(path, error)) from error
        try:
            self._open()
        except sqlite3.Error as error:
            self._database.close()
            raise StoreRefused(_refusal(path, error)) from error
        except StoreRefused:
            self._database.close()
            raise

    def _open(self) -> None:
        execute = self._database.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        found = self._number("PRAGMA user_version")
        application_id = self._number("PRAGMA application_id")
        if application_id not in (0, APPLICATION_ID) or (application_id == 0 and self._number("PRAGMA schema_version")):
            raise StoreRefused(f"{self.path} is a database, but not one of restq's")
        if found > FORMAT:
            raise StoreRefused(
                f"{self.path} is of format {found}, made by a newer restq; this one knows up to {FORMAT}"
            )
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES_MAX}")
        execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        execute("BEGIN EXCLUSIVE")  # takes the lock now, and for good
        for version in range(found + 1, FORMAT + 1):
            for statement in _MIGRATIONS[version].split(";"):
                execute(statement)
        if found < FORMAT:
            execute(f"PRAGMA application_id = {APPLICATION_ID}")
            execute(f"PRAGMA user_version = {FORMAT}")
        execute("COMMIT")

    def _number(self, query: str) -> int:
        return int(self._database.execute(query).fetchone()[0])

    def load(self) -> Loaded:
        """All that was committed, but for what the other methods read. Raises StoreRefused where it can't be read."""
        select = self._database.execute
        try:
            mark = Mark(*select("SELECT last_group, next_key, clock FROM mark").fetchone())
            realms = [RealmRow(*row) for row in select("SELECT * FROM realms ORDER BY key")]
            queues = [QueueRow(*row) for row in select("SELECT * FROM queues ORDER BY key")]
            tags = [TagRow(*row) for row in select("SELECT * FROM tags ORDER BY key")]
            # Of a blob, SQLite knows the length without reading it.
            replies = select("SELECT key, realm, name, digest, at, length(body) FROM replies ORDER BY key").fetchall()
            result_counts = dict(select("SELECT realm, count(*) FROM results GROUP BY realm"))
            moved = dict(select("SELECT name, shard FROM moved"))
        except sqlite3.Error as error:
            raise StoreRefused(_refusal(self.path, error)) from error
        return Loaded(mark, realms, queues, tags, replies, result_counts, moved, self._places())

    def places_of(self, realm_keys: list[int]) -> Iterator[Stored]:
        """The places of these realms, as `load` gives all. Reads the whole file."""
        return self._places(f"WHERE jobs.realm IN {_LISTED}", (json.dumps(realm_keys),))

    def kept_of(self, table: str, realm_keys: list[int]) -> Iterator[Kept]:
        """The rows of a table of `KEPT` that belong to these realms, in the order of their keys. Reads all of it."""
        # Not by the index: the rows would then have to be sorted, all of them before the first one is seen.
        select = f"SELECT * FROM {table} NOT INDEXED WHERE realm IN {_LISTED} ORDER BY key"
        make = KEPT[table]
        try:
            for row in self._database.execute(select, (json.dumps(realm_keys),)):
                yield make(*row)
        except sqlite3.Error as error:
            raise StoreRefused(_refusal(self.path, error)) from error

    def remove_realms(self, realm_keys: list[int]) -> None:
        """Remove all rows of these realms, in one transaction. Reads the whole file."""
        keys = (json.dumps(realm_keys),)
        jobs = f"(SELECT key FROM jobs WHERE realm IN {_LISTED})"
        execute = self._database.execute
        try:
            execute("BEGIN IMMEDIATE")
            execute(f"DELETE FROM places WHERE job IN {jobs}", keys)
            execute(f"DELETE FROM payloads WHERE key IN {jobs}", keys)
            for table in ("jobs", "queues", *KEPT):
                execute(f"DELETE FROM {table} WHERE realm IN {_LISTED}", keys)
            execute(f"DELETE FROM realms WHERE key IN {_LISTED}", keys)
            execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def _places(self, where: str = "", values: tuple[str, ...] = ()) -> Iterator[Stored]:
        """Streams, as plain tuples: at a start a million rows pass here, and naming their fields costs a second."""
        select = (
            f"SELECT {_PLACE_COLUMNS}, jobs.* FROM places"
            f" JOIN jobs ON jobs.key = places.job {where} ORDER BY places.key"
        )
        try:
            rows = self._database.execute(select, values)
            count = 0
            while batch := rows.fetchmany(1000):
                count += len(batch)
                yield from batch
            if not where and count != self._number("SELECT count(*) FROM places"):
                raise StoreRefused(f"{self.path} is damaged: it holds places of jobs that it does not hold")
        except sqlite3.Error as error:
            raise StoreRefused(_refusal(self.path, error)) from error

    async def commit(self, changes: Changes, mark: Mark) -> None:
        """Keep the group: one transaction, synced. See `Store.commit` for what it raises."""
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            for table in Changes.__slots__:
                rows: dict[Any, Any] = getattr(changes, table)
                if not rows:
                    continue
                gone = [(key,) for key, row in rows.items() if row is None]
                if table in _PAIRS:
                    kept: Iterable[Any] = [(key, row) for key, row in rows.items() if row is not None]
                else:
                    kept = [row for row in rows.values() if row is not None] if gone else rows.values()
                if gone:
                    database.executemany(_DROP[table], gone)
                database.executemany(_PUT[table], kept)
            database.execute("UPDATE mark SET last_group = ?, next_key = ?, clock = ?", mark)
            database.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Undo the group where that is certain to work. After a failed sync it is not: raise StoreFailed."""
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
            raise StoreFailed(f"{self.path}: {error}") from error
        try:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except sqlite3.Error as second:
            raise StoreFailed(f"{self.path}: {second}") from error
        raise StorageFull("there is no room left on the disk: nothing was done") from error

    def payload(self, job_key: int) -> bytes:
        """The large data of a job."""
        rows = self._read("SELECT data FROM payloads WHERE key = ?", job_key)
        if not rows:
            raise StoreFailed(f"{self.path}: the data of job row {job_key} is missing")
        data: bytes = rows[0][0]
        return data

    def failure(self, place_key: int) -> FailureRow | None:
        """How the last failed hand-out of a place ended."""
        rows = self._read("SELECT * FROM failures WHERE key = ?", place_key)
        return FailureRow(*rows[0]) if rows else None

    def results(self, realm_key: int, after_key: int, limit: int) -> list[ResultRow]:
        """The realm's oldest results whose keys are above `after_key`, in the order of their keys."""
        select = "SELECT * FROM results WHERE realm = ? AND key > ? ORDER BY key LIMIT ?"
        return [ResultRow(*row) for row in self._read(select, realm_key, after_key, limit)]

    def reply(self, key: int) -> bytes | None:
        """The body of a reply."""
        rows = self._read("SELECT body FROM replies WHERE key = ?", key)
        return rows[0][0] if rows else None

    def rows_of(self, table: str, realm_key: int, after_key: int, limit: int) -> list[Kept]:
        """The realm's first rows of a table of `KEPT` whose keys are above `after_key`, in the order of their keys."""
        select = f"SELECT * FROM {table} WHERE realm = ? AND key > ? ORDER BY key LIMIT ?"
        make = KEPT[table]
        return [make(*row) for row in self._read(select, realm_key, after_key, limit)]

    def _read(self, select: str, *values: int | str) -> list[Any]:
        """What is asked while the shard serves. Raises StoreFailed."""
        try:
            return self._database.execute(select, values).fetchall()
        except sqlite3.Error as error:
            raise StoreFailed(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Move the log into the database and let go of the file."""
        self._database.close()


def _refusal(path: Path, error: sqlite3.Error) -> str:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
        return f"{path} is held by another process"
    return f"{path} can't be read: {error}"
