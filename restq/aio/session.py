"""The requests of a client for asyncio, over aiohttp. Loaded when it is first needed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
from yarl import URL

CLOSE_SECONDS = 1.0  # that a close waits for the other side's
HEARTBEAT_SECONDS = 20.0  # between two pings over a stream, which ends where one is not answered


class Reply:
    """What came back: the status, and the body as JSON once it is asked for."""

    def __init__(self, status_code: int, content: bytes) -> None:
        self.status_code = status_code
        self.content = content

    def json(self) -> Any:
        """The decoded body; ValueError where it is not JSON."""
        return json.loads(self.content)


class NotSent(OSError, ValueError):
    """The address is none: nothing was sent. Both, as requests has it."""


class StreamRefused(Exception):
    """The server opens no stream there: over HTTP it says why, or does all the same what is asked."""


@contextlib.contextmanager
def _raising_os_errors() -> Iterator[None]:
    """What aiohttp raises, as an OSError: where requests raises one, restq's client knows what it means."""
    try:
        yield
    except OSError:  # refused, timed out, reset: as they are
        raise
    except (ValueError, aiohttp.NonHttpUrlClientError) as error:
        raise NotSent(str(error)) from error
    except aiohttp.ClientError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


class Session:
    """requests' verbs as coroutines. Repeats nothing and follows no redirect, as `restq.client.session` says why.

    `Session(client)` sends through an aiohttp.ClientSession of yours, with its proxies and certificates, and leaves it
    open; that one sends what is no POST once more where an old connection was cut. Without one it makes its own.
    """

    def __init__(self, client: aiohttp.ClientSession | None = None) -> None:
        self._given = client
        self._owned: aiohttp.ClientSession | None = None

    async def get(self, url: str, *args: Any, **options: Any) -> Reply:
        """Send a GET."""
        return await self._send("GET", url, **options)

    async def put(self, url: str, *args: Any, **options: Any) -> Reply:
        """Send a PUT."""
        return await self._send("PUT", url, **options)

    async def post(self, url: str, *args: Any, **options: Any) -> Reply:
        """Send a POST."""
        return await self._send("POST", url, **options)

    async def delete(self, url: str, *args: Any, **options: Any) -> Reply:
        """Send a DELETE."""
        return await self._send("DELETE", url, **options)

    async def connect(self, url: str) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket. OSError where nobody answers; StreamRefused where the answer is another one."""
        with _raising_os_errors():
            try:
                return await self._client().ws_connect(
                    URL(url, encoded=True),
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
                    heartbeat=HEARTBEAT_SECONDS,
                    max_msg_size=0,
                    compress=0,
                )
            except aiohttp.WSServerHandshakeError as error:
                raise StreamRefused(str(error)) from error

    async def close(self) -> None:
        """Close what is our own. The next request would open another."""
        client, self._owned = self._owned, None
        if client is not None:
            await client.close()

    async def _send(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        timeout: float,  # noqa: ASYNC109
        data: bytes | None = None,
    ) -> Reply:
        # As requests counts: the time to connect, and then each wait for bytes.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        with _raising_os_errors():
            # encoded: the path is as it is to be, %2F and %2E in it included.
            async with self._client().request(
                method, URL(url, encoded=True), headers=headers, timeout=limits, data=data, allow_redirects=False
            ) as response:
                return Reply(response.status, await response.read())

    def _client(self) -> aiohttp.ClientSession:
        if self._given is not None:
            return self._given
        if self._owned is None or self._owned.closed:
            # limit=0: any number of long polls at a time.
            self._owned = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=True)
            # aiohttp would send a GET, a PUT and a DELETE once more after a cut connection, and since 3.11 has this
            # switch, if no public one.
            self._owned._retry_connection = False
        return self._owned
