"""One request to the server and its reply: addresses, time limit, and every way in which it can fail.

What the requests mean stands in `realm.py` and `realms.py`. A request is repeated only where the server said that it
did nothing: because it held too much at that moment, or because the realm's shard was starting again.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import quote

from restq.config import OPTIONS, Config, ConfigError, load_default
from restq.errors import Overloaded, RestqError, ServerUnreachable, ShardStarting, from_reply

if TYPE_CHECKING:
    from restq.client.session import Session

RETRY_SECONDS_MIN = 0.1
RETRY_SECONDS_MAX = 2.0
_CULPRIT_LEVELS_MAX = 3  # as in jobs[7].data

HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
# The request never left: nobody listens there, or there is no such place.
_NOT_SENT = (ConnectionRefusedError, socket.gaierror)


class Requester(Protocol):
    """Anything with requests' verbs: the module itself, a Session of it, or a stand-in.

    Each is called with the address and the keywords `headers`, `timeout` (seconds) and, where there is a
    body, `data` (bytes). Of its reply `status_code` and `json()` are used.
    """

    def get(self, url: str, *args: Any, **options: Any) -> Any:
        """Send a GET."""

    def put(self, url: str, *args: Any, **options: Any) -> Any:
        """Send a PUT."""

    def post(self, url: str, *args: Any, **options: Any) -> Any:
        """Send a POST."""

    def delete(self, url: str, *args: Any, **options: Any) -> Any:
        """Send a DELETE."""


class Connection:
    """Sends requests to one server. Threads may share it as far as they may share its requester."""

    def __init__(self, uri: str | None, requester: Requester | None, config: Config | None) -> None:
        self._uri = uri
        self._requester = requester
        self._owned: Session | None = None
        self._config = config
        self._lock = threading.Lock()

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

    @property
    def requester(self) -> Requester:
        """What sends the requests: the one that was given, else a Session of our own."""
        if self._requester is not None:
            return self._requester
        with self._lock:
            if self._owned is None:
                from restq.client.session import Session

                self._owned = Session()
            return self._owned

    def request(self, verb: str, path: str, body: Any = None) -> Any:
        """Send one request and return what its reply holds.

        `path` is encoded and has no leading slash. Raises what the server raised; ServerUnreachable where
        no reply came; RestqError where the reply is not restq's; ConfigError for an address that is none, and
        ValueError or TypeError for a body that is not JSON, before anything is sent.
        """
        content = None if body is None else encoded(body)
        return self.send(verb, path, content)

    def send(self, verb: str, path: str, content: bytes | None = None) -> Any:
        """`request` with a body that is already encoded; where nothing was done, again until the time limit."""
        deadline = time.monotonic() + self.config.client.timeout_seconds
        for attempt in itertools.count():
            try:
                return self._send_once(verb, path, content)
            except (Overloaded, ShardStarting):
                # Full jitter: workers that were refused together do not come back together.
                pause = random.uniform(0, min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2**attempt))
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)

    def _send_once(self, verb: str, path: str, content: bytes | None) -> Any:
        options: dict[str, Any] = {"headers": dict(HEADERS), "timeout": self.config.client.timeout_seconds}
        if content is not None:
            options["data"] = content
        call = getattr(self.requester, verb.lower())
        try:
            reply = call(self.uri + path, **options)
        except OSError as error:  # the root of requests' own exceptions, too
            raise self._unreachable(error) from error
        return self._result(reply)

    def close(self) -> None:
        """Close the Session, if there is one of our own. The next request would open another."""
        with self._lock:
            session, self._owned = self._owned, None
        if session is not None:
            session.close()

    def _result(self, reply: Any) -> Any:
        try:
            result = reply.json()
        except ValueError as error:
            raise RestqError(
                f"{self.uri} answered with status {reply.status_code} and something that is not JSON:"
                " is it a restq server?"
            ) from error
        if reply.status_code != 200:
            raise from_reply(reply.status_code, result)
        return result

    def _unreachable(self, error: OSError) -> RestqError:
        """The sentence for a request without a reply: above all whether it may have been done."""
        if isinstance(error, ValueError):  # so requests marks what it did not even begin to send
            return self._unsendable(error)
        chain = list(_chain(error))
        if any(isinstance(link, _NOT_SENT) for link in chain):
            return ServerUnreachable(f"no restq server answers at {self.uri}: {_reason(chain[-1])}")
        if any(isinstance(link, TimeoutError) for link in chain):
            seconds = self.config.client.timeout_seconds
            return ServerUnreachable(
                f"{self.uri} did not answer within {seconds:g} s: whether the request was done is not known"
            )
        return ServerUnreachable(
            f"the connection to {self.uri} failed: {_reason(chain[-1])}: whether the request was done is not known"
        )

    def _unsendable(self, error: ValueError) -> RestqError:
        uri = self.uri if self._uri is None else self._uri
        try:
            OPTIONS["client.uri"].read(uri, "", from_text=True)
        except ConfigError:
            return ConfigError(f"{uri!r} is no address such as http://localhost:8586/: nothing was sent")
        return ServerUnreachable(f"nothing was sent to {uri}: {error}")


def encoded(body: Any) -> bytes:
    """The body as JSON. TypeError or ValueError, with the name of the part that JSON cannot carry."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        where = _culprit(body, _CULPRIT_LEVELS_MAX).removeprefix(".") or "the body"
        raise kind(f"{where} cannot be sent as JSON: {error}") from error


def _culprit(value: Any, levels: int) -> str:
    """The path to the first part that JSON cannot carry, no more than `levels` deep: `.jobs[7].data`."""
    if levels and isinstance(value, dict):
        parts = [(f".{name}", part) for name, part in value.items()]
    elif levels and isinstance(value, (list, tuple)):
        parts = [(f"[{index}]", part) for index, part in enumerate(value)]
    else:
        return ""
    for name, part in parts:
        try:
            json.dumps(part, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            return name + _culprit(part, levels - 1)
    return ""


class Closing(ABC):
    """What sends what it has buffered, and closes its connection, when it is closed or its `with` block ends."""

    _connection: Connection

    @abstractmethod
    def bulk_flush(self) -> None:
        """Send what is buffered."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send what is buffered, then close the connection."""
        try:
            self.bulk_flush()
        finally:
            self._connection.close()


def path(*parts: str | int) -> str:
    """The parts as one path, each encoded whole: a slash in a job's id stays in it."""
    return "/".join(_encoded(str(part)) for part in parts)


def is_dots(part: str) -> bool:
    """Whether a part of a path would mean "here" or "up".

    Our server takes it as an id, but many a proxy resolves it, even encoded, and then deleting the job `..` of
    a realm would delete the realm. What removes or overwrites uses routes that carry such an id in the body.
    """
    return part in (".", "..")


def _encoded(part: str) -> str:
    # urllib3 would drop a bare dot segment; requests makes dots of %2E only after that, and sends them.
    return part.replace(".", "%2E") if is_dots(part) else quote(part, safe="")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, what caused it, and so on to the first one."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
