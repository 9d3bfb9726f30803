"""What waits must cost nothing: leased jobs, jobs held by a limit or behind a dependency, workers that wait for jobs.

Starts a server of its own, on a free port and a new data directory, measures it, and stops it.

\b
The scenarios:
  leased   all jobs are leased: pulls that find nothing, and pulls of one more job
  held     all jobs carry a tag of which max_leased may be leased at a time: pulls that find nothing, ack and
           pull by turns, and pulls of one more job behind all that is held
  blocked  all jobs come after a tag that one job carries: pulls that find nothing, and the pull that follows
           the end of that job
  waiters  long polls that wait: memory and CPU while nothing happens, then the time from an add to its answer
"""

from __future__ import annotations

import itertools
import json
import resource
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any

import click

from bench import machine, report
from bench.connection import Address, LoadError, Script, call, drive, each, request
from bench.load import COUNT, FOLDER, WIDTH
from bench.scenarios import lease_long
from bench.server import Server, running

NAMES = ("leased", "held", "blocked", "waiters")
REALM = "/life"
TAG = "limited"
BATCH = 1_000
REPLY_SECONDS_MAX = 30.0
PULL = request("POST", f"{REALM}/pull", b'{"count":1}')


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def allow_files() -> None:
    """Let this process, and servers that it starts, have as many connections as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Life:
    """One run over one server."""

    def __init__(self, server: Server, options: dict[str, Any]) -> None:
        self.server = server
        self.address: Address = server.address
        self.jobs: int = options["jobs"]
        self.pulls: int = options["pulls"]
        self.max_leased: int = options["max_leased"]
        self.waiters: int = options["waiters"]
        self.idle_seconds: float = options["idle_seconds"]
        self.run: report.Run = {}
        self._others = itertools.count()

    def leased(self) -> None:
        """A million jobs that others have."""
        self.lease()
        self._timed("leased: pull finds nothing", self.pulls_in_vain())
        self._timed("leased: add one more, pull it", self.pulls_of_others())
        self.delete()

    def lease(self) -> None:
        """Add all jobs, and lease them for long."""
        lease_long(self.address, [REALM[1:]])
        self._add({})
        requests = iter([request("POST", f"{REALM}/pull", body({"count": BATCH}))] * (-(-self.jobs // BATCH)))
        drive(self.address, [each("pull", requests), each("pull", requests)])

    def held(self) -> None:
        """A million jobs of which few may run at a time."""
        leases = self.hold()
        self._timed("held: pull finds nothing", self.pulls_in_vain())
        self._timed("held: ack, pull the next", self._cycles(leases))
        self._timed("held: add one more, pull it", self.pulls_of_others())
        self.delete()

    def hold(self) -> list[str]:
        """Add all jobs under a limit, and lease as many as it allows; their leases."""
        call(self.address, "PUT", f"{REALM}/tags/{TAG}", body({"max_leased": self.max_leased}))
        self._add({"tags": [TAG]})
        first = self._pull(self.max_leased + 5)
        if len(first) != self.max_leased:
            raise LoadError(f"{len(first)} jobs were leased under a limit of {self.max_leased}")
        return [job["lease_id"] for job in first]

    def delete(self) -> None:
        """Leave no job."""
        call(self.address, "DELETE", f"{REALM}/")

    def blocked(self) -> None:
        """A million jobs that come after one."""
        call(self.address, "PUT", f"{REALM}/job/first", body({"queue_id": 0, "tags": ["stage"]}))
        self._add({"after": ["stage"]})
        (job,) = self._pull(2)
        self._timed("blocked: pull finds nothing", self.pulls_in_vain())
        self._timed("blocked: the ack that frees them", self._ack(job["lease_id"]))
        self._timed("blocked: pull of what was freed", self._pulls(1))
        self.delete()

    def wait(self) -> None:
        """Workers that wait, then a job for each of some."""
        before, memory = self.server.cpu_seconds(), self._memory()
        sockets = [socket.create_connection(self.address) for _ in range(self.waiters)]
        selector = selectors.DefaultSelector()
        for connection in sockets:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(request("POST", f"{REALM}/pull", b'{"wait":300}'))
            selector.register(connection, selectors.EVENT_READ)
        call(self.address, "GET", "/readyz")
        time.sleep(2.0)
        asked = self.server.cpu_seconds()
        time.sleep(self.idle_seconds)
        idle = self.server.cpu_seconds()
        self.run["waiters"] = {
            "memory_bytes_each": (self._memory() - memory) / self.waiters,
            "cpu_s_to_begin": asked - before,
            "cpu_percent_while_waiting": (idle - asked) / self.idle_seconds * 100,
        }
        latencies = self._wake(selector, min(self.waiters, 1_000))
        self.run["waiters: from add to answer"] = {
            "requests": float(len(latencies)),
            "seconds": sum(latencies),
            **report.percentiles(latencies),
        }
        selector.close()
        for connection in sockets:
            connection.close()
        self.delete()

    def _wake(self, selector: selectors.BaseSelector, count: int) -> list[float]:
        control = socket.create_connection(self.address)
        control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        latencies = []
        for number in range(count):
            started = time.perf_counter()
            control.sendall(request("PUT", f"{REALM}/job/{number}", b'{"queue_id":0}'))
            woken = selector.select(REPLY_SECONDS_MAX)
            latencies.append(time.perf_counter() - started)
            if len(woken) != 1:
                raise LoadError(f"one job woke {len(woken)} waiters")
            ((key, _),) = woken
            key.fileobj.recv(65536)  # type: ignore[union-attr]
            selector.unregister(key.fileobj)
            control.recv(65536)
        control.close()
        return latencies

    def _memory(self) -> int:
        return self.server.memory_bytes("Rss")

    def _add(self, said: dict[str, Any]) -> None:
        requests = (
            request("POST", f"{REALM}/jobs", body({"jobs": list(self._batch(first, said))}))
            for first in range(0, self.jobs, BATCH)
        )
        drive(self.address, [each("add", requests), each("add", requests)])

    def _batch(self, first: int, said: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number in range(first, min(first + BATCH, self.jobs)):
            yield {"job_id": f"job {number}", "queue_id": 0, "data": "x" * 100, **said}

    def _pull(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(call(self.address, "POST", f"{REALM}/pull", body({"count": count})))[
            "jobs"
        ]
        return found

    def pulls_in_vain(self) -> Script:
        """Pulls that find nothing."""
        return self._pulls(0)

    def _pulls(self, expected: int) -> Script:
        for _ in range(self.pulls):
            reply = yield "", PULL
            if len(json.loads(reply)["jobs"]) != expected:
                raise LoadError(f"a pull found something else than {expected} jobs")

    def _cycles(self, leases: list[str]) -> Script:
        for _ in range(self.pulls):
            yield "ack", request("POST", f"{REALM}/ack", body({"leases": [leases.pop(0)]}))
            (job,) = json.loads((yield "", PULL))["jobs"]
            leases.append(job["lease_id"])

    def pulls_of_others(self) -> Script:
        """Adds of one more job each, and the pulls of it, which find no other."""
        for number in itertools.islice(self._others, self.pulls):
            yield "add", request("PUT", f"{REALM}/job/other%20{number}", b'{"queue_id":0}')
            (job,) = json.loads((yield "", PULL))["jobs"]
            if job["job_id"] != f"other {number}":
                raise LoadError("a pull found what a limit holds")

    def _ack(self, lease: str) -> Script:
        yield "", request("POST", f"{REALM}/ack", body({"leases": [lease]}))

    def _timed(self, phase: str, script: Script) -> None:
        timings = drive(self.address, [script])
        latencies = timings.latencies[""]
        self.run[phase] = {
            "requests": float(len(latencies)),
            "seconds": timings.seconds,
            **report.percentiles(latencies),
        }


@click.command(help=__doc__, context_settings=WIDTH)
@click.option("--scenarios", default=",".join(NAMES), help="Which to run.")
@click.option("--jobs", type=COUNT, default=1_000_000, help="Jobs that are held, or blocked.")
@click.option("--max-leased", type=COUNT, default=10, help="How many of them may be leased at a time.")
@click.option("--pulls", type=COUNT, default=2_000, help="Pulls of each kind.")
@click.option("--waiters", type=COUNT, default=10_000, help="Long polls that wait at once.")
@click.option("--idle-seconds", type=float, default=10.0, help="For how long they wait before anything happens.")
@click.option("--data-root", type=FOLDER, help="Where the data directory is made.")
@click.option("--repeat", type=COUNT, default=1, help="Runs, each on a new server; shows the median and the extremes.")
def main(**options: Any) -> None:
    scenarios = options["scenarios"].split(",")
    if unknown := set(scenarios) - set(NAMES):
        raise click.UsageError(f"no scenario {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    allow_files()
    facts, runs = machine.facts(options["data_root"]), []
    try:
        for number in range(options["repeat"]):
            click.echo(f"run {number + 1} of {options['repeat']} ..", err=True)
            with running(options["data_root"], "--shards", "1") as server:
                life = Life(server, options)
                for name in scenarios:
                    {"leased": life.leased, "held": life.held, "blocked": life.blocked, "waiters": life.wait}[name]()
            runs.append(life.run)
    except (LoadError, OSError) as error:
        raise click.ClickException(str(error)) from error
    settings = {name.replace("_", " "): str(value) for name, value in options.items() if value is not None}
    click.echo(report.shown(facts, settings, report.spread(runs), len(runs)))


if __name__ == "__main__":
    main()
