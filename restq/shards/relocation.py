"""Before the shards start: bring every realm into the file of the shard it belongs to.

Runs in the supervisor while no shard holds its file. After a start with another number of shards, realms whose home
changed are copied over and only then removed; a realm that counts in two files, because a copy was interrupted between
the two, counts where its epoch is higher, and not at all if a note on its name has a higher one: it left that file
before, and was deleted where it came to. So every start, also one after a crash half way, ends with each realm whole
in one file.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import NamedTuple

from restq.data_dir import COUNT_NAME, note_shard_count, remove_shard, shard_path, shards_missing, shards_present
from restq.errors import StorageFull
from restq.placement import home
from restq.shards.changes import BATCH, Changes, RealmRow, Task, payload_keys, renumbered
from restq.shards.renumbering import FirstKeys, Renumbering
from restq.shards.reserve import reserve_path
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import KEPT, Loaded, Mark, StoreRefused

CHUNK_ROWS = 10_000
CHUNK_BYTES = 32 << 20  # of what may be large: data, results, replies

log = logging.getLogger("restq.relocation")


class Found(NamedTuple):
    """A realm, and the file it counts in."""

    row: RealmRow
    shard: int


class Copy(NamedTuple):
    """A realm on its way to another file: its row there as long as it does not count, and its new keys."""

    row: RealmRow
    target: int
    new_keys: Renumbering


class Relocated(NamedTuple):
    """What a server has to know of its files: the shards of pinned realms, and the latest time that a file has seen."""

    pinned: dict[str, int]
    clock: float


def relocate(data_dir: Path, shard_count: int) -> Relocated:
    """Put each realm where it belongs; files of shards that are no more are removed. Raises StoreRefused."""
    try:
        missing = shards_missing(data_dir)
        present = shards_present(data_dir)
    except OSError as error:
        raise StoreRefused(f"the data directory {data_dir} can't be used: {error.strerror}") from error
    if missing:
        raise StoreRefused(
            f"{missing[0]} is not there, or is empty, but belongs to this data directory. Put it back, or a copy of the"
            f" whole directory; or, to go on without what was in it, remove {COUNT_NAME}"
        )
    found = _relocate(data_dir, present, shard_count)
    try:
        note_shard_count(data_dir, shard_count)
        for shard in present:
            if shard >= shard_count:
                remove_shard(data_dir, shard)
    except OSError as error:  # the next start does it
        log.warning("how many shards there are could not be noted: %s", error)
    return found


def _relocate(data_dir: Path, present: list[int], shard_count: int) -> Relocated:
    stores: dict[int, SqliteStore] = {}
    try:
        for shard in sorted({*present, *range(shard_count)}):
            store = stores[shard] = SqliteStore(shard_path(data_dir, shard))
            if shard < shard_count:
                store.keep_reserve(shard_count)  # what takes away goes on, also where the disk is full
        for shard in present:
            if shard >= shard_count:
                reserve_path(stores[shard].path).unlink(missing_ok=True)  # no shard keeps it any more
        return asyncio.run(_Relocation(stores, shard_count).run())
    except StorageFull as full:
        raise StoreRefused(f"{data_dir} has no room to move realms to their shards: {full}") from full
    finally:
        for store in stores.values():
            store.close()


class _Relocation:
    def __init__(self, stores: dict[int, SqliteStore], shard_count: int) -> None:
        self._stores = stores
        self._count = shard_count
        self._loaded: dict[int, Loaded] = {shard: store.load() for shard, store in stores.items()}
        self._marks: dict[int, Mark] = {shard: loaded.mark for shard, loaded in self._loaded.items()}
        self._unkept: dict[int, Changes] = {shard: Changes() for shard in stores}
        self._unkept_bytes: dict[int, int] = dict.fromkeys(stores, 0)

    async def run(self) -> Relocated:
        pinned: dict[str, int] = {}
        leaving: dict[int, list[tuple[RealmRow, int]]] = {}
        for row, shard in self._settle_copies().values():
            if _has_pin(row) and shard < self._count:
                pinned[row.name] = shard
                if _is_moving(row):
                    self._unkept[shard].realms[row.key] = row._replace(task=None)
                continue
            if row.pinned and shard >= self._count:
                log.warning("realm %r was pinned to shard %d, which is no more: it goes home", row.name, shard)
            target = home(row.name, self._count)
            if target != shard:
                log.info("realm %r moves from shard %d to shard %d", row.name, shard, target)
                leaving.setdefault(shard, []).append((row, target))
            elif row.pinned or _is_moving(row):  # at home there is no pin, and no move under way any more
                self._unkept[shard].realms[row.key] = row._replace(pinned=0, task=_lasting(row))
        for shard, realms in leaving.items():
            await self._copy(shard, realms)
            self._stores[shard].remove_realms([row.key for row, _ in realms])
        for shard, loaded in self._loaded.items():
            # Notes on realms that live elsewhere are made anew from what was found.
            self._unkept[shard].moved.update({note.name: None for note in loaded.moved})
            await self._keep(shard)
        return Relocated(pinned, max(mark.clock for mark in self._marks.values()))

    def _settle_copies(self) -> dict[str, Found]:
        """Remove what does not count; the realms that do, by name."""
        counting: dict[str, Found] = {}
        epochs: dict[str, int] = {}
        for loaded in self._loaded.values():
            for note in loaded.moved:
                epochs[note.name] = max(note.epoch, epochs.get(note.name, 0))
        doomed: dict[int, list[int]] = {}
        for shard, loaded in self._loaded.items():
            for row in loaded.realms:
                rival = counting.get(row.name)
                is_beaten = rival is not None and rival.row.epoch >= row.epoch
                if _kind(row) == "arrive" or is_beaten or row.epoch < epochs.get(row.name, 0):
                    doomed.setdefault(shard, []).append(row.key)
                    continue
                counting[row.name] = Found(row, shard)
                if rival is not None:
                    doomed.setdefault(rival.shard, []).append(rival.row.key)
        for shard, keys in doomed.items():
            self._stores[shard].remove_realms(keys)
        return counting

    async def _copy(self, shard: int, realms: list[tuple[RealmRow, int]]) -> None:
        """Copy realms out of a file, which is read once, in chunks that do not count; then make each copy count."""
        store = self._stores[shard]
        blocks = store.blocks()
        new_keys = {
            target: self._renumber(blocks, shard, target) for target in sorted({target for _, target in realms})
        }
        copies = {row.key: self._begin(row, target, new_keys[target]) for row, target in realms}
        for queue in self._loaded[shard].queues:
            copy = copies.get(queue.realm)
            if copy is not None:
                key = copy.new_keys.key(queue.key)
                self._unkept[copy.target].queues[key] = queue._replace(key=key, realm=copy.row.key)
        for stored in store.places_of(list(copies)):
            row, target, keys = copies[stored[10]]
            payload = store.payload(stored[9]) if stored[14] else None
            self._unkept[target].put(renumbered(stored, keys.key, row.key), payload)
            await self._grow(target, len(payload or b""))
        await self._copy_kept(store, copies)
        for row, _ in realms:
            copy = copies[row.key]
            task = self._copy_batch(shard, row, copy)
            counts = copy.row._replace(epoch=row.epoch + 1, task=task)
            self._unkept[copy.target].realms[counts.key] = counts
        for target in {copy.target for copy in copies.values()}:
            await self._keep(target)

    def _copy_batch(self, shard: int, row: RealmRow, copy: Copy) -> str | None:
        """The task of the copy; what a batch has in payloads goes along."""
        task = Task.read(row.task)
        if task is None or task.kind != BATCH:
            return _lasting(row)
        keys = payload_keys(task)
        for key in keys:
            self._unkept[copy.target].payloads[copy.new_keys.key(key)] = self._stores[shard].payload(key)
        return task._replace(target=copy.new_keys.key(keys[0])).text()

    async def _copy_kept(self, store: SqliteStore, copies: dict[int, Copy]) -> None:
        for table in KEPT:
            for kept in store.kept_of(table, list(copies)):
                row, target, keys = copies[kept.realm]
                copied = kept._replace(key=keys.key(kept.key), realm=row.key)
                getattr(self._unkept[target], table)[copied.key] = copied
                await self._grow(target, sum(len(value) for value in kept if isinstance(value, (str, bytes))))

    async def _grow(self, target: int, size: int) -> None:
        """Something was added to what is unkept: keep it all if that is much."""
        self._unkept_bytes[target] += size
        if len(self._unkept[target]) >= CHUNK_ROWS or self._unkept_bytes[target] >= CHUNK_BYTES:
            await self._keep(target)

    def _renumber(self, blocks: list[int], shard: int, target: int) -> Renumbering:
        """The keys of all that goes from a shard to another, and the target's counter with them."""
        source, mark = self._marks[shard], self._marks[target]
        new_keys = Renumbering(blocks, source.next_key, mark.next_key)
        self._marks[target] = mark._replace(next_key=new_keys.next_key, clock=max(mark.clock, source.clock))
        return new_keys

    def _begin(self, row: RealmRow, target: int, new_keys: Renumbering) -> Copy:
        first_keys = FirstKeys.read(row.first_keys).moved(new_keys).text
        key, task = new_keys.key(row.key), Task("arrive").text()
        arriving = row._replace(key=key, pinned=0, task=task, first_keys=first_keys)
        self._unkept[target].realms[arriving.key] = arriving
        return Copy(arriving, target, new_keys)

    async def _keep(self, shard: int) -> None:
        changes = self._unkept[shard].take()
        self._unkept_bytes[shard] = 0
        if len(changes):
            mark = self._marks[shard]
            self._marks[shard] = mark = mark._replace(group=mark.group + 1)
            await self._stores[shard].commit(changes, mark)


def _kind(row: RealmRow) -> str | None:
    task = Task.read(row.task)
    return None if task is None else task.kind


def _is_moving(row: RealmRow) -> bool:
    """Whether the realm was on its way to another shard, where it may be by now."""
    return _kind(row) == "move"


def _has_pin(row: RealmRow) -> bool:
    """Whether the realm is pinned to where it is, and did not only come to be pinned by a move that is not over."""
    task = Task.read(row.task)
    return bool(row.pinned) and (task is None or task.kind != "move" or any(task.details))


def _lasting(row: RealmRow) -> str | None:
    """The task that goes on wherever the realm is."""
    return None if _is_moving(row) else row.task
