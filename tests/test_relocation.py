"""A start with another number of shards: every realm whole in exactly one file, whatever happened on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from realm_looks import leased_places
from shard_rig import HOME_0, Rig, move, send_rows
from store_life import all_rows_of

from restq.data_dir import shard_count, shard_path
from restq.placement import home
from restq.shards import adding, finishing, leasing, limits, operating, relocation
from restq.shards.changes import (
    Changes,
    FailureRow,
    Keys,
    MovedRow,
    QueueRow,
    RealmRow,
    ReplyRow,
    ResultRow,
    TagRow,
    Task,
)
from restq.shards.data import INLINE_BYTES_MAX
from restq.shards.loader import Loader
from restq.shards.realm import Realm
from restq.shards.relocation import relocate
from restq.shards.renumbering import BLOCK_BITS, FirstKeys
from restq.shards.settings import LimitSettings, QueueSettings
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import KEPT, Mark, StoreRefused

NOW = 1_000.0
BLOCK = 1 << BLOCK_BITS
NAMES = [f"realm {number}" for number in range(12)]
LARGE = b'"' + b"x" * (INLINE_BYTES_MAX + 1) + b'"'


SETTINGS = QueueSettings(max_attempts=3, limits=LimitSettings(max_leased=2))
WISHES = adding.Wishes(at=NOW + 500, expires_at=NOW + 9_000, max_attempts=2, after=("u",))


def fill(realm: Realm, name: str) -> None:
    """Jobs in several queues, tags, leases, a failure, data of all sizes; a little different in every realm."""
    number = NAMES.index(name) if name in NAMES else 0
    realm.default_lease_time = 50.0 + number
    limits.configure_queue(realm, realm.queue("é"), 7.0, SETTINGS)
    data = '{"a": ["é"]}'.encode()
    adding.add(realm, [(f"{name} {job}", job % 3, data, (name, "t"), None) for job in range(8 + number)], NOW)
    adding.add(realm, [("large", "é", LARGE + b" " * number, (), None), ("bare", 0, None, (), WISHES)], NOW + 1)
    adding.add(realm, [("bare", 2, None, (), None), (f"{name} 1", 2, None, (), None)], NOW + 2)
    leased = leasing.pull(realm, leasing.Wanted(4, worker="wörker"), NOW + 3)
    finishing.nack(realm, [finishing.lease_id(realm, leased[0])], f"of {name}", None, 100.0, NOW + 3)
    operating.move_job(realm, "bare", 2, -1, NOW + 4)
    realm.drop(realm.get_job(f"{name} 7"))


def keep(realm: Realm, keys: Keys, changes: Changes) -> None:
    """A row in each of the other tables."""
    rows = {
        "tags": TagRow(keys.take(), realm.key, "t", '{"paused": true}', NOW + 5),
        "results": ResultRow(keys.take(), realm.key, "done", NOW + 7, f'"{realm.name}"'),
        "replies": ReplyRow(keys.take(), realm.key, "name", "ab12", NOW + 8, realm.name.encode()),
    }
    for table, row in rows.items():
        getattr(changes, table)[row.key] = row


def make(data_dir: Path, where: dict[int, list[str]], **said: Any) -> None:
    """The files of shards that hold these realms, each with the attributes in `said`."""
    for shard, names in where.items():
        store = SqliteStore(shard_path(data_dir, shard))
        mark = store.load().mark
        keys, changes = Keys(max(mark.next_key, 100 * shard + 1)), Changes()
        for name in names:
            realm = Realm(keys.take(), name, 600.0, keys, changes)
            for attribute, value in said.items():
                setattr(realm, attribute, value)
            fill(realm, name)
            keep(realm, keys, changes)
            realm.write(changed=True)
        asyncio.run(store.commit(changes, Mark(mark.group + 1, keys.next_key, NOW + shard)))
        store.close()


def at_home(count: int) -> dict[int, list[str]]:
    return {shard: [name for name in NAMES if home(name, count) == shard] for shard in range(count)}


def seen(realm: Realm, store: SqliteStore) -> Any:
    """All that can be seen of a realm, in order."""
    realm.check()
    places = [
        (queue.queue_id, queue.lease_time, queue.settings, place.at, place.history, place.job.job_id)
        for queue in realm.served()
        for place in sorted(place for job in realm.jobs.values() for place in job.places if place.queue is queue)
    ]
    jobs = {
        job.job_id: (job.tags, job.terms, store.payload(job.key) if job.job_id == "large" else job.data)
        for job in sorted(realm.jobs.values(), key=lambda job: job.key)
    }
    kept = [
        row._replace(key=row.key - realm.key, realm=0) for table in KEPT for row in all_rows_of(store, table, realm.key)
    ]
    assert len(kept) == len(KEPT)
    proofs = sorted(finishing.lease_id(realm, place) for place in leased_places(realm))
    assert len(proofs) == 3
    return realm.default_lease_time, list(realm.queues), proofs, places, list(jobs.items()), kept


def contents(data_dir: Path) -> dict[int, dict[str, Any]]:
    """What stands in each file: its realms, and all that can be seen of them. No file may hold rows of no realm."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(data_dir.glob("shard-*.sqlite")):
        store = SqliteStore(path)
        loaded = store.load()
        keys = Keys(loaded.mark.next_key)
        loader = Loader(keys, Changes(), lambda: 0.5)
        loader.add_all(loaded)
        realms = loader.finish(NOW)
        assert len({realm.name for realm in realms}) == len(realms), "a realm is in a file once"
        for realm in realms:
            for row in [realm, *realm.queues.values(), *realm.jobs.values()]:
                assert row.key < keys.next_key
        assert row_count(store, "jobs") == sum(len(realm.jobs) for realm in realms)
        assert {row_count(store, table) for table in ("payloads", *KEPT)} == {len(realms)}
        shard = int(path.stem.removeprefix("shard-"))
        found[shard] = {realm.name: seen(realm, store) for realm in realms}
        store.close()
    return found


def row_count(store: SqliteStore, table: str) -> int:
    (count,) = store._database.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


def flat(found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The realms of all files, each of which must be in one only."""
    realms = [item for held in found.values() for item in held.items()]
    assert len({name for name, _ in realms}) == len(realms), "each realm is in one file"
    return dict(realms)


def rows_of(data_dir: Path, shard: int) -> dict[str, Any]:
    store = SqliteStore(shard_path(data_dir, shard))
    rows = {row.name: row for row in store.load().realms}
    store.close()
    return rows


def test_relocate_in_empty_directory_makes_the_files(tmp_path: Path) -> None:
    assert relocate(tmp_path, 3).pinned == {}
    assert contents(tmp_path) == {0: {}, 1: {}, 2: {}}


def test_relocate_with_same_count_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, at_home(3))
    before = contents(tmp_path)
    assert relocate(tmp_path, 3).pinned == {}
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 5), (5, 2), (4, 1), (3, 4), (4, 3)])
def test_relocate_with_other_count_keeps_all_of_every_realm(tmp_path: Path, before: int, after: int) -> None:
    make(tmp_path, at_home(before))
    expected = flat(contents(tmp_path))
    assert relocate(tmp_path, after).pinned == {}
    found = contents(tmp_path)
    assert flat(found) == expected
    for name in NAMES:
        assert name in found[home(name, after)]
        moved = home(name, before) != home(name, after)
        assert rows_of(tmp_path, home(name, after))[name].epoch == 1 + moved, "the copy counts before the original"


def test_relocate_there_and_back_keeps_all_of_every_realm(tmp_path: Path) -> None:
    make(tmp_path, at_home(2))
    expected = contents(tmp_path)
    for count in (5, 1, 3, 2):
        relocate(tmp_path, count)
    assert {shard: realms for shard, realms in contents(tmp_path).items() if realms} == expected


def test_relocate_of_large_realm_in_many_groups_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relocation, "CHUNK_ROWS", 5)
    make(tmp_path, at_home(1))
    expected = flat(contents(tmp_path))
    relocate(tmp_path, 4)
    assert flat(contents(tmp_path)) == expected


def rows_of_a_realm(name: str) -> Changes:
    """Rows of which every column says something."""
    changes = Changes()
    changes.realms[4] = RealmRow(4, name, 60.0, 3, 0, None, '{"max_jobs": 9}', 7, 1234)
    changes.queues[5] = QueueRow(5, 4, "q", 12.5, '{"rate": 2}', NOW + 1)
    changes.tags[6] = TagRow(6, 4, "t", '{"max_leased": 1}', NOW + 2)
    history = (NOW - 5, 11, 3, 2, 9, "w")
    changes.put((7, 5, NOW + 3, *history, 7, 4, "j", '["t"]', "", "ab", len(LARGE), '{"after": ["u"]}'), LARGE)
    changes.put((8, 5, NOW + 4, 0.0, 0, 0, 0, 0, "", 8, 4, "k", "[]", "1", "", 0, ""), None)
    changes.failures[7] = FailureRow(7, 4, "e", -9, NOW)
    changes.results.update({key: ResultRow(key, 4, "done", NOW, str(key)) for key in (9, 10)})
    changes.replies[12] = ReplyRow(12, 4, "n", "cd", NOW, b"reply")
    return changes


def in_another_file(changes: Changes, shift: int) -> dict[str, Any]:
    """These rows by table, with all keys in them higher by `shift`: the first columns, as many as `keys` says."""
    keys = {"realms": 1, "payloads": 1, "queues": 2, "jobs": 2, "places": 3, **dict.fromkeys(KEPT, 2)}
    rows = {
        table: [((key, row) if table == "payloads" else tuple(row)) for key, row in getattr(changes, table).items()]
        for table in keys
    }
    return {
        table: [(*(key + shift for key in row[: keys[table]]), *row[keys[table] :]) for row in found]
        for table, found in rows.items()
    }


def all_rows(data_dir: Path, shard: int) -> dict[str, Any]:
    """Every table that is not empty, without checksums."""
    store = SqliteStore(shard_path(data_dir, shard))
    read = store._database.execute
    rows = {table: [row[:-1] for row in read(f"SELECT * FROM {table}")] for table in Changes.__slots__}
    store.close()
    return {table: found for table, found in rows.items() if found}


def keep_rows(data_dir: Path, shard: int, changes: Changes, mark: Mark) -> None:
    store = SqliteStore(shard_path(data_dir, shard))
    asyncio.run(store.commit(changes, mark))
    store.close()


def test_relocate_carries_every_column_and_changes_keys_alone(tmp_path: Path) -> None:
    name = next(name for name in NAMES if home(name, 2) == 1)
    keep_rows(tmp_path, 0, rows_of_a_realm(name), Mark(1, 20, NOW))
    keep_rows(tmp_path, 1, Changes(), Mark(1, 1000, NOW))
    relocate(tmp_path, 2)
    shift = BLOCK
    expected = in_another_file(rows_of_a_realm(name), shift)
    expected["realms"] = [(4 + shift, name, 60.0, 4, 0, None, '{"max_jobs": 9}', f"[[0, {7 + shift}]]", 1234)]
    assert all_rows(tmp_path, 1) == expected
    assert all_rows(tmp_path, 0) == {}
    keep_rows(tmp_path, 0, Changes(), Mark(9, 5000, NOW))
    relocate(tmp_path, 1)
    (row,) = all_rows(tmp_path, 0)["realms"]
    assert FirstKeys.read(row[-2]).first(row[0]) == 4 - 7, "it is known what each key first was"


def test_relocate_again_and_again_does_not_use_the_numbers_up(tmp_path: Path) -> None:
    """With 40 realms that are added to all the time, a shift of all keys came to 2**63 after some 40 starts."""
    names = [f"r{number}" for number in range(40)]
    chance = random.Random(1)
    shards = 2
    proofs: dict[str, str] = {}  # a lease that each realm has had from the beginning
    for start in range(120):
        for shard in range(shards):
            store = SqliteStore(shard_path(tmp_path, shard))
            loaded = store.load()
            keys, changes = Keys(loaded.mark.next_key), Changes()
            assert keys.next_key < 2**40
            loader = Loader(keys, changes, lambda: 0.5)
            loader.add_all(loaded)
            realms = {realm.name: realm for realm in loader.finish(NOW + start)}
            for name in names:
                if home(name, shards) != shard:
                    continue
                if name in proofs:
                    realm = realms[name]
                    place = finishing.leased_place(realm, proofs[name])
                    assert place is not None
                    assert place.job.job_id == "0"
                    assert [job.job_id for job in realm.roll.after(0)] == [str(job) for job in range(start)]
                else:
                    realm = Realm(keys.take(), name, 600.0, keys, changes)
                adding.add(realm, [(str(start), 0, None, (), None)], NOW + start)
                realm.write(changed=True)
                if name not in proofs:
                    (place,) = leasing.pull(realm, leasing.Wanted(1), NOW + start)
                    proofs[name] = finishing.lease_id(realm, place)
            asyncio.run(store.commit(changes, Mark(loaded.mark.group + 1, keys.next_key, NOW + start)))
            store.close()
        shards = chance.randint(1, 5)
        relocate(tmp_path, shards)


def test_relocate_leaves_replies_of_requests_over_several_realms(tmp_path: Path) -> None:
    changes = rows_of_a_realm(next(name for name in NAMES if home(name, 2) == 1))
    reply = ReplyRow(13, 0, "n", "ef", NOW, b"over realms")
    changes.replies[13] = reply
    keep_rows(tmp_path, 0, changes, Mark(1, 20, NOW))
    relocate(tmp_path, 2)
    assert all_rows(tmp_path, 0) == {"replies": [reply]}
    assert [row[-1] for row in all_rows(tmp_path, 1)["replies"]] == [b"reply"]


def test_relocate_of_large_results_in_groups_of_bounded_size_keeps_them(
    tmp_path: Path, crashes: Crashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relocation, "CHUNK_ROWS", 1000)
    monkeypatch.setattr(relocation, "CHUNK_BYTES", 2_500)
    changes = rows_of_a_realm(next(name for name in NAMES if home(name, 2) == 1))
    changes.payloads.clear()
    changes.jobs.clear()
    changes.places.clear()
    changes.results = {key: ResultRow(key, 4, "j", NOW, "x" * 1000) for key in range(20, 50)}
    keep_rows(tmp_path, 0, changes, Mark(1, 60, NOW))
    crashes.count = 0
    relocate(tmp_path, 2)
    assert 10 <= crashes.count <= 15, "a group is three of them"
    assert len(all_rows(tmp_path, 1)["results"]) == 30


def test_relocate_gives_out_no_number_twice(tmp_path: Path) -> None:
    """Leases are proven by their numbers: what the old file gave out, the new one must not give out again."""
    make(tmp_path, {0: [name for name in NAMES if home(name, 2) == 1]})
    store = SqliteStore(shard_path(tmp_path, 0))
    mark = store.load().mark
    store.close()
    relocate(tmp_path, 2)
    store = SqliteStore(shard_path(tmp_path, 1))
    moved = store.load().mark
    assert moved.next_key >= mark.next_key
    assert moved.clock >= mark.clock
    store.close()


def test_relocate_leaves_pinned_realms_where_they_are(tmp_path: Path) -> None:
    away = [name for name in NAMES if home(name, 3) == 0][:2]
    make(tmp_path, {2: away}, pinned=True)
    make(tmp_path, {shard: [name for name in names if name not in away] for shard, names in at_home(3).items()})
    expected = contents(tmp_path)
    assert relocate(tmp_path, 3).pinned == dict.fromkeys(away, 2)
    assert contents(tmp_path) == expected
    assert all(rows_of(tmp_path, 2)[name].pinned for name in away)


def test_relocate_sends_pinned_realms_home_when_their_shard_is_no_more(tmp_path: Path) -> None:
    make(tmp_path, {2: NAMES}, pinned=True)
    expected = flat(contents(tmp_path))
    assert relocate(tmp_path, 2).pinned == {}
    found = contents(tmp_path)
    assert flat(found) == expected
    assert sorted(found) == [0, 1]
    for shard in (0, 1):
        assert set(found[shard]) == {name for name in NAMES if home(name, 2) == shard}
        assert not any(row.pinned for row in rows_of(tmp_path, shard).values())


@pytest.mark.parametrize("kind", ["clear_queue", "remove_tagged_jobs", "delete"])
def test_relocate_of_pinned_realm_with_removal_under_way_keeps_pin_and_removal(tmp_path: Path, kind: str) -> None:
    name = next(name for name in NAMES if home(name, 2) == 0)
    make(tmp_path, {1: [name]}, pinned=True, task=Task(kind, 0))
    assert relocate(tmp_path, 2).pinned == {name: 1}
    assert rows_of(tmp_path, 1)[name].pinned
    assert json.loads(rows_of(tmp_path, 1)[name].task)[0] == kind


def test_relocate_of_realm_with_removal_under_way_takes_the_removal_along(tmp_path: Path) -> None:
    name = next(name for name in NAMES if home(name, 2) == 1)
    make(tmp_path, {0: [name]}, task=Task("clear_queue", 0))
    relocate(tmp_path, 2)
    assert rows_of(tmp_path, 0) == {}
    assert json.loads(rows_of(tmp_path, 1)[name].task)[:2] == ["clear_queue", 0]


@pytest.mark.parametrize("shard", [0, 1])
def test_relocate_of_realm_that_was_on_the_move_ends_the_move(tmp_path: Path, shard: int) -> None:
    name = next(name for name in NAMES if home(name, 2) == 0)
    make(tmp_path, {shard: [name]}, pinned=True, task=Task("move", 1 - shard))
    expected = flat(contents(tmp_path))
    assert relocate(tmp_path, 2).pinned == {}
    assert contents(tmp_path) == {0: expected, 1: {}}
    row = rows_of(tmp_path, 0)[name]
    assert (row.task, row.pinned) == (None, 0)


@pytest.mark.parametrize("kind", ["pinned", "pinned, to go home"])
def test_relocate_of_pinned_realm_that_was_to_move_on_keeps_the_pin_unless_it_was_to_go_home(
    tmp_path: Path, kind: str
) -> None:
    name = next(name for name in NAMES if home(name, 3) == 0)
    is_to_stay = kind == "pinned"
    make(tmp_path, {1: [name]}, pinned=is_to_stay, task=Task("move", 2 if is_to_stay else 0, (1,)))
    expected = flat(contents(tmp_path))
    for _ in range(2):
        assert relocate(tmp_path, 3).pinned == ({name: 1} if is_to_stay else {})
        row = rows_of(tmp_path, is_to_stay)[name]
        assert (row.task, row.pinned) == (None, is_to_stay)
    assert flat(contents(tmp_path)) == expected


@pytest.mark.parametrize("added", [[], ["new"]])
def test_relocate_of_realm_deleted_where_it_came_to_before_the_source_knew_does_not_bring_it_back(
    tmp_path: Path, added: list[str]
) -> None:
    stores = [SqliteStore(shard_path(tmp_path, shard)) for shard in range(2)]
    here, there = (Rig(shard, 2, store) for shard, store in enumerate(stores))
    here.add(HOME_0, "a", "b")
    move(here, there, HOME_0)
    there.send("place_realm", HOME_0, [0])
    there.turn()
    send_rows(there, here)
    here.ask("delete_realm", HOME_0)
    if added:
        here.add(HOME_0, *added)
    for store in stores:
        store.close()
    relocate(tmp_path, 2)
    for shard, expected in ((0, added), (1, [])):
        store = SqliteStore(shard_path(tmp_path, shard))
        assert [row[11] for row in store.load().places] == expected
        assert bool(store.load().realms) == bool(expected)
        store.close()


def test_relocate_drops_realm_that_never_arrived(tmp_path: Path) -> None:
    name = next(name for name in NAMES if home(name, 2) == 0)
    make(tmp_path, {0: [name]}, task=Task("arrive"), epoch=9)
    make(tmp_path, {1: [name]}, pinned=True)
    expected = contents(tmp_path)[1]
    assert relocate(tmp_path, 2).pinned == {name: 1}
    assert contents(tmp_path) == {0: {}, 1: expected}


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (7, 3)])
def test_relocate_of_realm_in_two_files_keeps_the_one_with_higher_epoch(
    tmp_path: Path, first: int, second: int
) -> None:
    name = NAMES[0]
    make(tmp_path, {0: [name]}, epoch=first)
    make(tmp_path, {1: [name]}, epoch=second, default_lease_time=5.0)
    store = SqliteStore(shard_path(tmp_path, 1))
    (row,) = store.load().realms
    changes = Changes()
    changes.realms[row.key] = row._replace(default_lease_time=5.0)
    asyncio.run(store.commit(changes, store.load().mark))
    store.close()
    found = contents(tmp_path)
    winner = found[0 if first > second else 1][name]
    assert found[0][name] != found[1][name]
    relocate(tmp_path, 2)
    assert flat(contents(tmp_path)) == {name: winner}
    assert name in contents(tmp_path)[home(name, 2)]


def test_relocate_forgets_notes_on_realms_elsewhere(tmp_path: Path) -> None:
    make(tmp_path, at_home(2))
    store = SqliteStore(shard_path(tmp_path, 0))
    changes = Changes()
    changes.moved.update({name: MovedRow(name, 1, 0) for name in ("gone", NAMES[0])})
    asyncio.run(store.commit(changes, store.load().mark))
    store.close()
    relocate(tmp_path, 2)
    store = SqliteStore(shard_path(tmp_path, 0))
    assert store.load().moved == []
    store.close()


def test_relocate_with_file_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, at_home(1))
    expected = contents(tmp_path)
    shard_path(tmp_path, 1).write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreRefused):
        relocate(tmp_path, 2)
    shard_path(tmp_path, 1).unlink()
    assert contents(tmp_path) == expected


def test_relocate_to_fewer_shards_leaves_no_file_of_the_others(tmp_path: Path) -> None:
    make(tmp_path, at_home(4))
    relocate(tmp_path, 4)
    expected = flat(contents(tmp_path))
    relocate(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir() if "shard-0002" in path.name or "shard-0003" in path.name} == set()
    assert shard_count(tmp_path) == 2
    relocate(tmp_path, 3)
    assert (flat(contents(tmp_path)), shard_count(tmp_path)) == (expected, 3)


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_relocate_without_a_database_that_was_there_is_refused_and_changes_nothing(tmp_path: Path, what: str) -> None:
    make(tmp_path, at_home(3))
    relocate(tmp_path, 3)
    path = shard_path(tmp_path, 1)
    aside = path.read_bytes()
    path.unlink() if what == "missing" else path.write_bytes(b"")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for count in (1, 2, 3):
        with pytest.raises(StoreRefused, match=r"shard-0001\.sqlite is not there, or is empty"):
            relocate(tmp_path, count)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    path.write_bytes(aside)
    relocate(tmp_path, 3)


class Crash(Exception):
    """The process ends here."""


class Crashes:
    """Lets so many writes to the files happen and then ends the run, before the next one or just after it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = 1_000_000
        self.count = 0
        self.after = False
        commit, remove_realms = SqliteStore.commit, SqliteStore.remove_realms

        async def counted_commit(store: SqliteStore, changes: Changes, mark: Mark) -> None:
            self.before_write()
            await commit(store, changes, mark)
            self.after_write()

        def counted_remove(store: SqliteStore, keys: list[int]) -> None:
            self.before_write()
            remove_realms(store, keys)
            self.after_write()

        patch.setattr(SqliteStore, "commit", counted_commit)
        patch.setattr(SqliteStore, "remove_realms", counted_remove)

    def before_write(self) -> None:
        self.count += 1
        self.left -= 1
        if self.left < 0 and not self.after:
            raise Crash

    def after_write(self) -> None:
        if self.left < 0:
            raise Crash


@pytest.fixture
def crashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crashes]:
    monkeypatch.setattr(relocation, "CHUNK_ROWS", 15)
    return Crashes(monkeypatch)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 2)])
def test_relocate_after_crash_at_any_write_has_each_realm_whole_in_one_file(
    tmp_path: Path, crashes: Crashes, old: int, new: int, after: bool
) -> None:
    names = NAMES[:4]
    where = {shard: [name for name in names if home(name, old) == shard] for shard in range(old)}
    make(tmp_path / _made(tmp_path, "sample"), where)
    expected = flat(contents(tmp_path / "sample"))
    crashes.count = 0
    relocate(tmp_path / "sample", new)
    writes = crashes.count
    assert writes >= 5
    for at in range(writes):
        data_dir = tmp_path / _made(tmp_path, f"crash {at}")
        make(data_dir, where)
        crashes.left, crashes.after = at, after
        with pytest.raises(Crash):
            relocate(data_dir, new)
        crashes.left = at + 1  # the start after that does not get to its end either
        with contextlib.suppress(Crash):
            relocate(data_dir, old)
        crashes.left = 1_000_000
        assert relocate(data_dir, new).pinned == {}
        found = contents(data_dir)
        assert flat(found) == expected
        assert all(name in found[home(name, new)] for name in names)


def _made(parent: Path, name: str) -> str:
    (parent / name).mkdir()
    return name
