"""The room of one shard's file, and what is kept in reserve of it, so that a full disk can be emptied again.

SQLite needs room to delete: a commit appends the pages that it changes to the log (the WAL), and only once all of the
log is in the database file can it be written again from its beginning. That is a checkpoint, and it needs room as well:
for the pages by which the database grows. So a file of some MiB stands beside the database, allocated and never read:

    shard-0000.sqlite       the database: pages that are freed in it are used again, it never shrinks
    shard-0000.sqlite-wal   the log: it stays as long as it grew, so that it is written anew in its old room
    shard-0000.reserve      given up piece by piece, each just before it is used: nobody else gets it

What holds all the time: after every commit the database has no more to grow by than an eighth of the reserve, as the
log is moved into it that often (`WAL_PAGES_MAX`). So should others take all the rest of the disk at once, nearly all of
the reserve is free for use. And a commit that makes the data grow leaves the whole reserve to spare (`is_left`), and
room for the log up to its usual size. To spare is what more can be written: free pages of the database, free blocks of
the disk, the reserve, less what the checkpoint will take. A commit that finds no room all the same has the log moved
into the database, so that its room is there again, and if that does not do, a piece of the reserve is given up, again
and again (`make_room`). So what takes away goes on for as long as a piece is left, whoever filled the disk; what one
commit takes must fit into the reserve.

How much may grow depends on what there is to spare: see `Room`. The reserve is filled again once there is enough for
it. Where blocks of zeros take no place, as on a disk that compresses, the file reserves nothing, and only what is
measured counts. Replies that are kept under idempotency keys grow for as long as they are kept, which is why a shard on
a full disk may have to wait for them to go, ten minutes, before it hands out more; removes never wait.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from restq.shards.store import Room

RESERVE_BYTES_MAX = 16 << 20  # a thousand removes all over a large file take about half of it in the log
DISK_SHARE = 4  # but no more than this part of the disk, for all its shards
PIECES = 8
WAL_PAGES_MAX = 512

FULL = "there is no room left on the disk: nothing was done"


def reserve_path(path: Path) -> Path:
    """Where the reserve of a database stands."""
    return path.with_suffix(".reserve")


class Reserve:
    """The room of the database at `path`, which `database` has open; `shard_count` shards share its disk."""

    def __init__(self, database: sqlite3.Connection, path: Path, shard_count: int) -> None:
        self._database = database
        self._path = path
        self._log = path.with_name(path.name + "-wal")
        self._reserve = reserve_path(path)
        self._page_bytes = self._number("PRAGMA page_size")
        disk = os.statvfs(path.parent)
        share = disk.f_blocks * disk.f_frsize // (DISK_SHARE * shard_count)
        piece = max(self._page_bytes, min(RESERVE_BYTES_MAX, share) // PIECES // self._page_bytes * self._page_bytes)
        self._piece_bytes = piece
        self._bytes = piece * PIECES
        self._room = Room.ENOUGH
        self._used_pages = 0  # at the begin of the commit
        self._is_let = False  # what it changes leaves what is to be kept
        self._is_short = False  # a piece was given up
        self._log_bytes = min(WAL_PAGES_MAX * self._page_bytes, self._bytes // 8)
        database.execute(f"PRAGMA wal_autocheckpoint = {self._log_bytes // self._page_bytes}")
        database.execute(f"PRAGMA journal_size_limit = {self._bytes}")
        database.execute("PRAGMA secure_delete = OFF")  # else what is removed goes through the log, page by page

    def _number(self, query: str) -> int:
        return int(self._database.execute(query).fetchone()[0])

    # -- what there is -----------------------------------------------------------------------------------------------

    def room(self) -> Room:
        """What may go on from here on; fills the reserve where there is enough for it."""
        self._cut_log()
        spare = self._spare()
        if spare - self._log_grows_by() >= self._bytes * 5 // 4:
            self._fill()
            self._room = Room.ENOUGH
        else:
            self._room = Room.LITTLE if spare >= self._bytes * 3 // 8 else Room.SCARCE
        return self._room

    def growable(self) -> int:
        """By how many bytes the data may grow so that the whole reserve and the log keep their room."""
        return max(0, self._spare() - self._bytes - self._log_grows_by())

    def _spare(self) -> int:
        """How many bytes can still be written into the database."""
        grows_by = self._number("PRAGMA page_count") * self._page_bytes - self._path.stat().st_size
        blocks = self._disk_free() + self._left() - max(0, grows_by)
        return self._number("PRAGMA freelist_count") * self._page_bytes + blocks

    def _cut_log(self) -> None:
        """Free what a commit that was too large made the log grow by: nobody else would ever have that room again."""
        if self._log.exists() and self._log.stat().st_size > self._bytes and not self._move_log("TRUNCATE"):
            self._give_up_piece()  # what is in the log has no room in the database, as the log has it all
            self._move_log("TRUNCATE")

    def _log_grows_by(self) -> int:
        """What the log will take until it has its usual size."""
        return max(0, self._log_bytes - (self._log.stat().st_size if self._log.exists() else 0))

    def _disk_free(self) -> int:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize

    def _left(self) -> int:
        """Of the reserve, as far as it is more than a number: a copy of it may hold no blocks."""
        try:
            status = self._reserve.stat()
        except FileNotFoundError:
            return 0
        return min(status.st_size, status.st_blocks * 512)

    # -- around a commit ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A transaction began."""
        self._is_let = False
        self._used_pages = self._used()

    def is_left(self) -> bool:
        """Before a transaction is committed: whether it leaves what is to be kept; always if the data do not grow."""
        grown = (self._used() - self._used_pages) * self._page_bytes
        kept = {Room.ENOUGH: self._bytes + self._log_grows_by(), Room.LITTLE: self._bytes // 4}.get(self._room, 0)
        # It goes into the log, and once more, later, into the database.
        self._is_let = grown <= 0 or self._spare() - grown >= kept
        return self._is_let

    def _used(self) -> int:
        return self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")

    def committed(self) -> None:
        """It is kept; the reserve is made whole again as soon as that can be, and not before: see `make_room`."""
        if self._is_short and self._room == Room.ENOUGH:
            self._fill()

    def make_room(self, is_first: bool) -> bool:
        """A commit found none, for the first time or again, and was undone: whether it is worth to try it once more."""
        if not is_first and not self._give_up():
            return False
        while not self._move_log("RESTART"):
            if not self._give_up():
                return False
        return True

    def _move_log(self, mode: str) -> bool:
        """Have the log in the database, to be written from its beginning again; False where that has no room."""
        try:
            is_busy, *_ = self._database.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
                raise
            return False
        return not is_busy

    def _give_up(self) -> bool:
        """Let go of a piece of the reserve; False where there is none, or a commit may grow into what is to be kept."""
        return (self._room < Room.ENOUGH or self._is_let) and self._give_up_piece()

    def _give_up_piece(self) -> bool:
        left = self._left()
        if not left:
            return False
        self._is_short = True
        with self._reserve.open("r+b") as file:
            file.truncate(max(0, left - self._piece_bytes))
            os.fsync(file.fileno())  # some file systems have the blocks free only then
        return True

    def _fill(self) -> None:
        """Have the whole reserve, if the disk has as much."""
        missing = self._bytes - self._left()
        self._is_short = missing > 0
        if missing <= 0 or self._disk_free() < missing:
            return
        with contextlib.suppress(OSError), self._reserve.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, self._bytes)
            os.fsync(file.fileno())
            self._is_short = False
