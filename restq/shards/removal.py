"""Takes all rows of realms out of a file, before it is served: those that moved, or never came to count."""

from __future__ import annotations

import json
import sqlite3

from restq.shards.changes import BATCH, Task, payload_keys
from restq.shards.store import KEPT

_LISTED = "(SELECT value FROM json_each(?))"  # of a JSON array: however long, it is one parameter


def remove_realms(database: sqlite3.Connection, realm_keys: list[int]) -> None:
    """Remove all rows of these realms, within a transaction of the caller. Reads the whole file."""
    keys = (json.dumps(realm_keys),)
    jobs = f"(SELECT key FROM jobs WHERE realm IN {_LISTED})"
    execute = database.execute
    tasks = [Task.read(text) for (text,) in execute(f"SELECT task FROM realms WHERE key IN {_LISTED}", keys)]
    bodies = [key for task in tasks if task is not None and task.kind == BATCH for key in payload_keys(task)]
    execute(f"DELETE FROM payloads WHERE key IN {_LISTED}", (json.dumps(bodies),))
    execute(f"DELETE FROM payloads WHERE key IN {jobs}", keys)
    execute(f"DELETE FROM places WHERE job IN {jobs}", keys)
    for table in ("jobs", "queues", *KEPT):
        execute(f"DELETE FROM {table} WHERE realm IN {_LISTED}", keys)
    execute(f"DELETE FROM realms WHERE key IN {_LISTED}", keys)
