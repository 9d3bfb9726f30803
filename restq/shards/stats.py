"""What a shard counts of its own work: calls by operation and how long they took, groups, and how busy it is."""

from __future__ import annotations

import os
from typing import Any


class Timing:
    """How long the calls of one operation took, in seconds from arrival to reply, the commit included."""

    __slots__ = ("call_count", "max_time", "min_time", "total_time")

    def __init__(self) -> None:
        self.call_count = 0
        self.min_time = 0.0
        self.max_time = 0.0
        self.total_time = 0.0

    def add(self, seconds: float) -> None:
        """Count one call."""
        self.min_time = seconds if not self.call_count else min(self.min_time, seconds)
        self.max_time = max(self.max_time, seconds)
        self.total_time += seconds
        self.call_count += 1


class Stats:
    """Counters since the shard started; `busy` is the share of the last second or so that it spent in turns."""

    def __init__(self) -> None:
        self.timings: dict[str, Timing] = {}
        self.errors: dict[tuple[str, str], int] = {}
        self.request_count = 0
        self.group_count = 0
        self.row_count = 0
        self.commit_seconds = 0.0
        self.busy_seconds = 0.0
        self._window_at = 0.0
        self._window_busy = 0.0
        self._busy_share = 0.0

    def count_call(self, operation: str, seconds: float) -> None:
        """A request was answered, `seconds` after it arrived."""
        timing = self.timings.get(operation)
        if timing is None:
            timing = self.timings[operation] = Timing()
        timing.add(seconds)
        self.request_count += 1

    def count_error(self, operation: str, code: str) -> None:
        """A request was answered by an error."""
        self.errors[operation, code] = self.errors.get((operation, code), 0) + 1

    def count_turn(self, started_at: float, ended_at: float) -> None:
        """A turn took from one instant (monotonic) to another."""
        self.busy_seconds += ended_at - started_at
        if ended_at - self._window_at >= 1.0:
            self._busy_share = (self.busy_seconds - self._window_busy) / (ended_at - self._window_at)
            self._window_at, self._window_busy = ended_at, self.busy_seconds

    def report(self, shard: int, realms: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """All of it, as JSON can carry it."""
        return {
            "shard": shard,
            "pid": os.getpid(),
            "busy": min(1.0, self._busy_share),
            "requests": self.request_count,
            "jobs": sum(realm["jobs"] for realm in realms.values()),
            "groups": self.group_count,
            "rows": self.row_count,
            "commit_seconds": self.commit_seconds,
            "busy_seconds": self.busy_seconds,
            "operations": {
                name: {slot: getattr(timing, slot) for slot in sorted(Timing.__slots__)}
                for name, timing in sorted(self.timings.items())
            },
            "errors": [[name, code, count] for (name, code), count in sorted(self.errors.items())],
            "realms": realms,
        }
