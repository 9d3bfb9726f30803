"""The life of one store under power cuts: what it must hold after each, and whether it does.

`Workload` lets a store open, commit, checkpoint, close, die and start again, and takes states of the disk after each
call. Each is opened as a start would: all whose commit had returned must be there, and it must be as it was after one
of the commits. What a start showed counts as answered.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

from powercut import FATES, Disk, Files
from recorded_vfs import (
    IOERR_DELETE,
    IOERR_FSYNC,
    IOERR_TRUNCATE,
    IOERR_WRITE,
    SQLITE_FULL,
    SQLITE_OK,
    Call,
    recorded,
)

from restq.errors import StorageFull
from restq.shards import reserve, sqlite_store
from restq.shards.changes import Changes, FailureRow, MovedRow, QueueRow, RealmRow, ReplyRow, ResultRow, TagRow
from restq.shards.memory_store import MemoryStore
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import KEPT, Kept, Mark, Store, StoreFailed, StoreRefused

ROWS_MAX = 1_000_000
SHOWN_CUTS = 3  # after each start, before anything else is done


def all_rows_of(store: Store, table: str, realm_key: int, limit: int = ROWS_MAX) -> list[Kept]:
    """The realm's rows, found in looks at so many rows."""
    rows: list[Kept] = []
    after: int | None = 0
    while after is not None:
        found, after = store.rows_of(table, realm_key, after, limit)
        rows += found
    return rows


def contents(store: Store) -> tuple[Any, ...]:
    """All that can be read of a store, as plain values."""
    loaded = store.load()
    places = [tuple(row) for row in loaded.places]
    realm_keys = [0, *(realm.key for realm in loaded.realms)]
    kept = [list(map(tuple, all_rows_of(store, table, key))) for table in KEPT for key in realm_keys]
    payloads = {row[9]: hashlib.sha1(store.payload(row[9])).digest() for row in places if row[14]}
    replies = [tuple(row) for row in loaded.replies]
    lists = list(map(tuple, loaded.realms)), list(map(tuple, loaded.queues)), list(map(tuple, loaded.tags))
    return (loaded.mark, lists, replies, loaded.result_counts, list(map(tuple, loaded.moved)), places, kept, payloads)


class Expected(MemoryStore):
    """What the store must hold."""

    def copy(self) -> Expected:
        """Another, that goes its own way."""
        other = Expected()
        other._mark = self._mark
        other._tables = {table: dict(rows) for table, rows in self._tables.items()}
        return other

    def keys(self, table: str) -> list[Any]:
        """The keys of a table."""
        return list(self._tables[table])

    def remove_realms(self, realm_keys: list[int]) -> None:
        """As the store does it at a start."""
        tables = self._tables
        jobs = {key for key, row in tables["jobs"].items() if row[1] in realm_keys}
        tables["places"] = {key: row for key, row in tables["places"].items() if row[1] not in jobs}
        tables["payloads"] = {key: row for key, row in tables["payloads"].items() if key not in jobs}
        for table in ("jobs", "queues", *KEPT):
            tables[table] = {key: row for key, row in tables[table].items() if row[1] not in realm_keys}
        tables["realms"] = {key: row for key, row in tables["realms"].items() if key not in realm_keys}


def random_changes(chance: random.Random, expected: Expected, keys: itertools.count[int]) -> Changes:
    """A group as turns make them: small ones and large ones, adds, leases and removes."""
    changes = Changes()
    realms = expected.keys("realms")
    if not realms or chance.random() < 0.1:
        key = next(keys)
        changes.realms[key] = RealmRow(key, f"realm {key}", 600.0, 1, 0, None)
        changes.queues[key] = QueueRow(key, key, "q", 0.0)
        realms.append(key)
    for key in chance.sample(jobs := expected.keys("jobs"), min(len(jobs), chance.choice((0, 1, 5, 40)))):
        if chance.random() < 0.5:
            changes.places[key] = (key, key, 1, chance.random(), 1.0, next(keys), 0, 0, 0, "w")
        else:
            changes.jobs[key] = changes.places[key] = changes.payloads[key] = changes.failures[key] = None
    for _ in range(chance.choice((1, 1, 3, 20, 60))):
        key, realm = next(keys), chance.choice(realms)
        payload = chance.randbytes(chance.choice((5_000, 60_000))) if chance.random() < 0.05 else b""
        data = "x" * chance.choice((0, 10, 500, 3000))
        digest = f"digest {key}" if payload else ""
        changes.jobs[key] = (key, realm, f"job {key}", '["t"]', data, digest, len(payload), "")
        changes.places[key] = (key, key, 1, chance.random(), 0.0, 0, 0, 0, 0, "")
        if payload:
            changes.payloads[key] = payload
    key, realm = next(keys), chance.choice(realms)
    for table, row in (
        ("tags", TagRow(key, realm, "t", "{}", 0.5)),
        ("failures", FailureRow(key, realm, "error", 1, 0.5)),
        ("results", ResultRow(key, realm, "job", 0.5, "{}")),
        ("replies", ReplyRow(key, chance.choice((0, realm)), f"name {key}", "d", 0.5, chance.randbytes(200))),
        ("moved", MovedRow(f"realm {key}", chance.randrange(4), key)),
    ):
        if chance.random() < 0.2:
            getattr(changes, table)[f"realm {key}" if table == "moved" else key] = row
    return changes


# -- a life under power cuts -----------------------------------------------------------------------------------------


class Workload:
    """The life of one store. `problems` says what no power cut may do; `counts` what was tried.

    `cuts` is how many states are taken after each call, on average. In each session the disk fails as one of `failing`
    says: in a "sync", in a "write", because it is full, or not at all. It begins with `files`, which hold what `first`
    says. `pragma` is a fault to plant, for SQLite.
    """

    def __init__(
        self,
        seed: int,
        folder: Path,
        cuts: float,
        failing: tuple[str, ...] = ("",),
        pragma: str = "",
        files: Files | None = None,
        first: tuple[Any, ...] = (),
    ) -> None:
        self._chance = random.Random(seed)
        self._cuts = cuts
        self._pragma = pragma
        self._live = folder / "live"
        self._scratch = folder / "cut"
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self._disk = Disk(files or {})
        _make(self._live, files or {})
        self._keys = itertools.count(1)
        expected = Expected()
        self._states = [(expected, first or contents(expected))]
        self._returned = 0  # what is certain: the state of this number
        self._begun = 0
        self._group = 0
        self._taken: list[tuple[int, int, str, Files]] = []
        self._seen: set[bytes] = set()
        self._failing = failing
        self._syncs_left = 0  # until one fails
        self._full_in = 0  # writes, until the disk is full for some
        self._calls_left = -1  # until the process is killed
        self._dies_anywhere = False  # or in a sync
        self._is_dead = False
        self._what = ""
        self._has_reserve = False

    def run(self, sessions: int, commits: int) -> Workload:
        """Live through so many starts, with up to so many commits each; stop at a problem."""
        pages = self._chance.choice((4, 16, 64, 4096))
        reserve_bytes = self._chance.choice((0, 1 << 16, 1 << 18))
        self._has_reserve = reserve_bytes > 0
        cache = self._chance.choice((40, 16384))
        with (
            mock.patch.object(sqlite_store, "WAL_PAGES_MAX", pages),
            mock.patch.object(sqlite_store, "CACHE_KIB", cache),
            mock.patch.object(reserve, "RESERVE_BYTES_MAX", reserve_bytes),
            mock.patch.object(os, "open", self._open),
            mock.patch.object(os, "pwrite", self._pwrite),
            mock.patch.object(os, "fsync", self._fsync),
            recorded(self._called) as vfs,
        ):
            for _ in range(sessions):
                self._session(commits)
                self._check()
                if self.problems:
                    break
        assert vfs.shm_maps == 0, "nothing was in memory that processes share"
        return self

    # -- what is done ----------------------------------------------------------------------------------------------

    def _session(self, commits: int) -> None:
        chance = self._chance
        self._is_dead = False
        fails = chance.choice(self._failing)
        is_new = not any(self._live.iterdir())
        fails_at_start = fails == "open" or (fails == "sync" and is_new)
        self._syncs_left = chance.randint(1, 2 * commits + 1 if is_new else 4) if fails_at_start else 0
        self._full_in = 0
        self._dies_anywhere = chance.random() < 0.5
        self._calls_left = chance.choice((-1, chance.randint(1, (100 if self._dies_anywhere else 2) * commits + 1)))
        self._what = "open"
        try:
            store = SqliteStore(self._path)
        except StoreRefused as refused:
            if not self._is_dead and not fails_at_start:
                self.problems.append(f"a start was refused: {refused}")
            self._end(chance.choice(("kill", "cut")))
            return
        try:
            store._database.execute(self._pragma)
            if self._has_reserve:
                store.keep_reserve(1)
            self._settle(store)
            for _ in range(SHOWN_CUTS):
                self._take()
            self._syncs_left = chance.randint(1, commits + 1) if fails == "sync" else 0
            self._full_in = chance.randint(1, 50 * commits + 1) if fails == "write" else 0
            for _ in range(chance.randint(0, commits)):
                self._step(store)
        except StoreFailed:
            self.counts["kills in a call" if self._is_dead else "failed syncs"] += 1
        end = chance.choice(("close", "kill", "kill", "cut"))
        self._what = end
        self._is_dead |= end != "close"
        store.close()
        self._end(end)

    @property
    def _path(self) -> Path:
        return self._live / "shard.sqlite"

    def _settle(self, store: SqliteStore) -> None:
        """What the start shows is certain from now on: replies may tell it."""
        found = contents(store)
        for number in range(self._begun, self._returned - 1, -1):
            if self._states[number][1] == found:
                del self._states[number + 1 :]
                self._returned = self._begun = number
                return
        self.problems.append("a start without a power cut showed what was never kept")

    def _step(self, store: SqliteStore) -> None:
        chance = self._chance
        expected = self._states[self._begun][0].copy()
        self._group += 1
        realms = expected.keys("realms")
        gone = chance.sample(realms, 1) if realms and chance.random() < 0.03 else []
        changes = random_changes(chance, expected, self._keys)
        mark = Mark(self._group, next(self._keys), float(self._group))
        if gone:
            expected.remove_realms(gone)
        else:
            _run(expected.commit(changes, mark))
        self._begin(expected, "remove_realms" if gone else "commit")
        try:
            if gone:
                store.remove_realms(gone)
            else:
                _run(store.commit(changes, mark))
        except StorageFull:
            self.counts["full"] += 1
            self._begun -= 1
        self._returned = self._begun
        self.counts["commits"] += 1
        self._take()
        self._check()
        del self._states[self._begun + 1 :]

    def _begin(self, expected: Expected, what: str) -> None:
        self._states.append((expected, contents(expected)))
        self._begun += 1
        self._what = what

    def _end(self, end: str) -> None:
        """The next session begins with what the kernel holds, or with what a power cut left."""
        self._is_dead = False
        if end != "cut":
            return
        files = self._disk.cut(self._chance, self._chance.choice(FATES))
        shutil.rmtree(self._live)
        _make(self._live, files)
        self._disk = Disk(files)

    # -- what is noted ---------------------------------------------------------------------------------------------

    def _called(self, call: Call) -> int:
        kind, path, *what = call
        if not path.startswith(f"{self._live}/") or path.endswith(".reserve"):
            return SQLITE_OK
        self._calls_left -= not self._is_dead and (kind == "sync" or self._dies_anywhere)
        self._is_dead |= self._calls_left == 0
        if self._is_dead:
            if kind == "create":  # of which we are told once it is there
                self._disk.follow(kind, os.path.basename(path))
            return {"write": IOERR_WRITE, "truncate": IOERR_TRUNCATE, "delete": IOERR_DELETE}.get(kind, IOERR_FSYNC)
        self.counts["calls"] += 1
        self.counts[kind] += 1
        result = SQLITE_OK
        if kind == "write" and self._full_in:
            self._full_in -= 1
            if not self._full_in:
                self._full_in = self._chance.choice((0, 0, 1, 1, 1))
                return SQLITE_FULL
        if kind == "sync" and self._syncs_left:
            self._syncs_left -= 1
            if not self._syncs_left:
                kind, result = "sync failed", IOERR_FSYNC
        self._disk.follow(kind, os.path.basename(path), *what)
        self._take()
        return result

    # What the store does without SQLite.

    def _open(self, path: Any, flags: int, *more: Any, **options: Any) -> int:
        is_new = bool(flags & os.O_CREAT) and not os.path.exists(path)
        if is_new and self._called(("create", str(path))):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return _open(path, flags, *more, **options)

    def _pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        if self._called(("write", _path_of(descriptor), offset, bytes(data))):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return _pwrite(descriptor, data, offset)

    def _fsync(self, descriptor: int) -> None:
        path = _path_of(descriptor)
        if self._called(("sync directory", f"{path}/") if os.path.isdir(path) else ("sync", path)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        _fsync(descriptor)

    def _take(self) -> None:
        """Keep states for `_check`: SQLite is in the middle of a call, and may hold locks of its own."""
        count = int(self._cuts) + (self._chance.random() < self._cuts % 1)
        for _ in range(count):
            fate = self._chance.choice(FATES)
            files = self._disk.cut(self._chance, fate)
            self.counts["states"] += 1
            digest = hashlib.sha1(repr((self._returned, self._begun)).encode())
            for name, content in files.items():
                digest.update(name.encode() + content)
            if digest.digest() not in self._seen:
                self._seen.add(digest.digest())
                self._taken.append((self._returned, self._begun, f"{fate} in {self._what}", files))

    def _check(self) -> None:
        for returned, begun, what, files in self._taken:
            shutil.rmtree(self._scratch, ignore_errors=True)
            _make(self._scratch, files)
            self.counts["different states"] += 1
            if problem := self._problem(returned, begun):
                self.problems.append(f"{what}: {problem}")
                self.counts[problem.partition(":")[0]] += 1
        self._taken.clear()

    def _problem(self, returned: int, begun: int) -> str:
        try:
            store = SqliteStore(self._scratch / "shard.sqlite")
        except StoreRefused as refused:
            return f"refused: {refused}"
        try:
            found = contents(store)
        except (StoreRefused, StoreFailed) as damaged:
            return f"damaged: {damaged}"
        finally:
            store.close()
        numbers = range(len(self._states) - 1, -1, -1)
        number = next((number for number in numbers if self._states[number][1] == found), None)
        if number is None:
            return "mixed: it is as it never was"
        if number < returned:
            return f"lost: it is as after commit {number}, and {returned} were answered"
        return "" if number <= begun else "early: it holds what was not yet asked"


_open, _pwrite, _fsync = os.open, os.pwrite, os.fsync


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _run(commit: Coroutine[Any, Any, None]) -> None:
    """A store of a file awaits nothing: no loop is needed."""
    with contextlib.suppress(StopIteration):
        commit.send(None)


def _make(folder: Path, files: Files) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
