"""RQ: `enqueue`, `enqueue_many`, and its SimpleWorker, which runs jobs in its own process."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from rq import Queue, SimpleWorker
from rq.registry import StartedJobRegistry

from bench.peers.noop import RUNS, noop
from bench.peers.peer import Client, NotOffered, Op, Record, payload
from bench.peers.redis_server import OnRedis

RESULT_SECONDS = 0  # a job that ran is gone, as with the others
QUEUE = "bench"


class RqRedis(OnRedis):
    """RQ on Redis."""

    name = "rq"
    client = "rq"

    def connect(self, index: int) -> Client:
        return RqClient(self)

    def left(self) -> int:
        queue = Queue(QUEUE, connection=self.redis())
        return int(queue.count) + len(StartedJobRegistry(queue=queue).get_job_ids())

    def version(self) -> str:
        return f"{super().version()}, rq {metadata.version('rq')}"


class RqClient(Client):
    """A producer, or a worker that is a whole process."""

    def __init__(self, peer: RqRedis) -> None:
        self._peer = peer

    def open(self) -> Op[None]:
        self._redis = self._peer.redis()
        self._queue = Queue(QUEUE, connection=self._redis)
        yield from ()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        self._queue.enqueue(noop, payload(number, data_bytes), result_ttl=RESULT_SECONDS)
        yield from ()

    def ready(self, numbers: Sequence[int], data_bytes: int) -> list[str]:
        return [payload(number, data_bytes) for number in numbers]

    def add_many(self, ready: Any) -> Op[None]:
        self._queue.enqueue_many(
            [Queue.prepare_data(noop, (data,), result_ttl=RESULT_SECONDS) for data in ready],
        )
        yield from ()

    def take(self) -> Op[int | None]:
        raise NotOffered("its workers take jobs by themselves, and run them")

    def pull_many(self, count: int) -> Op[tuple[int, Any]]:
        raise NotOffered("its workers take jobs one by one")

    def work(self, count: int, record: Record) -> Op[None]:
        """`SimpleWorker`, until so many jobs ran."""
        RUNS.begin(count, record.ends_at, lambda: signal.raise_signal(signal.SIGTERM))
        SimpleWorker([self._queue], connection=self._redis).work(burst=True, logging_level="ERROR")
        RUNS.tell(record)
        yield from ()
