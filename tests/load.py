"""Clients that work on a realm from threads and keep account of what they were told."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from polling import eventually
from wire import Answer, Wire

ADD_COUNT = 4  # jobs in one bulk add
CUT = (OSError, http.client.HTTPException)
TAG = "batch"


@dataclass
class Account:
    """What the clients of one realm know. What was asked and not answered may have happened or not."""

    realm: str
    asked: set[str] = field(default_factory=set)
    added: list[str] = field(default_factory=list)  # answered, in order
    leased: dict[str, float] = field(default_factory=dict)  # answered, with the end of the lease
    to_remove: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)  # answered
    refused: list[Answer] = field(default_factory=list)
    cut: list[Exception] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    steps: int = 0  # answered requests
    pulls_unanswered: int = 0

    def problems(self) -> list[str]:
        """Everything that no client of a server without failures may see."""
        return [*self.wrong, *map(repr, self.refused), *map(repr, self.cut)]


class Client:
    """One client: adds a few jobs, pulls as many, removes half of what it was given; again and again."""

    def __init__(self, port: int, account: Account, number: int) -> None:
        self._wire = Wire(port)
        self._account = account
        self._number = number
        self._names = (f"{number}-{count:06d}" for count in itertools.count())

    def _ask(self, method: str, path: str, body: Any) -> Any:
        """The reply of a success; None where there was none."""
        try:
            answer = self._wire.ask(method, f"/{self._account.realm}/{path}", body)
        except CUT as error:
            self._account.cut.append(error)
            time.sleep(0.005)  # not to flood what is starting again
            return None
        if answer.status != 200:
            self._account.refused.append(answer)
            time.sleep(0.005)
            return None
        self._account.steps += 1
        return answer.json

    def step(self) -> None:
        """A few requests."""
        account = self._account
        names = list(itertools.islice(self._names, ADD_COUNT))
        account.asked.update(names)
        jobs = [{"job_id": name, "queue_id": 0, "data": {"of": name}, "tags": [TAG]} for name in names]
        if self._ask("POST", "jobs", {"jobs": jobs}) is not None:
            account.added.extend(names)
        pulled = self._ask("POST", "pull", {"count": ADD_COUNT})
        if pulled is None:
            account.pulls_unanswered += 1
            return
        for job in pulled["jobs"]:
            name = job["job_id"]
            if name in account.leased:
                account.wrong.append(f"{name} was handed out again within its lease")
            if job["data"] != {"of": name} or job["tags"] != [TAG]:
                account.wrong.append(f"{name} came back as {job}")
            account.leased[name] = job["lease_expires_at"]
        done = [job["job_id"] for job in pulled["jobs"]][::2]
        account.to_remove.update(done)
        if done and self._ask("DELETE", "jobs", {"jobs": done}) is not None:
            account.removed.update(done)

    def close(self) -> None:
        self._wire.close()


@contextmanager
def load(port: int, realms: list[str], clients_count: int = 2) -> Iterator[list[Account]]:
    """Have clients work on each realm meanwhile. At the end they stop, and what they know stays as it is."""
    accounts = [Account(realm) for realm in realms]
    stop = threading.Event()
    crashes: list[BaseException] = []

    def run(account: Account, number: int) -> None:
        client = Client(port, account, number)
        try:
            while not stop.is_set():
                client.step()
        except BaseException as error:
            crashes.append(error)
        finally:
            client.close()

    threads = [
        threading.Thread(target=run, args=(account, number)) for account in accounts for number in range(clients_count)
    ]
    for thread in threads:
        thread.start()
    try:
        progress(accounts)
        yield accounts
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not crashes, crashes


def progress(accounts: list[Account], steps: int = 10) -> None:
    """Wait until each realm has answered so many more requests."""
    targets = [account.steps + steps for account in accounts]
    eventually(lambda: all(account.steps >= target for account, target in zip(accounts, targets, strict=True)))


def check_refusals(account: Account) -> None:
    """While its shard is away, a client is told so, and to come again; it is never told anything else."""
    for refused in account.refused:
        assert refused.status == 503, refused
        assert refused.json["exception"] == "ConnectionError"
        assert int(refused.headers["retry-after"]) >= 1


def verify(ask: Callable[[str], Answer], account: Account) -> None:
    """The realm holds what its clients were told: nothing lost, nothing back, nothing handed out twice."""
    assert not account.wrong, account.wrong[:5]
    status = ask(f"/{account.realm}/status").ok()
    jobs = ask(f"/{account.realm}/tag/{TAG}").ok() if status["total_tags"] else {}
    there = set(jobs)
    lost = set(account.added) - account.to_remove - there
    assert not lost, f"{len(lost)} jobs are lost, such as {sorted(lost)[:5]}"
    assert not there & account.removed, f"removed jobs are back, such as {sorted(there & account.removed)[:5]}"
    assert there <= account.asked
    assert status == {"total_jobs": len(there), "total_tags": bool(there), "queues": {"0": len(there)}}
    for name, job in jobs.items():
        assert (job["tags"], job["data"]) == ([TAG], {"of": name}), (name, job)
        [[queue_id, seconds]] = job["queues"]
        assert queue_id == 0
        if name in account.leased:
            assert seconds > 0, f"the lease of {name} is gone"
    leased_unseen = {name for name in there - set(account.leased) if jobs[name]["queues"][0][1] > 0}
    assert len(leased_unseen) <= ADD_COUNT * account.pulls_unanswered, sorted(leased_unseen)[:5]


def verify_order(ask: Callable[[str], Answer], account: Account) -> None:
    """What can still be pulled comes in the order in which each client added it."""
    rest = list(ask(f"/{account.realm}/job?count=100000").ok())
    for number in sorted({name.partition("-")[0] for name in rest}):
        own = [name for name in rest if name.startswith(f"{number}-")]
        assert own == sorted(own), f"client {number} added them in another order"
    assert not set(rest) & set(account.leased)
