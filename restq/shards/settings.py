"""What can be configured for a realm, a queue and a tag: values that are never changed, and their JSON in rows.

Pure, and without rules about jobs. 0 or None stands for "no limit", as nothing is limited unless somebody says so.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple


class Backoff(NamedTuple):
    """How long a job rests after its n-th nack: base * factor^(n-1) seconds, at most `max`, less up to its jitter."""

    base: float
    factor: float = 2.0
    max: float = 3600.0
    jitter: float = 0.5  # the share of the delay that chance may take away, 0 to 1: so that retries spread

    def delay(self, nack_count: int, chance: float) -> float:
        """Seconds after this nack, counted from 1; `chance` lies between 0 and 1."""
        try:
            grown = self.base * self.factor ** (nack_count - 1)
        except OverflowError:
            grown = self.max
        return min(self.max, grown) * (1.0 - self.jitter * chance)


class LimitSettings(NamedTuple):
    """Limits of a tag or of a queue."""

    max_leased: int | None = None
    rate: float | None = None  # hand-outs a second
    paused: bool = False


UNLIMITED = LimitSettings()


class QueueSettings(NamedTuple):
    """What a queue is configured to, but for its lease time."""

    max_attempts: int = 0
    backoff: Backoff | None = None
    limits: LimitSettings = UNLIMITED


class RealmSettings(NamedTuple):
    """What a realm is configured to, but for the lease time of new queues."""

    max_attempts: int = 0
    crash_limit: int = 0
    backoff: Backoff | None = None
    max_jobs: int = 0
    max_bytes: int = 0  # of ids and data
    keep_seconds: float = 0.0  # results are kept so long, and
    keep_count: int = 0  # so many of them: if neither is set, none
    kept_from: float = 0.0  # results of before were dropped by earlier settings, and stay so

    @property
    def keeps_results(self) -> bool:
        """Whether what was acked leaves a result."""
        return bool(self.keep_seconds or self.keep_count)

    def oldest_at(self, now: float) -> float:
        """Results of before this instant are dropped by now, whether or not their rows are gone already."""
        if not self.keeps_results:
            return math.inf
        return max(self.kept_from, now - self.keep_seconds if self.keep_seconds else 0.0)

    def after(self, before: RealmSettings, now: float) -> RealmSettings:
        """These, in the stead of those `before` from now on. What those dropped stays dropped, whatever is kept now.

        Rows go later, by and by, and to look at a million of them now would hold up the shard: so it is an instant.
        """
        if before.keeps_results:
            return self._replace(kept_from=before.oldest_at(now))
        # What is of this very instant is dropped as well; what follows is kept as of after it.
        return self._replace(kept_from=math.nextafter(max(before.kept_from, now), math.inf))


PLAIN_QUEUE = QueueSettings()
PLAIN_REALM = RealmSettings()


def text_of(settings: LimitSettings | QueueSettings | RealmSettings) -> str:
    """The settings as a row carries them: what is not as it was from the start."""
    return json.dumps(_said(settings))


def _said(settings: Any) -> dict[str, Any]:
    said = {}
    for name, value in settings._asdict().items():
        if value != settings._field_defaults.get(name):
            said[name] = _said(value) if isinstance(value, LimitSettings) else value
    return said


def read_limits(text: str) -> LimitSettings:
    """The limits of a tag's row."""
    return LimitSettings(**json.loads(text))


def read_queue(text: str) -> QueueSettings:
    """The settings of a queue's row."""
    if text == "{}":
        return PLAIN_QUEUE
    said = _with_backoff(json.loads(text))
    return QueueSettings(**{**said, "limits": LimitSettings(**said.get("limits", {}))})


def read_realm(text: str) -> RealmSettings:
    """The settings of a realm's row."""
    return PLAIN_REALM if text == "{}" else RealmSettings(**_with_backoff(json.loads(text)))


def _with_backoff(said: dict[str, Any]) -> dict[str, Any]:
    return said | {"backoff": Backoff(*said["backoff"])} if said.get("backoff") else said
