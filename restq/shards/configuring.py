"""From the body of a configuration to settings that a realm can hold: values checked, and merged over what was."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from restq import bodies
from restq.errors import FieldInvalid
from restq.shards.settings import Backoff, LimitSettings, QueueSettings, RealmSettings

COUNT_MAX = 2**53  # what a float, and so any JavaScript, holds exactly
RATE_MIN, RATE_MAX = 1e-6, 1e6
FACTOR_MAX = 1000.0


def limit_settings(before: LimitSettings, said: bodies.LimitSettings) -> LimitSettings:
    """The limits of a tag or a queue, with what was said over those `before`."""
    rate = _over(before.rate, said.rate)
    if rate is not None and not RATE_MIN <= rate <= RATE_MAX:
        told = f"must lie between {RATE_MIN:.6f} and {RATE_MAX:,.0f} hand-outs a second, or be null for no limit"
        raise FieldInvalid(f"rate: {told}", "rate")
    return LimitSettings(
        max_leased=_count(_over(before.max_leased, said.max_leased), "max_leased"),
        rate=None if rate is None else float(rate),
        paused=_over(before.paused, said.paused),
    )


def queue_settings(before: QueueSettings, said: bodies.QueueSettings) -> QueueSettings:
    """The settings of a queue, but for its lease time."""
    return QueueSettings(
        max_attempts=_count(_over(before.max_attempts, said.max_attempts) or None, "max_attempts", said) or 0,
        backoff=_backoff(before.backoff, said.backoff),
        limits=limit_settings(before.limits, said),
    )


def realm_settings(before: RealmSettings, said: bodies.RealmSettings, now: float) -> RealmSettings:
    """The settings of a realm from now on, but for its default lease time."""
    merged = {
        name: _count(_over(getattr(before, name), getattr(said, name)) or None, name, said) or 0
        for name in ("max_attempts", "crash_limit", "max_jobs", "max_bytes")
    }
    keep_seconds, keep_count = before.keep_seconds, before.keep_count
    if said.keep_done is not UNSET:
        keep = said.keep_done or bodies.KeepDone()
        keep_seconds = 0.0 if keep.seconds is None else float(keep.seconds)
        keep_count = _count(keep.count, "keep_done.count") or 0
        if not 0 <= keep_seconds <= bodies.LEASE_SECONDS_MAX:
            raise FieldInvalid("keep_done.seconds: must lie between 0 and 1,000,000,000", "keep_done.seconds")
    backoff = _backoff(before.backoff, said.backoff)
    settings = RealmSettings(**merged, backoff=backoff, keep_seconds=keep_seconds, keep_count=keep_count)
    return settings.after(before, now)


def shown_queue(lease_time: float, settings: QueueSettings) -> dict[str, Any]:
    """The settings of a queue as JSON shows them."""
    shown: dict[str, Any] = {"lease_time": _shown_seconds(lease_time)}
    if settings.max_attempts:
        shown["max_attempts"] = settings.max_attempts
    if settings.backoff is not None:
        shown["backoff"] = settings.backoff._asdict()
    return shown | shown_limits(settings.limits)


def shown_limits(limits: LimitSettings) -> dict[str, Any]:
    """Limits as JSON shows them."""
    return {name: value for name, value in limits._asdict().items() if value is not None}


def shown_realm(default_lease_time: float, settings: RealmSettings) -> dict[str, Any]:
    """The settings of a realm as JSON shows them; null is "no limit"."""
    keep = {"seconds": settings.keep_seconds or None, "count": settings.keep_count or None}
    return {
        "default_lease_time": _shown_seconds(default_lease_time),
        "max_attempts": settings.max_attempts or None,
        "crash_limit": settings.crash_limit or None,
        "backoff": None if settings.backoff is None else settings.backoff._asdict(),
        "max_jobs": settings.max_jobs or None,
        "max_bytes": settings.max_bytes or None,
        "keep_done": keep if settings.keeps_results else None,
    }


def _shown_seconds(seconds: float) -> float:
    """As who asked wrote it most likely: what comes from the file is a float, 600 as well."""
    return int(seconds) if seconds == int(seconds) else seconds


def _over(before: Any, said: Any) -> Any:
    return before if said is UNSET else said


def _count(value: int | None, field: str, said: Any = None) -> int | None:
    # A zero that was said is a slip for "no limit", which null says; one that was there before means that.
    if getattr(said, field, None) == 0 or (value is not None and not 1 <= value <= COUNT_MAX):
        raise FieldInvalid(f"{field}: must be at least 1, or null for no limit", field)
    return value


def _backoff(before: Backoff | None, said: Any) -> Backoff | None:
    if said is UNSET or said is None:
        return before if said is UNSET else None
    backoff = Backoff(float(said.base), float(said.factor), float(said.max), float(said.jitter))
    highest = {"base": bodies.LEASE_SECONDS_MAX, "factor": FACTOR_MAX, "max": bodies.LEASE_SECONDS_MAX, "jitter": 1.0}
    for name, high in highest.items():
        low = 1.0 if name == "factor" else 0.0
        if not low <= getattr(backoff, name) <= high:
            raise FieldInvalid(f"backoff.{name}: must lie between {low:g} and {high:,.0f}", f"backoff.{name}")
    return backoff
