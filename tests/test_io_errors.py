"""Errors of the disk under load: what was answered is there, what was not is told to be unknown, and the rest goes on.

Real servers, whose shards meet EIO and ENOSPC at a chosen sync, write or truncate. RESTQ_TEST_LONG=1 makes hundreds of
trials each way.
"""

from __future__ import annotations

import faulthandler
import http.client
import itertools
import os
import random
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checker import ACK, Call, Checker, Scope, Unit
from conftest import StartServer
from io_faults import KINDS, Planted, Strace
from longrun import LONG, trials
from polling import eventually
from processes import kill_at_once, shard_pids
from recorded_vfs import library
from wire import JSON, Answer, Wire, ask, names_on

SHARDS = 2
CLIENTS = 2  # of each shard
FAULTS_OF_SERVER = 6  # then it is killed and all is looked at: a shard that dies often starts again ever later
AFTER_MAX = {"sync": 30, "write": 300, "truncate": 1}
LEASE_SECONDS = 2.0
FIRE_SECONDS = 20.0
RESUME_SECONDS = 5.0  # for changes, once there is room: the promise, though generously measured
REPEATS = 100
CUT = (OSError, http.client.HTTPException)
FIRST_SEED = int(os.environ.get("RESTQ_SEED", "1"))


@pytest.fixture(autouse=True)
def _time() -> None:
    """The long run takes longer than a test that hangs may."""
    if LONG:
        faulthandler.cancel_dump_traceback_later()


class Account:
    """What all clients asked and were told."""

    def __init__(self) -> None:
        self.checker = Checker(slack=0.01)
        self.wrong: list[str] = []
        self.told: Counter[str] = Counter()
        self._lock = threading.Lock()

    def begin(self, what: str, **effects: Any) -> Call:
        """A call begins."""
        with self._lock:
            return self.checker.begin(time.time(), what, **effects)

    def judge(self, call: Call, answer: Answer | None) -> bool:
        """Note how a call ended, as the answer says: done, not done, or unknown. Whether it is certain."""
        if answer is None:
            self.told["cut"] += 1
            return False
        if answer.status == 200:
            self.told["ok"] += 1
            return True
        self.told[str(answer.status)] += 1
        message = answer.json["message"]
        is_known, is_unknown = "nothing was done" in message, "is not known" in message
        if answer.status not in (409, 503, 507) or is_known == is_unknown:
            self.wrong.append(f"{call}: {answer.status} {message}")
        if answer.status == 503 and int(answer.headers.get("retry-after", 0)) < 1:
            self.wrong.append(f"{call}: no Retry-After")
        if is_known:
            call.failed(time.time(), list(call.ends) if answer.status == 409 else ())
        return is_known


class Client:
    """Adds a few jobs, pulls as many, acks half of what it got and removes the other; again and again."""

    def __init__(self, port: int, account: Account, realm: str, name: str) -> None:
        self._wire = Wire(port)
        self._account = account
        self._realm = realm
        self._names = (f"{name}-{number}" for number in itertools.count())
        self._chance = random.Random(name)
        self.steps = 0

    def _ask(self, method: str, path: str, body: Any, key: str = "") -> Answer | None:
        try:
            headers = {**JSON, "Idempotency-Key": key} if key else JSON
            return self._wire.ask(method, f"/{self._realm}/{path}", body, headers)
        except CUT:
            time.sleep(0.01)  # not to flood what is starting again
            return None

    def step(self) -> None:
        """A few requests."""
        self.add()
        jobs = self.pull()
        if jobs:
            self.ack(jobs[::2])
            self._remove(jobs[1::2])

    def add(self) -> None:
        """A bulk of new jobs, tried again under its key where it has one."""
        self.steps += 1
        names = list(itertools.islice(self._names, self._chance.choice((1, 4, 30))))
        units = {Unit(self._realm, 0, name): frozenset[str]() for name in names}
        data = "x" * self._chance.choice((1, 200, 6000))
        body = {"jobs": [{"job_id": name, "queue_id": 0, "data": data} for name in names]}
        call = self._account.begin("add", adds=units)
        key = names[0] if self._chance.random() < 0.5 else ""
        for _ in range(REPEATS if key else 1):
            answer = self._ask("POST", "jobs", body, key)
            if answer is not None and answer.status == 200:
                call.ok(time.time())
            is_known = self._account.judge(call, answer)
            if call.was_repeated:
                call.is_failed = False  # an earlier one may have been done
            if is_known:
                return
            call.was_repeated = bool(key)
            time.sleep(0.01)

    def pull(self) -> list[tuple[Unit, str]]:
        """What was leased to it."""
        call = self._account.begin("pull")
        answer = self._ask("POST", "pull", {"count": 10})
        jobs = answer.json["jobs"] if answer is not None and answer.status == 200 else []
        if jobs:
            call.ok(time.time())
        for job in jobs:
            unit = Unit(self._realm, job["queue_id"], job["job_id"])
            call.delivered(unit, job["lease_id"], LEASE_SECONDS, job["lease_expires_at"])
        self._account.judge(call, answer)
        return [(delivery.unit, delivery.lease) for delivery in call.deliveries]

    def ack(self, jobs: list[tuple[Unit, str]]) -> None:
        """These are done."""
        leases = [lease for _, lease in jobs]
        call = self._account.begin("ack", ends=dict.fromkeys(leases, ACK))
        answer = self._ask("POST", "ack", {"leases": leases})
        if answer is not None and answer.status == 200:
            call.ok(time.time(), answer.json["acked"], answer.json["stale"])
        self._account.judge(call, answer)

    def _remove(self, jobs: list[tuple[Unit, str]]) -> None:
        names = [unit.job for unit, _ in jobs]
        if not names:
            return
        call = self._account.begin("remove", removes=[Scope(self._realm, job=name) for name in names])
        answer = self._ask("DELETE", "jobs", {"jobs": names})
        if answer is not None and answer.status == 200:
            call.ok(time.time())
        self._account.judge(call, answer)

    def close(self) -> None:
        self._wire.close()


@contextmanager
def working(clients: list[Client], step: Callable[[Client], None] | None = None) -> Iterator[None]:
    """Have the clients work meanwhile, at all or at one thing."""
    stop = threading.Event()
    crashes: list[BaseException] = []

    def run(client: Client) -> None:
        try:
            while not stop.is_set():
                (step or Client.step)(client)
        except BaseException as error:
            crashes.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not crashes, crashes


class Trial:
    """A server that meets a few faults, is killed, and is then asked for all that it has."""

    def __init__(self, start: StartServer, faults: Planted | Strace, seed: int, prefix: str) -> None:
        self._start = start
        self._faults = faults
        self._chance = random.Random(seed)
        self._account = Account()
        self.counts: Counter[str] = Counter()
        self._server = start(shards=SHARDS, environment=faults.environment())
        self._realms = [next(names_on(shard, prefix, SHARDS)) for shard in range(SHARDS)]
        for realm in self._realms:
            ask(self._server, "PUT", f"/{realm}/config", {"default_lease_time": LEASE_SECONDS}).ok()

    def run(self, faults: int) -> list[str]:
        """What must not be, none if all is well."""
        clients = [
            Client(self._server.port, self._account, realm, f"{shard}-{number}")
            for shard, realm in enumerate(self._realms)
            for number in range(CLIENTS)
        ]
        with working(clients):
            for _ in range(faults):
                self._fault(clients)
        kill_at_once(self._server)
        self._server = self._start(self._server.data_dir, shards=SHARDS)
        self._account.checker.drained_at = time.time()
        for realm in self._realms:
            self._drain(realm)
        self._server.stop()
        for told, count in self._account.told.items():
            self.counts[f"answers: {told}"] += count
        return self._account.wrong + self._account.checker.violations()

    def _fault(self, clients: list[Client]) -> None:
        chance = self._chance
        shard = chance.randrange(SHARDS)
        kind = chance.choice(("sync", "sync", "write", "write", "truncate"))
        error = chance.choice(("EIO", "ENOSPC"))
        count = chance.choice((1, 1, 5, 100)) if (kind, error) == ("write", "ENOSPC") else 1
        pid = self._pid(shard)
        name = f"{error} of {KINDS[kind]}"
        self._faults.inject(shard, pid, kind, error, chance.randint(1, AFTER_MAX[kind]), count)
        try:
            eventually(self._faults.fired, FIRE_SECONDS if kind != "truncate" else 1.0)
        except AssertionError:
            assert kind == "truncate", f"no {kind} under load"
            self.counts[f"{name} that nobody called for"] += 1
        else:
            self.counts[name] += 1
        time.sleep(chance.choice((0.0, 0.1)))
        self._faults.heal()
        self._goes_on(clients, shard)
        self.counts["shards that started again"] += self._pid(shard) != pid

    def _pid(self, shard: int) -> int:
        eventually(lambda: ask(self._server, "GET", "/readyz").status == 200)
        return shard_pids(self._server)[shard]

    def _goes_on(self, clients: list[Client], shard: int) -> None:
        """Changes are done again, without anybody's help."""
        name = f"after-{self.counts.total()}"
        realm = self._realms[shard]
        since = time.monotonic()

        def added() -> bool:
            try:
                return ask(self._server, "PUT", f"/{realm}/job/{name}", {"queue_id": 1}).status == 200
            except CUT:
                return False

        call = self._account.begin("add", adds={Unit(realm, 1, name): frozenset()})
        eventually(added)
        call.ok(time.time())
        took = time.monotonic() - since
        self.counts["resumed within 1 s"] += took <= 1
        self.counts["resumed within 5 s"] += took <= RESUME_SECONDS
        self.counts["resumed"] += 1
        targets = [client.steps + 3 for client in clients]
        eventually(lambda: all(client.steps >= target for client, target in zip(clients, targets, strict=True)))

    def _drain(self, realm: str) -> None:
        """Pull and ack everything, also what is leased to clients that were never told."""
        client = Client(self._server.port, self._account, realm, "drain")

        def empty() -> bool:
            while jobs := client.pull():
                client.ack(jobs)
            return bool(ask(self._server, "GET", f"/{realm}/status").ok()["total_jobs"] == 0)

        eventually(empty)
        client.close()


def fail(start: StartServer, faults: Planted | Strace, count: int, prefix: str) -> Counter[str]:
    """Trials in servers that follow each other."""
    counts: Counter[str] = Counter()
    for seed in itertools.count(FIRST_SEED):
        trial = Trial(start, faults, seed, f"{prefix}-{seed}")
        problems = trial.run(min(FAULTS_OF_SERVER, count))
        counts += trial.counts
        assert not problems, f"RESTQ_SEED={seed}: {len(problems)}, such as {problems[:5]}"
        count -= FAULTS_OF_SERVER
        if count <= 0:
            break
    print(dict(counts))
    return counts


def skip_unless_traced() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    run = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    if run.returncode:
        pytest.skip(f"nothing may be traced here: {run.stderr.decode()}")


@pytest.mark.skipif(library() is None, reason="this Python holds its SQLite where ctypes can't reach it")
def test_error_of_a_call_of_sqlite_under_load_loses_nothing_and_says_what_is_unknown(
    start_server: StartServer, tmp_path: Path, realm_name: str
) -> None:
    counts = fail(start_server, Planted(tmp_path), trials(4, 600), realm_name)
    assert counts["EIO of fdatasync"] or counts["ENOSPC of fdatasync"], counts


def test_error_of_a_system_call_under_load_loses_nothing_and_says_what_is_unknown(
    start_server: StartServer, tmp_path: Path, realm_name: str
) -> None:
    skip_unless_traced()
    counts = fail(start_server, Strace(tmp_path), trials(2, 600), realm_name)
    assert any(count for name, count in counts.items() if name.startswith(("EIO", "ENOSPC"))), counts


# -- what leaves when ------------------------------------------------------------------------------------------------


def test_shard_under_load_sends_nothing_before_its_log_is_synced(
    start_server: StartServer, tmp_path: Path, realm_name: str
) -> None:
    """As the system sees it: clients only add, so between what it receives and what it sends there must be a sync."""
    skip_unless_traced()
    server = start_server(shards=1)
    trace = tmp_path / "trace"
    calls = "trace=pwrite64,fdatasync,fsync,read,recvfrom,recvmsg,write,writev,sendto,sendmsg"
    command = ["strace", "-f", "-y", "-s", "0", "-p", str(shard_pids(server)[0]), "-o", str(trace), "-e", calls]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert strace.stderr is not None
    assert b"attached" in strace.stderr.readline()
    account = Account()
    clients = [Client(server.port, account, realm_name, str(number)) for number in range(4)]
    with working(clients, Client.add):
        eventually(lambda: all(client.steps >= trials(20, 1000) for client in clients), 600.0)
    strace.terminate()
    strace.communicate()
    early, counts = sent_early(trace.read_text().splitlines())
    assert not early, early[:5]
    assert counts["written"] >= counts["synced"] >= trials(20, 1000), counts
    assert counts["sent"] >= trials(20, 1000) <= counts["received"], counts
    assert account.wrong == []
    print(dict(counts))


def sent_early(lines: list[str]) -> tuple[list[str], Counter[str]]:
    """Of a trace: what was sent with no sync since something was received or written; how much there was of each."""
    early: list[str] = []
    counts: Counter[str] = Counter()
    is_pending = False
    for line in lines:
        found = re.match(r"\d+ +(\w+)\(\d+<([^>]*)>", line)
        if found is None:
            continue
        call, path = found.groups()
        if path.endswith(".sqlite-wal"):
            is_pending = call == "pwrite64"
            counts["written" if is_pending else "synced"] += 1
        elif path.startswith(("socket:", "UNIX")):
            if call in ("read", "recvfrom", "recvmsg"):
                is_received = int(line.rpartition(" = ")[2].split()[0]) > 0
                is_pending |= is_received
                counts["received"] += is_received
                continue
            counts["sent"] += 1
            if is_pending:
                early.append(line)
    return early, counts


def test_trace_of_a_reply_before_the_sync_is_told() -> None:
    written = '7 pwrite64(4</data/shard-0000.sqlite-wal>, ""..., 24, 32) = 24'
    synced = "7 fdatasync(4</data/shard-0000.sqlite-wal>) = 0"
    sent = '7 sendto(9<socket:[123]>, ""..., 40, 0, NULL, 0) = 40'
    received = '7 recvfrom(9<socket:[123]>, ""..., 262144, 0, NULL, NULL) = 40'
    nothing = "7 recvfrom(9<socket:[123]>, 0x7f, 262144, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)"
    assert sent_early([received, written, synced, nothing, sent]) == (
        [],
        Counter(received=1, written=1, synced=1, sent=1),
    )
    assert sent_early([received, written, sent, synced])[0] == [sent]
    assert sent_early([received, sent, written, synced])[0] == [sent]
