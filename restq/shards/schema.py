"""The tables of a shard's file, the number of their format, and how a file of an earlier format becomes one of this.

To change the format: raise `FORMAT`, and give `MIGRATIONS` the statements that lead from the one before. A column
that is added at the end with a constant as its default is there at once, however many the rows: none is written.

Since format 3 each row has the checksum of its values. One that an earlier format left has none until it is written
again; `mark.checked_from` is the first key that was given out after that, so that a row above it cannot have lost it.
"""

from __future__ import annotations

import sqlite3
from functools import cache

FORMAT = 3
APPLICATION_ID = 0x52535451  # "RSTQ": `file` and we tell it from other SQLite files

MIGRATIONS: dict[int, str] = {
    1: """
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
    """,
    2: """
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
    """,
    3: """
    ALTER TABLE mark ADD COLUMN checked_from INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE mark ADD COLUMN checksum INTEGER;
    UPDATE mark SET checked_from = next_key;
    ALTER TABLE realms ADD COLUMN checksum INTEGER;
    ALTER TABLE queues ADD COLUMN checksum INTEGER;
    ALTER TABLE tags ADD COLUMN checksum INTEGER;
    ALTER TABLE jobs ADD COLUMN checksum INTEGER;
    ALTER TABLE places ADD COLUMN checksum INTEGER;
    ALTER TABLE payloads ADD COLUMN checksum INTEGER;
    ALTER TABLE failures ADD COLUMN checksum INTEGER;
    ALTER TABLE results ADD COLUMN checksum INTEGER;
    ALTER TABLE replies ADD COLUMN checksum INTEGER;
    ALTER TABLE moved ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE moved ADD COLUMN checksum INTEGER;
    """,
}


def migrate(database: sqlite3.Connection, found: int) -> None:
    """Bring a file of the format `found`, 0 if it is empty, to this one. Within a transaction of the caller."""
    for version in range(found + 1, FORMAT + 1):
        for statement in MIGRATIONS[version].split(";"):
            database.execute(statement)
    if found < FORMAT:
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {FORMAT}")


def differs(database: sqlite3.Connection) -> str:
    """The name of a table that is not as this format has it; "" if all are."""
    expected, found = _expected(), _tables(database)
    return next((name for name in sorted(expected.keys() | found) if expected.get(name) != found.get(name)), "")


@cache
def _expected() -> dict[str, str]:
    fresh = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(fresh, 0)
        return _tables(fresh)
    finally:
        fresh.close()


def _tables(database: sqlite3.Connection) -> dict[str, str]:
    """The statements that made them; how they are broken into lines is no matter."""
    select = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    return {name: " ".join(sql.split()) for name, sql in database.execute(select)}
