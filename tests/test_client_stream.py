"""The clients over streams: who shares one, what is sent again, what goes over HTTP all the same."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Server
from frontend_rig import Frontend, frontend, until
from twins import Broken, answer
from websockets.sync.server import ServerConnection, serve

from restq import Realm, Realms, aio, client
from restq.aio import stream as aio_stream
from restq.client import pipeline, stream, streaming
from restq.client.peer import Attempts
from restq.client.streaming import Operation
from restq.config import ConfigError, load
from restq.errors import (
    JobNotFound,
    Overloaded,
    RealmNameInvalid,
    RestqError,
    RouteNotFound,
    ServerUnreachable,
    StreamUnopened,
    TagNotFound,
)
from restq.web import frames

LEASED = {"jobs": [{"job_id": "j", "queue_id": 0, "lease_id": "L"}]}
DONE: tuple[int, Any, int] = (200, {}, 0)

Test = Callable[[Frontend, str], Coroutine[Any, Any, None]]


def no_pause(attempts: Attempts, error: RestqError, now: float) -> None:
    """There is one try."""


def run(folder: Path, test: Test) -> None:
    """Run a test over a front end of its own; it gets its address as well."""

    async def within() -> None:
        async with frontend(folder) as front:
            await test(front, f"http://127.0.0.1:{front.port}/")

    asyncio.run(within())


# -- a stream a thread, or one for all tasks -------------------------------------------------------------------------


def test_wait_in_one_thread_holds_up_no_other(server: Server, realm_name: str) -> None:
    with Realm(realm_name, server.uri, stream=True) as realm:
        found: list[Any] = []
        waiting = threading.Thread(target=lambda: found.append(realm.pull_jobs(wait=60)))
        waiting.start()
        assert realm.status["total_jobs"] == 0
        realm.add("a", 0)
        waiting.join(30)
        assert [job.job_id for job in found[0]] == ["a"]


def test_use_after_fork_takes_a_stream_of_its_own(server: Server, realm_name: str) -> None:
    with Realm(realm_name, server.uri, stream=True) as realm:
        realm.add("a", 0)
        child = os.fork()
        if not child:
            code = 1
            try:
                realm.add("b", 0)
                code = 0 if realm.status["total_jobs"] == 2 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert realm.status["total_jobs"] == 2


def test_ask_by_many_tasks_in_one_turn_leaves_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    whole = frames.Message

    class Counted(whole):
        def __init__(self, content: bytes) -> None:
            super().__init__(content)
            sizes.append(len(list(whole(content))))

    monkeypatch.setattr(frames, "Message", Counted)

    async def test(front: Frontend, uri: str) -> None:
        front.shards[0].answers |= {"add_job": DONE, "get_status": DONE}
        async with aio.Realm("r", uri, stream=True) as realm:
            await realm.status
            await asyncio.gather(*(realm.add(f"j{number}", 0) for number in range(50)))
        assert sizes == [1, 50]
        assert [request.params for request in front.shards[0].asked[1:]] == [[f"j{number}"] for number in range(50)]

    run(tmp_path, test)


def test_cancel_pull_gives_back_what_was_leased_for_it(tmp_path: Path) -> None:
    async def test(front: Frontend, uri: str) -> None:
        [shard] = front.shards
        async with aio.Realm("r", uri, stream=True) as realm:
            pulling = asyncio.create_task(realm.pull_jobs(wait=60))
            pull = await shard.call("pull")
            pulling.cancel()
            await asyncio.wait([pulling])
            assert pulling.cancelled()
            shard.reply(pull, LEASED, extra=5)
            release = await shard.call("release")
            assert (release.realm, release.body) == ("r", b'{"leases": ["L"]}')
            shard.reply(release, {})

    run(tmp_path, test)


def test_pull_that_is_answered_too_late_gives_back_what_was_leased_for_it(tmp_path: Path) -> None:
    async def test(front: Frontend, uri: str) -> None:
        [shard] = front.shards
        async with aio.Realm("r", uri, stream=True) as realm:
            assert isinstance(realm._connection, aio_stream.StreamConnection)
            opened = await realm._connection._stream("r", 60)
            with pytest.raises(TimeoutError):
                await opened.ask(Operation("r", "pull", []), b"{}", None, 0)
            shard.reply(await shard.call("pull"), LEASED, extra=5)
            assert (await shard.call("release")).body == b'{"leases": ["L"]}'

    run(tmp_path, test)


# -- what is sent again ----------------------------------------------------------------------------------------------


def test_ask_while_the_front_end_ends_is_sent_again_without_a_key(tmp_path: Path) -> None:
    async def test(front: Frontend, uri: str) -> None:
        [shard] = front.shards
        async with aio.Realm("r", uri, stream=True) as realm:
            first = asyncio.create_task(realm.remove_job("a"))
            removing = await shard.call("remove_job")
            [opened] = front.app.streams
            opened.drain()
            second = asyncio.create_task(realm.remove_job("b"))
            await asyncio.sleep(0.05)  # for it to come, and not to be begun
            assert len(shard.asked) == 1
            shard.reply(removing, {})
            await first
            shard.reply(await shard.call("remove_job", 2), {})
            await second
            assert [request.params for request in shard.asked] == [["a"], ["b"]]

    run(tmp_path, test)


class Either:
    """A realm of either client over a stream, used by coroutines."""

    def __init__(self, kind: Any, *given: Any, **options: Any) -> None:
        self._realm = kind.Realm("r", *given, **{"stream": True, **options})
        self._is_aio = kind is aio
        self.connection = self._realm._connection

    async def do(self, method: str, *given: Any) -> Any:
        """Call a method of it."""
        call = getattr(self._realm, method)
        return await (call(*given) if self._is_aio else asyncio.to_thread(call, *given))


@pytest.mark.parametrize("kind", [client, aio], ids=["client", "aio"])
def test_ask_over_stream_that_was_closed_while_idle_opens_another(tmp_path: Path, kind: Any) -> None:
    async def test(front: Frontend, uri: str) -> None:
        front.shards[0].answers["add_job"] = DONE
        realm = Either(kind, uri)
        for job_id in ("a", "b", "c"):
            await realm.do("add", job_id, 0)
            assert front.app.crowd.drop_idle(1e12)
            await asyncio.sleep(0.05)  # until the client could know
        assert [request.params for request in front.shards[0].asked] == [["a"], ["b"], ["c"]]
        await realm.do("close")

    run(tmp_path, test)


@pytest.mark.parametrize("kind", [client, aio], ids=["client", "aio"])
def test_ask_without_an_answer_ends_at_the_time_limit(tmp_path: Path, kind: Any) -> None:
    async def test(front: Frontend, uri: str) -> None:
        realm = Either(kind, uri, config=load({"client.timeout_seconds": 1}, {"HOME": "/"}, []))
        with pytest.raises(ServerUnreachable, match=r"did not answer within 1 s"):
            await realm.do("add", "a", 0)
        await realm.do("close")
        await until(lambda: not front.app.streams)

    run(tmp_path, test)


@pytest.mark.parametrize("kind", [client, aio], ids=["client", "aio"])
@pytest.mark.parametrize("stream", [False, True], ids=["http", "stream"])
@pytest.mark.parametrize(
    "uri", ["nonsense", "localhost:8586", "ftp://h/", "http://[::1", "http://h:99999/", "http://a..b/"]
)
def test_ask_what_is_no_address_says_that_nothing_was_sent(kind: Any, stream: bool, uri: str) -> None:
    async def ask() -> None:
        realm = Either(kind, uri, stream=stream)
        with pytest.raises(ConfigError, match="is no address such as http://localhost:8586/: nothing was sent"):
            await realm.do("add", "a", 0)
        await realm.do("close")

    asyncio.run(ask())


ENDS = {
    "a word to nobody": (frames.refusal(None, Overloaded("so it ends")), r"1007 \(in vain\)"),
    "no reply": (b"\x01", "what came over the stream is no reply"),
}


@pytest.mark.parametrize("kind", [client, aio], ids=["client", "aio"])
@pytest.mark.parametrize("said", ENDS)
def test_ask_over_stream_that_ends_without_a_reply_raises_at_once(kind: Any, said: str) -> None:
    def end(websocket: ServerConnection) -> None:
        websocket.send(frames.reply(None, 200, b'{"body_bytes": 1000}'))
        websocket.recv()
        websocket.send(ENDS[said][0])
        websocket.close(1007, "in vain")

    with serve(end, "127.0.0.1", 0, compression=None) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        realm = Either(kind, f"http://127.0.0.1:{server.socket.getsockname()[1]}/")

        async def ask() -> None:
            with pytest.raises(
                ServerUnreachable, match=f"{ENDS[said][1]}.*: whether the request was done is not known"
            ):
                await realm.do("add", "a", 0)
            await realm.do("close")

        asyncio.run(ask())
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("kind", [client, aio], ids=["client", "aio"])
@pytest.mark.parametrize("is_first", [True, False])
def test_ask_over_stream_that_says_what_is_no_reply_closes_it(
    kind: Any, is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Attempts, "pause", no_pause)
    closed = threading.Event()

    def babble(websocket: ServerConnection) -> None:
        if not is_first:
            websocket.send(frames.reply(None, 200, b'{"body_bytes": 1000}'))
            websocket.recv()
        websocket.send(b"\x01")
        for _ in websocket:
            continue
        closed.set()

    with serve(babble, "127.0.0.1", 0, compression=None) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        realm = Either(kind, f"http://127.0.0.1:{server.socket.getsockname()[1]}/")

        async def ask() -> None:
            with pytest.raises(ServerUnreachable, match="no reply"):
                await realm.do("add", "a", 0)
            assert await asyncio.to_thread(closed.wait, 30)
            await realm.do("close")

        asyncio.run(ask())
        server.shutdown()
        serving.join()


class Slow:
    """Both modules of a client, with a clock of our own, and a stream that takes 3 seconds to open."""

    body_bytes_max = 1000

    def __init__(self, kind: Any, realm: Either, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked_seconds: list[float] = []
        self._now = 100.0
        self._is_aio = kind is aio
        for module in ("connection", "stream"):
            monkeypatch.setattr(f"{kind.__name__}.{module}.time", SimpleNamespace(monotonic=lambda: self._now))
        monkeypatch.setattr(realm.connection, "_stream", self._open)

    def _open(self, realm: str, seconds: float) -> Any:
        assert seconds == 5
        self._now += 3
        return self._given(self)

    def ask(self, operation: Operation, content: bytes | None, key: str | None, seconds: float) -> Any:
        self.asked_seconds.append(seconds)
        return self._given((200, b"{}"))

    def _given(self, value: Any) -> Any:
        if not self._is_aio:
            return value

        async def give() -> Any:
            return value

        return give()


@pytest.mark.parametrize("kind", [client, aio], ids=["client", "aio"])
def test_ask_after_opening_has_what_is_left_of_the_time(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        realm = Either(kind, "http://h/", config=load({"client.timeout_seconds": 5}, {"HOME": "/"}, []))
        slow = Slow(kind, realm, monkeypatch)
        await realm.do("add", "a", 0)
        assert slow.asked_seconds == [2]
        await realm.do("close")

    asyncio.run(ask())


@pytest.mark.parametrize("kind", [client, aio], ids=["client", "aio"])
def test_ask_without_a_key_goes_on_after_a_stream_that_failed_to_open(kind: Any) -> None:
    with Broken(b"", b"nonsense\r\n\r\n", answer({}, "404 Not Found"), answer({})) as broken:

        async def add() -> None:
            realm = Either(kind, broken.uri)
            await realm.do("add", "a", 0)
            await realm.do("close")

        asyncio.run(add())
    assert [request.split()[0] for request in broken.requests] == [b"GET", b"GET", b"GET", b"PUT"]


@pytest.mark.parametrize("kind", [client, aio], ids=["client", "aio"])
@pytest.mark.parametrize(("said", "why"), [(b"", "the connection to .* failed"), (None, "did not answer within 1 s")])
def test_ask_where_no_stream_opens_says_that_nothing_was_done(
    kind: Any, said: bytes | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Attempts, "pause", no_pause)
    with Broken(said) as broken:

        async def add() -> None:
            realm = Either(kind, broken.uri, config=load({"client.timeout_seconds": 1}, {"HOME": "/"}, []))
            with pytest.raises(StreamUnopened, match=f"{why}.*: nothing was done"):
                await realm.do("add", "a", 0)
            await realm.do("close")

        asyncio.run(add())
    assert {request.split()[0] for request in broken.requests} == {b"GET"}


def test_pipeline_that_does_not_open_says_that_nothing_was_done() -> None:
    with Broken(b"") as broken, pytest.raises(StreamUnopened, match="nothing was done"):
        Realm("r", broken.uri).pipeline()


# -- what goes over HTTP ---------------------------------------------------------------------------------------------


class Counting:
    """A requester that counts what goes over HTTP."""

    def __init__(self) -> None:
        self.session = stream.Connection("http://127.0.0.1:1/", None, None).requester
        self.count = 0

    def __getattr__(self, verb: str) -> Any:
        self.count += 1
        return getattr(self.session, verb)


def test_ask_over_realms_goes_over_http_and_in_one_over_the_stream(server: Server, realm_name: str) -> None:
    requester = Counting()
    with Realms(server.uri, requester, stream=True) as realms:
        realms[realm_name].add("a", 0)
        assert realms[realm_name].status["total_jobs"] == 1
        assert requester.count == 0
        assert [job.job_id for job in realms.pull_jobs(realms=[realm_name])] == ["a"]
        assert requester.count == 1


def test_ask_with_a_body_too_large_for_the_stream_goes_over_http(
    server: Server, realm_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requester = Counting()
    with Realm(realm_name, server.uri, requester, stream=True) as realm:
        realm.add("a", 0)
        assert isinstance(realm._connection, stream.StreamConnection)
        [opened] = realm._connection._streams
        opened.body_bytes_max = 100
        realm.add("b", 0, "x" * 100)
        assert (requester.count, realm.status["total_jobs"]) == (1, 2)


@pytest.mark.parametrize("kind", [client, aio], ids=["client", "aio"])
def test_ask_where_no_stream_can_be_opened_goes_over_http_and_tries_none_for_a_while(kind: Any) -> None:
    refusal = answer({}, "404 Not Found")
    with Broken(refusal, answer({}), answer({}), refusal, answer({})) as broken:

        async def add() -> None:
            realm = Either(kind, broken.uri)
            for job_id in "abc":
                if job_id == "c":  # when that was long ago
                    realm.connection._refusals._ends_at["r"] = 0.0
                await realm.do("add", job_id, 0)
            await realm.do("close")

        asyncio.run(add())
    assert [b" ".join(request.split()[:2]) for request in broken.requests] == [
        b"GET /r/stream",
        b"PUT /r/job/a",
        b"PUT /r/job/b",
        b"GET /r/stream",
        b"PUT /r/job/c",
    ]


def test_hold_refusal_lasts_for_its_time_and_its_realm() -> None:
    refusals = streaming.Refusals()
    refusals.add("r", 5.0)
    last_at = 5.0 + streaming.REFUSED_SECONDS
    assert [refusals.hold("r", now) for now in (5.0, last_at - 0.1, last_at, 5.0)] == [True, True, False, False]
    refusals.add("r", 5.0)
    assert not refusals.hold("s", 5.0)


def test_add_refusals_of_many_realms_keeps_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "REFUSALS_MAX", 2)
    refusals = streaming.Refusals()
    for realm in "abc":
        refusals.add(realm, 5.0)
    assert [refusals.hold(realm, 5.0) for realm in "abc"] == [False, True, True]


def test_ask_what_is_refused_raises_what_http_raises(server: Server, realm_name: str) -> None:
    with Realm(realm_name, server.uri, stream=True) as realm:
        with pytest.raises(RouteNotFound):
            realm.request("get", "nothing", "here")
        realm._calls._name = ".hidden"
        with pytest.raises(RealmNameInvalid):
            realm.status  # noqa: B018
    with pytest.raises(ServerUnreachable, match="no restq server answers"), Realm("r", "http://127.0.0.1:1/") as away:
        away.add("a", 0)


def test_open_stream_of_aio_reads_what_the_server_said_first(server: Server, realm_name: str) -> None:
    async def look() -> int:
        async with aio.Realm(realm_name, server.uri, stream=True) as realm:
            await realm.status
            assert isinstance(realm._connection, aio_stream.StreamConnection)
            [opened] = realm._connection._streams.values()
            return opened.result().body_bytes_max

    assert asyncio.run(look()) > 1 << 20


# -- many from one thread --------------------------------------------------------------------------------------------


def test_pipeline_does_all_in_order_and_gives_each_its_result(server: Server, realm_name: str) -> None:
    with Realm(realm_name, server.uri) as realm:
        with realm.pipeline() as pipeline:
            added = [pipeline.add(f"j{number}", 0, {"n": number}) for number in range(3_000)]
            pulled = [pipeline.pull_jobs(1) for _ in range(3_000)]
            jobs = [job for found in pulled for job in found.result()]
            assert [job.data["n"] for job in jobs] == list(range(3_000))
            acked = [pipeline.ack(job) for job in jobs]
        assert {found.result() for found in added} == {None}
        assert [found.result()["acked"] for found in acked] == [[job.lease_id] for job in jobs]
        assert realm.status["total_jobs"] == 0


def test_pipeline_with_large_replies_and_requests_never_stands_still(server: Server, realm_name: str) -> None:
    data = "x" * 50_000
    with Realm(realm_name, server.uri) as realm:
        realm.add("big", 0, data)
        with realm.pipeline() as pipeline:
            got = [pipeline.get_job("big") for _ in range(500)]
            pipeline.add("huge", 0, data * 20)
            got += [pipeline.get_job("big") for _ in range(100)]
        assert all(found.result()["data"] == data for found in got)
        assert realm.get_job("huge")["data"] == data * 20


def test_pipeline_with_a_failure_does_the_rest_and_raises_the_first_at_its_end(server: Server, realm_name: str) -> None:
    with Realm(realm_name, server.uri) as realm:
        pipeline = realm.pipeline()
        missing, added = pipeline.get_job("nobody"), pipeline.add("a", 0)
        other = pipeline.get_tag_status("none")
        assert added.result() is None
        with pytest.raises(JobNotFound, match="nobody"), pipeline:
            pass
        with pytest.raises(JobNotFound):
            missing.result()
        with pytest.raises(TagNotFound):
            other.result()
        assert realm.status["total_jobs"] == 1


class Silent:
    """A stream that answers everything with {} at once, and notes how long one would wait for that."""

    def __init__(self, address: str, seconds: float) -> None:
        self.pid = os.getpid()
        self.waits: list[float] = []
        self._sent: list[Any] = []

    def send(self, message: bytes, seconds: float) -> None:
        self._sent += [(frame[0], 200, b'{"jobs": []}') for frame in frames.Message(message)]

    def receive(self, seconds: float) -> list[Any]:
        self.waits.append(seconds)
        sent, self._sent = self._sent, []
        return sent

    def close(self) -> None:
        pass


def test_pipeline_waits_for_as_long_as_the_longest_pull_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(pipeline, "Stream", Silent)
    with Realm("r", "http://h/", config=load({"client.timeout_seconds": 5}, {"HOME": "/"}, [])).pipeline() as calls:
        stream: Any = calls._stream
        calls.pull_jobs(1, wait=20)
        clock.now += 60  # before it is sent
        calls.pull_jobs(1, wait=7).result()
        clock.now += 15
        calls.add("a", 0).result()
        clock.now += 6
        calls.add("b", 0).result()
    assert stream.waits == [25, 10, 5]


def test_pipeline_left_by_an_exception_raises_that_and_does_what_was_called(server: Server, realm_name: str) -> None:
    with Realm(realm_name, server.uri) as realm:
        pipeline = realm.pipeline()
        pipeline.get_job("nobody")
        added = pipeline.add("a", 0)
        with pytest.raises(ZeroDivisionError), pipeline:
            raise ZeroDivisionError
        assert added.result() is None
        assert realm.status["total_jobs"] == 1
        with pytest.raises(ValueError, match="has ended"):
            pipeline.add("b", 0)


def test_pipeline_in_a_forked_process_is_refused_there_and_goes_on_here(server: Server, realm_name: str) -> None:
    with Realm(realm_name, server.uri) as realm, realm.pipeline() as pipeline:
        added = pipeline.add("a", 0)
        child = os.fork()
        if not child:
            refused = 0
            for use in (added.result, pipeline.wait, lambda: pipeline.add("b", 0)):
                try:
                    use()
                except ValueError:
                    refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert added.result() is None


def test_pipeline_whose_server_ends_says_of_each_whether_it_was_done(tmp_path: Path) -> None:
    async def test(front: Frontend, uri: str) -> None:
        [shard] = front.shards
        pipeline = await asyncio.to_thread(Realm("r", uri).pipeline)
        first = pipeline.add("a", 0)
        waiting = asyncio.ensure_future(asyncio.to_thread(first.result))
        adding = await shard.call("add_job")
        [opened] = front.app.streams
        opened.drain()
        second = pipeline.add("b", 0)
        shard.reply(adding, {})
        assert await waiting is None
        with pytest.raises(Overloaded, match="nothing was done"):
            await asyncio.to_thread(second.result)
        third = pipeline.add("c", 0)
        with pytest.raises((ServerUnreachable, Overloaded)):
            await asyncio.to_thread(third.result)
        assert [request.params for request in shard.asked] == [["a"]]

    run(tmp_path, test)


def test_pipeline_whose_connection_breaks_says_that_it_is_not_known(tmp_path: Path) -> None:
    async def test(front: Frontend, uri: str) -> None:
        pipeline = await asyncio.to_thread(Realm("r", uri).pipeline)
        found = [pipeline.add("a", 0), pipeline.add("b", 0)]
        waiting = asyncio.ensure_future(asyncio.to_thread(found[1].result))
        await front.shards[0].call("add_job", 2)
        [opened] = front.app.streams
        opened.close()
        with pytest.raises(ServerUnreachable, match="is not known"):
            await waiting
        lengths = []
        for _ in range(3):
            with pytest.raises(ServerUnreachable, match="is not known") as failed:
                found[0].result()
            lengths.append(len(failed.traceback))
        assert len(set(lengths)) == 1  # what many calls raise does not grow with each

    run(tmp_path, test)


def test_pipeline_where_nobody_listens_or_no_stream_is_raises_so() -> None:
    with pytest.raises(ServerUnreachable, match="no restq server answers"):
        Realm("r", "http://127.0.0.1:1/").pipeline()
    with Broken(answer({}, "404 Not Found")) as broken, pytest.raises(RestqError, match="opens no stream"):
        Realm("r", broken.uri).pipeline()
