"""Too many clients, too large bodies, too slow readers, too much work in one realm: others are answered, and it passes.

In each run a small crowd; RESTQ_TEST_LONG=1 gathers 5,000 connections, fills the memory of processes that have 512 MiB
each, and measures what a hot realm costs its neighbours. `-s` shows the figures; they are properties of the tests, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, StartServer
from frontend_rig import Frontend, frontend, until
from longrun import LONG, seeds
from polling import eventually
from processes import children, frontend_pids
from proxy import RESET
from wire import JSON, Answer, Wire, connect, names_on, raw_request

from restq.web.crowd import IDLE_SECONDS
from restq.web.process import STALL_MILLISECONDS

SEEDS = list(seeds(1, 20))
IDLE_COUNT = 5_000 if LONG else 200
FILES_COUNT = 256
BODIES_COUNT = 24 if LONG else 6
READERS_COUNT = 24 if LONG else 6
SENT_COUNT = 10 if LONG else 2  # by each
LARGE_BYTES = 16_000_000 if LONG else 8_000_000
MEMORY_KBYTES = 512 << 10  # that each process may write to
HOT_SECONDS = 6.0 if LONG else 0.4
AGAIN_SECONDS = 0.05
HOUR = 3600.0

CUT = (OSError, http.client.HTTPException)
Record = Callable[[str, object], None]


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    """As many open files as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Worker:
    """One that works on a realm of its own, over a connection of its own, and asks again where it was refused."""

    def __init__(self, server: Server, name: str = "") -> None:
        self.name = name or f"crowd-{uuid.uuid4().hex[:8]}"
        self.seconds: list[float] = []  # that each of its requests took, with those that were refused
        self.refused = 0
        self._wire = Wire(server.port)

    def work(self) -> None:
        """One job from its add to its ack."""
        self.ask("PUT", "job/j", {"queue_id": 0, "data": "x"})
        [job] = self.ask("POST", "pull", {})["jobs"]
        assert self.ask("POST", "ack", {"leases": [job["lease_id"]]})["acked"]

    def ask(self, method: str, path: str, body: Any) -> Any:
        """The answer in the end."""
        headers = {**JSON, "Idempotency-Key": uuid.uuid4().hex}
        began_at = time.monotonic()
        answer = eventually(lambda: self._once(method, f"/{self.name}/{path}", body, headers))
        self.seconds.append(time.monotonic() - began_at)
        return answer.ok()

    def _once(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer | None:
        with contextlib.suppress(*CUT):
            answer = self._wire.ask(method, path, body, headers)
            if answer.status != 503:
                return answer
        self.refused += 1
        time.sleep(AGAIN_SECONDS)
        return None

    def close(self) -> None:
        self._wire.close()


def percentile(seconds: list[float], share: float) -> float:
    """In milliseconds."""
    return sorted(seconds)[min(int(len(seconds) * share), len(seconds) - 1)] * 1000


def show(record: Record, name: str, said: str) -> None:
    """For people: beside the test's result, and where `-s` shows it."""
    record(name, said)
    print(f"{name}: {said}")


def told(worker: Worker) -> str:
    """How a worker fared."""
    middle, late, worst = (percentile(worker.seconds, share) for share in (0.5, 0.99, 1.0))
    count = len(worker.seconds)
    return (
        f"{count} requests, refused {worker.refused}; median {middle:.1f} ms, 99th {late:.1f} ms, worst {worst:.1f} ms"
    )


def open_files(server: Server) -> int:
    """How many the front ends have."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in frontend_pids(server))


@contextlib.contextmanager
def crowd(server: Server, count: int, chance: random.Random, begin: list[bytes]) -> Iterator[list[socket.socket]]:
    """So many connections, each of which sends one of these and no more. They leave in both ways there are."""
    connections: list[socket.socket] = []
    try:
        for number in range(count):
            connections.append(connect(server))
            with contextlib.suppress(OSError):  # closed again at once
                connections[-1].sendall(begin[number % len(begin)])
        yield connections
    finally:
        for connection in connections:
            if chance.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()


HALVES = [
    b"",
    b"GET /heal",
    b"POST /crowd/jobs HTTP/1.1\r\nHost: restq\r\n",
    raw_request("POST", "/crowd/jobs", b'{"jobs": []}', JSON)[:-3],
    raw_request("GET", "/healthz"),
]
WAIT = raw_request("POST", "/crowd/pull", b'{"wait": 300}', JSON)


@pytest.mark.parametrize("seed", SEEDS)
def test_crowd_of_idle_connections_leaves_the_others_their_answers(
    start_server: StartServer, seed: int, record_property: Record
) -> None:
    own = start_server()
    pids, before = children(own.pid), open_files(own)
    with crowd(own, IDLE_COUNT, random.Random(seed), HALVES):
        worker = Worker(own)
        for _ in range(20):
            worker.work()
        worker.close()
        assert open_files(own) >= before + IDLE_COUNT
    eventually(lambda: open_files(own) <= before + 1)
    assert worker.refused == 0
    show(record_property, f"{IDLE_COUNT} idle connections", told(worker))
    assert children(own.pid) == pids


def test_connection_that_asks_nothing_for_a_minute_is_closed_and_one_that_waits_is_not(tmp_path: Path) -> None:
    """Silent ones, halves of requests, and answered ones; not who waits for jobs."""

    async def test() -> None:
        async with frontend(tmp_path) as front:
            crowd, now = front.app.crowd, time.monotonic()
            halves = [await asyncio.open_connection("127.0.0.1", front.port) for _ in HALVES]
            for (_, writer), half in zip(halves, HALVES, strict=True):
                writer.write(half)
            waits = await front.connect()
            waits.send("POST", "/crowd/pull", {"wait": 300})
            request = await front.shards[0].call("pull")
            await until(lambda: len(crowd) == len(HALVES))
            assert 0 < crowd.drop_late(now + IDLE_SECONDS - 1) < 2
            assert len(crowd) == len(HALVES)
            assert crowd.drop_late(time.monotonic() + IDLE_SECONDS) == IDLE_SECONDS
            for reader, writer in halves:
                with contextlib.suppress(ConnectionResetError):
                    await reader.read()
                writer.close()
            front.shards[0].reply(request, {"jobs": []})
            assert (await waits.answer()).json == {"jobs": []}
            assert len(crowd) == 1

    asyncio.run(test())


def limited(option: str, limit: int) -> list[str]:
    """What runs restq with less of something than the system has: each of its processes."""
    return ["sh", "-c", f'ulimit -{option} {limit} && exec "$0" "$@"', sys.executable, "-m", "restq"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("begin", [HALVES[:4], HALVES[4:], [WAIT]], ids=["silent", "answered", "waiting"])
def test_crowd_larger_than_the_files_allowed_leaves_the_others_their_answers(
    start_server: StartServer, seed: int, record_property: Record, begin: list[bytes]
) -> None:
    own = start_server(program=limited("n", FILES_COUNT))
    pids, before = children(own.pid), open_files(own)
    with crowd(own, 2 * FILES_COUNT, random.Random(seed), begin):
        workers = [Worker(own) for _ in range(8)]
        with ThreadPoolExecutor(len(workers)) as pool:
            list(pool.map(lambda worker: [worker.work() for _ in range(5)], workers))
        for worker in workers:
            worker.close()
    eventually(lambda: open_files(own) <= before + 1)
    show(record_property, f"{FILES_COUNT} files, {2 * FILES_COUNT} connections", told(workers[0]))
    assert children(own.pid) == pids


# -- memory ----------------------------------------------------------------------------------------------------------


class Memory:
    """How much the processes of a server have resident, together and at most."""

    def __init__(self, server: Server) -> None:
        self._pids = {server.pid, *children(server.pid)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak = 0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, sum(_resident(pid) for pid in self._pids))

    def each(self) -> list[int]:
        """The most that each process ever had, in MiB."""
        return [_status(pid, "VmHWM") >> 20 for pid in sorted(self._pids)]


def _resident(pid: int) -> int:
    return _status(pid, "VmRSS")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"{name} of {pid} is not known")


@pytest.fixture
def group() -> Iterator[list[str]]:
    """What runs restq in a control group of so much memory for all of its processes together."""
    with contextlib.ExitStack() as stack:
        for folder, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
            path = Path("/sys/fs/cgroup", folder, f"restq-test-{os.getpid()}")
            try:
                path.mkdir()
                stack.callback(lambda path=path: eventually(lambda: _removed(path)))
                (path / limit).write_text(str(MEMORY_KBYTES << 10))
            except OSError:
                continue
            enter = f'echo $$ > {path}/cgroup.procs && exec "$0" "$@"'
            yield ["sh", "-c", enter, sys.executable, "-m", "restq"]
            return
        pytest.skip("makes a control group, which takes its own permission")


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:  # processes are in it still
        return not path.exists()
    return True


@pytest.mark.parametrize("seed", SEEDS)
def test_large_bodies_and_slow_readers_of_a_server_in_little_memory_have_none_of_it_killed(
    group: list[str], start_server: StartServer, seed: int, record_property: Record
) -> None:
    _send_large_bodies(start_server(program=group), seed, record_property)


@pytest.mark.parametrize("seed", SEEDS)
def test_large_bodies_and_slow_readers_leave_the_others_their_answers(
    start_server: StartServer, seed: int, record_property: Record
) -> None:
    _send_large_bodies(start_server(program=limited("d", MEMORY_KBYTES)), seed, record_property)


def _send_large_bodies(own: Server, seed: int, record_property: Record) -> None:
    pids = children(own.pid)
    name = f"large-{seed}"
    large = json.dumps({"queue_id": 0, "data": "x" * LARGE_BYTES}).encode()
    Wire(own.port).ask("PUT", f"/{name}/job/large", large, JSON).ok()
    answered: list[int] = []
    worker = Worker(own)

    def send(number: int) -> None:
        for _ in range(SENT_COUNT):
            with contextlib.suppress(*CUT):
                answered.append(Wire(own.port).ask("PUT", f"/{name}/job/{number}", large, JSON).status)
            time.sleep(AGAIN_SECONDS)

    with Memory(own) as memory, contextlib.ExitStack() as stack:
        for _ in range(READERS_COUNT):
            reader = stack.enter_context(connect(own))
            reader.sendall(raw_request("GET", f"/{name}/job/large"))
        threads = [threading.Thread(target=send, args=(number,)) for number in range(BODIES_COUNT)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or len(worker.seconds) < 30:
            worker.work()
        show(record_property, "memory of each process (MiB)", str(memory.each()))
    for _ in range(10):
        worker.work()
    worker.close()
    show(record_property, "memory of all (MiB)", f"{memory.peak >> 20}; {told(worker)}; {Counter(answered)}")
    Wire(own.port).ask("DELETE", f"/{name}/").ok()
    assert {200} <= set(answered) <= {200, 503}
    assert children(own.pid) == pids, "a process was killed, or ended by itself"


# -- replies that do not fit, in a front end of this process --------------------------------------------------------

LARGE_REPLY = b'{"jobs":[{"job_id":"j","queue_id":0,"data":"' + b"x" * 20_000_000 + b'"}]}'
UNTAKEN = "GET", "/r/jobs"


@contextlib.asynccontextmanager
async def slow_reader(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> AsyncIterator[Frontend]:
    """A front end that has room for one large reply, and a client that does not read it; `seconds` it may take."""
    monkeypatch.setattr("restq.web.app.BODIES_BYTES_MAX", len(LARGE_REPLY) * 3 // 2)
    monkeypatch.setattr("restq.web.crowd.SLOW_SECONDS", seconds)
    async with frontend(folder) as front:
        front.shards[0].answers = {"list_jobs": (200, LARGE_REPLY, 0), "undo_pull": (200, {}, 0)}
        (await front.connect()).send(*UNTAKEN)
        await until(lambda: front.app.crowd.reply_bytes)
        yield front


@pytest.mark.parametrize("key", [None, "k"])
def test_pull_whose_reply_does_not_fit_is_refused_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    async def test() -> None:
        async with slow_reader(tmp_path, monkeypatch, HOUR) as front:
            [shard] = front.shards
            shard.answers["pull"] = (200, LARGE_REPLY, 7)
            answer = await (await front.connect()).ask("POST", "/r/pull", {}, key)
            assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
            assert (await shard.call("undo_pull")).params == [7, [["j", 0]], key or ""]

    asyncio.run(test())


@pytest.mark.parametrize("path", ["ack", "exchange", "jobs"])
def test_reply_that_tells_what_was_done_is_sent_whether_it_fits_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def test() -> None:
        async with slow_reader(tmp_path, monkeypatch, HOUR) as front:
            front.shards[0].answers |= dict.fromkeys(("ack", "exchange", "add_jobs"), (200, LARGE_REPLY, 7))
            answer = await (await front.connect()).ask("POST", f"/r/{path}", {})
            assert (answer.status, answer.body) == (200, LARGE_REPLY)
            assert front.shards[0].calls("undo_pull") == []

    asyncio.run(test())


def test_client_that_reads_for_too_long_gives_way_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with slow_reader(tmp_path, monkeypatch, 0.0) as front:
            for _ in range(3):
                answer = await (await front.connect()).ask(*UNTAKEN)
                assert (answer.status, answer.body) == (200, LARGE_REPLY)
            await until(lambda: not front.app.crowd.reply_bytes)

    asyncio.run(test())


@pytest.mark.skipif(not LONG, reason="takes half a minute: RESTQ_TEST_LONG=1")
def test_client_that_takes_nothing_of_its_reply_is_cut_off(start_server: StartServer) -> None:
    own = start_server()
    Wire(own.port).ask("PUT", "/stalled/job/j", json.dumps({"queue_id": 0, "data": "x" * LARGE_BYTES}).encode()).ok()
    before = open_files(own)
    with connect(own) as connection:
        connection.sendall(raw_request("GET", "/stalled/job/j"))
        eventually(lambda: open_files(own) > before)
        eventually(lambda: open_files(own) <= before, seconds=3 * STALL_MILLISECONDS / 1000)


# -- a hot realm -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hot(server: Server, realm: str) -> Iterator[Callable[[], int]]:
    """A client that keeps a realm busy meanwhile. What is given tells, once it has ended, what it was answered."""
    command = [sys.executable, str(Path(__file__).with_name("hot_client.py")), str(server.port), realm]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    answered: list[int] = []
    try:
        yield lambda: answered[0]
    finally:
        answered.append(int(client.communicate()[0] or 0))


def measured(workers: list[Worker], seconds: float) -> list[float]:
    """How long the slowest hundredth of each worker's requests takes at least, while all work for so long."""

    def work(worker: Worker) -> float:
        ends_at = time.monotonic() + seconds
        worker.seconds.clear()
        while time.monotonic() < ends_at:
            worker.work()
        return percentile(worker.seconds, 0.99)

    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(work, workers))


@pytest.mark.parametrize("seed", SEEDS)
def test_hot_realm_leaves_its_neighbours_and_other_shards_their_answers(
    start_server: StartServer, seed: int, record_property: Record
) -> None:
    """Figures of one machine say nothing of another, and of a busy one nothing at all: they are shown, not judged.

    How much of it is the machine's two cores, is seen from the same client at a server of its own.
    """
    own, apart = start_server(), start_server(shards=1)
    prefix = f"hot-{seed}"
    on_first = names_on(0, prefix)
    realm, neighbour = next(on_first), Worker(own, next(on_first))
    elsewhere = Worker(own, next(names_on(1, prefix)))
    calm = measured([elsewhere], HOT_SECONDS)[0]
    with hot(apart, realm):
        eventually(lambda: Wire(apart.port).ask("GET", f"/{realm}/status").ok()["total_jobs"])
        by_machine = measured([elsewhere], HOT_SECONDS)[0]
    with hot(own, realm) as answered:
        eventually(lambda: Wire(own.port).ask("GET", f"/{realm}/status").ok()["total_jobs"])
        busy = measured([elsewhere], HOT_SECONDS)[0]
        beside = measured([neighbour], HOT_SECONDS)[0]
    assert (neighbour.refused, elsewhere.refused) == (0, 0)
    rate = answered() / (2 * HOT_SECONDS)
    told = f"99th: other shard {calm:.1f} ms before, {by_machine:.1f} ms beside another server, {busy:.1f} ms"
    told += f" ({busy / by_machine:.2f} x); neighbour {beside:.1f} ms"
    show(record_property, f"hot realm, {rate:.0f} MiB/s", told)
    for worker in (neighbour, elsewhere):
        worker.close()
    Wire(own.port).ask("DELETE", f"/{realm}/").ok()
