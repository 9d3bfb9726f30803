"""Who may lease under an idempotency key, where the same pull over several realms comes by several front ends.

Sent again while the first is still under way elsewhere, a pull is told what was leased until then; what the first went
on to lease would be given to nobody. So each says in every shard, as it asks what was leased before and again as it
leases, when it began, and a shard refuses who began earlier than the last that was here: by then that one was told all.
"""

from __future__ import annotations

from collections.abc import Sequence

from restq.errors import ShardUnavailable

CLAIMS_MAX = 10_000  # that are remembered: more pulls are hardly under way at once

Claim = tuple[float, ...]  # when a request began, by a clock that all front ends share, and a number of its front end


class Claims:
    """Of each idempotency key, with the digest of what was asked under it, the claim that was last made."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], Claim] = {}

    def make(self, once: Sequence[str], began: Sequence[float]) -> None:
        """Claim the key. Raises ShardUnavailable where a request that began later has done so."""
        key, claim = tuple(once), tuple(began)
        last = self._last.pop(key, claim)
        self._last[key] = max(last, claim)
        if len(self._last) > CLAIMS_MAX:
            del self._last[next(iter(self._last))]
        if last > claim:
            raise ShardUnavailable("the same request came again since, by another way")
