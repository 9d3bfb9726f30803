"""The stream between its client and the shards: what is asked, in which order, what holds it up, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import time
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgpack
import pytest
from frontend_rig import Frontend, frontend, until
from stream_rig import StreamClient, frame
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from restq import placement, routes
from restq.errors import UNANSWERED_IS_UNDONE, BodyMalformed
from restq.protocol import MOVED
from restq.shards import shard
from restq.web import frames, stream
from restq.web.crowd import IDLE_SECONDS
from restq.web.stream import Stream
from restq.web.unpacking import UNCOUNTED_BYTES_MAX

Test = Callable[[Frontend, StreamClient], Coroutine[Any, Any, None]]

LEASED = {"jobs": [{"job_id": "j", "queue_id": 0, "lease_id": "L"}]}
DONE: tuple[int, Any, int] = (200, {}, 0)


def run(folder: Path, test: Test, shard_count: int = 1, realm: str = "r") -> None:
    """Run a test over a stream to a front end of its own, which is to hold nothing in the end."""

    async def within() -> None:
        async with frontend(folder, shard_count) as front:
            async with StreamClient(front.port, realm) as client:
                await test(front, client)
            await until(lambda: not front.app.streams and not front.app._open_count)
            assert (front.app.held_bytes, front.app.waiting, front.app.crowd.reply_bytes) == (0, set(), 0)

    asyncio.run(within())


def only(front: Frontend) -> Stream:
    [found] = front.app.streams
    assert isinstance(found, Stream)
    return found


# -- what is asked -------------------------------------------------------------------------------------------------

PATHS = {
    route.operation: (method, path)
    for path, methods in routes.ROUTES.items()
    for method, route in methods.items()
    if route.operation in routes.REALM_OPERATIONS
}


@pytest.mark.parametrize("operation", routes.REALM_OPERATIONS)
def test_ask_operation_reaches_its_realm_as_over_http(tmp_path: Path, operation: str) -> None:
    method, path = PATHS[operation]
    ids = [f"ä/{number}" for number in range(path.count("*") - 1)]
    fields = [f"1{number}" for number in range(len(routes.REALM_OPERATIONS[operation].route.query))]
    target = path.replace("*", "r", 1)
    for value in ids:
        target = target.replace("*", quote(value, safe=""), 1)
    query = "&".join(
        f"{name}={value}" for name, value in zip(routes.REALM_OPERATIONS[operation].route.query, fields, strict=True)
    )

    async def test(front: Frontend, client: StreamClient) -> None:
        [shard], http = front.shards, await front.connect()
        for name in (operation, "place_realm"):
            shard.answers[name] = (200, {"said": 5}, 0)
        answer = await http.ask(method, f"{target}?{query}" if query else target, {"a": 1}, key="k")
        assert await client.ask(7, operation, [*ids, *fields], {"a": 1}, "k") == (answer.status, answer.json)
        first, second = shard.asked
        assert second._replace(request_id=0, waited=0) == first._replace(request_id=0, waited=0)
        assert bool(second.once) == (method == "POST")

    run(tmp_path, test)


def test_ask_every_operation_of_one_realm_has_a_name() -> None:
    assert set(PATHS) == set(routes.REALM_OPERATIONS)
    assert {"add_job", "pull", "ack", "pin_realm", "get_tag", "clear_queue_2013"} <= set(PATHS)
    assert not {"bulk_add", "pull_everywhere", "get_events", "open_stream"} & set(PATHS)


def test_look_at_every_operation_of_one_realm_finds_what_the_shard_knows_it_as() -> None:
    found = {(route.at_shard or route).operation for route, _, _ in routes.REALM_OPERATIONS.values()}
    assert found <= shard._OPERATIONS
    assert "place_realm" in found - set(routes.REALM_OPERATIONS)


def test_ask_many_in_one_message_keeps_their_order_and_answers_in_one(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        await client.send(*(frame(number, "add_job", [f"j{number}"], {"queue_id": 0}) for number in range(100)))
        await shard.call("add_job", 100)
        assert [request.params for request in shard.asked] == [[f"j{number}"] for number in range(100)]
        shard.reply_all(reversed(shard.asked), {})
        assert await client.message() == [[number, 200, b"{}"] for number in reversed(range(100))]

    run(tmp_path, test)


def test_ask_without_its_last_fields_is_as_if_they_were_not_given(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        shard.answers |= {"list_jobs": DONE, "get_queue": DONE}
        assert (await client.ask(1, "list_jobs", ["ready", None, "t"]))[0] == 200
        assert (await client.ask(2, "get_queue", [5]))[0] == 200
        assert [request.params for request in shard.asked] == [["ready", None, "t", None, None, None, None], ["5"]]

    run(tmp_path, test)


def test_ask_long_poll_holds_up_nobody_and_is_left_with_its_client(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        shard.answers["get_status"] = DONE
        await client.send(frame(1, "pull", [], {"wait": 300}), frame(2, "get_tag", ["t", 300]))
        waiting = [await shard.call("pull"), await shard.call("get_tag")]
        assert await client.ask(3, "get_status") == (200, {})
        client.abort()
        await shard.call("leave", 2)
        assert {request.params[0] for request in shard.calls("leave")} == {one.request_id for one in waiting}
        for request in waiting:
            shard.reply(request, {"jobs": []})

    run(tmp_path, test)


def test_ask_more_long_polls_than_one_stream_may_have_answers_the_rest_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WAITS_MAX", 1)

    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        await client.send(frame(1, "pull", [], {"wait": 300}), frame(2, "pull", [], {"wait": 300}))
        second = await shard.call("pull", 2)
        assert (await shard.call("leave")).params == [second.request_id]
        shard.reply_all(shard.calls("pull"), {"jobs": []})
        assert await client.answer(1) == await client.answer(2) == (200, {"jobs": []})
        assert len(shard.calls("leave")) == 1

    run(tmp_path, test)


def test_ask_realm_that_moved_follows_it(tmp_path: Path) -> None:
    realm = next(name for name in "abcdefgh" if placement.home(name, 2) == 0)

    async def test(front: Frontend, client: StreamClient) -> None:
        await client.send(frame(1, "pull", [], {"wait": 9}), frame(2, "add_job", ["j"], {}))
        front.shards[0].reply(await front.shards[0].call("pull"), b"", MOVED, extra=1)
        front.shards[0].reply(await front.shards[0].call("add_job"), b"", MOVED, extra=1)
        front.shards[1].reply(await front.shards[1].call("add_job"), {})
        assert await client.answer(2) == (200, {})
        front.shards[1].reply(await front.shards[1].call("pull"), {"jobs": []})
        assert await client.answer(1) == (200, {"jobs": []})

    run(tmp_path, test, shard_count=2, realm=realm)


def test_lose_shard_answers_503_and_the_stream_goes_on(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        await client.send(frame(1, "get_status"), frame(2, "pull", [], {"wait": 300}))
        await shard.call("pull")
        await shard.stop()
        for number in (1, 2):
            status, body = await client.answer(number)
            assert (status, body["code"]) == (503, "shard_unavailable")
        assert (await client.ask(3, "get_status"))[1]["code"] == "shard_starting"
        await shard.start()
        await front.app.shards.pipes[0].connected()
        shard.answers["get_status"] = DONE
        assert await client.ask(4, "get_status") == (200, {})

    run(tmp_path, test)


# -- what is refused -----------------------------------------------------------------------------------------------

REFUSED = [
    ([5], 400, "field_invalid", None),
    ([5, "get_status", [], None, "k", 1], 400, "field_invalid", None),
    ([5, 7, [], None], 400, "field_type_wrong", "operation"),
    ([5, [], [], None], 400, "field_type_wrong", "operation"),
    ([5, "get_nothing", [], None], 404, "route_not_found", None),
    ([5, "bulk_add", [], b"{}"], 404, "route_not_found", None),
    ([5, "get_events", [], None], 404, "route_not_found", None),
    ([5, "get_status", None, None], 400, "field_type_wrong", "params"),
    ([5, "get_status", ["a"], None], 400, "field_invalid", "params"),
    ([5, "get_job", [], None], 400, "field_invalid", "params"),
    ([5, "get_job", [None], None], 400, "field_type_wrong", "params[0]"),
    ([5, "get_job", [True], None], 400, "field_type_wrong", "params[0]"),
    ([5, "get_tag", ["t", ["9"]], None], 400, "field_type_wrong", "params[1]"),
    ([5, "pull", [], {"count": 1}], 400, "field_type_wrong", "body"),
    ([5, "pull", [], b"x" * ((1 << 20) + 1)], 413, "body_too_large", None),
    ([5, "pull", [], b"{}", 9], 400, "field_type_wrong", "key"),
    ([5, "pull", [], b"{}", ""], 400, "field_invalid", "Idempotency-Key"),
]


@pytest.mark.parametrize(("said", "status", "code", "field"), REFUSED)
def test_ask_wrongly_is_refused_as_over_http_and_nothing_else_is(
    tmp_path: Path, said: Any, status: int, code: str, field: str | None
) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        shard.answers["get_status"] = DONE
        await client.send(frame(4, "get_status"), msgpack.packb(said), frame(6, "get_status"))
        answered, body = await client.answer(5)
        assert (answered, body["error"], body["code"], body.get("field")) == (status, status, code, field)
        assert await client.answer(4) == await client.answer(6) == (200, {})

    run(tmp_path, test)


BROKEN = [
    (b"\xc1", 1007, "body_malformed"),
    (msgpack.packb([1, "get_status", [], None])[:-1], 1007, "body_malformed"),
    (msgpack.packb({"id": 1}), 1007, "body_malformed"),
    (msgpack.packb(["1", "get_status", [], None]), 1007, "body_malformed"),
    (msgpack.packb([True, "get_status", [], None]), 1007, "body_malformed"),
    (msgpack.packb(None), 1007, "body_malformed"),
    (msgpack.packb([]), 1007, "body_malformed"),
    (b"\x94\x01\xa1\xff\x90\xc0", 1007, "body_malformed"),
    ("[1]", 1003, "body_malformed"),
]


@pytest.mark.parametrize(("said", "code", "error"), BROKEN)
def test_say_what_is_no_request_is_told_and_closes_once_the_rest_is_answered(
    tmp_path: Path, said: Any, code: int, error: str
) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        await client.send(frame(1, "get_status"))
        await shard.call("get_status")
        await client.websocket.send(said)
        await client.send(frame(2, "get_status"))
        status, body = await client.answer(None)
        assert (status, body["code"]) == (400, error)
        assert len(shard.asked) == 1
        shard.reply(shard.asked[0], {})
        closed, reason = await client.closed()
        assert closed == code
        assert reason
        assert await client.answer(1) == (200, {})
        assert len(shard.asked) == 1

    run(tmp_path, test)


def test_send_message_that_is_too_large_closes(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        assert client.limits["message_bytes"] > client.limits["body_bytes"] == 1 << 20
        await client.websocket.send(bytes(client.limits["message_bytes"] + 1))
        assert (await client.closed())[0] == 1009

    run(tmp_path, test)


@pytest.mark.parametrize("value", [[[[]] * 999] * 999, [[]] * 1001, {number: [] for number in range(1001)}])
def test_read_value_that_would_take_many_times_its_size_stops_early(value: Any) -> None:
    content = msgpack.packb(value)
    with pytest.raises(BodyMalformed, match=r"more than 1,000 arrays, maps|exceeds max_(array|map)_len"):
        list(frames.Message(content))


def test_read_large_message_of_many_frames_gives_them_all() -> None:
    content = frame(1, "add_job", ["j"]) * 10_000
    assert len(content) > UNCOUNTED_BYTES_MAX
    assert list(frames.Message(content)) == [[1, "add_job", ["j"], None]] * 10_000


def test_send_message_in_fragments_is_one_message(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        shard.answers["add_job"] = DONE
        whole = frame(1, "add_job", ["j"], b"x" * 1000) + frame(2, "add_job", ["k"], b"")
        await client.websocket.send([whole[:5], whole[5:6], whole[6:900], whole[900:]])
        assert await client.answer(1) == await client.answer(2) == (200, {})
        assert [len(request.body) for request in shard.asked] == [1000, 0]

    run(tmp_path, test)


HANDSHAKE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
KEY = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
UPGRADES = [
    ("/r/stream", {}, 426, "upgrade_required"),
    ("/r/stream", {"Upgrade": "h2c", "Connection": "Upgrade"}, 426, "upgrade_required"),
    ("/r/stream", {**HANDSHAKE}, 400, "field_invalid"),
    ("/r/stream", {**HANDSHAKE, **KEY, "Sec-WebSocket-Version": "8"}, 400, "field_invalid"),
    ("/r/stream", {**HANDSHAKE, **KEY, "Origin": "http://elsewhere.example"}, 403, "origin_forbidden"),
    ("/r/stream", {**HANDSHAKE, **KEY, "Origin": "null"}, 403, "origin_forbidden"),
    ("/.r/stream", {**HANDSHAKE, **KEY}, 400, "realm_name_invalid"),
    ("/r/stream?a=1", {**HANDSHAKE, **KEY}, 400, "field_invalid"),
]


@pytest.mark.parametrize(("target", "headers", "status", "code"), UPGRADES)
def test_open_wrongly_is_refused_over_http(
    tmp_path: Path, target: str, headers: dict[str, str], status: int, code: str
) -> None:
    async def within() -> None:
        async with frontend(tmp_path) as front:
            client = await front.connect()
            client.send("GET", target, **headers)
            answer = await client.answer()
            assert (answer.status, answer.json["code"]) == (status, code)
            assert answer.headers.get("upgrade") == ("websocket" if status == 426 else None)
            front.shards[0].answers["get_status"] = DONE
            assert (await client.ask("GET", "/r/status")).status == 200

    asyncio.run(within())


def test_open_from_a_page_of_this_server_is_allowed(tmp_path: Path) -> None:
    async def within() -> None:
        async with frontend(tmp_path) as front:
            origin = f"http://127.0.0.1:{front.port}"
            async with StreamClient(front.port, origin=origin) as client:
                assert client.limits["window"] == stream.WINDOW

    asyncio.run(within())


def test_open_while_front_end_ends_is_refused(tmp_path: Path) -> None:
    async def within() -> None:
        async with frontend(tmp_path) as front:
            await front.app.drain(0)
            with pytest.raises(InvalidStatus, match="503"):
                async with StreamClient(front.port):
                    pass

    asyncio.run(within())


# -- window and backpressure ---------------------------------------------------------------------------------------


def test_overrun_window_waits_for_room_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WINDOW", 10)

    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        await client.send(*(frame(number, "add_job", [f"j{number}"]) for number in range(25)))
        await client.send(*(frame(number, "add_job", [f"j{number}"]) for number in range(25, 40)))
        for count in (10, 20, 30, 40):
            await shard.call("add_job", count)
            await asyncio.sleep(0.01)  # for one too many to come
            assert len(shard.asked) == count
            assert len(only(front)._messages) <= 2
            shard.reply_all(shard.asked[count - 10 :], {})
        assert [request.params for request in shard.asked] == [[f"j{number}"] for number in range(40)]
        for number in range(40):
            assert await client.answer(number) == (200, {})

    run(tmp_path, test)


class Blind:
    """A client that writes and does not read, over a socket with small buffers."""

    def __init__(self, port: int) -> None:
        self._websocket = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/r/stream"))
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self._websocket.send_request(self._websocket.connect())
        self._unsent = bytearray().join(self._websocket.data_to_send())
        self.written = 0
        self.messages: list[bytes] = []

    async def open(self) -> None:
        await until(lambda: self.write() and self.read() and self.messages)
        self.messages.clear()

    def say(self, content: bytes, is_whole: bool = True) -> None:
        self._websocket.send_binary(content, fin=is_whole)
        self._unsent += b"".join(self._websocket.data_to_send())

    def go_on(self, content: bytes) -> None:
        """Say the rest of a message."""
        self._websocket.send_continuation(content, fin=True)
        self._unsent += b"".join(self._websocket.data_to_send())

    def write(self) -> bool:
        """Write what goes without waiting; whether all is written."""
        with contextlib.suppress(BlockingIOError):
            self.written += self.socket.send(memoryview(self._unsent)[self.written :])
        return self.written == len(self._unsent)

    def read(self) -> bool:
        """Read what is there."""
        try:
            self._websocket.receive_data(self.socket.recv(1 << 16))
        except BlockingIOError:
            return False
        if self._websocket.state is State.OPEN:
            self.messages += [event.data for event in self._websocket.events_received() if hasattr(event, "opcode")]
        return True


def test_write_blindly_past_the_window_is_slowed_down_by_tcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WINDOW", 10)

    async def within() -> None:
        async with frontend(tmp_path) as front:
            [shard], blind = front.shards, Blind(front.port)
            await blind.open()
            for number in range(1000):
                blind.say(frame(number, "add_job", [f"j{number}"], b"x" * 20_000))
            written = -1
            while written != blind.written:  # until nothing goes any more
                written = blind.written
                for _ in range(50):
                    blind.write()
                    await asyncio.sleep(0.001)
            assert not blind.write()
            assert len(shard.asked) == 10
            assert front.app.held_bytes < 1 << 20
            assert blind.written < 10_000_000
            shard.answers["add_job"] = DONE
            shard.reply_all(shard.asked[:10], {})
            await until(lambda: (blind.write(), blind.read()) and len(shard.asked) == 1000)
            assert [request.params for request in shard.asked] == [[f"j{number}"] for number in range(1000)]
            blind.socket.close()
            await until(lambda: not front.app.streams)
            assert front.app.held_bytes == 0

    asyncio.run(within())


def test_read_too_slowly_holds_up_what_is_asked_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW", 10)

    async def within() -> None:
        async with frontend(tmp_path) as front:
            [shard], blind = front.shards, Blind(front.port)
            await blind.open()
            shard.answers["get_job"] = (200, b"x" * 50_000, 0)
            for number in range(200):
                blind.say(frame(number, "get_job", [f"j{number}"]))
            await until(lambda: blind.write() or only(front)._is_slow)
            await until(lambda: only(front)._is_slow and not only(front)._under_way)
            asked = len(shard.asked)
            assert asked < 200
            assert front.app.crowd.reply_bytes > 0
            async with StreamClient(front.port) as other:
                shard.answers["get_status"] = DONE
                assert await other.ask(1, "get_status") == (200, {})
            assert len(shard.calls("get_job")) == asked
            await until(lambda: (blind.read() or blind.write()) and len(shard.calls("get_job")) == 200)
            await until(lambda: not blind.read() and not only(front)._is_busy and not front.app.crowd.reply_bytes)
            blind.socket.close()
            await until(lambda: not front.app.streams)

    asyncio.run(within())


def test_send_half_a_message_beyond_what_the_server_holds_closes(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        front.app.held_bytes_max = 300_000
        await client.websocket.send([bytes(500_000), bytes(500_000)])
        assert await client.closed() == (1013, UNANSWERED_IS_UNDONE)

    run(tmp_path, test)


def test_ask_beyond_what_the_server_holds_is_refused(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        front.app.held_bytes_max = 1000
        await client.send(frame(1, "add_job", ["j"], b"x" * 900), frame(2, "add_job", ["k"], b"x" * 900))
        status, body = await client.answer(2)
        assert (status, body["code"]) == (503, "overloaded")
        shard.reply(await shard.call("add_job"), {})
        assert await client.answer(1) == (200, {})

    run(tmp_path, test)


def test_send_fragments_without_an_end_holds_no_more_than_one_message(tmp_path: Path) -> None:
    async def within() -> None:
        async with frontend(tmp_path) as front:
            [shard], blind = front.shards, Blind(front.port)
            await blind.open()
            shard.answers["add_job"] = DONE
            whole = frame(1, "add_job", ["j"], b"x" * 100_000)
            blind.say(whole[:50_000], is_whole=False)
            for count in range(1, 10):
                blind.go_on(whole[50_000:])
                blind.say(whole[:50_000], is_whole=False)
                await until(lambda count=count: blind.write() and len(shard.asked) == count)
                await until(lambda: not front.app.held_bytes)

    asyncio.run(within())


# -- how it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["abort", "close"])
@pytest.mark.parametrize("key", [(), ("k",)])
def test_leave_before_a_pull_is_answered_undoes_it(tmp_path: Path, way: str, key: tuple[str, ...]) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        shard.answers["undo_pull"] = DONE
        await client.send(frame(1, "pull", [], {"count": 1}, *key), frame(2, "ack", [], {"leases": ["M"]}))
        pull, ack = await shard.call("pull"), await shard.call("ack")
        if way == "abort":
            client.abort()
        else:
            await client.websocket.close()
        await until(lambda: not front.app.streams)
        assert front.app._open_count == 1
        shard.reply(ack, {})
        shard.reply(pull, LEASED, extra=7)
        assert (await shard.call("undo_pull")).params == [7, [["j", 0]], key[0] if key else ""]

    run(tmp_path, test)


def test_take_a_pulls_reply_undoes_nothing(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        shard.answers["pull"] = (200, LEASED, 7)
        assert await client.ask(1, "pull") == (200, LEASED)
        await client.websocket.close()
        await until(lambda: not front.app.streams)
        assert [request.operation for request in shard.asked] == ["pull"]

    run(tmp_path, test)


def test_drain_answers_what_is_under_way_and_closes(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        async with StreamClient(front.port) as idle:
            await client.send(frame(1, "add_job", ["j"]), frame(2, "pull", [], {"wait": 300}))
            adding, waiting = await shard.call("add_job"), await shard.call("pull")
            draining = asyncio.ensure_future(front.app.drain(9))
            assert await idle.closed() == (1001, UNANSWERED_IS_UNDONE)
            assert (await shard.call("leave")).params == [waiting.request_id]
            await client.send(frame(3, "add_job", ["k"]))
            shard.reply(waiting, {"jobs": []})
            assert await client.answer(2) == (200, {"jobs": []})
            assert not draining.done()
            shard.reply(adding, {})
            assert await client.closed() == (1001, UNANSWERED_IS_UNDONE)
            assert await client.answer(1) == (200, {})
            assert len(shard.calls("add_job")) == 1
            await draining

    run(tmp_path, test)


def test_ping_without_a_pong_cuts_off_and_with_one_does_not(tmp_path: Path) -> None:
    async def within() -> None:
        async with frontend(tmp_path) as front, StreamClient(front.port) as client:
            answering = only(front)
            blind = Blind(front.port)
            await blind.open()
            [silent] = front.app.streams - {answering}
            for opened in (answering, silent):
                opened._look()
            await until(lambda: answering._has_spoken)
            for opened in (answering, silent):
                opened._look()
            await until(lambda: front.app.streams == {answering})
            front.shards[0].answers["get_status"] = DONE
            assert await client.ask(1, "get_status") == (200, {})
            blind.socket.close()

    asyncio.run(within())


def test_rest_is_no_idleness_while_the_client_is_there(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        since = time.monotonic()
        only(front)._look()
        assert front.app.crowd.drop_late(since + IDLE_SECONDS) > 0
        front.shards[0].answers["get_status"] = DONE
        assert await client.ask(1, "get_status") == (200, {})

    run(tmp_path, test)


def test_rest_gives_way_where_there_are_too_many(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        async with StreamClient(front.port) as busy:
            await busy.send(frame(1, "get_status"))
            await shard.call("get_status")
            assert front.app.crowd.drop_idle(1e12)
            assert await client.closed() == (1013, UNANSWERED_IS_UNDONE)
            assert not front.app.crowd.drop_idle(1e12)
            shard.reply(shard.asked[0], {})
            assert await busy.answer(1) == (200, {})
            assert front.app.crowd.drop_idle(1e12)

    run(tmp_path, test)


@pytest.mark.parametrize("way", ["abort", "close"])
def test_close_leaves_no_cycle_of_references(tmp_path: Path, way: str) -> None:
    async def within() -> None:
        async with frontend(tmp_path) as front:
            front.shards[0].answers["get_status"] = DONE
            async with StreamClient(front.port) as client:
                await client.ask(1, "get_status")
                known = weakref.ref(only(front))
                if way == "abort":
                    client.abort()
            await until(lambda: not front.app.streams)
            await until(lambda: known() is None)
            assert not [found for found in gc.get_objects() if isinstance(found, ServerProtocol)]

    gc.collect()
    gc.disable()
    try:
        asyncio.run(within())
    finally:
        gc.enable()


@pytest.mark.parametrize("count", [1, 10_000])
def test_send_before_the_handshake_is_answered_loses_nothing(tmp_path: Path, count: int) -> None:
    async def within() -> None:
        async with frontend(tmp_path) as front:
            front.shards[0].answers["get_status"] = DONE
            websocket = ClientProtocol(parse_uri(f"ws://127.0.0.1:{front.port}/r/stream"))
            websocket.send_request(websocket.connect())
            early = ClientProtocol(parse_uri(f"ws://127.0.0.1:{front.port}/r/stream"), state=State.OPEN)
            for _ in range(count):
                early.send_binary(frame(1, "get_status"))
            reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
            writer.write(b"".join(websocket.data_to_send()) + b"".join(early.data_to_send()))
            received = b""
            async with asyncio.timeout(9):
                while received.count(b"\x01\xcc\xc8\xc4\x02{}") < count:
                    received += await reader.read(1 << 16)
            writer.close()

    asyncio.run(within())


def test_answer_is_json(tmp_path: Path) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        front.shards[0].answers["get_status"] = (200, {"ä": 1}, 0)
        await client.send(frame(1, "get_status"))
        [[number, status, body]] = await client.message()
        assert (number, status, json.loads(body)) == (1, 200, {"ä": 1})

    run(tmp_path, test)


def test_leave_right_after_the_handshake_leaves_nothing_and_logs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def within() -> None:
        async with frontend(tmp_path) as front:
            for number in range(20):
                websocket = ClientProtocol(parse_uri(f"ws://127.0.0.1:{front.port}/r/stream"))
                websocket.send_request(websocket.connect())
                _, writer = await asyncio.open_connection("127.0.0.1", front.port)
                writer.write(b"".join(websocket.data_to_send()))
                if number % 2:
                    writer.transport.abort()
                else:
                    writer.close()
            await until(lambda: not front.app.streams and not front.server._connections)
            front.shards[0].answers["get_status"] = DONE
            async with StreamClient(front.port) as client:
                assert await client.ask(1, "get_status") == (200, {})
            await until(lambda: not front.app.streams)

    asyncio.run(within())
    gc.collect()  # of a task that failed the log tells once it is gone
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


@pytest.mark.parametrize("operation", ["pin_realm", "unpin_realm"])
def test_ask_to_pin_says_in_params_what_is_meant(tmp_path: Path, operation: str) -> None:
    async def test(front: Frontend, client: StreamClient) -> None:
        [shard] = front.shards
        shard.answers["place_realm"] = DONE
        await client.ask(1, operation, [], {"shard": 1})
        said = ([1], b'{"shard": 1}') if operation == "pin_realm" else ([0], b"")
        assert (shard.asked[0].params, shard.asked[0].body) == said

    run(tmp_path, test)
