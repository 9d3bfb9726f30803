"""restq itself, on one shard or two: over raw keep-alive HTTP, over its stream, and through its Python client."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import msgpack

import restq
from bench import websocket
from bench.connection import Address, HttpReplies, LoadError, Replies, call, request
from bench.peers.peer import LEASE_SECONDS, NUMBER_DIGITS, Client, Op, Peer, Record, payload
from bench.server import Process, Server
from bench.workload import Workload
from restq.client import Realm

PROMISE = "synced before the answer"
UNDER_WAY = 100  # adds of one thread in a pipeline

_LEASE = re.compile(rb'"lease_id": ?"([^"]+)"')
_NUMBER = re.compile(rb'"data": ?"(\d{20})')
_ID_OF = Workload().job_id


class Restq(Peer):
    """`restq web` with one shard."""

    name = "restq"
    client = "raw HTTP"
    promise = PROMISE
    team = "wire"
    shards = 1

    def __init__(self) -> None:
        self._server: Server | None = None

    def start(self, folder: Path) -> None:
        self._server = Server(folder / "data", ["--shards", str(self.shards)])
        self._server.start()
        for shard, realm in enumerate(self.realms):
            call(self.address, "POST", f"/{realm}/config", b'{"default_lease_time":%d}' % LEASE_SECONDS)
            call(self.address, "PUT", f"/{realm}/shard", b'{"shard":%d}' % shard)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    @property
    def address(self) -> Address:
        assert self._server is not None, "started first"
        return self._server.address

    @property
    def realms(self) -> list[str]:
        """One on each shard."""
        return [f"bench-{shard}" for shard in range(self.shards)]

    def processes(self) -> list[Process]:
        return self._server.processes() if self._server is not None else []

    def connect(self, index: int) -> Client:
        at = index % self.shards
        return RawRestq(self.address, self.realms[at:] + self.realms[:at])

    def left(self) -> int:
        return sum(json.loads(call(self.address, "GET", f"/{realm}/status"))["total_jobs"] for realm in self.realms)

    def version(self) -> str:
        return f"restq {restq.__version__}"


class RestqTwoShards(Restq):
    """With two shards, and a realm on each."""

    name = "restq-2"
    shards = 2


class RestqStream(Restq):
    """Over its stream, one operation under way in each connection."""

    name = "restq-stream"
    client = "raw stream"

    def connect(self, index: int) -> Client:
        return StreamRestq(self.address, self.realms)


class RestqPython(Restq):
    """Its Python client."""

    name = "restq-python"
    client = "restq.client"
    team = "threads"
    processes_max = 4

    def connect(self, index: int) -> Client:
        return PythonRestq(self.address, self.realms[0])


class RestqPythonStream(RestqPython):
    """Its Python client over the stream."""

    name = "restq-python-stream"
    client = "restq.client, stream"

    def connect(self, index: int) -> Client:
        return PythonRestq(self.address, self.realms[0], stream=True)


class RestqPipeline(RestqPython):
    """Its Python client over the stream, with many adds of one thread under way."""

    name = "restq-pipeline"
    client = "restq.client, pipeline"

    def connect(self, index: int) -> Client:
        return PipelineRestq(self.address, self.realms[0], stream=True)


class RawRestq(Client):
    """HTTP over a raw socket. It adds to the first of its realms, and takes from whichever has jobs."""

    def __init__(self, address: Address, realms: Sequence[str]) -> None:
        self.address = address
        self.replies: Replies = HttpReplies()
        self._realms = list(realms)

    def add(self, number: int, data_bytes: int) -> Op[None]:
        body = f'{{"queue_id":0,"data":"{payload(number, data_bytes)}"}}'.encode()
        yield "add", self._put(_ID_OF(number), body)

    def ready(self, numbers: Sequence[int], data_bytes: int) -> bytes:
        jobs = ",".join(
            f'{{"job_id":"{_ID_OF(number)}","queue_id":0,"data":"{payload(number, data_bytes)}"}}' for number in numbers
        )
        return self._post("jobs", f'{{"jobs":[{jobs}]}}'.encode())

    def add_many(self, ready: bytes) -> Op[None]:
        yield "bulk add", ready

    def take(self) -> Op[int | None]:
        reply = yield from self._pull(1)
        lease = _LEASE.search(reply)
        if lease is None:
            return None
        yield "ack", self._post("ack", b'{"leases":["%s"]}' % lease[1])
        return _number(reply)

    def pull_many(self, count: int) -> Op[tuple[int, Any]]:
        reply = yield from self._pull(count)
        return reply.count(b'"lease_id"'), (self._realms[0], reply)

    def parse(self, pulled: Any) -> tuple[list[int], bytes]:
        realm, reply = pulled
        leases = b",".join(b'"%s"' % lease for lease in _LEASE.findall(reply))
        numbers = [int(number) for number in _NUMBER.findall(reply)]
        return numbers, self._post("ack", b'{"leases":[%s]}' % leases, realm)

    def ack_many(self, leases: bytes) -> Op[None]:
        yield "bulk ack", leases

    def work(self, count: int, record: Record) -> Op[None]:
        """`exchange`: one request finishes a job and takes the next."""
        reply = yield from self._pull(1)
        for left in range(count - 1, -1, -1):
            lease = _LEASE.search(reply)
            if lease is None or record.is_over:
                return
            record.seen.append(_number(reply))
            started = perf_counter()
            pull = b',"pull":{"count":1}' if left else b""
            reply = yield "exchange", self._post("exchange", b'{"ack":{"leases":["%s"]}%s}' % (lease[1], pull))
            record.did(1, started)

    def _pull(self, count: int) -> Op[bytes]:
        for _ in self._realms:
            reply: bytes = yield "pull", self._post("pull", b'{"count":%d}' % count)
            if b'"lease_id"' in reply:
                break
            self._realms.append(self._realms.pop(0))
        return reply

    def _put(self, job_id: str, body: bytes) -> bytes:
        return request("PUT", f"/{self._realms[0]}/job/{job_id}", body)

    def _post(self, what: str, body: bytes, realm: str | None = None) -> bytes:
        return request("POST", f"/{realm or self._realms[0]}/{what}", body)


class StreamRestq(RawRestq):
    """The stream over a raw socket."""

    def __init__(self, address: Address, realms: Sequence[str]) -> None:
        super().__init__(address, realms)
        self.replies = websocket.Replies()

    def open(self) -> Op[None]:
        yield "open", websocket.opening(f"/{self._realms[0]}/stream")

    def _put(self, job_id: str, body: bytes) -> bytes:
        return websocket.message(msgpack.packb([1, "add_job", [job_id], body]))

    def _post(self, what: str, body: bytes, realm: str | None = None) -> bytes:
        return websocket.message(msgpack.packb([1, "add_jobs" if what == "jobs" else what, [], body]))


class PythonRestq(Client):
    """`restq.client`, as its users have it."""

    def __init__(self, address: Address, realm: str, stream: bool = False) -> None:
        self._uri = f"http://{address[0]}:{address[1]}"
        self._name = realm
        self._stream = stream

    def open(self) -> Op[None]:
        self._realm = Realm(self._name, self._uri, stream=self._stream)
        yield from ()

    def close(self) -> Op[None]:
        self._realm.close()
        yield from ()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        self._realm.add(_ID_OF(number), 0, payload(number, data_bytes))
        yield from ()

    def ready(self, numbers: Sequence[int], data_bytes: int) -> list[dict[str, Any]]:
        return [{"job_id": _ID_OF(number), "queue_id": 0, "data": payload(number, data_bytes)} for number in numbers]

    def add_many(self, ready: list[dict[str, Any]]) -> Op[None]:
        self._realm.bulk_add(ready)
        yield from ()

    def take(self) -> Op[int | None]:
        jobs = self._realm.pull_jobs(1)
        yield from ()
        if not jobs:
            return None
        self._realm.ack(jobs)
        return int(jobs[0].data[:NUMBER_DIGITS])

    def pull_many(self, count: int) -> Op[tuple[int, Any]]:
        jobs = self._realm.pull_jobs(count)
        yield from ()
        return len(jobs), jobs

    def parse(self, pulled: Any) -> tuple[list[int], Any]:
        return [int(job.data[:NUMBER_DIGITS]) for job in pulled], pulled

    def ack_many(self, leases: Any) -> Op[None]:
        self._realm.ack(leases)
        yield from ()

    def work(self, count: int, record: Record) -> Op[None]:
        """`exchange`: one call finishes a job and takes the next."""
        jobs = self._realm.pull_jobs(1)
        for left in range(count - 1, -1, -1):
            if record.is_over:
                return
            if not jobs:
                raise LoadError("there is no job left to work on where there must be one")
            record.seen.append(int(jobs[0].data[:NUMBER_DIGITS]))
            started = perf_counter()
            reply = self._realm.exchange(ack=jobs[0], pull={"count": 1} if left else None)
            record.did(1, started)
            if left:
                jobs = reply["pull"]["jobs"]
        yield from ()


class PipelineRestq(PythonRestq):
    """Adds that wait only for those that are `UNDER_WAY` calls behind."""

    def open(self) -> Op[None]:
        yield from super().open()
        self._pipeline = self._realm.pipeline().__enter__()
        self._under_way: deque[Any] = deque()

    def close(self) -> Op[None]:
        self._pipeline.__exit__(None, None, None)
        yield from super().close()

    def settle(self) -> Op[None]:
        while self._under_way:
            self._under_way.popleft().result()
        yield from ()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        self._under_way.append(self._pipeline.add(_ID_OF(number), 0, payload(number, data_bytes)))
        if len(self._under_way) > UNDER_WAY:
            self._under_way.popleft().result()
        yield from ()


def _number(reply: bytes) -> int:
    found = _NUMBER.search(reply)
    if found is None:
        raise LoadError(f"a job without its number: {reply[:200]!r}")
    return int(found[1])
