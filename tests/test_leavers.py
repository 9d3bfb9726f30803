"""Clients that leave a pull at the worst instants. What they pulled is not lost, and comes back as soon as it can.

A client that is gone before its pull is done leases nothing. One that is gone afterwards, and noticed, has its jobs
given back at once, and no attempt is counted. What was on its way to it comes back when its lease ends. So each job is
acked once in the end. RESTQ_TEST_LONG=1 makes thousands of trials.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from conftest import Server
from longrun import seeds
from processes import frontend_pids, shard_pids
from proxy import RESET
from realm_calls import KEY, RealmCalls
from wire import JSON, ask, connect, names_on, raw_request

SEEDS = seeds(40, 1_600)
STANDING_SEEDS = seeds(10, 150)
BATCHES = [SEEDS[start : start + 400] for start in range(0, len(SEEDS), 400)]  # each is over in some minutes at most
SIDE_BY_SIDE = 8  # trials
SHORT_SECONDS = 0.15  # the lease of who leaves
HOUR = 3600.0
WAIT_SECONDS = 30
MOMENT_SECONDS = 0.003


class Way(NamedTuple):
    """How to pull."""

    method: str
    over_realms: bool
    wait: float = 0.0
    key: bool = False


WAYS = [
    Way("POST", False),
    Way("POST", False, key=True),
    Way("POST", False, WAIT_SECONDS),
    Way("POST", False, WAIT_SECONDS, key=True),
    Way("POST", True),
    Way("POST", True, key=True),
    Way("POST", True, WAIT_SECONDS),
    Way("POST", True, WAIT_SECONDS, key=True),
    Way("GET", False),
    Way("GET", True),
]
WAITING = [way for way in WAYS if way.wait]


class Leaver:
    """Realms with jobs for one who pulls two of them and leaves; and the worker that comes later."""

    def __init__(self, server: Server, seed: int, lease_seconds: float, way: Way | None = None) -> None:
        self.chance = random.Random(seed)
        self.server = server
        self.way = way or self.chance.choice(WAYS)
        self.reset = self.chance.random() < 0.5
        prefix = f"left-{uuid.uuid4().hex[:8]}"
        shards = (0, 1) if self.way.over_realms else (0,)
        self.realms = [RealmCalls(server, next(names_on(shard, prefix))) for shard in shards]
        self.lease_seconds = lease_seconds
        self.added_at = 0.0
        for realm in self.realms:
            realm.settings(default_lease_time=lease_seconds)
        self.connection = connect(server)

    def __repr__(self) -> str:
        return f"{self.way}, {'RST' if self.reset else 'FIN'}"

    @property
    def jobs(self) -> list[str]:
        """The jobs that there are: of each realm two."""
        return [f"{number} {job}" for number in range(len(self.realms)) for job in "ab"]

    def add(self) -> None:
        """Add the jobs."""
        self.added_at = time.monotonic()
        for number, realm in enumerate(self.realms):
            realm.add_all(*(job for job in self.jobs if job.startswith(str(number))))

    def request(self) -> bytes:
        """The pull."""
        names = [realm.name for realm in self.realms]
        if self.way.method == "GET":
            path = f"/job?count=2&realms={','.join(names)}" if self.way.over_realms else f"/{names[0]}/job?count=2"
            return raw_request("GET", path)
        body = {"count": 2, "wait": self.way.wait, "lease_time": self.lease_seconds}
        path = f"/{names[0]}/pull"
        if self.way.over_realms:
            path, body = "/pull", {**body, "realms": names}  # type: ignore[dict-item]
        headers = {**JSON, **({KEY: uuid.uuid4().hex} if self.way.key else {})}
        return raw_request("POST", path, json.dumps(body).encode(), headers)

    def leave(self) -> None:
        """Be gone, if it is not yet."""
        if self.connection.fileno() < 0:
            return
        if self.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.connection.close()

    def settle(self) -> None:
        """Wait until what was sent before has reached the shards."""
        for _ in range(3):
            ask(self.server, "GET", "/").ok()

    def finish(self) -> dict[str, int]:
        """Be a worker that acks all there is: the attempts that each job took."""
        attempts: dict[str, int] = {}
        acked: set[str] = set()
        names = [realm.name for realm in self.realms]
        while len(acked) < len(self.jobs):
            body = {"count": 9, "wait": WAIT_SECONDS, "realms": names, "lease_time": HOUR}
            jobs = ask(self.server, "POST", "/pull", body).ok()["jobs"]
            assert jobs, f"{self}: only {sorted(acked)} came"
            for job in jobs:
                assert job["job_id"] not in acked, f"{self}: {job} came again after its ack"
                assert job["attempt"] in (1, 2), job
                if job["attempt"] == 2:
                    early = self.added_at + self.lease_seconds - time.monotonic()
                    assert early <= 0, f"{self}: {job} came {early:.3f} s before its lease had ended"
                leases = {"leases": [job["lease_id"]]}
                assert ask(self.server, "POST", f"/{job['realm']}/ack", leases).ok()["stale"] == []
                acked.add(job["job_id"])
                attempts[job["job_id"]] = job["attempt"]
        for realm in self.realms:
            assert realm.ask("GET", "status").ok()["total_jobs"] == 0
            realm.ask("DELETE", "").ok()
        return attempts


# -- the instants ----------------------------------------------------------------------------------------------------


def before_its_request_is_complete(leaver: Leaver) -> bool:
    request = leaver.request()
    leaver.connection.sendall(request[: leaver.chance.randrange(len(request))])
    leaver.add()
    leaver.leave()
    return False


def right_after_its_request(leaver: Leaver) -> bool:
    leaver.add()
    leaver.connection.sendall(leaver.request())
    _pause(leaver)
    leaver.leave()
    return True


def while_it_waits(leaver: Leaver) -> bool:
    leaver.connection.sendall(leaver.request())
    leaver.settle()
    leaver.leave()
    leaver.settle()
    leaver.add()
    return False


def while_a_job_is_added(leaver: Leaver) -> bool:
    leaver.connection.sendall(leaver.request())
    leaver.settle()
    adding = threading.Thread(target=leaver.add)
    adding.start()
    _pause(leaver)
    leaver.leave()
    adding.join()
    return True


def with_its_reply_unread(leaver: Leaver) -> bool:
    leaver.add()
    leaver.connection.sendall(leaver.request())
    select.select([leaver.connection], [], [], WAIT_SECONDS)
    leaver.leave()
    return True


def _pause(leaver: Leaver) -> None:
    time.sleep(leaver.chance.choice([0, leaver.chance.uniform(0, MOMENT_SECONDS)]))


INSTANTS = [
    before_its_request_is_complete,
    right_after_its_request,
    while_it_waits,
    while_a_job_is_added,
    with_its_reply_unread,
]


def trial(server: Server, seed: int) -> tuple[str, dict[str, int]]:
    """One client that leaves, and the worker after it."""
    leaver = Leaver(server, seed, SHORT_SECONDS)
    leave = leaver.chance.choice(INSTANTS)
    if leave in (while_it_waits, while_a_job_is_added) and not leaver.way.wait:
        leaver.way = leaver.chance.choice([way for way in WAITING if way.over_realms == leaver.way.over_realms])
    try:
        may_have_leased = leave(leaver)
        attempts = leaver.finish()
        assert may_have_leased or set(attempts.values()) == {1}, "it leased what it could not have got"
        assert sum(attempts.values()) <= len(attempts) + 2, "more than it asked for"
        if leave is with_its_reply_unread:
            assert sum(attempts.values()) == len(attempts) + 2, "what was on its way to it came back without expiry"
    except AssertionError as error:
        raise AssertionError(f"RESTQ_SEED={seed}: {leave.__name__}, {leaver}: {error}") from error
    return leave.__name__, attempts


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: f"seed {batch[0]}")
def test_leave_pull_at_any_instant_leaves_each_job_to_be_acked_once(
    server: Server, record_property: Callable[[str, object], None], batch: range
) -> None:
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        results = list(pool.map(lambda seed: trial(server, seed), batch))
    for instant in INSTANTS:
        of_it = [attempts for name, attempts in results if name == instant.__name__]
        expired = sum(2 in attempts.values() for attempts in of_it)
        record_property(instant.__name__, f"{len(of_it)} trials, in {expired} of them jobs came back by expiry")
        print(f"{instant.__name__}: {len(of_it)} trials, in {expired} of them jobs came back by expiry")


# -- what stands still -----------------------------------------------------------------------------------------------
# A process that is stopped makes sure that two things have happened when it goes on, in whatever order it sees them.


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose processes this file may stop."""
    from conftest import _servers

    with _servers(tmp_path_factory) as start:
        yield start()


class _Stopped:
    """A process stands still meanwhile."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def __exit__(self, *error: object) -> None:
        os.kill(self._pid, signal.SIGCONT)


def taken_in(server: Server) -> None:
    """Once this returns, the front end has read what was sent, or closed, before."""
    for _ in range(3):
        ask(server, "GET", "/healthz").ok()


def add_unanswered(leaver: Leaver) -> list[socket.socket]:
    """Send the adds, whose answers come later."""
    sent = []
    for number, realm in enumerate(leaver.realms):
        body = {"jobs": [{"job_id": job, "queue_id": 0} for job in leaver.jobs if job.startswith(str(number))]}
        connection = connect(leaver.server)
        connection.sendall(raw_request("POST", f"/{realm.name}/jobs", json.dumps(body).encode(), JSON))
        sent.append(connection)
    return sent


@pytest.mark.parametrize("instant", ["pull then leave", "add then leave", "leave then add"])
def test_leave_pull_while_its_shard_stands_still_has_its_jobs_given_back(own: Server, instant: str) -> None:
    """The shard finds both at once: the pull of a client that is gone, or the job that it waited for. Leases last."""
    shard = shard_pids(own)[0]
    for seed in STANDING_SEEDS:
        # Where the job is there before the client leaves, one over realms is answered by the other shard.
        ways = {"pull then leave": WAYS, "add then leave": WAITING[:2], "leave then add": WAITING}[instant]
        leaver = Leaver(own, seed, HOUR, ways[seed % len(ways)])
        adding: list[socket.socket] = []
        if instant == "pull then leave":
            leaver.add()
        else:
            leaver.connection.sendall(leaver.request())
        leaver.settle()
        with _Stopped(shard):
            if instant == "pull then leave":
                leaver.connection.sendall(leaver.request())
                taken_in(own)
            elif instant == "add then leave":
                adding = add_unanswered(leaver)
                taken_in(own)
            leaver.leave()
            taken_in(own)
            adding = adding or ([] if leaver.added_at else add_unanswered(leaver))
            taken_in(own)
        for connection in adding:
            assert connection.recv(1)
            connection.close()
        try:
            assert set(leaver.finish().values()) == {1}
        except AssertionError as error:
            raise AssertionError(f"RESTQ_SEED={seed}: {leaver}: {error}") from error


def test_leave_pull_while_the_front_end_stands_still_leaves_each_job_to_be_acked_once(own: Server) -> None:
    """The front end finds the reply of the shard and the end of the connection at once."""
    [frontend] = frontend_pids(own)
    for seed in STANDING_SEEDS:
        leaver = Leaver(own, seed, SHORT_SECONDS)
        leaver.add()
        leaver.connection.sendall(leaver.request())
        _pause(leaver)
        with _Stopped(frontend):
            time.sleep(MOMENT_SECONDS)  # the shard answers meanwhile, if it was asked
            leaver.leave()
        try:
            leaver.finish()
        except AssertionError as error:
            raise AssertionError(f"RESTQ_SEED={seed}: {leaver}: {error}") from error
