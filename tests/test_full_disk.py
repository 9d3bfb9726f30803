"""A full disk: adds are refused, what takes away goes on, and once there is room so do adds; nothing answered is lost.

The disk is a tmpfs of a few MiB, which real clients fill until nothing more goes in. Where none can be mounted, as
without root, these tests are skipped, and those with a disk that is made up remain.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checker import ACK, EXTEND, NACK, RELEASE, Call, Checker, Scope, Unit
from conftest import Server, StartServer
from longrun import LONG, seeds
from polling import eventually
from processes import children, is_running, shard_pids
from shard_rig import Rig
from wire import Answer, Wire, ask, names_on

from restq.data_dir import shard_path
from restq.errors import StorageFull
from restq.protocol import Reply
from restq.shards import process, reserve
from restq.shards.actor import Mail
from restq.shards.changes import Changes, MovedRow, RealmRow
from restq.shards.commands import batches, jobs
from restq.shards.process import ShardProcess
from restq.shards.relocation import relocate
from restq.shards.room import LARGE_BYTES
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import Mark, Room, StoreFailed, StoreRefused

MIB = 1 << 20
LEASE_SECONDS = 300.0
RESUME_SECONDS = 5.0 if LONG else 20.0  # the promise is 5; a machine that is busy with other tests may be late
PAGE_BYTES = 4096


def can_mount() -> bool:
    """Whether a tmpfs can be had here."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        return False
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return probe.returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="mounting a small disk takes root")


class SmallDisk:
    """A tmpfs, which others may fill as well."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.mkdir()
        self._mount(f"size={size}")

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", self.path], check=True, capture_output=True)

    def enlarge(self, size: int) -> None:
        self._mount(f"remount,size={size}")

    def free(self) -> int:
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Somebody else writes until no more than this is left."""
        with (self.path / "others").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while (free := self.free()) > leave:
                file.write(bytes(min(free - leave, 1 << 16)))

    def empty(self) -> None:
        """What others wrote is gone."""
        (self.path / "others").unlink(missing_ok=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.path], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """A function that mounts disks of so many bytes."""
    mounted: list[SmallDisk] = []

    def mount(size: int) -> SmallDisk:
        mounted.append(SmallDisk(tmp_path / f"disk-{len(mounted)}", size))
        return mounted[-1]

    yield mount
    for disk in mounted:
        disk.unmount()


class Client:
    """One client, whose calls are noted for the check in the end."""

    def __init__(self, server: Server, checker: Checker, lock: threading.Lock, name: str, seed: int) -> None:
        self.name = name
        self.chance = random.Random(seed)
        self.ask_of(server)
        self._checker = checker
        self._lock = lock
        self._count = 0
        self.refusals: list[str] = []
        self.leases: list[tuple[Unit, str]] = []
        self.units: list[Unit] = []

    def ask_of(self, server: Server) -> None:
        """Ask this server from now on."""
        self._wire = Wire(server.port)

    def _begin(self, what: str, **effects: Any) -> Call:
        with self._lock:
            return self._checker.begin(time.time(), f"{self.name}: {what}", **effects)

    def _ask(self, call: Call, method: str, target: str, body: Any = None) -> Answer | None:
        """The answer to a call; None where there was none: its shard was killed."""
        headers = {"Content-Type": "application/json"}
        if method == "POST" and self.chance.random() < 0.5:
            self._count += 1
            headers["Idempotency-Key"] = f"{self.name}-{self._count}"
        answer = self._wire.ask(method, target, body, headers)
        if answer.status == 507 and "if this had begun" not in answer.json["message"]:
            call.failed(time.time())
            assert answer.json["code"] == "storage_full"
            self.refusals.append(answer.json["message"])
        elif answer.status == 503:
            return None
        elif answer.status != 200:
            assert answer.status in (409, 507), answer
        return answer

    def add(self, realm: str, count: int, size: int) -> int:
        """Add some jobs; returns the status."""
        first = self._count = self._count + count
        ids = [f"{self.name}-{number}" for number in range(first - count, first)]
        units = [Unit(realm, self.chance.randrange(2), job_id) for job_id in ids]
        call = self._begin("add", adds={unit: frozenset() for unit in units})
        data = "x" * size
        if count == 1:
            body: Any = {"queue_id": units[0].queue, "data": data}
            answer = self._ask(call, "PUT", f"/{realm}/job/{ids[0]}", body)
        else:
            jobs = [{"job_id": unit.job, "queue_id": unit.queue, "data": data} for unit in units]
            answer = self._ask(call, "POST", f"/{realm}/jobs", {"jobs": jobs})
        if answer is not None and answer.status == 200:
            call.ok(time.time())
            self.units += units
        return 503 if answer is None else answer.status

    def remove(self, units: list[Unit]) -> int:
        """Remove these jobs, of one realm."""
        realm = units[0].realm
        call = self._begin("remove", removes=[Scope(realm, job=unit.job) for unit in units])
        if len(units) == 1:
            answer = self._ask(call, "DELETE", f"/{realm}/job/{units[0].job}")
        else:
            answer = self._ask(call, "DELETE", f"/{realm}/jobs", {"jobs": [unit.job for unit in units]})
        if answer is not None and answer.status == 200:
            call.ok(time.time())
        return 503 if answer is None else answer.status

    def pull(self, realm: str, count: int = 1) -> int:
        """Lease jobs; returns the status."""
        call = self._begin("pull")
        body = {"count": count, "lease_time": LEASE_SECONDS, "worker": self.name}
        answer = self._ask(call, "POST", f"/{realm}/pull", body)
        if answer is None or answer.status != 200:
            return 503 if answer is None else answer.status
        for job in answer.json["jobs"]:
            unit = Unit(realm, job["queue_id"], job["job_id"])
            with self._lock:
                call.delivered(unit, job["lease_id"], LEASE_SECONDS, job["lease_expires_at"])
            self.leases.append((unit, job["lease_id"]))
        call.ok(time.time())
        return 200

    def end(self, how: str, leases: list[tuple[Unit, str]]) -> int:
        """Ack, nack, release or extend leases, of one realm."""
        ids = [lease for _, lease in leases]
        call = self._begin(how, ends=dict.fromkeys(ids, how))
        answer = self._ask(call, "POST", f"/{leases[0][0].realm}/{how}", {"leases": ids})
        if answer is None or answer.status != 200:
            if answer is not None and answer.status == 409:
                call.failed(time.time(), stale=ids)
            return 503 if answer is None else answer.status
        said = answer.json
        done = said[{ACK: "acked", NACK: "nacked", RELEASE: "released", EXTEND: "extended"}[how]]
        call.ok(time.time(), done, said["stale"], done if how == EXTEND else None)
        return 200


class Trial:
    """One disk, one server, and what happens to them."""

    def __init__(self, seed: int, mount: Callable[[int], SmallDisk], start: StartServer) -> None:
        self.chance = random.Random(seed)
        self.size = self.chance.choice([1, 2, 4, 8]) * MIB
        self.disk = mount(self.size)
        self.disk.fill(leave=self.size - self.chance.randrange(self.size // 4))
        self.shards = 1 if self.size == MIB else self.chance.choice([1, 2])
        self.start = start
        self.server = start(data_dir=self.disk.path / "data", shards=self.shards)
        self.realms = [
            next(names_on(shard, f"r{number}", self.shards)) for shard in range(self.shards) for number in (1, 2)
        ]
        self.checker = Checker(slack=0.1)
        self._lock = threading.Lock()
        self.clients = [self.client(f"c{number}") for number in range(3)]
        self.resumed_after = 0.0

    def client(self, name: str) -> Client:
        """One more client."""
        return Client(self.server, self.checker, self._lock, name, self.chance.randrange(1 << 30))

    def _fill(self, client: Client) -> None:
        """Add until every realm refused some; work a little meanwhile."""
        refused = dict.fromkeys(self.realms, 0)
        added = 0
        while min(refused.values()) < 3:
            realm = client.chance.choice([realm for realm in self.realms if refused[realm] < 3])
            if client.chance.random() < 0.15:
                client.pull(realm, client.chance.randrange(1, 4))
                while client.leases:
                    client.end(client.chance.choice([ACK, NACK, RELEASE]), [client.leases.pop()])
            count = client.chance.choice([1, 1, 1, 20])
            size = client.chance.choice([10, 300, 3_000, 10_000, 30_000])
            status = client.add(realm, count, size // count)
            assert status in (200, 507), status
            added += size
            assert added < 4 * self.size, "more than the disk holds was taken"
            refused[realm] += status == 507

    def fill(self) -> None:
        """Have all clients fill the disk at once."""
        failures: list[BaseException] = []

        def run(client: Client) -> None:
            try:
                self._fill(client)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(client,)) for client in self.clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def check_what_goes_on(self) -> None:
        """Reads and whatever takes away, in every realm."""
        for realm in self.realms:
            client = self.chance.choice(self.clients)
            assert ask(self.server, "GET", f"/{realm}/status").status == 200
            assert ask(self.server, "GET", f"/{realm}/jobs").status == 200
            if not any(held[0].realm == realm for held in client.leases):
                self._pull(client, realm)
            leases = [held for held in client.leases if held[0].realm == realm]
            for how, held in zip((EXTEND, ACK, NACK, RELEASE), leases, strict=False):
                assert client.end(how, [held]) == 200, how
                if how != EXTEND:
                    client.leases.remove(held)
            mine = [unit for unit in client.units if unit.realm == realm]
            for count in (1, 1, 5, 5):
                some = [mine.pop() for _ in range(min(count, len(mine)))]
                if some:
                    assert client.remove(some) == 200
            assert client.add(realm, 1, 20_000) in (200, 507)

    def _pull(self, client: Client, realm: str) -> None:
        """Pulls go on as well, until what is left of a reserve of some 100 KiB is kept for what takes away."""
        status = client.pull(realm, 4)
        if status != 200:
            assert (status, self.size) in ((507, MIB), (507, 2 * MIB))
            assert "the reserve is kept for what takes away" in client.refusals[-1]

    def kill_a_shard(self) -> None:
        """It starts again, though the disk is full."""
        shard = self.chance.randrange(self.shards)
        before = shard_pids(self.server)[shard]
        os.kill(before, signal.SIGKILL)
        eventually(lambda: self._answers(shard, before))

    def kill_all(self) -> None:
        """The server starts again, though the disk is full."""
        pids = children(self.server.pid)
        self.server.process.kill()
        self.server.process.wait()
        eventually(lambda: not any(map(is_running, pids)))
        self.server = self.start(data_dir=self.server.data_dir, shards=self.shards)
        for client in self.clients:
            client.ask_of(self.server)

    def _answers(self, shard: int, before: int) -> bool:
        try:
            return ask(self.server, "GET", "/readyz").status == 200 and shard_pids(self.server)[shard] != before
        except (OSError, AssertionError):
            return False

    def make_room(self) -> None:
        """There is room again, and the server finds out by itself."""
        if self.chance.random() < 0.5:
            self.disk.enlarge(4 * self.size)
        else:
            self.disk.empty()
            for realm in self.realms:  # it may have been little that others wrote
                client = self.clients[0]
                mine = [unit for unit in client.units if unit.realm == realm]
                for at in range(0, len(mine), 5):
                    assert client.remove(mine[at : at + 5]) == 200
            if self.disk.free() < self.size // 2:
                self.disk.enlarge(2 * self.size)
        began = time.monotonic()
        client = self.client("again")
        for realm in self.realms:
            eventually(lambda realm=realm: client.add(realm, 1, 1_000) == 200)  # type: ignore[misc]
        self.resumed_after = time.monotonic() - began
        assert self.resumed_after <= RESUME_SECONDS

    def drain(self) -> list[str]:
        """Take all that is left, and say what is wrong."""
        client = self.client("last")
        for held in [held for other in self.clients for held in other.leases]:
            client.end(RELEASE, [held])
        self.checker.drained_at = time.time()
        for realm in self.realms:
            while True:
                assert client.pull(realm, 100) == 200
                if not client.leases:
                    break
                while client.leases:
                    held, client.leases = client.leases[:50], client.leases[50:]
                    assert client.end(ACK, held) == 200
        return self.checker.violations()


def run(seed: int, mount: Callable[[int], SmallDisk], start: StartServer) -> Trial:
    trial = Trial(seed, mount, start)
    trial.fill()
    trial.check_what_goes_on()
    if trial.chance.random() < 0.5:
        trial.disk.fill()  # others take all that is left
        trial.check_what_goes_on()
    if trial.chance.random() < 0.6:
        trial.chance.choice([trial.kill_a_shard, trial.kill_all])()
        trial.check_what_goes_on()
    trial.make_room()
    assert trial.drain() == [], f"RESTQ_SEED={seed}"
    assert trial.server.stop() == 0
    return trial


@needs_mount
@pytest.mark.parametrize("seed", seeds(2, 50))
def test_full_disk_takes_removes_and_loses_nothing(
    small_disk: Callable[[int], SmallDisk], start_server: StartServer, seed: int
) -> None:
    trial = run(seed, small_disk, start_server)
    refusals = sum(len(client.refusals) for client in trial.clients)
    assert refusals >= 3
    print(f"seed {seed}: {trial.size // MIB} MiB, {refusals} refused, resumed after {trial.resumed_after:.1f} s")


# -- without a disk of its own ---------------------------------------------------------------------------------------


class Asker:
    """A shard's process over a file, and a front end that waits for each reply."""

    is_gone = False

    def __init__(self, folder: Path) -> None:
        path = folder / "shard-0000.sqlite"
        self.store = SqliteStore(path)
        self.store.keep_reserve(1)
        settings = {"index": 0, "count": 1, "elsewhere": {}, "sockets": [], "path": str(path)}
        self.process = ShardProcess({**settings, "default_lease_time": 600.0}, self.store)
        self._waiting: dict[int, asyncio.Future[Reply]] = {}

    def reply(self, reply: Reply) -> None:
        self._waiting.pop(reply.request_id).set_result(reply)

    def flush(self) -> None:
        """All is here."""

    async def drain(self) -> None:
        """All was taken."""

    async def ask(self, operation: str, params: list[Any], body: Any = None) -> tuple[int, Any]:
        """The status and the body of the reply."""
        number = len(self._waiting) + random.randrange(1 << 60)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        text = b"" if body is None else json.dumps(body).encode()
        self.process.shard.receive(Mail(self, 1.0, number, operation, "r", params, text))
        self.process.wake()
        reply = await self._waiting[number]
        return reply.status, json.loads(reply.body)

    async def add(self, job_id: str, size: int = 2_000) -> int:
        status, _ = await self.ask("add_job", [job_id], {"queue_id": 0, "data": "x" * size})
        return status

    async def remove(self, job_id: str) -> int:
        status, _ = await self.ask("remove_job", [job_id])
        return status

    async def count(self) -> int:
        _, said = await self.ask("get_status", [])
        return int(said["total_jobs"])


def with_process(folder: Path, play: Callable[[Asker], Any]) -> None:
    """Run the process while the test plays; what is in the file afterwards is what was in memory."""

    async def both() -> None:
        asker = Asker(folder)
        loop = asyncio.ensure_future(asker.process.run())
        try:
            await play(asker)
            expected = await asker.count()
        finally:
            asker.process.stop()
            await loop
        asker.store.close()
        again = Asker(folder)
        assert len(list(again.store.load().places)) == expected
        again.store.close()

    asyncio.run(both())


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FULL_SECONDS", 0.02)


class MadeUpDisk:
    """What `statvfs` says of a folder, as if it were a small disk of its own."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self.others = 0

    def statvfs(self, path: object) -> Any:
        used = sum(file.stat().st_blocks * 512 for file in self.folder.iterdir()) + self.others
        free = max(0, self.size - used) // PAGE_BYTES
        return SimpleNamespace(f_blocks=self.size // PAGE_BYTES, f_frsize=PAGE_BYTES, f_bavail=free)


@pytest.fixture
def made_up_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUpDisk:
    disk = MadeUpDisk(tmp_path, 4 * MIB)
    monkeypatch.setattr(reserve, "os", SimpleNamespace(**{**vars(os), "statvfs": lambda path: disk.statvfs(path)}))
    return disk


async def fill(asker: Asker) -> int:
    """Add until that is refused; how many went in."""
    for number in range(2_000):
        status = await asker.add(f"j{number}", 10_000)
        if status != 200:
            assert status == 507
            return number
    raise AssertionError("the disk has no end")


@pytest.mark.usefixtures("quick_looks")
def test_disk_of_which_the_reserve_is_all_that_is_left_takes_removes_alone(made_up_disk: MadeUpDisk) -> None:
    async def play(asker: Asker) -> None:
        file = made_up_disk.folder / "shard-0000.reserve"
        asker.process.shard.set_room(asker.store.room())
        assert file.stat().st_size == MIB
        count = await fill(asker)
        assert count > 100
        assert file.stat().st_size == MIB, "nothing had to be given up"
        assert await asker.count() == count
        assert await asker.add("more") == 507
        status, said = await asker.ask("pull", [], {"count": 2})
        assert (status, len(said["jobs"])) == (200, 2)
        leases = [job["lease_id"] for job in said["jobs"]]
        status, said = await asker.ask(
            "exchange", [], {"ack": {"leases": leases}, "add": [{"job_id": "n", "queue_id": 0}]}
        )
        assert (status, said["code"]) == (507, "storage_full")
        assert "nothing was done" in said["message"]
        assert (await asker.ask("exchange", [], {"ack": {"leases": leases[:1]}, "pull": {}}))[0] == 200
        for operation in ("extend", "nack", "release"):
            assert (await asker.ask(operation, [], {"leases": leases[1:]}))[0] == 200
        for operation, body in (("move_job", {"from_queue": 0, "to_queue": 1}), ("configure", {"max_attempts": 3})):
            assert (await asker.ask(operation, ["j9"], body))[0] == 507
        for number in range(10, 20):
            assert await asker.remove(f"j{number}") == 200
        for number in range(20, count, 20):
            some = [f"j{n}" for n in range(number, min(number + 20, count))]
            assert await asker.ask("remove_jobs", [], {"jobs": some}) == (200, {})
        await resumed(asker)

    with_process(made_up_disk.folder, play)


async def resumed(asker: Asker) -> None:
    """Adds are taken again, by and by."""
    for _ in range(500):
        if await asker.add("again") == 200:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("adds are refused for good")


@pytest.mark.usefixtures("quick_looks")
def test_disk_that_others_filled_is_found_to_have_room_again(made_up_disk: MadeUpDisk) -> None:
    async def play(asker: Asker) -> None:
        for number in range(200):
            assert await asker.add(f"j{number}") == 200
        made_up_disk.others = made_up_disk.size
        assert await asker.add("x", 9_000) == 507
        assert await asker.remove("j7") == 200
        assert await asker.ask("clear_queue", ["0"]) == (200, {"removed": 199})
        made_up_disk.others = 0
        await resumed(asker)

    with_process(made_up_disk.folder, play)


@pytest.mark.usefixtures("quick_looks")
def test_disk_that_can_not_be_looked_at_for_room_any_more_ends_the_process(made_up_disk: MadeUpDisk) -> None:
    """Else adds would be refused for good: nobody would look again."""

    async def play() -> None:
        asker = Asker(made_up_disk.folder)
        loop = asyncio.ensure_future(asker.process.run())
        made_up_disk.others = made_up_disk.size
        assert await asker.add("x", 50_000) == 507
        made_up_disk.statvfs = lambda path: os.statvfs(made_up_disk.folder / "gone")  # type: ignore[method-assign]
        with pytest.raises(StoreFailed, match="No such file"):
            await asyncio.wait_for(loop, 10)
        asker.store.close()

    asyncio.run(play())


def test_remove_on_a_disk_that_others_filled_takes_a_piece_of_the_reserve_at_once(made_up_disk: MadeUpDisk) -> None:
    """Also where pages that were freed in the file are enough for adds: the log needs room all the same."""

    class Database:
        """One whose log finds no room until the reserve gave some up."""

        def __init__(self, database: Any) -> None:
            self._database = database
            self.refusals = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._database, name)

        def execute(self, statement: str, *values: Any) -> Any:
            if statement == "COMMIT" and file.stat().st_size == MIB:
                self.refusals += 1
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            return self._database.execute(statement, *values)

    file = made_up_disk.folder / "shard-0000.reserve"
    store = SqliteStore(made_up_disk.folder / "shard-0000.sqlite")
    store.keep_reserve(1)
    assert store.room() == Room.ENOUGH
    changes = Changes()
    changes.payloads = dict.fromkeys(range(1, 130), b"x" * 5_000)
    asyncio.run(store.commit(changes, Mark(1, 2, 1.0)))
    changes.payloads = dict.fromkeys(range(1, 120))
    asyncio.run(store.commit(changes, Mark(2, 2, 1.0)))
    database: Any = Database(store._database)
    store._database = database
    made_up_disk.others = made_up_disk.size
    assert store.room() == Room.ENOUGH
    changes.payloads = {125: None}
    asyncio.run(store.commit(changes, Mark(3, 2, 1.0)))
    assert database.refusals == 2, "once before the log was moved, once after"
    assert file.stat().st_size == MIB * 7 // 8
    made_up_disk.others = 0
    changes.payloads = {126: None}
    asyncio.run(store.commit(changes, Mark(4, 2, 1.0)))
    assert file.stat().st_size == MIB, "it is made again"
    store._database = database._database
    store.close()


@pytest.mark.usefixtures("quick_looks")
def test_turn_that_finds_the_disk_full_refuses_its_adds_alone(made_up_disk: MadeUpDisk) -> None:
    async def play(asker: Asker) -> None:
        for number in range(5):
            assert await asker.add(f"j{number}") == 200
        made_up_disk.others = made_up_disk.size
        statuses = await asyncio.gather(
            asker.add("x", 50_000), asker.remove("j1"), asker.count(), asker.ask("pull", [], {}), asker.remove("j2")
        )
        assert statuses[:3] == [507, 200, 4]
        assert statuses[3][0] == statuses[4] == 200
        assert await asker.count() == 3

    with_process(made_up_disk.folder, play)


@pytest.mark.usefixtures("quick_looks")
def test_little_left_of_the_reserve_is_kept_for_what_takes_away(made_up_disk: MadeUpDisk) -> None:
    async def play(asker: Asker) -> None:
        for number in range(100):
            assert await asker.add(f"j{number}") == 200
        made_up_disk.others = made_up_disk.size
        assert await asker.add("x", 9_000) == 507
        (made_up_disk.folder / "shard-0000.reserve").unlink()  # it was given up
        status, said = await asker.ask("pull", [], {})
        assert (status, said["code"]) == (507, "storage_full")
        assert "the reserve is kept for what takes away" in said["message"]
        assert await asker.remove("j1") == 200
        assert await asker.ask("cancel_job", ["j2"]) == (200, {"cancelled": "removed"})
        assert await asker.ask("remove_jobs", [], {"jobs": ["j3", "j4"]}) == (200, {})
        assert await asker.count() == 96

    with_process(made_up_disk.folder, play)


@pytest.mark.usefixtures("quick_looks", "small_steps")
def test_bulk_add_that_the_disk_cut_short_goes_on_once_there_is_room(
    made_up_disk: MadeUpDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (batches, jobs):
        monkeypatch.setattr(module, "SLICE_COUNT", 10)
    made_up_disk.size *= 2

    async def play(asker: Asker) -> None:
        many = [{"job_id": f"m{number}", "queue_id": 0, "data": "x" * 3_000} for number in range(400)]
        bulk = asyncio.ensure_future(asker.ask("add_jobs", [], {"jobs": many}))
        while not any(realm.task for realm in asker.process.shard.realms()):  # noqa: ASYNC110
            await asyncio.sleep(0)
        made_up_disk.others = made_up_disk.size
        status, said = await bulk
        assert status == 507
        assert "if this had begun" in said["message"]
        for operation in ("get_status", "clear_queue"):  # half of it is shown to nobody
            status, said = await asker.ask(operation, ["0"])
            assert status == 507
            assert "a bulk add that was begun in this realm waits for room" in said["message"]
        made_up_disk.others = 0
        made_up_disk.size *= 4
        for _ in range(500):
            if (await asker.ask("get_status", []))[0] == 200:
                break
            await asyncio.sleep(0.01)
        assert await asker.count() == 400

    with_process(made_up_disk.folder, play)


@pytest.mark.usefixtures("quick_looks")
def test_file_that_sqlite_finds_full_takes_removes_and_then_adds(tmp_path: Path) -> None:
    """SQLite itself says that it is full, here of pages, whatever the disk says."""

    async def play(asker: Asker) -> None:
        execute = asker.store._database.execute
        [(pages,)] = execute("PRAGMA page_count").fetchall()
        execute(f"PRAGMA max_page_count = {pages + 50}")
        count = await fill(asker)
        assert count > 5
        assert await asker.count() == count
        for number in range(5):
            assert await asker.remove(f"j{number}") == 200
            assert await asker.add(f"large{number}", 200_000) == 507
        execute("PRAGMA max_page_count = 1000000")
        await resumed(asker)
        assert await asker.count() == count - 5 + 1

    with_process(tmp_path, play)


def test_reserve_is_given_up_piece_by_piece_and_made_again(made_up_disk: MadeUpDisk) -> None:
    store = SqliteStore(made_up_disk.folder / "shard-0000.sqlite")
    kept = reserve.Reserve(store._database, store.path, 1)
    assert kept.room() == Room.ENOUGH
    file = made_up_disk.folder / "shard-0000.reserve"
    sizes = [file.stat().st_size]
    assert not kept.make_room(is_first=False), "where there is enough, it is not touched"
    made_up_disk.others = made_up_disk.size
    while kept.room() > Room.NONE and kept.make_room(is_first=False):
        sizes.append(file.stat().st_size)
    assert sizes == [MIB - piece * MIB // 8 for piece in range(9)]
    assert kept.room() == Room.SCARCE
    made_up_disk.others = 0
    assert kept.room() == Room.ENOUGH
    assert file.stat().st_size == MIB
    assert file.stat().st_blocks * 512 >= MIB
    store.close()


def test_reserve_that_holds_no_blocks_counts_for_nothing(made_up_disk: MadeUpDisk) -> None:
    file = made_up_disk.folder / "shard-0000.reserve"
    file.touch()
    os.truncate(file, MIB)
    store = SqliteStore(made_up_disk.folder / "shard-0000.sqlite")
    kept = reserve.Reserve(store._database, store.path, 1)
    made_up_disk.others = made_up_disk.size
    assert kept.room() == Room.SCARCE
    assert not kept.make_room(is_first=False)
    store.close()


def test_start_with_fewer_shards_on_a_full_disk_says_so_and_leaves_no_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in (0, 1):
        store = SqliteStore(shard_path(tmp_path, shard))
        store.keep_reserve(2)
        store.room()
        changes = Changes()
        changes.realms[1] = RealmRow(1, next(names_on(shard, "r")), 600.0, 1, 0, None)
        asyncio.run(store.commit(changes, Mark(1, 2, 1.0)))
        store.close()
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "_commit", lambda *_: (_ for _ in ()).throw(StorageFull("no room")))
        with pytest.raises(StoreRefused, match="has no room to move realms to their shards: no room"):
            relocate(tmp_path, 1)
    relocate(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.glob("*.reserve")) == ["shard-0000.reserve"]


def test_body_that_does_not_fit_is_refused_alone_and_its_neighbours_are_served(tmp_path: Path) -> None:
    rig = Rig()
    rig.store.growable = lambda: 3.0 * LARGE_BYTES  # type: ignore[method-assign]
    rig.start()
    fits, too_much = "x" * (LARGE_BYTES - 40), "x" * LARGE_BYTES
    requests = [
        rig.send("add_job", realm, [job_id], {"queue_id": 0, "data": data})
        for realm, job_id, data in (("a", "1", "x"), ("a", "2", fits), ("b", "3", too_much), ("b", "4", too_much))
    ]
    requests.append(
        rig.send("remove_jobs", "a", [], {"jobs": ["1", *(f"{number}" + "y" * 8_000 for number in range(9))]})
    )
    assert rig.turn() == [requests[0], requests[2], requests[1], requests[3], requests[4]]
    assert [rig.replies[request].status for request in requests] == [200, 200, 507, 507, 200]
    assert "nothing was done" in json.loads(rig.replies[requests[2]].body)["message"]
    rig.store.growable = lambda: 30.0 * LARGE_BYTES  # type: ignore[method-assign]
    rig.start()
    assert rig.reply_to("add_job", "b", ["3"], {"queue_id": 0, "data": too_much}).status == 200


@needs_mount
def test_commit_that_was_far_too_large_leaves_its_room_to_others(small_disk: Callable[[int], SmallDisk]) -> None:
    disk = small_disk(8 * MIB)
    store = SqliteStore(disk.path / "shard-0000.sqlite")
    store.keep_reserve(1)
    assert store.room() == Room.ENOUGH
    before = disk.free()
    changes = Changes()
    for key in range(1, 1_001):
        changes.payloads[key] = b"x" * 30_000
    with pytest.raises(StorageFull):
        asyncio.run(store.commit(changes, Mark(1, 1_001, 0.0)))
    assert store.room() == Room.ENOUGH
    assert disk.free() > before - MIB
    changes.payloads = {1: b"x" * 30_000}
    asyncio.run(store.commit(changes, Mark(1, 1_001, 0.0)))
    store.close()


@needs_mount
def test_start_on_a_full_disk_after_a_move_is_served(small_disk: Callable[[int], SmallDisk]) -> None:
    """The notes on realms that live elsewhere are made anew at a start, which takes room for a commit."""
    disk = small_disk(12 * MIB)
    relocate(disk.path, 2)
    for shard in range(2):
        store = SqliteStore(shard_path(disk.path, shard))
        store.keep_reserve(2)
        assert store.room() == Room.ENOUGH
        changes = Changes()
        changes.moved["a realm"] = MovedRow("a realm", 1, 1)
        asyncio.run(store.commit(changes, Mark(store.load().mark.group + 1, 10, 1.0)))
        store.close()
    disk.fill()
    relocate(disk.path, 2)
    disk.empty()
