"""One simulation from its beginning to its end: the server, its clients, what befalls it, and what must hold then."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from checker import ACK, Checker
from sim_clients import Client, named
from sim_loop import Loop, Node
from simulation import World, made_up, memory_stores

from restq.shards.sqlite_store import SqliteStore

CLIENT_COUNT = 4
DOINGS_COUNT = 12  # of each client
SETTLED_SECONDS = 100.0  # by then every lease has run out, and what was under way has arrived
CALM_SECONDS = 0.4  # between two faults, on the average
CHECK_STEPS = 997  # between two looks at the invariants
STEPS_MAX = 300_000
ROUNDS_MAX = 200


class Result(NamedTuple):
    """What came of a simulation."""

    trace: list[tuple[Any, ...]]
    wrong: list[str]
    call_count: int


class Simulation:
    """What one seed draws."""

    def __init__(self, seed: object, loop: Loop, open_store: Callable[[int], Any]) -> None:
        chance = loop.chance
        self.loop = loop
        self.checker = Checker()
        self.world = World(loop, chance.choice((1, 2, 2, 3)), chance.choice((1, 2)), open_store)
        for shard in self.world.shards:
            shard.disk.is_slow = chance.random() < 0.3
        self.realms = [f"realm {number}" for number in range(chance.randint(1, 4))]
        self.clients = [
            Client(self.world, self.checker, f"client {index}", self.realms) for index in range(CLIENT_COUNT)
        ]
        self._calm = CALM_SECONDS * chance.choice((0.3, 1.0, 3.0))
        self.world.is_calm = chance.random() < 0.2
        calm = [self._hold_up, self._stand_still]
        faults = [
            *[self._kill_shard] * 3,
            *[self._interrupt_move] * 2,
            self._kill_frontend,
            *[self._cut] * 2,
            *[self._fail_commit] * 2,
            self._fill_disk,
            *calm,
        ]
        self._faults: list[Callable[[], None]] = calm if self.world.is_calm else chance.sample(faults, 5)
        self._lurks = False  # for the next move between shards
        self.wrong: list[str] = []
        self._step_count = 0
        loop.after_step = self._stepped

    def has_room(self) -> bool:
        """Whether the disks have."""
        return not any(shard.disk.is_full for shard in self.world.shards)

    def _stepped(self, node: Node) -> None:
        self._step_count += 1
        if self._lurks and self._step_count % 8 == 0:
            self._lurk()
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

    def _interrupt_move(self) -> None:
        self._lurks = True

    def _lurk(self) -> None:
        found = [end for end in self.loop.connections() if end.name.startswith("shard")]
        if found:
            self._lurks = False
            end = self.loop.chance.choice((found[0], found[0].peer))
            if self.loop.chance.random() < 0.5:
                end.node.steps_left = self.loop.chance.randrange(40)
            else:
                end.node.later(self.loop.draw(0.02), end.lose)
                end.peer.node.later(self.loop.draw(0.02), end.peer.lose)

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
        await asyncio.gather(*(client.node.run(client.live(DOINGS_COUNT)) for client in self.clients))
        befalling.cancel()
        self._lurks = False
        for shard in self.world.shards:
            shard.disk.is_full = shard.disk.fails = False
        for running in (*self.world.shards, *self.world.frontends):
            running.node.steps_left = -1
        await self._whole()
        if self.loop.chance.random() < 0.5:
            for shard in self.world.shards:
                shard.node.kill()
        await asyncio.sleep(SETTLED_SECONDS)
        await self._whole()
        await self._drain()
        self._check()
        self._check_places()

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

    def _check_places(self) -> None:
        """X1: a realm lives in one shard."""
        for realm in self.realms:
            places = [s.name for s in self.world.shards if s.process is not None and s.process.shard.find(realm)]
            if len(places) > 1:
                self.wrong.append(f"{realm} lives in {places}")


def simulate(seed: object, on_disk: bool = False) -> Result:
    """Run what this seed draws."""
    loop = Loop(seed)
    with contextlib.ExitStack() as stack:
        simulation: Simulation
        stack.enter_context(made_up(loop, lambda: simulation.has_room()))
        open_store = stack.enter_context(_on_disk()) if on_disk else memory_stores()
        asyncio.set_event_loop(loop)
        simulation = Simulation(seed, loop, open_store)
        try:
            loop.run_until_complete(simulation.run())
        except (AssertionError, RuntimeError) as error:
            simulation.wrong.append(f"it did not come to its end: {error!r}")
        wrong = [*simulation.wrong, *loop.failures, *(line for client in simulation.clients for line in client.wrong)]
        wrong += simulation.checker.violations()
        loop.end()
        for shard in simulation.world.shards:
            shard.disk.close()
    asyncio.set_event_loop(None)
    return Result(loop.trace, wrong, len(simulation.checker.calls))


@contextlib.contextmanager
def _on_disk() -> Iterator[Callable[[int], SqliteStore]]:
    with tempfile.TemporaryDirectory() as folder:
        yield lambda index: SqliteStore(Path(folder) / f"{index}.db")
