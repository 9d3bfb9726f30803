"""The hot paths of a realm, whose instructions `bench.regress` counts: operations as the shard calls them."""

from __future__ import annotations

import json

from bench.callgrind import Case, Counting
from restq.shards.archive import Archive
from restq.shards.changes import Changes, Keys
from restq.shards.commands import REALM_OPERATIONS
from restq.shards.commands.call import Call, Done
from restq.shards.memory_store import MemoryStore
from restq.shards.realm import Realm

NOW = 1_000.0
LEASE_SECONDS = 600.0
BATCH = 100
TAG = "a-tag"
JOB = {"queue_id": 0, "data": "x" * 100, "tags": [TAG]}


def body_of(said: object) -> bytes:
    """A body as clients send it."""
    return json.dumps(said).encode()


class Rig:
    """A realm, and its operations by name."""

    def __init__(self) -> None:
        self.changes = Changes()
        self._realm = Realm(1, "counted", LEASE_SECONDS, Keys(2), self.changes, lambda: 0.5)
        self._archive = Archive(MemoryStore(), self.changes)

    def call(self, body: object, *params: str) -> Call:
        """A call, ready made."""
        return Call(list(params), body_of(body), NOW, self._archive)

    def do(self, operation: str, calls: list[Call]) -> list[bytes]:
        """The replies, one after the other."""
        do, realm, replies = REALM_OPERATIONS[operation], self._realm, []
        for call in calls:
            outcome = do(realm, call)
            assert isinstance(outcome, Done), "small ones are done at once"
            replies.append(outcome.body)
        return replies

    def adds(self, count: int, first: int = 0) -> list[Call]:
        """Adds of one job each."""
        return [self.call(JOB, f"job-{number:08d}") for number in range(first, first + count)]

    def bulk_adds(self, count: int) -> list[Call]:
        """Adds of a batch each."""
        return [
            self.call({"jobs": [{"job_id": f"job-{batch}-{number}", **JOB} for number in range(BATCH)]})
            for batch in range(count)
        ]

    def pulls(self, count: int, size: int) -> list[Call]:
        """Pulls of so many jobs each."""
        return [self.call({"count": size})] * count

    def leases(self, pulls: int, size: int) -> list[list[str]]:
        """The lease ids of so many pulls."""
        replies = self.do("pull", self.pulls(pulls, size))
        return [[job["lease_id"] for job in json.loads(reply)["jobs"]] for reply in replies]

    def fill(self, count: int) -> None:
        """Add so many jobs, at least."""
        self.do("add_jobs", self.bulk_adds(count // BATCH + 1))


def add(times: int, counting: Counting) -> int:
    """One job a call."""
    rig = Rig()
    calls = rig.adds(times)
    with counting:
        rig.do("add_job", calls)
    return times


def pull(times: int, counting: Counting) -> int:
    """One job a call."""
    rig = Rig()
    rig.fill(times)
    calls = rig.pulls(times, 1)
    with counting:
        rig.do("pull", calls)
    return times


def ack(times: int, counting: Counting) -> int:
    """One lease a call."""
    rig = Rig()
    rig.fill(times)
    calls = [rig.call({"leases": leases}) for leases in rig.leases(times, 1)]
    with counting:
        rig.do("ack", calls)
    return times


def exchange(times: int, counting: Counting) -> int:
    """One lease is acked and the next job pulled, in one call."""
    rig = Rig()
    rig.fill(2 * times)
    calls = [rig.call({"ack": {"leases": leases}, "pull": {"count": 1}}) for leases in rig.leases(times, 1)]
    with counting:
        rig.do("exchange", calls)
    return times


def bulk_add(times: int, counting: Counting) -> int:
    """A job of a batch."""
    rig = Rig()
    calls = rig.bulk_adds(times // BATCH + 1)
    with counting:
        rig.do("add_jobs", calls)
    return len(calls) * BATCH


def bulk_pull(times: int, counting: Counting) -> int:
    """A job of a batch."""
    rig = Rig()
    rig.fill(times)
    calls = rig.pulls(times // BATCH + 1, BATCH)
    with counting:
        rig.do("pull", calls)
    return len(calls) * BATCH


def bulk_ack(times: int, counting: Counting) -> int:
    """A lease of a batch."""
    rig = Rig()
    rig.fill(times)
    calls = [rig.call({"leases": leases}) for leases in rig.leases(times // BATCH + 1, BATCH)]
    with counting:
        rig.do("ack", calls)
    return len(calls) * BATCH


def empty_pull(times: int, counting: Counting) -> int:
    """A call that finds nothing, as all jobs are leased."""
    rig = Rig()
    rig.fill(10 * times)
    rig.leases(10 * times // BATCH + 1, BATCH)
    calls = rig.pulls(times, 1)
    with counting:
        replies = rig.do("pull", calls)
    assert set(replies) == {b'{"jobs":[]}'}, "all are leased"
    return times


def tag_status(times: int, counting: Counting) -> int:
    """How many jobs carry a tag."""
    rig = Rig()
    rig.fill(times)
    calls = [rig.call({}, TAG)] * times
    with counting:
        rig.do("get_tag_status", calls)
    return times


CASES: dict[str, Case] = {
    "realm: add": add,
    "realm: pull": pull,
    "realm: ack": ack,
    "realm: exchange, ack and pull": exchange,
    f"realm: job of an add of {BATCH}": bulk_add,
    f"realm: job of a pull of {BATCH}": bulk_pull,
    f"realm: lease of an ack of {BATCH}": bulk_ack,
    "realm: pull that finds nothing, many leased": empty_pull,
    "realm: status of a tag": tag_status,
}
