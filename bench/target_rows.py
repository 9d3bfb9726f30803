"""How each row of what restq is to reach is measured, where it needs no other queue: one function a row or two.

What is compared is measured in one run: two servers stand side by side and get the same requests by turns.
"""

from __future__ import annotations

import itertools
import re
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

from bench import websocket
from bench.connection import Address, Connection, LoadError, Script, call, drive, each, request, run
from bench.life import Life
from bench.report import Figures, percentiles
from bench.scenarios import Plan, Session, lease_long
from bench.server import Process, Server, running
from bench.workload import ID_BYTES, Workload
from restq.placement import home

REALM = "load-0"  # that of a Workload with one realm
BATCH = 1_000
TURNS = 50  # that each of two servers gets: what else the machine does then meets both
LARGE_BYTES = 8 << 10  # of data, more than a shard keeps in memory
LARGE_BATCH = 100
STREAM_WAITERS = 1_000  # that one stream may have
SPREAD_REALMS = 8

_LEASE_ID = re.compile(rb'"lease_id": ?("[^"]+")')


@dataclass(frozen=True)
class Sizes:
    """How much of all; the defaults are those of the rows. `big` takes minutes."""

    jobs: int = 1_000_000
    few: int = 1_000
    big: int = 10_000_000
    small: int = 10_000  # that `big` is compared with
    pulls: int = 10_000
    batches: int = 100  # of bulk work on each server
    large_jobs: int = 40_000  # whose data is large
    waiters: int = 10_000
    idle_seconds: float = 10.0
    data_root: Path | None = None


@contextmanager
def servers(sizes: Sizes, shards: int = 1) -> Iterator[list[Server]]:
    """Two servers: one with one shard, one with so many."""
    with (
        running(sizes.data_root, "--shards", "1") as first,
        running(sizes.data_root, "--shards", str(shards)) as second,
    ):
        yield [first, second]


# -- what waits ----------------------------------------------------------------------------------------------------


def leased(sizes: Sizes) -> Figures:
    """Pulls with many leased jobs against pulls with few."""
    return _pulls(sizes, Life.lease)


def held(sizes: Sizes) -> Figures:
    """Pulls with many jobs that a limit holds against pulls with few."""
    return _pulls(sizes, Life.hold)


def _pulls(sizes: Sizes, prepare: Callable[[Life], object]) -> Figures:
    figures: Figures = {}
    with servers(sizes) as both:
        lives = [_life(server, sizes, jobs) for server, jobs in zip(both, (sizes.few, sizes.jobs), strict=True)]
        for life in lives:
            prepare(life)
        for name, script in (("empty_pull", Life.pulls_in_vain), ("pull", Life.pulls_of_others)):
            few, many = _latencies(lives, script)
            figures[f"{name}_p99_ms_few"] = percentiles(few)["p99_ms"]
            figures[f"{name}_p99_ms_many"] = percentiles(many)["p99_ms"]
            figures[f"{name}_p99_ratio"] = figures[f"{name}_p99_ms_many"] / figures[f"{name}_p99_ms_few"]
    return figures


def _life(server: Server, sizes: Sizes, jobs: int) -> Life:
    others = {"max_leased": 10, "waiters": sizes.waiters, "idle_seconds": sizes.idle_seconds}
    return Life(server, {"jobs": jobs, "pulls": max(1, sizes.pulls // TURNS), **others})


def _latencies(lives: Sequence[Life], script: Callable[[Life], Script]) -> list[array[float]]:
    """Of the pulls of each."""
    found = [array("d") for _ in lives]
    for _ in range(TURNS):
        for latencies, life in zip(found, lives, strict=True):
            latencies.extend(drive(life.address, [script(life)]).latencies[""])
    return found


def waiters(sizes: Sizes) -> Figures:
    """Long polls while nothing happens."""
    with running(sizes.data_root, "--shards", "1") as server:
        life = _life(server, sizes, 1)
        time.sleep(sizes.idle_seconds / 2)  # a start is over then
        before = server.cpu_seconds()
        time.sleep(sizes.idle_seconds)
        nobody = (server.cpu_seconds() - before) / sizes.idle_seconds * 100
        life.wait()
        found = life.run["waiters"]
    return {
        "memory_KiB_each": found["memory_bytes_each"] / 1024,
        "cpu_percent_with_nobody": round(nobody, 2),  # a tick of the system's clock in 10 s is 0.1
        "cpu_percent": round(found["cpu_percent_while_waiting"], 2),
    }


def stream_waiters(sizes: Sizes) -> Figures:
    """The same over streams, a window of them over each: of so many more, once the first streams are there."""
    with running(sizes.data_root, "--shards", "1") as server:
        call(server.address, "PUT", f"/{REALM}/config", b"{}")
        pulls = b"".join(msgpack.packb([number, "pull", [], b'{"wait":300}']) for number in range(STREAM_WAITERS))
        streams = [_stream(server.address, pulls)]
        time.sleep(sizes.idle_seconds / 2)
        before = server.memory_bytes("Rss")
        streams += [_stream(server.address, pulls) for _ in range(sizes.waiters // STREAM_WAITERS)]
        time.sleep(sizes.idle_seconds / 2)
        grown, cpu = server.memory_bytes("Rss") - before, server.cpu_seconds()
        time.sleep(sizes.idle_seconds)
        cpu = server.cpu_seconds() - cpu
        for stream in streams:
            stream.socket.close()
    return {
        "memory_KiB_each": grown / 1024 / ((len(streams) - 1) * STREAM_WAITERS or STREAM_WAITERS),
        "cpu_percent": round(cpu / sizes.idle_seconds * 100, 2),
    }


def _stream(address: Address, pulls: bytes) -> Connection:
    stream = Connection(address, websocket.Replies())
    run([stream], [each("open", iter([websocket.opening(f"/{REALM}/stream")]))])
    stream.socket.setblocking(True)
    stream.socket.sendall(websocket.message(pulls))
    return stream


# -- bulk work -----------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """What the turns of one server took so far, in seconds."""

    server: Server
    numbers: Iterator[int] = field(default_factory=itertools.count)  # of its jobs
    seconds: float = 0.0
    server_cpu: float = 0.0
    shards_cpu: float = 0.0
    generator_cpu: float = 0.0

    def work(self, realms: Sequence[str], batches: int) -> None:
        """Add, pull and ack batches in each of these realms, over one connection each."""
        scripts = [cycles(realm, self._adds(realm, batches)) for realm in realms]
        shards = self.server.shards()
        before = self.server.cpu_seconds(), _cpu(shards), time.process_time()
        self.seconds += drive(self.server.address, scripts).seconds
        self.server_cpu += self.server.cpu_seconds() - before[0]
        self.shards_cpu += _cpu(shards) - before[1]
        self.generator_cpu += time.process_time() - before[2]

    def _adds(self, realm: str, batches: int) -> list[bytes]:
        workload = Workload()
        starts = [next(self.numbers) * BATCH for _ in range(batches)]
        return [workload.add(realm, range(start, start + BATCH)) for start in starts]


def _cpu(processes: Sequence[Process]) -> float:
    return sum(process.cpu_seconds for process in processes)


def cycles(realm: str, adds: Sequence[bytes]) -> Script:
    """Each batch is added, then as many jobs are pulled and acked: as many as before are left."""
    pull = request("POST", f"/{realm}/pull", b'{"count":%d}' % BATCH)
    for add in adds:
        yield "add", add
        leases = _LEASE_ID.findall((yield "pull", pull))
        if len(leases) != BATCH:
            raise LoadError(f"a pull found {len(leases)} jobs, and not {BATCH}")
        yield "ack", request("POST", f"/{realm}/ack", b'{"leases":[%s]}' % b",".join(leases))


def fill(address: Address, jobs: int) -> None:
    """Add so many jobs to REALM."""
    requests = (data for _, data in Workload(jobs=jobs).adds())
    drive(address, [each("add", requests), each("add", requests)])


def size(sizes: Sizes) -> Figures:
    """Bulk work in a realm with many jobs against that in one with few."""
    with servers(sizes) as both:
        costs = []
        for server, jobs in zip(both, (sizes.small, sizes.big), strict=True):
            fill(server.address, jobs)
            costs.append(Cost(server, itertools.count(-(-jobs // BATCH))))
        _in_turn(costs, [REALM], sizes.batches)
    small, big = costs
    return {
        "seconds_ratio": big.seconds / small.seconds,
        "cpu_seconds_ratio": big.server_cpu / small.server_cpu,
        **_shares(small, "_few"),
        **_shares(big, "_many"),
    }


def shards(sizes: Sizes) -> Figures:
    """Bulk work over realms of two shards against the same over one shard."""
    found = (f"load-{number}" for number in itertools.count())
    realms = [next(name for name in found if home(name, 2) == shard) for shard in (0, 1)]
    with servers(sizes, 2) as both:
        one, two = costs = [Cost(server) for server in both]
        _in_turn(costs, realms * 2, -(-sizes.batches // 2))
    return {"jobs_per_s_ratio": one.seconds / two.seconds, **_shares(one, "_one"), **_shares(two, "_two")}


def _in_turn(costs: Sequence[Cost], realms: Sequence[str], batches: int) -> None:
    for cost in costs:
        Cost(cost.server, cost.numbers).work(realms, 1)  # what is done once is then done, and not counted
    turns = min(TURNS, batches)
    for _ in range(turns):
        for cost in costs:
            cost.work(realms, batches // turns)


def _shares(cost: Cost, side: str) -> Figures:
    """Who used how much of one core."""
    return {
        f"shards_cpu_percent{side}": cost.shards_cpu / cost.seconds * 100,
        f"front_ends_cpu_percent{side}": (cost.server_cpu - cost.shards_cpu) / cost.seconds * 100,
        f"generator_cpu_percent{side}": cost.generator_cpu / cost.seconds * 100,
    }


def clear(sizes: Sizes) -> Figures:
    """Adds and pulls in a realm while another realm of its shard is cleared."""
    state = {"is_clearing": True}

    def clearing() -> Script:
        yield "clear", request("POST", f"/{REALM}/queues/0/clear")
        state["is_clearing"] = False

    def others() -> Script:
        for number in itertools.count():
            if not state["is_clearing"]:
                return
            yield "other", request("PUT", f"/other/job/{number}", b'{"queue_id":0}')
            yield "other", request("POST", "/other/pull", b'{"count":1}')

    with running(sizes.data_root, "--shards", "1") as server:
        fill(server.address, sizes.jobs)
        latencies = drive(server.address, [others(), clearing()]).latencies
        left = call(server.address, "GET", f"/{REALM}/status")
        if b'"total_jobs":0' not in left.replace(b" ", b""):
            raise LoadError(f"a clear left jobs: {left[:300]!r}")
    found = percentiles(latencies["other"])
    return {"p99_ms": found["p99_ms"], "max_ms": found["max_ms"], "clear_seconds": latencies["clear"][0]}


# -- memory and start ----------------------------------------------------------------------------------------------


def whole(sizes: Sizes) -> Figures:
    """Memory of ready and of leased jobs, and starts with them."""
    with running(sizes.data_root, "--shards", "1") as server:
        plan = Plan(scenarios=("memory", "restart"))
        found = Session(server.address, Workload(jobs=sizes.jobs), plan, server).measure()
    memory = "rss_beyond_id_and_data_bytes_per_job"
    return {
        "bytes_a_ready_job": found["memory, all ready"][memory],
        "bytes_a_leased_job": found["memory, all leased"][memory],
        "start_seconds_after_kill": found["restart after kill -9"]["ready_s"],
        "start_seconds_after_stop": found["restart after SIGTERM"]["ready_s"],
    }


def spread(sizes: Sizes) -> Figures:
    """Starts of two shards that share the jobs."""
    with running(sizes.data_root, "--shards", "2") as server:
        workload = Workload(jobs=sizes.jobs, realms=SPREAD_REALMS)
        session = Session(server.address, workload, Plan(scenarios=("restart",)), server)
        for shard, realms in enumerate(_halves(workload.realm_names())):
            for realm in realms:
                call(server.address, "PUT", f"/{realm}/config", b"{}")  # it comes to be
                call(server.address, "PUT", f"/{realm}/shard", b'{"shard":%d}' % shard)
        found = session.measure()
    return {"start_seconds_after_kill": found["restart after kill -9"]["ready_s"]}


def _halves(names: list[str]) -> tuple[list[str], list[str]]:
    return names[: len(names) // 2], names[len(names) // 2 :]


def large(sizes: Sizes) -> Figures:
    """Memory of jobs whose data is large: of so many more, once what is taken once is taken."""
    workload = Workload(jobs=sizes.large_jobs, batch=LARGE_BATCH, data_bytes=LARGE_BYTES)
    with running(sizes.data_root, "--shards", "1") as server:
        lease_long(server.address, [REALM])
        requests = (data for _, data in workload.adds())
        (shard,) = server.shards()
        batches = -(-sizes.large_jobs // LARGE_BATCH // 2)
        drive(server.address, [each("add", itertools.islice(requests, batches))])
        before = shard.memory_bytes("Rss")
        drive(server.address, [each("add", itertools.islice(requests, batches))])
        grown = shard.memory_bytes("Rss") - before
    return {"bytes_a_job_with_large_data": grown / (batches * LARGE_BATCH) - ID_BYTES}


ROWS: dict[str, Callable[[Sizes], Figures]] = {
    "leased": leased,
    "held": held,
    "size": size,
    "shards": shards,
    "memory": whole,
    "spread": spread,
    "large data": large,
    "clear": clear,
    "waiters": waiters,
    "stream waiters": stream_waiters,
}
