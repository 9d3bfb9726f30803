"""Server-sent events over real sockets: who listens learns what happens, in order, once it is committed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Server, StartServer
from wire import ask, connect, names_on, raw_request

SECONDS_MAX = 20.0


class Listener:
    """A client that listens."""

    def __init__(self, server: Server, target: str) -> None:
        self.connection = connect(server)
        self.connection.settimeout(SECONDS_MAX)
        self.connection.sendall(raw_request("GET", target, headers={"Accept": "text/event-stream"}))
        self._buffer = b""
        self.head = self._until(b"\r\n\r\n")
        kind, self.counts = self.next()
        assert kind == "counts", "the first word is that somebody listens by now"

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            received = self.connection.recv(65536)
            assert received, f"the stream ended: {self._buffer!r}"
            self._buffer += received
        part, _, self._buffer = self._buffer.partition(mark)
        return part

    def next(self) -> tuple[str, Any]:
        """The next event: its kind and its data. Of the lines those count that are an event's."""
        kind = ""
        while True:
            line = self._until(b"\n").strip()
            if line.startswith(b"event: "):
                kind = line[7:].decode()
            elif line.startswith(b"data: "):
                return kind, json.loads(line[6:])

    def happened(self, count: int) -> list[tuple[str, str, Any]]:
        """The next events but for the counts: kind, realm, job id."""
        found: list[tuple[str, str, Any]] = []
        while len(found) < count:
            kind, data = self.next()
            if kind != "counts":
                found.append((kind, data.get("realm"), data.get("job_id")))
        return found


@pytest.fixture
def listener(server: Server, realm_name: str) -> Iterator[Listener]:
    listening = Listener(server, f"/{realm_name}/events")
    yield listening
    listening.connection.close()


def test_listen_to_realm_tells_all_that_happens_to_a_job(server: Server, realm_name: str, listener: Listener) -> None:
    def post(path: str, body: Any) -> Any:
        return ask(server, "POST", f"/{realm_name}/{path}", body).ok()

    assert b"content-type: text/event-stream" in listener.head.lower()
    ask(server, "PUT", f"/{realm_name}/job/a", {"queue_id": 0, "max_attempts": 2}).ok()
    expected = ["added"]
    for path, body, *kinds in (
        ("release", {}, "leased", "released"),
        ("nack", {"error": "first"}, "leased", "nacked"),
        ("nack", {"error": "second"}, "leased", "dead"),
    ):
        (job,) = post("pull", {"worker": "w"})["jobs"]
        post(path, {"leases": [job["lease_id"]], **body})
        expected += kinds
    post("redrive", {})
    (job,) = post("pull", {})["jobs"]
    post("ack", {"leases": [job["lease_id"]]})
    ask(server, "PUT", f"/{realm_name}/job/b", {"queue_id": 0}).ok()
    ask(server, "DELETE", f"/{realm_name}/job/b").ok()
    told = listener.happened(len(expected) + 4)
    assert told == [
        *[(kind, realm_name, "a") for kind in [*expected, "leased", "acked"]],
        *[(kind, realm_name, "b") for kind in ("added", "removed")],
    ]


def test_listen_when_lease_runs_out_tells_it_without_anybody_asking(
    server: Server, realm_name: str, listener: Listener
) -> None:
    ask(server, "PUT", f"/{realm_name}/job/a", {"queue_id": 0}).ok()
    ask(server, "POST", f"/{realm_name}/pull", {"lease_time": 0.05}).ok()
    assert [kind for kind, *_ in listener.happened(3)] == ["added", "leased", "expired"]


def test_listen_counts_no_lease_that_ran_out(server: Server, realm_name: str, listener: Listener) -> None:
    for queue in (0, 1):
        ask(server, "PUT", f"/{realm_name}/job/a", {"queue_id": queue}).ok()
        ask(server, "POST", f"/{realm_name}/pull", {"lease_time": 600 if queue else 0.05}).ok()
    while listener.next()[0] != "expired":
        pass
    counts = {realm_name: {"jobs": 1, "tags": 0, "leased": 1}}
    while (told := listener.next())[0] != "counts":
        pass
    assert told == ("counts", counts)
    another = Listener(server, f"/{realm_name}/events")
    another.connection.close()
    assert another.counts == counts


def test_listen_to_realm_tells_nothing_of_others(server: Server, realm_name: str, listener: Listener) -> None:
    ask(server, "PUT", f"/{realm_name}-other/job/x", {"queue_id": 0}).ok()
    ask(server, "PUT", f"/{realm_name}/job/a", {"queue_id": 0}).ok()
    assert listener.happened(1) == [("added", realm_name, "a")]


def test_listen_to_all_realms_hears_every_shard(server: Server, realm_name: str) -> None:
    names = [next(names_on(shard, realm_name)) for shard in (0, 1)]
    listening = Listener(server, "/events")
    listening.next()  # the other shard's counts
    for name in names:
        ask(server, "PUT", f"/{name}/job/a", {"queue_id": 0}).ok()
    found: set[tuple[str, str, Any]] = set()
    while not {("added", name, "a") for name in names} <= found:
        found |= set(listening.happened(1))
    listening.connection.close()


def test_listen_to_realm_name_that_is_none_is_refused(server: Server) -> None:
    ask(server, "GET", "/-bad/events").refused(400, "ValueError", "realm_name_invalid")


def test_stop_of_server_ends_the_stream_in_order(start_server: StartServer) -> None:
    server = start_server()
    listening = Listener(server, "/r/events")
    assert server.stop() == 0
    rest = b""
    with listening.connection:
        while received := listening.connection.recv(65536):
            rest += received
    assert rest.endswith(b"0\r\n\r\n"), "the last chunk was sent"


def test_listener_that_leaves_is_forgotten(server: Server, realm_name: str) -> None:
    for _ in range(20):
        listening = Listener(server, f"/{realm_name}/events")
        listening.connection.shutdown(socket.SHUT_RDWR)
        listening.connection.close()
    ask(server, "PUT", f"/{realm_name}/job/a", {"queue_id": 0}).ok()
    assert ask(server, "GET", f"/{realm_name}/status").ok()["total_jobs"] == 1
