"""Clients in processes of their own: they are forked, connect, do work after work, and say what it took."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Channel
from typing import Any

from bench.connection import LoadError
from bench.peers.peer import NotOffered, Peer, Record
from bench.peers.teams import TEAMS, Team
from bench.peers.works import WORKS, Member, Share

SPARE_SECONDS = 240.0  # beside the time limit of a work: to make it ready, and for the last call of each client
END_SECONDS_MAX = 5.0


@dataclass(frozen=True)
class Order:
    """A work for all clients of a process."""

    work: str
    numbers: range
    data_bytes: int
    batch: int
    seconds_max: float


@dataclass(frozen=True)
class Outcome:
    """What all processes did in one work, at the same time."""

    jobs: int
    seconds: float  # of the process that took the longest
    latencies: list[float]
    seen: list[int]
    cpu_seconds: float
    busiest: float  # CPU time over time, of the process where it is the most
    cut: bool


class Crew:
    """Clients of a peer, in so many processes as `shape` has numbers, and so many in each. Leave it with `close`."""

    def __init__(self, peer: Peer, shape: Sequence[int]) -> None:
        context = multiprocessing.get_context("fork")
        self._shape = shape
        self._channels: list[Channel] = []
        self._processes = []
        first = 0
        for count in shape:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(peer, range(first, first + count), theirs, [*self._channels, ours]), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._channels.append(ours)
            first += count
        try:
            self._gathered(SPARE_SECONDS)
        except BaseException:
            self.close()
            raise

    def run(self, work: str, numbers: range, data_bytes: int, batch: int, seconds_max: float) -> Outcome:
        """All processes do their part of the work, from one moment on."""
        whole, done, first = sum(self._shape), 0, numbers.start
        for channel, count in zip(self._channels, self._shape, strict=True):
            done += count
            end = numbers.start + len(numbers) * done // whole
            channel.send(Order(work, range(first, end), data_bytes, batch, seconds_max))
            first = end
        self._gathered(SPARE_SECONDS)
        for channel in self._channels:
            channel.send("go")
        records: list[Record] = self._gathered(seconds_max + SPARE_SECONDS)
        return Outcome(
            jobs=sum(record.jobs for record in records),
            seconds=max(record.seconds for record in records),
            latencies=[latency for record in records for latency in record.latencies],
            seen=[number for record in records for number in record.seen],
            cpu_seconds=sum(record.cpu_seconds for record in records),
            busiest=max(record.cpu_seconds / max(record.seconds, 1e-9) for record in records),
            cut=any(record.cut for record in records),
        )

    def close(self) -> None:
        """Disconnect all clients; what they hold goes back, where the peer has it so. Those at work are killed."""
        for channel in self._channels:
            try:
                channel.send(None)
            except OSError:  # that one has ended
                continue
        ends_at = time.perf_counter() + END_SECONDS_MAX
        for process in self._processes:
            process.join(max(0.0, ends_at - time.perf_counter()))
            if process.is_alive():
                process.kill()
                process.join()
        for channel in self._channels:
            channel.close()

    def _gathered(self, seconds_max: float) -> list[Any]:
        """What each process says next. Raises the first failure that one of them had."""
        said = []
        ends_at = time.perf_counter() + seconds_max
        for channel in self._channels:
            if not channel.poll(max(0.0, ends_at - time.perf_counter())):
                raise LoadError(f"a process of clients said nothing for {seconds_max:.0f} s")
            try:
                said.append(channel.recv())
            except EOFError:
                raise LoadError("a process of clients ended") from None
        for word in said:
            if isinstance(word, Exception):
                raise word
        return said


def _serve(peer: Peer, indexes: range, channel: Channel, others: list[Channel]) -> None:
    """The life of one process: connect, then work after work until there is none or one failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, and ends this one
    for other in others:
        other.close()
    gc.freeze()
    try:
        team = TEAMS[peer.team]()
        members = [Member(peer.connect(index), place) for place, index in enumerate(indexes)]
        team.open([member.client for member in members])
        channel.send("open")
        while (order := _next(channel)) is not None:
            try:
                channel.send(_done(team, members, order, channel))
            except NotOffered as reason:
                channel.send(NotOffered(*reason.args))
        team.close()
    except BaseException as error:
        channel.send(_said(error))


def _done(team: Team, members: Sequence[Member], order: Order, channel: Channel) -> Record:
    record = Record()
    share = Share(order.numbers, order.data_bytes, order.batch, record, len(members))
    scripts = [WORKS[order.work](member, share) for member in members]
    channel.send("ready")
    channel.recv()
    record.ends_at = time.perf_counter() + order.seconds_max
    before = time.process_time()
    took = team.run(scripts)
    record.seconds = record.own_seconds or took
    record.cpu_seconds = record.own_cpu_seconds or time.process_time() - before
    return record


def _next(channel: Channel) -> Order | None:
    try:
        order: Order | None = channel.recv()
    except EOFError:
        return None
    return order


def _said(error: BaseException) -> Exception:
    """The error as one that goes through a pipe, whatever it held."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, LoadError):
        return LoadError(*error.args)
    return LoadError(f"{type(error).__name__}: {error}")
