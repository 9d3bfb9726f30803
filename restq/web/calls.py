"""A call over several realms: as it comes from HTTP, and what to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from restq.names import QueueId


class Call(NamedTuple):
    """What was asked. `left` is done once nobody wants to wait any longer: then what there is is the answer.

    `once` is its idempotency key and the digest of what is asked under it; empty where it came without one.
    """

    query: list[str | None]
    body: bytes
    left: asyncio.Future[None]
    once: Sequence[str] = ()


class Lease(NamedTuple):
    """What to undo if nobody receives it: the number of a pull, and the (job, queue) pairs that it leased."""

    realm: str
    number: int
    pairs: list[tuple[str, QueueId]]


class Outcome(NamedTuple):
    """A response, and the leases that it hands out."""

    body: bytes
    leases: Sequence[Lease] = ()
    content_type: str = "application/json"


NOTHING = Outcome(b"{}")

Operation = Callable[[Call], Awaitable[Outcome]]
