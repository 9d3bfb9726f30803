"""The stream of a whole server: what is answered is true, whatever dies, moves or stops meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from conftest import Server, StartServer
from polling import eventually
from processes import shard_pids
from realm_calls import RealmCalls
from stream_rig import StreamClient, frame
from wire import ask

COUNT = 2_000
ADD = {"queue_id": 0, "on_conflict": "error"}


def run(test: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(within())


async def add_all(client: StreamClient, first: int = 0) -> None:
    """Send so many adds, some in each message, and do not wait for the answers."""
    for number in range(first, first + COUNT, 50):
        await client.send(*(frame(at, "add_job", [f"j{at}"], ADD) for at in range(number, number + 50)))
        await asyncio.sleep(0)


def held(server: Server, realm: str) -> set[str]:
    """The ids of the realm's jobs."""
    found, cursor = set(), ""
    while cursor is not None:
        page = ask(server, "GET", f"/{realm}/jobs?limit=1000{cursor and f'&cursor={cursor}'}").ok()
        found |= {job["job_id"] for job in page["jobs"]}
        cursor = page["cursor"]
    return found


def test_kill_shard_amid_operations_answers_each_with_the_truth(start_server: StartServer, realm_name: str) -> None:
    own = start_server(shards=1)

    async def test() -> None:
        async with StreamClient(own.port, realm_name) as client:
            adding = asyncio.ensure_future(add_all(client))
            assert (await client.answer(COUNT // 4))[0] == 200
            os.kill(shard_pids_of(own), signal.SIGKILL)
            await adding
            answers = {number: await client.answer(number) for number in range(COUNT) if number != COUNT // 4}
            assert {status for status, _ in answers.values()} <= {200, 503}
            codes = {body["code"] for status, body in answers.values() if status == 503}
            assert codes <= {"shard_unavailable", "shard_starting"}
            assert await asyncio.to_thread(eventually, lambda: ask(own, "GET", f"/{realm_name}/status").status == 200)
            there = held(own, realm_name)
            for number, (status, body) in answers.items():
                if status == 200:
                    assert f"j{number}" in there
                elif body["code"] == "shard_starting":
                    assert f"j{number}" not in there
            assert (await client.ask(COUNT, "get_status"))[0] == 200

    def shard_pids_of(server: Server) -> int:
        [pid] = shard_pids(server)
        return pid

    run(test())


def test_move_realm_amid_operations_does_each_once(server: Server, realm_name: str) -> None:
    async def test() -> None:
        async with StreamClient(server.port, realm_name) as client:
            for turn in range(4):
                adding = asyncio.ensure_future(add_all(client, turn * COUNT))
                await client.answer(turn * COUNT)
                assert await client.ask(10**6 + turn, "pin_realm", [], {"shard": turn % 2}) == (200, {})
                await adding
                for number in range(turn * COUNT + 1, (turn + 1) * COUNT):
                    assert await client.answer(number) == (200, {}), number
        assert held(server, realm_name) == {f"j{number}" for number in range(4 * COUNT)}

    run(test())


def test_stop_server_amid_operations_leaves_undone_what_has_no_reply(
    start_server: StartServer, realm_name: str, tmp_path: Path
) -> None:
    own = start_server(data_dir=tmp_path / "data")
    answered: dict[int, int] = {COUNT // 10: 200}

    async def test() -> None:
        async with StreamClient(own.port, realm_name) as client:
            adding = asyncio.ensure_future(add_all(client))
            assert (await client.answer(COUNT // 10))[0] == 200
            own.process.send_signal(signal.SIGTERM)
            assert await client.closed() == (1001, "what has no reply was not done")
            answered.update((number, status) for number, (status, _) in client.answers.items())
            await asyncio.gather(adding, return_exceptions=True)

    run(test())
    assert own.stop() == 0
    assert set(answered.values()) == {200}
    again = start_server(data_dir=tmp_path / "data")
    assert held(again, realm_name) == {f"j{number}" for number in answered}


def test_leave_while_waiting_for_a_job_leaves_it_to_others(server: Server, realm_name: str) -> None:
    realm = RealmCalls(server, realm_name)

    async def test() -> None:
        async with StreamClient(server.port, realm_name) as gone, StreamClient(server.port, realm_name) as stays:
            await gone.send(frame(1, "pull", [], {"wait": 60}))
            assert (await gone.ask(2, "get_status"))[0] == 200
            gone.abort()
            await stays.send(frame(1, "pull", [], {"wait": 60}))
            await asyncio.to_thread(realm.add, "j")
            status, body = await stays.answer(1)
            assert (status, [(job["job_id"], job["attempt"]) for job in body["jobs"]]) == (200, [("j", 1)])

    run(test())


def test_repeat_over_http_of_what_came_over_a_stream_gets_its_reply(server: Server, realm_name: str) -> None:
    realm = RealmCalls(server, realm_name)
    realm.add_all("a", "b")

    async def test() -> None:
        async with StreamClient(server.port, realm_name) as client:
            body = '{"count": 1}'
            first = await client.ask(1, "pull", [], body, "k")
            assert await client.ask(2, "pull", [], body, "k") == first
            headers = {"Idempotency-Key": "k"}
            over_http = await asyncio.to_thread(ask, server, "POST", f"/{realm_name}/pull", body.encode(), headers)
            assert (over_http.status, over_http.ok()) == first
            status, refusal = await client.ask(3, "pull", [], "{}", "k")
            assert (status, refusal["code"]) == (422, "idempotency_key_reused")

    run(test())


def test_look_at_performance_counts_what_came_over_a_stream(server: Server, realm_name: str) -> None:
    def count() -> int:
        called: int = ask(server, "GET", "/performance").ok().get("explain_job", {"call_count": 0})["call_count"]
        return called

    before = count()

    async def test() -> None:
        async with StreamClient(server.port, realm_name) as client:
            for number in range(3):
                assert (await client.ask(number, "explain_job", ["j"]))[0] == 404

    run(test())
    assert count() == before + 3
