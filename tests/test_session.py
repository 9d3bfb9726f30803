"""The session of the client sends what requests' own would send, whatever is set and wherever it is set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from twins import KEEP_ALIVE, Broken

from restq.client.session import Session

REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n" + KEEP_ALIVE + b"\r\n\r\n{}"
COOKIE = REPLY.replace(b"\r\n\r\n", b"\r\nSet-Cookie: way=5; Path=/\r\n\r\n")
HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "Idempotency-Key": "k"}


class Signed(requests.auth.AuthBase):
    """Signs each request for itself."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["X-Signed"] = f"{request.method} {request.path_url}"
        return request


Set = Callable[[requests.Session], Any]
SETTINGS: dict[str, Set] = {
    "nothing": lambda session: None,
    "headers": lambda session: session.headers.update({"X-Way": "5", "Accept": "text/html"}),
    "auth": lambda session: setattr(session, "auth", ("me", "secret")),
    "signed": lambda session: setattr(session, "auth", Signed()),
    "proxies": lambda session: session.proxies.update(http="http://127.0.0.1:9"),
    "params": lambda session: setattr(session, "params", {"way": "5"}),
    "cookies": lambda session: session.cookies.set("way", "5"),
}


def sent(session: requests.Session, answer: bytes, uri: str = "", setting: Set = SETTINGS["nothing"]) -> list[bytes]:
    """What arrives of some calls, one of each verb, half of them before `setting`."""
    with Broken(answer) as server, session:
        port = server.uri.rsplit(":", 1)[1].strip("/")
        base = (uri or server.uri).replace("PORT", port)
        for _ in range(2):
            for verb, data in (("get", None), ("put", b'{"a": 1}'), ("post", b""), ("delete", None)):
                options: dict[str, Any] = {"headers": HEADERS, "timeout": 5}
                if data is not None:
                    options["data"] = data
                try:
                    assert getattr(session, verb)(f"{base}r/job/%C3%A4%2F", **options).json() == {}
                except requests.exceptions.ProxyError:
                    server.requests.append(b"a proxy was asked")
            setting(session)
        return [_sorted(request.replace(port.encode(), b"PORT")) for request in server.requests]


def _sorted(request: bytes) -> bytes:
    """A request whose headers are in order: theirs means nothing."""
    head, end, body = request.partition(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    return b"\r\n".join([first, *sorted(headers)]) + end + body


@pytest.mark.parametrize("answer", [REPLY, COOKIE], ids=["plain", "cookie"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_send_is_what_requests_sends(setting: str, answer: bytes) -> None:
    ours, theirs = (sent(kind(), answer, setting=SETTINGS[setting]) for kind in (Session, requests.Session))
    assert len(ours) == 8
    assert ours == theirs
    if setting != "nothing":
        assert ours[4:] != ours[:4]


@pytest.mark.parametrize("verb", ["get", "put", "post", "delete"])
def test_send_what_the_client_sends_is_not_left_to_requests(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(requests.Session, "request", None)
    with Broken(REPLY) as server, Session() as session:
        assert getattr(session, verb)(f"{server.uri}r/job/a", headers=HEADERS, timeout=5).json() == {}
        assert len(server.requests) == 1


@pytest.mark.parametrize("options", [{}, {"data": {"way": "5"}}, {"data": "ä", "headers": {}, "timeout": 5}])
def test_send_what_others_send_is_what_requests_sends(options: dict[str, Any]) -> None:
    arrived = []
    for kind in (Session, requests.Session):
        with Broken(REPLY) as server, kind() as session:
            session.put(f"{server.uri}r", **options)
            arrived.append(_sorted(server.requests[0].replace(server.uri.rsplit(":", 1)[1][:-1].encode(), b"PORT")))
    assert arrived[0] == arrived[1]


@pytest.mark.parametrize(
    ("name", "value"), [("HTTP_PROXY", "http://127.0.0.1:9"), ("ALL_PROXY", "http://127.0.0.1:9"), ("NO_PROXY", "*")]
)
def test_send_with_proxies_of_the_environment_is_what_requests_sends(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    ours, theirs = (sent(kind(), REPLY) for kind in (Session, requests.Session))
    assert ours == theirs
    assert ours[0].startswith(b"a proxy was asked") == (name != "NO_PROXY")


def test_send_with_netrc_and_with_a_name_in_the_address_is_what_requests_sends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    for uri in ("http://127.0.0.1:PORT/", "http://you:other@127.0.0.1:PORT/way/"):
        ours, theirs = (sent(kind(), REPLY, uri) for kind in (Session, requests.Session))
        assert ours == theirs
        assert b"Authorization: Basic " in ours[0]


def test_send_to_what_is_no_address_raises_what_requests_raises() -> None:
    for address in ("localhost:1/x", "http:///x", "ftp://a/x", "http://[::1/x"):
        with pytest.raises(requests.exceptions.RequestException) as theirs, requests.Session() as session:
            session.get(address, timeout=5)
        with pytest.raises(type(theirs.value)), Session() as ours:
            ours.get(address, headers=HEADERS, timeout=5)
