"""A whole batch over real processes: a graph of work in stages, some of whose workers are killed, and its shard."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Server, StartServer
from polling import eventually
from processes import shard_pids

from restq.client import Realm

STAGES = 20
JOBS = 1_000
WORKERS = 8
KILLED = 3
SECONDS_MAX = 100.0
WORKER = Path(__file__).with_name("dag_worker.py")


def stage_of(job_id: str) -> int:
    return int(job_id.split()[1])


def graph() -> list[dict[str, object]]:
    """A thousand jobs in twenty stages, each after the one before, in no order."""
    jobs: list[dict[str, object]] = []
    for number in range(JOBS):
        stage = number % STAGES
        job: dict[str, object] = {"job_id": f"stage {stage} job {number}", "queue_id": 0, "tags": [f"stage {stage}"]}
        if stage:
            job["after"] = [f"stage {stage - 1}"]
        jobs.append(job)
    random.Random(20).shuffle(jobs)
    return jobs


def start_worker(server: Server, realm: str, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, os.fspath(WORKER), server.uri, realm, os.fspath(log)])


def done_count(realm: Realm) -> int:
    return sum(1 for _ in realm.list_jobs(state="done"))


def test_graph_of_stages_with_dying_workers_and_shard_is_done_stage_by_stage(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server(shards=1)
    logs = [tmp_path / f"worker-{number}" for number in range(WORKERS)]
    with Realm("graph", server.uri) as realm:
        realm.configure(keep_done={"count": 10 * JOBS})
        realm.bulk_add(graph())
        workers = [start_worker(server, "graph", log) for log in logs]
        try:
            for number, worker in enumerate(workers[:KILLED], 1):
                eventually(lambda least=number * 100: done_count(realm) >= least, SECONDS_MAX)
                worker.kill()
            eventually(lambda: done_count(realm) >= 500, SECONDS_MAX)
            os.kill(shard_pids(server)[0], signal.SIGKILL)
            assert realm.wait_for_tag(f"stage {STAGES - 1}", SECONDS_MAX)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        assert realm.status["total_jobs"] == 0
        done = list(realm.list_jobs(state="done"))
    # Each was acked once, whatever died: by a lease, and no stage before the end of the one before it.
    assert sorted(result["job_id"] for result in done) == sorted(str(job["job_id"]) for job in graph())
    ends: dict[int, float] = {}
    for result in done:
        stage = stage_of(result["job_id"])
        ends[stage] = max(ends.get(stage, 0.0), result["done_at"])
    for result in done:
        stage = stage_of(result["job_id"])
        assert stage == 0 or result["leased_at"] >= ends[stage - 1], f"{result['job_id']} was handed out too early"
    # Who was told that a job is done did it, and nobody else was told so of the same job.
    told = [line.partition(" ")[2] for log in logs for line in log.read_text().splitlines() if line.startswith("acked")]
    assert len(told) == len(set(told))
    assert set(told) <= {result["job_id"] for result in done}
    assert all(log.read_text() for log in logs), "every worker had its part"


@pytest.mark.parametrize("name", ["never", "stage 1"])
def test_wait_for_tag_that_nobody_carries_is_over_at_once(realm: Realm, name: str) -> None:
    assert realm.wait_for_tag(name, 0)
