"""Reads the rows of a shard's file, and none that is not what was written: see `checksums`."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restq.errors import RowDamaged
from restq.shards.changes import Stored
from restq.shards.checksums import checksum, fits, reply_fits, split_places
from restq.shards.store import Mark, ReplyNote

# What reading a damaged file raises: the words of SQLite's error may be of the file, and no text.
UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
LOAD_ROWS = 100  # at a time: what was just read is checked while the processor has it at hand

_PLACE_COLUMNS = ", ".join(
    f"places.{name}" for name in "key queue at leased_at lease nacks expiries mark worker".split()
)
_JOB_COLUMNS = ", ".join(f"jobs.{name}" for name in "key realm job_id tags data digest size terms".split())
PLACES_WITH_JOBS = (
    f"SELECT {_PLACE_COLUMNS}, {_JOB_COLUMNS}, places.checksum, jobs.checksum FROM places"
    " JOIN jobs ON jobs.key = places.job ORDER BY places.key"
)


def damaged(path: Path, what: str) -> str:
    """A sentence for whoever has to do something about it."""
    return f"{path} is damaged: {what}. Put back a copy of the data directory; `restq check` says what else is wrong"


class SoundRows:
    """The rows of one file. Its methods raise RowDamaged, and whatever SQLite raises."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path
        self._checked_from = 1  # see `schema`
        self._is_whole = False  # it was looked at

    def mark(self) -> Mark:
        """What the last group left. Until it was read, rows without checksums are taken for damaged."""
        columns = "last_group, next_key, clock, checked_from, checksum"
        rows = self._database.execute(f"SELECT {columns} FROM mark").fetchall()
        if len(rows) != 1 or rows[0][4] != checksum(rows[0][:4]):
            raise self._damaged("the row of table 'mark' is not what was written")
        self._checked_from = rows[0][3]
        return Mark(*rows[0][:3])

    def seal(self) -> None:
        """Give the mark of a file that was just migrated its checksum."""
        mark = self._database.execute("SELECT last_group, next_key, clock, checked_from FROM mark").fetchone()
        self._database.execute("UPDATE mark SET checksum = ?", (checksum(mark),))

    def put_mark(self, mark: Mark) -> None:
        """Write it with its checksum."""
        group, next_key, clock = mark[0], mark[1], float(mark[2])
        values = (group, next_key, clock, checksum((group, next_key, clock, self._checked_from)))
        self._database.execute("UPDATE mark SET last_group = ?, next_key = ?, clock = ?, checksum = ?", values)

    def of(self, table: str, which: str = "ORDER BY key", values: tuple[Any, ...] = ()) -> Iterator[list[Any]]:
        """Rows of a table, without their checksums."""
        with self._text_of(table):
            for *row, found in self._database.execute(f"SELECT * FROM {table} {which}", values):
                self._check(table, row[0], found, found is not None and fits(table, row, found))
                yield row

    def reply_notes(self) -> Iterator[ReplyNote]:
        """All replies without their bodies, which are not read: SQLite knows the length of a blob without that."""
        columns = "key, realm, name, digest, at, length(body), checksum"
        with self._text_of("replies"):
            for *note, found in self._database.execute(f"SELECT {columns} FROM replies ORDER BY key"):
                self._check("replies", note[0], found, found is not None and reply_fits(note, None, found))
                yield tuple(note)

    def payload(self, key: int) -> bytes:
        """Large data, which may not be missing."""
        row = self._database.execute("SELECT data, checksum FROM payloads WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise self._damaged(f"row {key} of table 'payloads' is missing")
        data, found = row
        self._check("payloads", key, found, found is not None and fits("payloads", (key, data), found))
        return bytes(data)

    def places(self) -> Iterator[Stored]:
        """All places with their jobs. Raises RowDamaged also if one is missing."""
        self._check_shape()
        count = 0
        with self._text_of("jobs"):
            rows = self._database.execute(PLACES_WITH_JOBS)
            while batch := rows.fetchmany(LOAD_ROWS):
                count += len(batch)
                sound, odd = split_places(batch, self._checked_from)
                if odd is not None:
                    raise self._damaged(f"row {odd[1]} of table {odd[0]!r} is not what was written")
                yield from sound
        (expected,) = self._database.execute("SELECT count(*) FROM places").fetchone()
        if count != expected:
            raise self._damaged("it holds places of jobs that it does not hold")

    def _check_shape(self) -> None:
        """Once, before all is read: a row that is missing as a whole has no checksum that could tell."""
        if not self._is_whole:
            ((found,),) = self._database.execute("PRAGMA integrity_check(1)").fetchall()
            if found != "ok":
                raise self._damaged(" ".join(found.split()))
            self._is_whole = True

    @contextlib.contextmanager
    def _text_of(self, table: str) -> Iterator[None]:
        """What is no text any more has no code of an error of SQLite: it was Python that could not read it."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if hasattr(error, "sqlite_errorcode"):
                raise
            raise self._damaged(f"a row of table {table!r} is not what was written") from error

    def _check(self, table: str, key: int | str, found: int | None, is_sound: bool) -> None:
        if found is None:  # then it must be from before there were any
            is_sound = self._checked_from > (key if isinstance(key, int) else 1)
        if not is_sound:
            raise self._damaged(f"row {key!r} of table {table!r} is not what was written")

    def _damaged(self, what: str) -> RowDamaged:
        return RowDamaged(damaged(self._path, what))
