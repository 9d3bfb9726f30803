"""What both clients send again, and what they never do, against servers that cut connections and say 503."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import StartServer
from twins import KEEP_ALIVE, Answer, Broken, Loop, Script, Twin, answer, twins

from restq import errors
from restq.client import consuming, peer
from restq.client.call import Call, as_is
from restq.config import Config, load

KEY = re.compile(r"[0-9a-f]{32}")
EMPTY = {"jobs": []}
GONE = {"code": "shard_unavailable", "message": "gone"}
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"
HALF_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Le"
PROXY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


@pytest.fixture(**twins())
def twin(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Twin]:
    """Each of the two clients."""
    with contextlib.ExitStack() as stack:
        yield Twin(request.param, loop, stack)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two tries."""
    monkeypatch.setattr(peer.random, "uniform", lambda low, high: 0.0)


def limit(seconds: float) -> Config:
    return load({"client.timeout_seconds": seconds}, {"HOME": "/"}, [])


# Over real sockets.
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "cut", [b"", HALF, HALF_HEAD, b"nonsense\r\n\r\n", PROXY, answer(GONE, "503 Service Unavailable")]
)
def test_post_after_cut_connection_is_repeated_with_the_same_key(twin: Twin, cut: bytes) -> None:
    with Broken(cut, cut, answer(EMPTY)) as broken:
        realm = twin.realm("test", broken.uri)
        assert realm.pull() == {}
        assert len(broken.keys) == 3
        assert len(set(broken.keys)) == 1
        assert KEY.fullmatch(broken.keys[0] or "")
        assert len({request.partition(b"\r\n\r\n")[2] for request in broken.requests}) == 1
        realm.pull()
        assert broken.keys[3] not in broken.keys[:3]


def test_request_without_key_after_cut_connection_is_sent_once(twin: Twin) -> None:
    with Broken(b"", answer({})) as broken, pytest.raises(errors.ServerUnreachable, match="is not known"):
        twin.realm("test", broken.uri).add("a", 0)
    assert broken.keys == [None]


def test_request_without_key_on_a_used_connection_that_is_cut_is_sent_once(twin: Twin) -> None:
    """HTTP libraries like to send an idempotent request again on their own where an old connection was cut."""
    first = answer({}).replace(b"Connection: close", KEEP_ALIVE)
    for act in (lambda realm: realm.add("a", 0), lambda realm: realm.remove_job("a"), lambda realm: realm.status):
        with Broken(first, b"", answer({})) as broken:
            realm = twin.realm("test", broken.uri)
            assert realm.status == {}
            with pytest.raises(errors.ServerUnreachable):
                act(realm)
            assert (len(broken.requests), broken.connections) == (2, 1)


def test_post_without_answer_in_time_gives_up_after_the_limit(twin: Twin) -> None:
    with Broken(None) as broken:
        with pytest.raises(errors.ServerUnreachable, match=r"did not answer within 0\.2 s"):
            twin.realm("test", broken.uri, config=limit(0.2)).pull()
        assert len(broken.requests) == 1


def test_post_after_limit_raises_server_unreachable(twin: Twin) -> None:
    with Broken(b"") as broken:
        with pytest.raises(errors.ServerUnreachable, match="whether the request was done is not known"):
            twin.realm("test", broken.uri, config=limit(1)).pull()
        assert len(broken.keys) > 1
        assert len(set(broken.keys)) == 1


def test_post_while_server_restarts_waits_for_it(twin: Twin, start_server: StartServer) -> None:
    first = start_server()
    realm = twin.realm("test", first.uri)
    realm.add("a", 0)
    assert first.stop() == 0
    began = threading.Event()
    found: list[Any] = []

    def pull() -> None:
        began.set()
        found.append(realm.pull())

    thread = threading.Thread(target=pull)
    thread.start()
    assert began.wait(10)
    start_server(data_dir=first.data_dir, port=first.port)
    thread.join(30)
    assert found == [{"a": [0, None]}]


# By a script.
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("code", ["overloaded", "shard_starting", "shard_unavailable"])
def test_post_on_503_is_repeated_with_the_same_key(twin: Twin, code: str) -> None:
    script = Script(Answer({"code": code, "message": "later"}, 503), EMPTY)
    assert twin.realm("test", "http://x", script).pull() == {}
    assert len(script.keys) == 2
    assert len(set(script.keys)) == 1


@pytest.mark.usefixtures("at_once")
def test_post_on_503_of_a_proxy_is_repeated(twin: Twin) -> None:
    script = Script(Answer({"error": "no upstream"}, 503), EMPTY)
    assert twin.realm("test", "http://x", script).pull() == {}
    with pytest.raises(errors.ServerUnreachable, match="503"):
        twin.realm("test", "http://x", Script(Answer({"error": "no upstream"}, 503))).status  # noqa: B018


@pytest.mark.parametrize(
    ("status", "code"),
    [(409, "lease_stale"), (429, "queue_full"), (422, "idempotency_key_reused"), (507, "storage_full"), (500, "x")],
)
def test_post_that_is_refused_is_sent_once(twin: Twin, status: int, code: str) -> None:
    script = Script(Answer({"code": code, "message": "no"}, status), EMPTY)
    with pytest.raises(errors.RestqError, match="no"):
        twin.realm("test", "http://x", script).pull()
    assert len(script.calls) == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("code", ["overloaded", "shard_starting"])
def test_request_without_key_that_was_not_done_is_repeated_without_one(twin: Twin, code: str) -> None:
    script = Script(Answer({"code": code, "message": "later"}, 503), {})
    twin.realm("test", "http://x", script).add("a", 0)
    assert script.keys == [None, None]


@pytest.mark.parametrize("failure", [Answer(GONE, 503), ConnectionResetError("cut"), TimeoutError("late")])
def test_request_without_key_of_which_nothing_is_known_is_sent_once(twin: Twin, failure: Any) -> None:
    for act in (lambda realm: realm.add("a", 0), lambda realm: realm.remove_job("a"), lambda realm: realm.get_job("a")):
        script = Script(failure, {})
        with pytest.raises(ConnectionError):
            act(twin.realm("test", "http://x", script))
        assert script.keys == [None]


def test_request_that_the_requester_finds_wrong_raises_what_it_raised(twin: Twin) -> None:
    script = Script(ValueError("a slip in the requester"))
    with pytest.raises(ValueError, match=r"^a slip in the requester$"):
        twin.realm("test", "http://x", script).pull()
    assert len(script.calls) == 1


def test_post_to_nobody_fails_at_once_unless_the_server_was_there_before(twin: Twin, at_once: None) -> None:
    refused = ConnectionRefusedError(111, "Connection refused")
    script = Script(refused, EMPTY)
    realm = twin.realm("test", "http://x", script)
    with pytest.raises(errors.ServerUnreachable, match="no restq server answers at http://x/: Connection refused"):
        realm.pull()
    assert len(script.calls) == 1
    realm.pull()
    script.answers[:] = [refused, refused, EMPTY]
    assert realm.pull() == {}
    assert len(script.calls) == 5


def test_try_again_uses_what_is_left_of_the_time(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[tuple[float, float]] = []
    monkeypatch.setattr(peer.random, "uniform", lambda low, high: pauses.append((low, high)) or 0.01)
    script = Script(*[ConnectionResetError("cut")] * 7, EMPTY)
    assert twin.realm("test", "http://x", script, config=limit(5)).pull() == {}
    times = [options["timeout"] for options in script.options]
    assert times[0] == 5
    assert sorted(times, reverse=True) == times
    assert len(set(times)) == 8
    assert pauses == [(0, min(2.0, 0.1 * 2**n)) for n in range(7)]


def test_look_at_time_left_gives_all_of_it_and_then_what_is_left_and_a_little_in_any_case() -> None:
    call = Call("put", "r/job/a", as_is)
    attempts = peer.Attempts(peer.Peer("http://x", limit(5)), call, 10.0)
    assert [attempts.left(now) for now in (10.1, 13.0, 16.0)] == [5, 2, peer.LAST_TRY_SECONDS_MIN]


def test_pull_with_wait_has_time_beyond_it(twin: Twin) -> None:
    script = Script(EMPTY)
    realm = twin.realm("test", "http://x", script, config=limit(3))
    assert realm.pull_jobs(1, wait=20) == []
    assert list(realm.consume(wait=7, stop_when_empty=True)) == []
    script.answers = [{"tag": "t", "count": 0}]
    realm.get_tag("t", wait=50)
    assert [options["timeout"] for options in script.options] == [23, 10, 53]


@pytest.mark.usefixtures("at_once")
def test_wait_for_tag_goes_on_after_a_cut_connection(twin: Twin) -> None:
    script = Script(ConnectionResetError("cut"), Answer(GONE, 503), {"tag": "t", "count": 0})
    assert twin.realm("test", "http://x", script).wait_for_tag("t") is True
    assert [verb for verb, _, _ in script.calls] == ["GET"] * 3


def test_bulk_flush_that_is_repeated_adds_the_same_jobs(twin: Twin, at_once: None) -> None:
    script = Script(ConnectionResetError("cut"), {})
    realm = twin.realm("test", "http://x", script)
    realm.bulk_add([{"job_id": "a", "queue_id": 0}], buffer=True)
    realm.bulk_flush()
    assert (
        script.calls[0] == script.calls[1] == ("POST", "http://x/test/jobs", {"jobs": [{"job_id": "a", "queue_id": 0}]})
    )
    assert len(set(script.keys)) == 1


# A worker.
@pytest.mark.usefixtures("at_once")
def test_consume_while_server_is_away_raises_unless_it_keeps_going(twin: Twin) -> None:
    refused = ConnectionRefusedError(111, "Connection refused")
    with pytest.raises(errors.ServerUnreachable):
        list(twin.realm("test", "http://x", Script(refused)).consume())
    script = Script(refused, Answer(GONE, 503), refused, EMPTY)
    assert list(twin.realm("test", "http://x", script).consume(stop_when_empty=True, keep_going=True)) == []
    assert len(script.calls) == 4


def test_consume_that_finds_nothing_at_once_pauses(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers a long poll at once, or wait=0, makes no flood of requests."""
    assert consuming.idle_seconds(10.0, 10.25) == 0.75
    assert consuming.idle_seconds(10.0, 30.0) == 0
    pauses: list[float] = []
    script = Script(EMPTY)

    def paused(seconds: float) -> float:
        pauses.append(seconds)
        script.answers[:] = [Answer({"code": "storage_full", "message": "stop"}, 507)]
        return 0

    monkeypatch.setattr(f"restq.{twin.name}.realm.idle_seconds", lambda asked_at, now: paused(now - asked_at))
    with pytest.raises(errors.StorageFull):
        list(twin.realm("test", "http://x", script).consume(wait=0))
    assert len(pauses) == 1
