"""NATS JetStream with its files synced at each write: a work queue stream and one pull consumer that all share."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Coroutine, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from bench.peers.daemon import HOST, Daemon, free_port, listens
from bench.peers.peer import LEASE_SECONDS, NUMBER_DIGITS, Client, Op, Peer, payload
from bench.peers.roster import program

STREAM, SUBJECT, CONSUMER = "bench", "jobs", "workers"
ANSWER_SECONDS_MAX = 120.0
EMPTY_SECONDS = 2.0  # that a fetch waits for the first message


class NatsJetstream(Peer):
    """JetStream with `sync_interval: always`."""

    name = "nats"
    client = "nats-py"
    promise = "synced before the answer"
    team = "loop"
    processes_max = 4

    def start(self, folder: Path) -> None:
        port = free_port()
        self._url = f"nats://{HOST}:{port}"
        settings = folder / "nats.conf"
        settings.write_text(
            f"listen: {HOST}:{port}\njetstream {{ store_dir: {str(folder)!r}, sync_interval: always }}\n"
        )
        command = program("nats-server")
        assert command is not None, "the roster looked for it"
        self.daemon = Daemon([command, "-c", str(settings)], folder, lambda: listens(port))
        asyncio.run(self._asked(_declare))

    def connect(self, index: int) -> Client:
        return NatsClient(self._url)

    def left(self) -> int:
        return int(asyncio.run(self._asked(_messages)))

    async def _asked(self, ask: Any) -> Any:
        connection = await nats.connect(self._url)
        try:
            return await ask(connection.jetstream(timeout=ANSWER_SECONDS_MAX))
        finally:
            await connection.close()

    def version(self) -> str:
        server = subprocess.run([program("nats-server") or "", "--version"], capture_output=True, text=True, check=True)
        return f"{server.stdout.strip()}, nats-py {metadata.version('nats-py')}"


class NatsClient(Client):
    """One connection on an asyncio loop."""

    def __init__(self, url: str) -> None:
        self._url = url

    def open(self) -> Op[None]:
        self._connection = yield nats.connect(self._url)
        self._stream = self._connection.jetstream(timeout=ANSWER_SECONDS_MAX)
        self._messages = yield self._stream.pull_subscribe_bind(CONSUMER, STREAM)

    def close(self) -> Op[None]:
        yield self._connection.close()

    def add(self, number: int, data_bytes: int) -> Op[None]:
        yield self._stream.publish(SUBJECT, payload(number, data_bytes).encode())

    def ready(self, numbers: Sequence[int], data_bytes: int) -> list[bytes]:
        return [payload(number, data_bytes).encode() for number in numbers]

    def add_many(self, ready: Any) -> Op[None]:
        """So many published, then all their acknowledgements awaited."""
        yield self._published(ready)

    def take(self) -> Op[int | None]:
        messages = yield self._fetched(1)
        if not messages:
            return None
        yield messages[0].ack_sync(timeout=ANSWER_SECONDS_MAX)
        return int(messages[0].data[:NUMBER_DIGITS])

    def pull_many(self, count: int) -> Op[tuple[int, Any]]:
        messages = yield self._fetched(count)
        return len(messages), messages

    def parse(self, pulled: Any) -> tuple[list[int], Any]:
        return [int(message.data[:NUMBER_DIGITS]) for message in pulled], pulled

    def ack_many(self, leases: Any) -> Op[None]:
        """So many acknowledged, then the server's word awaited for all of them."""
        yield _all([message.ack_sync(timeout=ANSWER_SECONDS_MAX) for message in leases])

    async def _published(self, ready: Sequence[bytes]) -> None:
        await asyncio.gather(*[await self._stream.publish_async(SUBJECT, data) for data in ready])

    async def _fetched(self, count: int) -> list[Any]:
        try:
            messages: list[Any] = await self._messages.fetch(count, timeout=EMPTY_SECONDS)
        except nats.errors.TimeoutError:
            return []
        return messages


async def _all(waited: Sequence[Coroutine[Any, Any, Any]]) -> None:
    await asyncio.gather(*waited)


async def _declare(stream: Any) -> None:
    await stream.add_stream(
        StreamConfig(name=STREAM, subjects=[SUBJECT], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE)
    )
    await stream.add_consumer(
        STREAM,
        ConsumerConfig(
            durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT, ack_wait=LEASE_SECONDS, max_ack_pending=-1
        ),
    )


async def _messages(stream: Any) -> int:
    count: int = (await stream.stream_info(STREAM)).state.messages
    return count
