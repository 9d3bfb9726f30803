"""Both Python clients under one hand: each test of this hand runs with `restq.client` and with `restq.aio`.

The client for asyncio lives in an event loop in a thread of its own, where its timers and tasks go on while the test
does something else; `Adapted` runs its coroutines there and waits for them. Besides, servers and requesters that
answer by a script.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socketserver
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from restq import aio, client
from restq.client.leased import Leased

WAIT_SECONDS = 60
KEEP_ALIVE = b"Connection: keep-alive"
_TARGETS = (aio.Realm, aio.Realms, Leased)


class Loop:
    """An event loop that runs in a thread until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What the coroutine returns or raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT_SECONDS)

    def close(self) -> None:
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Adapted:
    """An object of `restq.aio` that is used as its twin of `restq.client` is."""

    def __init__(self, target: Any, loop: Loop) -> None:
        self.target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return self._adapted(getattr(self.target, name))

    def __getitem__(self, name: str) -> Any:
        return self._adapted(self.target[name])

    def __iter__(self) -> Iterator[Any]:
        return iter(self._adapted(aiter(self.target)))

    def __enter__(self) -> Adapted:
        self._loop.run(self.target.__aenter__())
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._loop.run(self.target.__aexit__(*error))

    def _adapted(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            return self._adapted(self._loop.run(value))
        if inspect.isasyncgen(value):
            return self._iterated(value)
        if isinstance(value, _TARGETS):
            return Adapted(value, self._loop)
        if isinstance(value, list):
            return [self._adapted(item) for item in value]
        if isinstance(value, dict):
            return {name: self._adapted(item) for name, item in value.items()}
        if inspect.ismethod(value):
            return lambda *given, **options: self._adapted(
                value(*map(_plain, given), **{name: _plain(item) for name, item in options.items()})
            )
        return value

    def _iterated(self, values: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    item = self._loop.run(anext(values))
                except StopAsyncIteration:
                    return
                yield self._adapted(item)
        finally:
            self._loop.run(values.aclose())


def _plain(value: Any) -> Any:
    """An argument with the client's own objects in it."""
    if isinstance(value, Adapted):
        return value.target
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


class Coroutines:
    """A requester's verbs as coroutines."""

    def __init__(self, requester: Any) -> None:
        self._requester = requester

    def __getattr__(self, verb: str) -> Any:
        call = getattr(self._requester, verb)

        async def send(url: str, **options: Any) -> Any:
            return call(url, **options)

        return send


class Twin:
    """One of the two clients; what it made is closed in the end."""

    def __init__(self, name: str, loop: Loop, stack: contextlib.ExitStack) -> None:
        self.name = name
        self._loop = loop
        self._stack = stack

    @property
    def is_stream(self) -> bool:
        """Whether its calls go over a stream; those of a requester do not."""
        return self.name.endswith("stream")

    def realm(self, name: str, uri: str, requester: Any = None, **options: Any) -> Any:
        """The client of a realm."""
        return self._made("Realm", (name, uri), requester, options)

    def realms(self, uri: str | None = None, requester: Any = None, **options: Any) -> Any:
        """The client of a server."""
        return self._made("Realms", (uri,), requester, options)

    def _made(self, kind: str, given: tuple[str | None, ...], requester: Any, options: dict[str, Any]) -> Any:
        if self.is_stream and requester is None:
            options = {"stream": True, **options}
        if self.name.startswith("client"):
            made = getattr(client, kind)(*given, requester, **options)
        else:
            verbs = requester and Coroutines(requester)
            made = Adapted(getattr(aio, kind)(*given, verbs, **options), self._loop)
        self._stack.callback(self._close, made)
        return made

    def _close(self, made: Any) -> None:
        with contextlib.suppress(Exception):  # a test of a broken server leaves what cannot be sent
            made.close()


class Script:
    """A requester that answers by a script: a reply or an exception a request, the last for ever. Keeps what it got.

    An answer may also be a function of the verb, the address and the body.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, str, Any]] = []
        self.options: list[dict[str, Any]] = []

    @property
    def keys(self) -> list[str | None]:
        """The idempotency key of each request."""
        return [options["headers"].get("Idempotency-Key") for options in self.options]

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        if verb not in ("get", "put", "post", "delete"):
            raise AttributeError(verb)
        return lambda url, **options: self._take(verb.upper(), url, options)

    def _take(self, verb: str, url: str, options: dict[str, Any]) -> Answer:
        content = options.get("data")
        self.calls.append((verb, url, None if content is None else json.loads(content)))
        self.options.append(options)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer(*self.calls[-1])
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Answer) else Answer(answer)


class Answer:
    """A reply of a script."""

    def __init__(self, reply: Any, status: int = 200) -> None:
        self.reply = reply
        self.status_code = status

    def json(self) -> Any:
        return self.reply


class Broken:
    """A server that reads each request whole and then answers with given bytes: none is a cut connection.

    The last of several answers is for all later requests, too. None answers never. With KEEP_ALIVE in it, an answer
    leaves the connection open.
    """

    def __init__(self, *answers: bytes | None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        left: list[bytes | None] = list(answers)
        broken = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                broken.connections += 1
                while self.handle_one():
                    pass

            def handle_one(self) -> bool:
                head = b""
                while not head.endswith(b"\r\n\r\n") and (line := self.rfile.readline()):
                    head += line
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = self.rfile.read(int(lengths[0].split(b":")[1])) if lengths else b""
                if not head:
                    return False
                broken.requests.append(head + body)
                answer = left.pop(0) if len(left) > 1 else left[0]
                if answer is None:
                    self.rfile.read()  # until the client gives up
                else:
                    self.wfile.write(answer)
                return answer is not None and KEEP_ALIVE in answer

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}/"

    @property
    def keys(self) -> list[str | None]:
        """The idempotency key of each request."""
        return [_header(request, b"idempotency-key") for request in self.requests]

    def __enter__(self) -> Broken:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _header(request: bytes, name: bytes) -> str | None:
    for line in request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        found, _, value = line.partition(b":")
        if found.strip().lower() == name:
            return value.strip().decode()
    return None


def answer(reply: Any, status: str = "200 OK") -> bytes:
    """The bytes of a reply in JSON, after which the connection is closed."""
    body = json.dumps(reply).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
    return head.encode() + b"\r\n\r\n" + body


# Both over HTTP, and both over streams: for tests with a real server.
QUADRUPLETS = ("client", "aio", "client-stream", "aio-stream")


def twins(names: Sequence[str] = ("client", "aio")) -> dict[str, Any]:
    """The keywords of a fixture that has both."""
    return {"params": names, "ids": names}
