"""A copy of a data directory, made while its server runs, or while none does.

Each shard copies its own file by SQLite's online backup: nobody else opens a file that is in use. So the copy of a
shard is the shard as it was at one instant, and other shards as they were at others, a moment earlier or later. A
realm lives in one shard and is therefore whole; should one have changed its shard meanwhile, all is copied again.

The copy is a data directory: `restq web --data-dir` serves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from restq.data_dir import (
    LOCK_NAME,
    note_shard_count,
    shard_path,
    shards_missing,
    shards_present,
    socket_path,
    sync_directory,
    take_lock,
)
from restq.errors import RestqError, from_reply
from restq.pipe import Pipe
from restq.shards import wal
from restq.shards.witness import Witness

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
    """Copy the data directory to `target`, outside of it, which must not exist or be empty. Raises BackupFailed.

    What is at `target` is whole and synced as soon as this returns; if it raises, no file is left there.
    """
    shards = _shards(data_dir)
    if target.resolve().is_relative_to(data_dir.resolve()):
        raise BackupFailed(f"{target} lies in the data directory, where a copy does not belong")
    _make_empty(target)
    copies = [shard_path(target, shard) for shard in shards]
    try:
        with _lock(data_dir) as is_free:
            if is_free:
                for shard, copy in zip(shards, copies, strict=True):
                    _copy_offline(shard_path(data_dir, shard), copy)
            else:
                asyncio.run(_copy_live(data_dir, copies))
        note_shard_count(target, len(shards))
        sync_directory(target)
        sync_directory(target.parent)
    except (RestqError, OSError) as error:
        for path in target.iterdir():
            path.unlink()
        if isinstance(error, BackupFailed):
            raise
        raise BackupFailed(f"no copy was made: {error}") from None
    return Copied(len(copies), sum(copy.stat().st_size for copy in copies), not is_free)


def _shards(data_dir: Path) -> list[int]:
    """What is to be copied."""
    try:
        shards, missing = shards_present(data_dir), shards_missing(data_dir)
    except OSError as error:
        raise BackupFailed(f"{data_dir} can't be read: {error.strerror}") from None
    if missing:
        raise BackupFailed(f"{missing[0]} is not there, or is empty, but belongs to this data directory")
    if not shards:
        raise BackupFailed(f"there is no data of restq in {data_dir}")
    return shards


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
    try:
        lock = take_lock(data_dir / LOCK_NAME)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(lock)


def _copy_offline(file: Path, copy: Path) -> None:
    """As it is: a backup is made before an upgrade, too."""
    if damage := wal.scan(Path(f"{file}-wal")).damage:
        raise BackupFailed(f"{file}-wal is damaged: {damage}")
    try:
        with contextlib.closing(sqlite3.connect(file)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.execute("SELECT 1 FROM mark")  # `backup` would wait for ever for a file that somebody holds
            source.backup(target)
            ((group,),) = target.execute("SELECT last_group FROM mark").fetchall()
    except (sqlite3.Error, ValueError) as error:
        raise BackupFailed(f"{file} can't be copied: {error}") from None
    if group < (claimed := Witness(file).claims()):
        raise BackupFailed(
            f"{file} ends with commit {group}, but commit {claimed} was done: it was cut short or replaced"
        )


async def _copy_live(data_dir: Path, copies: list[Path]) -> None:
    pipes = [Pipe(str(socket_path(data_dir, shard)), shard) for shard in range(len(copies))]
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
