"""Celery on Redis: `apply_async`, and a worker of the pool `solo` that acknowledges a task after it ran."""

from __future__ import annotations

import warnings
from importlib import metadata
from typing import Any

from celery import Celery
from celery.worker import state

from bench.peers.daemon import HOST
from bench.peers.noop import RUNS, noop
from bench.peers.peer import Client, NotOffered, Op, Record, payload
from bench.peers.redis_server import OnRedis

QUEUE = "celery"
WORKER = {
    "pool": "solo",
    "concurrency": 1,
    "loglevel": "ERROR",
    "without_gossip": True,
    "without_mingle": True,
    "without_heartbeat": True,
    "quiet": True,
}


class CeleryRedis(OnRedis):
    """Celery on Redis."""

    name = "celery"
    client = "celery"

    def connect(self, index: int) -> Client:
        return CeleryClient(self.port)

    def left(self) -> int:
        redis = self.redis()
        return int(redis.llen(QUEUE)) + int(redis.hlen("unacked"))

    def version(self) -> str:
        return f"{super().version()}, celery {metadata.version('celery')}"


class CeleryClient(Client):
    """A producer, or a worker that is a whole process."""

    def __init__(self, port: int) -> None:
        self._port = port

    def open(self) -> Op[None]:
        self._app = Celery("bench", broker=f"redis://{HOST}:{self._port}/0", set_as_current=False)
        self._app.conf.update(task_acks_late=True, task_ignore_result=True, worker_redirect_stdouts=False)
        self._task: Any = self._app.task(noop, name="noop")
        yield from ()

    def close(self) -> Op[None]:
        self._app.close()
        yield from ()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        self._task.apply_async((payload(number, data_bytes),))
        yield from ()

    def take(self) -> Op[int | None]:
        raise NotOffered("its workers take tasks by themselves, and run them")

    def pull_many(self, count: int) -> Op[tuple[int, Any]]:
        raise NotOffered("its workers take tasks one by one")

    def work(self, count: int, record: Record) -> Op[None]:
        """A worker, until so many tasks ran."""
        RUNS.begin(count, record.ends_at, _stop)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of being run by root, at length
            self._app.Worker(**WORKER).start()
        RUNS.tell(record)
        yield from ()


def _stop() -> None:
    """End this process's worker once the task that runs is acknowledged."""
    state.should_stop = 0
