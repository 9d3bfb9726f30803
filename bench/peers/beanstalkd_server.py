"""beanstalkd: in memory, with its log, and with its log synced at each write; over raw sockets, and by greenstalk."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.connection import Address, LoadError
from bench.peers.daemon import HOST, Daemon, free_port, listens
from bench.peers.peer import LEASE_SECONDS, Client, Op, Peer, payload
from bench.server import Process

JOB_BYTES_MAX = 1 << 20
WAL_BYTES = 10 << 20  # of each file of the log: its own default
_WITH_DATA = (b"RESERVED", b"OK")
_WELL = (b"INSERTED", b"RESERVED", b"DELETED", b"TIMED_OUT", b"OK")


class Beanstalkd(Peer):
    """All in memory: what is lost with the process, and so the limit of its protocol."""

    name = "beanstalkd"
    client = "raw sockets"
    promise = "in memory"
    team = "wire"
    processes_max = 2
    options: Sequence[str] = ()

    def start(self, folder: Path) -> None:
        port = free_port()
        options = [option.replace("DIR", str(folder)) for option in self.options]
        command = ["beanstalkd", "-l", HOST, "-p", str(port), "-z", str(JOB_BYTES_MAX), *options]
        self._daemon = Daemon(command, folder, lambda: listens(port))
        self.address: Address = (HOST, port)

    def stop(self) -> None:
        self._daemon.stop()

    def processes(self) -> list[Process]:
        return self._daemon.processes()

    def connect(self, index: int) -> Client:
        return RawBeanstalkd(self.address)

    def left(self) -> int:
        stats = asked(self.address, b"stats\r\n").decode()
        lines = dict(line.split(": ", 1) for line in stats.splitlines() if ": " in line)
        return sum(int(lines[f"current-jobs-{state}"]) for state in ("ready", "reserved", "delayed", "buried"))

    def version(self) -> str:
        return subprocess.run(["beanstalkd", "-v"], capture_output=True, text=True, check=True).stdout.strip()


class BeanstalkdLog(Beanstalkd):
    """With its log, synced every 50 ms: what was answered since is lost with the power."""

    name = "beanstalkd-b"
    promise = "synced every 50 ms"
    options = ("-b", "DIR")


class BeanstalkdSync(Beanstalkd):
    """With its log, synced before each answer."""

    name = "beanstalkd-f0"
    promise = "synced before the answer"
    processes_max = 1
    options = ("-b", "DIR", "-f0")


class BeanstalkReplies:
    """So many replies as there are commands in a request, all of them together."""

    def __init__(self) -> None:
        self.expected = 1
        self._held = b""
        self._at = 0  # where the first reply begins that is not whole yet
        self._found = 0

    def feed(self, chunk: bytes) -> bytes | None:
        held = self._held = self._held + chunk if self._held else chunk
        at = self._at
        while self._found < self.expected:
            end = held.find(b"\r\n", at)
            if end < 0:
                break
            words = held[at:end].split(b" ")
            if words[0] not in _WELL:
                raise LoadError(f"it said {held[at:end]!r}")
            after = end + 2 + (int(words[-1]) + 2 if words[0] in _WITH_DATA else 0)
            if after > len(held):
                break
            at = after
            self._found += 1
        self._at = at
        if self._found < self.expected:
            return None
        self._held, self._at, self._found = b"", 0, 0
        return held


class RawBeanstalkd(Client):
    """Its protocol over a raw socket. A batch is so many commands at once: it has none for many jobs."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.replies = BeanstalkReplies()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        yield from self._sent("put", put(number, data_bytes), 1)

    def ready(self, numbers: Sequence[int], data_bytes: int) -> tuple[int, bytes]:
        return len(numbers), b"".join(put(number, data_bytes) for number in numbers)

    def add_many(self, ready: tuple[int, bytes]) -> Op[None]:
        count, commands = ready
        yield from self._sent("bulk put", commands, count)

    def take(self) -> Op[int | None]:
        reply = yield from self._sent("reserve", b"reserve-with-timeout 0\r\n", 1)
        if not reply.startswith(b"RESERVED"):
            return None
        head, _, data = reply.partition(b"\r\n")
        yield from self._sent("delete", b"delete %s\r\n" % head.split(b" ")[1], 1)
        return int(data[:20])

    def pull_many(self, count: int) -> Op[tuple[int, Any]]:
        replies = yield from self._sent("bulk reserve", b"reserve-with-timeout 0\r\n" * count, count)
        return replies.count(b"RESERVED "), replies

    def parse(self, pulled: bytes) -> tuple[list[int], tuple[int, bytes]]:
        numbers, deletes, at = [], [], 0
        while at < len(pulled):
            end = pulled.index(b"\r\n", at)
            words = pulled[at:end].split(b" ")
            at = end + 2
            if words[0] == b"RESERVED":
                numbers.append(int(pulled[at : at + 20]))
                deletes.append(b"delete %s\r\n" % words[1])
                at += int(words[2]) + 2
        return numbers, (len(deletes), b"".join(deletes))

    def ack_many(self, leases: tuple[int, bytes]) -> Op[None]:
        count, commands = leases
        yield from self._sent("bulk delete", commands, count)

    def _sent(self, kind: str, commands: bytes, count: int) -> Op[bytes]:
        self.replies.expected = count
        reply: bytes = yield kind, commands
        return reply


def put(number: int, data_bytes: int) -> bytes:
    """The command that adds a job."""
    data = payload(number, data_bytes).encode()
    return b"put 0 0 %d %d\r\n%s\r\n" % (LEASE_SECONDS, len(data), data)


def asked(address: Address, command: bytes) -> bytes:
    """What it says to one command, without its first line."""
    replies = BeanstalkReplies()
    with socket.create_connection(address) as connection:
        connection.sendall(command)
        reply = None
        while reply is None:
            reply = replies.feed(connection.recv(1 << 16))
    return reply.partition(b"\r\n")[2]
