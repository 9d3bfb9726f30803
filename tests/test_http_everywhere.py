"""The HTTP table, route by route: the calls over several realms, whose shards differ, and what tells of the server."""

from __future__ import annotations

import os
import signal
from typing import Any

import msgpack
import pytest
from conftest import Server, StartServer
from processes import frontend_pids, is_running
from prometheus_client.parser import text_string_to_metric_families
from wire import MSGPACK, ask, names_on


@pytest.fixture
def realms(realm_name: str) -> list[str]:
    """Four realms that no other test uses: the first two live in shard 0, the others in shard 1."""
    first, second = names_on(0, realm_name), names_on(1, realm_name)
    return [next(first), next(first), next(second), next(second)]


def add(server: Server, *jobs: tuple[str, str, Any]) -> None:
    """Add (realm, job id, queue id) in this order, one by one, so that their order is certain."""
    for realm, job_id, queue_id in jobs:
        ask(server, "PUT", f"/{realm}/job/{job_id}", {"queue_id": queue_id, "data": f"{realm} {job_id}"}).ok()


def counts(server: Server, realms: list[str]) -> list[int]:
    return [ask(server, "GET", f"/{realm}/status").ok()["total_jobs"] for realm in realms]


def waiting(server: Server, realm: str) -> list[str]:
    """The jobs that are still to be had; leases them."""
    return list(ask(server, "GET", f"/{realm}/job?count=1000").ok())


# -- pull ----------------------------------------------------------------------------------------------------------

PULLS = ["GET", "POST", "distinct POST"]
DISTINCT = ["GET", "distinct POST"]


def pull(server: Server, way: str, realms: list[str], count: int, max_queue: Any = None) -> list[tuple[Any, ...]]:
    """What a pull over realms gave: (job id, realm, queue id, data), in order."""
    if way == "GET":
        last = "" if max_queue is None else f"&max-queue={max_queue}"
        reply = ask(server, "GET", f"/job?count={count}&realms={','.join(realms)}{last}").ok()
        return [(job_id, *rest) for job_id, rest in reply.items()]
    wanted = {"count": count, "realms": realms, **({} if max_queue is None else {"max_queue": max_queue})}
    wanted |= {"distinct": True} if way == "distinct POST" else {}
    jobs = ask(server, "POST", "/pull", wanted).ok()["jobs"]
    return [(job["job_id"], job["realm"], job["queue_id"], job["data"]) for job in jobs]


@pytest.mark.parametrize("way", PULLS)
def test_pull_over_shards_gives_lowest_queue_first_then_longest_ready(
    server: Server, realms: list[str], way: str
) -> None:
    a, b, c, d = realms
    add(server, (a, "late", 10), (c, "third", 2), (d, "text", "q"), (b, "fourth", 2))
    add(server, (d, "first", -1), (a, "second", 0))
    order = [job_id for job_id, *_ in pull(server, way, realms, 100)]
    assert order == ["first", "second", "third", "fourth", "late", "text"]


@pytest.mark.parametrize("way", PULLS)
def test_pull_over_shards_leases_exactly_what_it_returns(server: Server, realms: list[str], way: str) -> None:
    add(server, *((realm, f"{number}-{realm}", number) for realm in realms for number in range(5)))
    pulled = pull(server, way, realms, 7)
    assert [queue_id for _, _, queue_id, _ in pulled] == [0, 0, 0, 0, 1, 1, 1]
    assert all(data == f"{realm} {job_id}" for job_id, realm, _, data in pulled)
    left = {(job_id, realm) for realm in realms for job_id in waiting(server, realm)}
    everything = {(f"{number}-{realm}", realm) for realm in realms for number in range(5)}
    assert left == everything - {(job_id, realm) for job_id, realm, *_ in pulled}


@pytest.mark.parametrize("way", DISTINCT)
def test_pull_over_shards_that_is_distinct_returns_one_id_in_many_realms_once(
    server: Server, realms: list[str], way: str
) -> None:
    add(server, *((realm, "same", 3 - number) for number, realm in enumerate(realms)))
    found = [pull(server, way, realms, 10) for _ in range(5)]
    assert [[(job_id, queue_id) for job_id, _, queue_id, _ in jobs] for jobs in found] == [
        *([("same", queue_id)] for queue_id in range(4)),
        [],
    ]


@pytest.mark.parametrize("key", [None, "same ids"])
@pytest.mark.parametrize("count", [10, 3])
def test_pull_over_shards_returns_all_jobs_of_one_id(
    server: Server, realms: list[str], count: int, key: str | None
) -> None:
    add(server, *((realm, "same", 3 - number) for number, realm in enumerate(realms)))
    add(server, (realms[0], "same", 9), (realms[0], "other", 9))
    headers = {} if key is None else {"Idempotency-Key": f"{key} {realms[0]} {count}"}
    body = {"count": count, "realms": realms}
    given = ask(server, "POST", "/pull", body, headers).ok()["jobs"]
    found = [(job["realm"], job["job_id"], job["queue_id"]) for job in given]
    expected = [(realm, "same", number) for number, realm in enumerate(reversed(realms))]
    assert found == [*expected, (realms[0], "other", 9)][:count]
    if key is not None:
        assert ask(server, "POST", "/pull", body, headers).ok()["jobs"] == given
    left = [job["job_id"] for job in ask(server, "POST", "/pull", {"count": 10, "realms": realms}).ok()["jobs"]]
    assert left == (["same"] if count == 10 else ["same", "other"])


@pytest.mark.parametrize("way", DISTINCT)
def test_pull_over_shards_that_is_distinct_serves_one_id_in_two_realms_where_it_comes_first(
    server: Server, realms: list[str], way: str
) -> None:
    a, _, c, _ = realms
    add(server, (a, "twice", 0), (a, "second", 1), (c, "twice", 2))
    assert [(job_id, realm) for job_id, realm, *_ in pull(server, way, realms, 1)] == [("twice", a)]
    assert [(job_id, realm) for job_id, realm, *_ in pull(server, way, realms, 5)] == [("second", a), ("twice", c)]


@pytest.mark.parametrize("way", PULLS)
def test_pull_over_some_realms_leaves_others_alone(server: Server, realms: list[str], way: str) -> None:
    add(server, *((realm, f"job-{realm}", 0) for realm in realms))
    assert {realm for _, realm, *_ in pull(server, way, [realms[0], realms[2]], 100)} == {realms[0], realms[2]}
    assert waiting(server, realms[1]) == [f"job-{realms[1]}"]


@pytest.mark.parametrize("way", PULLS)
def test_pull_over_shards_with_max_queue_leaves_later_ones(server: Server, realms: list[str], way: str) -> None:
    add(server, (realms[0], "a", 0), (realms[2], "b", 2), (realms[1], "c", 10), (realms[3], "d", "q"))
    assert [job_id for job_id, *_ in pull(server, way, realms, 100, max_queue=2)] == ["a", "b"]


@pytest.mark.parametrize("way", PULLS)
def test_pull_over_unknown_realms_gives_nothing_and_makes_nothing(server: Server, realms: list[str], way: str) -> None:
    assert pull(server, way, realms, 5) == []
    assert not set(realms) & set(ask(server, "GET", "/").ok())


def test_pull_without_realms_pulls_over_all(start_server: StartServer, realms: list[str]) -> None:
    own = start_server()
    add(own, *((realm, f"job-{number}", number) for number, realm in enumerate(realms)))
    assert ask(own, "GET", "/job").ok() == {"job-0": [realms[0], 0, f"{realms[0]} job-0"]}
    [job] = ask(own, "POST", "/pull").ok()["jobs"]
    assert job.pop("lease_expires_at") > 0
    assert isinstance(job.pop("lease_id"), str)
    assert job == {
        "attempt": 1,
        "realm": realms[1],
        "job_id": "job-1",
        "queue_id": 1,
        "data": f"{realms[1]} job-1",
        "tags": [],
    }
    assert list(ask(own, "GET", "/job?count=5").ok()) == ["job-2", "job-3"]
    assert ask(own, "GET", "/job?count=5").ok() == {}


# -- bulk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_object", [False, True])
def test_bulk_add_over_shards_adds_each_to_its_realm(server: Server, realms: list[str], as_object: bool) -> None:
    jobs: Any = [
        {"realm_id": realm, "job_id": f"j{number}", "queue_id": number, "data": {"n": number}, "tags": ["t"]}
        for number, realm in enumerate([*realms, *realms])
    ]
    if as_object:
        jobs = {f"key {number}": job for number, job in enumerate(jobs)}
    assert ask(server, "POST", "/jobs", {"jobs": jobs}).ok() == {}
    statuses = ask(server, "GET", "/").ok()
    assert [statuses[realm] for realm in realms] == [
        {"total_jobs": 2, "total_tags": 1, "queues": {str(number): 1, str(number + 4): 1}} for number in range(4)
    ]
    assert ask(server, "GET", f"/{realms[3]}/job/j7").ok() == {"tags": ["t"], "data": {"n": 7}, "queues": [[7, 0]]}


def test_bulk_add_over_shards_in_msgpack_is_the_same(server: Server, realms: list[str]) -> None:
    jobs = [{"realm_id": realm, "job_id": 7, "queue_id": 0, "data": [1, {"b": 1, "a": 2}]} for realm in realms]
    answer = ask(server, "POST", "/jobs", msgpack.packb({"jobs": jobs}), MSGPACK)
    assert (answer.status, msgpack.unpackb(answer.body)) == (200, {})
    again = [{**job, "data": [1.0, {"a": 2, "b": 1}]} for job in jobs]
    assert ask(server, "POST", "/jobs", {"jobs": again}).ok() == {}
    assert ask(server, "GET", f"/{realms[2]}/job").ok() == {"7": [0, [1, {"b": 1, "a": 2}]]}


@pytest.mark.parametrize("culprit", range(4))
def test_bulk_add_over_shards_with_other_data_in_one_applies_none(
    server: Server, realms: list[str], culprit: int
) -> None:
    add(server, (realms[culprit], "known", 0))
    jobs: list[dict[str, Any]] = [{"realm_id": realm, "job_id": "new", "queue_id": 1} for realm in realms]
    jobs.append({"realm_id": realms[culprit], "job_id": "known", "queue_id": 1, "data": "other"})
    refused = ask(server, "POST", "/jobs", {"jobs": jobs})
    refused.refused(409, "ValueError", "data_differs")
    assert counts(server, realms) == [int(number == culprit) for number in range(4)]


def test_bulk_add_over_shards_with_two_data_for_one_new_job_applies_none(server: Server, realms: list[str]) -> None:
    jobs: list[dict[str, Any]] = [{"realm_id": realm, "job_id": "new", "queue_id": 1, "data": 1} for realm in realms]
    jobs.append({"realm_id": realms[3], "job_id": "new", "queue_id": 2, "data": 2})
    ask(server, "POST", "/jobs", {"jobs": jobs}).refused(409, "ValueError", "data_differs")
    assert not set(realms) & set(ask(server, "GET", "/").ok())


def test_bulk_remove_over_shards_removes_what_is_there(server: Server, realms: list[str]) -> None:
    add(server, *((realm, job_id, 0) for realm in realms for job_id in ("1", "b")))
    pairs = [[realm, 1] for realm in realms] + [[realms[0], "none"], [realms[0] + "x", "j"]]
    assert ask(server, "DELETE", "/jobs", {"jobs": pairs}).ok() == {}
    assert counts(server, realms) == [1, 1, 1, 1]
    assert realms[0] + "x" not in ask(server, "GET", "/").ok()


def test_bulk_nothing_over_shards_changes_nothing(server: Server) -> None:
    assert ask(server, "POST", "/jobs", {"jobs": []}).ok() == {}
    assert ask(server, "DELETE", "/jobs", {"jobs": []}).ok() == {}


# -- what tells of the server --------------------------------------------------------------------------------------


def test_get_root_shows_every_realm_of_every_shard(start_server: StartServer, realms: list[str]) -> None:
    own = start_server()
    assert ask(own, "GET", "/").ok() == {}
    add(own, *((realm, "j", 0) for realm in realms))
    reply = ask(own, "GET", "/")
    assert reply.headers["content-type"] == "application/json"
    assert reply.ok() == {realm: {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1}} for realm in realms}


def test_get_health_and_readiness_answer(server: Server) -> None:
    assert ask(server, "GET", "/healthz").ok() == {}
    assert ask(server, "GET", "/readyz").ok() == {}


def test_get_readiness_while_a_shard_stands_still_is_503(start_server: StartServer) -> None:
    server = start_server()
    pid = ask(server, "GET", "/performance/shards").ok()["shards"][1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        ask(server, "GET", "/readyz").refused(503, "ConnectionError", "shard_unavailable")
        ask(server, "GET", "/healthz").ok()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ask(server, "GET", "/readyz").ok() == {}


def test_get_performance_counts_calls_over_all_shards(start_server: StartServer, realms: list[str]) -> None:
    own = start_server()
    add(own, *((realm, "j", 0) for realm in realms))
    for realm in realms:
        ask(own, "GET", f"/{realm}/job").ok()
    performance = ask(own, "GET", "/performance").ok()
    for timing in performance.values():
        assert set(timing) == {"call_count", "min_time", "max_time", "total_time"}
        assert 0 < timing["min_time"] <= timing["max_time"] <= timing["total_time"]
    assert (performance["add_job"]["call_count"], performance["pull_2013"]["call_count"]) == (4, 4)


def test_get_shards_shows_where_each_realm_is(server: Server, realms: list[str]) -> None:
    add(server, *((realm, f"j{number}", 0) for realm in realms for number in range(3)))
    shards = ask(server, "GET", "/performance/shards").ok()["shards"]
    assert [shard["shard"] for shard in shards] == [0, 1]
    for number, shard in enumerate(shards):
        assert set(shard) == {"shard", "pid", "busy", "requests", "jobs", "realms"}
        assert 0 <= shard["busy"] <= 1
        assert is_running(shard["pid"])
        assert shard["jobs"] == sum(realm["jobs"] for realm in shard["realms"].values())
        here = [shard["realms"].get(realm) for realm in realms]
        told = {"jobs": 3, "pinned": False}
        assert here == [told if home == number else None for home in (0, 0, 1, 1)]
    assert len({shard["pid"] for shard in shards} | frontend_pids(server) | {server.pid}) == 4


def test_get_metrics_is_prometheus_text_with_few_series(start_server: StartServer, realms: list[str]) -> None:
    own = start_server()
    add(own, *((realm, f"j{number}", number) for realm in realms for number in range(10)))
    ask(own, "GET", f"/{realms[0]}/job/none").refused(404, "KeyError", "job_not_found")
    answer = ask(own, "GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    adds = [values["restq_operations_total", (("operation", "add_job"), ("shard", str(shard)))] for shard in (0, 1)]
    assert adds == [20, 20]
    assert [values["restq_shard_jobs", (("shard", str(shard)),)] for shard in (0, 1)] == [20, 20]
    assert [values["restq_shard_realms", (("shard", str(shard)),)] for shard in (0, 1)] == [2, 2]
    assert values["restq_errors_total", (("code", "job_not_found"), ("operation", "get_job"), ("shard", "0"))] == 1
    assert len(values) < 100
    assert all(family.documentation for family in families.values())
    assert not any(realm in answer.body.decode() for realm in realms)
