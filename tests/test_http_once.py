"""Idempotency keys over HTTP: what is sent again under its key is answered as before, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Any

import msgpack
import pytest
from conftest import Server, StartServer
from processes import shard_pids
from realm_calls import KEY, RealmCalls
from wire import MSGPACK, ask, connect, names_on, raw_request, received


@pytest.fixture
def realm(server: Server, realm_name: str) -> RealmCalls:
    return RealmCalls(server, realm_name)


@pytest.fixture
def key(realm_name: str) -> str:
    """A key that no other test uses."""
    return f"key of {realm_name}"


def everywhere(realm: RealmCalls, path: str, body: Any, key: str) -> Any:
    return ask(realm.server, "POST", path, body, {KEY: key, "Content-Type": "application/json"})


def test_pull_again_under_its_key_gives_the_same_jobs_and_leases_no_more(realm: RealmCalls, key: str) -> None:
    realm.add_all("a", "b")
    first = realm.post("pull", key=key, count=1)
    assert realm.post("pull", key=key, count=1).body == first.body
    assert realm.state("b") == "ready"
    [job] = first.ok()["jobs"]
    assert realm.post("ack", leases=[job["lease_id"]]).ok()["acked"] == [job["lease_id"]]


def test_pull_under_another_key_is_another_pull(realm: RealmCalls, key: str) -> None:
    realm.add_all("a", "b")
    bodies = {realm.post("pull", key=key + number, count=1).body for number in "12"}
    assert len(bodies) == 2


def test_ack_again_under_its_key_is_no_conflict(realm: RealmCalls, key: str) -> None:
    realm.add("j").ok()
    lease = realm.lease()
    for _ in range(3):
        assert realm.post("ack", key=key, leases=[lease]).ok() == {"acked": [lease], "stale": []}
    realm.post("ack", leases=[lease]).refused(409, "ValueError", "lease_stale")


def test_exchange_again_under_its_key_gives_the_first_reply(realm: RealmCalls, key: str) -> None:
    realm.add_all("a", "b")
    body = {"ack": {"leases": [realm.lease()]}, "add": [{"job_id": "c", "queue_id": 0}], "pull": {"count": 1}}
    first = realm.ask("POST", "exchange", body, key)
    realm.ask("DELETE", "job/c").ok()
    again = realm.ask("POST", "exchange", body, key)
    assert again.body == first.body
    assert [job["job_id"] for job in first.ok()["pull"]["jobs"]] == ["b"]
    assert realm.ids() == ["b"], "what was added and removed since does not come back"


@pytest.mark.parametrize(
    ("path", "body", "change"),
    [
        ("jobs", {"jobs": [{"job_id": "new", "queue_id": 0}]}, "job/new"),
        ("job/j/cancel", None, "job/j"),
        ("queues/0/clear", None, "job/j"),
        ("tags/t/cancel", None, "job/j"),
        ("tags/t/move", {"from_queue": 0, "to_queue": 1}, "job/j"),
        ("job/j/move", {"from_queue": 0, "to_queue": 1}, "job/j"),
    ],
)
def test_post_again_under_its_key_does_nothing_twice(
    realm: RealmCalls, key: str, path: str, body: Any, change: str
) -> None:
    realm.add("j", tags=["t"]).ok()
    first = realm.ask("POST", path, body, key)
    first.ok()
    realm.ask("DELETE", change).ok()
    realm.add("j", tags=["t"]).ok()
    before = [job["queues"][0]["queue_id"] for job in realm.list()]
    assert realm.ask("POST", path, body, key).body == first.body
    assert [job["queues"][0]["queue_id"] for job in realm.list()] == before


def test_post_refused_under_a_key_may_be_done_later(realm: RealmCalls, key: str) -> None:
    realm.post("queues/0/clear", key=key).refused(404, "ValueError", "queue_not_found")
    realm.add("j").ok()
    assert realm.post("queues/0/clear", key=key).ok() == {"removed": 1}
    assert realm.post("queues/0/clear", key=key).ok() == {"removed": 1}


def test_reuse_key_for_something_else_is_422_and_does_nothing(realm: RealmCalls, key: str) -> None:
    realm.add_all("a", "b")
    realm.post("pull", key=key, count=1).ok()
    realm.post("pull", key=key, count=2).refused(422, "ValueError", "idempotency_key_reused")
    lease = realm.list()[0]["job_id"]
    realm.post("ack", key=key, leases=[lease]).refused(422, "ValueError", "idempotency_key_reused")
    realm.ask("POST", "job/b/cancel", key=key).refused(422, "ValueError", "idempotency_key_reused")
    assert [job["queues"][0]["state"] for job in realm.list()] == ["leased", "ready"]


def test_use_one_key_in_two_realms_is_two_requests(realm: RealmCalls, key: str) -> None:
    other = RealmCalls(realm.server, realm.name + "-other")
    for one in (realm, other):
        one.add("j").ok()
    assert [job["job_id"] for one in (realm, other) for job in one.post("pull", key=key).ok()["jobs"]] == ["j", "j"]


@pytest.mark.parametrize("longest", ["!", "~" * 255, " inner space "])
def test_use_key_at_its_limits_is_taken(realm: RealmCalls, longest: str) -> None:
    realm.add_all("a", "b")
    assert realm.post("pull", key=longest).body == realm.post("pull", key=longest).body


@pytest.mark.parametrize("wrong", ["", "x" * 256, "a\tb", "\xfc"])
@pytest.mark.parametrize("path", ["/REALM/pull", "/pull", "/jobs"])
def test_use_wrong_key_is_400_and_does_nothing(realm: RealmCalls, path: str, wrong: str) -> None:
    realm.add("j").ok()
    with connect(realm.server) as connection:
        headers = {KEY: wrong, "Content-Type": "application/json"}
        request = raw_request("POST", path.replace("REALM", realm.name), b'{"jobs":[]}', headers)
        connection.sendall(request.decode().encode("latin-1"))
        answer = received(connection)
    answer.refused(400, "ValueError", "field_invalid")
    assert answer.json["field"] == KEY
    assert realm.state("j") == "ready"


def test_send_again_after_kill_gives_the_first_reply(start_server: StartServer, realm_name: str, key: str) -> None:
    own = start_server()
    realm = RealmCalls(own, realm_name)
    realm.add_all("a", "b", "c")
    first = realm.post("pull", key=key, count=1)
    over_realms = everywhere(realm, "/pull", {"count": 1}, key + "2")
    own.process.kill()
    own.process.wait()
    realm.server = start_server(own.data_dir)
    assert realm.post("pull", key=key, count=1).body == first.body
    assert everywhere(realm, "/pull", {"count": 1}, key + "2").json == over_realms.json
    realm.post("pull", key=key, count=2).refused(422, "ValueError", "idempotency_key_reused")
    assert realm.pull_ids() == ["c"]


def test_send_again_after_realm_moved_gives_the_first_reply(realm: RealmCalls, key: str) -> None:
    realm.add_all("a", "b")
    first = realm.post("pull", key=key, count=1)
    for shard in (0, 1):
        realm.ask("PUT", "shard", {"shard": shard}).ok()
    assert realm.post("pull", key=key, count=1).body == first.body
    assert realm.pull_ids() == ["b"]


def test_send_in_msgpack_again_gives_the_first_reply(realm: RealmCalls, key: str) -> None:
    realm.add_all("a", "b")
    body = msgpack.packb({"count": 1})
    bodies = {ask(realm.server, "POST", f"/{realm.name}/pull", body, {**MSGPACK, KEY: key}).body for _ in range(2)}
    assert len(bodies) == 1
    assert realm.pull_ids() == ["b"]


def test_send_at_once_under_one_key_is_done_once(realm: RealmCalls, key: str) -> None:
    realm.add_all(*(f"j{number}" for number in range(20)))
    answers: list[bytes] = []

    def pull(path: str) -> None:
        body = {"realms": [realm.name], "count": 1} if path == "/pull" else {"count": 1}
        answers.append(everywhere(realm, path, body, key + path).body)

    for path in (f"/{realm.name}/pull", "/pull"):
        threads = [threading.Thread(target=pull, args=(path,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 16
    assert [len(set(part)) for part in (answers[:8], answers[8:])] == [1, 1]
    assert len(realm.ids("state=leased")) == 2


def test_wait_again_under_one_key_takes_the_place_of_the_first(realm: RealmCalls, key: str) -> None:
    body = json.dumps({"wait": 60}).encode()
    first, second = (realm.send("POST", "pull", body, {KEY: key}) for _ in range(2))
    with first:
        assert received(first).ok() == {"jobs": []}
    realm.add_all("a", "b")
    with second:
        assert [job["job_id"] for job in received(second).ok()["jobs"]] == ["a"]
    assert realm.ids("state=leased") == ["a"]


@pytest.mark.parametrize("path", ["/REALM/pull", "/pull"])
def test_pull_in_vain_under_a_key_is_tried_anew(realm: RealmCalls, key: str, path: str) -> None:
    path, body = path.replace("REALM", realm.name), {"realms": [realm.name]} if path == "/pull" else {}
    assert everywhere(realm, path, body, key).ok() == {"jobs": []}
    realm.add("j").ok()
    assert len(everywhere(realm, path, body, key).ok()["jobs"]) == 1


def test_close_while_waiting_under_a_key_and_come_again_gets_what_comes(realm: RealmCalls, key: str) -> None:
    realm.send("POST", "pull", json.dumps({"wait": 60}).encode(), {KEY: key}).close()
    realm.settle()
    realm.add("j").ok()
    assert realm.pull_ids() == ["j"], "nobody holds it"


def test_come_again_before_the_first_was_answered_gets_jobs_that_nobody_takes_back(
    start_server: StartServer, realm_name: str, key: str
) -> None:
    """The first client is gone, and what it pulled would be given back: but the second got the very same reply."""
    own = start_server(shards=1)
    realm = RealmCalls(own, realm_name)
    realm.add("j").ok()
    [shard] = shard_pids(own)
    request = raw_request("POST", f"/{realm_name}/pull", headers={KEY: key})
    os.kill(shard, signal.SIGSTOP)
    try:
        first, second = connect(own), connect(own)
        first.sendall(request)
        ask(own, "GET", "/healthz").ok()  # the front end has read it
        first.close()
        ask(own, "GET", "/healthz").ok()
        second.sendall(request)
        ask(own, "GET", "/healthz").ok()
    finally:
        os.kill(shard, signal.SIGCONT)
    with second:
        [job] = received(second).ok()["jobs"]
    realm.settle()
    assert realm.state("j") == "leased"
    assert realm.post("ack", leases=[job["lease_id"]]).ok()["acked"] == [job["lease_id"]]


# -- over realms -----------------------------------------------------------------------------------------------------


def test_pull_over_realms_again_under_its_key_gives_the_same_jobs(server: Server, realm_name: str, key: str) -> None:
    names = [next(names_on(shard, realm_name)) for shard in (0, 1)]
    realms = [RealmCalls(server, name) for name in names]
    for realm in realms:
        realm.add_all("a-" + realm.name, "b-" + realm.name)
    body = {"realms": names, "count": 3}
    first = everywhere(realms[0], "/pull", body, key)
    assert len(first.ok()["jobs"]) == 3
    assert everywhere(realms[0], "/pull", body, key).body == first.body
    assert sum(len(realm.pull(9)) for realm in realms) == 1


def test_bulk_add_over_realms_again_under_its_key_adds_nothing_twice(server: Server, realm_name: str, key: str) -> None:
    realms = [RealmCalls(server, next(names_on(shard, realm_name))) for shard in (0, 1)]
    jobs = [{"realm_id": realm.name, "job_id": "j", "queue_id": 0, "on_conflict": "error"} for realm in realms]
    for _ in range(2):
        assert everywhere(realms[0], "/jobs", {"jobs": jobs}, key).ok() == {}
    for realm in realms:
        realm.ask("DELETE", "job/j").ok()
    assert everywhere(realms[0], "/jobs", {"jobs": jobs}, key).ok() == {}
    assert [realm.ids() for realm in realms] == [[], []]


def test_reuse_key_over_realms_for_something_else_is_422(realm: RealmCalls, key: str) -> None:
    realm.add_all("a", "b")
    body = {"realms": [realm.name]}
    everywhere(realm, "/pull", body, key).ok()
    answers = [
        everywhere(realm, "/pull", {**body, "count": 1}, key),
        everywhere(realm, "/jobs", {"jobs": [{"realm_id": realm.name, "job_id": "c", "queue_id": 0}]}, key),
    ]
    for answer in answers:
        answer.refused(422, "ValueError", "idempotency_key_reused")
    assert realm.pull_ids() == ["b"]
