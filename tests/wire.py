"""HTTP as it goes over the wire: requests that hold just what a test puts in, and replies as they came."""

from __future__ import annotations

import builtins
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from conftest import Server

from restq.placement import home

JSON = {"Content-Type": "application/json"}
MSGPACK = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
REPLY_SECONDS_MAX = 60.0


@dataclass(frozen=True)
class Answer:
    """A reply: what came, and what it says as JSON."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON, which it must say that it is."""
        assert self.headers["content-type"] == "application/json", f"{self.headers} {self.body[:200]!r}"
        return json.loads(self.body)

    def ok(self) -> Any:
        """The body of a success."""
        assert self.status == 200, f"{self.status} {self.body[:500]!r}"
        return self.json

    def refused(self, status: int, exception: str, code: str) -> str:
        """The message of a refusal, whose shape is complete and says just this."""
        assert (self.status, refusal(self)["exception"], refusal(self)["code"]) == (status, exception, code), self.body
        return str(self.json["message"])


def refusal(answer: Answer) -> dict[str, Any]:
    """The body of any refusal, after a look at everything that a client may rely on."""
    reply = answer.json
    assert 400 <= answer.status < 600, answer
    assert set(reply) - {"field"} == {"error", "exception", "message", "code"}, reply
    assert reply["error"] == answer.status
    raised = getattr(builtins, reply["exception"])
    assert issubclass(raised, Exception)
    message = reply["message"]
    assert message, reply
    assert len(message.splitlines()) == 1, f"more than one line: {message!r}"
    assert "Traceback" not in message
    assert isinstance(reply["code"], str)
    assert reply["code"], reply
    assert reply.get("field", "") is not None
    return dict(reply)


@dataclass
class Wire:
    """Requests over one connection at a time, which is kept alive, and made anew once it broke."""

    port: int
    host: str = "127.0.0.1"
    _connection: http.client.HTTPConnection | None = field(default=None, repr=False)

    def ask(self, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request and return what is answered. Bytes are sent as they are, other bodies as JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = JSON if headers is None else headers
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.host, self.port, timeout=REPLY_SECONDS_MAX)
        try:
            self._connection.request(method, target, body, dict(headers or {}))
            with self._connection.getresponse() as response:
                return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def ask(server: Server, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
    """One request on a connection of its own."""
    wire = Wire(server.port)
    try:
        return wire.ask(method, target, body, headers)
    finally:
        wire.close()


def encoded(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")


def connect(server: Server) -> socket.socket:
    """A bare connection."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=REPLY_SECONDS_MAX)


def raw_request(method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: restq", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def received(connection: socket.socket, method: str = "GET") -> Answer:
    """The next reply on a bare connection."""
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def names_on(shard: int, prefix: str, shard_count: int = 2) -> Iterator[str]:
    """Names of realms, all different, whose home is this shard."""
    number = 0
    while True:
        name = f"{prefix}-{number}"
        if home(name, shard_count) == shard:
            yield name
        number += 1
