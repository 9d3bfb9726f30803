"""Requests over http.client: what a command needs of requests, without the time it takes to import it.

A command makes one or two requests and ends, so importing requests would be most of the time that `restq pull`
takes. No TLS, no proxies, no passwords, no redirects: with those the commands use requests.
"""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit


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
    connection = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout)
    try:
        connection.request(method, parts.path, data, {**headers, "Connection": "close"})
        response = connection.getresponse()
        return Reply(response.status, response.read())
    except HTTPException as error:
        raise ConnectionError(f"no proper reply came: {error!r}") from error
    finally:
        connection.close()
