"""The loop of a shard over a store that the test holds back: what leaves when, and what a failing store leaves."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from restq.errors import StorageFull
from restq.protocol import Reply
from restq.shards.actor import Mail
from restq.shards.changes import Changes
from restq.shards.memory_store import MemoryStore
from restq.shards.process import Clock, ShardProcess
from restq.shards.store import Mark, StoreFailed


class HeldStore(MemoryStore):
    """Commits when it is let go, or fails as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self.failure: Exception | None = None
        self.groups: list[int] = []

    async def commit(self, changes: Changes, mark: Mark) -> None:
        self.asked.set()
        await self.go.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.groups.append(len(changes.jobs))
        await super().commit(changes, mark)


class Rig:
    """A process over a held store, and a sender that keeps what it is replied."""

    is_gone = False

    def __init__(self, folder: Path) -> None:
        self.store = HeldStore()
        settings = {"index": 0, "count": 1, "elsewhere": {}, "sockets": [], "path": str(folder / "x")}
        settings["default_lease_time"] = 600.0
        self.process = ShardProcess(settings, self.store)
        self.replies: dict[int, Reply] = {}
        self.replied = asyncio.Event()

    def reply(self, reply: Reply) -> None:
        self.replies[reply.request_id] = reply

    def flush(self) -> None:
        self.replied.set()

    async def drain(self) -> None:
        """All was taken."""

    def send(self, request_id: int, operation: str, params: list[Any], body: Any = None) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        self.process.shard.receive(Mail(self, 1.0, request_id, operation, "r", params, text))
        self.process.wake()

    async def settle(self) -> None:
        """Let everything run that can run while the store is held."""
        for _ in range(20):
            await asyncio.sleep(0)


def test_turn_replies_to_nobody_before_its_commit_and_commits_once(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        loop = asyncio.ensure_future(rig.process.run())
        for number in range(3):
            rig.send(number, "add_job", [f"j{number}"], {"queue_id": 0})
        rig.send(3, "get_status", [])
        rig.send(4, "pull_2013", [5, None])
        await rig.store.asked.wait()
        rig.send(5, "get_status", [])
        await rig.settle()
        assert rig.replies == {}, "not even a read shows what is not kept"
        rig.store.go.set()
        await rig.replied.wait()
        await rig.settle()
        assert sorted(rig.replies) == [0, 1, 2, 3, 4, 5]
        assert json.loads(rig.replies[3].body)["total_jobs"] == 3
        assert list(json.loads(rig.replies[4].body)) == ["j0", "j1", "j2"]
        assert rig.store.groups == [3], "what arrived together was one group"
        rig.process.stop()
        await loop

    asyncio.run(run())


def test_turn_whose_store_fails_replies_to_nobody_and_ends_the_process(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        rig.store.failure = StoreFailed("the disk is gone")
        rig.store.go.set()
        rig.send(1, "add_job", ["j"], {"queue_id": 0})
        rig.send(2, "get_status", [])
        with pytest.raises(StoreFailed):
            await rig.process.run()
        assert rig.replies == {}

    asyncio.run(run())


def test_turn_that_finds_the_disk_full_refuses_the_change_and_reads_what_is_kept(tmp_path: Path) -> None:
    async def run() -> None:
        rig = Rig(tmp_path)
        rig.store.failure = StorageFull("there is no room left on the disk: nothing was done")
        rig.store.go.set()
        rig.send(1, "add_job", ["j"], {"queue_id": 0})
        rig.send(2, "get_status", [])
        rig.process.stop()
        await rig.process.run()
        assert rig.replies[1].status == 507
        assert rig.replies[2].status == 200
        assert json.loads(rig.replies[2].body)["total_jobs"] == 0

    asyncio.run(run())


def test_clock_never_falls_behind_what_the_store_has_seen() -> None:
    ahead = 4_000_000_000.0  # the wall clock was there once
    assert Clock(ahead).now() >= ahead


def test_clock_goes_on_while_the_wall_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0.0)
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= clock.now() < before + 60.0
