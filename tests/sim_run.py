"""One simulation from its beginning to its end: the server, its clients, what befalls it, and what must hold then."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from checker import ACK, Checker
from sim_ambush import Ambush
from sim_clients import Client, named
from sim_loop import Loop, Node
from sim_whole import Arrivals, check_whole
from simulation import World, made_up, memory_stores

from restq.check import check
from restq.data_dir import shard_path
from restq.shards.sqlite_store import SqliteStore

CLIENT_COUNT = 4
DOINGS_COUNT = 12  # of each client
SETTLED_SECONDS = 100.0  # by then every lease has run out, and what was under way has arrived
CALM_SECONDS = 0.4  # between two faults, on the average
CHECK_STEPS = 997  # between two looks at the invariants
STEPS_MAX = 300_000
ROUNDS_MAX = 200
RESTLESS_SHARE = 0.5


class Result(NamedTuple):
    """What came of a simulation."""

    trace: list[tuple[Any, ...]]
    wrong: list[str]
    call_count: int
    arrival_count: int


class Simulation:
    """What one seed draws. `is_restless`: realms move all the while."""

    def __init__(self, loop: Loop, open_store: Callable[[int], Any], is_restless: bool | None) -> None:
        chance = loop.chance
        self.loop = loop
        self.checker = Checker()
        drawn = chance.random() < RESTLESS_SHARE
        self.is_restless = drawn if is_restless is None else is_restless
        shard_count = chance.choice((2, 2, 3) if self.is_restless else (1, 2, 2, 3))
        self.world = World(loop, shard_count, chance.choice((1, 2)), open_store)
        self.arrivals = Arrivals(self.world)
        for shard in self.world.shards:
            shard.disk.is_slow = chance.random() < 0.3
        self.realms = [f"realm {number}" for number in range(chance.randint(1, 2 if self.is_restless else 4))]
        self.clients = [
            Client(self.world, self.checker, f"client {index}", self.realms) for index in range(CLIENT_COUNT)
        ]
        self._mover = Client(self.world, self.checker, "mover", self.realms)
        self._ambush = Ambush(self.world, lambda shard: self._mover.node.run(self._mover.call_back(shard)))
        self._calm = CALM_SECONDS * chance.choice((0.3, 1.0, 3.0))
        self.world.is_calm = chance.random() < 0.2
        calm = [self._hold_up, self._stand_still]
        faults = [
            *[self._kill_shard] * 3,
            *[self._ambush.lay] * 2,
            self._kill_frontend,
            *[self._cut] * 2,
            *[self._fail_commit] * 2,
            self._fill_disk,
            *calm,
        ]
        self._faults: list[Callable[[], None]] = calm if self.world.is_calm else chance.sample(faults, 5)
        if self.is_restless:
            self._faults = [*self._faults, *[self._hold_up] * 4, *[self._ambush.lay] * 10]
        self.wrong: list[str] = []
        self._step_count = 0
        loop.after_step = self._stepped

    def has_room(self) -> bool:
        """Whether the disks have."""
        return not any(shard.disk.is_full for shard in self.world.shards)

    def _stepped(self, node: Node) -> None:
        self._step_count += 1
        if self._step_count % CHECK_STEPS == 0:
            self._check()
        if self._step_count > STEPS_MAX:
            raise AssertionError("it goes on for ever")

    def _check(self) -> None:
        for shard in self.world.shards:
            if shard.node.is_alive:
                try:
                    shard.check()
                except AssertionError as error:
                    self.wrong.append(f"{shard.name}: {error}")

    # -- what befalls it -----------------------------------------------------------------------------------------------

    async def _befall(self) -> None:
        while True:
            await asyncio.sleep(self.loop.draw(2 * self._calm))
            self.loop.chance.choice(self._faults)()

    def _kill_shard(self) -> None:
        shard = self.loop.chance.choice(self.world.shards)
        shard.node.steps_left = self.loop.chance.randrange(40)

    def _kill_frontend(self) -> None:
        self.loop.chance.choice(self.world.frontends).node.steps_left = self.loop.chance.randrange(40)

    def _cut(self) -> None:
        connections = self.loop.connections()
        if connections:
            end = self.loop.chance.choice(connections)
            end.lose_later(True)
            end.peer.lose_later(True)

    def _hold_up(self) -> None:
        connections = self.loop.connections()
        if connections:
            end = self.loop.chance.choice(connections)
            end = self.loop.chance.choice((end, end.peer))
            end.arrives_at = max(end.arrives_at, self.loop.time() + self.loop.draw(3.0))

    def _stand_still(self) -> None:
        node = self.loop.chance.choice([*self.world.shards, *self.world.frontends]).node
        node.stands_until = self.loop.time() + self.loop.draw(1.0)

    def _fail_commit(self) -> None:
        self.loop.chance.choice(self.world.shards).disk.fails = True

    def _fill_disk(self) -> None:
        disk = self.loop.chance.choice(self.world.shards).disk
        disk.is_full = True
        self.loop.root.later(self.loop.draw(3.0), self._make_room, disk)

    def _make_room(self, disk: Any) -> None:
        disk.is_full = False

    # -- its course ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All of it."""
        await self._whole()
        befalling = asyncio.ensure_future(self._befall())
        roaming = self._mover.node.run(self._mover.roam()) if self.is_restless else None
        await asyncio.gather(*(client.node.run(client.live(DOINGS_COUNT)) for client in self.clients))
        if roaming is not None:
            roaming.cancel()
        self.clients.append(self._mover)
        befalling.cancel()
        self._ambush.leave()
        for shard in self.world.shards:
            shard.disk.is_full = shard.disk.fails = False
        for running in (*self.world.shards, *self.world.frontends):
            running.node.steps_left = -1
        await self._whole()
        if not self.world.is_calm and self.loop.chance.random() < 0.5:
            for shard in self.world.shards:
                shard.node.kill()
        await asyncio.sleep(SETTLED_SECONDS)
        await self._whole()
        self.wrong += check_whole(self.world)
        await self._drain()
        self._check()
        self.wrong += self.arrivals.wrong

    async def _whole(self) -> None:
        while not self.world.is_whole():  # noqa: ASYNC110 - the clock is made up
            await asyncio.sleep(0.1)

    async def _drain(self) -> None:
        """Pull and ack all there is."""
        self.checker.drained_at = self.world.now()
        client = Client(self.world, self.checker, "drain", self.realms)
        await client.node.run(self._drain_with(client))
        self.clients.append(client)

    async def _drain_with(self, client: Client) -> None:
        for realm in self.realms:
            await client.ask("POST", f"/{realm}/redrive", {})
        for _ in range(ROUNDS_MAX):
            statuses = await client.ask("GET", "/", None)
            left = [realm for realm, status in statuses.items() if status["total_jobs"]]
            if not left:
                return
            for realm in left:
                call = self.checker.begin(self.world.now(), "drain")
                jobs = (await client.ask("POST", f"/{realm}/pull", {"count": 50, "lease_time": 900}))["jobs"]
                call.ok(self.world.now())
                if found := client.take(call, jobs, realm, 900):
                    ends = {named(realm, lease): ACK for lease in found}
                    call = self.checker.begin(self.world.now(), "drain: ack", ends=ends)
                    told = await client.ask("POST", f"/{realm}/ack", {"leases": found})
                    call.ok(self.world.now(), *([named(realm, lease) for lease in told[w]] for w in ("acked", "stale")))
        self.wrong.append(f"what is left is not to be had: {statuses}")


def simulate(seed: object, on_disk: bool = False, is_restless: bool | None = None) -> Result:
    """Run what this seed draws; `is_restless`: whether realms move all the while, if that is not to be drawn."""
    loop = Loop(seed)
    with contextlib.ExitStack() as stack:
        simulation: Simulation
        stack.enter_context(made_up(loop, lambda: simulation.has_room()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if on_disk else None
        open_store = memory_stores() if folder is None else partial(_open_file, folder)
        asyncio.set_event_loop(loop)
        simulation = Simulation(loop, open_store, is_restless)
        try:
            loop.run_until_complete(simulation.run())
        except (AssertionError, RuntimeError) as error:
            simulation.wrong.append(f"it did not come to its end: {error!r}")
        wrong = [*simulation.wrong, *loop.failures, *(line for client in simulation.clients for line in client.wrong)]
        wrong += simulation.checker.violations()
        loop.end()
        for shard in simulation.world.shards:
            shard.disk.close()
        if folder is not None:
            wrong += check(folder).problems
    asyncio.set_event_loop(None)
    return Result(loop.trace, wrong, len(simulation.checker.calls), simulation.arrivals.count)


def _open_file(folder: Path, index: int) -> SqliteStore:
    return SqliteStore(shard_path(folder, index))
