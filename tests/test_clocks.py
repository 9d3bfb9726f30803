"""Clocks: what a wall clock that is set does to leases, delays, expiries, rates, long polls and kept replies: nothing.

While a server runs, its time is the monotonic clock's. Over a restart of the server, time goes on from the wall clock,
but never backwards: what was to last for so long never lasts longer than that. Most tests here make up both clocks of a
shard; where libfaketime is there, RESTQ_TEST_LONG=1 also sets the wall clock of real servers.
"""

from __future__ import annotations

import ast
import asyncio
import glob
import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Server, StartServer
from longrun import LONG, seeds
from polling import eventually
from processes import children, is_running, shard_pids
from realm_calls import RealmCalls
from shard_rig import Sender
from wire import ask, names_on

from restq import supervisor
from restq.data_dir import shard_path
from restq.shards import process
from restq.shards.actor import Mail
from restq.shards.changes import MovedRow
from restq.shards.memory_store import MemoryStore
from restq.shards.relocation import relocate
from restq.shards.sqlite_store import SqliteStore

HOUR, DAY, YEAR = 3_600.0, 86_400.0, 365.25 * 86_400.0
STEPS = [sign * size for size in (HOUR, DAY, 10 * YEAR) for sign in (1, -1)]
START = 1_800_000_000.0


class Clocks:
    """In place of the module `time`: a wall clock, which can be set, and a steady one."""

    def __init__(self) -> None:
        self.wall = START
        self.steady = 5_000.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def go_on(self, seconds: float) -> None:
        """Let time pass on both."""
        self.wall += seconds
        self.steady += seconds


class OneShard(Sender):
    """The process of a shard without its sockets, over a store in memory, by made-up clocks."""

    def __init__(self, clocks: Clocks, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.clocks = clocks
        self.store = MemoryStore()
        self.told: list[Any] = []  # replies, and when they came
        self._patch = patch
        self._loop = asyncio.new_event_loop()
        self._last_id = 0
        self.start_server()

    def start_server(self) -> None:
        """Start from what the store holds, as a server does."""
        self._patch.setattr(supervisor, "time", self.clocks)
        self._offset = supervisor.clock_offset(self.store.load().mark.clock)
        self.start_shard()

    def start_shard(self) -> None:
        """Start from what the store holds, as a shard that died while its server runs."""
        self._patch.setattr(process, "time", self.clocks)
        settings = {"index": 0, "count": 1, "elsewhere": {}, "sockets": [], "path": "", "default_lease_time": 600.0}
        self._process = process.ShardProcess({**settings, "clock_offset": self._offset}, self.store)

    @property
    def now(self) -> float:
        """The shard's time."""
        return self._process._clock.now()

    def reply(self, reply: Any) -> None:
        self.told.append((self.clocks.steady, reply.request_id, reply.status, reply.body))
        super().reply(reply)

    def send(self, operation: str, params: Sequence[Any] = (), body: Any = None, key: str = "") -> int:
        """A request; returns its id."""
        self._last_id += 1
        text = b"" if body is None else json.dumps(body).encode()
        once = [key, "digest"] if key else []
        self._process.shard.receive(Mail(self, 1.0, self._last_id, operation, "r", list(params), text, once))
        self._run()
        return self._last_id

    def ask(self, operation: str, params: Sequence[Any] = (), body: Any = None, key: str = "") -> Any:
        """The reply of a success."""
        reply = self.replies[self.send(operation, params, body, key)]
        assert reply.status == 200, reply
        return json.loads(reply.body)

    def go_on(self, seconds: float) -> None:
        """Let time pass, with turns when the shard asks for them."""
        until = self.clocks.steady + seconds
        while (left := self._process.shard.next_deadline() - self.now) <= until - self.clocks.steady:
            self.clocks.go_on(max(0.0, left) + 1e-6)
            self._run()
        self.clocks.go_on(max(0.0, until - self.clocks.steady))
        self._run()

    def _run(self) -> None:
        shard = self._process.shard
        while shard.busy(self.now) or shard.outbox or len(shard.changes):
            self._loop.run_until_complete(self._process._turn())

    def close(self) -> None:
        self._loop.close()


# -- while it runs -------------------------------------------------------------------------------------------------


class Life:
    """What happens in a realm, by chance, but the same for the same seed."""

    def __init__(self, shard: OneShard, seed: int, sets_wall_clock: bool) -> None:
        self._shard = shard
        self._chance = random.Random(seed)
        self._sets_wall_clock = sets_wall_clock
        self._leases: list[str] = []
        self._count = 0

    def begin(self) -> None:
        ask = self._shard.ask
        ask("configure", [], {"backoff": {"base": 7, "jitter": 0}, "keep_done": {"seconds": 50}, "max_attempts": 5})
        ask("configure_queue", ["1"], {"rate": 0.2, "lease_time": 20})
        ask("configure_tag", ["few"], {"rate": 0.5, "max_leased": 3})

    def step(self) -> None:
        """Something happens, the wall clock is set, and some time passes."""
        getattr(
            self, self._chance.choice(["add", "add", "pull", "pull", "poll", "finish", "finish", "again", "look"])
        )()
        step = self._chance.choice(STEPS)
        if self._sets_wall_clock:
            self._shard.clocks.wall += step
        if self._chance.random() < 0.05:
            self._shard.start_shard()
        self._shard.go_on(self._chance.choice([0.0, 0.5, 3.0, 20.0]) * self._chance.random())

    def add(self) -> None:
        self._count += 1
        wishes = self._chance.choice(
            [{}, {}, {"delay": 15}, {"expires_in": 25}, {"run_at": START + 30 * self._chance.random() * self._count}]
        )
        job = {"job_id": f"j{self._count}", "queue_id": self._chance.randrange(3), "tags": ["few"][: self._count % 2]}
        self._shard.send("add_jobs", [], {"jobs": [{**job, **wishes}]}, f"key {self._count}")

    def pull(self) -> None:
        self._pull({"count": 2, "lease_time": self._chance.choice([2, 10, 60])})

    def poll(self) -> None:
        self._pull({"count": 1, "wait": 5})

    def _pull(self, said: dict[str, Any]) -> None:
        reply = self._shard.replies.get(self._shard.send("pull", [], said))
        if reply is not None:
            self._leases += [job["lease_id"] for job in json.loads(reply.body)["jobs"]]

    def finish(self) -> None:
        if self._leases:
            lease = self._leases.pop(self._chance.randrange(len(self._leases)))
            said = self._chance.choice(
                [("ack", {"result": 1}), ("nack", {"error": "e"}), ("release", {"delay": 4}), ("extend", {})]
            )
            self._shard.send(said[0], [], {"leases": [lease], **said[1]})

    def again(self) -> None:
        """A request that was sent before, under its key."""
        if self._count:
            jobs = {"jobs": [{"job_id": "again", "queue_id": 0}]}
            self._shard.send("add_jobs", [], jobs, f"key {self._chance.randint(max(1, self._count - 40), self._count)}")

    def look(self) -> None:
        for operation, params in [
            ("list_jobs", [self._chance.choice([None, "done"]), None, None, None, "1000", None, "1"]),
            ("get_queues", []),
            ("get_tags", [None, None, None]),
        ]:
            self._shard.send(operation, params)


def transcript(patch: pytest.MonkeyPatch, seed: int, sets_wall_clock: bool) -> list[Any]:
    """All that a shard replies in a life, and when."""
    shard = OneShard(Clocks(), patch)
    patch.setattr(random, "random", random.Random(seed).random)
    life = Life(shard, seed, sets_wall_clock)
    life.begin()
    for _ in range(150):
        life.step()
    shard.close()
    return shard.told


@pytest.mark.parametrize("seed", seeds(8, 1_000))
def test_set_wall_clock_while_a_server_runs_changes_no_reply(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = transcript(monkeypatch, seed, sets_wall_clock=False)
    found = transcript(monkeypatch, seed, sets_wall_clock=True)
    assert len(expected) > 100
    for one, other in zip(expected, found, strict=True):
        assert one == other


def test_server_reads_the_wall_clock_in_two_places_only() -> None:
    found = set()
    parts = ["*.py", "shards/**/*.py", "web/**/*.py"]
    for path in [path for part in parts for path in (ROOT / "restq").glob(part)]:
        for node in ast.walk(ast.parse(path.read_text())):
            is_time = isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns")
            if is_time or (isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime")):
                found.add(path.relative_to(ROOT / "restq").as_posix())
    assert found == {"shards/process.py", "supervisor.py"}


# -- over a restart ------------------------------------------------------------------------------------------------


class Lasting:
    """A realm in which everything lasts for a time, and until when, by the shard's time."""

    def __init__(self, shard: OneShard, seed: int) -> None:
        self.shard = shard
        self.chance = random.Random(seed)
        self.until: dict[str, float] = {}
        rests, released = self.chance.uniform(1, 1_000), self.chance.uniform(1, 1_000)
        shard.ask("configure", [], {"backoff": {"base": rests, "jitter": 0}})
        for name in ("leased", "rests", "released"):
            shard.ask("add_job", [name], {"queue_id": name})
        for name, verb, said in [("rests", "nack", {}), ("released", "release", {"delay": released})]:
            shard.go_on(self.chance.random())
            [job] = self.pull(name, 60)
            shard.ask(verb, [], {"leases": [job["lease_id"]], **said})
        self.until |= {"rests": shard.now + rests, "released": shard.now + released}
        [leased] = self.pull("leased", self.lasts("leased"))
        assert leased["lease_expires_at"] == pytest.approx(self.until["leased"], abs=0.001)
        shard.ask("add_job", ["delayed"], {"queue_id": "delayed", "delay": self.lasts("delayed")})
        shard.ask("add_job", ["at"], {"queue_id": "at", "run_at": shard.now + self.lasts("at")})
        shard.ask("add_job", ["expires"], {"queue_id": "expires", "expires_in": self.lasts("expires")})
        shard.ask("configure_queue", ["rated"], {"rate": 1 / self.lasts("rated")})
        shard.ask("add_jobs", [], {"jobs": [{"job_id": f"rated{number}", "queue_id": "rated"} for number in (1, 2)]})
        assert len(self.pull("rated", 3_000)) == 1
        shard.ask("add_job", ["once"], {"queue_id": "once"}, "key")
        shard.ask("remove_job", ["once"])
        self.until["once"] = shard.now + 600

    def lasts(self, name: str) -> float:
        """A time that this is to last from now on."""
        seconds = self.chance.uniform(1, 1_000)
        self.until[name] = self.shard.now + seconds
        return seconds

    def pull(self, name: str, lease_time: float) -> list[dict[str, Any]]:
        wanted = {"count": 1, "queues": [name], "lease_time": lease_time}
        jobs: list[dict[str, Any]] = self.shard.ask("pull", [], wanted)["jobs"]
        return jobs

    def lasting(self) -> set[str]:
        """What has not ended yet, as it shows. It is handed out: look once."""
        still = set()
        for name in ("leased", "rests", "released", "delayed", "at", "rated"):
            if not self.pull(name, 60):
                still.add(name)
        self.shard.ask("add_job", ["once"], {"queue_id": "once"}, "key")  # does nothing if its reply is kept
        there = {job["job_id"] for job in self.shard.ask("list_jobs", [None] * 7)["jobs"]}
        return still | {"expires"} & there | {"once"} - there


@pytest.mark.parametrize("seed", seeds(40, 3_000))
def test_restart_server_with_wall_clock_set_ends_nothing_late(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    shard = OneShard(Clocks(), monkeypatch)
    shard.clocks.wall += chance.choice([0.0, *STEPS])
    realm = Lasting(shard, seed)
    shard.go_on(chance.choice([0.0, 300.0]) * chance.random())
    seen = shard.store.load().mark.clock
    assert seen <= shard.now
    away = chance.choice([0.0, 0.0, 1.0, 300.0]) * chance.random()
    step = chance.choice([0.0, *STEPS])
    shard.clocks.go_on(away)
    shard.clocks.wall += step
    shard.start_server()
    passed = max(0.0, shard.clocks.wall - seen)  # by all that can be known
    assert shard.now == pytest.approx(seen + passed, abs=0.001)
    later = chance.choice([0.0, 1.0, 100.0, 1_000.0]) * chance.random()
    shard.go_on(later)
    expected = {name for name, until in realm.until.items() if until > seen + passed + later}
    assert realm.lasting() == expected, (seed, step)
    [again] = shard.ask("exchange", [], {"add": [{"job_id": "x", "queue_id": "x"}], "pull": {"queues": ["x"]}})["pull"][
        "jobs"
    ]
    assert again["lease_expires_at"] == pytest.approx(shard.now + 600, abs=0.001)
    shard.close()


def test_restart_server_years_back_ends_all_in_the_time_they_had(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = OneShard(Clocks(), monkeypatch)
    realm = Lasting(shard, 1)
    shard.clocks.wall -= 10 * YEAR
    shard.start_server()
    shard.go_on(1_000.0)
    assert realm.lasting() == set()


@pytest.mark.parametrize("times", [(100.0, 900.0), (900.0, 100.0), (0.0, 900.0)])
def test_relocate_tells_the_latest_time_that_a_file_has_seen(tmp_path: Path, times: tuple[float, float]) -> None:
    for shard, at in enumerate(times):
        store = SqliteStore(shard_path(tmp_path, shard))
        loaded = store.load()
        changes = process.Shard(0, process.Placement(1, {}), 600.0, store).changes
        changes.moved["r"] = MovedRow("r", 0, 0)
        asyncio.run(store.commit(changes, loaded.mark._replace(group=1, clock=at)))
        store.close()
    assert relocate(tmp_path, 2).clock == max(times)


# -- real servers --------------------------------------------------------------------------------------------------

FAKETIME = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), "")
LATE_SECONDS = 20.0  # that a busy machine may take, and a start; a lease that goes by the wall clock takes hours
CYCLES = seeds(1, 200)
CYCLES_OF_SERVER = 20


class Wall:
    """The wall clock of a server, which this sets while it runs."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self.environment = {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, offset: float) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset:+.0f}\n")
        new.replace(self._file)


@pytest.mark.skipif(not (LONG and FAKETIME), reason="RESTQ_TEST_LONG=1 sets clocks, with libfaketime")
@pytest.mark.parametrize("first", CYCLES[::CYCLES_OF_SERVER])
def test_set_wall_clock_of_real_server_ends_nothing_late_or_early(
    start_server: StartServer, realm_name: str, tmp_path: Path, first: int
) -> None:
    wall = Wall(tmp_path)
    own = start_server(environment=wall.environment)
    for trial in [trial for trial in CYCLES if first <= trial < first + CYCLES_OF_SERVER]:
        chance = random.Random(trial)
        realm = RealmCalls(own, f"{next(names_on(trial % 2, realm_name))}-{trial}")
        seconds = chance.uniform(1.0, 3.0)
        realm.queue_settings("rated", rate=1 / seconds)
        realm.add_all("leased", queue_id="leased")
        realm.add_all("rated 1", "rated 2", queue_id="rated")
        realm.lease(queues=["leased"], lease_time=seconds)
        realm.lease(queues=["rated"])
        realm.add_all("delayed", queue_id="delayed", delay=seconds)
        began_at = time.monotonic()
        offset = chance.choice([0.0, *STEPS])
        wall.set(offset)
        how = chance.choice(["step", "step", "kill shard", "restart server"])
        if how == "restart server":
            own = realm.server = restarted(own, start_server, wall)
        elif how == "kill shard":
            kill_shards(own)
        kinds = ["leased", "rated", "delayed"]
        ended = {kind: wait_for(realm, kind, began_at) for kind in kinds}
        print(f"seed {trial}: {how} {offset:+.0f} s, {seconds:.2f} s lasted {ended}")
        for kind, took in ended.items():
            assert took < seconds + LATE_SECONDS, (trial, how, offset, kind)
            if how != "restart server" or offset <= 0:
                assert took > seconds - 0.3, (trial, how, offset, kind)  # they began a little before
        realm.ask("DELETE", "").ok()


def wait_for(realm: RealmCalls, queue: str, began_at: float) -> float:
    """When, since then, the queue gives its job."""
    eventually(lambda: _answered(realm, queue))
    return time.monotonic() - began_at


def _answered(realm: RealmCalls, queue: str) -> bool:
    answer = realm.post("pull", queues=[queue], wait=1)
    return answer.status == 200 and bool(answer.json["jobs"])


def kill_shards(server: Server) -> None:
    for pid in shard_pids(server):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: ask(server, "GET", "/readyz").status == 200)


def restarted(server: Server, start_server: StartServer, wall: Wall) -> Server:
    everyone = children(server.pid)
    server.process.kill()
    server.process.wait()
    eventually(lambda: not any(map(is_running, everyone)))
    return start_server(server.data_dir, environment=wall.environment)
