"""The Python client for asyncio: what `restq.client` has, under the same names, with `await` before each call.

`async with Realms() as realms:`, `await realms.test.add(..)`, `async for job in realm.consume():`, `async with job:`.
It needs aiohttp, which `pip install 'restq[async]'` brings, and loads it when the first request is sent.
"""

from __future__ import annotations

from restq.aio.job import Job
from restq.aio.realm import Realm
from restq.aio.realms import Realms

__all__ = ["Job", "Realm", "Realms"]
