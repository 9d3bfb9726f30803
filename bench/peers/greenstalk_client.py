"""beanstalkd with its log synced at each write, by greenstalk, the Python client that its list of clients names."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import greenstalk

from bench.connection import Address
from bench.peers.beanstalkd_server import JOB_BYTES_MAX, BeanstalkdSync
from bench.peers.peer import LEASE_SECONDS, NUMBER_DIGITS, Client, NotOffered, Op, payload


class Greenstalk(BeanstalkdSync):
    """beanstalkd `-f0` by greenstalk."""

    name = "greenstalk-f0"
    client = "greenstalk"
    team = "threads"
    processes_max = 4

    def connect(self, index: int) -> Client:
        return GreenstalkClient(self.address)

    def version(self) -> str:
        return f"{super().version()}, greenstalk {metadata.version('greenstalk')}"


class GreenstalkClient(Client):
    """One connection of it. It knows no batches."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def open(self) -> Op[None]:
        self._client = greenstalk.Client(self._address)
        yield from ()

    def close(self) -> Op[None]:
        self._client.close()
        yield from ()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        assert data_bytes < JOB_BYTES_MAX, "the server is started so that it takes this"
        self._client.put(payload(number, data_bytes), ttr=LEASE_SECONDS)
        yield from ()

    def pull_many(self, count: int) -> Op[tuple[int, Any]]:
        raise NotOffered("greenstalk has no bulk way; for jobs that stay leased see beanstalkd-f0")

    def take(self) -> Op[int | None]:
        yield from ()
        try:
            job = self._client.reserve(timeout=0)
        except greenstalk.TimedOutError:
            return None
        self._client.delete(job)
        return int(job.body[:NUMBER_DIGITS])
