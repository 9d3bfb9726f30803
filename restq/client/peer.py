"""The server as a client sees it: its address, what goes with each request, and what each outcome means.

Nothing is sent here, and no clock is read: the two connections, `restq.client.connection` and `restq.aio.connection`,
do that, and ask here what to do next.
"""

from __future__ import annotations

import os
import random
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from restq.client.call import Call
from restq.config import OPTIONS, Config, ConfigError, load_default
from restq.errors import (
    BodyMalformed,
    LeaseStale,
    Overloaded,
    RestqError,
    ServerUnreachable,
    ShardStarting,
    ShardUnavailable,
    StreamUnopened,
    from_reply,
)

T = TypeVar("T")

RETRY_SECONDS_MIN = 0.1
RETRY_SECONDS_MAX = 2.0
LAST_TRY_SECONDS_MIN = 0.1  # a request that begins just before the time limit gets a chance, too

HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
# What passes by itself: the server, or the way to it, is away or too busy.
OUTAGES = (ServerUnreachable, ShardUnavailable, Overloaded)
# The request never left: nobody listens there, or there is no such place.
_NOT_SENT = (ConnectionRefusedError, socket.gaierror)


class Peer:
    """One server. What is common to the two connections."""

    def __init__(self, uri: str | None, config: Config | None) -> None:
        self._uri = uri
        self._config = config
        self.has_answered = False  # since then, nobody listening there is a restart, and no wrong address

    @property
    def config(self) -> Config:
        """The configuration, read when it is first asked for. ConfigError where it cannot be used."""
        if self._config is None:
            self._config = load_default()
        return self._config

    @property
    def uri(self) -> str:
        """The server's address, with a slash at its end; the configured one where none was given."""
        if self._uri is None:
            return self.config.client.uri
        return self._uri if self._uri.endswith("/") else self._uri + "/"

    def result(self, call: Call[T], status: int, decode: Callable[[], Any]) -> T:
        """What the caller of `call` gets. Raises what the server raised; RestqError where the reply is not restq's.

        `decode` gives the reply's body, or raises ValueError where that is not JSON.
        """
        try:
            reply = decode()
        except ValueError as error:
            # Not `from error`: to requests it is an OSError and a ValueError, which marks what was never sent.
            raise self._not_json(status, is_empty=getattr(error, "doc", None) == "") from None
        self.has_answered = True
        if status == 200:
            return call.read(reply)
        refusal = from_reply(status, reply)
        if isinstance(refusal, LeaseStale):
            for job in call.jobs:
                job.learn_stale()
        if status == ServerUnreachable.status and not isinstance(refusal, OUTAGES):
            raise ServerUnreachable(str(refusal))
        raise refusal

    def _not_json(self, status: int, is_empty: bool) -> RestqError:
        # Where a connection ends within the headers of a reply, `http.client` takes that for the end of the headers.
        # A bare 400 is what Tornado itself says to what is no HTTP.
        if is_empty and status != BodyMalformed.status:
            return ServerUnreachable(
                f"the connection to {self.uri} failed: the reply was cut: whether the request was done is not known"
            )
        # A proxy says 503, too, while it does not reach restq.
        kind = ServerUnreachable if status == ServerUnreachable.status else RestqError
        return kind(f"{self.uri} answered with status {status} and something that is not JSON: is it a restq server?")

    def unreachable(self, error: OSError | ValueError, seconds: float) -> RestqError:
        """The sentence for a request without a reply: above all whether it may have been done.

        A ValueError that is no OSError, and that no wrong address explains, is raised as it is: the requester knows.
        """
        return self._outage(error, seconds, ServerUnreachable, "whether the request was done is not known")

    def unopened(self, error: OSError, seconds: float) -> RestqError:
        """The sentence for a stream that could not be opened."""
        return self._outage(error, seconds, StreamUnopened, "nothing was done")

    def _outage(
        self, error: OSError | ValueError, seconds: float, kind: type[ServerUnreachable], outcome: str
    ) -> RestqError:
        if isinstance(error, ValueError):  # so requests marks what it did not even begin to send
            return self._unsendable(error)
        links = list(_chain(error))
        refused = next((link for link in links if isinstance(link, _NOT_SENT)), None)
        if refused is not None:
            return kind(f"no restq server answers at {self.uri}: {_reason(refused)}")
        if any(isinstance(link, TimeoutError) for link in links):
            return kind(f"{self.uri} did not answer within {seconds:g} s: {outcome}")
        return kind(f"the connection to {self.uri} failed: {_reason(links[-1])}: {outcome}")

    def _unsendable(self, error: ValueError) -> RestqError:
        uri = self.uri if self._uri is None else self._uri
        try:
            OPTIONS["client.uri"].read(uri, "", from_text=True)
        except ConfigError:
            return ConfigError(f"{uri!r} is no address such as http://localhost:8586/: nothing was sent")
        if not isinstance(error, OSError):
            raise error
        return ServerUnreachable(f"nothing was sent to {uri}: {error}")


class Attempts:
    """The tries of one call: what goes with each of them, and whether there is another. `now` is any steady clock's.

    A call with an idempotency key is repeated, with that same key, when no reply came and on every 503: the server
    does it once. One without is repeated only where the server says that it did nothing, or no stream to it was opened.
    """

    def __init__(self, peer: Peer, call: Call[Any], now: float) -> None:
        self.seconds = peer.config.client.timeout_seconds + call.wait_seconds
        self._peer = peer
        self._call = call
        self._deadline = now + self.seconds
        self._failures = 0
        self._has_begun = False
        self.key = uuid.uuid4().hex if call.has_key else None

    def left(self, now: float) -> float:
        """The seconds that what comes next may take: a try, or a part of one."""
        if not self._has_begun:
            self._has_begun = True
            return self.seconds
        return max(self._deadline - now, LAST_TRY_SECONDS_MIN)

    def options(self, now: float) -> dict[str, Any]:
        """The keywords for the requester's verb."""
        headers = dict(HEADERS) if self.key is None else {**HEADERS, "Idempotency-Key": self.key}
        options: dict[str, Any] = {"headers": headers, "timeout": self.left(now)}
        if self._call.content is not None:
            options["data"] = self._call.content
        return options

    def pause(self, error: RestqError, now: float) -> float | None:
        """The seconds until the next try after this error; None where there is none."""
        if not self._may_repeat(error):
            return None
        # Full jitter: workers that were refused together do not come back together.
        pause = random.uniform(0, min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2**self._failures))
        self._failures += 1
        return None if now + pause > self._deadline else pause

    def _may_repeat(self, error: RestqError) -> bool:
        if isinstance(error, (Overloaded, ShardStarting)):
            return True
        is_safe = self._call.has_key or self._call.only_reads or isinstance(error, StreamUnopened)
        if not is_safe or not isinstance(error, OUTAGES):
            return False
        links = list(_chain(error))
        if isinstance(error.__cause__, OSError) and isinstance(error.__cause__, ValueError):
            return False  # not sendable, now or later
        return self._peer.has_answered or not any(isinstance(link, _NOT_SENT) for link in links)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, what caused it, and so on to the first one."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError) and error.errno:
        return os.strerror(error.errno)  # asyncio puts the address there
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
