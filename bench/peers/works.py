"""The works: what each client of a process does between start and stop of the clock, the same for all peers.

A work is called before the clock starts and makes ready what it can; the script that it returns is what is timed.
Clients of one process share the `Share`: whichever is free does the next job; batches are dealt in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from bench.connection import LoadError
from bench.peers.peer import Client, Op, Record


@dataclass
class Share:
    """What the clients of one process have to do, and what they did."""

    numbers: range  # of the jobs to add, or as many as there are to take
    data_bytes: int
    batch: int
    record: Record
    members: int = 1
    turns: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self.turns = iter(self.numbers)

    def batches(self, position: int) -> list[range]:
        """Those of the client in this place of the process."""
        starts = range(0, len(self.numbers), self.batch)[position :: self.members]
        return [self.numbers[at : at + self.batch] for at in starts]


@dataclass
class Member:
    """A client, and the batches that it pulled and has not finished yet."""

    client: Client
    position: int = 0  # in its process
    pulled: list[tuple[int, Any]] = field(default_factory=list)


def add(member: Member, share: Share) -> Op[None]:
    """One job a call."""

    def script() -> Op[None]:
        for number in share.turns:
            if share.record.is_over:
                return
            started = perf_counter()
            yield from member.client.add(number, share.data_bytes)
            share.record.did(1, started)
        yield from member.client.settle()

    return script()


def take(member: Member, share: Share) -> Op[None]:
    """One job is taken and finished, then the next."""

    def script() -> Op[None]:
        for _ in share.turns:
            if share.record.is_over:
                return
            started = perf_counter()
            number = yield from member.client.take()
            if number is None:
                raise LoadError("there is no job left to take where there must be one")
            share.record.seen.append(number)
            share.record.did(1, started)

    return script()


def work(member: Member, share: Share) -> Op[None]:
    """One worker in the way that the peer's users have it."""
    assert share.members == 1, "a worker is the only one of its process"
    return member.client.work(len(share.numbers), share.record)


def bulk_add(member: Member, share: Share) -> Op[None]:
    """A batch a call, in the peer's own bulk way."""
    readies = [
        (len(numbers), member.client.ready(numbers, share.data_bytes)) for numbers in share.batches(member.position)
    ]
    return _sent(readies, member.client.add_many, share.record)


def bulk_pull(member: Member, share: Share) -> Op[None]:
    """A batch a call, and all are kept, by this client, for `bulk_ack`."""
    return _pulled(member, share, member.pulled.append)


def lease(member: Member, share: Share) -> Op[None]:
    """As `bulk_pull`, but these stay leased until the client disconnects."""
    return _pulled(member, share, lambda _: None)


def bulk_ack(member: Member, share: Share) -> Op[None]:
    """A batch a call: those that `bulk_pull` kept."""
    leases = []
    for count, pulled in member.pulled:
        numbers, finished = member.client.parse(pulled)
        assert len(numbers) == count, "what was counted is what was parsed"
        share.record.seen.extend(numbers)
        leases.append((count, finished))
    member.pulled = []
    return _sent(leases, member.client.ack_many, share.record)


def cycle(member: Member, share: Share) -> Op[None]:
    """Add a job, then take the next one and finish it; what is measured is all of it."""

    def script() -> Op[None]:
        for number in share.turns:
            if share.record.is_over:
                return
            started = perf_counter()
            yield from member.client.add(number, share.data_bytes)
            taken = yield from member.client.take()
            if taken is None:
                raise LoadError("there is no job to take right after one was added")
            share.record.seen.append(taken)
            share.record.did(1, started)

    return script()


def _pulled(member: Member, share: Share, keep: Callable[[tuple[int, Any]], None]) -> Op[None]:
    for numbers in share.batches(member.position):
        missing = len(numbers)
        while missing and not share.record.is_over:
            started = perf_counter()
            count, pulled = yield from member.client.pull_many(missing)
            if not count:
                raise LoadError("there is no job left to pull where there must be one")
            share.record.did(count, started)
            keep((count, pulled))
            missing -= count


def _sent(readies: list[tuple[int, Any]], send: Callable[[Any], Op[None]], record: Record) -> Op[None]:
    for count, ready in readies:
        if record.is_over:
            return
        started = perf_counter()
        yield from send(ready)
        record.did(count, started)


WORKS: dict[str, Callable[[Member, Share], Op[None]]] = {
    "add": add,
    "take": take,
    "work": work,
    "bulk add": bulk_add,
    "fill": bulk_add,
    "bulk pull": bulk_pull,
    "lease": lease,
    "bulk ack": bulk_ack,
    "cycle": cycle,
}
