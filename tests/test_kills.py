"""Kills at random instants: of shards with many jobs, which must answer again soon, and of starts that move realms.

Kills under load from several clients stand in `test_attack` and `test_durability`, crashes of a relocation at each of
its writes in `test_relocation`. RESTQ_TEST_LONG=1 kills often, and prints how long it took.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import START_SECONDS, Server, StartServer
from longrun import LONG, seeds, trials
from polling import eventually
from processes import shard_pids
from wire import Wire, ask, encoded, names_on

# -- how long it takes ---------------------------------------------------------------------------------------------

JOB_COUNT = 100_000 if LONG else 5_000
KILL_COUNT = trials(3, 100)


def fill(server: Server, realm: str, count: int) -> None:
    """Add so many jobs."""
    wire = Wire(server.port)
    for first in range(0, count, 5_000):
        numbers = range(first, min(first + 5_000, count))
        jobs = [{"job_id": f"{number:06d}", "queue_id": number % 5, "data": {"n": number}} for number in numbers]
        wire.ask("POST", f"/{realm}/jobs", {"jobs": jobs}).ok()
    wire.close()


def seconds_until_answered(server: Server, realm: str) -> float:
    """Until the realm shows what it holds again."""
    began_at = time.monotonic()
    answer = eventually(lambda: (found := ask(server, "GET", f"/{realm}/status")).status == 200 and found)
    assert answer.ok()["total_jobs"] == JOB_COUNT
    return time.monotonic() - began_at


def test_kill_shard_with_many_jobs_answers_again_soon(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    hit, spared = (next(names_on(shard, realm_name)) for shard in (0, 1))
    fill(own, hit, JOB_COUNT)
    ask(own, "PUT", f"/{spared}/job/j", {"queue_id": 0}).ok()
    chance = random.Random(1)
    took = []
    for _ in range(KILL_COUNT):
        os.kill(shard_pids(own)[0], signal.SIGKILL)
        took.append(seconds_until_answered(own, hit))
        assert ask(own, "GET", f"/{spared}/status").ok()["total_jobs"] == 1
        eventually(lambda: ask(own, "GET", "/readyz").status == 200)
        time.sleep(chance.uniform(0.0, 0.5 if LONG else 0.1))
    took.sort()
    p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
    print(f"\n{len(took)} kills, {JOB_COUNT} jobs: it answers again after {p50:.3f} s p50, {p99:.3f} s p99", end="")
    print(f", {took[-1]:.3f} s at most")


# -- starts that are killed ----------------------------------------------------------------------------------------

RELOCATIONS = seeds(2, 200)
TRIALS_OF_DIRECTORY = 25  # so that one test is a matter of minutes
REALM_COUNT = 40
JOBS_EACH = 100 if LONG else 30
# Copies what moves in many groups, so that more instants differ.
CHUNKED = """
import sys
from restq import cli
from restq.shards import relocation
relocation.CHUNK_ROWS = 100
sys.exit(cli.main())
"""
IN_CHUNKS = (sys.executable, "-c", CHUNKED)
SHARDS_MAX = 5
STARTS_KILLED_MAX = 3  # in a row


class Directory:
    """A data directory, and what its realms must hold."""

    def __init__(self, path: Path, realm_name: str) -> None:
        self.path = path
        self.jobs: dict[str, dict[str, int]] = {f"{realm_name} {number}": {} for number in range(REALM_COUNT)}
        self._numbers = itertools.count()

    def change(self, server: Server, chance: random.Random, count: int) -> None:
        """Add some jobs, and remove some."""
        wire = Wire(server.port)
        for realm in chance.sample(sorted(self.jobs), count):
            path, known = f"/{encoded(realm)}/jobs", self.jobs[realm]
            new = {f"{next(self._numbers):06d}": chance.choice([10] * 9 + [20_000]) for _ in range(JOBS_EACH)}
            gone = chance.sample(sorted(known), len(known) // 2)
            jobs = [{"job_id": job, "queue_id": size, "data": "x" * size, "tags": ["t"]} for job, size in new.items()]
            wire.ask("POST", path, {"jobs": jobs}).ok()
            wire.ask("DELETE", path, {"jobs": gone}).ok()
            known.update(new)
            for job in gone:
                del known[job]
        wire.close()

    def check(self, server: Server) -> None:
        """Every realm is whole, in one shard."""
        wire = Wire(server.port)
        reports = wire.ask("GET", "/performance/shards").ok()["shards"]
        assert sorted(realm for shard in reports for realm in shard["realms"]) == sorted(self.jobs)
        for realm, jobs in self.jobs.items():
            found = wire.ask("GET", f"/{encoded(realm)}/tag/t").ok()
            assert {job: len(shown["data"]) for job, shown in found.items()} == jobs, realm
            assert all(shown["queues"] == [[jobs[job], 0]] for job, shown in found.items()), realm
        wire.close()

    def check_files(self) -> None:
        """Every realm stands in one file, with all its jobs; no file has rows of no realm."""
        rows: dict[str, int] = {}
        for path in self.path.glob("shard-*.sqlite"):
            with contextlib.closing(sqlite3.connect(path)) as database:
                counts = database.execute(
                    "SELECT name, (SELECT count(*) FROM jobs WHERE jobs.realm = realms.key) FROM realms"
                ).fetchall()
                assert not {name for name, _ in counts} & set(rows), "a realm stands in two files"
                rows.update(counts)
                total = sum(count for _, count in counts)
                for query, expected in [
                    ("SELECT count(*) FROM jobs", total),
                    ("SELECT count(*) FROM places JOIN jobs ON jobs.key = places.job", total),
                    ("SELECT count(*) FROM places", total),
                    ("SELECT count(*) FROM payloads WHERE key NOT IN (SELECT key FROM jobs)", 0),
                ]:
                    assert database.execute(query).fetchone() == (expected,), (path, query)
        assert rows == {realm: len(jobs) for realm, jobs in self.jobs.items()}


def start_and_kill(data_dir: Path, shards: int, seconds: float) -> str:
    """Start a server and kill all of it after so long; returns how far it came."""
    command = [*IN_CHUNKS, "web", "127.0.0.1:0", f"--data-dir={data_dir}", f"--shards={shards}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    killer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    killer.start()
    try:
        stdout, stderr = process.communicate(timeout=START_SECONDS)
    finally:
        killer.join()
    assert process.returncode == -signal.SIGKILL, stderr
    return "served" if "serves" in stdout else "moved realms" if "moves from" in stderr else "began"


@pytest.mark.parametrize("first", RELOCATIONS[::TRIALS_OF_DIRECTORY])
def test_start_with_other_numbers_of_shards_killed_at_any_instant_keeps_every_realm_whole(
    start_server: StartServer, realm_name: str, first: int
) -> None:
    own = start_server(shards=2)
    place = Directory(own.data_dir, realm_name)
    place.change(own, random.Random(0), REALM_COUNT)
    assert own.stop() == 0
    began_at = time.monotonic()
    assert start_server(own.data_dir, program=IN_CHUNKS, shards=3).stop() == 0
    whole_start = time.monotonic() - began_at
    stages: Counter[str] = Counter()
    own_seeds = [seed for seed in RELOCATIONS if first <= seed < first + TRIALS_OF_DIRECTORY]
    for seed in own_seeds:
        chance = random.Random(seed)
        for _ in range(chance.randint(1, STARTS_KILLED_MAX)):
            seconds = chance.uniform(0.2, 1.0) * whole_start
            stages[start_and_kill(place.path, chance.randint(1, SHARDS_MAX), seconds)] += 1
        own = start_server(place.path, shards=chance.randint(1, SHARDS_MAX))
        place.check(own)
        place.change(own, chance, 5)
        assert own.stop() == 0
        place.check_files()
    print(f"\n{len(own_seeds)} trials, starts killed when they had: {dict(stages)}")
