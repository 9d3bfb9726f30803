"""The front end between clients and shards: who waits, who left, what is sent again under its key, what is undone."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from frontend_rig import Answer, Frontend, StandIn, frontend, until

from restq import pipe, placement
from restq.protocol import MOVED
from restq.web import line, process

Test = Callable[[Frontend], Coroutine[Any, Any, None]]

JOB = {
    "job_id": "j",
    "queue_id": 0,
    "data": None,
    "tags": [],
    "attempt": 1,
    "lease_id": "L",
    "lease_expires_at": 1.5,
    "realm": "r",
}
NONE: dict[str, Any] = {"jobs": []}
LEASED = (200, [[0, JOB]], 5)
NOT_KEPT: tuple[int, Any, int] = (200, [], 0)
DONE: tuple[int, Any, int] = (200, {}, 0)
GONE = {"error": 503, "exception": "ConnectionError", "message": "gone", "code": "shard_unavailable"}
REUSED = {"error": 422, "exception": "ValueError", "message": "reused", "code": "idempotency_key_reused"}


def run(folder: Path, test: Test, shard_count: int = 1) -> None:
    """Run a test over a front end of its own."""

    async def within() -> None:
        async with frontend(folder, shard_count) as running:
            await test(running)

    asyncio.run(within())


def refused(answer: Answer, status: int, code: str, field: str | None = None) -> None:
    assert (answer.status, answer.json["code"], answer.json.get("field")) == (status, code, field), answer


# -- who waits, and leaves -----------------------------------------------------------------------------------------

WAITING = [("POST", "/r/pull", "pull"), ("GET", "/r/tags/t?wait=9", "get_tag")]


@pytest.mark.parametrize(("method", "target", "operation"), WAITING)
def test_close_while_waiting_leaves_the_request(tmp_path: Path, method: str, target: str, operation: str) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        client.send(method, target)
        waiting = await shard.call(operation)
        client.close()
        left = await shard.call("leave")
        assert (left.realm, left.params, left.body) == ("", [waiting.request_id], b"")
        shard.reply(waiting, NONE)
        await until(lambda: not front.app.waiting)

    run(tmp_path, test)


def test_close_while_request_that_does_not_wait_is_under_way_leaves_nothing(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, other, [shard] = await front.connect(), await front.connect(), front.shards
        client.send("GET", "/r/status")
        await shard.call("get_status")
        await front.lose(client)
        shard.answers["get_tag_status"] = DONE
        assert (await other.ask("GET", "/r/tag/t/status")).status == 200
        assert shard.calls("leave") == []

    run(tmp_path, test)


def test_answer_to_waiting_request_reaches_its_client_and_nothing_is_left(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        client.send("POST", "/r/pull", {"wait": 300})
        shard.reply(await shard.call("pull"), {"jobs": [JOB]}, extra=7)
        assert (await client.answer()).json == {"jobs": [JOB]}
        assert front.app.waiting == set()
        shard.answers["get_status"] = DONE
        assert (await client.ask("GET", "/r/status")).status == 200
        client.close()
        assert [request.operation for request in shard.asked] == ["pull", "get_status"]

    run(tmp_path, test)


def test_drain_leaves_who_waits_and_who_comes_later(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        first, late, [shard] = await front.connect(), await front.connect(), front.shards
        first.send("POST", "/r/pull", {"wait": 300})
        waiting = [await shard.call("pull")]
        draining = asyncio.ensure_future(front.app.drain(9))
        assert (await shard.call("leave")).params == [waiting[0].request_id]
        late.send("POST", "/r/pull", {"wait": 300})
        waiting.append(await shard.call("pull", 2))
        assert (await shard.call("leave", 2)).params == [waiting[1].request_id]
        assert not draining.done()
        for client, request in zip((first, late), waiting, strict=True):
            shard.reply(request, NONE)
            answer = await client.answer()
            assert (answer.status, answer.json, answer.headers["connection"]) == (200, NONE, "close")
        await draining

    run(tmp_path, test)


def test_left_request_whose_realm_moved_is_left_there_too(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        realm = next(name for name in "abcdefgh" if placement.home(name, 2) == 0)
        client, shards = await front.connect(), front.shards
        client.send("POST", f"/{realm}/pull", {"wait": 300})
        waiting = await shards[0].call("pull")
        client.close()
        await shards[0].call("leave")
        shards[0].reply(waiting, b"", MOVED, extra=1)
        again = await shards[1].call("pull")
        assert (again.realm, again.body) == (realm, waiting.body)
        assert (await shards[1].call("leave")).params == [again.request_id]

    run(tmp_path, test, shard_count=2)


def test_wait_of_more_than_fit_otherwise_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "PIPE_REQUESTS_MAX", 2)

    async def test(front: Frontend) -> None:
        [shard] = front.shards
        clients = [await front.connect() for _ in range(5)]
        for number, client in enumerate(clients):
            client.send("POST", "/r/pull", {"wait": 300})
            await shard.call("pull", number + 1)
        others = [await front.connect() for _ in range(3)]
        for number, client in enumerate(others[:2]):
            client.send("GET", "/r/status")
            await shard.call("get_status", number + 1)
        refused(await others[2].ask("GET", "/r/status"), 503, "overloaded")
        shard.reply(shard.calls("get_status")[0], {})
        assert (await others[0].answer()).status == 200
        shard.answers["get_status"] = DONE
        assert (await others[0].ask("GET", "/r/status")).status == 200

    run(tmp_path, test)


def test_wait_of_more_than_a_pipe_takes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "PIPE_WAITING_MAX", 1)

    async def test(front: Frontend) -> None:
        first, second, [shard] = await front.connect(), await front.connect(), front.shards
        first.send("POST", "/r/pull")
        waiting = await shard.call("pull")
        answer = await second.ask("POST", "/r/pull")
        refused(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        shard.reply(waiting, NONE)
        assert (await first.answer()).json == NONE
        shard.answers["pull"] = (200, NONE, 0)
        assert (await second.ask("POST", "/r/pull")).json == NONE

    run(tmp_path, test)


def test_leave_request_that_was_answered_says_nothing(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        [to_shard], [shard] = front.app.shards.pipes, front.shards
        future = to_shard.call("pull", "r", [], b"", waits=True)
        shard.reply(await shard.call("pull"), NONE)
        await future
        to_shard.leave(future)
        to_shard.leave(to_shard.call("get_status", "r", [], b""))  # that one does not wait
        shard.reply(await shard.call("get_status"), {})
        assert [request.operation for request in shard.asked] == ["pull", "get_status"]

    run(tmp_path, test)


def test_lose_shard_while_waiting_answers_503_and_the_next_one_is_served(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        client.send("POST", "/r/pull", {"wait": 300})
        await shard.call("pull")
        await shard.stop()
        refused(await client.answer(), 503, "shard_unavailable")
        assert front.app.waiting == set()
        await shard.start()
        await front.app.shards.pipes[0].connected()
        shard.answers["pull"] = (200, NONE, 0)
        assert (await client.ask("POST", "/r/pull")).json == NONE

    run(tmp_path, test)


# -- what is undone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "k1"])
def test_pull_for_client_that_is_gone_is_undone_with_its_key(tmp_path: Path, key: str | None) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        client.send("POST", "/r/pull", {"wait": 300}, key)
        waiting = await shard.call("pull")
        client.close()
        await shard.call("leave")
        shard.reply(waiting, {"jobs": [JOB, {**JOB, "job_id": "k", "queue_id": "q"}]}, extra=7)
        undone = await shard.call("undo_pull")
        assert (undone.realm, undone.params) == ("r", [7, [["j", 0], ["k", "q"]], key or ""])

    run(tmp_path, test)


def test_exchange_without_key_for_client_that_is_gone_gives_back_what_it_pulled(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        client.send("POST", "/r/exchange", {"pull": {}})
        exchange = await shard.call("exchange")
        await front.lose(client)
        shard.reply(exchange, {"pull": {"jobs": [JOB]}}, extra=8)
        assert (await shard.call("undo_pull")).params == [8, [["j", 0]], ""]

    run(tmp_path, test)


def test_exchange_with_key_for_client_that_is_gone_stays_for_its_repeat(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, other, [shard] = await front.connect(), await front.connect(), front.shards
        client.send("POST", "/r/exchange", {"pull": {}}, key="k")
        exchange = await shard.call("exchange")
        await front.lose(client)
        shard.reply(exchange, {"pull": {"jobs": [JOB]}}, extra=8)
        shard.answers["get_status"] = DONE
        await until(lambda: not front.app._open_count)
        await other.ask("GET", "/r/status")
        assert shard.calls("undo_pull") == []

    run(tmp_path, test)


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "a" * 256, "ü", "a\tb"])
@pytest.mark.parametrize("target", ["/r/ack", "/r/jobs", "/jobs", "/pull"])
def test_send_bad_key_is_refused(tmp_path: Path, key: str, target: str) -> None:
    async def test(front: Frontend) -> None:
        client = await front.connect()
        answer = await client.ask("POST", target, {}, key)
        refused(answer, 400, "field_invalid", "Idempotency-Key")
        assert front.shards[0].asked == []

    run(tmp_path, test)


def test_send_key_goes_along_with_digest_of_method_path_and_body(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        shard.answers |= dict.fromkeys(("ack", "nack", "cancel_job", "pull"), DONE)
        key = "~ a" * 85
        for target, body in [
            ("/r/ack", b"1"),
            ("/r/ack", b"1"),
            ("/%72/ack", b"1"),
            ("/r/ack", b"2"),
            ("/s/ack", b"1"),
            ("/r/nack", b"1"),
            ("/r/job/a/cancel", b""),
            ("/r/job/b/cancel", b""),
            ("/r/job/%61/cancel", b""),
        ]:
            assert (await client.ask("POST", target, body, key)).status == 200
        assert {request.once[0] for request in shard.asked} == {key}
        digests = [request.once[1] for request in shard.asked]
        assert all(len(bytes.fromhex(digest)) == 16 for digest in digests)
        first, *others, cancel_a, cancel_b, cancel_a_again = digests
        assert [digest == first for digest in others] == [True, True, False, False, False]
        assert cancel_a == cancel_a_again
        assert len({*others, cancel_a, cancel_b}) == 6

    run(tmp_path, test)


@pytest.mark.parametrize(("method", "target"), [("PUT", "/r/job/j"), ("DELETE", "/r/job/j"), ("GET", "/r/status")])
def test_send_key_with_another_method_means_nothing(tmp_path: Path, method: str, target: str) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        shard.answers |= dict.fromkeys(("add_job", "remove_job", "get_status"), DONE)
        assert (await client.ask(method, target, {}, "k" * 999)).status == 200
        assert [list(request.once) for request in shard.asked] == [[]]

    run(tmp_path, test)


FULL = {"error": 429, "exception": "ConnectionError", "message": "full", "code": "queue_full"}
BUSY = {"error": 503, "exception": "ConnectionError", "message": "busy; nothing was done", "code": "overloaded"}
BULK = {"jobs": [{"realm_id": realm, "job_id": "j", "queue_id": 0} for realm in "abcdefgh"]}


def test_bulk_add_with_key_asks_each_realm_whether_it_may_and_then_to_add_under_the_key(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client = await front.connect()
        for shard in front.shards:
            shard.answers |= {"check_jobs": DONE, "add_jobs": DONE}
        assert (await client.ask("POST", "/jobs", BULK, "k")).json == {}
        for number, shard in enumerate(front.shards):
            here = [name for name in "abcdefgh" if placement.home(name, 2) == number]
            indexes = [[["abcdefgh".index(name)]] for name in here]
            for operation in ("check_jobs", "add_jobs"):
                asked = shard.calls(operation)
                assert [(request.realm, request.params) for request in asked] == list(zip(here, indexes, strict=True))
                assert [json.loads(request.body)["jobs"][0]["realm_id"] for request in asked] == here
            assert [request.operation for request in shard.asked] == ["check_jobs"] * len(here) + ["add_jobs"] * len(
                here
            )
        [(key, _)] = {tuple(request.once) for shard in front.shards for request in shard.asked}
        assert key == "k"

    run(tmp_path, test, shard_count=2)


def test_bulk_add_that_a_realm_would_refuse_adds_nothing(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        shard.answers |= {"check_jobs": (429, FULL, 0)}
        answer = await client.ask("POST", "/jobs", BULK)
        refused(answer, 429, "queue_full")
        assert answer.json["message"] == "full"
        assert shard.calls("add_jobs") == []

    run(tmp_path, test)


def test_bulk_remove_asks_each_realm(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        shard.answers |= {"remove_jobs": DONE}
        pairs = [["a", "x"], ["b", "y"], ["a", 7]]
        assert (await client.ask("DELETE", "/jobs", {"jobs": pairs})).json == {}
        assert [(asked.realm, json.loads(asked.body)) for asked in shard.asked] == [
            ("a", {"jobs": ["x", "7"]}),
            ("b", {"jobs": ["y"]}),
        ]

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("key", "says"), [("k", "sending it again adds the rest"), (None, "again does no harm while none of them is done")]
)
@pytest.mark.parametrize(
    ("reply", "code"),
    [(None, "shard_unavailable"), ((503, BUSY, 0), "shard_unavailable"), ((429, FULL, 0), "queue_full")],
    ids=["dies", "busy", "full"],
)
def test_bulk_add_that_one_realm_does_not_take_says_what_sending_it_again_does(
    tmp_path: Path, key: str | None, says: str, reply: tuple[int, Any, int] | None, code: str
) -> None:
    """A code such as `overloaded`, which says that nothing was done, would have clients send it again without a key."""

    async def test(front: Frontend) -> None:
        client, [first, second] = await front.connect(), front.shards
        for shard in front.shards:
            shard.answers |= {"check_jobs": DONE}
        first.answers |= {"add_jobs": DONE}
        if reply is not None:
            second.answers["add_jobs"] = reply
        client.send("POST", "/jobs", BULK, key)
        await second.call("add_jobs")
        if reply is None:
            await second.stop()
        answer = await client.answer()
        assert answer.json["code"] == code
        assert answer.json["message"].startswith("in one of the realms: ")
        assert "others may be done" in answer.json["message"]
        assert answer.json["message"].endswith(says)

    run(tmp_path, test, shard_count=2)


def test_bulk_remove_that_one_realm_does_not_take_says_that_others_may_be_done(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        shard.answers |= {"remove_jobs": (503, BUSY, 0)}
        answer = await client.ask("DELETE", "/jobs", {"jobs": [["a", "x"], ["b", "y"]]})
        refused(answer, 503, "shard_unavailable")
        assert answer.json["message"].endswith("others may be done, and sending it again removes the rest")

    run(tmp_path, test)


def test_bulk_add_to_one_realm_is_not_checked_and_refused_as_it_is(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        shard.answers |= {"add_jobs": (429, FULL, 0)}
        answer = await client.ask("POST", "/jobs", {"jobs": BULK["jobs"][:1]})
        refused(answer, 429, "queue_full")
        assert (answer.json["message"], len(shard.asked)) == ("full", 1)

    run(tmp_path, test)


def leased(*job_ids: str) -> list[tuple[int, dict[str, Any]]]:
    """What shards say of jobs that were leased, each with its index: the number that is its id."""
    return [(int(job_id), JOB | {"job_id": job_id, "lease_id": job_id}) for job_id in job_ids]


def test_pull_with_key_that_came_before_gives_what_all_shards_leased_then_in_order(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [first, second] = await front.connect(), front.shards
        first.answers["recall"] = (200, leased("3", "0"), 0)
        second.answers["recall"] = (200, leased("2", "1", "4"), 0)
        answer = await client.ask("POST", "/pull", {"count": 4}, "k")
        assert [job["job_id"] for job in answer.json["jobs"]] == ["0", "1", "2", "3"]
        assert [request.operation for shard in front.shards for request in shard.asked] == ["recall"] * 4
        [(key, _)] = {tuple(request.once) for shard in front.shards for request in shard.asked}
        assert key == "k"

    run(tmp_path, test, shard_count=2)


def test_pull_with_key_asks_again_where_a_realm_may_have_moved_past_it(tmp_path: Path) -> None:
    """From the shard that was asked late to the one that was asked early: it was in neither."""

    async def test(front: Frontend) -> None:
        client, [early, late] = await front.connect(), front.shards
        early.answers["recall"] = (200, [], 7)
        client.send("POST", "/pull", {"count": 4}, "k")
        asked = await late.call("recall")
        early.answers["recall"] = (200, leased("0"), 8)
        late.reply(asked, [], extra=3)
        for count in (2, 3):
            late.reply(await late.call("recall", count), [], extra=3)
        assert [job["job_id"] for job in (await client.answer()).json["jobs"]] == ["0"]

    run(tmp_path, test, shard_count=2)


def test_pull_with_key_does_without_a_shard_that_is_starting(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [first, second] = await front.connect(), front.shards
        first.answers["recall"] = NOT_KEPT
        client.send("POST", "/pull", {}, "k")
        await second.call("recall")
        await second.stop()
        refused(await client.answer(), 503, "shard_unavailable")
        first.answers["recall"] = (200, leased("0"), 0)
        assert [job["job_id"] for job in (await client.ask("POST", "/pull", {}, "k")).json["jobs"]] == ["0"]

    run(tmp_path, test, shard_count=2)


def test_pull_over_realms_with_reused_key_is_refused_and_leases_nothing(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        shard.answers["recall"] = (422, REUSED, 0)
        refused(await client.ask("POST", "/pull", {}, "k"), 422, "idempotency_key_reused")
        assert [request.operation for request in shard.asked] == ["recall"]

    run(tmp_path, test)


def test_pull_over_realms_twice_at_once_under_one_key_has_the_second_wait(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        first, second, [shard] = await front.connect(), await front.connect(), front.shards
        shard.answers |= {"recall": NOT_KEPT, "get_status": DONE}
        first.send("POST", "/pull", {}, "k")
        peeking = await shard.call("peek")
        second.send("POST", "/pull", {}, "k")
        third = await front.connect()
        await third.ask("GET", "/r/status")  # so the second was read
        assert len(shard.calls("recall")) == 1
        pulls_one(shard)
        shard.answers["recall"] = LEASED
        shard.reply(peeking, CANDIDATES)
        assert (await first.answer()).json == {"jobs": [JOB]}
        assert (await second.answer()).json == {"jobs": [JOB]}
        assert len(shard.calls("lease_peeked")) == 1

    run(tmp_path, test)


def test_reuse_key_over_realms_that_is_under_way_is_refused_at_once(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        first, second, [shard] = await front.connect(), await front.connect(), front.shards
        shard.answers |= {"recall": NOT_KEPT, "peek": (200, [], 0)}
        first.send("POST", "/pull", {"wait": 60}, "k")
        await shard.call("pull_waiting")
        refused(await second.ask("POST", "/pull", {"wait": 61}, "k"), 422, "idempotency_key_reused", "Idempotency-Key")
        assert shard.calls("leave") == []

    run(tmp_path, test)


def test_wait_again_over_realms_under_one_key_takes_the_place_of_the_first(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        first, second, [shard] = await front.connect(), await front.connect(), front.shards
        shard.answers |= {"recall": NOT_KEPT, "peek": (200, [], 0)}
        first.send("POST", "/pull", {"wait": 60}, "k")
        waits = [await shard.call("pull_waiting")]
        second.send("POST", "/pull", {"wait": 60}, "k")
        assert (await first.answer()).json == NONE
        waits.append(await shard.call("pull_waiting", 2))
        assert shard.calls("leave")[0].params == [waits[0].request_id]
        shard.reply(waits[1], LEASED[1], extra=5)
        assert (await second.answer()).json == {"jobs": [JOB]}
        assert waits[1].once == shard.calls("recall")[1].once

    run(tmp_path, test)


@pytest.mark.parametrize("key", ["k", None])
@pytest.mark.parametrize("others", [0, 1])
def test_pull_over_realms_whose_shard_dies_while_it_leases_hides_no_jobs(
    tmp_path: Path, key: str | None, others: int
) -> None:
    """Nobody sends a pull again that was answered 200; without a key what the others leased is better than nothing."""

    async def test(front: Frontend) -> None:
        client, [first, second] = await front.connect(), front.shards
        realms = [next(name for name in "abcdefgh" if placement.home(name, 2) == home) for home in (0, 1)]
        for shard, realm in zip(front.shards, realms, strict=True):
            shard.answers |= {"recall": NOT_KEPT, "peek": (200, [[1.0, realm, realm, 0]], 0)}
        first.answers["lease_peeked"] = (200, [[0, JOB]][:others], 5)
        client.send("POST", "/pull", {"count": 2}, key)
        await second.call("lease_peeked")
        await second.stop()
        answer = await client.answer()
        if key is None and others:
            assert answer.json == {"jobs": [JOB]}
        else:
            refused(answer, 503, "shard_unavailable")
            assert answer.json["message"].endswith("gives what it leased" if key else "leased jobs, for their time")
        assert first.calls("undo_pull") == []

    run(tmp_path, test, shard_count=2)


def test_pull_over_realms_that_came_again_by_another_way_is_not_answered_with_less(tmp_path: Path) -> None:
    """The other one knows of all that both leased, and this one does not."""

    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        pulls_one(shard)
        shard.answers |= {"recall": NOT_KEPT, "lease_peeked": (503, GONE, 0)}
        answer = await client.ask("POST", "/pull", {}, "k")
        refused(answer, 503, "shard_unavailable")
        assert answer.json["message"] == "gone; sent again, this gives what it leased"
        claims = [request.params[-1] for request in shard.asked if request.operation != "peek"]
        assert (len(claims), len(set(map(tuple, claims)))) == (2, 1), "it leases under the claim that it recalled under"
        await client.ask("POST", "/pull", {}, "k")
        assert shard.calls("recall")[-1].params[-1] > claims[0], "and is another when it comes again"

    run(tmp_path, test)


def test_pull_over_realms_again_gives_a_realm_on_the_move_once(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [first, second] = await front.connect(), front.shards
        twice, once = ({**JOB, "lease_id": lease} for lease in "ab")
        first.answers["recall"] = (200, [[0, twice]], 0)
        second.answers["recall"] = (200, [[0, twice], [1, once]], 0)
        assert (await client.ask("POST", "/pull", {"count": 2}, "k")).json == {"jobs": [twice, once]}

    run(tmp_path, test, shard_count=2)


def test_pull_over_realms_that_loses_a_candidate_asks_for_more_and_keeps_the_order(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        client.send("POST", "/pull", {"count": 2})
        shard.reply(await shard.call("peek"), [[1.0, "r", "a", 0], [2.0, "r", "b", 0]])
        leasing = await shard.call("lease_peeked")
        assert leasing.params[0] == [["r", "a", 0, 0], ["r", "b", 0, 1]]
        shard.reply(leasing, [(1, JOB | {"job_id": "b"})], extra=5)
        shard.reply(await shard.call("peek", 2), [[3.0, "r", "c", 0]])
        leasing = await shard.call("lease_peeked", 2)
        assert leasing.params[0] == [["r", "c", 0, 2]], "after those of the first round, the lost one among them"
        shard.reply(leasing, [(2, JOB | {"job_id": "c"})], extra=6)
        assert [job["job_id"] for job in (await client.answer()).json["jobs"]] == ["b", "c"]

    run(tmp_path, test)


CANDIDATES = [[1.0, "r", "j", 0]]


def pulls_one(shard: StandIn) -> None:
    shard.answers |= {"peek": (200, CANDIDATES, 0), "lease_peeked": LEASED}


def test_pull_over_realms_with_key_that_gives_nothing_asks_for_no_more(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        shard.answers |= {"recall": NOT_KEPT, "peek": (200, [], 0)}
        assert (await client.ask("POST", "/pull", {}, "k")).json == NONE
        assert [request.operation for request in shard.asked] == ["recall", "peek"]

    run(tmp_path, test)


@pytest.mark.parametrize("key", ["k", None])
def test_pull_over_realms_for_client_that_is_gone_is_undone(tmp_path: Path, key: str | None) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        pulls_one(shard)
        shard.answers |= {"recall": NOT_KEPT}
        del shard.answers["lease_peeked"]
        client.send("POST", "/pull", {}, key)
        leasing = await shard.call("lease_peeked")
        await front.lose(client)
        shard.reply(leasing, LEASED[1], extra=5)
        assert (await shard.call("undo_pull")).params == [5, [["j", 0]], key or ""]

    run(tmp_path, test)


# -- pulls over realms that wait -------------------------------------------------------------------------------------


def test_pull_over_realms_hands_its_filters_on(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        pulls_one(shard)
        body = {"count": 3, "max_queue": "7", "realms": ["r", "s", "r"], "queues": ["0", "x", 2], "tags": ["t"]}
        answer = await client.ask("POST", "/pull", {**body, "lease_time": 2.5, "worker": "w1"})
        assert answer.json == {"jobs": [JOB]}
        assert shard.calls("peek")[0].params == [3, 7, ["r", "s"], [0, "x", 2], ["t"]]
        assert shard.calls("lease_peeked")[0].params == [[["r", "j", 0, 0]], 2.5, "w1", []]
        await client.ask("POST", "/pull")
        assert shard.calls("peek")[1].params == [1, None, None, None, None]
        assert shard.calls("lease_peeked")[1].params == [[["r", "j", 0, 0]], None, "", []]

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"wait": 301}, "field_invalid", "wait"),
        ({"wait": -1}, "field_invalid", "wait"),
        ({"queues": [0, ""]}, "queue_id_invalid", "queues"),
        ({"tags": [""]}, "tag_invalid", "tags"),
        ({"lease_time": -1}, "field_invalid", "lease_time"),
        ({"lease_time": 1e10}, "field_invalid", "lease_time"),
        ({"worker": "a\n"}, "field_invalid", "worker"),
        ({"worker": "x" * 513}, "field_invalid", "worker"),
        ({"realms": [".x"]}, "realm_name_invalid", "realms"),
        ({"lease": 1}, "field_invalid", "lease"),
        ({"count": -1}, "field_invalid", "count"),
        ({"queues": "0"}, "field_type_wrong", "queues"),
    ],
)
def test_pull_over_realms_with_wrong_field_is_refused_before_any_shard_is_asked(
    tmp_path: Path, body: Any, code: str, field: str
) -> None:
    async def test(front: Frontend) -> None:
        refused(await (await front.connect()).ask("POST", "/pull", body), 400, code, field)
        assert front.shards[0].asked == []

    run(tmp_path, test)


HOMES = [next(name for name in "abcdefgh" if placement.home(name, 2) == home) for home in (0, 1)]


def nothing_yet(*shards: StandIn) -> None:
    for shard in shards:
        shard.answers |= {"recall": NOT_KEPT, "peek": (200, [], 0)}


def given(*jobs: tuple[str, Any], realm: str = "r") -> list[tuple[int, dict[str, Any]]]:
    """What a shard says that it leased: (job id, queue id) each."""
    return [(n, JOB | {"job_id": job_id, "queue_id": queue, "realm": realm}) for n, (job_id, queue) in enumerate(jobs)]


def jobs_of(answer: Answer) -> list[str]:
    return [job["job_id"] for job in answer.json["jobs"]]


def test_pull_over_realms_that_waits_is_given_what_one_shard_leased_and_leaves_the_others(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, shards = await front.connect(), front.shards
        nothing_yet(*shards)
        body = {"count": 2, "max_queue": 3, "queues": [1], "tags": ["t"], "lease_time": 2.5, "worker": "w1"}
        client.send("POST", "/pull", {"wait": 60, **body}, "k")
        waits = [await shard.call("pull_waiting") for shard in shards]
        for wait in waits:
            *asked, claim, seconds = wait.params
            assert (wait.realm, asked, seconds) == ("", [None, 2, 3, [1], ["t"], 2.5, "w1"], 60)
            assert len(claim) == (2 if wait.once else 0)
            assert wait.once == shards[0].calls("recall")[0].once
            assert 0 < wait.waited < 5
        shards[1].reply(waits[1], given(("a", 1), ("b", 1)), extra=5)
        assert jobs_of(await client.answer()) == ["a", "b"]
        assert (await shards[0].call("leave")).params == [waits[0].request_id]
        assert shards[1].calls("leave") == []
        assert front.app.waiting == set()
        shards[0].reply(waits[0], given(("c", 0), realm="q"), extra=6)  # it crossed the leave
        undo = await shards[placement.home("q", 2)].call("undo_pull")
        assert (undo.realm, undo.params) == ("q", [6, [["c", 0]], "k"])
        assert [len(shard.calls("peek")) for shard in shards] == [1, 1]

    run(tmp_path, test, shard_count=2)


@pytest.mark.parametrize(
    ("said", "parts", "returned", "undone"),
    [
        ({"count": 1}, [[("a", 5)], [("b", 2)]], ["b"], 0),
        ({"count": 1}, [[("a", 5)], [("b", "text")]], ["a"], 1),
        ({"count": 3}, [[("a", 0), ("b", 4)], [("c", 2)]], ["a", "c", "b"], None),
        ({"count": 3}, [[("a", 1), ("b", 1)], [("c", 0), ("d", 2)]], ["c", "d"], 0),
        ({"count": 9}, [[("a", 1)], [("a", 2)]], ["a", "a"], None),
        ({"count": 9, "distinct": True}, [[("a", 1)], [("a", 0), ("b", 1)]], ["a", "b"], 0),
    ],
)
def test_pull_over_realms_that_two_shards_answer_at_once_gives_back_what_is_too_much(
    tmp_path: Path, said: Any, parts: Any, returned: list[str], undone: int | None
) -> None:
    async def test(front: Frontend) -> None:
        client, shards = await front.connect(), front.shards
        nothing_yet(*shards)
        client.send("POST", "/pull", {"wait": 60, **said})
        waits = [await shard.call("pull_waiting") for shard in shards]
        for shard, wait, part, realm in zip(shards, waits, parts, HOMES, strict=True):
            shard.reply(wait, given(*part, realm=realm), extra=5)
        assert jobs_of(await client.answer()) == returned
        if undone is not None:
            undo = await shards[undone].call("undo_pull")
            assert (undo.realm, undo.params) == (HOMES[undone], [5, [list(job) for job in parts[undone]], ""])
        shards[0].answers["get_status"] = DONE
        await client.ask("GET", f"/{HOMES[0]}/status")
        assert sum(len(shard.calls("undo_pull")) for shard in shards) == (undone is not None)

    run(tmp_path, test, shard_count=2)


def test_pull_over_realms_that_waits_asks_only_shards_concerned(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, shards = await front.connect(), front.shards
        nothing_yet(shards[1])
        client.send("POST", "/pull", {"wait": 60, "realms": [HOMES[1]]})
        wait = await shards[1].call("pull_waiting")
        assert wait.params[0] == [HOMES[1]]
        assert shards[0].asked == []
        client.close()
        assert (await shards[1].call("leave")).params == [wait.request_id]

    run(tmp_path, test, shard_count=2)


def test_pull_over_realms_that_waits_follows_a_realm_that_moves_and_keeps_its_place(tmp_path: Path) -> None:
    names = [name for name in "abcdefgh" if placement.home(name, 2) == 0][:2]

    async def test(front: Frontend) -> None:
        client, [first, second] = await front.connect(), front.shards
        nothing_yet(first, second)
        client.send("POST", "/pull", {"wait": 60, "realms": [*names, HOMES[1]]})
        before = [await shard.call("pull_waiting") for shard in (first, second)]
        await asyncio.sleep(0.02)
        first.reply(before[0], names[1].encode(), MOVED, extra=1)
        after = [await shard.call("pull_waiting", 2) for shard in (first, second)]
        assert [wait.params[0] for wait in after] == [[names[0]], [names[1], HOMES[1]]]
        assert all(wait.waited >= before[0].waited + 0.02 and wait.params[-1] == 60 for wait in after)
        assert [left.params for left in second.calls("leave")] == [[before[1].request_id]]
        second.reply(before[1], [])
        second.reply(after[1], given(("x", 0), realm=names[1]), extra=5)
        assert jobs_of(await client.answer()) == ["x"]
        assert (await first.call("leave")).params == [after[0].request_id]

    run(tmp_path, test, shard_count=2)


def test_pull_that_waits_follows_a_realm_that_moves_and_keeps_its_place(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, shards = await front.connect(), front.shards
        client.send("POST", f"/{HOMES[0]}/pull", {"wait": 300})
        waiting = await shards[0].call("pull")
        assert waiting.waited == 0
        await asyncio.sleep(0.02)
        shards[0].reply(waiting, HOMES[0].encode(), MOVED, extra=1)
        assert 0.02 <= (await shards[1].call("pull")).waited < 5

    run(tmp_path, test, shard_count=2)


def test_pull_over_realms_that_waits_for_a_realm_that_never_settles_is_503(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, shards = await front.connect(), front.shards
        nothing_yet(*shards)
        for shard, target in ((0, 1), (1, 0)):
            shards[shard].answers["pull_waiting"] = (MOVED, HOMES[0].encode(), target)
        refused(await client.ask("POST", "/pull", {"wait": 60, "realms": [HOMES[0]]}), 503, "shard_unavailable")

    run(tmp_path, test, shard_count=2)


@pytest.mark.parametrize("key", ["k", None])
@pytest.mark.parametrize("gives", [True, False])
def test_pull_over_realms_that_a_shard_refuses_is_refused_unless_another_gave_jobs(
    tmp_path: Path, key: str | None, gives: bool
) -> None:
    full = {"error": 507, "exception": "OSError", "message": "full", "code": "storage_full"}

    async def test(front: Frontend) -> None:
        client, [first, second] = await front.connect(), front.shards
        nothing_yet(first, second)
        client.send("POST", "/pull", {"wait": 60}, key)
        waits = [await shard.call("pull_waiting") for shard in (first, second)]
        first.reply(waits[0], full, 507)
        if gives:
            second.reply(waits[1], given(("x", 0)), extra=5)
        answer = await client.answer()
        if gives:
            assert jobs_of(answer) == ["x"]
        else:
            refused(answer, 507, "storage_full")
            assert (await second.call("leave")).params == [waits[1].request_id]

    run(tmp_path, test, shard_count=2)


def test_pull_over_realms_that_waits_in_vain_answers_empty_when_time_is_up(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        nothing_yet(shard)
        answer = await client.ask("POST", "/pull", {"wait": 0.05})  # this shard never answers
        assert (answer.status, answer.json) == (200, NONE)
        assert shard.calls("leave")[0].params == [shard.calls("pull_waiting")[0].request_id]

    run(tmp_path, test)


@pytest.mark.parametrize("end", ["time", "drain"])
def test_pull_over_realms_that_is_left_takes_what_it_was_leased_meanwhile(tmp_path: Path, end: str) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        nothing_yet(shard)
        client.send("POST", "/pull", {"wait": 0.05 if end == "time" else 60})
        wait = await shard.call("pull_waiting")
        draining = asyncio.ensure_future(front.app.drain(9)) if end == "drain" else None
        await shard.call("leave")
        shard.reply(wait, given(("x", 0)), extra=5)
        assert jobs_of(await client.answer()) == ["x"]
        if draining is not None:
            await draining
        assert shard.calls("undo_pull") == []

    run(tmp_path, test)


def test_pull_over_realms_that_no_shard_lets_wait_is_answered(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, shards = await front.connect(), front.shards
        nothing_yet(*shards)
        client.send("POST", "/pull", {"wait": 60})
        for shard in shards:
            shard.reply(await shard.call("pull_waiting"), [])
        assert (await client.answer()).json == NONE
        assert [len(shard.calls("pull_waiting")) for shard in shards] == [1, 1]

    run(tmp_path, test, shard_count=2)


@pytest.mark.parametrize("body", [{}, {"wait": 0}, {"wait": 60, "count": 0}])
def test_pull_over_realms_that_does_not_wait_asks_once(tmp_path: Path, body: Any) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        nothing_yet(shard)
        assert (await client.ask("POST", "/pull", body)).json == NONE
        assert [request.operation for request in shard.asked] == ["peek"]

    run(tmp_path, test)


def test_drain_answers_pull_over_realms_that_waits(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        nothing_yet(shard)
        client.send("POST", "/pull", {"wait": 60})
        wait = await shard.call("pull_waiting")
        await front.app.drain(9)
        assert (await client.answer()).json == NONE
        assert (await shard.call("leave")).params == [wait.request_id]

    run(tmp_path, test)


@pytest.mark.parametrize("late", [True, False])
def test_close_while_pull_over_realms_waits_leaves_all_shards_and_keeps_no_job(
    tmp_path: Path, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "LEAVING_SECONDS", 0.001 if late else 9.0)

    async def test(front: Frontend) -> None:
        client, shards = await front.connect(), front.shards
        nothing_yet(*shards)
        client.send("POST", "/pull", {"wait": 60}, "k")
        waits = [await shard.call("pull_waiting") for shard in shards]
        client.close()
        for shard, wait in zip(shards, waits, strict=True):
            assert (await shard.call("leave")).params == [wait.request_id]
        if late:
            await until(lambda: front.app.waiting == set())
        shards[0].reply(waits[0], given(("x", 0), realm=HOMES[0]), extra=5)
        shards[1].reply(waits[1], [])
        assert (await shards[0].call("undo_pull")).params == [5, [["x", 0]], "k"]
        assert [len(shard.calls("peek")) for shard in shards] == [1, 1]

    run(tmp_path, test, shard_count=2)


def test_lose_one_shard_while_pull_over_all_realms_waits_goes_on_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "STARTING_SECONDS", 0.05)

    async def test(front: Frontend) -> None:
        client, shards = await front.connect(), front.shards
        nothing_yet(*shards)
        client.send("POST", "/pull", {"wait": 60})
        waits = [await shard.call("pull_waiting") for shard in shards]
        await shards[0].stop()
        await asyncio.sleep(0.1)
        assert len(shards[1].calls("pull_waiting")) == 1, "it kept its place"
        await shards[0].start()
        again = await shards[0].call("pull_waiting", 2)  # asked again once it is there
        assert again.waited > waits[0].waited
        shards[1].reply(waits[1], given(("x", 0)), extra=5)
        assert jobs_of(await client.answer()) == ["x"]

    run(tmp_path, test, shard_count=2)


@pytest.mark.parametrize("realms", [None, HOMES])
def test_lose_all_shards_that_a_pull_over_realms_waits_for_is_503(tmp_path: Path, realms: list[str] | None) -> None:
    async def test(front: Frontend) -> None:
        client, shards = await front.connect(), front.shards
        nothing_yet(*shards)
        client.send("POST", "/pull", {"wait": 60, "realms": realms})
        for shard in shards:
            await shard.call("pull_waiting")
        for shard in shards[: 1 if realms else 2]:
            await shard.stop()
        refused(await client.answer(), 503, "shard_unavailable")

    run(tmp_path, test, shard_count=2)


# -- bulk adds and moves ---------------------------------------------------------------------------------------------


def test_bulk_add_that_meets_moves_asks_again_where_the_realm_is(tmp_path: Path) -> None:
    """An `on_conflict: error` would else refuse what this very request added."""

    async def test(front: Frontend) -> None:
        client, shards = await front.connect(), front.shards
        moving, staying = (next(name for name in "abcdefgh" if placement.home(name, 2) == home) for home in (1, 0))
        jobs = [{"realm_id": realm, "job_id": "j", "queue_id": 0} for realm in (staying, moving)]
        client.send("POST", "/jobs", {"jobs": jobs})
        shards[0].reply(await shards[0].call("check_jobs"), {})
        shards[1].reply(await shards[1].call("check_jobs"), b"", MOVED, extra=0)
        again = await shards[0].call("check_jobs", 2)
        assert (again.realm, again.params) == (moving, [[1]])
        shards[0].reply(again, {})
        for request in (await shards[0].call("add_jobs"), await shards[0].call("add_jobs", 2)):
            if request.realm == staying:
                shards[0].reply(request, {})
            else:
                shards[0].reply(request, b"", MOVED, extra=1)
        added = await shards[1].call("add_jobs")
        assert (added.realm, added.params) == (moving, [[1]])
        shards[1].reply(added, {})
        assert (await client.answer()).json == {}
        assert len(shards[0].calls("add_jobs")) == 2

    run(tmp_path, test, shard_count=2)


# -- routes ----------------------------------------------------------------------------------------------------------

NEW_ROUTES = [
    ("POST", "/r/ack", "ack", []),
    ("POST", "/r/nack", "nack", []),
    ("POST", "/r/release", "release", []),
    ("POST", "/r/extend", "extend", []),
    ("POST", "/r/exchange", "exchange", []),
    ("POST", "/r/redrive", "redrive", []),
    ("GET", "/r/jobs", "list_jobs", [None] * 7),
    (
        "GET",
        "/r/jobs?data=1&state=dead&cursor=c&queue=7&tag=%C3%BC&limit=5&prefix=a%2Fb",
        "list_jobs",
        ["dead", "7", "ü", "a/b", "5", "c", "1"],
    ),
    ("GET", "/r/jobs?state=", "list_jobs", ["", *[None] * 6]),
    ("POST", "/r/job/a%2Fb/cancel", "cancel_job", ["a/b"]),
    ("GET", "/r/job/a/explain", "explain_job", ["a"]),
    ("GET", "/r/queues", "get_queues", []),
    ("GET", "/r/queues/a%20b", "get_queue", ["a b"]),
    ("PUT", "/r/queues/7", "configure_queue", ["7"]),
    ("GET", "/r/tags?limit=2&cursor=x&prefix=p", "get_tags", ["p", "2", "x"]),
    ("GET", "/r/tags/t", "get_tag", ["t", None]),
    ("GET", "/r/tags/t?wait=2.5", "get_tag", ["t", "2.5"]),
    ("PUT", "/r/tags/t", "configure_tag", ["t"]),
    ("POST", "/r/tags/t/redrive", "redrive_tagged_jobs", ["t"]),
    ("POST", "/r/tags/t/move", "move_tagged_jobs", ["t"]),
    ("POST", "/r/tags/t/cancel", "cancel_tagged_jobs", ["t"]),
    ("GET", "/r/config", "get_config", []),
    ("PUT", "/r/config", "configure", []),
    ("POST", "/r/config", "configure_2013", []),
]


def test_ask_new_route_is_its_operation_with_ids_and_query_as_params(tmp_path: Path) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        for method, target, operation, params in NEW_ROUTES:
            shard.answers[operation] = DONE
            body = None if method == "GET" else {"x": 1}
            assert (await client.ask(method, target, body)).json == {}
            asked = shard.asked[-1]
            assert (asked.operation, asked.realm, asked.params) == (operation, "r", params)
            assert asked.body == (b"" if body is None else b'{"x": 1}')

    run(tmp_path, test)


@pytest.mark.parametrize("target", sorted({route[1].partition("?")[0] for route in NEW_ROUTES}))
def test_ask_new_route_with_unknown_query_field_names_it(tmp_path: Path, target: str) -> None:
    async def test(front: Frontend) -> None:
        client = await front.connect()
        for method in {route[0] for route in NEW_ROUTES if route[1].partition("?")[0] == target}:
            if (method, target) == ("POST", "/r/config"):  # of 2013
                continue
            refused(await client.ask(method, f"{target}?stat=x"), 400, "field_invalid", "stat")
        assert front.shards[0].asked == []

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ("limit=1&limit=2", "field_invalid", "limit"),
        ("a%0Ab=1", "field_invalid", "'a\\nb'"),
        ("tag=%FF", "body_malformed", None),
        ("State=dead", "field_invalid", "State"),
    ],
)
def test_list_jobs_with_odd_query_is_refused(tmp_path: Path, query: str, code: str, field: str | None) -> None:
    async def test(front: Frontend) -> None:
        refused(await (await front.connect()).ask("GET", f"/r/jobs?{query}"), 400, code, field)

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("status", "phrase"), [(409, "Conflict"), (422, "Unprocessable"), (429, "Too Many Requests"), (507, "Insufficient")]
)
def test_answer_of_a_shard_keeps_its_status_and_says_when_to_come_again(
    tmp_path: Path, status: int, phrase: str
) -> None:
    async def test(front: Frontend) -> None:
        client, [shard] = await front.connect(), front.shards
        shard.answers["ack"] = (status, {"error": status}, 0)
        answer = await client.ask("POST", "/r/ack", {})
        assert (answer.status, answer.json) == (status, {"error": status})
        assert ("retry-after" in answer.headers) == (status == 429)
        assert answer.phrase.startswith(phrase)

    run(tmp_path, test)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "allowed", "told"),
    [
        ((1024, 4096), (4096, 4096), 4096),
        ((4096, 4096), (4096, 4096), 4096),
        ((1024, -1), (30_064, -1), 30_064),
        ((50_000, -1), (50_000, -1), 50_000),
        ((-1, -1), (-1, -1), 30_064),
    ],
)
def test_allow_files_raises_the_soft_limit_to_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], allowed: tuple[int, int], told: int
) -> None:
    system = {"limits": limits}
    monkeypatch.setattr(resource, "RLIM_INFINITY", -1)
    monkeypatch.setattr(resource, "getrlimit", lambda _: system["limits"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: system.update(limits=limits))
    assert process.allow_files() == told
    assert system["limits"] == allowed


def test_allow_files_where_the_system_refuses_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 9999))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert process.allow_files() == 256
