"""Realms that move: by a pin while the server runs, by another number of shards, through crashes on the way."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from typing import Any

import pytest
from conftest import Server, StartServer
from load import load, progress, verify, verify_order
from polling import eventually
from processes import frontend_pids, is_running, shard_pids
from realm_calls import RealmCalls
from wire import Answer, ask, names_on


def pin(server: Server, realm: str, shard: int) -> Answer:
    return ask(server, "PUT", f"/{realm}/shard", {"shard": shard})


def where(server: Server, realm: str) -> list[int]:
    """The shards that hold the realm, as they report it themselves."""
    reports = eventually(lambda: try_ask(server, "/performance/shards"))["shards"]
    return [shard["shard"] for shard in reports if realm in shard["realms"]]


def try_ask(server: Server, path: str) -> Any:
    """The reply, or None while shards or front ends are starting again."""
    try:
        answer = ask(server, "GET", path)
    except (OSError, http.client.HTTPException):
        return None
    assert answer.status in (200, 503), answer
    return answer.ok() if answer.status == 200 else None


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid))


def add_many(server: Server, realm: str, count: int, **fields: Any) -> None:
    jobs = [{"job_id": f"{number:06d}", "queue_id": 0, "data": number, **fields} for number in range(count)]
    ask(server, "POST", f"/{realm}/jobs", {"jobs": jobs}).ok()


def status_of(count: int, tags: int = 0) -> dict[str, Any]:
    return {"total_jobs": count, "total_tags": tags, "queues": {"0": count}}


# -- pins ----------------------------------------------------------------------------------------------------------


def test_pin_realm_moves_it_and_unpin_brings_it_home(server: Server, realm_name: str) -> None:
    realm = next(names_on(0, realm_name))
    add_many(server, realm, 1500, tags=["t"])
    assert where(server, realm) == [0]
    assert pin(server, realm, 1).ok() == {}
    assert where(server, realm) == [1]
    shown = ask(server, "GET", "/performance/shards").ok()["shards"][1]["realms"][realm]
    assert shown == {"jobs": 1500, "pinned": True}
    assert ask(server, "GET", f"/{realm}/status").ok() == status_of(1500, 1)
    assert ask(server, "GET", "/").ok()[realm] == status_of(1500, 1)
    assert ask(server, "DELETE", f"/{realm}/shard").ok() == {}
    assert where(server, realm) == [0]
    assert ask(server, "GET", f"/{realm}/status").ok() == status_of(1500, 1)
    assert list(ask(server, "GET", f"/{realm}/job?count=2000").ok()) == [f"{number:06d}" for number in range(1500)]


def test_pin_realm_where_it_is_keeps_it_there(server: Server, realm_name: str) -> None:
    realm = next(names_on(1, realm_name))
    add_many(server, realm, 3)
    assert pin(server, realm, 1).ok() == {}
    assert pin(server, realm, 1).ok() == {}
    assert where(server, realm) == [1]
    assert ask(server, "DELETE", f"/{realm}/shard").ok() == {}
    assert ask(server, "GET", f"/{realm}/status").ok() == status_of(3)


def test_pin_to_unknown_shard_or_unknown_realm_is_refused(server: Server, realm_name: str) -> None:
    pin(server, realm_name, 0).refused(404, "KeyError", "realm_not_found")
    ask(server, "DELETE", f"/{realm_name}/shard").refused(404, "KeyError", "realm_not_found")
    add_many(server, realm_name, 1)
    before = where(server, realm_name)
    for shard in (2, -1, 2**40):
        pin(server, realm_name, shard).refused(400, "ValueError", "field_invalid")
    assert where(server, realm_name) == before
    assert ask(server, "GET", f"/{realm_name}/status").ok() == status_of(1)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/job?count=9&realms=REALM", None),
        ("POST", "/pull", {"count": 9, "realms": ["REALM"]}),
        ("DELETE", "/jobs", {"jobs": [["REALM", "000000"]]}),
        ("POST", "/jobs", {"jobs": [{"realm_id": "REALM", "job_id": "000002", "queue_id": 0}]}),
    ],
)
def test_call_over_realms_right_after_a_pin_finds_the_realm(
    server: Server, realm_name: str, method: str, path: str, body: Any
) -> None:
    realm = next(names_on(0, realm_name))
    other = next(names_on(1, realm_name))
    add_many(server, realm, 2)
    add_many(server, other, 1)
    pin(server, realm, 1).ok()
    if isinstance(body, dict):
        key, value = "realms" if "realms" in body else "jobs", body.get("realms") or body["jobs"]
        body = {**body, key: [realm if item == "REALM" else with_name(item, realm) for item in value]}
    reply = ask(server, method, path.replace("REALM", realm), body).ok()
    if method == "GET":
        assert list(reply) == ["000000", "000001"]
    elif path == "/pull":
        assert [job["job_id"] for job in reply["jobs"]] == ["000000", "000001"]
    else:
        assert ask(server, "GET", f"/{realm}/status").ok() == status_of(1 if method == "DELETE" else 3)
    assert where(server, realm) == [1]


def with_name(item: Any, realm: str) -> Any:
    if isinstance(item, list):
        return [realm, *item[1:]]
    return {**item, "realm_id": realm}


def test_pull_over_all_realms_right_after_a_pin_leases_from_it(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realm = next(names_on(0, realm_name))
    add_many(own, realm, 3)
    pin(own, realm, 1).ok()
    assert list(ask(own, "GET", "/job?count=9").ok()) == ["000000", "000001", "000002"]


def test_pin_realm_under_load_fails_no_request_and_loses_nothing(server: Server, realm_name: str) -> None:
    realm = next(names_on(0, realm_name))
    with load(server.port, [realm], clients_count=4) as accounts:
        for shard in (1, 0, 1):
            assert pin(server, realm, shard).ok() == {}
            progress(accounts)
        assert ask(server, "DELETE", f"/{realm}/shard").ok() == {}
        progress(accounts)
    [account] = accounts
    assert account.problems() == []
    assert where(server, realm) == [0]
    verify(lambda path: ask(server, "GET", path), account)
    verify_order(lambda path: ask(server, "GET", path), account)


def test_pin_realms_crosswise_while_all_statuses_are_read_ends(server: Server, realm_name: str) -> None:
    first, second = next(names_on(0, realm_name)), next(names_on(1, realm_name))
    for realm in (first, second):
        add_many(server, realm, 5000)
    stop = threading.Event()
    statuses: list[int] = []

    def read() -> None:
        while not stop.is_set():
            statuses.append(ask(server, "GET", "/").status)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(4):
            pins = [
                threading.Thread(target=pin, args=(server, realm, (home + turn + 1) % 2))
                for home, realm in enumerate((first, second))
            ]
            for thread in pins:
                thread.start()
            for thread in pins:
                thread.join(30)
                assert not thread.is_alive(), "the moves wait for each other"
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert set(statuses) == {200}
    assert (where(server, first), where(server, second)) == ([0], [1])
    assert [ask(server, "GET", f"/{realm}/status").ok() for realm in (first, second)] == [status_of(5000)] * 2


def test_delete_pinned_realm_and_use_it_again_after_restarts_of_shards_is_one_realm(
    start_server: StartServer, realm_name: str
) -> None:
    own = start_server()
    realm = next(names_on(0, realm_name))
    add_many(own, realm, 10)
    pin(own, realm, 1).ok()
    ask(own, "DELETE", f"/{realm}/").ok()
    for shard in (0, 1, 0):
        kill(shard_pids(own)[shard])
        kill(next(iter(frontend_pids(own))))  # it forgets what it learned
        eventually(lambda: try_ask(own, "/readyz") is not None)
        ask(own, "PUT", f"/{realm}/job/after-{shard}", {"queue_id": 0}).ok()
        assert len(where(own, realm)) == 1
    assert sorted(ask(own, "GET", f"/{realm}/job?count=9").ok()) == ["after-0", "after-1"]
    assert own.stop() == 0
    again = start_server(own.data_dir)
    assert ask(again, "GET", f"/{realm}/status").ok() == status_of(2)


def test_unpin_realm_pinned_at_start_then_restart_processes_keeps_it_one_realm(
    start_server: StartServer, realm_name: str
) -> None:
    first = start_server()
    realm = next(names_on(0, realm_name))
    add_many(first, realm, 10)
    pin(first, realm, 1).ok()
    assert first.stop() == 0
    own = start_server(first.data_dir)
    assert where(own, realm) == [1]
    assert ask(own, "DELETE", f"/{realm}/shard").ok() == {}
    for shard in (1, 0):
        kill(shard_pids(own)[shard])
        kill(next(iter(frontend_pids(own))))
        eventually(lambda: try_ask(own, "/readyz") is not None)
        assert ask(own, "GET", f"/{realm}/status").ok() == status_of(10)
        assert where(own, realm) == [0]
    ask(own, "DELETE", f"/{realm}/").ok()
    ask(own, "PUT", f"/{realm}/job/new", {"queue_id": 0}).ok()
    assert ask(own, "GET", f"/{realm}/status").ok() == status_of(1)


def test_pin_realm_then_restart_server_keeps_it_pinned(start_server: StartServer, realm_name: str) -> None:
    first = start_server()
    realm = next(names_on(0, realm_name))
    add_many(first, realm, 10)
    pin(first, realm, 1).ok()
    assert first.stop() == 0
    second = start_server(first.data_dir)
    shown = ask(second, "GET", "/performance/shards").ok()["shards"][1]["realms"]
    assert shown[realm] == {"jobs": 10, "pinned": True}
    assert ask(second, "GET", f"/{realm}/status").ok() == status_of(10)


# -- crashes on the way --------------------------------------------------------------------------------------------

MOVE_COUNT = 6000


@pytest.mark.parametrize("victim", ["source", "target", "both"])
def test_kill_shard_during_moves_leaves_realm_whole_in_one(
    start_server: StartServer, realm_name: str, victim: str
) -> None:
    own = start_server()
    realm = next(names_on(0, realm_name))
    add_many(own, realm, MOVE_COUNT, tags=["t"])
    for turn in range(3):
        source = where(own, realm)[0]
        pids = shard_pids(own)
        mover = threading.Thread(target=pin_or_fail, args=(own, realm, 1 - source))
        mover.start()
        time.sleep(0.04 * turn)  # each turn hits another moment; which one it is decides nothing
        for shard in {"source": [source], "target": [1 - source], "both": [0, 1]}[victim]:
            os.kill(pids[shard], signal.SIGKILL)
        mover.join(30)
        assert not mover.is_alive()
        found = eventually(lambda: try_ask(own, f"/{realm}/tag/t"))
        assert len(found) == MOVE_COUNT
        eventually(lambda: len(where(own, realm)) == 1)
    for pid in frontend_pids(own):
        kill(pid)  # one that knows nothing must come to the same
    assert eventually(lambda: try_ask(own, f"/{realm}/status")) == status_of(MOVE_COUNT, 1)
    assert list(ask(own, "GET", f"/{realm}/job?count=10000").ok()) == [f"{number:06d}" for number in range(MOVE_COUNT)]
    assert own.stop() == 0
    again = start_server(own.data_dir)
    assert ask(again, "GET", f"/{realm}/status").ok() == status_of(MOVE_COUNT, 1)


def pin_or_fail(server: Server, realm: str, shard: int) -> None:
    """Pin it; whether that is answered does not count."""
    try:
        pin(server, realm, shard)
    except (OSError, http.client.HTTPException):
        return


def test_kill_source_right_after_a_move_does_not_bring_the_old_realm_back(
    start_server: StartServer, realm_name: str
) -> None:
    own = start_server()
    realm = next(names_on(0, realm_name))
    add_many(own, realm, 20_000)
    source = shard_pids(own)[0]
    pin(own, realm, 1).ok()
    os.kill(source, signal.SIGKILL)
    for pid in frontend_pids(own):
        kill(pid)
    assert eventually(lambda: try_ask(own, f"/{realm}/status")) == status_of(20_000)
    eventually(lambda: where(own, realm) == [1])
    ask(own, "PUT", f"/{realm}/job/more", {"queue_id": 0}).ok()
    assert own.stop() == 0
    again = start_server(own.data_dir)
    assert ask(again, "GET", f"/{realm}/status").ok() == status_of(20_001)


def test_kill_server_during_a_move_leaves_realm_whole(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realm = next(names_on(0, realm_name))
    add_many(own, realm, MOVE_COUNT)
    for turn in range(3):
        target = 1 - where(own, realm)[0]
        pids = [own.pid, *shard_pids(own), *frontend_pids(own)]
        mover = threading.Thread(target=pin_or_fail, args=(own, realm, target))
        mover.start()
        time.sleep(0.03 * turn)  # each turn hits another moment; which one it is decides nothing
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        mover.join(30)
        assert own.process.wait(15) == -signal.SIGKILL
        own = start_server(own.data_dir)
        assert ask(own, "GET", f"/{realm}/status").ok() == status_of(MOVE_COUNT)
        assert len(where(own, realm)) == 1


# -- another number of shards --------------------------------------------------------------------------------------


def test_restart_with_other_numbers_of_shards_keeps_everything(start_server: StartServer, realm_name: str) -> None:
    own = start_server(shards=2)
    realms = [f"{realm_name} {number}" for number in range(50)]
    paths = [realm.replace(" ", "%20") for realm in realms]
    for number, path in enumerate(paths):
        jobs = [
            {
                "job_id": f"{count:03d}",
                "queue_id": ["0", 3, "late"][count % 3],
                "data": {"n": [number, count], "long": "x" * (100_000 if count == 5 else 10)},
                "tags": ["all", f"t{count % 2}"],
            }
            for count in range(20)
        ]
        ask(own, "POST", f"/{path}/config", {"default_lease_time": 300 + number}).ok()
        ask(own, "POST", f"/{path}/jobs", {"jobs": jobs}).ok()
        ask(own, "PUT", f"/{path}/job/000", {"queue_id": "late"}).ok()
        ask(own, "POST", f"/{path}/config", {"queue_lease_time": [3, 4000 + number]}).ok()
    for path in paths:
        assert len(ask(own, "POST", f"/{path}/pull", {"count": 9}).ok()["jobs"]) == 9
    before = contents(own, paths)
    for shards in (3, 1, 2):
        assert own.stop() == 0
        own = start_server(own.data_dir, shards=shards)
        assert len(shard_pids(own)) == shards
        now = contents(own, paths)
        for path in paths:
            for (job_id, old), (now_id, new) in zip(before[path][1].items(), now[path][1].items(), strict=True):
                assert now_id == job_id
                assert (new["tags"], new["data"]) == (old["tags"], old["data"])
                for (old_queue, old_seconds), (queue, seconds) in zip(old["queues"], new["queues"], strict=True):
                    assert queue == old_queue
                    assert (seconds >= old_seconds) if old_seconds else (seconds == 0)
            assert now[path][0] == before[path][0]
        sizes = [len(shard["realms"]) for shard in ask(own, "GET", "/performance/shards").ok()["shards"]]
        assert sum(sizes) == 50
        assert all(sizes)
    for number, path in enumerate(paths):
        reply = ask(own, "POST", f"/{path}/pull", {"count": 100}).ok()["jobs"]
        # 0 has 7 jobs and 3 has 7, of which 9 were leased; "late" has 6 more, and 000, which stands in 0 too.
        assert [job["job_id"] for job in reply] == [
            *(f"{count:03d}" for count in range(7, 20, 3)),
            *(f"{count:03d}" for count in range(2, 20, 3)),
            "000",
        ]
        at = time.time()
        for job in reply:
            lease_time = 4000 + number if job["queue_id"] == 3 else 300 + number
            assert lease_time - 60 < job["lease_expires_at"] - at <= lease_time + 1


def test_moves_and_other_numbers_of_shards_keep_all_that_the_life_of_jobs_left(
    start_server: StartServer, realm_name: str
) -> None:
    own = start_server()
    realm = RealmCalls(own, next(names_on(0, realm_name)))
    lease = realm.live()
    before = realm.life()
    key = f"key of {realm_name}"
    reply = realm.post("redrive", key, jobs=["never"])
    pin(own, realm.name, 1).ok()
    for shards in (2, 3, 1, 2):
        assert realm.life() == before
        assert realm.post("redrive", key, jobs=["never"]).body == reply.body
        assert own.stop() == 0
        realm.server = own = start_server(own.data_dir, shards=shards)
        realm.post("redrive", key, jobs=["dead"]).refused(422, "ValueError", "idempotency_key_reused")
    realm.go_on(lease)


def contents(server: Server, paths: list[str]) -> dict[str, tuple[Any, Any]]:
    return {
        path: (ask(server, "GET", f"/{path}/status").ok(), ask(server, "GET", f"/{path}/tag/all").ok())
        for path in paths
    }
