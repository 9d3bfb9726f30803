"""What must hold of the files of a simulation: when a realm arrives in one, and in the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulation import World
from store_life import all_rows_of

from restq.shards.changes import Changes, RealmRow, Task
from restq.shards.job import MARK_NONE
from restq.shards.loader import Loader
from restq.shards.memory_store import MemoryStore
from restq.shards.moving import KEPT_TABLES
from restq.shards.realm import Realm
from restq.shards.store import Loaded

LEASED_AT, MARK, JOB_KEY, REALM_KEY, JOB_ID = 3, 7, 9, 10, 11  # in a row of a place with its job


class Arrivals:
    """Each realm that comes to count in another file has all there that it has where it came from; `count` of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: set[tuple[int, int]] = set()  # shard, key of a realm
        self._births: set[tuple[str, int]] = set()  # each realm keeps its own, wherever it goes
        self.count = 0
        self.wrong: list[str] = []
        world.on_commit = self._committed

    def _committed(self, index: int, changes: Changes) -> None:
        for key, row in changes.realms.items():
            if row is not None and not _is(row, "arrive") and (index, key) not in self._known:
                self._known.add((index, key))
                if row.epoch and (row.name, row.born) in self._births:
                    self.count += 1
                    self.wrong += self._differences(index, row)
                self._births.add((row.name, row.born))

    def _differences(self, index: int, row: RealmRow) -> Iterator[str]:
        found = [
            (shard.disk, realm)
            for shard in self._world.shards
            for realm in shard.disk.load().realms
            if realm.name == row.name and realm.epoch == row.epoch - 1 and _is(realm, "move")
        ]
        if len(found) != 1:
            yield f"{row.name} arrived in shard {index}, and {len(found)} files say that they sent it"
            return
        source, target = _contents(*found[0]), _contents(self._world.shards[index].disk, row)
        going = source.pop("going") | target.pop("going")  # with the end of their leases, which may have come
        leased = source.pop("leased") | target.pop("leased")
        for what, rows in source.items():
            left = going | leased if what == "failures" else going
            sent, came = ([each for each in some if each[0] not in left] for some in (rows, target[what]))
            if what == "replies":  # who waited there for its jobs may have got some, and has a reply more
                came = came[: len(sent)]
            if sent != came:
                yield f"{row.name} arrived in shard {index} with other {what}: {came}, and not {sent}"


def _is(row: RealmRow, kind: str) -> bool:
    task = Task.read(row.task)
    return task is not None and task.kind == kind


def _contents(store: Any, realm: RealmRow) -> dict[str, Any]:
    """All that a file has of a realm, but for keys and for what the end of a lease changes."""
    loaded = store.load()
    places = [row for row in loaded.places if row[REALM_KEY] == realm.key]
    queues = {row.key: row.queue_id for row in loaded.queues if row.realm == realm.key}
    named = {row[0]: (row[JOB_ID], queues.get(row[1])) for row in places}
    kept = {table: all_rows_of(store, table, realm.key) for table in KEPT_TABLES}
    going = {row[JOB_ID] for row in places if row[MARK] != MARK_NONE}
    return {
        "going": going,
        "leased": {row[JOB_ID] for row in places if row[LEASED_AT]},
        "settings": [tuple(realm._replace(key=0, epoch=0, task=None, first_keys=0))],
        "jobs": sorted({row[JOB_ID:] for row in places}),
        "places": sorted(named.values(), key=str),
        "payloads": [(row[JOB_ID], store.payload(row[JOB_KEY])) for row in places if row[JOB_ID + 3]],
        "queues": sorted((tuple(row[2:]) for row in loaded.queues if row.realm == realm.key), key=str),
        "limits": sorted(tuple(row[2:]) for row in loaded.tags if row.realm == realm.key),
        "failures": [(named[row.key][0], *row[2:]) for row in kept["failures"] if row.key in named],
        "results": [tuple(row[2:]) for row in kept["results"]],
        "replies": [tuple(row[2:]) for row in kept["replies"]],
    }


def check_whole(world: World) -> Iterator[str]:
    """X1, once all is settled: a realm is in one file, and whole; no file has anything beside, or other than memory."""
    found: dict[str, str] = {}
    for shard in world.shards:
        if shard.process is None:
            yield f"{shard.name} does not serve"
            continue
        loaded = shard.disk.load()
        loaded = loaded._replace(places=list(loaded.places))
        for row in loaded.realms:
            if row.name in found:
                yield f"{row.name} is in the files of {found[row.name]} and {shard.name}"
            found[row.name] = shard.name
            if row.task is not None:
                yield f"{row.name} is in the midst of {row.task} in {shard.name}"
            yield from _astray(world, row.name, shard.index)
        yield from (f"{shard.name}: {line}" for line in _strays(shard.disk, loaded))
        yield from (f"{shard.name}: {line}" for line in _unlike(shard.process.shard, loaded))
    for frontend in world.frontends:
        for pipe in frontend.app.shards.pipes:
            if pipe._under_way:
                yield f"{frontend.name} is still to be answered by shard {pipe.shard}"


def _astray(world: World, name: str, owner: int) -> Iterator[str]:
    """Shards from which, shard by shard, no way leads to the one that has the realm."""
    for shard in world.shards:
        index = shard.index
        for _ in world.shards:
            process = world.shards[index].process
            index = index if process is None else process.shard.placement.shard_of(name)
        if index != owner:
            yield f"{name} is in shard {owner}, and by {shard.name} not to be found there"


def _strays(store: Any, loaded: Loaded) -> Iterator[str]:
    """What a file has that belongs to nothing in it, or is numbered as what is yet to come."""
    realms = {row.key for row in loaded.realms}
    queues = {row.key: row.realm for row in loaded.queues}
    for table in ("queues", "tags"):
        for row in getattr(loaded, table):
            if row.realm not in realms:
                yield f"{table} has {row}, of no realm"
    for place in loaded.places:
        if queues.get(place[1]) != place[REALM_KEY] or place[REALM_KEY] not in realms:
            yield f"places has {place}, of no queue or of no realm"
    for key in loaded.result_counts:
        if key not in realms:
            yield f"results has some of realm {key}, which is gone"
    if isinstance(store.rows, MemoryStore):  # else `restq check` looks
        tables = store.rows._tables
        jobs = {place[JOB_KEY] for place in loaded.places}
        large = {place[JOB_KEY] for place in loaded.places if place[JOB_ID + 3]}
        places = {place[0] for place in loaded.places}
        for table, due in (("jobs", jobs), ("payloads", large)):
            if tables[table].keys() != due:
                yield f"{table} has {sorted(tables[table])}, and is to have {sorted(due)}"
        if not tables["failures"].keys() <= places:
            yield f"failures has {sorted(tables['failures'])}, and there are places {sorted(places)}"
        keys = [key for table in tables if table != "moved" for key in tables[table]]
        if keys and max(keys) >= loaded.mark.next_key:
            yield f"key {max(keys)} is in use, and {loaded.mark.next_key} is to be given out next"


def _unlike(shard: Any, loaded: Loaded) -> Iterator[str]:
    """Where memory is not what a start would make of the file."""
    loader = Loader(shard.keys, Changes(), lambda: 0.5)
    loader.add_all(loaded)
    held = {realm.name: _seen(realm) for realm in shard.realms()}
    kept = {realm.name: _seen(realm) for realm in loader.finish(shard._now)}
    if held.keys() != kept.keys():
        yield f"it serves {sorted(held)}, and its file has {sorted(kept)}"
    for name in held.keys() & kept.keys():
        if held[name] != kept[name]:
            yield f"{name} is {held[name]} in memory, and {kept[name]} in the file"
    if shard.replies.count != len(loaded.replies):
        yield f"it knows of {shard.replies.count} kept replies, and its file has {len(loaded.replies)}"


def _seen(realm: Realm) -> Any:
    places = sorted(
        (place.key, place.at, place.job.job_id, place.history) for job in realm.jobs.values() for place in job.places
    )
    return realm.epoch, realm.pinned, realm.result_count, realm.first_keys.text, realm.settings, places
