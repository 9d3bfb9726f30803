"""Requests over HTTP that wait: pulls for jobs, and for the end of a tag."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Server, StartServer
from polling import eventually
from processes import frontend_pids, shard_pids
from realm_calls import RealmCalls
from wire import Answer, ask, connect, names_on, raw_request, received

LONG_SECONDS = 60  # a wait that no test waits out
SOON_SECONDS = 10.0  # what comes at once comes within


@pytest.fixture
def realm(server: Server, realm_name: str) -> RealmCalls:
    return RealmCalls(server, realm_name)


def waiting_pull(realm: RealmCalls, **wanted: Any) -> socket.socket:
    """A pull that waits, and that the shard knows of."""
    return realm.send("POST", "pull", json.dumps({"wait": LONG_SECONDS, **wanted}).encode())


def ids_of(connection: socket.socket) -> list[str]:
    """The ids of the jobs that come over this connection, soon."""
    with connection:
        connection.settimeout(SOON_SECONDS)
        return [job["job_id"] for job in received(connection).ok()["jobs"]]


def is_silent(connection: socket.socket) -> bool:
    """Whether no answer has come so far."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        connection.setblocking(True)


# -- pulls -----------------------------------------------------------------------------------------------------------


def test_pull_that_waits_takes_at_once_what_is_there(realm: RealmCalls) -> None:
    realm.add("j").ok()
    assert realm.pull_ids(wait=LONG_SECONDS) == ["j"]


def test_pull_that_waits_in_vain_gives_nothing_when_time_is_up(realm: RealmCalls) -> None:
    started_at = time.monotonic()
    assert realm.post("pull", wait=0.2).ok() == {"jobs": []}
    assert 0.15 < time.monotonic() - started_at < SOON_SECONDS
    assert realm.name not in ask(realm.server, "GET", "/").ok()


def test_pull_of_nothing_does_not_wait(realm: RealmCalls) -> None:
    assert realm.post("pull", wait=LONG_SECONDS, count=0).ok() == {"jobs": []}


@pytest.mark.parametrize("wait", [-1, 300.1, 1e308, "5", None, True])
def test_pull_with_wrong_wait_names_it(realm: RealmCalls, wait: Any) -> None:
    for answer in (realm.post("pull", wait=wait), ask(realm.server, "POST", "/pull", {"wait": wait})):
        assert (answer.status, answer.json["field"]) == (400, "wait")


WAYS: dict[str, Callable[[RealmCalls], Any]] = {
    "put": lambda realm: realm.add("j").ok(),
    "bulk add": lambda realm: realm.add_all("j"),
    "bulk add over realms": lambda realm: ask(
        realm.server, "POST", "/jobs", {"jobs": [{"realm_id": realm.name, "job_id": "j", "queue_id": 0}]}
    ).ok(),
    "exchange": lambda realm: realm.post("exchange", add=[{"job_id": "j", "queue_id": 0}]).ok(),
    "a short delay": lambda realm: realm.add("j", delay=0.05).ok(),
}


@pytest.mark.parametrize("way", WAYS)
def test_pull_that_waits_is_answered_once_somebody_adds_a_job(realm: RealmCalls, way: str) -> None:
    waiting = waiting_pull(realm)
    assert is_silent(waiting)
    WAYS[way](realm)
    assert ids_of(waiting) == ["j"]
    assert realm.state("j") == "leased"


def released(realm: RealmCalls, lease: str) -> None:
    realm.post("release", leases=[lease]).ok()


ENDS: dict[str, Callable[[RealmCalls, str], Any]] = {
    "release": released,
    "nack": lambda realm, lease: realm.post("nack", leases=[lease]).ok(),
    "expiry": lambda realm, lease: realm.post("extend", leases=[lease], lease_time=0.05).ok(),
    "other queue": lambda realm, lease: realm.add("j", 1).ok(),
}


@pytest.mark.parametrize("end", ENDS)
def test_pull_that_waits_is_answered_once_a_job_is_ready_again(realm: RealmCalls, end: str) -> None:
    realm.add("j").ok()
    lease = realm.lease()
    waiting = waiting_pull(realm)
    ENDS[end](realm, lease)
    assert ids_of(waiting) == ["j"]


def test_pull_that_waits_is_answered_once_nothing_holds_the_job_up(realm: RealmCalls) -> None:
    realm.add("first", tags=["t"]).ok()
    lease = realm.lease()
    realm.add("then", after=["t"]).ok()
    waiting = waiting_pull(realm)
    realm.post("ack", leases=[lease]).ok()
    assert ids_of(waiting) == ["then"]
    realm.queue_settings(0, paused=True)
    realm.add("paused").ok()
    waiting = waiting_pull(realm)
    assert is_silent(waiting)
    realm.queue_settings(0, paused=False)
    assert ids_of(waiting) == ["paused"]
    realm.tag_settings("one", max_leased=1)
    realm.add_all("a", "b", tags=["one"])
    lease = realm.lease()
    waiting = waiting_pull(realm)
    assert is_silent(waiting)
    realm.post("ack", leases=[lease]).ok()
    assert ids_of(waiting) == ["b"]


def test_pull_that_waits_is_answered_once_a_dead_job_is_redriven(realm: RealmCalls) -> None:
    realm.add("j", max_attempts=1, tags=["t"]).ok()
    for path in ("redrive", "tags/t/redrive"):
        realm.post("nack", leases=[realm.lease()]).ok()
        waiting = waiting_pull(realm)
        realm.ask("POST", path).ok()
        with waiting:
            [job] = received(waiting).ok()["jobs"]
        realm.post("release", leases=[job["lease_id"]]).ok()


def test_pulls_that_wait_are_served_in_the_order_in_which_they_came(realm: RealmCalls) -> None:
    waiting = [waiting_pull(realm) for _ in range(4)]
    for number, connection in enumerate(waiting):
        assert all(is_silent(later) for later in waiting[number:])
        realm.add(f"j{number}").ok()
        assert ids_of(connection) == [f"j{number}"]


def test_pulls_that_wait_share_what_one_request_adds(realm: RealmCalls) -> None:
    waiting = [waiting_pull(realm, count=2) for _ in range(3)]
    realm.add_all("a", "b", "c", "d", "e")
    assert [ids_of(connection) for connection in waiting] == [["a", "b"], ["c", "d"], ["e"]]


def test_pulls_that_wait_for_other_things_are_left_waiting(realm: RealmCalls) -> None:
    tagged, queued, lower = (
        waiting_pull(realm, **wanted) for wanted in ({"tags": ["t"]}, {"queues": [5]}, {"max_queue": 2})
    )
    realm.add("x", 7).ok()
    realm.settle()
    assert all(is_silent(connection) for connection in (tagged, queued, lower))
    realm.add("a", 2).ok()
    assert ids_of(lower) == ["a"]
    realm.add("b", 5).ok()
    assert ids_of(queued) == ["b"]
    assert is_silent(tagged)
    realm.add("c", 9, tags=["t"]).ok()
    assert ids_of(tagged) == ["c"]
    assert realm.pull_ids() == ["x"]


def test_pull_that_does_not_wait_passes_nobody_by(realm: RealmCalls) -> None:
    waiting = waiting_pull(realm)
    assert realm.pull() == []
    assert is_silent(waiting)
    realm.add("j").ok()
    assert ids_of(waiting) == ["j"]


def test_close_while_waiting_leases_nothing(realm: RealmCalls) -> None:
    gone, stays = waiting_pull(realm), waiting_pull(realm)
    gone.close()
    realm.settle()
    realm.add_all("a", "b")
    assert ids_of(stays) == ["a"]
    assert realm.pull_ids() == ["b"]


def test_reset_while_waiting_leases_nothing(realm: RealmCalls) -> None:
    gone = waiting_pull(realm)
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    gone.close()
    realm.settle()
    realm.add("a").ok()
    assert realm.pull_ids() == ["a"]


def test_pull_that_waits_holds_up_nothing_else(realm: RealmCalls) -> None:
    connections = [waiting_pull(realm, queues=["never"]) for _ in range(5)]
    realm.add("j").ok()
    assert realm.pull_ids() == ["j"]
    realm.ask("DELETE", "").ok()
    for connection in connections:
        connection.close()


def test_pull_that_waits_in_realm_that_is_deleted_still_gets_what_comes_later(realm: RealmCalls) -> None:
    realm.add("old", 5).ok()
    waiting = waiting_pull(realm, queues=[0])
    realm.ask("DELETE", "").ok()
    realm.add("new").ok()
    assert ids_of(waiting) == ["new"]


def test_pull_that_waits_follows_its_realm_to_another_shard(server: Server, realm_name: str) -> None:
    realm = RealmCalls(server, next(names_on(0, realm_name)))
    realm.add("held").ok()
    realm.lease()
    waiting = waiting_pull(realm)
    realm.ask("PUT", "shard", {"shard": 1}).ok()
    realm.add("j").ok()
    assert ids_of(waiting) == ["j"]


def test_stop_answers_those_who_wait_with_nothing(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realm = RealmCalls(own, realm_name)
    waiting = [waiting_pull(realm) for _ in range(3)]
    waiting.append(everywhere(realm, {}))
    realm.add("j", 5, tags=["t"], delay=100).ok()
    tag = realm.send("GET", f"tags/t?wait={LONG_SECONDS}")
    assert own.stop() == 0
    assert [ids_of(connection) for connection in waiting] == [[], [], [], []]
    assert received(tag).ok()["count"] == 1
    tag.close()


def test_kill_shard_while_waiting_is_503_and_the_next_pull_waits_again(
    start_server: StartServer, realm_name: str
) -> None:
    own = start_server()
    realm = RealmCalls(own, realm_name)
    waiting = waiting_pull(realm)
    for pid in shard_pids(own):
        os.kill(pid, signal.SIGKILL)
    with waiting:
        received(waiting).refused(503, "ConnectionError", "shard_unavailable")
    eventually(lambda: ask(own, "GET", "/readyz").status == 200)
    waiting = waiting_pull(realm)
    realm.add("j").ok()
    assert ids_of(waiting) == ["j"]


def test_pulls_that_wait_in_thousands_leave_room_for_others(start_server: StartServer, realm_name: str) -> None:
    own = start_server(shards=1)
    realm = RealmCalls(own, realm_name)
    request = raw_request("POST", f"/{realm_name}/pull", json.dumps({"wait": LONG_SECONDS}).encode())
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(waiting_pull(realm))
        waiting = [stack.enter_context(connect(own)) for _ in range(2000)]
        for connection in waiting:
            connection.sendall(request)
        realm.settle()
        realm.add("early").ok()
        assert ids_of(first) == ["early"]
        ids = [f"j{number}" for number in range(2000)]
        realm.add_all(*ids)
        assert sorted(ids_of(connection)[0] for connection in waiting) == sorted(ids)


def test_start_with_few_files_allowed_lets_the_front_end_open_more(start_server: StartServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        own = start_server()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(own.pid, resource.RLIMIT_NOFILE) == (256, hard)
    for pid in frontend_pids(own):
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)


# -- pulls over realms -----------------------------------------------------------------------------------------------


def everywhere(realm: RealmCalls, body: dict[str, Any]) -> socket.socket:
    """A pull over realms that waits."""
    connection = connect(realm.server)
    connection.sendall(raw_request("POST", "/pull", json.dumps({"wait": LONG_SECONDS, **body}).encode()))
    for _ in range(3):
        ask(realm.server, "GET", "/").ok()
    return connection


@pytest.mark.parametrize("shard", [0, 1])
def test_pull_over_realms_that_waits_is_answered_once_any_shard_has_a_job(
    server: Server, realm_name: str, shard: int
) -> None:
    names = [next(names_on(number, realm_name)) for number in (0, 1)]
    realm, other = (RealmCalls(server, names[number]) for number in (shard, 1 - shard))
    waiting = everywhere(realm, {"realms": names, "count": 5, "worker": "w"})
    realm.add("j", data=1).ok()
    with waiting:
        [job] = received(waiting).ok()["jobs"]
    assert (job["realm"], job["job_id"], job["data"]) == (realm.name, "j", 1)
    assert realm.place("j")["worker"] == "w"
    other.add("k").ok()
    assert other.pull_ids() == ["k"], "the shard that was left leases nothing"


def test_pull_over_realms_that_waits_takes_no_job_of_other_realms_or_queues(realm: RealmCalls) -> None:
    other = RealmCalls(realm.server, realm.name + "-other")
    waiting = everywhere(realm, {"realms": [realm.name], "queues": [3], "tags": ["t"]})
    other.add("a", 3, tags=["t"]).ok()
    realm.add("b", 3).ok()
    realm.add("c", 4, tags=["t"]).ok()
    realm.settle()
    assert is_silent(waiting)
    realm.add("d", 3, tags=["t"]).ok()
    assert ids_of(waiting) == ["d"]
    assert (other.pull_ids(), realm.pull_ids()) == (["a"], ["b", "c"])


def test_pull_over_realms_that_waits_in_vain_gives_nothing_when_time_is_up(realm: RealmCalls) -> None:
    assert ask(realm.server, "POST", "/pull", {"realms": [realm.name], "wait": 0.1}).ok() == {"jobs": []}
    assert ask(realm.server, "POST", "/pull", {"realms": [], "wait": 0.1}).ok() == {"jobs": []}


def test_close_while_pull_over_realms_waits_leases_nothing(realm: RealmCalls) -> None:
    waiting = everywhere(realm, {"realms": [realm.name]})
    waiting.close()
    realm.settle()
    realm.add("j").ok()
    assert realm.pull_ids() == ["j"]


@pytest.fixture(params=[1, 2], ids=["one shard", "two shards"])
def here_and_there(
    request: pytest.FixtureRequest, server: Server, start_server: StartServer, realm_name: str
) -> tuple[RealmCalls, RealmCalls]:
    """Two realms of one server: in one shard, or in one each."""
    own = server if request.param == 2 else start_server(shards=1)
    return tuple(RealmCalls(own, next(names_on(shard, realm_name))) for shard in (0, 1))  # type: ignore[return-value]


def test_pulls_over_realms_that_wait_get_each_job_once_and_in_their_order(realm: RealmCalls) -> None:
    waiting = [everywhere(realm, {"realms": [realm.name]}) for _ in range(4)]
    realm.add_all("a", "b", "c", "d")
    assert [ids_of(connection)[0] for connection in waiting] == ["a", "b", "c", "d"]


def test_pulls_over_one_or_several_realms_that_wait_are_served_in_the_order_in_which_they_came(
    here_and_there: tuple[RealmCalls, RealmCalls],
) -> None:
    here, there = here_and_there
    waiting = [
        everywhere(here, {"realms": [here.name]}),
        waiting_pull(here),
        everywhere(here, {"realms": [there.name, here.name], "worker": "w"}),
        waiting_pull(here),
        everywhere(here, {"realms": [here.name, "never"]}),
        everywhere(here, {"realms": [here.name]}),
    ]
    for number, connection in enumerate(waiting):
        here.add(f"j{number}").ok()
        assert ids_of(connection) == [f"j{number}"]
        assert all(is_silent(later) for later in waiting[number + 1 :])


def test_pull_over_realms_that_waits_is_not_starved_by_workers_that_come_again(
    here_and_there: tuple[RealmCalls, RealmCalls],
) -> None:
    here, there = here_and_there
    workers = [waiting_pull(here) for _ in range(2)]
    several = everywhere(here, {"realms": [here.name, there.name]})
    for number in range(2):
        here.add(f"j{number}").ok()
        assert ids_of(workers.pop(0)) == [f"j{number}"]
        workers.append(waiting_pull(here))
    here.add("its").ok()
    assert ids_of(several) == ["its"]
    for connection in workers:
        connection.close()


def test_pulls_over_realms_that_wait_and_that_two_shards_serve_at_once_lose_no_job(server: Server) -> None:
    """What one shard leased too much is given back, and no attempt of it is counted."""
    for trial in range(10):
        realms = [RealmCalls(server, next(names_on(shard, f"at-once-{trial}"))) for shard in (0, 1)]
        names = [realm.name for realm in realms]
        waiting = [everywhere(realms[0], {"realms": names}) for _ in range(2)]
        jobs = [{"realm_id": name, "job_id": f"of {name}", "queue_id": 0} for name in names]
        ask(server, "POST", "/jobs", {"jobs": jobs}).ok()
        assert sorted(ids_of(connection)[0] for connection in waiting) == sorted(job["job_id"] for job in jobs)
        assert [realm.place(f"of {realm.name}")["attempt"] for realm in realms] == [1, 1]


def test_pull_over_realms_that_waited_is_given_again_under_its_key(
    here_and_there: tuple[RealmCalls, RealmCalls],
) -> None:
    here, there = here_and_there
    body = json.dumps({"realms": [here.name, there.name], "wait": LONG_SECONDS}).encode()
    headers = {"Idempotency-Key": f"waits in {here.name}"}
    request = raw_request("POST", "/pull", body, headers)
    with connect(here.server) as first, connect(here.server) as second:
        first.sendall(request)
        here.settle()
        second.sendall(request)
        assert received(first).ok() == {"jobs": []}, "the second took its place"
        there.add("j").ok()
        given = received(second).ok()
    assert [job["job_id"] for job in given["jobs"]] == ["j"]
    assert ask(here.server, "POST", "/pull", body, headers).ok() == given


def test_pull_over_all_realms_that_waits_gets_the_first_job_of_a_realm_that_is_new(start_server: StartServer) -> None:
    own = start_server()
    for name in ("new-one", next(names_on(0, "zero")), next(names_on(1, "one"))):
        realm = RealmCalls(own, name)
        waiting = everywhere(realm, {})
        realm.add("j").ok()
        assert ids_of(waiting) == ["j"]


def test_pull_over_realms_that_waits_follows_a_realm_to_another_shard(server: Server, realm_name: str) -> None:
    realm = RealmCalls(server, next(names_on(0, realm_name)))
    realm.add("held").ok()
    realm.lease()
    waiting = everywhere(realm, {"realms": [realm.name]})
    realm.ask("PUT", "shard", {"shard": 1}).ok()
    realm.add("j").ok()
    assert ids_of(waiting) == ["j"]


def test_kill_shard_while_pull_over_realms_waits_is_503(start_server: StartServer, realm_name: str) -> None:
    own = start_server(shards=1)
    realm = RealmCalls(own, realm_name)
    waiting = everywhere(realm, {"realms": [realm_name]})
    for pid in shard_pids(own):
        os.kill(pid, signal.SIGKILL)
    with waiting:
        answer = received(waiting)
    answer.refused(503, "ConnectionError", "shard_unavailable")  # it may have leased


# -- the end of a tag ------------------------------------------------------------------------------------------------


def waiting_for_tag(realm: RealmCalls, tag: str = "t") -> socket.socket:
    return realm.send("GET", f"tags/{tag}?wait={LONG_SECONDS}")


def count_of(connection: socket.socket) -> int:
    with connection:
        connection.settimeout(SOON_SECONDS)
        answer: Answer = received(connection)
        count: int = answer.ok()["count"]
        return count


ENDINGS: dict[str, Callable[[RealmCalls], Any]] = {
    "remove": lambda realm: realm.ask("DELETE", "job/j").ok(),
    "ack": lambda realm: realm.post("ack", leases=[realm.lease()]).ok(),
    "remove tag": lambda realm: realm.ask("DELETE", "tag/t").ok(),
    "clear": lambda realm: realm.ask("POST", "queues/0/clear").ok(),
    "cancel": lambda realm: realm.ask("POST", "tags/t/cancel").ok(),
    "delete realm": lambda realm: realm.ask("DELETE", "").ok(),
    "replace": lambda realm: realm.add("j", on_conflict="replace").ok(),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_get_tag_that_waits_is_answered_once_no_job_carries_it(realm: RealmCalls, ending: str) -> None:
    realm.add("j", tags=["t"]).ok()
    waiting = [waiting_for_tag(realm), waiting_for_tag(realm)]
    assert all(is_silent(connection) for connection in waiting)
    ENDINGS[ending](realm)
    assert [count_of(connection) for connection in waiting] == [0, 0]


def test_get_tag_that_waits_for_last_of_many_jobs(realm: RealmCalls) -> None:
    realm.add_all("a", "b", tags=["t"])
    waiting = waiting_for_tag(realm)
    realm.ask("DELETE", "job/a").ok()
    realm.settle()
    assert is_silent(waiting)
    realm.ask("DELETE", "job/b").ok()
    assert count_of(waiting) == 0


def test_get_tag_that_waits_is_answered_once_its_last_job_expires(realm: RealmCalls) -> None:
    realm.add("j", tags=["t"], expires_in=0.3).ok()
    assert count_of(waiting_for_tag(realm)) == 0


def test_get_tag_that_waits_in_vain_tells_how_many_are_left(realm: RealmCalls) -> None:
    realm.add("j", tags=["t"]).ok()
    assert realm.ask("GET", "tags/t?wait=0.1").ok()["count"] == 1


def test_get_tag_that_nobody_carries_does_not_wait(realm: RealmCalls) -> None:
    assert count_of(waiting_for_tag(realm, "none")) == 0


@pytest.mark.parametrize("wait", ["-1", "301", "x", "", "nan"])
def test_get_tag_with_wrong_wait_names_it(realm: RealmCalls, wait: str) -> None:
    answer = realm.ask("GET", f"tags/t?wait={wait}")
    answer.refused(400, "ValueError", "field_invalid")
    assert answer.json["field"] == "wait"
