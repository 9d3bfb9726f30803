"""What holds up jobs that are ready: limits of a tag or of a queue, and tags that a job comes after.

A `Gate` is open or shut, and knows the lanes behind it: the heaps of ready places that the very same gates hold.
Opening or shutting one touches each of its lanes once, however many places stand in them, so a million jobs under a
limit, or behind a dependency, cost a pull nothing. Instants are seconds since the epoch and are passed in.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from restq.shards.settings import LimitSettings

if TYPE_CHECKING:
    from restq.shards.queue import Lane


class Gate:
    """Something that is open or shut, with lanes behind it."""

    __slots__ = ("is_shut", "lanes")

    def __init__(self) -> None:
        self.is_shut = False
        self.lanes: dict[Lane, None] = {}

    def turn(self, shut: bool) -> None:
        """Be shut from now on, or open."""
        if shut != self.is_shut:
            self.is_shut = shut
            for lane in self.lanes:
                lane.gate_turned(self)


class After(Gate):
    """Shut while more than `own` jobs carry `tag`; `own` is 1 for jobs that carry it themselves, else 0."""

    __slots__ = ("job_count", "own", "tag")

    def __init__(self, tag: str, own: int) -> None:
        super().__init__()
        self.tag = tag
        self.own = own
        self.job_count = 0  # jobs that come after it


class Limit(Gate):
    """The limits of a tag, or of a queue: paused, `max_leased` at a time, `rate` hand-outs a second.

    A rate of r lets N = max(1, floor(r)) hand-outs pass in any span of N/r seconds: for whole numbers, r in any second.
    """

    __slots__ = ("_passed_count", "_recent", "due_at", "key", "kind", "leased_count", "name", "next_at", "settings")

    def __init__(self, key: int, kind: str, name: int | str, settings: LimitSettings, next_at: float = 0.0) -> None:
        super().__init__()
        self.key = key  # of its row
        self.kind = kind  # "tag" or "queue"
        self.name = name
        self.settings = settings
        self.leased_count = 0
        self.due_at = math.inf  # it is on the agenda for then
        self.next_at = next_at  # the span after the last hand-out ends then; after a restart there is none before
        self._recent: deque[tuple[float, int]] = deque()  # hand-outs of the last span: when, and how many
        self._passed_count = 0  # their sum
        if settings.rate:
            self._recent.append((next_at - self._span, self._count_max))
            self._passed_count = self._count_max

    @property
    def _count_max(self) -> int:
        return max(1, math.floor(self.settings.rate or 0))

    @property
    def _span(self) -> float:
        return self._count_max / (self.settings.rate or 1)

    @property
    def opens_at(self) -> float | None:
        """When its rate lets the next one pass; None where that does not hold anything up."""
        if self.settings.rate and self._passed_count >= self._count_max:
            return self._recent[0][0] + self._span
        return None

    def configure(self, settings: LimitSettings, now: float) -> None:
        """Hold to these from now on."""
        self._forget(now)
        self.settings = settings
        if not settings.rate:
            self._recent.clear()
            self._passed_count = 0
        self.next_at = self._recent[-1][0] + self._span if self._recent else 0.0
        self.refresh(now)

    def took(self, now: float) -> None:
        """One more place under it was leased."""
        self.leased_count += 1
        if self.settings.rate:
            count = self._recent.pop()[1] if self._recent and self._recent[-1][0] == now else 0
            self._recent.append((now, count + 1))
            self._passed_count += 1
            self.next_at = now + self._span
        self.refresh(now)

    def ended(self, now: float) -> None:
        """One of the leases under it ended."""
        self.leased_count -= 1
        self.refresh(now)

    def refresh(self, now: float) -> None:
        """Open or shut, as things stand at `now`."""
        limits = self.settings
        self._forget(now)
        full = limits.max_leased is not None and self.leased_count >= limits.max_leased
        self.turn(limits.paused or full or self.opens_at is not None)

    def _forget(self, now: float) -> None:
        """Hand-outs that lie further back than the span of the rate count no more."""
        while self._recent and self._recent[0][0] + self._span <= now:
            self._passed_count -= self._recent.popleft()[1]
