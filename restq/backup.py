"""A copy of a data directory, made while its server runs, or while none does.

Each shard copies its own file by SQLite's online backup: nobody else opens a file that is in use. So the copy of a
shard is the shard as it was at one instant, and other shards as they were at others, a moment earlier or later. A
realm lives in one shard and is therefore whole; should one have changed its shard meanwhile, all is copied again.

The copy is a data directory: `restq web --data-dir` serves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from restq.errors import RestqError, from_reply
from restq.pipe import Pipe
from restq.shards import wal

LOCK_NAME = "server.lock"
ATTEMPTS_MAX = 3
CONNECT_SECONDS = 10.0


class BackupFailed(RestqError, OSError):
    """No copy was made."""

    code = "backup_failed"


class Copied(NamedTuple):
    """What was copied: so many shards and bytes, and whether their server ran."""

    shards: int
    bytes: int
    live: bool


def back_up(data_dir: Path, target: Path) -> Copied:
    """Copy the data directory to `target`, which must not exist or be empty. Raises BackupFailed.

    What is at `target` is whole and synced as soon as this returns; if it raises, no file is left there.
    """
    files = sorted(data_dir.glob("shard-*.sqlite"))
    if not files:
        raise BackupFailed(f"there is no data of restq in {data_dir}")
    _make_empty(target)
    copies = [target / file.name for file in files]
    try:
        with _lock(data_dir) as is_free:
            if is_free:
                for file, copy in zip(files, copies, strict=True):
                    _copy_offline(file, copy)
            else:
                asyncio.run(_copy_live(data_dir, copies))
        _sync(target)
    except (RestqError, OSError) as error:
        for path in target.iterdir():
            path.unlink()
        if isinstance(error, BackupFailed):
            raise
        raise BackupFailed(f"no copy was made: {error}") from None
    return Copied(len(copies), sum(copy.stat().st_size for copy in copies), not is_free)


def _make_empty(target: Path) -> None:
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_empty = not any(target.iterdir())
    except OSError as error:
        raise BackupFailed(f"{target} can't be used: {error.strerror}") from None
    if not is_empty:
        raise BackupFailed(f"{target} is not empty")


@contextlib.contextmanager
def _lock(data_dir: Path) -> Iterator[bool]:
    """Keep servers from starting meanwhile; False where one runs."""
    lock = os.open(data_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


def _copy_offline(file: Path, copy: Path) -> None:
    """As it is: a backup is made before an upgrade, too."""
    if damage := wal.scan(Path(f"{file}-wal")).damage:
        raise BackupFailed(f"{file}-wal is damaged: {damage}")
    try:
        with contextlib.closing(sqlite3.connect(file)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.Error as error:
        raise BackupFailed(f"{file} can't be copied: {error}") from None


async def _copy_live(data_dir: Path, copies: list[Path]) -> None:
    pipes = [Pipe(str(data_dir / f"{copy.stem}.sock"), shard) for shard, copy in enumerate(copies)]
    for pipe in pipes:
        pipe.open()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            for pipe in pipes:
                await pipe.connected()
        for _ in range(ATTEMPTS_MAX):
            before = await _placed(pipes)
            for copy in copies:
                copy.unlink(missing_ok=True)
            await _ask(pipes, "back_up", [[str(copy.absolute())] for copy in copies])
            if await _placed(pipes) == before:
                return
        raise BackupFailed(f"realms changed their shards in each of {ATTEMPTS_MAX} attempts: try again")
    except TimeoutError:
        raise BackupFailed(f"a shard of the server did not answer within {CONNECT_SECONDS:g} s") from None
    finally:
        for pipe in pipes:
            pipe.close()


async def _placed(pipes: list[Pipe]) -> list[tuple[int, int]]:
    """How many realms came to each shard from another, and which process counted."""
    stats = await _ask(pipes, "get_stats", [[] for _ in pipes])
    return [(report["pid"], report["operations"].get("arrive_end", {}).get("call_count", 0)) for report in stats]


async def _ask(pipes: list[Pipe], operation: str, params: list[list[Any]]) -> list[Any]:
    replies = await asyncio.gather(
        *(pipe.call(operation, "", said, b"") for pipe, said in zip(pipes, params, strict=True))
    )
    for reply in replies:
        if reply.status != 200:
            raise from_reply(reply.status, json.loads(reply.body))
    return [json.loads(reply.body) for reply in replies]


def _sync(folder: Path) -> None:
    """Have the names in it, and its own, survive a power cut."""
    for path in (folder, folder.parent):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
