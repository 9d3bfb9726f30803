"""Workers that send each request under a key until it is answered, while shards, front ends and the server die.

Every process is killed in turn, alone or with all others, and realms change their shards all the while. What must hold:
whatever was answered is so, each lease is one worker's, and a request that was sent five times was done once.
RESTQ_TEST_LONG=1 kills a thousand times.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import Server, StartServer
from longrun import LONG, seeds
from polling import eventually
from processes import children, frontend_pids, is_running, shard_pids
from realm_calls import KEY
from wire import JSON, Answer, Wire, ask

KILLS = 100 if LONG else 7  # of a seed
SEEDS = seeds(1, 10)
REALMS = [f"attacked-{number}" for number in range(4)]  # at home in both of two shards
WORKERS = 6
ADDERS = 2
ADD_COUNT = 5
LEASE_SECONDS = 3600  # none ends by itself
PROGRESS = 40  # answered requests between two kills
AGAIN_SECONDS = 0.02
SECONDS_MAX = 60.0  # after which a client gives up

Job = tuple[str, str]  # realm and job id


class Books:
    """What the clients know together: a client writes before it sends and after it is answered."""

    def __init__(self) -> None:
        self.added: set[Job] = set()
        self.acked: set[Job] = set()
        self.held: dict[Job, str] = {}  # by lease id: of those that no client has begun to give back
        self.leases: set[tuple[str, str]] = set()
        self.wrong: list[str] = []
        self.answered = 0
        self._lock = threading.Lock()

    def leased(self, jobs: list[dict[str, Any]], realm: str) -> list[tuple[Job, str]]:
        """A pull was answered."""
        given = [((job.get("realm", realm), job["job_id"]), job["lease_id"]) for job in jobs]
        with self._lock:
            for job, lease in given:
                if (job[0], lease) in self.leases:
                    self.wrong.append(f"lease {lease} of {job} was given twice")
                if job in self.acked:
                    self.wrong.append(f"{job} was handed out after its ack")
                if job in self.held:
                    self.wrong.append(f"{job} was handed out under lease {lease} while {self.held[job]} held")
                self.leases.add((job[0], lease))
                self.held[job] = lease
        return given

    def gives_back(self, job: Job) -> None:
        """A lease is about to be ended."""
        with self._lock:
            self.held.pop(job, None)

    def ended(self, verb: str, job: Job, answer: dict[str, Any]) -> None:
        """An ack, nack, release or extend was answered."""
        with self._lock:
            if answer["stale"]:
                self.wrong.append(f"the {verb} of {job} was refused: {answer}")
            if verb == "ack":
                self.acked.add(job)


class Client:
    """One client: what it sends, it sends until it is answered."""

    def __init__(self, port: int, books: Books, number: int, seed: int) -> None:
        self._wire = Wire(port)
        self._books = books
        self._chance = random.Random(f"{seed} {number}")
        self._names = (f"{number}-{count:05d}" for count in itertools.count())

    def add(self) -> None:
        """Add a few jobs: to one realm, or to all of them."""
        names = list(itertools.islice(self._names, ADD_COUNT))
        if self._chance.random() < 0.5:
            realms = [self._chance.choice(REALMS)] * ADD_COUNT
            self.post(f"/{realms[0]}/jobs", {"jobs": [{"job_id": name, "queue_id": 0} for name in names]})
        else:
            realms = list(itertools.islice(itertools.cycle(REALMS), ADD_COUNT))
            jobs = [
                {"realm_id": realm, "job_id": name, "queue_id": 0} for realm, name in zip(realms, names, strict=True)
            ]
            self.post("/jobs", {"jobs": jobs})
        self._books.added.update(zip(realms, names, strict=True))

    def work(self) -> None:
        """Pull a few jobs, from one realm or over all of them, and be done with each in one of the ways there are."""
        realm = self._chance.choice(REALMS)
        path = "/pull" if self._chance.random() < 0.5 else f"/{realm}/pull"
        said = {"count": 3, "wait": 0.2, "lease_time": LEASE_SECONDS}
        pulled = self._books.leased(self.post(path, said)["jobs"], realm)
        while pulled:
            job, lease = pulled.pop()
            verb = self._chance.choice(["ack", "ack", "ack", "nack", "release", "exchange", "extend"])
            if verb == "extend":
                self._books.ended(verb, job, self.post(f"/{job[0]}/extend", {"leases": [lease], "lease_time": 7200}))
                pulled.insert(0, (job, lease))
                continue
            self._books.gives_back(job)
            if verb == "exchange":
                said = {"ack": {"leases": [lease]}, "pull": {"count": 1, "lease_time": LEASE_SECONDS}}
                answer = self.post(f"/{job[0]}/exchange", said)
                self._books.ended("ack", job, answer["ack"])
                pulled += self._books.leased(answer["pull"]["jobs"], job[0])
            else:
                self._books.ended(verb, job, self.post(f"/{job[0]}/{verb}", {"leases": [lease]}))

    def post(self, path: str, body: Any) -> Any:
        """The answer; while there is none, the same is sent again under the same key."""
        end = time.monotonic() + SECONDS_MAX
        headers = {**JSON, KEY: uuid.uuid4().hex}
        while time.monotonic() < end:
            answer = self._try(path, body, headers)
            if answer is not None and answer.status != 503:
                self._books.answered += 1
                return answer.ok()
            time.sleep(AGAIN_SECONDS)
        raise AssertionError(f"{path} was not answered for {SECONDS_MAX:g} s")

    def _try(self, path: str, body: Any, headers: dict[str, str]) -> Answer | None:
        try:
            return self._wire.ask("POST", path, body, headers)
        except (OSError, http.client.HTTPException):
            return None

    def close(self) -> None:
        self._wire.close()


@contextmanager
def clients(port: int, seed: int) -> Iterator[Books]:
    """Have clients at work meanwhile. At the end each is answered its last request, and stops."""
    books, stop = Books(), threading.Event()

    def run(number: int) -> None:
        client = Client(port, books, number, seed)
        step = client.add if number < ADDERS else client.work
        try:
            while not stop.is_set():
                step()
                if number < ADDERS:
                    stop.wait(AGAIN_SECONDS)  # so that the workers keep pace
        except BaseException as error:
            books.wrong.append(f"client {number} ended: {error!r}")
        finally:
            client.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(ADDERS + WORKERS)]
    for thread in threads:
        thread.start()
    try:
        yield books
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Attacker:
    """Kills what runs, and moves realms about."""

    def __init__(self, server: Server, start_server: StartServer, seed: int) -> None:
        self.server = server
        self._start_server = start_server
        self._chance = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self._ways: dict[str, Callable[[], bool]] = {
            "shard": self._kill_shard,
            "front end": self._kill_frontend,
            "supervisor": self._kill_supervisor,
            "all": self._kill_all,
        }
        self._first = self._chance.sample(list(self._ways), len(self._ways))

    def strike(self) -> None:
        """Do something that a server must survive; a kill of a shard that is just starting is tried again."""
        self._move()
        name = self._first.pop() if self._first else self._chance.choices(list(self._ways), [5, 3, 1, 1])[0]
        eventually(self._ways[name])
        self.kills[name] += 1

    def _move(self) -> None:
        path = f"/{self._chance.choice(REALMS)}/shard"
        try:
            answer = ask(self.server, "PUT", path, {"shard": self._chance.randrange(2)})
        except (OSError, http.client.HTTPException):
            return  # it is just being killed
        assert answer.status in (200, 404, 503), answer

    def _kill_shard(self) -> bool:
        try:
            pid = self._chance.choice(shard_pids(self.server))
            os.kill(pid, signal.SIGKILL)
        except (OSError, http.client.HTTPException, AssertionError):
            return False  # one of them is starting
        return True

    def _kill_frontend(self) -> bool:
        pids = frontend_pids(self.server)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def _kill_supervisor(self) -> bool:
        """The others are left alone, and end by themselves."""
        self._restart(children(self.server.pid), [self.server.pid])
        return True

    def _kill_all(self) -> bool:
        everyone = children(self.server.pid)
        self._restart(everyone, [*everyone, self.server.pid])
        return True

    def _restart(self, others: set[int], killed: list[int]) -> None:
        self._chance.shuffle(killed)
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):  # it ends by itself, as others are dead by now
                os.kill(pid, signal.SIGKILL)
        self.server.process.wait()
        eventually(lambda: not any(map(is_running, others)))
        self.server = self._start_server(self.server.data_dir, self.server.port)


@pytest.mark.parametrize("seed", SEEDS)
def test_attacked_server_does_once_what_it_is_asked_again_and_again(start_server: StartServer, seed: int) -> None:
    attacker = Attacker(start_server(), start_server, seed)
    with clients(attacker.server.port, seed) as books:
        for _ in range(KILLS):
            target = books.answered + PROGRESS
            eventually(lambda target=target: books.answered >= target or books.wrong)  # type: ignore[misc]
            if books.wrong:
                break
            attacker.strike()
    assert books.wrong == []
    eventually(lambda: ask(attacker.server, "GET", "/readyz").status == 200)
    left = {(realm, job_id) for realm in REALMS for job_id in jobs_of(attacker.server, realm)}
    assert books.added - books.acked == left
    assert books.acked
    print(f"seed {seed}: killed {dict(attacker.kills)}; {books.answered} answers, {len(books.acked)} jobs done")


def jobs_of(server: Server, realm: str) -> Iterator[str]:
    """The ids of all jobs of a realm."""
    cursor = ""
    while cursor is not None:
        page = ask(server, "GET", f"/{realm}/jobs?limit=1000{cursor and '&cursor='}{cursor}").ok()
        yield from (job["job_id"] for job in page["jobs"])
        cursor = page["cursor"]
