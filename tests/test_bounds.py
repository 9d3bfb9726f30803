"""What a shard may hold: beyond it adds are refused and nothing else, and what it holds is counted exactly."""

from __future__ import annotations

import gc
import json
import math
import random
import tracemalloc
from typing import Any

import pytest
from conftest import StartServer
from longrun import seeds
from polling import eventually
from processes import children, is_running
from shard_rig import HOME_0, HOME_1, LARGE, A, B, C, Rig, ids, move
from wire import ask

from restq import bodies, memory
from restq.shards import adding
from restq.shards.bounds import JOB, Bounds, growth, held_by
from restq.shards.changes import Changes, Keys
from restq.shards.commands import batches, jobs
from restq.shards.new_jobs import new_jobs
from restq.shards.realm import Realm


def refusal(rig: Rig, realm: str, *job_ids: str, **said: Any) -> str:
    """The message to who adds these, which must be refused."""
    body = {"jobs": [{"job_id": job_id, "queue_id": 0, **said} for job_id in job_ids]}
    reply = rig.reply_to("add_jobs", realm, [], body)
    error = json.loads(reply.body)
    assert (reply.status, error["code"]) == (429, "queue_full")
    return str(error["message"])


def check_counts(rig: Rig) -> None:
    """What is counted is what is there."""
    for realm in rig.shard.realms():
        realm.check()
    held = [held_by(realm) for realm in rig.shard.realms()]
    assert (rig.shard.bounds.jobs, rig.shard.bounds.memory) == (sum(h[0] for h in held), sum(h[1] for h in held))


def test_add_beyond_the_jobs_of_a_shard_is_refused_and_removes_are_not() -> None:
    rig = Rig(bounds=(5, 0))
    rig.add(A, *ids(3))
    rig.add(B, "x", "y")
    told = refusal(rig, C, "one")
    assert told == "the shard of this realm holds 5 jobs and takes no more than 5 (webapp.shard_jobs_max)"
    refusal(rig, A, "job 0", "new")
    assert C not in rig.ask("get_statuses")
    rig.add(A, "job 2", queue=7)  # it is there: no job more
    rig.ask("remove_job", B, ["x"])
    rig.add(C, "one")
    refusal(rig, C, "two")
    [lease] = rig.leases(A)
    rig.ask("exchange", A, [], {"ack": {"leases": [lease]}, "add": [{"job_id": "job 9", "queue_id": 0}]})
    check_counts(rig)
    rig.start()
    refusal(rig, C, "two")
    check_counts(rig)


def test_bulk_add_in_slices_counts_as_a_whole_while_it_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (batches, jobs):
        monkeypatch.setattr(module, "SLICE_COUNT", 10)
    rig = Rig(bounds=(115, 0))
    rig.add(B, "x")
    bulk = rig.send("add_jobs", A, [], {"jobs": [{"job_id": job_id, "queue_id": 0} for job_id in ids(98)]})
    answered = {}
    for number in range(200):
        if bulk in rig.replies:
            break
        answered[rig.send("add_job", B, [f"n {number}"], {"queue_id": 0})] = number
        rig.turn()
    assert rig.read(bulk) == {}
    rig.run()
    count = sum(status["total_jobs"] for status in rig.ask("get_statuses").values())
    assert count == rig.shard.bounds.jobs == 115
    assert sorted({rig.replies[request].status for request in answered}) == [200, 429]
    check_counts(rig)


def test_bulk_add_beyond_the_bound_is_refused_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (batches, jobs):
        monkeypatch.setattr(module, "SLICE_COUNT", 10)
    rig = Rig(bounds=(100, 0))
    refusal(rig, A, *ids(101))
    rig.run()
    assert rig.ask("get_statuses") == {}
    rig.add(A, *ids(100))
    check_counts(rig)


def test_realm_that_moves_in_is_taken_and_counts() -> None:
    source, target = Rig(0, 2), Rig(1, 2, bounds=(5, 0))
    source.add(HOME_0, *ids(10), tags=["t"])
    target.add(HOME_1, "x")
    move(source, target, HOME_0)
    assert (source.shard.bounds.jobs, source.shard.bounds.memory) == (0, 0)
    assert target.shard.bounds.jobs == 11
    refusal(target, HOME_1, "y")
    target.ask("remove_tagged_jobs", HOME_0, ["t"])
    target.add(HOME_1, "y")
    check_counts(target)


def test_memory_counts_what_is_in_memory() -> None:
    rig = Rig(bounds=(0, 100_000))
    rig.add(A, *ids(50), data=LARGE)
    rig.add(B, "x", data="y" * 4_000)
    assert 50 * JOB < rig.shard.bounds.memory < 100 * JOB + 4_000
    told = refusal(rig, B, *ids(30), data="y" * 4_000)
    assert told.endswith("bytes of memory, and may hold 100000 (webapp.shard_memory_max)")
    refusal(rig, A, "job 0", tags=[f"tag {number}" for number in range(200)])
    refusal(rig, A, *ids(2), "z" * 8_000, *("z" * 8_000 + str(n) for n in range(10)))
    rig.ask("delete_realm", A)
    rig.add(B, *ids(10), data="y" * 4_000)
    check_counts(rig)


def test_machine_without_memory_refuses_adds_until_it_has_some() -> None:
    rig = Rig()
    rig.add(A, *ids(3))
    rig.shard.bounds.memory_left = 0
    assert refusal(rig, A, "x").startswith("the machine has nearly no memory left")
    rig.add(A, "job 1")  # nothing new
    rig.leases(A)
    rig.ask("remove_job", A, ["job 2"])
    rig.shard.bounds.memory_left = math.inf
    rig.add(A, "x")


@pytest.mark.parametrize("seed", seeds(10, 500))
def test_counts_are_exact_whatever_happens(seed: int, small_steps: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (batches, jobs):
        monkeypatch.setattr(module, "SLICE_COUNT", 5)
    chance = random.Random(seed)
    rig = Rig(bounds=(60, 60 * JOB))
    for _ in range(60):
        realm, tag = chance.choice([A, B, C]), chance.choice(["s", "t"])
        some = chance.sample(ids(30), chance.randrange(1, 12))
        match chance.randrange(12):
            case 0 | 1 | 2 | 3 | 4:
                data = chance.choice(["", "y" * 100, LARGE])
                said = {"queue_id": chance.randrange(3), "tags": [tag] * chance.randrange(2), "data": data}
                said["on_conflict"] = chance.choice(["replace", "ignore", "merge"])
                said["expires_in"] = chance.choice([0.5, 100.0])
                rig.send("add_jobs", realm, [], {"jobs": [{"job_id": job_id, **said} for job_id in some]})
            case 5:
                rig.send("remove_jobs", realm, [], {"jobs": some})
            case 6:
                rig.send("pull", realm, [], {"count": 9, "lease_time": chance.choice([0.2, 50])})
            case 7:
                rig.run()
                leases = [job["lease_id"] for job in rig.pull(realm, 7)]
                rig.send(chance.choice(["ack", "nack"]), realm, [], {"leases": leases})
            case 8:
                rig.send("remove_tagged_jobs", realm, [tag])
            case 9:
                rig.send(chance.choice(["clear_queue", "clear_queue_2013"]), realm, [str(chance.randrange(3))])
            case 10:
                rig.send("delete_realm", realm)
            case 11:
                chance.choice([rig.start, rig.full_turn, lambda: None])()
        for _ in range(chance.randrange(4)):
            rig.turn()
        rig.now += chance.choice([0.0, 0.3])
        if chance.random() < 0.3:
            rig.run()
            check_counts(rig)
    rig.run()
    check_counts(rig)
    assert rig.shard.bounds.jobs <= 60


@pytest.mark.parametrize(
    ("said", "spare"),
    [
        ({}, 1.7),
        ({"tags": ["a"]}, 1.7),
        ({"tags": ["a", "b", "c", "d"]}, 1.7),
        ({"data": "x" * 1_000}, 1.7),
        ({"tags": ["own #"]}, 1.7),
        ({"tags": ["own #", "also #", "and #"]}, 1.7),
        ({"queue_id": "own #"}, 1.7),
    ],
    ids=str,
)
def test_memory_is_estimated_about_as_it_is(said: dict[str, Any], spare: float) -> None:
    """What Python allocated, to which come the holes between: rather too high an estimate than too low."""
    realm, changes, count = Realm(1, A, 600.0, Keys(), Changes()), Changes(), 1_000
    realm.changes = changes
    realm.bounds = Bounds(memory_max=1 << 40)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        estimated = 0
        for number in range(0, count, 100):
            bodies_ = [
                {"job_id": f"job {n:09}", "queue_id": 0, **json.loads(json.dumps(said).replace("#", str(n)))}
                for n in range(number, number + 100)
            ]
            jobs_ = bodies.bulk_jobs(bodies.reader(bodies.BulkAdd)(json.dumps({"jobs": bodies_}).encode()))
            checked = new_jobs(jobs_, 1_000.0)
            estimated += growth(realm, checked)
            adding.add(realm, checked, 1_000.0)
            changes.take()
            del bodies_, jobs_, checked
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    _, held = held_by(realm)
    assert estimated >= held
    assert 0.9 * taken <= held <= spare * taken, (taken / count, held / count)


def test_memory_that_is_left_is_the_least_of_machine_container_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal:       1000000 kB\nMemFree: 1 kB\nMemAvailable:   500000 kB\n",
        "/proc/self/cgroup": "0::/mine\n",
        "/proc/self/statm": "9 30000 1\n",
        "/proc/self/status": "Name: x\nVmSize: 100 kB\nVmData: 100 kB\n",
    }
    monkeypatch.setattr(memory, "_text", lambda path: files.get(str(path), ""))
    assert memory.for_jobs() == math.inf
    files["/sys/fs/cgroup/mine/memory.max"] = "max\n"
    files["/sys/fs/cgroup/mine/memory.current"] = f"{450 << 20}\n"
    assert memory.for_jobs() == math.inf
    files["/sys/fs/cgroup/mine/memory.max"] = f"{512 << 20}\n"
    own = 30000 * memory.PAGE_BYTES - memory.OWN_BYTES
    assert memory.for_jobs() == own, "62 MiB are left"
    files["/sys/fs/cgroup/mine/memory.stat"] = f"anon 1\ninactive_file {8 << 20}\n"
    assert memory.for_jobs() == math.inf, "and 8 MiB of files that can go"
    files["/proc/meminfo"] = "MemTotal: 1000000 kB\nMemAvailable: 60000 kB\n"
    assert memory.for_jobs() == own
    files.clear()
    assert memory.for_jobs() == math.inf, "nobody says so"


def test_server_with_a_bound_answers_429_and_keeps_to_it_over_a_start(start_server: StartServer) -> None:
    environment = {"RESTQ_WEBAPP_SHARD_JOBS_MAX": "10"}
    own = start_server(shards=1, environment=environment)
    many = {"jobs": [{"job_id": job_id, "queue_id": 0} for job_id in ids(10)]}
    ask(own, "POST", "/r/jobs", many).ok()
    pids = children(own.pid)
    own.process.kill()
    own.process.wait()
    eventually(lambda: not any(map(is_running, pids)))
    own = start_server(own.data_dir, shards=1, environment=environment)
    refused = ask(own, "PUT", "/s/job/x", {"queue_id": 0})
    assert "webapp.shard_jobs_max" in refused.refused(429, "ConnectionError", "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    ask(own, "POST", "/r/pull", {}).ok()
    ask(own, "DELETE", "/r/job/job%200").ok()
    ask(own, "PUT", "/s/job/x", {"queue_id": 0}).ok()
