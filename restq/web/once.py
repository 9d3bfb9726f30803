"""Idempotency keys: a POST that comes again under the same key is answered as before, and nothing is done twice.

A call on one realm takes its key along to the realm's shard, which keeps the reply in the very commit of what was
done. For a call over several realms it is the shard at home under the key that keeps it: it is asked before, and told
before anybody is answered. Should the server die in between, a repeat does it again: what was added is there already,
and what was pulled comes back when its lease ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from restq.errors import (
    FieldInvalid,
    IdempotencyKeyReused,
    RestqError,
    ShardStarting,
    ShardUnavailable,
    from_reply,
)
from restq.placement import home
from restq.protocol import Reply
from restq.web.calls import Outcome
from restq.web.shards import Shards

HEADER = "Idempotency-Key"

_KEY = re.compile(r"[ -~]{1,255}")


def read_once(key: str, method: str, path: str, body: bytes) -> tuple[str, str]:
    """The key, checked, and the digest of what is asked under it."""
    if not _KEY.fullmatch(key):
        raise FieldInvalid(f"{HEADER}: must be 1-255 printable ASCII characters", HEADER)
    digest = hashlib.blake2b(f"{method}\0{path}\0".encode(), digest_size=16)
    digest.update(body)
    return key, digest.hexdigest()


class _UnderWay(NamedTuple):
    digest: str
    done: asyncio.Event
    leave: Callable[[], None]


class Once:
    """The calls over several realms that came with a key."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._under_way: dict[str, _UnderWay] = {}  # by key

    async def ask(
        self,
        once: tuple[str, str],
        work: Callable[[], Awaitable[Outcome]],
        is_gone: Callable[[], bool],
        leave: Callable[[], None],
    ) -> Outcome:
        """The outcome that is kept under the key, or that of this work, kept from now on.

        Of two at once the second goes on once the first is done; that one waits for jobs no longer. What a client
        that is gone by then would have leased is not kept: it is the caller's to undo.
        """
        key, digest = once
        while (other := self._under_way.get(key)) is not None:
            if other.digest != digest:
                raise IdempotencyKeyReused(f"the idempotency key {key!r} is in use for another request", HEADER)
            other.leave()
            await other.done.wait()
        done = asyncio.Event()
        self._under_way[key] = _UnderWay(digest, done, leave)
        try:
            kept = await self._call("recall", once)
            if kept.status == 200:
                return Outcome(kept.body)
            outcome = await work()
            if not outcome.is_kept or (outcome.leases and is_gone()):
                return outcome
            await self._remember(once, outcome)
            return outcome._replace(leases=())  # a repeat gets them from now on
        finally:
            del self._under_way[key]
            done.set()

    async def _remember(self, once: tuple[str, str], outcome: Outcome) -> None:
        try:
            await self._call("remember", once, outcome.body)
        except RestqError as error:
            if not isinstance(error, ShardUnavailable) or isinstance(error, ShardStarting):
                # It is certain that it is not kept: else a repeat may be given these leases.
                for lease in outcome.leases:
                    self._shards.undo(lease)
            told = f"the reply could not be kept under its {HEADER}: {error.message}"
            raise ShardUnavailable(told) from None

    async def _call(self, operation: str, once: tuple[str, str], body: bytes = b"") -> Reply:
        pipes = self._shards.pipes
        reply = await pipes[home(once[0], len(pipes))].call(operation, "", [], body, once)
        if reply.status not in (200, 204):
            error = from_reply(reply.status, json.loads(reply.body))
            assert isinstance(error, RestqError), "shards refuse with errors of restq"
            raise error
        return reply
