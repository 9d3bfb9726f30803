"""beanstalkd: in memory, with its log, and with its log synced at each write; over raw sockets, and by greenstalk."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.connection import Address, LoadError
from bench.peers.daemon import HOST, Daemon, free_port, listens
from bench.peers.peer import LEASE_SECONDS, NUMBER_DIGITS, Client, Op, Peer, payload

JOB_BYTES_MAX = 1 << 20
WAL_BYTES = 10 << 20  # of each file of the log: its own default
NO_JOB = b"TIMED_OUT\r\n"


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
        self.daemon = Daemon(command, folder, lambda: listens(port))
        self.address: Address = (HOST, port)

    def connect(self, index: int) -> Client:
        return RawBeanstalkd(self.address)

    def left(self) -> int:
        said = counts(self.address)
        return sum(int(said[f"current-jobs-{state}"]) for state in ("ready", "reserved", "delayed", "buried"))

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
    """As many replies as there are commands in a request, all of them together.

    They are counted by their lines, which costs next to nothing: no data of a job has one of its own.
    """

    def __init__(self) -> None:
        self._word, self._count, self._lines = b"", 0, 0
        self._chunks: list[bytes] = []

    def expect(self, word: bytes, count: int) -> None:
        """What each of the next replies begins with."""
        self._word, self._count = word, count
        self._lines = count * (2 if word == b"RESERVED" else 1)

    def feed(self, chunk: bytes) -> bytes | None:
        self._chunks.append(chunk)
        self._lines -= chunk.count(b"\n")
        if self._lines > 0 and not chunk.endswith(NO_JOB):
            return None
        reply = b"".join(self._chunks)
        self._chunks = []
        if reply.count(self._word) != self._count and reply != NO_JOB:
            raise LoadError(f"not all of {self._count:,} replies are {self._word.decode()}: {reply[:200]!r}")
        return reply


class RawBeanstalkd(Client):
    """Its protocol over a raw socket. A batch is so many commands at once: it has none for many jobs."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.replies = BeanstalkReplies()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        yield from self._sent(b"INSERTED", put(number, data_bytes), 1)

    def ready(self, numbers: Sequence[int], data_bytes: int) -> tuple[int, bytes]:
        return len(numbers), b"".join(put(number, data_bytes) for number in numbers)

    def add_many(self, ready: tuple[int, bytes]) -> Op[None]:
        count, commands = ready
        yield from self._sent(b"INSERTED", commands, count)

    def take(self) -> Op[int | None]:
        reply = yield from self._sent(b"RESERVED", b"reserve-with-timeout 0\r\n", 1)
        if reply == NO_JOB:
            return None
        head, _, data = reply.partition(b"\r\n")
        yield from self._sent(b"DELETED", b"delete %s\r\n" % head.split(b" ")[1], 1)
        return int(data[:NUMBER_DIGITS])

    def pull_many(self, count: int) -> Op[tuple[int, Any]]:
        replies = yield from self._sent(b"RESERVED", b"reserve-with-timeout 0\r\n" * count, count)
        return count, replies

    def parse(self, pulled: bytes) -> tuple[list[int], tuple[int, bytes]]:
        numbers, deletes, at = [], [], 0
        while at < len(pulled):
            end = pulled.index(b"\r\n", at)
            _, job_id, data_bytes = pulled[at:end].split(b" ")
            numbers.append(int(pulled[end + 2 : end + 2 + NUMBER_DIGITS]))
            deletes.append(b"delete %s\r\n" % job_id)
            at = end + 2 + int(data_bytes) + 2
        return numbers, (len(deletes), b"".join(deletes))

    def ack_many(self, leases: tuple[int, bytes]) -> Op[None]:
        count, commands = leases
        yield from self._sent(b"DELETED", commands, count)

    def _sent(self, word: bytes, commands: bytes, count: int) -> Op[bytes]:
        self.replies.expect(word, count)
        reply: bytes = yield word.decode(), commands
        return reply


def put(number: int, data_bytes: int) -> bytes:
    """The command that adds a job."""
    data = payload(number, data_bytes).encode()
    return b"put 0 0 %d %d\r\n%s\r\n" % (LEASE_SECONDS, len(data), data)


def counts(address: Address) -> dict[str, str]:
    """What it says of itself."""
    with socket.create_connection(address) as connection, connection.makefile("rwb") as stream:
        stream.write(b"stats\r\n")
        stream.flush()
        said = stream.read(int(stream.readline().split()[1])).decode()
    return dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
