"""A store in memory: it proves that the seam is one, and drives tests that need no disk."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from restq.shards.changes import Changes, FailureRow, ResultRow
from restq.shards.renumbering import BLOCK_BITS
from restq.shards.store import Kept, Loaded, Mark, Room


class MemoryStore:
    """Keeps rows in dicts. Opening it again is to go on using it."""

    def __init__(self) -> None:
        self._mark = Mark(0, 1, 0.0)
        self._tables: dict[str, dict[Any, Any]] = {table: {} for table in Changes.__slots__}

    def load(self) -> Loaded:
        """All that was committed, but for what the other methods read."""
        jobs = self._tables["jobs"]
        return Loaded(
            self._mark,
            self._sorted("realms"),
            self._sorted("queues"),
            self._sorted("tags"),
            [(*row[:5], len(row.body)) for row in self._sorted("replies")],
            dict(Counter(row.realm for row in self._tables["results"].values())),
            self._sorted("moved"),
            [(key, queue, *when, *jobs[job]) for key, job, queue, *when in self._sorted("places")],
        )

    def _sorted(self, table: str) -> list[Any]:
        return [row for _, row in sorted(self._tables[table].items())]

    async def commit(self, changes: Changes, mark: Mark) -> None:
        """Keep the group."""
        for table, kept in self._tables.items():
            for key, row in getattr(changes, table).items():
                if row is None:
                    kept.pop(key, None)
                else:
                    kept[key] = row
        self._mark = mark

    def room(self) -> Room:
        """Enough."""
        return Room.ENOUGH

    def payload(self, job_key: int) -> bytes:
        """The large data of a job."""
        data: bytes = self._tables["payloads"][job_key]
        return data

    def failure(self, place_key: int) -> FailureRow | None:
        """How the last failed hand-out of a place ended."""
        return self._tables["failures"].get(place_key)

    def results(self, realm_key: int, after_key: int, limit: int) -> list[ResultRow]:
        """The realm's oldest results whose keys are above `after_key`, in the order of their keys."""
        rows = [row for row in self._sorted("results") if row.realm == realm_key and row.key > after_key]
        return rows[:limit]

    def reply(self, key: int) -> bytes | None:
        """The body of a reply."""
        row = self._tables["replies"].get(key)
        return None if row is None else row.body

    def rows_of(self, table: str, realm_key: int, after_key: int, limit: int) -> tuple[list[Kept], int | None]:
        """See `Store.rows_of`; rows are counted here, and not their bytes."""
        rows = [row for row in self._sorted(table) if row.key > after_key]
        found = [row for row in rows[:limit] if row.realm == realm_key]
        return found, rows[limit - 1].key if len(rows) > limit else None

    def blocks(self) -> list[int]:
        """The numbers of the blocks of keys in which there are rows."""
        tables = (rows for table, rows in self._tables.items() if table != "moved")
        return sorted({key >> BLOCK_BITS for rows in tables for key in rows})

    def growable(self) -> float:
        """Nothing bounds them."""
        return math.inf

    def close(self) -> None:
        """Nothing to let go of."""
