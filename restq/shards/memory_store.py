"""A store in memory: it proves that the seam is one, and drives tests that need no disk."""

from __future__ import annotations

from typing import Any

from restq.shards.changes import Changes
from restq.shards.store import Loaded, Mark


class MemoryStore:
    """Keeps rows in dicts. Opening it again is to go on using it."""

    def __init__(self) -> None:
        self._mark = Mark(0, 1, 0.0)
        self._tables: dict[str, dict[Any, Any]] = {table: {} for table in Changes.__slots__}

    def load(self) -> Loaded:
        """All that was committed."""
        jobs = self._tables["jobs"]
        return Loaded(
            self._mark,
            self._sorted("realms"),
            self._sorted("queues"),
            dict(self._tables["moved"]),
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

    def payload(self, job_key: int) -> bytes:
        """The large data of a job."""
        data: bytes = self._tables["payloads"][job_key]
        return data

    def close(self) -> None:
        """Nothing to let go of."""
