"""Replies that are kept for a while under the idempotency key of their request: the same request again gets them again.

Memory holds what is needed to find them, the file their bodies. Bounded by age, number and bytes: what is forgotten
first is what was to be kept the shortest.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from restq.errors import IdempotencyKeyReused
from restq.shards.actor import Mail
from restq.shards.changes import Changes, Keys, ReplyRow
from restq.shards.commands.call import Done

KEPT_SECONDS = 600.0  # and at least as long as the leases that the reply gave
HELD_SECONDS_MAX = 86_400.0  # for longer no reply is kept, however long its leases hold
KEPT_COUNT_MAX = 1_000_000
KEPT_BYTES_MAX = 256 << 20

# A kept reply without its body: row key, realm's key, idempotency key, digest of the request, kept until, bytes.
KeptRow = tuple[int, int, str, str, float, int]


class _Kept(NamedTuple):
    key: int
    digest: str
    until: float
    size: int


class Replies:
    """The kept replies of a shard, by realm and idempotency key."""

    def __init__(self, keys: Keys, changes: Changes) -> None:
        self._keys = keys
        self._changes = changes
        self._kept: dict[tuple[int, str], _Kept] = {}
        self._by_until: list[tuple[float, int, tuple[int, str]]] = []
        self._bytes = 0
        self._given_again: set[tuple[int, str]] = set()

    @property
    def count(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def load(self, rows: Iterable[KeptRow]) -> None:
        """Be what the store holds, and no more."""
        self._kept.clear()
        self._by_until.clear()
        self._given_again.clear()
        self._bytes = 0
        for key, realm, name, digest, until, size in rows:
            self.add(key, realm, name, digest, until, size)

    def add(self, key: int, realm: int, name: str, digest: str, until: float, size: int) -> None:
        """Know of a reply whose row is noted already, and which for all we know was given again before."""
        self._given_again.add((realm, name))
        self._kept[realm, name] = _Kept(key, digest, until, size)
        self._bytes += size
        heapq.heappush(self._by_until, (until, key, (realm, name)))

    def find(self, realm: int, once: Sequence[str], now: float) -> int | None:
        """The row of the reply that this very request got; None where it is new. Raises IdempotencyKeyReused."""
        name, digest = once
        kept = self._kept.get((realm, name))
        if kept is None or kept.until <= now:
            return None
        if kept.digest != digest:
            raise IdempotencyKeyReused(
                f"the idempotency key {name!r} was used for another request a short while ago", "Idempotency-Key"
            )
        self._given_again.add((realm, name))
        return kept.key

    def was_given_again(self, realm: int, name: str) -> bool:
        """Whether the request came once more and got this reply: then it counts, whatever became of the first."""
        return (realm, name) in self._given_again

    def note(self, realm: int, mail: Mail, done: Done, now: float) -> None:
        """Keep the reply to a request with a key. A pull that gave nothing did nothing: it is tried anew."""
        if done.lease or mail.operation != "pull":
            self.keep(realm, mail.once, done.body, now, done.held_until)

    def keep(self, realm: int, once: Sequence[str], body: bytes, now: float, held_until: float = 0.0) -> None:
        """Keep the reply to a request, `held_until` if its leases last longer than others are kept."""
        name, digest = once
        self.forget(realm, name)
        key, until = self._keys.take(), max(now + KEPT_SECONDS, min(held_until, now + HELD_SECONDS_MAX))
        self._changes.replies[key] = ReplyRow(key, realm, name, digest, until, body)
        self.add(key, realm, name, digest, until, len(body))
        self._given_again.discard((realm, name))

    def forget(self, realm: int, name: str) -> None:
        """Keep the reply to this request no longer, if it is kept."""
        kept = self._kept.pop((realm, name), None)
        self._given_again.discard((realm, name))
        if kept is not None:
            self._bytes -= kept.size
            self._changes.replies[kept.key] = None

    def sweep(self, now: float, count: int) -> None:
        """Forget what was kept long enough, or does not fit: up to so many."""
        for _ in range(count):
            if not self._by_until:
                return
            until, key, place = self._by_until[0]
            kept = self._kept.get(place)
            if kept is None or kept.key != key:  # forgotten before
                heapq.heappop(self._by_until)
            elif until <= now or len(self._kept) > KEPT_COUNT_MAX or self._bytes > KEPT_BYTES_MAX:
                heapq.heappop(self._by_until)
                self.forget(*place)
            else:
                return

    def is_due(self, now: float) -> bool:
        """Whether a sweep would find something."""
        return bool(self._by_until) and (
            self._by_until[0][0] <= now or len(self._kept) > KEPT_COUNT_MAX or self._bytes > KEPT_BYTES_MAX
        )
