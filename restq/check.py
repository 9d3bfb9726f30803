"""Looks at a data directory that no server uses: whether its files are what was written. Changes nothing in it.

A file whose log is not empty, or which is of an earlier format, is copied aside first, as to open it would be to change
it. What is found stands in sentences: `problems` are what restq would not have left there, `notes` are what the next
start puts in order by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from restq.data_dir import LOCK_NAME, shard_path, shards_missing, shards_present
from restq.errors import RestqError
from restq.shards import wal
from restq.shards.changes import BATCH, Changes, Task, payload_keys
from restq.shards.checksums import checksum, fits
from restq.shards.schema import APPLICATION_ID, FORMAT, differs, migrate
from restq.shards.witness import Witness

SHOWN_MAX = 10  # problems of one kind in one file that are told one by one

# What must not be there: a sentence, and how many and the first of it. Kept failures, results and replies may outlive
# their realm for a while.
_REFERENCES = {
    "queues of realms that are not there": "FROM queues WHERE realm NOT IN (SELECT key FROM realms)",
    "tags of realms that are not there": "FROM tags WHERE realm NOT IN (SELECT key FROM realms)",
    "jobs of realms that are not there": "FROM jobs WHERE realm NOT IN (SELECT key FROM realms)",
    "jobs that stand in no queue": "FROM jobs WHERE key NOT IN (SELECT job FROM places)",
    "jobs whose large data is not there": (
        "FROM jobs WHERE digest <> '' AND NOT EXISTS"
        " (SELECT 1 FROM payloads WHERE payloads.key = jobs.key AND length(payloads.data) = jobs.size)"
    ),
    "places of jobs that are not there": "FROM places WHERE job NOT IN (SELECT key FROM jobs)",
    "places in queues that are not there": "FROM places WHERE queue NOT IN (SELECT key FROM queues)",
    "places in queues of another realm": (
        "FROM (SELECT places.key FROM places JOIN jobs ON jobs.key = places.job JOIN queues ON"
        " queues.key = places.queue WHERE jobs.realm <> queues.realm)"
    ),
    "jobs whose tags can't be read": "FROM jobs WHERE NOT json_valid(tags)",
}


class CheckRefused(RestqError, OSError):
    """Nothing could be looked at."""

    code = "check_refused"


class ShardReport(NamedTuple):
    """What is in one file. `unchecked_count`: rows of an earlier format, which have no checksums."""

    file: str
    format: int
    last_commit: int
    log_frames: int
    counts: dict[str, int]
    unchecked_count: int


class Report(NamedTuple):
    """What was found in a data directory."""

    shards: list[ShardReport]
    problems: list[str]
    notes: list[str]


def check(data_dir: Path) -> Report:
    """Look at all files of a data directory. Raises CheckRefused where a server uses it, or there is nothing."""
    try:
        files = [shard_path(data_dir, shard) for shard in shards_present(data_dir)]
    except OSError as error:
        raise CheckRefused(f"{data_dir} can't be read: {error.strerror}") from None
    if not files:
        raise CheckRefused(f"there is no data of restq in {data_dir}")
    report = Report([], [], [])
    realms: dict[str, list[tuple[str, int, str]]] = {}
    with _lock(data_dir):
        for file in files:
            _File(file, report, realms).check()
        for path in shards_missing(data_dir):
            report.problems.append(f"{path.name}: it is not there, or is empty, but belongs to this directory")
        for path in sorted(data_dir.glob("shard-*.sqlite-wal")):
            if path.stat().st_size and path.with_name(path.name.removesuffix("-wal")) not in files:
                report.problems.append(f"{path.name}: its database is not there")
    for name, found in sorted(realms.items()):
        counting = [(epoch, file) for file, epoch, kind in found if kind != "arrive"]
        if len(found) > 1 and counting:
            report.notes.append(
                f"realm {name!r} is in {' and '.join(file for file, *_ in found)}: a move was interrupted, and the next"
                f" start goes on with the one in {max(counting)[1]}"
            )
    return report


@contextlib.contextmanager
def _lock(data_dir: Path) -> Iterator[None]:
    """Keep servers from starting meanwhile. Where none ever ran there is no lock, and none is made."""
    try:
        lock = os.open(data_dir / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise CheckRefused(f"{data_dir / LOCK_NAME} can't be read: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 200).decode(errors="replace").strip() or "a server"
            raise CheckRefused(
                f"{data_dir} is in use by {holder}: stop it, or check a copy that `restq backup` makes"
            ) from None
        yield
    finally:
        os.close(lock)


class _File:
    """One shard's file, its log and its witness."""

    def __init__(self, path: Path, report: Report, realms: dict[str, list[tuple[str, int, str]]]) -> None:
        self._path = path
        self._report = report
        self._realms = realms
        self._checked_from = 1
        self._unchecked_count = 0

    def _wrong(self, what: str) -> None:
        self._report.problems.append(f"{self._path.name}: {what}")

    def check(self) -> None:
        """Note all that is to be said about it."""
        try:
            log = wal.scan(Path(f"{self._path}-wal"))
            if log.damage:
                self._wrong(f"its log is damaged: {log.damage}; {log.committed} frames before it are whole")
            with contextlib.ExitStack() as stack:
                database = stack.enter_context(self._opened(stack))
                self._check_database(database, log)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._wrong(f"it can't be read: {' '.join(str(error).split())}")
        except OSError as error:
            self._wrong(f"it can't be read: {error.strerror}")

    def _opened(self, stack: contextlib.ExitStack) -> contextlib.closing[sqlite3.Connection]:
        """The database, as it is or as a copy that may be changed."""
        log_path = Path(f"{self._path}-wal")
        has_log = log_path.exists() and log_path.stat().st_size > 0
        if not has_log:
            database = _connect(self._path, "immutable=1")
            if _number(database, "PRAGMA user_version") >= FORMAT:
                return contextlib.closing(database)
            database.close()
        aside = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="restq-check-")))
        shutil.copyfile(self._path, aside / self._path.name)
        if has_log:
            shutil.copyfile(log_path, aside / log_path.name)
        return contextlib.closing(_connect(aside / self._path.name, "mode=rw"))

    def _check_database(self, database: sqlite3.Connection, log: wal.Wal) -> None:
        found = _number(database, "PRAGMA user_version")
        if _number(database, "PRAGMA application_id") != APPLICATION_ID:
            self._wrong("it is not a database of restq, or it is empty")
            return
        if not 0 <= found <= FORMAT:
            self._wrong(f"it is of format {found}, made by a newer restq; this one knows up to {FORMAT}")
            return
        if found < FORMAT:
            self._report.notes.append(
                f"{self._path.name}: it is of format {found}; the next start brings it up to date"
            )
            database.execute("BEGIN")
            migrate(database, found)
            database.execute("COMMIT")
        if table := differs(database):
            self._wrong(f"its table {table!r} is not as restq made it")
            return
        for (line,) in database.execute(f"PRAGMA integrity_check({SHOWN_MAX})"):
            if line != "ok":
                self._wrong(f"SQLite says: {' '.join(line.split())}")
        last_commit, next_key = self._check_mark(database, is_new=found < FORMAT)
        counts = {table: self._check_rows(database, table, next_key) for table in Changes.__slots__}
        self._check_references(database)
        self._note_realms(database)
        self._report.shards.append(
            ShardReport(self._path.name, found, last_commit, log.frames, counts, self._unchecked_count)
        )

    def _check_mark(self, database: sqlite3.Connection, is_new: bool) -> tuple[int, int]:
        """The number of the last commit, and the first key that was not given out."""
        rows = database.execute("SELECT last_group, next_key, clock, checked_from, checksum FROM mark").fetchall()
        is_sound = len(rows) == 1 and (is_new or rows[0][4] == checksum(rows[0][:4]))
        if not is_sound:
            self._wrong("the row of table 'mark' is not what was written")
            return 0, sys.maxsize
        group, next_key, _, self._checked_from, _ = rows[0]
        witness = Witness(self._path)
        if not witness.is_readable():
            self._wrong(f"{witness.path.name} is not what was written; the next commit writes it anew")
        if group < witness.claims():
            self._wrong(
                f"it ends with commit {group}, but commit {witness.claims()} was done: it was cut short or replaced"
            )
        return group, next_key

    def _check_rows(self, database: sqlite3.Connection, table: str, next_key: int) -> int:
        """Compare each row with its checksum; returns how many there are."""
        count, wrong = 0, 0
        for *row, found in database.execute(f"SELECT * FROM {table}"):
            count += 1
            key = row[0]
            if table != "moved" and isinstance(key, int) and key >= next_key:
                self._wrong(f"row {key} of table {table!r} has a key that was not given out yet")
            if found is None and self._checked_from > (key if isinstance(key, int) else 1):
                self._unchecked_count += 1
            elif found is None or not fits(table, row, found):
                wrong += 1
                if wrong <= SHOWN_MAX:
                    self._wrong(f"row {key!r} of table {table!r} is not what was written")
        if wrong > SHOWN_MAX:
            self._wrong(f"so are {wrong - SHOWN_MAX} more of table {table!r}")
        return count

    def _check_references(self, database: sqlite3.Connection) -> None:
        for what, where in _REFERENCES.items():
            count, first = database.execute(f"SELECT count(*), min(key) {where}").fetchone()
            if count:
                self._wrong(f"it has {count} {what}, the first is row {first}")
        of_batches = {
            key
            for (text,) in database.execute("SELECT task FROM realms")
            if (task := _task(text)) is not None and task.kind == BATCH
            for key in payload_keys(task)
        }
        large = "SELECT key FROM jobs WHERE digest <> ''"
        unclaimed = {key for (key,) in database.execute(f"SELECT key FROM payloads WHERE key NOT IN ({large})")}
        if missing := of_batches - {key for (key,) in database.execute("SELECT key FROM payloads")}:
            self._wrong(f"it has {len(missing)} parts of requests that are not there, the first is row {min(missing)}")
        if left := unclaimed - of_batches:
            self._wrong(f"it has large data of {len(left)} jobs that are not there, the first is row {min(left)}")

    def _note_realms(self, database: sqlite3.Connection) -> None:
        for name, epoch, text in database.execute("SELECT name, epoch, task FROM realms"):
            task = _task(text)
            if isinstance(name, str) and isinstance(epoch, int):
                self._realms.setdefault(name, []).append((self._path.name, epoch, "" if task is None else task.kind))


def _task(text: str | None) -> Task | None:
    """What holds a realm; None also where that can't be read, which its checksum tells."""
    try:
        return Task.read(text)
    except (TypeError, ValueError):
        return None


def _connect(path: Path, option: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?{option}", uri=True, isolation_level=None)


def _number(database: sqlite3.Connection, query: str) -> int:
    return int(database.execute(query).fetchone()[0])
