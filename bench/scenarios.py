"""What is measured, phase by phase: one run over a server fills one `Run` of figures."""

from __future__ import annotations

import json
import re
import signal
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import quote

from bench.connection import Address, LoadError, Script, call, drive, each, request
from bench.report import Run, percentiles
from bench.server import Server
from bench.workload import ID_BYTES, RealmRequest, Workload, pulled_ids

NAMES = ("bulk", "empty", "memory", "restart", "single")
LEASE_SECONDS = 86_400
SINGLE_REALM = "load-single"

_JOB_ID = re.compile(rb'"job_id": ?"([^"]+)"')


@dataclass(frozen=True)
class Plan:
    """Which scenarios to run, and their sizes."""

    scenarios: tuple[str, ...] = NAMES
    connections: int = 2
    empty_pulls: int = 2_000
    single_jobs: int = 20_000
    single_connections: int = 32


def lease_long(address: Address, realms: list[str]) -> None:
    """Have no lease of these realms end during a run."""
    for realm in realms:
        call(address, "POST", f"/{realm}/config", b'{"default_lease_time":%d}' % LEASE_SECONDS)


@dataclass
class Session:
    """One run: the server in question, ours or another's, and the figures so far."""

    address: Address
    workload: Workload
    plan: Plan
    server: Server | None = None  # None: somebody else's, which is not restarted and not looked into
    run: Run = field(default_factory=dict)
    memory_before: dict[str, int] = field(default_factory=dict)

    def measure(self) -> Run:
        """Run all scenarios of the plan, and leave no jobs behind."""
        realms = [*self.workload.realm_names(), SINGLE_REALM]
        lease_long(self.address, realms)
        self.memory_before = self.memory()
        if self.memory_before and "memory" in self.plan.scenarios:
            self.run["memory, empty"] = {"shards_rss_MiB": self.memory_before["Rss"] / 2**20}
        if set(self.plan.scenarios) - {"single"}:
            self.bulk()
        if "single" in self.plan.scenarios:
            self.single()
        for realm in realms:
            call(self.address, "DELETE", f"/{realm}/")
        return self.run

    def bulk(self) -> None:
        """Add all jobs, pull them all, remove them; the other scenarios of many jobs lie between."""
        jobs, plan = self.workload.jobs, self.plan
        self.batches("bulk add", self.workload.adds())
        self.check_jobs(jobs)
        self.note_memory("memory, all ready")
        replies = self.batches("bulk pull", self.workload.pulls())
        pulled = [(realm, pulled_ids(reply)) for realm, reply in replies]
        del replies
        self.workload.check_pulled(pulled)
        self.note_memory("memory, all leased")
        if "empty" in plan.scenarios:
            self.empty()
        if "restart" in plan.scenarios and self.server is not None:
            self.restart("restart after kill -9", signal.SIGKILL)
            self.restart("restart after SIGTERM", signal.SIGTERM)
            self.note_memory("memory, restarted")
        if "bulk" in plan.scenarios:
            self.batches("bulk remove", self.workload.removes(pulled))
            self.check_jobs(0)

    def batches(self, phase: str, requests: Iterator[RealmRequest]) -> list[tuple[str, bytes]]:
        """Send all requests, each by whichever connection is free; the replies with their realms."""
        replies: list[tuple[str, bytes]] = []
        waiting = iter(list(requests))  # made ready here, before the clock starts

        def script() -> Script:
            for realm, data in waiting:
                replies.append((realm, (yield phase, data)))

        self.timed({phase: self.workload.jobs}, [script] * self.plan.connections)
        return replies

    def empty(self) -> None:
        """All jobs are leased: the pulls that find nothing, one after the other."""
        phase = "pull that finds nothing"
        data = request("POST", f"/{self.workload.realm(0)}/pull", b'{"count":1}')

        def script() -> Script:
            for _ in range(self.plan.empty_pulls):
                reply = yield phase, data
                if pulled_ids(reply):
                    raise LoadError("a job was handed out while its lease held")

        self.timed({phase: 0}, [script])

    def single(self) -> None:
        """One job a request, over many connections: adds, then pull and remove by turns."""
        plan, workload = self.plan, self.workload
        numbers = iter(range(plan.single_jobs))
        body = b'{"queue_id":0,"data":"%s","tags":["tag-0"]}' % (b"x" * (workload.data_bytes - 2))
        path = f"/{SINGLE_REALM}/job/"
        adds = iter([request("PUT", path + workload.job_id(number), body) for number in numbers])

        pull = request("POST", f"/{SINGLE_REALM}/pull", b'{"count":1}')

        def work() -> Script:
            while found := _JOB_ID.search((yield "single pull", pull)):
                yield "single remove", request("DELETE", path + quote(found[1].decode(), safe=""))

        jobs = plan.single_jobs
        self.timed({"single add": jobs}, [partial(each, "single add", adds)] * plan.single_connections)
        self.timed({"single pull": jobs, "single remove": jobs}, [work] * plan.single_connections)
        self.check_jobs(0, [SINGLE_REALM])

    def restart(self, phase: str, number: signal.Signals) -> None:
        """End the server, start it on the same data, and see that every job is there."""
        assert self.server is not None, "another's server is not restarted"
        ended = self.server.stop(number)
        started = time.perf_counter()
        ready = self.server.start()
        self.address = self.server.address
        self.check_jobs(self.workload.jobs)
        counted = time.perf_counter() - started
        self.run[phase] = {"all_processes_ended_s": ended, "ready_s": ready, "all_jobs_counted_s": counted}

    def timed(self, jobs: dict[str, int], scripts: list[Callable[[], Script]]) -> None:
        """Drive the scripts and file what was measured under the phases that `jobs` names."""
        server_before, own_before = self.server_cpu(), time.process_time()
        timings = drive(self.address, [script() for script in scripts])
        own, server = time.process_time() - own_before, self.server_cpu() - server_before
        for phase, count in jobs.items():
            latencies = timings.latencies.get(phase, array("d"))
            figures = {"requests": float(len(latencies)), "seconds": timings.seconds, **percentiles(latencies)}
            if count:
                figures["jobs_per_s"] = count / timings.seconds
            figures["generator_cpu_s"] = own
            if self.server is not None:
                figures["server_cpu_s"] = server
            self.run[phase] = figures

    def check_jobs(self, expected: int, realms: list[str] | None = None) -> None:
        """As many jobs are in the realms as there must be."""
        found = 0
        for realm in realms or self.workload.realm_names():
            found += json.loads(call(self.address, "GET", f"/{realm}/status"))["total_jobs"]
        if found != expected:
            raise LoadError(f"the server holds {found} jobs, and not {expected}")

    def server_cpu(self) -> float:
        return self.server.cpu_seconds() if self.server is not None else 0.0

    def memory(self) -> dict[str, int]:
        """Bytes of memory of all shards together; nothing of another's server."""
        if self.server is None:
            return {}
        shards = self.server.shards()
        return {kind: sum(shard.memory_bytes(kind) for shard in shards) for kind in ("Rss", "Pss")}

    def note_memory(self, phase: str) -> None:
        """What the shards hold beyond their start, a job, without the job's own id and data."""
        if "memory" not in self.plan.scenarios or self.server is None:
            return
        own, jobs, now = ID_BYTES + self.workload.data_bytes, self.workload.jobs, self.memory()
        self.run[phase] = {"shards_rss_MiB": now["Rss"] / 2**20}
        for kind, before in self.memory_before.items():
            self.run[phase][f"{kind.lower()}_beyond_id_and_data_bytes_per_job"] = (now[kind] - before) / jobs - own
