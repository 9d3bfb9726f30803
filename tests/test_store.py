"""The contract of a store, which both of them keep; and what a file must stand."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_life import all_rows_of

from restq.errors import RowDamaged, StorageFull
from restq.shards import sqlite_store
from restq.shards.changes import Changes, FailureRow, MovedRow, QueueRow, RealmRow, ReplyRow, ResultRow, TagRow
from restq.shards.memory_store import MemoryStore
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import KEPT, LOOK_BYTES_MAX, Loaded, Mark, Store, StoreFailed, StoreRefused

REALM = RealmRow(1, "größe", 600.0, 3, 1, '["clear_queue", "q/é", []]', '{"max_jobs": 5}', 40)
QUEUES = [QueueRow(2, 1, -(2**63), 0.0), QueueRow(3, 1, "10 é😀", 12.5, '{"paused": true}', 1e9 + 0.25)]
TAGS = [TagRow(10, 1, "é😀", '{"rate": 0.5}', 1e9 + 0.125), TagRow(11, 1, "10", "{}", 0.0)]
FAILURES = [FailureRow(4, 1, "x\0\n😀", -9, 1e9 + 0.5), FailureRow(5, 1, "", None, 0.0)]
LARGE = bytes(range(256)) * 4000
RESULTS = [
    ResultRow(12, 1, "ü\n😀", 1e9 + 0.0625, '{"n": 1}'),
    ResultRow(13, 9, "ü\n😀", 1e9, '{"n": 2}'),
    ResultRow(14, 1, "10", 1e9, '{"n": 3}'),
    ResultRow(15, 1, "ü\n😀", 1e9 + 1, '{"n": 4}'),
    ResultRow(16, 1, "last", 1e9 + 2, '{"n": 5}'),
]
REPLIES = [ReplyRow(18, 0, "é 1", "ab12", 1e9 + 0.5, b""), ReplyRow(19, 1, "10", "cd34", 1e9, LARGE)]
MOVED = [MovedRow("b", 0, 7), MovedRow("weg/é", 3, 2**40)]
NO_HISTORY = (0.0, 0, 0, 0, 0, "")
HISTORY = (1e9 - 600, 77, 3, 2, 2**62, "wörker\n😀")


def commit(store: Store, changes: Changes, mark: Mark) -> None:
    asyncio.run(store.commit(changes, mark))


def group(**tables: dict[Any, Any]) -> Changes:
    changes = Changes()
    for table, rows in tables.items():
        getattr(changes, table).update(rows)
    return changes


def job_row(
    key: int, job_id: str = "", data: str = "", digest: str = "", size: int = 0, tags: str = "[]", terms: str = ""
) -> Any:
    return (key, 1, job_id or f"job {key}", tags, data, digest, size, terms)


def place_row(key: int, job: int, queue: int, at: float = 1.0, history: tuple[Any, ...] = ()) -> Any:
    return (key, job, queue, at, *(history or NO_HISTORY))


FULL_JOB = job_row(4, "ü\n😀" * 50, '{"a": "\\u00e9é"}', tags='["x","é"]', terms='{"after": ["é"]}')


def full_group() -> Changes:
    """A realm with two queues and three jobs, one of them in both queues, one large, one with nothing but an id.

    And what is kept beside them, in every table.
    """
    return group(
        realms={1: REALM},
        queues={row.key: row for row in QUEUES},
        jobs={
            4: FULL_JOB,
            5: job_row(5, digest="ab12", size=len(LARGE)),
            6: job_row(6),
        },
        places={
            8: place_row(8, 6, 2, 1e9 + 0.123456),
            4: place_row(4, 4, 2, 1e9, HISTORY),
            5: place_row(5, 5, 3, 0.0),
            7: place_row(7, 4, 3, 1e9),
        },
        payloads={5: LARGE},
        tags={row.key: row for row in TAGS},
        failures={row.key: row for row in FAILURES},
        results={row.key: row for row in RESULTS},
        replies={row.key: row for row in REPLIES},
        moved={row.name: row for row in MOVED},
    )


def contents(loaded: Loaded) -> tuple[Any, ...]:
    """All that was loaded, as plain values, whatever a store made of them."""
    kept = list(loaded.tags), [tuple(row) for row in loaded.replies], loaded.result_counts
    places = [tuple(row) for row in loaded.places]
    return loaded.mark, list(loaded.realms), list(loaded.queues), loaded.moved, kept, places


EXPECTED = (
    Mark(1, 9, 1.5),
    [REALM],
    QUEUES,
    MOVED,
    (TAGS, [(18, 0, "é 1", "ab12", 1e9 + 0.5, 0), (19, 1, "10", "cd34", 1e9, len(LARGE))], {1: 4, 9: 1}),
    [
        (4, 2, 1e9, *HISTORY, *FULL_JOB),
        (5, 3, 0.0, *NO_HISTORY, *job_row(5, digest="ab12", size=len(LARGE))),
        (7, 3, 1e9, *NO_HISTORY, *FULL_JOB),
        (8, 2, 1e9 + 0.123456, *NO_HISTORY, *job_row(6)),
    ],
)
NOTHING: Any = ([], [], {})

OpenStore = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens the store; called again, closes it and opens it anew."""
    opened: list[Store] = []

    def open_again() -> Store:
        if request.param == "memory":
            opened[:] = opened or [MemoryStore()]
            return opened[0]
        if opened:
            opened.pop().close()
        opened.append(SqliteStore(tmp_path / "shard.sqlite"))
        return opened[0]

    yield open_again
    for store in opened:
        store.close()


def test_load_of_new_store_is_empty(open_store: OpenStore) -> None:
    for _ in range(2):
        assert contents(open_store().load()) == (Mark(0, 1, 0.0), [], [], [], NOTHING, [])


def test_load_after_commit_gives_every_row_in_order_of_keys(open_store: OpenStore) -> None:
    store = open_store()
    commit(store, full_group(), Mark(1, 9, 1.5))
    assert contents(store.load()) == EXPECTED
    assert contents(open_store().load()) == EXPECTED


def test_payload_after_commit_is_what_was_committed(open_store: OpenStore) -> None:
    commit(open_store(), full_group(), Mark(1, 9, 1.5))
    assert open_store().payload(5) == LARGE


def test_commit_of_none_removes_rows_and_only_those(open_store: OpenStore) -> None:
    store = open_store()
    commit(store, full_group(), Mark(1, 9, 1.5))
    gone = group(jobs={4: None, 99: None}, places={4: None, 7: None}, payloads={5: None}, moved={"b": None, "x": None})
    commit(store, gone, Mark(2, 12, 2.5))
    mark, realms, queues, moved, _, places = contents(open_store().load())
    assert (mark, realms, queues, moved) == (Mark(2, 12, 2.5), [REALM], QUEUES, MOVED[1:])
    assert [row[0] for row in places] == [5, 8]
    store = open_store()
    with pytest.raises((KeyError, RowDamaged)):
        store.payload(5)


def test_commit_of_row_that_exists_replaces_it(open_store: OpenStore) -> None:
    store = open_store()
    commit(store, full_group(), Mark(1, 9, 1.5))
    realm = REALM._replace(task=None, pinned=0, epoch=4)
    job = job_row(6, "other", "1")
    place = place_row(8, 6, 3, 5.5, (4.5, 100, 1, 0, 0, ""))
    again = group(
        realms={1: realm}, jobs={6: job}, places={8: place, 9: place_row(9, 5, 2)}, moved={"b": MovedRow("b", 1, 9)}
    )
    again.payloads[5] = b"other"
    commit(store, again, Mark(2, 101, 1.5))
    store = open_store()
    _, realms, _, moved, _, places = contents(store.load())
    assert realms == [realm]
    assert moved == [MovedRow("b", 1, 9), *MOVED[1:]]
    assert places[3] == (8, 3, 5.5, 4.5, 100, 1, 0, 0, "", *job)
    assert [row[0] for row in places] == [4, 5, 7, 8, 9]
    assert store.payload(5) == b"other"


def test_commit_of_everything_as_gone_leaves_the_mark(open_store: OpenStore) -> None:
    store = open_store()
    commit(store, full_group(), Mark(1, 9, 1.5))
    gone = group(**{table: dict.fromkeys(getattr(full_group(), table)) for table in Changes.__slots__})
    commit(store, gone, Mark(2, 9, 2.5))
    store = open_store()
    assert contents(store.load()) == (Mark(2, 9, 2.5), [], [], [], NOTHING, [])
    assert (store.failure(4), store.results(1, 0, 9), store.reply(19)) == (
        None,
        [],
        None,
    )


def test_commit_of_many_groups_gives_what_their_rows_say_last(open_store: OpenStore) -> None:
    chance = random.Random(4)
    store = open_store()
    rows: dict[int, Any] = {}
    for number in range(1, 60):
        changes = Changes()
        for _ in range(chance.randrange(200)):
            key = chance.randrange(1, 300)
            place = None if chance.random() < 0.4 else place_row(key, key, 2, chance.random())
            changes.places[key] = place
            changes.jobs[key] = place and job_row(key, data=str(number))
            rows[key] = place and (key, *place[2:], *job_row(key, data=str(number)))
        commit(store, changes, Mark(number, 300, float(number)))
    expected = [row for _, row in sorted(rows.items()) if row is not None]
    mark, *_, places = contents(open_store().load())
    assert places == expected
    assert mark == Mark(59, 300, 59.0)


# -- what memory does not hold ---------------------------------------------------------------------------------------


@pytest.fixture
def full_store(open_store: OpenStore) -> Store:
    commit(open_store(), full_group(), Mark(1, 20, 1.5))
    return open_store()


def test_failure_of_place_is_what_was_committed_last(full_store: Store) -> None:
    assert [full_store.failure(key) for key in (4, 5, 8)] == [*FAILURES, None]
    again = FAILURES[0]._replace(error="worse", exit_code=None)
    commit(full_store, group(failures={4: again, 5: None}), Mark(2, 20, 2.5))
    assert [full_store.failure(key) for key in (4, 5)] == [again, None]


def test_results_in_pages_are_those_of_the_realm_in_order(full_store: Store) -> None:
    own = [row for row in RESULTS if row.realm == 1]
    assert full_store.results(1, 0, 100) == own
    assert full_store.results(1, 0, 2) == own[:2]
    assert full_store.results(1, own[1].key, 1) == own[2:3]
    assert full_store.results(1, own[-1].key, 5) == []
    assert full_store.results(1, 0, 0) == []
    assert full_store.results(7, 0, 5) == []


def test_results_when_oldest_goes_begin_with_the_next(full_store: Store) -> None:
    commit(full_store, group(results={12: None, 13: None}), Mark(2, 20, 2.5))
    assert [row.key for row in full_store.results(1, 0, 100)] == [14, 15, 16]
    assert full_store.load().result_counts == {1: 3}


def test_reply_is_the_body_that_was_committed(full_store: Store) -> None:
    assert [full_store.reply(key) for key in (18, 19, 20)] == [b"", LARGE, None]


@pytest.mark.parametrize(("table", "rows"), [("failures", FAILURES), ("results", RESULTS), ("tags", TAGS)])
def test_rows_of_table_in_pages_are_those_of_the_realm_in_order(full_store: Store, table: str, rows: list[Any]) -> None:
    expected = [row for row in rows if row.realm == 1]
    for limit in (1, 2, 3, 100):
        assert all_rows_of(full_store, table, 1, limit) == expected
    assert {type(row) for row in full_store.rows_of(table, 1, 0, 100)[0]} == {KEPT[table]}
    assert full_store.rows_of(table, 7, 0, 100) == ([], None)


def test_rows_of_replies_come_with_their_bodies(full_store: Store) -> None:
    assert full_store.rows_of("replies", 0, 0, 9) == (REPLIES[:1], None)
    assert full_store.rows_of("replies", 1, 0, 9) == (REPLIES[1:], None)


@pytest.mark.parametrize("table", ["failures", "replies"])
def test_rows_of_looks_at_so_many_rows_whosever_they_are(open_store: OpenStore, table: str) -> None:
    store = open_store()
    changes = Changes()
    for key in range(10, 40):
        changes.failures[key] = FailureRow(key, 1 + (key == 35), "e", 1, 1.0)
        changes.replies[key] = ReplyRow(key, 1 + (key == 35), f"n {key}", "d", 1.0, b"r")
    commit(store, changes, Mark(1, 50, 1.5))
    found: list[int] = []
    after: int | None = 0
    looks = []
    while after is not None:
        rows, after = store.rows_of(table, 2, after, 10)
        looks.append(after)
        found += [row.key for row in rows]
    assert (found, looks) == ([35], [19, 29, None])


def test_rows_of_large_replies_are_given_a_few_at_a_time(path: Path) -> None:
    store = SqliteStore(path)
    changes = Changes()
    for key in range(10, 20):
        changes.replies[key] = ReplyRow(key, 1, f"n {key}", "d", 1.0, bytes(LOOK_BYTES_MAX // 2))
    commit(store, changes, Mark(1, 50, 1.5))
    rows, after = store.rows_of("replies", 1, 0, 1000)
    assert ([row.key for row in rows], after) == ([10, 11], 11)
    assert len(all_rows_of(store, "replies", 1)) == 10
    store.close()


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shard.sqlite"


def shell(path: Path, statement: str) -> list[Any]:
    """What somebody does with the file by other means than restq."""
    database = sqlite3.connect(path, timeout=0.1)
    try:
        rows = database.execute(statement).fetchall()
        database.commit()
        return rows
    finally:
        database.close()


def test_open_of_file_that_is_held_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "LOCK_WAIT_SECONDS", 0.05)
    store = SqliteStore(path)
    try:
        with pytest.raises(StoreRefused, match=r"shard\.sqlite is held by another process"):
            SqliteStore(path)
        commit(store, full_group(), Mark(1, 9, 1.5))  # the holder notices nothing
    finally:
        store.close()
    store = SqliteStore(path)
    assert contents(store.load()) == EXPECTED
    store.close()


def test_read_of_file_that_is_held_is_refused(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        shell(path, "SELECT * FROM realms")
    store.close()


def test_open_of_newer_format_is_refused_and_changes_nothing(path: Path) -> None:
    SqliteStore(path).close()
    shell(path, f"PRAGMA user_version = {sqlite_store.FORMAT + 1}")
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="made by a newer restq"):
        SqliteStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("statement", ["CREATE TABLE others (x)", "PRAGMA application_id = 7"])
@pytest.mark.parametrize("version", [0, 1, 99])
def test_open_of_database_of_others_is_refused(path: Path, statement: str, version: int) -> None:
    shell(path, statement)
    shell(path, f"PRAGMA user_version = {version}")
    with pytest.raises(StoreRefused, match="not one of restq's"):
        SqliteStore(path)
    assert shell(path, "SELECT name FROM sqlite_master WHERE name <> 'others'") == []


def test_open_of_file_that_is_no_database_is_refused(path: Path) -> None:
    garbage = random.Random(5).randbytes(20_000)
    path.write_bytes(garbage)
    with pytest.raises(StoreRefused, match="can't be read"):
        SqliteStore(path)
    assert path.read_bytes() == garbage


def test_open_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    for wrong in (tmp_path / "missing" / "shard.sqlite", tmp_path / "directory"):
        with pytest.raises(StoreRefused, match="can't be read"):
            SqliteStore(wrong)


def test_load_of_damaged_file_is_refused(path: Path) -> None:
    store = SqliteStore(path)
    changes = full_group()
    for key in range(10, 5_000):
        changes.jobs[key] = job_row(key, data="[" + "1," * 20 + "1]")
        changes.places[key] = place_row(key, key, 2)
    commit(store, changes, Mark(1, 5_000, 1.5))
    store.close()
    content = bytearray(path.read_bytes())
    for page in range(10, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(StoreRefused, match="can't be read"):
        contents(SqliteStore(path).load())


@pytest.mark.parametrize("bad", [{"places": {20: place_row(20, 4, None)}}, {"payloads": {20: object()}}])  # type: ignore[arg-type]
def test_commit_that_fails_keeps_nothing_of_the_group(path: Path, bad: dict[str, dict[int, Any]]) -> None:
    store = SqliteStore(path)
    commit(store, full_group(), Mark(1, 9, 1.5))
    broken = group(jobs={21: job_row(21)}, realms={1: None}, moved={"b": MovedRow("b", 2, 0)}, **bad)
    with pytest.raises(StoreFailed):
        commit(store, broken, Mark(2, 30, 2.5))
    store.close()
    store = SqliteStore(path)
    assert contents(store.load()) == EXPECTED
    store.close()


def test_commit_on_full_disk_keeps_nothing_and_store_goes_on(path: Path) -> None:
    store = SqliteStore(path)
    commit(store, full_group(), Mark(1, 9, 1.5))
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    too_much = group(realms={1: None}, payloads={20 + number: LARGE for number in range(4)}, moved={"b": None})
    for _ in range(2):
        with pytest.raises(StorageFull, match="no room"):
            commit(store, too_much, Mark(2, 30, 2.5))
        assert contents(store.load()) == EXPECTED
    assert store.payload(5) == LARGE
    commit(store, group(jobs={6: None}, places={8: None}), Mark(2, 30, 2.5))
    store._database.execute("PRAGMA max_page_count = 1000000")
    commit(store, too_much, Mark(3, 30, 3.5))
    store.close()
    store = SqliteStore(path)
    mark, realms, *_ = contents(store.load())
    assert (mark, realms) == (Mark(3, 30, 3.5), [])
    assert store.payload(23) == LARGE
    store.close()


def test_payload_that_is_missing_is_told_and_nothing_else_is_touched(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(RowDamaged, match="row 5 of table 'payloads' is missing"):
        store.payload(5)
    store.close()


def test_file_after_close_is_readable_by_the_shell_and_whole(path: Path) -> None:
    store = SqliteStore(path)
    commit(store, full_group(), Mark(1, 9, 1.5))
    store.close()
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == ["shard.lock", "shard.sqlite", "shard.witness"], "the log is in the database"
    assert shell(path, "SELECT name, epoch FROM realms") == [("größe", 3)]
    assert shell(path, "SELECT job_id, data FROM jobs WHERE key = 4") == [("ü\n😀" * 50, '{"a": "\\u00e9é"}')]
    assert shell(path, "SELECT queue_id FROM queues ORDER BY key") == [(-(2**63),), ("10 é😀",)]
    assert shell(path, "SELECT last_group, next_key, clock FROM mark") == [(1, 9, 1.5)]
    assert shell(path, "PRAGMA integrity_check") == [("ok",)]


def test_commit_without_close_is_there_again(path: Path, tmp_path: Path) -> None:
    """What a process that is killed leaves behind: the file and its log, as they are at that moment."""
    store = SqliteStore(path)
    commit(store, full_group(), Mark(1, 9, 1.5))
    copy = tmp_path / "copy" / path.name
    copy.parent.mkdir()
    for file in tmp_path.glob("shard.sqlite*"):
        (copy.parent / file.name).write_bytes(file.read_bytes())
    store.close()
    store = SqliteStore(copy)
    assert contents(store.load()) == EXPECTED
    store.close()


def test_log_under_endless_commits_stays_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "WAL_PAGES_MAX", 100)
    store = SqliteStore(path)
    sizes = []
    for number in range(1, 150):
        changes = group(payloads={1: LARGE[:100_000]}, jobs={key: job_row(key) for key in range(200)})
        commit(store, changes, Mark(number, 300, 1.0))
        sizes.append((path.parent / "shard.sqlite-wal").stat().st_size)
    assert max(sizes) < 200 * 4200
    store.close()


def test_commit_is_synced_before_it_returns(path: Path) -> None:
    """That a power cut loses nothing can't be tried here; that SQLite is told to sync can."""
    store = SqliteStore(path)
    assert store._database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_commit_writes_all_and_the_mark_in_one_transaction(path: Path) -> None:
    store = SqliteStore(path)
    statements: list[str] = []
    store._database.set_trace_callback(statements.append)
    commit(store, full_group(), Mark(1, 9, 1.5))
    store._database.set_trace_callback(None)
    assert [statement.split()[0] for statement in (statements[0], *statements[-2:])] == ["BEGIN", "UPDATE", "COMMIT"]
    assert [statement.split()[0] for statement in statements].count("COMMIT") == 1
    store.close()


def test_read_of_results_looks_at_no_more_than_it_returns(path: Path) -> None:
    store = SqliteStore(path)
    commit(store, full_group(), Mark(1, 20, 1.5))
    statements: list[str] = []
    store._database.set_trace_callback(statements.append)
    store.results(1, 12, 1)
    store.load()
    store._database.set_trace_callback(None)
    asked = [statement for statement in statements if "results" in statement]
    plans = [row[3] for statement in asked for row in store._database.execute(f"EXPLAIN QUERY PLAN {statement}")]
    assert plans == [
        "SEARCH results USING INDEX results_by_realm (realm=? AND rowid>?)",
        "SCAN results USING COVERING INDEX results_by_realm",
    ], "nothing is sorted, and only the count goes over an index as a whole"
    store.close()


def test_remove_realm_removes_its_rows_and_only_those(path: Path) -> None:
    store = SqliteStore(path)
    commit(store, full_group(), Mark(1, 9, 1.5))
    other = group(
        realms={30: REALM._replace(key=30, name="other")},
        queues={31: QueueRow(31, 30, 0, 1.0)},
        jobs={32: (32, 30, *job_row(32, "job", digest="cd34", size=5)[2:])},
        places={33: place_row(33, 32, 31)},
        payloads={32: b"12345"},
        tags={34: TagRow(34, 30, "10", "{}", 0.0)},
        failures={33: FailureRow(33, 30, "e", 1, 1.0)},
        results={35: ResultRow(35, 30, "10", 1.0, "{}")},
        replies={36: ReplyRow(36, 30, "10", "", 1.0, b"r")},
    )
    commit(store, other, Mark(2, 40, 2.5))
    assert [row[0] for row in store.places_of([30])] == [33]
    store.remove_realms([1])
    _, realms, queues, moved, (tags, replies, result_counts), places = contents(store.load())
    assert [row.name for row in realms] == ["other"]
    assert [row.key for row in queues] == [31]
    assert moved == EXPECTED[3]
    assert [row[0] for row in places] == [33]
    assert store.payload(32) == b"12345"
    assert ([row.key for row in tags], [row[0] for row in replies]) == ([34], [18, 36])
    assert result_counts == {9: 1, 30: 1}
    assert [store.failure(key) is None for key in (4, 5, 33)] == [True, True, False]
    with pytest.raises(RowDamaged):
        store.payload(5)
    store.close()
