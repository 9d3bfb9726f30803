"""The process of one shard: its sockets, its clock and its loop: read all, apply, commit, reply.

Run by the supervisor as `child` says; told to end, it first answers all that arrived. A store that fails ends the
process at once: only the file knows what is true, and the supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, cast

from restq import child, memory
from restq.errors import RestqError, RowDamaged, StorageFull
from restq.loop import run
from restq.placement import Placement
from restq.protocol import Frames, Reply, pack
from restq.shards import moving
from restq.shards.actor import Mail, refusal
from restq.shards.bounds import Bounds
from restq.shards.commands.call import NOTHING
from restq.shards.full import refuse
from restq.shards.shard import Shard
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import Room, Store, StoreFailed, StoreRefused

WRITE_BYTES_MAX = 32 << 20  # of replies that a front end has not taken yet; beyond it the shard waits for it
DRAIN_SECONDS = 10.0
FULL_SECONDS = 1.0  # between two looks whether a disk that was full has room again
FULL_SECONDS_MAX = 4.0  # where it took long to load the file again, as that must not be all that the shard does
MEMORY_STEP_BYTES = 4 << 20  # of jobs that are added before a look at how much memory is left
MEMORY_SECONDS = 0.5  # between two looks while that is too little
BACK_UP = "back_up"  # an operation that is none of the shard, but of its file
SLEEP_SECONDS_MAX = 3600.0  # without a look at the clock

log = logging.getLogger("restq.shard")


class Clock:
    """The time of a shard: the monotonic clock's plus an offset, and never behind `floor`.

    The offset is how far the wall clock was ahead of the monotonic one when the server started: all its shards share
    it, also those that start again. So a wall clock that is set while the server runs neither ends nor prolongs a
    lease, not even where a shard is killed or a realm moves; one that was set back between two runs prolongs none.
    """

    def __init__(self, floor: float, offset: float | None = None) -> None:
        now = time.monotonic()
        self._offset = max(time.time() - now if offset is None else offset, floor - now)

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._offset + time.monotonic()


class Connection(asyncio.Protocol):
    """One front end: its requests in, its replies out, a turn's replies in one write."""

    def __init__(self, process: ShardProcess) -> None:
        self._process = process
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._replies: list[bytes] = []
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def is_gone(self) -> bool:
        """Whether the front end closed it."""
        return self._drained.is_set() and self._transport is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the loop: a front end is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.set_write_buffer_limits(high=WRITE_BYTES_MAX)

    def connection_lost(self, exc: Exception | None) -> None:
        """From the loop: the front end is gone; what it asked for is done all the same."""
        self._transport = None
        self._drained.set()
        self._process.gone(self)

    def data_received(self, data: bytes) -> None:
        """From the loop: requests, whole or in part."""
        arrived_at = time.monotonic()
        process = self._process
        receive = process.shard.receive
        for frame in self._frames.feed(data):
            mail = Mail(self, arrived_at, *frame)
            if mail.operation == BACK_UP:
                process.back_up(mail)
            else:
                receive(mail)
        process.wake()

    def reply(self, reply: Reply) -> None:
        """Send a reply with the next flush."""
        self._replies.append(pack(reply))

    def pause_writing(self) -> None:
        """From the loop: the front end reads more slowly than it is answered."""
        self._drained.clear()

    def resume_writing(self) -> None:
        """From the loop: it caught up."""
        self._drained.set()

    def flush(self) -> None:
        """Send what gathered."""
        if self._replies and self._transport is not None:
            self._transport.write(b"".join(self._replies))
        self._replies.clear()

    async def drain(self) -> None:
        """Wait until the front end has taken what it was sent, but for the last of it; one that stands still is cut."""
        if self._drained.is_set():  # as nearly always
            return
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._drained.wait()
        except TimeoutError:
            log.warning("a front end took no reply for %.0f s and is cut off", DRAIN_SECONDS)
            if self._transport is not None:
                self._transport.abort()


class ShardProcess:
    """The loop of one shard over its store."""

    def __init__(self, settings: dict[str, Any], store: Store) -> None:
        self._settings = settings
        self._store = store
        loaded = store.load()
        self._clock = Clock(loaded.mark.clock, settings.get("clock_offset"))
        self._group = loaded.mark.group
        placement = Placement(settings["count"], settings["elsewhere"])
        bounds = Bounds(settings.get("jobs_max", 0), settings.get("memory_max", 0))
        self.shard = Shard(settings["index"], placement, settings["default_lease_time"], store, random.random, bounds)
        self.shard.load(loaded, self._clock.now())
        self._moves: set[asyncio.Task[None]] = set()
        self._not_there: set[str] = set()  # realms of which the other shard is known to have nothing that counts
        self._backups: set[asyncio.Task[None]] = set()
        self._awake = asyncio.Event()
        self._stopping = False
        self._failure: BaseException | None = None  # of a move: only a new start helps
        self._memory_seen = -MEMORY_STEP_BYTES  # what the jobs held when somebody looked how much memory is left
        self._memory_at = 0.0
        self._room_at = -math.inf  # the next look for room on the disk

    def wake(self) -> None:
        """There may be something to do."""
        self._awake.set()

    def gone(self, sender: Connection) -> None:
        """A front end, or another shard, is gone."""
        self.shard.waking.gone(sender)
        self.shard.arrivals.gone(sender, self._clock.now())
        self.wake()

    def stop(self) -> None:
        """End once all that arrived is answered, but for what waits for a task, which the next start goes on with."""
        self._stopping = True
        self.shard.waking.end(self._clock.now())
        self.wake()

    async def run(self) -> None:
        """Serve until stopped. Raises StoreFailed where only a new start helps."""
        shard = self.shard
        while True:
            now = self._clock.now()
            if now >= self._room_at:
                self._look_for_room(now)
            if self._failure is not None:
                raise self._failure
            if self._stopping and not shard.mailboxes and not shard.outbox:
                return  # what is under way goes on with the next start
            if shard.busy(now) or shard.outbox or (len(shard.changes) and not shard.full):
                await self._turn()
                await asyncio.sleep(0)  # read what arrived meanwhile
                continue
            self._start_moves()
            await self._sleep(min(shard.next_deadline(), self._room_at))

    async def _sleep(self, until: float) -> None:
        """Until something arrives, or until an instant of the shard's clock."""
        self._awake.clear()
        alarm = None
        if until < math.inf:
            delay = min(max(0.0, until - self._clock.now()), SLEEP_SECONDS_MAX)
            alarm = asyncio.get_running_loop().call_later(delay, self.wake)
        await self._awake.wait()
        if alarm is not None:
            alarm.cancel()

    async def _turn(self) -> None:
        shard = self.shard
        started_at = time.monotonic()
        now = self._clock.now()
        if Room.NONE < shard.room < Room.ENOUGH:
            shard.set_room(min(shard.room, self._store.room()))
        self._look_at_memory()
        shard.turn(now)
        changes = shard.take_changes()
        outbox, shard.outbox = shard.outbox, []
        if len(changes):
            commit_at = time.monotonic()
            try:
                await self._store.commit(changes, shard.mark(self._group + 1, now))
            except StorageFull as full:
                outbox = self._roll_back(full, outbox)
            else:
                self._group += 1
                shard.stats.group_count += 1
                shard.stats.row_count += len(changes)
                shard.stats.commit_seconds += time.monotonic() - commit_at
        shard.committed(outbox)
        await self._send(outbox)
        ended_at = time.monotonic()
        for mail, _ in outbox:
            if mail.arrived_at:  # else the shard asked itself
                shard.stats.count_call(mail.operation, ended_at - mail.arrived_at)
        shard.stats.count_turn(started_at, ended_at)
        self._start_moves()

    async def _send(self, outbox: list[tuple[Mail, Reply]]) -> None:
        senders = dict.fromkeys(mail.sender for mail, _ in outbox)  # in order: a simulation is to be the same each time
        for mail, reply in outbox:
            mail.sender.reply(reply)
        for sender in senders:
            sender.flush()
        for sender in senders:
            await sender.drain()

    def _roll_back(self, full: StorageFull, outbox: list[tuple[Mail, Reply]]) -> list[tuple[Mail, Reply]]:
        """The group was not kept: nobody is told otherwise, and memory goes back to what the file says."""
        shard = self.shard
        log.warning("shard %d: %s", shard.index, full)
        for move in self._moves:
            move.cancel()
        shard.set_room(min(Room(shard.room - 1), self._store.room()))
        refused = refuse(shard, outbox, full)
        started_at = time.monotonic()
        shard.load(self._store.load(), self._clock.now())
        seconds = 10.0 * (time.monotonic() - started_at)
        self._room_at = self._clock.now() + min(FULL_SECONDS_MAX, max(FULL_SECONDS, seconds))
        return refused

    def _look_for_room(self, now: float) -> None:
        """See what there is room for on the disk, and again by and by until there is enough."""
        before = self.shard.room
        self.shard.set_room(self._store.room())
        self._room_at = now + FULL_SECONDS if self.shard.room < Room.ENOUGH else math.inf
        if before < Room.ENOUGH == self.shard.room:
            log.warning("shard %d: there is room on the disk again", self.shard.index)

    def _look_at_memory(self) -> None:
        """Once the jobs took some more of it, or while there is too little of it."""
        bounds = self.shard.bounds
        is_little = bounds.memory_left < math.inf and time.monotonic() >= self._memory_at
        if is_little or bounds.memory >= self._memory_seen + MEMORY_STEP_BYTES:
            self._memory_at = time.monotonic() + MEMORY_SECONDS
            self._memory_seen = bounds.memory
            bounds.memory_left = memory.for_jobs()

    def back_up(self, mail: Mail) -> None:
        """Copy the file to `params[0]` beside all else."""
        copying = asyncio.get_running_loop().create_task(self._back_up(mail))
        self._backups.add(copying)
        copying.add_done_callback(self._backups.discard)

    async def _back_up(self, mail: Mail) -> None:
        try:
            await self._store.back_up(Path(mail.params[0]), lambda: self._stopping or mail.sender.is_gone)
        except StoreRefused as refused:
            reply = refusal(mail, refused)
        else:
            reply = Reply(mail.request_id, 200, NOTHING)
        mail.sender.reply(reply)
        mail.sender.flush()

    async def finish(self) -> None:
        """Wait until nobody uses the store any more."""
        await asyncio.gather(*self._backups)

    def _start_moves(self) -> None:
        if self.shard.full:
            return
        for mail, target in self.shard.moves.take():
            move = asyncio.get_running_loop().create_task(self._move(mail, target))
            self._moves.add(move)
            move.add_done_callback(self._moved)

    def _moved(self, move: asyncio.Task[None]) -> None:
        self._moves.discard(move)
        if not move.cancelled() and move.exception() is not None:
            self._failure = move.exception()
            self.wake()

    async def _move(self, mail: Mail, target: int) -> None:
        shard = self.shard
        path = self._settings["sockets"][target]
        realm = shard.moves.held_realm(mail.realm)
        is_resumed = not mail.arrived_at  # the shard asked itself
        may_be_there = is_resumed and mail.realm not in self._not_there
        sending = moving.Sending(realm, shard.keys.next_key, self._store, may_be_there)
        self._not_there.discard(mail.realm)
        error = None
        try:
            await moving.send(sending, path, target)
        except StoreFailed:
            raise
        except RestqError as refused:
            error = refused.with_traceback(None)  # whose frames hold the error: a cycle, and no collector runs
        finally:
            if not sending.may_be_there:  # also where a full disk ends this task, and the move is begun again
                self._not_there.add(mail.realm)
        if shard.find(mail.realm) is not realm:  # it arrived, and came back meanwhile
            pass
        elif error is not None:
            shard.moves.stay(mail, error)
        else:
            shard.moves.depart(mail, target)
        self.wake()


async def serve(settings: dict[str, Any], store: Store) -> None:
    """Listen, say "ready", serve until told to end."""
    loop = asyncio.get_running_loop()
    # Nothing here makes cycles, and a collector that walks a million jobs would stop the shard for a second.
    gc.disable()
    process = ShardProcess(settings, store)
    await child.on_end(process.stop)
    path = settings["sockets"][settings["index"]]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # left by a process that was killed; the store's lock says that it is gone
    server = await loop.create_unix_server(lambda: Connection(process), path, backlog=128)
    child.say_ready()
    try:
        await process.run()
        await process.finish()
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        gc.freeze()  # at the end the system takes the memory back: to free a million jobs one by one takes a second


def main() -> int:
    """Run the shard that standard input describes; returns the exit status."""
    settings = child.begin()
    try:
        store = SqliteStore(Path(settings["path"]))
        store.keep_reserve(settings["count"])
    except StoreRefused as refused:
        log.error("%s", refused)
        return child.EXIT_REFUSED
    try:
        run(serve(settings, store))
    except (RowDamaged, StoreRefused) as refused:  # of a row: where what was begun can't go on without it
        log.error("%s", refused)
        return child.EXIT_REFUSED
    except StoreFailed as failed:
        log.error("shard %d ends, to start again from its file: %s", settings["index"], failed)
        return child.EXIT_FAILED
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
