"""What a peer is to the bench: a server that is started, and clients that add, take and finish jobs.

Each operation of a client is a generator, so that one set of works (`works.py`) drives all kinds of clients: one
over raw sockets yields its requests, one on asyncio what it awaits, and one that blocks yields nothing. `teams.py`
runs each kind.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, TypeVar

from bench.peers.daemon import Daemon
from bench.server import Process

LEASE_SECONDS = 86_400  # no lease may end during a measurement
NUMBER_DIGITS = 20

T = TypeVar("T")
Op = Generator[Any, Any, T]


def payload(number: int, data_bytes: int) -> str:
    """A job's data: its number, by which it is known again when it is taken, and filling."""
    return f"{number:0{NUMBER_DIGITS}d}".ljust(data_bytes, "x")


class NotOffered(Exception):
    """The peer has no such operation: the sentence says why."""


@dataclass
class Record:
    """What one process of clients did in one work. The clock of each latency is `perf_counter`."""

    jobs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    seen: array[int] = field(default_factory=lambda: array("q"))  # the numbers of the jobs that were taken
    ends_at: float = 0.0  # by perf_counter
    own_seconds: float = 0.0  # of a worker that says itself from when to when it worked, if any
    own_cpu_seconds: float = 0.0
    cut: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the time is up; then what was measured is a part."""
        self.cut = self.cut or perf_counter() > self.ends_at
        return self.cut

    def did(self, jobs: int, started: float) -> None:
        """So many jobs are done by one call that began then."""
        self.latencies.append(perf_counter() - started)
        self.jobs += jobs


class Client:
    """One connection of a peer's client. A peer implements what it has; the rest says that it is not offered."""

    def open(self) -> Op[None]:
        """Connect."""
        yield from ()

    def close(self) -> Op[None]:
        """Disconnect."""
        yield from ()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        """Add one job, as safe as the peer promises once this returns."""
        raise NotOffered("it takes no jobs")

    def settle(self) -> Op[None]:
        """Wait until all that was added is as safe as the peer promises, where `add` did not."""
        yield from ()

    def ready(self, numbers: Sequence[int], data_bytes: int) -> Any:
        """What `add_many` takes for these jobs, made before the clock starts."""
        return [payload(number, data_bytes) for number in numbers]

    def add_many(self, ready: Any) -> Op[None]:
        """Add a batch in the peer's own bulk way."""
        raise NotOffered("it has no bulk way to add")

    def take(self) -> Op[int | None]:
        """Take the next job and finish it: its number, or None if there is none."""
        raise NotOffered("its jobs are not taken one by one")

    def pull_many(self, count: int) -> Op[tuple[int, Any]]:
        """Take a batch and keep it: how many there are, and what `parse` takes. None finished yet."""
        raise NotOffered("what it hands out is gone: it has no leases")

    def parse(self, pulled: Any) -> tuple[list[int], Any]:
        """The numbers of a pulled batch, and what `ack_many` takes to finish it. Outside of the clock."""
        raise NotOffered("what it hands out is gone: it has no leases")

    def ack_many(self, leases: Any) -> Op[None]:
        """Finish a batch."""
        raise NotOffered("what it hands out is gone: it has no leases")

    def work(self, count: int, record: Record) -> Op[None]:
        """A worker that takes and finishes jobs one after the other, as the peer's users have it."""
        for _ in range(count):
            if record.is_over:
                return
            started = perf_counter()
            number = yield from self.take()
            if number is None:
                return
            record.seen.append(number)
            record.did(1, started)


class Peer:
    """A server that can be started on a new directory, and what is to be known of it."""

    name: ClassVar[str]
    client: ClassVar[str]  # which client it is measured with
    promise: ClassVar[str]  # what is safe when a call returns
    team: ClassVar[str]  # how its clients run: a name in `teams.TEAMS`
    processes_max: ClassVar[int] = 1  # of clients: one thread that costs next to nothing will do for most
    workers_max: ClassVar[int] = 0  # where jobs are taken by workers, a process each: how many there are at most

    daemon: Daemon | None = None  # the server, while it runs, where it is one command

    def start(self, folder: Path) -> None:
        """Start it on a directory that is new and empty."""

    def stop(self) -> None:
        """End what was started, if anything was."""
        if self.daemon is not None:
            self.daemon.stop()
            self.daemon = None

    def processes(self) -> list[Process]:
        """Those of the server, whose CPU time and memory count as its own."""
        return self.daemon.processes() if self.daemon is not None else []

    def connect(self, index: int) -> Client:
        """The client number `index`. It opens nothing before its `open`."""
        raise NotImplementedError

    def left(self) -> int | None:
        """How many jobs the server holds, waiting and leased; None if it keeps none."""
        raise NotImplementedError

    def version(self) -> str:
        """Of the server and of the client."""
        raise NotImplementedError
