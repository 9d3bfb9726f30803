"""Requests over a socket: what a command needs of requests, without the time it takes to import it.

A command makes one or two requests and ends, so importing requests, or only http.client, would be much of the time
that `restq pull` takes. HTTP/1.0 is the whole of it: a reply ends with its connection and comes in one piece. No TLS,
no proxies, no passwords, no redirects: with those the commands use requests.
"""

from __future__ import annotations

import json
import socket
from typing import IO, Any
from urllib.parse import urlsplit

HEADER_BYTES_MAX = 65536


class Reply:
    """What came back: the status, and the body as JSON once it is asked for."""

    def __init__(self, status_code: int, content: bytes) -> None:
        self.status_code = status_code
        self.content = content

    def json(self) -> Any:
        """The decoded body; ValueError where it is not JSON."""
        return json.loads(self.content)


class QuickRequester:
    """requests' verbs, each over a connection of its own. Raises OSError where no reply comes."""

    def get(self, url: str, *args: Any, **options: Any) -> Reply:
        """Send a GET."""
        return _send("GET", url, **options)

    def put(self, url: str, *args: Any, **options: Any) -> Reply:
        """Send a PUT."""
        return _send("PUT", url, **options)

    def post(self, url: str, *args: Any, **options: Any) -> Reply:
        """Send a POST."""
        return _send("POST", url, **options)

    def delete(self, url: str, *args: Any, **options: Any) -> Reply:
        """Send a DELETE."""
        return _send("DELETE", url, **options)


def _send(method: str, url: str, headers: dict[str, str], timeout: float, data: bytes | None = None) -> Reply:
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    fields = {"Host": parts.netloc, **headers}
    if data is not None:
        fields["Content-Length"] = str(len(data))
    lines = [f"{method} {parts.path}{query} HTTP/1.0", *(f"{name}: {value}" for name, value in fields.items())]
    head = "".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii")
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout) as connection:
        connection.sendall(head + (data or b""))
        with connection.makefile("rb") as stream:
            return _received(stream)


def _received(stream: IO[bytes]) -> Reply:
    """The reply out of the stream. ConnectionError where it is none, or where its end is missing."""
    version, _, rest = stream.readline(HEADER_BYTES_MAX).partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/1.") or not status.isdigit():
        raise ConnectionError("no proper reply came")
    length = None
    while (line := stream.readline(HEADER_BYTES_MAX)).strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            length = int(value)
    if not line:
        raise ConnectionError("the reply was cut off")
    content = stream.read() if length is None else stream.read(length)
    if length is not None and len(content) < length:
        raise ConnectionError("the reply was cut off")
    return Reply(int(status), content)
