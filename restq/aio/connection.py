"""How the client for asyncio sends its calls. The twin of `restq.client.connection`; the calls are the same."""

from __future__ import annotations

import asyncio
import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from restq.client.call import Call
from restq.client.connection import as_method
from restq.client.peer import Attempts, Peer
from restq.config import Config
from restq.errors import RestqError

if TYPE_CHECKING:
    from restq.aio.session import Session

T = TypeVar("T")
Calls = TypeVar("Calls")
P = ParamSpec("P")


class Requester(Protocol):
    """Anything with requests' verbs as coroutines: a `restq.aio.session.Session`, or a stand-in.

    Each is called with the address and the keywords `headers`, `timeout` (seconds) and, where there is a
    body, `data` (bytes). Of its reply `status_code` and `json()`, which is no coroutine, are used.
    """

    async def get(self, url: str, *args: Any, **options: Any) -> Any:
        """Send a GET."""

    async def put(self, url: str, *args: Any, **options: Any) -> Any:
        """Send a PUT."""

    async def post(self, url: str, *args: Any, **options: Any) -> Any:
        """Send a POST."""

    async def delete(self, url: str, *args: Any, **options: Any) -> Any:
        """Send a DELETE."""


class Connection(Peer):
    """Sends calls to one server. Its tasks share it; another event loop needs another."""

    def __init__(self, uri: str | None, requester: Requester | None, config: Config | None) -> None:
        super().__init__(uri, config)
        self._requester = requester
        self._owned: Session | None = None

    @property
    def requester(self) -> Requester:
        """What sends the requests: the one that was given, else a Session of our own."""
        if self._requester is not None:
            return self._requester
        if self._owned is None:
            try:
                from restq.aio.session import Session
            except ModuleNotFoundError as error:
                raise missing(error) from error
            self._owned = Session()
        return self._owned

    async def send(self, call: Call[T]) -> T:
        """Send the call, again where that is safe and until the time limit, and return what its caller gets.

        Raises what the server raised; ServerUnreachable where no reply came; RestqError where the reply is not
        restq's; ConfigError for an address that is none.
        """
        attempts = Attempts(self, call, time.monotonic())
        while True:
            try:
                return await self._send_once(call, attempts)
            except RestqError as error:
                pause = attempts.pause(error, time.monotonic())
                if pause is None:
                    raise
                await asyncio.sleep(pause)

    async def _send_once(self, call: Call[T], attempts: Attempts) -> T:
        verb = getattr(self.requester, call.verb)
        try:
            reply = await verb(self.uri + call.path, **attempts.options(time.monotonic()))
        except OSError as error:
            raise self.unreachable(error, attempts.seconds) from error
        return self.result(call, reply.status_code, reply.json)

    async def close(self) -> None:
        """Close the Session, if there is one of our own. The next request would open another."""
        session, self._owned = self._owned, None
        if session is not None:
            await session.close()


def connect(uri: str | None, requester: Requester | None, config: Config | None, stream: bool) -> Connection:
    """A connection over streams, or else over HTTP alone. Nothing is sent yet."""
    if not stream:
        return Connection(uri, requester, config)
    try:
        from restq.aio.stream import StreamConnection
    except ModuleNotFoundError as error:
        raise missing(error) from error
    return StreamConnection(uri, requester, config)


def missing(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """What to say of a library that is not there."""
    return ModuleNotFoundError(
        f"restq.aio needs aiohttp, for which pip install 'restq[async]': {error}", name=error.name
    )


class Closing(ABC):
    """What sends what it has buffered, and closes its connection, when it is closed or its `async with` block ends."""

    _connection: Connection

    @abstractmethod
    async def bulk_flush(self) -> None:
        """Send what is buffered."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what is buffered, then close the connection."""
        try:
            await self.bulk_flush()
        finally:
            await self._connection.close()


def sent(
    describe: Callable[Concatenate[Calls, P], Call[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The coroutine method that sends what `describe` describes, with its arguments, docstring, and what it reads."""

    @functools.wraps(describe)
    async def send(self: Any, /, *arguments: P.args, **options: P.kwargs) -> T:
        result: T = await self._connection.send(describe(self._calls, *arguments, **options))
        return result

    return as_method(send, describe)
