"""Before the shards start: bring every realm into the file of the shard it belongs to.

Runs in the supervisor while no shard holds its file. After a start with another number of shards, realms whose home
changed are copied over and only then removed; a realm that counts in two files, because a copy was interrupted between
the two, counts where its epoch is higher. So every start, also one after a crash half way, ends with each realm whole
in one file.
"""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import NamedTuple

from restq.placement import home
from restq.shards.changes import Changes, RealmRow, shifted
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import Loaded, Mark

CHUNK_ROWS = 10_000

log = logging.getLogger("restq.relocation")
_NAME = re.compile(r"shard-(\d{4,})\.sqlite")


def shard_path(data_dir: Path, shard: int) -> Path:
    """The file of a shard."""
    return data_dir / f"shard-{shard:04d}.sqlite"


class Found(NamedTuple):
    """A realm, and the file it counts in."""

    row: RealmRow
    shard: int


def relocate(data_dir: Path, shard_count: int) -> dict[str, int]:
    """Put each realm where it belongs; returns the shards of the pinned ones. Raises StoreRefused."""
    present = sorted(int(found[1]) for path in data_dir.iterdir() if (found := _NAME.fullmatch(path.name)))
    stores: dict[int, SqliteStore] = {}
    try:
        for shard in sorted({*present, *range(shard_count)}):
            stores[shard] = SqliteStore(shard_path(data_dir, shard))
        return asyncio.run(_Relocation(stores, shard_count).run())
    finally:
        for store in stores.values():
            store.close()


class _Relocation:
    def __init__(self, stores: dict[int, SqliteStore], shard_count: int) -> None:
        self._stores = stores
        self._count = shard_count
        self._loaded: dict[int, Loaded] = {shard: store.load() for shard, store in stores.items()}
        self._marks: dict[int, Mark] = {shard: loaded.mark for shard, loaded in self._loaded.items()}

    async def run(self) -> dict[str, int]:
        counting = await self._settle_copies()
        pinned: dict[str, int] = {}
        for found in counting.values():
            row, shard = found
            if row.pinned and not _is_moving(row) and shard < self._count:
                pinned[row.name] = shard
                continue
            if row.pinned and shard >= self._count:
                log.warning("realm %r was pinned to shard %d, which is no more: it goes home", row.name, shard)
            target = home(row.name, self._count)
            if target == shard:
                await self._tidy(found)
            else:
                log.info("realm %r moves from shard %d to shard %d", row.name, shard, target)
                await self._copy(found, target)
                await self._remove(row, shard)
        for shard, loaded in self._loaded.items():
            await self._forget_notes(shard, loaded)
        return pinned

    async def _settle_copies(self) -> dict[str, Found]:
        """Remove what does not count; the realms that do, by name."""
        counting: dict[str, Found] = {}
        for shard, loaded in self._loaded.items():
            for row in loaded.realms:
                rival = counting.get(row.name)
                if row.task is not None and row.task.startswith('["arrive"'):
                    await self._remove(row, shard)
                elif rival is None or rival.row.epoch < row.epoch:
                    counting[row.name] = Found(row, shard)
                    if rival is not None:
                        await self._remove(*rival)
                else:
                    await self._remove(row, shard)
        return counting

    async def _tidy(self, found: Found) -> None:
        """A realm at home has no pin, and no move under way any more."""
        row = found.row
        moving = _is_moving(row)
        if row.pinned or moving:
            changes = Changes()
            changes.realms[row.key] = row._replace(pinned=0, task=None if moving else row.task)
            await self._commit(found.shard, changes)

    async def _copy(self, found: Found, target: int) -> None:
        """Copy a realm in chunks that do not count, and then make the copy count, in one commit."""
        row, shard = found
        source = self._marks[shard]
        first = max(self._marks[target].next_key, source.next_key)
        shift = first - row.key
        span = source.next_key - row.key
        self._marks[target] = self._marks[target]._replace(
            next_key=first + span, clock=max(self._marks[target].clock, source.clock)
        )
        arriving = row._replace(key=row.key + shift, pinned=0, task='["arrive"]')
        changes = Changes()
        changes.realms[arriving.key] = arriving
        for queue in self._loaded[shard].queues:
            if queue.realm == row.key:
                changes.queues[queue.key + shift] = queue._replace(key=queue.key + shift, realm=arriving.key)
        store = self._stores[shard]
        for stored in store.places_of(row.key):
            payload = store.payload(stored[5]) if stored[10] else None
            changes.put(shifted(stored, shift, arriving.key), payload)
            if len(changes) >= CHUNK_ROWS:
                await self._commit(target, changes)
                changes = Changes()
        task = None if _is_moving(row) else row.task
        changes.realms[arriving.key] = arriving._replace(epoch=row.epoch + 1, task=task)
        await self._commit(target, changes)

    async def _remove(self, row: RealmRow, shard: int) -> None:
        self._stores[shard].remove_realm(row.key)

    async def _forget_notes(self, shard: int, loaded: Loaded) -> None:
        """Notes on realms that live elsewhere are made anew from what is found."""
        if loaded.moved:
            changes = Changes()
            changes.moved.update(dict.fromkeys(loaded.moved))
            await self._commit(shard, changes)

    async def _commit(self, shard: int, changes: Changes) -> None:
        mark = self._marks[shard]
        self._marks[shard] = mark = mark._replace(group=mark.group + 1)
        await self._stores[shard].commit(changes, mark)


def _is_moving(row: RealmRow) -> bool:
    """Whether the realm was on its way to another shard, where it may be by now."""
    return row.task is not None and row.task.startswith('["move"')
