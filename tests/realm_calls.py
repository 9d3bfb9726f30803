"""The calls on one realm over HTTP, as tests of a job's life make them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from conftest import Server
from wire import Answer, ask, connect, encoded, raw_request

KEY = "Idempotency-Key"


class RealmCalls:
    """One realm of a server."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> Answer:
        """Any request below the realm's path."""
        headers = {"Content-Type": "application/json", **({} if key is None else {KEY: key})}
        return ask(self.server, method, f"/{self.name}/{path}", body, headers)

    def post(self, path: str, key: str | None = None, **body: Any) -> Answer:
        """A POST with these fields."""
        return self.ask("POST", path, body, key)

    def add(self, job_id: str, queue_id: Any = 0, **wishes: Any) -> Answer:
        """Add a job."""
        return self.ask("PUT", f"job/{encoded(job_id)}", {"queue_id": queue_id, **wishes})

    def add_all(self, *job_ids: str, queue_id: Any = 0, **wishes: Any) -> None:
        """Add jobs in this order."""
        self.post("jobs", jobs=[{"job_id": job_id, "queue_id": queue_id, **wishes} for job_id in job_ids]).ok()

    def pull(self, count: int = 1, **wanted: Any) -> list[dict[str, Any]]:
        """The jobs that a pull gives."""
        jobs: list[dict[str, Any]] = self.post("pull", count=count, **wanted).ok()["jobs"]
        return jobs

    def pull_ids(self, count: int = 100, **wanted: Any) -> list[str]:
        """The ids of the jobs that a pull gives."""
        return [job["job_id"] for job in self.pull(count, **wanted)]

    def lease(self, **wanted: Any) -> str:
        """The lease id of the one job that a pull gives."""
        [job] = self.pull(**wanted)
        lease_id: str = job["lease_id"]
        return lease_id

    def list(self, query: str = "") -> list[dict[str, Any]]:
        """The one page of a list."""
        page = self.ask("GET", f"jobs?{query}").ok()
        assert page["cursor"] is None
        jobs: list[dict[str, Any]] = page["jobs"]
        return jobs

    def ids(self, query: str = "") -> list[str]:
        """The ids on the one page of a list."""
        return [job["job_id"] for job in self.list(query)]

    def place(self, job_id: str, queue_id: Any = 0) -> dict[str, Any]:
        """A job in one of its queues, as lists show it."""
        [job] = [job for job in self.list(f"prefix={encoded(job_id)}") if job["job_id"] == job_id]
        [place] = [place for place in job["queues"] if place["queue_id"] == queue_id]
        return dict(place)

    def state(self, job_id: str, queue_id: Any = 0) -> str:
        """The state of a job in one of its queues."""
        return str(self.place(job_id, queue_id)["state"])

    def settings(self, **settings: Any) -> Any:
        """Configure the realm."""
        return self.ask("PUT", "config", settings).ok()

    def tag_settings(self, tag: str, **settings: Any) -> Any:
        """Configure a tag."""
        return self.ask("PUT", f"tags/{encoded(tag)}", settings).ok()

    def queue_settings(self, queue_id: Any, **settings: Any) -> Any:
        """Configure a queue."""
        return self.ask("PUT", f"queues/{queue_id}", settings).ok()

    # -- waiting -----------------------------------------------------------------------------------------------------

    def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> socket.socket:
        """Send a request on a connection of its own, which waits; the shard has it when this returns."""
        connection = connect(self.server)
        connection.sendall(raw_request(method, f"/{self.name}/{path}", body, headers))
        self.settle()
        return connection

    def settle(self) -> None:
        """Wait until all that was sent before has reached the shard: what comes later is served later."""
        for _ in range(3):
            self.ask("GET", "status").ok()

    # -- a life ------------------------------------------------------------------------------------------------------

    def live(self) -> str:
        """Have a bit of everything happen in the realm; returns the proof of a lease that lasts."""
        self.settings(keep_done={"count": 9}, crash_limit=5, max_jobs=900)
        self.queue_settings(1, max_attempts=1, max_leased=3, lease_time=900)
        self.tag_settings("few", max_leased=1)
        self.tag_settings("off", paused=True)
        self.add_all("done", "dead", queue_id=1)
        done, dead = self.pull(2)
        self.post("ack", leases=[done["lease_id"]], result={"a": [1]}, output="ö").ok()
        self.post("nack", leases=[dead["lease_id"]], error="why", exit_code=-9).ok()
        self.add_all("held", "waits", queue_id=2, tags=["few"])
        lease = self.lease(lease_time=900, worker="w")
        self.add_all("blocked", queue_id=3, after=["few"])
        self.add_all("delayed", queue_id=4, delay=900, expires_in=1800, max_attempts=4)
        self.add_all("paused", queue_id=5, tags=["off"])
        return lease

    def life(self) -> Any:
        """All that the realm shows of this, but for ages."""
        queues = self.ask("GET", "queues").ok()["queues"]
        return (
            self.list("data=1"),
            self.list("state=done"),
            [{**queue, "oldest_ready_seconds": None} for queue in queues],
            [self.ask("GET", path).ok() for path in ("config", "tags", "status")],
        )

    def go_on(self, lease: str) -> None:
        """Have happen what `live` left to happen."""
        assert self.pull_ids() == []
        assert self.post("extend", leases=[lease]).ok()["stale"] == []
        assert self.post("ack", leases=[lease]).ok()["acked"] == [lease]
        [waits] = self.pull()
        assert waits["job_id"] == "waits"
        self.post("ack", leases=[waits["lease_id"]]).ok()
        assert self.pull_ids() == ["blocked"]
        assert self.post("redrive").ok() == {"redriven": 1}
        assert self.pull_ids() == ["dead"]
        self.tag_settings("off", paused=False)
        assert self.pull_ids() == ["paused"]
        assert [result["job_id"] for result in self.list("state=done")] == ["done", "held", "waits"]
