"""The store on one SQLite file. Opened by the shard's process alone, after it was started, with an exclusive lock.

Rows stand under integer keys that only grow, so that a batch is written to neighbouring pages. What is looked up
by name is looked up in memory, so there is no other index, but one for results, which memory does not hold: to page
through those of a realm and to count them. It costs only who keeps results. `synchronous=FULL` with WAL syncs the log
before a commit returns; the log is moved into the database every `WAL_PAGES_MAX` pages, so neither it nor a start grows
with the age of the server. Read it with the `sqlite3` shell: while no server holds it.

Before it is opened its log is scanned (`wal`), and then it must hold what its witness tells (`witness`): of a log that
was damaged or cut SQLite would read a part, and say nothing. Every row carries a checksum (`checksums`), which is
compared as often as the row is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from restq.data_dir import lock_path, sync_directory, take_lock
from restq.errors import RowDamaged, StorageFull
from restq.shards import removal, wal
from restq.shards.changes import Changes, FailureRow, MovedRow, QueueRow, RealmRow, ResultRow, Stored, TagRow
from restq.shards.checksums import with_checksums
from restq.shards.renumbering import BLOCK_BITS
from restq.shards.reserve import FULL, WAL_PAGES_MAX, Reserve
from restq.shards.schema import APPLICATION_ID, FORMAT, differs, migrate
from restq.shards.sound_rows import UNREADABLE, SoundRows, damaged
from restq.shards.store import KEPT, LOOK_BYTES_MAX, Kept, Loaded, Mark, Room, StoreFailed, StoreRefused
from restq.shards.witness import Witness

LOCK_WAIT_SECONDS = 10.0  # a shard that was killed may take a moment to let go of its file
PIECE_BYTES = 1 << 20  # of the log, at a time
BACK_UP_PAGES = 256  # copied at a time, for which commits wait: about a millisecond
BACK_UP_PAUSE_SECONDS = 0.005
CACHE_KIB = 16384  # what is written stands side by side: a larger cache made nothing faster

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
    "moved": 3,
}
_PUT = {
    table: f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * (count + 1))})"
    for table, count in _COLUMN_COUNTS.items()
}
_DROP = {table: f"DELETE FROM {table} WHERE {'name' if table == 'moved' else 'key'} = ?" for table in _COLUMN_COUNTS}

log = logging.getLogger("restq.store")


class SqliteStore:
    """One shard's truth. Raises StoreRefused where the file can't be had, or is of a newer restq."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reserve: Reserve | None = None
        self._witness = Witness(path)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, _take(path))
            _check_log(path)
            _write_log_again(path)
            try:
                self._database = sqlite3.connect(
                    path, timeout=LOCK_WAIT_SECONDS, isolation_level=None, check_same_thread=False
                )  # `back_up` has a thread
                stack.callback(self._database.close)
                self._rows = SoundRows(self._database, path)
                self._open()
            except UNREADABLE as error:
                raise StoreRefused(_refusal(path, error)) from error
            except RowDamaged as found:
                raise StoreRefused(found.message) from found
            stack.callback(self._witness.close)
            self._closing = stack.pop_all()

    def _open(self) -> None:
        execute = self._database.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        found = self._number("PRAGMA user_version")
        application_id = self._number("PRAGMA application_id")
        if application_id not in (0, APPLICATION_ID) or (application_id == 0 and self._number("PRAGMA schema_version")):
            raise StoreRefused(f"{self.path} is a database, but not one of restq's")
        if not 0 <= found <= FORMAT:
            raise StoreRefused(
                f"{self.path} is of format {found}, made by a newer restq; this one knows up to {FORMAT}"
            )
        (mode,) = execute("PRAGMA journal_mode = WAL").fetchone() or ("nothing",)  # as where the disk fails
        if mode != "wal":
            raise StoreRefused(f"{self.path} can't be opened: SQLite makes no log for it, but keeps to {mode!r}")
        execute("PRAGMA synchronous = FULL")
        execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES_MAX}")
        execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        execute("BEGIN EXCLUSIVE")  # takes the lock now, and for good
        if found < FORMAT:
            migrate(self._database, found)
            self._rows.seal()
        execute("COMMIT")
        self._check_last()

    def _check_last(self) -> None:
        """Whether this is the file that was written last, up to the last commit."""
        if table := differs(self._database):
            raise StoreRefused(damaged(self.path, f"its table {table!r} is not as restq made it"))
        group, claimed = self._rows.mark().group, self._witness.claims()
        if group < claimed:
            raise StoreRefused(
                f"{self.path} ends with commit {group}, but commit {claimed} was done: it was damaged, cut short or"
                f" replaced. Put back a copy of the data directory; or, to go on with what this file holds, remove"
                f" {self._witness.path.name}"
            )

    def _number(self, query: str) -> int:
        return int(self._database.execute(query).fetchone()[0])

    def load(self) -> Loaded:
        """All that was committed, but for what the other methods read. Raises StoreRefused where it can't be read."""
        try:
            mark = self._rows.mark()
            realms = [RealmRow(*row) for row in self._rows.of("realms")]
            queues = [QueueRow(*row) for row in self._rows.of("queues")]
            tags = [TagRow(*row) for row in self._rows.of("tags")]
            replies = list(self._rows.reply_notes())
            result_counts = dict(self._database.execute("SELECT realm, count(*) FROM results GROUP BY realm"))
            moved = [MovedRow(*row) for row in self._rows.of("moved", "ORDER BY name")]
        except UNREADABLE as error:
            raise StoreRefused(_refusal(self.path, error)) from error
        except RowDamaged as found:
            raise StoreRefused(found.message) from found
        return Loaded(mark, realms, queues, tags, replies, result_counts, moved, self._places())

    def places_of(self, realm_keys: list[int]) -> Iterator[Stored]:
        """The places of these realms, as `load` gives all. Reads the whole file."""
        # Chosen here and not by SQLite: a row that says to be of another realm, wrongly, is to be found, not left out.
        chosen = set(realm_keys)
        return (row for row in self._places() if row[10] in chosen)

    def kept_of(self, table: str, realm_keys: list[int]) -> Iterator[Kept]:
        """The rows of a table of `KEPT` that belong to these realms, in the order of their keys. Reads all of it."""
        chosen, make = set(realm_keys), KEPT[table]
        try:
            for row in self._rows.of(table):
                if row[1] in chosen:
                    yield make(*row)
        except UNREADABLE as error:
            raise StoreRefused(_refusal(self.path, error)) from error
        except RowDamaged as found:
            raise StoreRefused(found.message) from found

    def remove_realms(self, realm_keys: list[int]) -> None:
        """Remove all rows of these realms, in one transaction. Reads the whole file."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            removal.remove_realms(self._database, realm_keys)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def _places(self) -> Iterator[Stored]:
        """Streams, as plain tuples: at a start a million rows pass here, and naming their fields costs a second."""
        try:
            yield from self._rows.places()
        except UNREADABLE as error:
            raise StoreRefused(_refusal(self.path, error)) from error
        except RowDamaged as found:
            raise StoreRefused(found.message) from found

    def keep_reserve(self, shard_count: int) -> None:
        """From now on keep room in reserve, beside so many shards on this disk. Without, a full disk is just full."""
        self._reserve = Reserve(self._database, self.path, shard_count)

    def room(self) -> Room:
        """How much room there is now; a group that needs more is refused, from here on."""
        try:
            return Room.ENOUGH if self._reserve is None else self._reserve.room()
        except (sqlite3.Error, OSError) as error:
            raise StoreFailed(f"{self.path}: {error}") from error

    def growable(self) -> float:
        """By how many bytes the data may grow at this moment."""
        return math.inf if self._reserve is None else self._reserve.growable()

    async def commit(self, changes: Changes, mark: Mark) -> None:
        """Keep the group: one transaction, synced. See `Store.commit` for what it raises."""
        is_first = True
        while True:
            try:
                self._commit(changes, mark)
                self._witness.note(mark.group)
                return
            except TypeError as error:  # what is no value of a row; SQLite would say so in its own words
                raise StoreFailed(f"{self.path}: {error}") from error
            except sqlite3.Error as error:
                self._undo(error)
            if not self._make_room(is_first):
                raise StorageFull(FULL)
            is_first = False

    def _make_room(self, is_first: bool) -> bool:
        try:
            return self._reserve is not None and self._reserve.make_room(is_first)
        except (sqlite3.Error, OSError) as error:
            raise StoreFailed(f"{self.path}: {error}") from error

    def _commit(self, changes: Changes, mark: Mark) -> None:
        database, reserve = self._database, self._reserve
        database.execute("BEGIN IMMEDIATE")
        if reserve is not None:
            reserve.begin()
        for table in Changes.__slots__:
            rows: dict[Any, Any] = getattr(changes, table)
            if not rows:
                continue
            gone = [(key,) for key, row in rows.items() if row is None]
            if table == "payloads":  # whose row is a key and one value
                kept: Iterable[Any] = [(key, row) for key, row in rows.items() if row is not None]
            else:
                kept = [row for row in rows.values() if row is not None] if gone else rows.values()
            if gone:
                database.executemany(_DROP[table], gone)
            database.executemany(_PUT[table], with_checksums(table, kept))
        self._rows.put_mark(mark)
        if reserve is not None and not reserve.is_left():
            database.execute("ROLLBACK")
            raise StorageFull(FULL)
        database.execute("COMMIT")
        if reserve is not None:
            reserve.committed()

    def _give_up(self, error: sqlite3.Error) -> NoReturn:
        """Undo the transaction where that is certain to work. After a failed sync it is not: raise StoreFailed."""
        self._undo(error)
        raise StorageFull(FULL) from error

    def _undo(self, error: sqlite3.Error) -> None:
        """Undo the transaction, in which there was no room; raises StoreFailed where it was anything else."""
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
            raise StoreFailed(f"{self.path}: {error}") from error
        try:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except sqlite3.Error as second:
            raise StoreFailed(f"{self.path}: {second}") from error

    def payload(self, job_key: int) -> bytes:
        """The large data of a job. Raises RowDamaged where it is not what was written, or is not there."""
        with self._serving():
            return self._rows.payload(job_key)

    def failure(self, place_key: int) -> FailureRow | None:
        """How the last failed hand-out of a place ended."""
        rows = self._read("failures", "WHERE key = ?", place_key)
        return FailureRow(*rows[0]) if rows else None

    def results(self, realm_key: int, after_key: int, limit: int) -> list[ResultRow]:
        """The realm's oldest results whose keys are above `after_key`, in the order of their keys."""
        which = "WHERE realm = ? AND key > ? ORDER BY key LIMIT ?"
        return [ResultRow(*row) for row in self._read("results", which, realm_key, after_key, limit)]

    def reply(self, key: int) -> bytes | None:
        """The body of a reply."""
        rows = self._read("replies", "WHERE key = ?", key)
        return rows[0][5] if rows else None

    def rows_of(self, table: str, realm_key: int, after_key: int, limit: int) -> tuple[list[Kept], int | None]:
        """See `Store.rows_of`."""
        which, values = "WHERE key > ? ORDER BY key", [after_key]
        if table == "results":  # by its index, which was compared with the rows at the start
            which, values = "WHERE realm = ? AND key > ? ORDER BY key", [realm_key, after_key]
        found: list[Kept] = []
        last, size = after_key, 0
        with self._serving():
            for count, row in enumerate(self._rows.of(table, which, tuple(values))):
                if count >= limit or size >= LOOK_BYTES_MAX:
                    return found, last
                last = row[0]
                size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
                if row[1] == realm_key:
                    found.append(KEPT[table](*row))
        return found, None

    def blocks(self) -> list[int]:
        """The numbers of the blocks of keys in which there are rows: see `Renumbering`."""
        found: set[int] = set()
        with self._serving():
            for table in _COLUMN_COUNTS.keys() - {"moved"}:
                after = 0
                while (
                    row := self._database.execute(f"SELECT min(key) FROM {table} WHERE key >= ?", (after,)).fetchone()
                ) != (None,):
                    found.add(row[0] >> BLOCK_BITS)
                    after = (row[0] >> BLOCK_BITS) + 1 << BLOCK_BITS
        return sorted(found)

    def _read(self, table: str, which: str, *values: int | str) -> list[list[Any]]:
        with self._serving():
            return list(self._rows.of(table, which, values))

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        """What is read while the shard serves: a row that is damaged is told, and the others are served on."""
        try:
            yield
        except UNREADABLE as error:
            raise StoreFailed(f"{self.path}: {error}") from error
        except RowDamaged as found:
            log.error("%s", found)
            raise

    async def back_up(self, path: Path, is_over: Callable[[], bool] = lambda: False) -> None:
        """Copy all that was committed when this ends to a new file, synced. Raises StoreRefused.

        Commits go on meanwhile: the copying thread holds the file for some pages at a time, and what they change
        after it was copied is copied again. Once `is_over` the copy is given up.
        """
        await asyncio.to_thread(self._back_up, path, is_over)

    def _back_up(self, path: Path, is_over: Callable[[], bool]) -> None:
        def go_on(status: int, remaining: int, total: int) -> None:
            if is_over():
                raise StoreRefused("the shard ends")

        try:
            with contextlib.closing(sqlite3.connect(path)) as copy:
                self._database.backup(copy, pages=BACK_UP_PAGES, progress=go_on, sleep=BACK_UP_PAUSE_SECONDS)
        except sqlite3.Error as error:
            raise StoreRefused(f"{path} can't be written: {error}") from error

    def close(self) -> None:
        """Move the log into the database and let go of the file."""
        self._closing.close()


def _take(path: Path) -> int:
    """Hold the lock of a database, before anything of it is read: SQLite takes its own only once it has begun to."""
    try:
        return take_lock(lock_path(path), LOCK_WAIT_SECONDS)
    except BlockingIOError:
        raise StoreRefused(f"{path} is held by another process") from None
    except OSError as error:
        raise StoreRefused(f"{path} can't be read: its lock can't be opened: {error.strerror}") from error


def _check_log(path: Path) -> None:
    """Raise StoreRefused where the log is damaged, before SQLite takes from it what it can."""
    log_path = Path(f"{path}-wal")
    try:
        found = wal.scan(log_path)
        is_empty = not (path.exists() and path.stat().st_size)
    except OSError as error:
        raise StoreRefused(f"{path} can't be read: its log can't be: {error.strerror}") from error
    if is_empty and found.frames:  # SQLite would remove it
        raise StoreRefused(
            f"{path} is not there, or is empty, but its log is. Put it back, or a copy of the data directory; or, to go"
            f" on without what was in it, remove {log_path.name}"
        )
    if found.damage:
        raise StoreRefused(
            f"{log_path} is damaged: {found.damage}. Put back a copy of the data directory; or, to go on without what"
            f" was committed from there on, cut it there (truncate --size={found.good_bytes} {log_path.name})"
            f" and remove {Witness(path).path.name}"
        )


def _write_log_again(path: Path) -> None:
    """Have on the disk what is in the log, before SQLite reads it: of some of it only the kernel may know.

    A process that was killed within a commit had not synced it. One whose sync failed left pages that the kernel takes
    for written, and no later sync writes them: the commits after them would hang on a gap, and be lost at a power cut.
    And were they moved into the database first, that would be ahead of its log.
    """
    try:
        with contextlib.suppress(FileNotFoundError), open(f"{path}-wal", "r+b", buffering=0) as log:
            for offset in range(0, os.fstat(log.fileno()).st_size, PIECE_BYTES):
                os.pwrite(log.fileno(), os.pread(log.fileno(), PIECE_BYTES, offset), offset)
            os.fsync(log.fileno())
        sync_directory(path.parent)
    except OSError as error:
        raise StoreRefused(f"{path} can't be read: its log can't be written: {error.strerror}") from error


def _refusal(path: Path, error: sqlite3.Error | UnicodeDecodeError) -> str:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
        return f"{path} is held by another process"
    return f"{path} can't be read: {error}"
