"""A data directory of format 1, as restq 1.0.0 left it: opened and served by this one, nothing is lost.

The old format stands here as it was written then: it must never follow a change of the code.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, StartServer
from polling import eventually
from processes import children, is_running
from wire import ask, names_on

from restq.data_dir import shard_path
from restq.placement import home
from restq.shards import schema
from restq.shards.changes import Changes, FailureRow, MovedRow, QueueRow, RealmRow, ReplyRow, ResultRow, TagRow
from restq.shards.relocation import relocate
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import Mark, StoreRefused

FORMAT_1 = """
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE mark (id INTEGER PRIMARY KEY CHECK (id = 1), last_group INTEGER, next_key INTEGER, clock REAL);
INSERT INTO mark VALUES (1, 0, 1, 0.0);
CREATE TABLE realms (key INTEGER PRIMARY KEY, name TEXT NOT NULL, default_lease_time REAL NOT NULL,
    epoch INTEGER NOT NULL, pinned INTEGER NOT NULL, task TEXT);
CREATE TABLE queues (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, queue_id NOT NULL, lease_time REAL NOT NULL);
CREATE TABLE jobs (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, job_id TEXT NOT NULL, tags TEXT NOT NULL,
    data TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE places (key INTEGER PRIMARY KEY, job INTEGER NOT NULL, queue INTEGER NOT NULL, at REAL NOT NULL,
    leased_at REAL NOT NULL, lease INTEGER NOT NULL);
CREATE TABLE payloads (key INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE moved (name TEXT PRIMARY KEY, shard INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA application_id = 1381192785;
PRAGMA user_version = 1;
COMMIT;
"""
# What 1.1.0 added to that.
FORMAT_2 = """
BEGIN;
ALTER TABLE realms ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
ALTER TABLE realms ADD COLUMN shift INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queues ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
ALTER TABLE realms ADD COLUMN born INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queues ADD COLUMN next_at REAL NOT NULL DEFAULT 0.0;
ALTER TABLE jobs ADD COLUMN terms TEXT NOT NULL DEFAULT '';
ALTER TABLE places ADD COLUMN nacks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE places ADD COLUMN expiries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE places ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;
ALTER TABLE places ADD COLUMN worker TEXT NOT NULL DEFAULT '';
CREATE TABLE tags (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, tag TEXT NOT NULL, settings TEXT NOT NULL,
    next_at REAL NOT NULL);
CREATE TABLE failures (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, error TEXT NOT NULL, exit_code INTEGER,
    at REAL NOT NULL);
CREATE TABLE results (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, job_id TEXT NOT NULL, at REAL NOT NULL,
    text TEXT NOT NULL);
CREATE INDEX results_by_realm ON results (realm);
CREATE TABLE replies (key INTEGER PRIMARY KEY, realm INTEGER NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL,
    at REAL NOT NULL, body BLOB NOT NULL);
PRAGMA user_version = 2;
COMMIT;
"""
MIGRATION_STEPS = [
    (version, step) for version in (2, 3) for step in range(len(schema.MIGRATIONS[version].split(";")) + 1)
]

# The lease times, and what is under way, differ from realm to realm. Two shards: the first four are at home in 0.
WORK, AWAY, CLEARED, UNTAGGED = (next(names_on(0, name)) for name in ("work", "away", "cleared", "untagged"))
MOVING, DELETED = (next(names_on(1, name)) for name in ("moving", "deleted"))

LARGE = '"' + "é" * 9_000 + '"'
LARGE_DIGEST = "82517b7765c7f5c51d63f5f81a33c59e"

Rows = dict[str, list[tuple[Any, ...]]]


def rows_of_shard_0(now: float) -> Rows:
    """Jobs ready, leased, with a lease that ran out, in two queues, large; a queue and a tag on their way out."""
    return {
        "mark": [(1, 41, 100, now - 1)],
        "realms": [
            (1, WORK, 700.0, 1, 0, None),
            (30, CLEARED, 600.0, 1, 0, '["clear_queue", "old"]'),
            (50, UNTAGGED, 600.0, 2, 0, '["remove_tagged_jobs", "t"]'),
        ],
        "queues": [
            (2, 1, -5, 700.0),
            (3, 1, "slow é", 123456.0),
            (31, 30, "old", 600.0),
            (32, 30, 7, 600.0),
            (51, 50, 0, 600.0),
        ],
        "jobs": [
            (4, 1, "ready", "[]", "", "", 0),
            (5, 1, "both\nü", '["x", "é 😀"]', '{"b": 1.50, "a": [null]}', "", 0),
            (7, 1, "leased", '["x"]', "0", "", 0),
            (8, 1, "expired", '["x"]', "null", "", 0),
            (9, 1, "large", "[]", "", LARGE_DIGEST, len(LARGE.encode())),
            (33, 30, "goes", "[]", "", "", 0),
            (34, 30, "stays", "[]", "", "", 0),
            (36, 30, "goes too", "[]", "", "", 0),
            (52, 50, "goes", '["s", "t"]', "", "", 0),
            (53, 50, "stays", '["s"]', "", "", 0),
        ],
        "places": [
            (4, 4, 2, now - 300, 0.0, 0),
            (5, 5, 2, now - 200, 0.0, 0),
            (6, 5, 3, now + 100_000, now - 23_456, 77),
            (7, 7, 2, now + 500, now - 200, 78),
            (8, 8, 2, now - 100, now - 800, 70),
            (9, 9, 3, now - 50, 0.0, 0),
            (33, 33, 31, now - 9, 0.0, 0),
            (34, 34, 31, now - 9, 0.0, 0),
            (35, 34, 32, now - 9, 0.0, 0),
            (36, 36, 31, now + 600, now - 1, 79),
            (52, 52, 51, now - 9, 0.0, 0),
            (53, 53, 51, now - 8, 0.0, 0),
        ],
        "payloads": [(9, LARGE.encode())],
        "moved": [(AWAY, 1)],
    }


def rows_of_shard_1(now: float) -> Rows:
    """A realm that is pinned here, one on its way to shard 0, one that is being deleted."""
    return {
        "mark": [(1, 7, 60, now - 2)],
        "realms": [
            (1, AWAY, 50.0, 4, 1, None),
            (20, MOVING, 60.0, 3, 1, '["move", 0]'),
            (40, DELETED, 600.0, 1, 0, '["delete", null]'),
        ],
        "queues": [(2, 1, 0, 50.0), (21, 20, 0, 60.0), (41, 40, 0, 600.0)],
        "jobs": [
            (3, 1, "pinned", '["p"]', "[1]", "", 0),
            (22, 20, "moving", "[]", "[2]", "", 0),
            (42, 40, "deleted", "[]", "", "", 0),
        ],
        "places": [
            (3, 3, 2, now - 5, 0.0, 0),
            (22, 22, 21, now + 400, now - 6, 18),
            (42, 42, 41, now - 5, 0.0, 0),
        ],
        "payloads": [],
        "moved": [],
    }


def write(path: Path, rows: Rows) -> sqlite3.Connection:
    """A file of format 1. Until the connection is closed, it is as a server that was killed left it."""
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(FORMAT_1)
    database.execute("PRAGMA wal_autocheckpoint = 0")
    database.execute("BEGIN")
    for table, found in rows.items():
        for row in found:
            database.execute(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(row))})", row)
    database.execute("COMMIT")
    return database


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A data directory of two shards, both killed."""
    written, left = tmp_path / "written", tmp_path / "data"
    written.mkdir()
    left.mkdir()
    now = time.time()
    opened = [
        write(shard_path(written, shard), rows)
        for shard, rows in enumerate((rows_of_shard_0(now), rows_of_shard_1(now)))
    ]
    for shard in (0, 1):
        copy(shard_path(written, shard), left)
    for database in opened:
        database.close()
    return left


def copy(path: Path, target: Path) -> Path:
    """A file and its log, as they are at this moment."""
    for file in path.parent.glob(f"{path.name}*"):
        if file.name in (path.name, f"{path.name}-wal"):
            shutil.copy(file, target / file.name)
    return target / path.name


def read(path: Path, select: str) -> list[Any]:
    """What stands in a file that nobody holds; of its log, nothing is moved into it."""
    aside = path.parent / "aside"
    aside.mkdir(exist_ok=True)
    database = sqlite3.connect(copy(path, aside))
    try:
        return database.execute(select).fetchall()
    finally:
        database.close()
        shutil.rmtree(aside)


def old_rows(path: Path) -> Rows:
    """All rows of a file of format 1, by table."""
    return {table: read(path, f"SELECT * FROM {table}") for table in rows_of_shard_0(0.0)}


def log_size(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


# -- the store -------------------------------------------------------------------------------------------------------


def test_open_of_format_1_keeps_every_row_and_adds_defaults(old: Path) -> None:
    for shard in (0, 1):
        path = shard_path(old, shard)
        rows = old_rows(path)
        assert log_size(path) > 0, "it was killed"
        store = SqliteStore(path)
        loaded = store.load()
        assert [tuple(loaded.mark)] == [row[1:] for row in rows["mark"]]
        assert loaded.realms == [RealmRow(*row, "{}", 0) for row in rows["realms"]]
        assert loaded.queues == [QueueRow(*row, "{}", 0.0) for row in rows["queues"]]
        assert (loaded.tags, loaded.replies, loaded.result_counts) == ([], [], {})
        assert loaded.moved == [MovedRow(*row, 0) for row in rows["moved"]]
        jobs = {row[0]: (*row, "") for row in rows["jobs"]}
        assert list(loaded.places) == [
            (key, queue, at, leased_at, lease, 0, 0, 0, "", *jobs[job])
            for key, job, queue, at, leased_at, lease in rows["places"]
        ]
        for key, data in rows["payloads"]:
            assert store.payload(key) == data
        store.close()
        assert read(path, "PRAGMA user_version") == [(schema.FORMAT,)]
        assert read(path, "PRAGMA integrity_check") == [("ok",)]


def test_commit_into_upgraded_file_keeps_every_new_column(old: Path) -> None:
    path = shard_path(old, 0)
    changes = Changes()
    changes.realms[1] = RealmRow(1, WORK, 700.0, 1, 0, None, '{"max_jobs": 5}', 12)
    changes.queues[2] = QueueRow(2, 1, -5, 700.0, '{"paused": true}', 1e9)
    place = (4, 2, 1e9, 1e9 - 1, 90, 3, 2, 1, "w", 4, 1, "ready", "[]", "", "", 0, '{"after": ["x"]}')
    changes.put(place, None)
    tag, failure = TagRow(101, 1, "x", "{}", 1e9), FailureRow(4, 1, "e", 1, 1e9)
    result, reply = ResultRow(102, 1, "done", 1e9, "{}"), ReplyRow(103, 1, "n", "ab", 1e9, b"body")
    changes.tags[101], changes.failures[4], changes.results[102], changes.replies[103] = tag, failure, result, reply
    store = SqliteStore(path)
    count = len(list(store.load().places))
    asyncio.run(store.commit(changes, Mark(42, 104, 1e9)))
    store.close()
    store = SqliteStore(path)
    loaded = store.load()
    assert (loaded.realms[0], loaded.queues[0], loaded.tags) == (changes.realms[1], changes.queues[2], [tag])
    places = list(loaded.places)
    assert (len(places), places[0]) == (count, place)
    assert (store.failure(4), store.results(1, 0, 9), store.reply(103)) == (failure, [result], b"body")
    store.close()


@pytest.mark.parametrize(("version", "step"), MIGRATION_STEPS)
def test_open_of_format_1_killed_at_any_statement_leaves_it_to_be_opened_again(
    old: Path, version: int, step: int
) -> None:
    """The process ends before each statement of the migration, and before it is committed."""
    path = shard_path(old, 0)
    before = old_rows(path)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from restq.shards import schema\n"
        "from restq.shards.sqlite_store import SqliteStore\n"
        "class Killing(str):\n"
        "    def split(self, by):\n"
        "        for number, statement in enumerate([*str.split(self, by), 'SELECT 1']):\n"
        f"            if number == {step}:\n"
        "                os._exit(9)\n"
        "            yield statement\n"
        f"schema.MIGRATIONS[{version}] = Killing(schema.MIGRATIONS[{version}])\n"
        "SqliteStore(Path(sys.argv[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False, timeout=30).returncode == 9
    assert read(path, "PRAGMA user_version") == [(1,)]
    assert old_rows(path) == before, "the columns are those of format 1 as well"
    store = SqliteStore(path)
    assert [row[0] for row in store.load().places] == [row[0] for row in before["places"]]
    store.close()


def test_open_of_format_1_where_the_migration_fails_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard_path(old, 0)
    before = old_rows(path)
    with monkeypatch.context() as patch:
        patch.setitem(schema.MIGRATIONS, 2, schema.MIGRATIONS[2] + "; CREATE TABLE jobs (x)")
        with pytest.raises(StoreRefused, match="jobs already exists"):
            SqliteStore(path)
    assert read(path, "PRAGMA user_version") == [(1,)]
    assert old_rows(path) == before
    SqliteStore(path).close()
    assert read(path, "PRAGMA user_version") == [(schema.FORMAT,)]


def test_open_of_format_2_takes_rows_without_checksums_and_checks_those_that_are_written_since(old: Path) -> None:
    path = shard_path(old, 0)
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(FORMAT_2)
    database.execute("INSERT INTO tags VALUES (60, 1, 'x', '{\"rate\": 1}', 5.0)")
    database.execute("INSERT INTO results VALUES (61, 1, 'done', 2.0, '{}')")
    database.execute("INSERT INTO replies VALUES (62, 1, 'n', 'ab', 3.0, x'0102')")
    database.execute("INSERT INTO failures VALUES (8, 1, 'e', 1, 4.0)")
    database.close()
    store = SqliteStore(path)
    loaded = store.load()
    assert (loaded.tags, loaded.replies) == ([TagRow(60, 1, "x", '{"rate": 1}', 5.0)], [(62, 1, "n", "ab", 3.0, 2)])
    places = list(loaded.places)
    assert (store.results(1, 0, 9)[0].key, store.reply(62), store.failure(8)) == (
        61,
        b"\1\2",
        FailureRow(8, 1, "e", 1, 4.0),
    )
    assert store.payload(9) == LARGE.encode()
    changes = Changes()
    new = (101, 2, 2.0, 0.0, 0, 0, 0, 0, "", 101, 1, "new", "[]", "", "", 0, "")
    changes.put(places[0], None)  # an old one, written again
    changes.put(new, None)  # type: ignore[arg-type]
    asyncio.run(store.commit(changes, Mark(42, 102, loaded.mark.clock)))
    store.close()
    store = SqliteStore(path)
    assert list(store.load().places) == [*places, new]
    store.close()
    for table, key in (("places", 4), ("jobs", 4), ("places", 101), ("jobs", 101)):
        column = "at" if table == "places" else "data"
        assert read(path, f"SELECT checksum IS NULL FROM {table} WHERE key = {key}") == [(0,)]
        refused_once_changed(path, table, key, f"{column} = '8.0'")
    refused_once_changed(path, "jobs", 101, "checksum = NULL")
    database = sqlite3.connect(path, isolation_level=None)
    assert read(path, "SELECT count(*) FROM places WHERE checksum IS NULL") == [(len(places) - 1,)]
    database.execute("UPDATE jobs SET checksum = NULL WHERE key = 4")  # as it came from the earlier format
    database.close()
    store = SqliteStore(path)
    assert len(list(store.load().places)) == len(places) + 1
    store.close()


def refused_once_changed(path: Path, table: str, key: int, change: str) -> None:
    """What a changed row does to a start. Then it is as it was."""
    before = path.read_bytes()
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"UPDATE {table} SET {change} WHERE key = {key}")
    database.close()
    store = SqliteStore(path)
    with pytest.raises(StoreRefused, match=f"row {key} of table '{table}' is not what was written"):
        list(store.load().places)
    store.close()
    path.write_bytes(before)


def test_open_of_format_1_with_many_rows_rewrites_none(tmp_path: Path) -> None:
    """So an upgrade takes as long for a million jobs as for none."""
    rows: Rows = {
        "mark": [(1, 20, 20_000, 1.0)],
        "realms": [(1, WORK, 600.0, 1, 0, None)],
        "queues": [(2, 1, 0, 600.0)],
        "jobs": [(key, 1, f"job {key}", "[]", '"' + "x" * 100 + '"', "", 0) for key in range(3, 20_000)],
        "places": [(key, key, 2, 1.0, 0.0, 0) for key in range(3, 20_000)],
    }
    path = shard_path(tmp_path, 0)
    write(path, rows).close()
    store = SqliteStore(path)
    assert log_size(path) * 10 < path.stat().st_size
    assert sum(1 for _ in store.load().places) == len(rows["places"])
    store.close()


@pytest.mark.parametrize("shard_count", [1, 2, 3, 5])
def test_relocate_over_format_1_brings_every_realm_home(old: Path, shard_count: int) -> None:
    """An upgrade and another number of shards in one start."""
    before = [old_rows(shard_path(old, shard)) for shard in (0, 1)]
    pinned = relocate(old, shard_count).pinned
    assert pinned == ({} if shard_count == 1 else {AWAY: 1})
    found: list[str] = []
    job_ids: list[str] = []
    for shard in range(max(2, shard_count)):
        store = SqliteStore(shard_path(old, shard))
        loaded = store.load()
        assert all(shard == pinned.get(row.name, home(row.name, shard_count)) for row in loaded.realms)
        found += [row.name for row in loaded.realms]
        job_ids += [row[11] for row in loaded.places]
        store.close()
    assert sorted(found) == sorted(row[1] for rows in before for row in rows["realms"])
    names = [{row[0]: row[2] for row in rows["jobs"]} for rows in before]
    assert sorted(job_ids) == sorted(
        names[shard][row[1]] for shard, rows in enumerate(before) for row in rows["places"]
    )


# -- the server ------------------------------------------------------------------------------------------------------


def kill(server: Server) -> None:
    """As a power cut ends it."""
    pids = children(server.pid)
    server.process.kill()
    server.process.wait()
    eventually(lambda: not any(map(is_running, pids)))


def shows(server: Server) -> dict[str, Any]:
    """What can be read of all realms, as in `SHOWN`; seconds since a check-out as hundreds."""
    work = {job: ask(server, "GET", f"/{WORK}/job/{job}").ok() for job in SHOWN["work"]}
    for job in work.values():
        job["queues"] = [[queue, round(seconds, -2)] for queue, seconds in job["queues"]]
    return {
        "realms": eventually(lambda: _settled(ask(server, "GET", "/").ok())),
        "work": work,
        "tag": {tag: ask(server, "GET", f"/{WORK}/tag/{tag}/status").ok() for tag in ("x", "%C3%A9%20%F0%9F%98%80")},
        "away": ask(server, "GET", f"/{AWAY}/job/pinned").ok(),
        "shards": {
            name: (shard["shard"], realm["pinned"])
            for shard in ask(server, "GET", "/performance/shards").ok()["shards"]
            for name, realm in shard["realms"].items()
        },
    }


def _settled(realms: dict[str, Any]) -> dict[str, Any]:
    """The statuses of all realms, once those that are on their way out are gone."""
    return {} if DELETED in realms else realms


SHOWN: dict[str, Any] = {
    "realms": {
        WORK: {"total_jobs": 5, "total_tags": 2, "queues": {"-5": 4, "slow é": 2}},
        AWAY: {"total_jobs": 1, "total_tags": 1, "queues": {"0": 1}},
        MOVING: {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1}},
        CLEARED: {"total_jobs": 1, "total_tags": 0, "queues": {"7": 1, "old": 0}},
        UNTAGGED: {"total_jobs": 1, "total_tags": 1, "queues": {"0": 1}},
    },
    "work": {
        "ready": {"tags": [], "data": None, "queues": [[-5, 0]]},
        "both%0A%C3%BC": {
            "tags": ["x", "é 😀"],
            "data": {"b": 1.5, "a": [None]},
            "queues": [[-5, 0], ["slow é", 23_500]],
        },
        "leased": {"tags": ["x"], "data": 0, "queues": [[-5, 200]]},
        "expired": {"tags": ["x"], "data": None, "queues": [[-5, 800]]},
        "large": {"tags": [], "data": json.loads(LARGE), "queues": [["slow é", 0]]},
    },
    "tag": {"x": {"count": 3}, "%C3%A9%20%F0%9F%98%80": {"count": 1}},
    "away": {"tags": ["p"], "data": [1], "queues": [[0, 0]]},
    "shards": {
        WORK: (0, False),
        AWAY: (1, True),
        MOVING: (1, False),
        CLEARED: (0, False),
        UNTAGGED: (0, False),
    },
}


def test_serve_of_format_1_shows_and_hands_out_all_that_was_there(old: Path, start_server: StartServer) -> None:
    server = start_server(old, shards=2)
    assert shows(server) == SHOWN
    other = {"queue_id": 0, "data": "é"}
    ask(server, "PUT", f"/{WORK}/job/large", other).refused(409, "ValueError", "data_differs")
    ask(server, "PUT", f"/{WORK}/job/large", {"queue_id": "slow é", "data": json.loads(LARGE)}).ok()
    kill(server)
    server = start_server(old, shards=2)
    assert shows(server) == SHOWN
    now = time.time()
    pulled = ask(server, "POST", f"/{WORK}/pull", {"count": 9}).ok()["jobs"]
    assert [(job["job_id"], job["queue_id"], round(job["lease_expires_at"] - now, -2)) for job in pulled] == [
        ("ready", -5, 700),
        ("both\nü", -5, 700),
        ("expired", -5, 700),
        ("large", "slow é", 123_500),
    ]
    assert [job["attempt"] for job in pulled] == [1, 1, 2, 1]
    assert pulled[-1]["data"] == json.loads(LARGE)
    assert [job["job_id"] for job in ask(server, "POST", f"/{AWAY}/pull").ok()["jobs"]] == ["pinned"]
    assert ask(server, "POST", f"/{MOVING}/pull").ok()["jobs"] == [], "its lease lasts"
    ask(server, "DELETE", f"/{WORK}/tag/x").ok()
    assert ask(server, "GET", f"/{WORK}/status").ok()["total_jobs"] == 2
