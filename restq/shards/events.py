"""What happens in the realms of a shard, for whoever listens. Nothing is recorded while nobody does.

An event is told once its group is committed. The last RECORDED_MAX of a shard are kept; a listener that is slower than
that is told how many it missed.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

from restq.names import QueueId

RECORDED_MAX = 10_000
PAGE_MAX = 1_000  # events in one reply
LISTENED_SECONDS = 60.0  # after the last question nobody listens any more


# Something that happened: what, the realm's name, job id, queue id, when, and what else there is to say.
Event = tuple[str, str, str, QueueId, float, dict[str, Any] | None]


class Events:
    """The last events of a shard, numbered from 1. Realms note theirs in `told`, which is None while nobody listens."""

    def __init__(self) -> None:
        self.told: list[Event] | None = None
        self._recorded: deque[Event] = deque()
        self._last = 0  # number of the last event
        self._until = 0.0

    @property
    def last(self) -> int:
        """The number of the last event that was recorded."""
        return self._last

    def listen(self, now: float) -> bool:
        """Somebody listens; returns whether nobody did before."""
        self._until = now + LISTENED_SECONDS
        if self.told is None:
            self.told = []
            return True
        return False

    def record(self, now: float) -> bool:
        """What was told is committed. Returns whether it is time to stop telling: nobody listens any more."""
        if self.told is None:
            return False
        self._recorded.extend(self.told)
        self._last += len(self.told)
        self.told.clear()
        while len(self._recorded) > RECORDED_MAX:
            self._recorded.popleft()
        if now > self._until:
            self.told = None
            self._recorded.clear()
            return True
        return False

    def forget(self) -> None:
        """What was told and is not committed never happened."""
        if self.told is not None:
            self.told.clear()

    def after(self, number: int, realm: str | None) -> tuple[list[Event], int, int]:
        """Events of a realm, or of all, with higher numbers: up to a page, the number of the last one looked at, and
        how many there were before that are kept no more.
        """
        first = self._last - len(self._recorded) + 1
        lost = max(0, first - 1 - number)
        start = max(0, number + 1 - first)
        found: list[Event] = []
        at = first - 1 + start
        for event in islice(self._recorded, start, None):
            at += 1
            if realm is None or event[1] == realm:
                found.append(event)
                if len(found) >= PAGE_MAX:
                    break
        return found, at, lost


def shown(event: Event) -> tuple[str, dict[str, Any]]:
    """The kind of an event, and what JSON says of it."""
    kind, realm, job_id, queue_id, at, facts = event
    return kind, {"realm": realm, "job_id": job_id, "queue_id": queue_id, "at": at, **(facts or {})}
