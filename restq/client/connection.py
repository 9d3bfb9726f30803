"""How the client sends its calls: a requester, one request after another, in the thread that asks.

What the calls are stands in `realm_calls.py` and its neighbours; when one is sent again, in `peer.py`.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from restq.client.call import Call
from restq.client.extender import Extender
from restq.client.peer import Attempts, Peer
from restq.config import Config
from restq.errors import RestqError

if TYPE_CHECKING:
    from restq.client.session import Session

T = TypeVar("T")
Calls = TypeVar("Calls")
P = ParamSpec("P")


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


class Connection(Peer):
    """Sends calls to one server. Threads may share it as far as they may share its requester."""

    def __init__(self, uri: str | None, requester: Requester | None, config: Config | None) -> None:
        super().__init__(uri, config)
        self.extender = Extender()
        self._requester = requester
        self._owned: Session | None = None
        self._lock = threading.Lock()

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

    def send(self, call: Call[T]) -> T:
        """Send the call, again where that is safe and until the time limit, and return what its caller gets.

        Raises what the server raised; ServerUnreachable where no reply came; RestqError where the reply is not
        restq's; ConfigError for an address that is none.
        """
        attempts = Attempts(self, call, time.monotonic())
        while True:
            try:
                return self._send_once(call, attempts)
            except RestqError as error:
                pause = attempts.pause(error, time.monotonic())
                if pause is None:
                    raise
                time.sleep(pause)

    def _send_once(self, call: Call[T], attempts: Attempts) -> T:
        verb = getattr(self.requester, call.verb)
        try:
            reply = verb(self.uri + call.path, **attempts.options(time.monotonic()))
        # The roots of requests' own exceptions, and of urllib3's for a host that is none.
        except (OSError, ValueError) as error:
            raise self.unreachable(error, attempts.seconds) from error
        return self.result(call, reply.status_code, reply.json)

    def close(self) -> None:
        """Close the Session, if there is one of our own. The next request would open another."""
        self.extender.close()
        with self._lock:
            session, self._owned = self._owned, None
        if session is not None:
            session.close()


def connect(uri: str | None, requester: Requester | None, config: Config | None, stream: bool) -> Connection:
    """A connection over streams, or else over HTTP alone. Nothing is sent yet."""
    if not stream:
        return Connection(uri, requester, config)
    from restq.client.stream import StreamConnection  # who wants none needs no websockets

    return StreamConnection(uri, requester, config)


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


def sent(describe: Callable[Concatenate[Calls, P], Call[T]]) -> Callable[Concatenate[Any, P], T]:
    """The method that sends what `describe` describes, with its arguments, its docstring, and what it reads."""

    @functools.wraps(describe)
    def send(self: Any, /, *arguments: P.args, **options: P.kwargs) -> T:
        result: T = self._connection.send(describe(self._calls, *arguments, **options))
        return result

    return as_method(send, describe)


def as_method(method: Callable[P, T], describe: Callable[..., Any]) -> Callable[P, T]:
    """Have `help` show what the method returns, `Call[int]` being `int`, under its own name."""
    signature = inspect.signature(describe)
    returned = str(signature.return_annotation).removeprefix("Call[").removesuffix("]")
    method.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
    method.__qualname__ = describe.__name__
    return method
