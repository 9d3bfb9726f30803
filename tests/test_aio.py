"""What the client for asyncio has of its own; what it shares with its twin is tested with it, in `test_client*.py`."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from typing import Any

import aiohttp
import pytest
from conftest import Server, StartServer
from test_client_jobs import StandIn
from twins import Coroutines, Script

from restq import aio, errors
from restq.aio.session import Session

NO_AIOHTTP = """
import asyncio, sys
sys.modules["aiohttp"] = None
from restq.aio import Realm
try:
    asyncio.run(Realm("test", "http://x").pull())
except ModuleNotFoundError as error:
    print(error)
"""


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_neither_aiohttp_nor_requests() -> None:
    code = "import sys, restq.aio; restq.aio.Realms(); print('aiohttp' in sys.modules, 'requests' in sys.modules)"
    assert python(code).split() == ["False", "False"]


def test_use_without_aiohttp_says_how_to_install_it() -> None:
    assert "pip install 'restq[async]'" in python(NO_AIOHTTP)


def test_make_clients_sends_nothing_and_needs_no_loop() -> None:
    script = Script({})
    realms = aio.Realms("http://x", Coroutines(script))
    assert realms.test is realms["test"]
    assert repr(realms.test) == "<restq realm 'test'>"
    assert not hasattr(realms, "_x")
    with pytest.raises(errors.RealmNameInvalid):
        realms["a/b"]
    for thing in (realms, realms.test):
        with pytest.raises(TypeError):
            iter(thing)
    assert script.calls == []


def test_use_in_tasks_at_once_loses_and_doubles_nothing(server: Server, realm_name: str) -> None:
    async def work(realm: aio.Realm, taken: list[str]) -> None:
        while pulled := await realm.pull(7):
            taken.extend(pulled)
            await realm.bulk_remove(pulled)

    async def main() -> list[str]:
        taken: list[str] = []
        async with aio.Realms(server.uri) as realms:
            realm = realms[realm_name]
            await realm.bulk_add([{"job_id": str(n), "queue_id": 0} for n in range(200)])
            async with asyncio.TaskGroup() as tasks:
                for _ in range(8):
                    tasks.create_task(work(realm, taken))
            assert realm_name in [name async for name in realms]
            assert (await realm.status)["total_jobs"] == 0
        return taken

    assert sorted(asyncio.run(main()), key=int) == [str(n) for n in range(200)]


def test_use_client_session_of_ones_own_leaves_it_open(server: Server, realm_name: str) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as own:
            async with aio.Realm(realm_name, server.uri, Session(own)) as realm:
                await realm.add("a b/c", 0)
                assert await realm.pull() == {"a b/c": [0, None]}
            assert not own.closed

    asyncio.run(main())


def test_close_then_use_again_opens_another_session(server: Server, realm_name: str) -> None:
    async def main() -> Any:
        realm = aio.Realm(realm_name, server.uri)
        await realm.add("a", 0)
        await realm.close()
        found = await realm.pull()
        await realm.close()
        return found

    assert asyncio.run(main()) == {"a": [0, None]}


def test_run_short_job_makes_no_task() -> None:
    async def main() -> None:
        stand_in = StandIn(["a"])
        [job] = await aio.Realm("test", "http://x", Coroutines(stand_in)).pull_jobs(1)
        before = asyncio.all_tasks()
        async with job:
            await asyncio.sleep(0.01)
            assert asyncio.all_tasks() == before
        assert stand_in.verbs() == ["pull", "ack"]

    asyncio.run(main())


def test_cancel_task_in_block_releases_the_job() -> None:
    stand_in = StandIn(["a", "b"])

    async def work() -> None:
        realm = aio.Realm("test", "http://x", Coroutines(stand_in))
        async with contextlib.aclosing(realm.consume(count=2, keep_going=True, lease_time=0.03)) as jobs:
            async for job in jobs:
                async with job:
                    await asyncio.sleep(60)

    async def main() -> None:
        extended = asyncio.Event()
        stand_in.other["extend"] = [ValueError("the first one fails")]
        extend = stand_in._extend
        stand_in._extend = lambda body: extended.set() or extend(body)  # type: ignore[func-returns-value,method-assign]
        task = asyncio.create_task(work())
        await extended.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert stand_in.bodies("release") == [{"leases": ["lease-a"]}, {"leases": ["lease-b"]}]


def test_buffer_from_tasks_at_once_sends_each_job_once() -> None:
    script = Script({})

    async def main() -> None:
        async with aio.Realm("test", "http://x", Coroutines(script)) as realm:
            add = [realm.bulk_add([{"job_id": str(n), "queue_id": 0}], buffer=True) for n in range(2500)]
            await asyncio.gather(*add)

    asyncio.run(main())
    sent = [job["job_id"] for _, _, body in script.calls for job in body["jobs"]]
    assert sorted(sent, key=int) == [str(n) for n in range(2500)]


def test_stop_server_during_long_poll_cuts_no_worker_that_keeps_going(start_server: StartServer) -> None:
    async def main(first: Server) -> str:
        async with aio.Realm("test", first.uri) as realm:
            await realm.add("warm", 0)
            await realm.pull()
            jobs = realm.consume(keep_going=True)
            waiting = asyncio.ensure_future(anext(jobs))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(first.stop)
            await asyncio.to_thread(start_server, first.data_dir, first.port)
            await realm.add("next", 0)
            job = await asyncio.wait_for(waiting, 30)
            async with job:
                pass
            await jobs.aclose()
            return job.job_id

    assert asyncio.run(main(start_server())) == "next"
