"""Replies that are kept for a while under the idempotency key of their request: the same request again gets them again.

Each belongs to the realm in which the request did something, and is kept in the very commit of what it did. A request
on several realms leaves a part in each: what it did there is not done again, whatever became of the rest.

Memory holds what is needed to find them, the file their bodies. Bounded by age, number and bytes: what is forgotten
first is what was to be kept the shortest.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from restq.errors import IdempotencyKeyReused
from restq.shards.actor import Mail
from restq.shards.changes import Changes, Keys, ReplyRow
from restq.shards.claims import Claims
from restq.shards.commands.call import Done

KEPT_SECONDS = 600.0  # and at least as long as the leases that the reply gave
HELD_SECONDS_MAX = 86_400.0  # for longer no reply is kept, however long its leases hold
KEPT_COUNT_MAX = 1_000_000
KEPT_BYTES_MAX = 256 << 20
_IN_VAIN = frozenset({"check_jobs", "pull"})  # these did nothing if they leased nothing

# A kept reply without its body: row key, realm's key, idempotency key, digest of the request, kept until, bytes.
KeptRow = tuple[int, int, str, str, float, int]


class _Kept(NamedTuple):
    key: int
    digest: str
    until: float
    size: int
    undoable_lease: int = 0  # the number of the pull whose jobs it gives, until it is given again; after a start: none


class Replies:
    """The kept replies of a shard, by realm and idempotency key."""

    def __init__(self, keys: Keys, changes: Changes) -> None:
        self._keys = keys
        self._changes = changes
        self._kept: dict[tuple[int, str], tuple[_Kept, ...]] = {}  # nearly always one
        self._by_until: list[tuple[float, int, tuple[int, str]]] = []
        self._unclaimed: deque[tuple[int, tuple[int, str]]] = deque()  # of realms that are no more: they go first
        self._count = 0
        self._bytes = 0
        self.claims = Claims()  # of those that are to come

    @property
    def count(self) -> int:
        """How many are kept."""
        return self._count

    def load(self, rows: Iterable[KeptRow]) -> None:
        """Be what the store holds, and no more."""
        self._kept.clear()
        self._by_until.clear()
        self._unclaimed.clear()
        self._count = self._bytes = 0
        for key, realm, name, digest, until, size in rows:
            self.add(key, realm, name, digest, until, size)

    def add(self, key: int, realm: int, name: str, digest: str, until: float, size: int) -> None:
        """Know of a reply whose row is noted already, and which for all we know was given again before."""
        self._put((realm, name), _Kept(key, digest, until, size))

    def unclaim(self, rows: Iterable[tuple[int, int, str]]) -> None:
        """Have the sweep forget these first, as nobody will ask for them: row keys, realms' keys, idempotency keys."""
        self._unclaimed.extend((key, (realm, name)) for key, realm, name in rows)

    def unclaim_of(self, is_gone: Callable[[int], bool]) -> None:
        """Have the sweep forget first what is kept for realms that are gone, which `is_gone` says of a realm's key.

        It looks at all replies that are kept.
        """
        self.unclaim((kept.key, *place) for place, found in self._kept.items() if is_gone(place[0]) for kept in found)

    def _put(self, place: tuple[int, str], kept: _Kept) -> None:
        self._kept[place] = (*self._kept.get(place, ()), kept)
        self._count += 1
        self._bytes += kept.size
        heapq.heappush(self._by_until, (kept.until, kept.key, place))

    def find(self, realm: int, once: Sequence[str], now: float) -> list[int]:
        """The rows that this very request left in the realm; none where it is new. Raises IdempotencyKeyReused.

        From now on they count, whatever becomes of the first request: see `withdraw`.
        """
        name, digest = once
        found = [kept for kept in self._kept.get((realm, name), ()) if kept.until > now]
        if any(kept.digest != digest for kept in found):
            raise IdempotencyKeyReused(
                f"the idempotency key {name!r} was used for another request a short while ago", "Idempotency-Key"
            )
        if any(kept.undoable_lease for kept in found):
            self._kept[realm, name] = tuple(kept._replace(undoable_lease=0) for kept in self._kept[realm, name])
        return [kept.key for kept in found]

    def note(self, realm: int, mail: Mail, done: Done, now: float) -> None:
        """Keep the reply to a request with a key, unless it did nothing: a pull in vain is tried anew."""
        if done.lease or mail.operation not in _IN_VAIN:
            for kept in self._kept.get((realm, mail.once[0]), ()):  # whose time is up
                self._drop((realm, mail.once[0]), kept)
            self.keep(realm, mail.once, done, now)

    def keep(self, realm: int, once: Sequence[str], done: Done, now: float) -> None:
        """Keep what a request did in a realm, for longer than others if its leases last longer."""
        name, digest = once
        key, until = self._keys.take(), max(now + KEPT_SECONDS, min(done.held_until, now + HELD_SECONDS_MAX))
        self._changes.replies[key] = ReplyRow(key, realm, name, digest, until, done.body)
        self._put((realm, name), _Kept(key, digest, until, len(done.body), done.lease))

    def withdraw(self, realm: int, name: str, lease: int) -> bool:
        """Forget the reply that gave the jobs of a pull, which is to be undone; whether it may be.

        It may not if the request came once more and got this reply: then it counts, whatever became of the first.
        """
        found = self._kept.get((realm, name), ())
        own = [kept for kept in found if kept.undoable_lease == lease]
        for kept in own:
            self._drop((realm, name), kept)
        return bool(own) or all(kept.undoable_lease for kept in found)

    def _drop(self, place: tuple[int, str], dropped: _Kept) -> None:
        left = tuple(kept for kept in self._kept[place] if kept.key != dropped.key)
        if left:
            self._kept[place] = left
        else:
            del self._kept[place]
        self._count -= 1
        self._bytes -= dropped.size
        self._changes.replies[dropped.key] = None

    def sweep(self, now: float, count: int) -> None:
        """Forget what was kept long enough, or does not fit: up to so many."""
        for _ in range(count):
            if not self.is_due(now):
                return
            key, place = self._unclaimed.popleft() if self._unclaimed else heapq.heappop(self._by_until)[1:]
            for kept in self._kept.get(place, ()):
                if kept.key == key:  # else it was forgotten before
                    self._drop(place, kept)

    def is_due(self, now: float) -> bool:
        """Whether a sweep would find something."""
        if not self._by_until:
            return bool(self._unclaimed)
        is_too_much = self._count > KEPT_COUNT_MAX or self._bytes > KEPT_BYTES_MAX
        return bool(self._unclaimed) or is_too_much or self._by_until[0][0] <= now
