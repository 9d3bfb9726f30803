"""What was answered is there again, whatever is killed: a shard, all of the server, or the client that asked.

RESTQ_TEST_LONG=1 runs many more rounds.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Server, StartServer
from load import check_refusals, load, progress, verify, verify_order
from polling import eventually
from processes import children, frontend_pids, is_running, shard_pids
from realm_calls import RealmCalls
from wire import Answer, Wire, ask, connect, names_on, raw_request

LONG = os.environ.get("RESTQ_TEST_LONG") == "1"
SHARD_ROUNDS = 40 if LONG else 4
SERVER_ROUNDS = 30 if LONG else 3


def asker(server: Server) -> Callable[[str], Answer]:
    return lambda path: ask(server, "GET", path)


def answers(server: Server, path: str) -> bool:
    """Whether this is answered with success at this moment."""
    try:
        return ask(server, "GET", path).status == 200
    except (OSError, http.client.HTTPException):
        return False


def test_kill_shard_under_load_loses_nothing_and_disturbs_no_other(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    hit, spared = names_on(0, realm_name), names_on(1, realm_name)
    realms = [next(hit), next(hit), next(spared)]
    for realm in realms:
        ask(own, "POST", f"/{realm}/config", {"default_lease_time": 5000}).ok()
    supervisor_children = len(children(own.pid))
    with load(own.port, realms) as accounts:
        for _ in range(SHARD_ROUNDS):
            before = shard_pids(own)
            os.kill(before[0], signal.SIGKILL)
            progress(accounts)  # of those in the killed shard too: it answers again
            eventually(lambda: answers(own, "/readyz"))
            after = shard_pids(own)
            assert after[0] != before[0]
            assert after[1] == before[1]
    assert accounts[2].problems() == [], "the other shard's realm met errors"
    assert len(children(own.pid)) == supervisor_children
    for account in accounts:
        check_refusals(account)
        verify(asker(own), account)
        verify_order(asker(own), account)
    assert accounts[0].leased
    for name, end in list(accounts[0].leased.items())[-1:]:
        assert 4000 < end - time.time() <= 5000, f"the lease of {name}"


def test_kill_whole_server_under_load_loses_nothing(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realms = [next(names_on(shard, realm_name)) for shard in (0, 1)]
    for _ in range(SERVER_ROUNDS):
        everyone = children(own.pid)
        with load(own.port, realms) as accounts:
            os.kill(own.pid, signal.SIGKILL)
            own.process.wait()
        eventually(lambda pids=everyone: not any(map(is_running, pids)))  # type: ignore[misc]
        own = start_server(own.data_dir)
        for account in accounts:
            verify(asker(own), account)
            verify_order(asker(own), account)
            ask(own, "DELETE", f"/{account.realm}/").ok()


def test_kill_every_process_at_once_under_load_loses_nothing(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realms = [next(names_on(shard, realm_name)) for shard in (0, 1)]
    with load(own.port, realms) as accounts:
        for pid in (*children(own.pid), own.pid):
            os.kill(pid, signal.SIGKILL)
        own.process.wait()
    own = start_server(own.data_dir)
    for account in accounts:
        assert all(refused.status == 503 for refused in account.refused)
        verify(asker(own), account)
        verify_order(asker(own), account)


def test_kill_server_keeps_all_that_a_realm_is(start_server: StartServer, realm_name: str) -> None:
    first = start_server()
    ask(first, "POST", f"/{realm_name}/config", {"default_lease_time": 1234, "queue_lease_time": ["slow", 4321]}).ok()
    jobs: list[dict[str, Any]] = [
        {"job_id": "line\nbreak / ü", "queue_id": -5, "data": {"b": [1.5, None], "a": "ü"}, "tags": ["x", "y"]},
        {"job_id": "large", "queue_id": "slow", "data": "x" * 300_000},
        {"job_id": "leased", "queue_id": "slow"},
        {"job_id": "cleared", "queue_id": "gone"},
    ]
    ask(first, "POST", f"/{realm_name}/jobs", {"jobs": jobs}).ok()
    ask(first, "POST", f"/{realm_name}/queues/gone/clear").ok()
    pulled = ask(first, "POST", f"/{realm_name}/pull").ok()["jobs"]
    assert [job["job_id"] for job in pulled] == ["line\nbreak / ü"]
    status = ask(first, "GET", f"/{realm_name}/status").ok()
    pids = children(first.pid)
    first.process.kill()
    first.process.wait()
    eventually(lambda: not any(map(is_running, pids)))
    second = start_server(first.data_dir)
    assert ask(second, "GET", f"/{realm_name}/status").ok() == status
    assert status == {"total_jobs": 3, "total_tags": 2, "queues": {"-5": 1, "gone": 0, "slow": 2}}
    shown = ask(second, "GET", f"/{realm_name}/tag/x").ok()
    assert list(shown) == ["line\nbreak / ü"]
    job = shown["line\nbreak / ü"]
    assert (job["data"], job["tags"]) == ({"b": [1.5, None], "a": "ü"}, ["x", "y"])
    assert job["queues"][0][1] > 0
    before = time.time()
    ask(second, "PUT", f"/{realm_name}/job/new", {"queue_id": "new"}).ok()
    again = ask(second, "POST", f"/{realm_name}/pull", {"count": 9}).ok()["jobs"]
    assert [(job["job_id"], job["data"]) for job in again] == [
        ("new", None),
        ("large", "x" * 300_000),
        ("leased", None),
    ]
    assert [round((job["lease_expires_at"] - before) / 100) for job in again] == [12, 43, 43]


def test_kill_server_keeps_all_that_the_life_of_jobs_left(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realm = RealmCalls(own, realm_name)
    lease = realm.live()
    before = realm.life()
    for _ in range(2):
        everyone = [own.pid, *children(own.pid)]
        for pid in everyone:
            os.kill(pid, signal.SIGKILL)
        own.process.wait()
        eventually(lambda pids=everyone: not any(map(is_running, pids)))  # type: ignore[misc]
        realm.server = own = start_server(own.data_dir)
        assert realm.life() == before
    realm.go_on(lease)


def test_restart_server_within_a_lease_hands_job_out_again_only_at_its_end(
    start_server: StartServer, realm_name: str
) -> None:
    first = start_server()
    ask(first, "POST", f"/{realm_name}/config", {"default_lease_time": 3}).ok()
    ask(first, "PUT", f"/{realm_name}/job/j", {"queue_id": 0}).ok()
    [job] = ask(first, "POST", f"/{realm_name}/pull").ok()["jobs"]
    first.process.kill()
    first.process.wait()
    second = start_server(first.data_dir)
    [again] = eventually(lambda: ask(second, "POST", f"/{realm_name}/pull").ok()["jobs"])
    assert again["job_id"] == "j"
    assert time.time() >= job["lease_expires_at"] - 0.1
    assert again["lease_expires_at"] >= job["lease_expires_at"] + 2.9


def test_kill_shard_with_requests_under_way_answers_503_or_the_truth(
    start_server: StartServer, realm_name: str
) -> None:
    own = start_server()
    realm = next(names_on(0, realm_name))
    shard = shard_pids(own)[0]
    os.kill(shard, signal.SIGSTOP)
    connections = [connect(own) for _ in range(10)]
    try:
        for number, connection in enumerate(connections):
            connection.sendall(raw_request("PUT", f"/{realm}/job/{number}", b'{"queue_id": 0}'))
        taken_in(own)
        os.kill(shard, signal.SIGKILL)
        for connection in connections:
            answer = received_from(connection)
            answer.refused(503, "ConnectionError", "shard_unavailable")
            assert answer.headers["retry-after"]
    finally:
        for connection in connections:
            connection.close()
    eventually(lambda: answers(own, f"/{realm}/status"))
    assert ask(own, "GET", f"/{realm}/status").ok()["total_jobs"] == 0


def received_from(connection: Any) -> Answer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def taken_in(server: Server) -> None:
    """Once this returns, the front end has read what was sent, or closed, on other connections before."""
    for _ in range(3):
        ask(server, "GET", "/healthz").ok()


# -- a client that is gone -----------------------------------------------------------------------------------------

PULLS = {
    "pull": ("POST", "/REALM/pull", b'{"count": 2}'),
    "pull_2013": ("GET", "/REALM/job?count=2", b""),
    "pull over realms": ("POST", "/pull", b'{"count": 2, "realms": ["REALM"]}'),
    "pull_2013 over realms": ("GET", "/job?count=2&realms=REALM", b""),
}


@pytest.mark.parametrize("way", PULLS)
def test_disconnect_before_a_pull_is_answered_gives_the_jobs_to_the_next(
    server: Server, realm_name: str, way: str
) -> None:
    realm = next(names_on(0, realm_name))
    jobs = [{"job_id": job_id, "queue_id": 0, "data": job_id} for job_id in ("a", "b")]
    ask(server, "POST", f"/{realm}/jobs", {"jobs": jobs}).ok()
    method, path, body = PULLS[way]
    shard = shard_pids(server)[0]
    operation = {"pull": "pull", "pull_2013": "pull_2013"}.get(way, "lease_peeked")
    before = call_count(server, operation)
    os.kill(shard, signal.SIGSTOP)
    try:
        with connect(server) as connection:
            connection.sendall(
                raw_request(method, path.replace("REALM", realm), body.replace(b"REALM", realm.encode()))
            )
            taken_in(server)
        taken_in(server)
    finally:
        os.kill(shard, signal.SIGCONT)
    eventually(lambda: call_count(server, operation) > before)  # the pull was served, for nobody
    found: dict[str, Any] = {}

    def pulled_again() -> bool:
        found.update(ask(server, "GET", f"/{realm}/job?count=2").ok())
        return len(found) == 2

    eventually(pulled_again)
    assert found == {"a": [0, "a"], "b": [0, "b"]}
    assert ask(server, "GET", f"/{realm}/job?count=2").ok() == {}


def call_count(server: Server, operation: str) -> int:
    timing = ask(server, "GET", "/performance").ok().get(operation)
    return int(timing["call_count"]) if timing else 0


def test_disconnect_while_an_add_is_under_way_does_it_or_not_but_whole(server: Server, realm_name: str) -> None:
    jobs = json.dumps([{"job_id": number, "queue_id": 0} for number in range(500)])
    request = raw_request("POST", f"/{realm_name}/jobs", b'{"jobs": %b}' % jobs.encode())
    for length in (10, len(request) // 2, len(request) - 1, len(request)):
        with connect(server) as connection:
            connection.sendall(request[:length])
        taken_in(server)
        total = ask(server, "GET", f"/{realm_name}/status").ok()["total_jobs"]
        assert total in ((0, 500) if length == len(request) else (0,))


def test_kill_frontend_under_load_loses_nothing(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realms = [next(names_on(shard, realm_name)) for shard in (0, 1)]
    with load(own.port, realms) as accounts:
        for _ in range(2):
            [frontend] = eventually(lambda: frontend_pids(own))
            os.kill(frontend, signal.SIGKILL)
            progress(accounts)
    wire = Wire(own.port)
    for account in accounts:
        assert account.refused == []
        verify(lambda path: wire.ask("GET", path), account)
        verify_order(lambda path: wire.ask("GET", path), account)
    wire.close()
