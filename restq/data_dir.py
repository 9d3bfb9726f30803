"""What stands in a data directory, by name, and whether all of it is there.

    server.lock             held by the server that uses it, which writes into it who it is
    server.shards           how many shards it has, so that many databases
    shard-0000.sqlite       what a shard knows: the truth. SQLite's log stands beside it, `-wal`
    shard-0000.reserve      room on the disk, see `shards.reserve`
    shard-0000.witness      the number of the last commit, see `shards.witness`
    shard-0000.lock         held by the process that uses the database
    shard-0000.sock         where the shard listens

A database that is not there looks like one of a shard that is new. So their number is noted, once all of them are
there: one that went missing, or of which only the name is left, is told from a new one. A directory of before that has
no note, and what it lacks is not known.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

LOCK_NAME = "server.lock"
COUNT_NAME = "server.shards"
LOCK_PAUSE_SECONDS = 0.02  # between two tries

_DATABASE = re.compile(r"shard-(\d{4,})\.sqlite")
_BESIDE = (".witness", ".reserve", ".lock", ".sqlite-wal", ".sqlite")  # the database goes last


def shard_path(data_dir: Path, shard: int) -> Path:
    """The database of a shard."""
    return data_dir / f"shard-{shard:04d}.sqlite"


def lock_path(database: Path) -> Path:
    """What the process that uses a database holds."""
    return database.with_suffix(".lock")


def socket_path(data_dir: Path, shard: int) -> Path:
    """The socket that a shard listens on."""
    return data_dir / f"shard-{shard:04d}.sock"


def take_lock(path: Path, wait_seconds: float = 0.0) -> int:
    """Hold a file, made if need be, until the descriptor that is returned is closed, or the process is gone.

    Raises BlockingIOError where somebody else still holds it after so long, OSError where it can't be opened.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    ends_at = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= ends_at:
                os.close(lock)
                raise
        time.sleep(LOCK_PAUSE_SECONDS)


def shards_present(data_dir: Path) -> list[int]:
    """The shards whose databases are there. Raises OSError."""
    return sorted(int(found[1]) for path in data_dir.iterdir() if (found := _DATABASE.fullmatch(path.name)))


def shard_count(data_dir: Path) -> int:
    """How many shards it has; 0 where that is not known. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((data_dir / COUNT_NAME).read_text(encoding="ascii"))
    return 0


def shards_missing(data_dir: Path) -> list[Path]:
    """The databases that belong to it and are not there, or empty. Raises OSError."""
    paths = [shard_path(data_dir, shard) for shard in range(shard_count(data_dir))]
    return [path for path in paths if not (path.exists() and path.stat().st_size)]


def note_shard_count(data_dir: Path, count: int) -> None:
    """Note, durably, that it has so many shards from now on; all their databases are there. Raises OSError."""
    if shard_count(data_dir) == count:
        return
    draft = data_dir / f"{COUNT_NAME}.new"
    with draft.open("w", encoding="ascii") as file:
        file.write(f"{count}\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(data_dir / COUNT_NAME)
    sync_directory(data_dir)


def remove_shard(data_dir: Path, shard: int) -> None:
    """Remove what is left of a shard that it has no more. Raises OSError."""
    for suffix in _BESIDE:
        shard_path(data_dir, shard).with_suffix(suffix).unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Have the names in a directory survive a power cut. Raises OSError."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
