"""Which shard a realm lives in: a stable function of its name, and what is known to stand elsewhere.

The function is jump consistent hashing (Lamping and Veach, 2014) over a BLAKE2 digest of the name: the same in
every process and version, even, and when the number of shards grows from n to m only (m-n)/m of the realms move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

CACHE_COUNT_MAX = 100_000


def home(realm: str, shard_count: int) -> int:
    """The shard, 0 to shard_count - 1, that the name of the realm hashes to."""
    seed = int.from_bytes(hashlib.blake2b(realm.encode(), digest_size=8).digest(), "big")
    chosen, jump = -1, 0
    while jump < shard_count:
        chosen = jump
        seed = (seed * 2862933555777941757 + 1) & 0xFFFFFFFFFFFFFFFF
        jump = int((chosen + 1) * ((1 << 31) / ((seed >> 33) + 1)))
    return chosen


class Placement:
    """Where each realm lives, as far as this process knows: at home, unless it learned otherwise."""

    def __init__(self, shard_count: int, elsewhere: Mapping[str, int] | None = None) -> None:
        self.shard_count = shard_count
        self._elsewhere_first = dict(elsewhere or {})
        self._elsewhere = dict(self._elsewhere_first)
        self._homes: dict[str, int] = {}

    def shard_of(self, realm: str) -> int:
        """The shard to ask about the realm. It may answer that the realm has moved on."""
        found = self._elsewhere.get(realm)
        if found is not None:
            return found
        found = self._homes.get(realm)
        if found is None:
            if len(self._homes) >= CACHE_COUNT_MAX:
                self._homes.clear()
            found = self._homes[realm] = home(realm, self.shard_count)
        return found

    def forget(self) -> None:
        """Know what stood elsewhere when this was made, and nothing that was learned since."""
        self._elsewhere = dict(self._elsewhere_first)

    def learn(self, realm: str, shard: int) -> None:
        """The realm lives in this shard from now on."""
        if shard == home(realm, self.shard_count):
            self._elsewhere.pop(realm, None)
        else:
            self._elsewhere[realm] = shard
