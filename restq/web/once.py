"""Idempotency keys: a POST that comes again under the same key is answered as before, and nothing is done twice.

Each realm keeps what a request did in it under the key, in the very commit of what was done: so a repeat does only
what is left, whichever process died in between.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from restq.errors import FieldInvalid, IdempotencyKeyReused

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
    left: asyncio.Future[None]


class Turns:
    """The pulls over several realms with a key that are under way in this front end, and take turns by it.

    Other requests need none: what comes to a realm under one key is done one after the other there.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, _UnderWay] = {}  # by key

    @asynccontextmanager
    async def turn(self, once: Sequence[str], left: asyncio.Future[None]) -> AsyncIterator[None]:
        """While this request is the only one under its key: of two, the first waits for jobs no longer.

        `left` is done once it is to wait no longer. Raises IdempotencyKeyReused.
        """
        key, digest = once
        while (other := self._under_way.get(key)) is not None:
            if other.digest != digest:
                raise IdempotencyKeyReused(f"the idempotency key {key!r} is in use for another request", HEADER)
            if not other.left.done():
                other.left.set_result(None)
            await other.done.wait()
        this = self._under_way[key] = _UnderWay(digest, asyncio.Event(), left)
        try:
            yield
        finally:
            del self._under_way[key]
            this.done.set()
