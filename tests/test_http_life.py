"""The life of a job over HTTP, route by route: pull with filters, ack, nack, release, extend, exchange, what an add may
wish for, cancel and redrive.
"""

from __future__ import annotations

import json
import time
from typing import Any

import msgpack
import pytest
from conftest import Server, StartServer
from polling import eventually
from realm_calls import RealmCalls
from wire import JSON, MSGPACK, ask, encoded

SHORT_SECONDS = 0.05  # a lease that a test waits out


@pytest.fixture
def realm(server: Server, realm_name: str) -> RealmCalls:
    return RealmCalls(server, realm_name)


def total(realm: RealmCalls) -> int:
    count: int = realm.ask("GET", "status").ok()["total_jobs"]
    return count


def expired_lease(realm: RealmCalls, job_id: str = "j") -> str:
    """Lease id of a job whose lease has run out, and which nobody took since."""
    lease = realm.lease(lease_time=SHORT_SECONDS)
    eventually(lambda: realm.state(job_id) != "leased")
    return lease


# -- pull ------------------------------------------------------------------------------------------------------------


def test_pull_gives_everything_that_a_worker_needs(realm: RealmCalls) -> None:
    realm.add("j", "q", data={"a": [1]}, tags=["u", "t"]).ok()
    before = time.time()
    [job] = realm.pull(lease_time=50, worker="w1")
    assert before + 49 < job.pop("lease_expires_at") < time.time() + 51
    assert isinstance(job.pop("lease_id"), str)
    assert job == {"job_id": "j", "queue_id": "q", "data": {"a": [1]}, "tags": ["t", "u"], "attempt": 1}


def test_pull_over_realms_gives_the_same_and_the_realm(realm: RealmCalls) -> None:
    realm.add("j", tags=["t"]).ok()
    [job] = ask(realm.server, "POST", "/pull", {"realms": [realm.name], "lease_time": 50, "worker": "w"}).ok()["jobs"]
    assert job["lease_expires_at"] == pytest.approx(time.time() + 50, abs=5)
    assert (job["realm"], job["attempt"], job["tags"]) == (realm.name, 1, ["t"])
    assert realm.place("j")["worker"] == "w"
    assert realm.post("ack", leases=[job["lease_id"]]).ok()["acked"] == [job["lease_id"]]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"queues": [1, "x"]}, ["b", "d"]),
        ({"queues": ["1"]}, ["b"]),
        ({"queues": [7]}, []),
        ({"queues": []}, []),
        ({"tags": ["odd"]}, ["b", "d"]),
        ({"tags": ["odd", "even"]}, ["a", "b", "c", "d"]),
        ({"tags": ["none"]}, []),
        ({"tags": ["odd"], "queues": [1]}, ["b"]),
        ({"tags": ["even"], "max_queue": 1}, ["a"]),
        ({"queues": [0, "x"], "max_queue": 1}, ["a"]),
    ],
)
def test_pull_with_filters_gives_only_what_fits(
    realm: RealmCalls, wanted: dict[str, Any], expected: list[str], everywhere: bool
) -> None:
    for job_id, queue_id, tag in [("a", 0, "even"), ("b", 1, "odd"), ("c", 2, "even"), ("d", "x", "odd")]:
        realm.add(job_id, queue_id, tags=[tag]).ok()
    if everywhere:
        jobs = ask(realm.server, "POST", "/pull", {**wanted, "count": 9, "realms": [realm.name]}).ok()["jobs"]
    else:
        jobs = realm.pull(9, **wanted)
    assert [job["job_id"] for job in jobs] == expected
    assert sorted([*expected, *realm.pull_ids()]) == ["a", "b", "c", "d"]


def test_pull_with_lease_time_leaves_the_queue_as_it_was(realm: RealmCalls) -> None:
    realm.add_all("a", "b")
    [long] = realm.pull(lease_time=5000)
    [usual] = realm.pull()
    assert long["lease_expires_at"] - usual["lease_expires_at"] == pytest.approx(4400, abs=5)


def test_pull_after_expiry_counts_the_attempt_and_gives_another_lease(realm: RealmCalls) -> None:
    realm.add("j").ok()
    [first] = realm.pull(lease_time=SHORT_SECONDS)
    [again] = eventually(realm.pull)
    assert again["attempt"] == 2
    assert again["lease_id"] != first["lease_id"]


# -- ack -------------------------------------------------------------------------------------------------------------


def test_ack_takes_the_job_out(realm: RealmCalls) -> None:
    realm.add_all("a", "b", tags=["t"])
    leases = [job["lease_id"] for job in realm.pull(2)]
    assert realm.post("ack", leases=leases).ok() == {"acked": leases, "stale": []}
    assert total(realm) == 0
    realm.ask("GET", "job/a").refused(404, "KeyError", "job_not_found")


def test_ack_of_job_in_two_queues_leaves_it_in_the_other(realm: RealmCalls) -> None:
    realm.add("j", 0).ok()
    realm.add("j", 1).ok()
    realm.post("ack", leases=[realm.lease()]).ok()
    assert realm.ask("GET", "job/j").ok()["queues"] == [[1, 0]]
    realm.post("ack", leases=[realm.lease()]).ok()
    assert total(realm) == 0


def test_ack_some_stale_acks_the_others(realm: RealmCalls) -> None:
    realm.add_all("a", "b")
    first, second = (job["lease_id"] for job in realm.pull(2))
    realm.post("ack", leases=[first]).ok()
    reply = realm.post("ack", leases=[first, "nonsense", second, second]).ok()
    assert reply == {"acked": [second], "stale": [first, "nonsense", second]}


@pytest.mark.parametrize("odd", ["", "x", "0", "-", "1-1-1", "9" * 5000, "é\n", "１-１", "1-1"])
def test_ack_with_id_that_is_none_is_stale(realm: RealmCalls, odd: str) -> None:
    realm.add("j").ok()
    realm.post("ack", leases=[odd]).refused(409, "ValueError", "lease_stale")
    for path in ("nack", "release", "extend"):
        assert realm.post(path, leases=[odd]).ok()["stale"] == [odd]
    assert realm.state("j") == "ready"


def test_ack_nothing_is_no_error(realm: RealmCalls) -> None:
    assert realm.post("ack", leases=[]).ok() == {"acked": [], "stale": []}
    assert realm.name not in ask(realm.server, "GET", "/").ok()


def test_ack_after_expiry_counts_while_nobody_took_the_job(realm: RealmCalls) -> None:
    realm.add("j").ok()
    lease = expired_lease(realm)
    assert realm.post("ack", leases=[lease]).ok() == {"acked": [lease], "stale": []}
    assert total(realm) == 0


@pytest.mark.parametrize("path", ["ack", "nack", "release", "extend"])
def test_end_lease_after_somebody_else_took_the_job_is_stale(realm: RealmCalls, path: str) -> None:
    realm.add("j").ok()
    late = expired_lease(realm)
    other = realm.lease(worker="other")
    answer = realm.post(path, leases=[late])
    if path == "ack":
        answer.refused(409, "ValueError", "lease_stale")
    else:
        assert answer.ok()["stale"] == [late]
    assert realm.place("j")["worker"] == "other"
    assert realm.post("ack", leases=[other]).ok()["acked"] == [other]


def void_by(realm: RealmCalls, way: str) -> None:
    if way == "remove":
        realm.ask("DELETE", "job/j").ok()
    elif way == "clear":
        realm.ask("POST", "queues/0/clear").ok()
    elif way == "replace":
        realm.add("j", on_conflict="replace").ok()
    else:
        realm.ask("DELETE", "").ok()


@pytest.mark.parametrize("way", ["remove", "clear", "replace", "delete realm"])
def test_ack_of_lease_that_was_made_void_is_stale(realm: RealmCalls, way: str) -> None:
    realm.add("j").ok()
    lease = realm.lease()
    void_by(realm, way)
    realm.post("ack", leases=[lease]).refused(409, "ValueError", "lease_stale")
    realm.add("j").ok()
    realm.post("ack", leases=[lease]).refused(409, "ValueError", "lease_stale")
    assert realm.state("j") == "ready"


def test_ack_in_another_realm_is_stale(realm: RealmCalls) -> None:
    other = RealmCalls(realm.server, realm.name + "-other")
    realm.add("j").ok()
    other.add("j").ok()
    lease = realm.lease()
    other.lease()
    other.post("ack", leases=[lease]).refused(409, "ValueError", "lease_stale")
    assert (realm.state("j"), other.state("j")) == ("leased", "leased")


def test_use_leases_after_restart_as_before(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realm = RealmCalls(own, realm_name)
    realm.add_all("a", "b", "c", "d")
    a, b, c, d = (job["lease_id"] for job in realm.pull(4, worker="w"))
    realm.post("release", leases=[d]).ok()
    own.process.kill()
    own.process.wait()
    realm.server = start_server(own.data_dir)
    place = realm.place("a")
    assert (place["state"], place["worker"], place["attempt"]) == ("leased", "w", 1)
    realm.post("ack", leases=[d]).refused(409, "ValueError", "lease_stale")
    assert realm.post("ack", leases=[a]).ok()["acked"] == [a]
    assert realm.post("nack", leases=[b]).ok()["nacked"] == [b]
    assert list(realm.post("extend", leases=[c]).ok()["extended"]) == [c]
    assert {job["job_id"]: job["attempt"] for job in realm.pull(4)} == {"b": 2, "d": 1}


def test_use_lease_after_realm_moved_to_another_shard_as_before(realm: RealmCalls) -> None:
    realm.add_all("a", "b")
    first, second = (job["lease_id"] for job in realm.pull(2))
    for shard in (0, 1):
        realm.ask("PUT", "shard", {"shard": shard}).ok()
    assert realm.post("ack", leases=[first]).ok()["acked"] == [first]
    realm.ask("DELETE", "shard").ok()
    realm.post("ack", leases=[first]).refused(409, "ValueError", "lease_stale")
    assert realm.post("ack", leases=[second]).ok()["acked"] == [second]


# -- nack ------------------------------------------------------------------------------------------------------------


def test_nack_hands_the_job_out_again_and_shows_the_error(realm: RealmCalls) -> None:
    realm.add("j").ok()
    lease, before = realm.lease(), time.time()
    assert realm.post("nack", leases=[lease], error="it broke", exit_code=3).ok() == {
        "nacked": [lease],
        "dead": [],
        "stale": [],
    }
    place = realm.place("j")
    assert (place["state"], place["attempt"], place["error"], place["exit_code"]) == ("ready", 1, "it broke", 3)
    assert before - 1 < place["failed_at"] < time.time() + 1
    assert realm.pull()[0]["attempt"] == 2
    assert realm.post("nack", leases=[lease]).ok()["stale"] == [lease]


def test_nack_with_long_error_keeps_its_end(realm: RealmCalls) -> None:
    realm.add("j").ok()
    realm.post("nack", leases=[realm.lease()], error="é" * 5000 + "the end").ok()
    error = realm.place("j")["error"]
    assert error.endswith("éthe end")
    assert 4000 < len(error.encode()) <= 4096


def test_nack_with_delay_hands_the_job_out_after_it(realm: RealmCalls) -> None:
    realm.add_all("a", "b")
    first, second = (job["lease_id"] for job in realm.pull(2))
    realm.post("nack", leases=[first], delay=100).ok()
    place = realm.place("a")
    assert place["state"] == "delayed"
    assert place["ready_at"] == pytest.approx(time.time() + 100, abs=5)
    realm.post("nack", leases=[second], delay=0.05).ok()
    assert eventually(lambda: realm.pull_ids()) == ["b"]


def test_nack_waits_for_the_backoff_of_queue_or_realm(realm: RealmCalls) -> None:
    realm.settings(backoff={"base": 100, "factor": 3, "jitter": 0})
    realm.queue_settings(1, backoff={"base": 1000, "max": 1500, "jitter": 0})
    realm.add("of realm").ok()
    realm.add("of queue", 1).ok()
    realm.add("said", 1).ok()
    leases = [job["lease_id"] for job in realm.pull(3)]
    realm.post("nack", leases=leases[:2]).ok()
    realm.post("nack", leases=leases[2:], delay=7).ok()
    rests = [
        realm.place(job_id, queue)["ready_at"] - time.time()
        for job_id, queue in [("of realm", 0), ("of queue", 1), ("said", 1)]
    ]
    assert rests == pytest.approx([100, 1000, 7], abs=5)


@pytest.mark.parametrize("holder", ["job", "queue", "realm"])
def test_nack_of_last_attempt_leaves_the_job_dead(realm: RealmCalls, holder: str) -> None:
    wish = {"max_attempts": 2} if holder == "job" else {}
    if holder == "queue":
        realm.queue_settings(0, max_attempts=2)
    if holder == "realm":
        realm.settings(max_attempts=2)
    realm.add("j", tags=["t"], **wish).ok()
    realm.post("nack", leases=[realm.lease()]).ok()
    lease = realm.lease()
    assert realm.post("nack", leases=[lease], error="again").ok() == {"nacked": [], "dead": [lease], "stale": []}
    assert realm.state("j") == "dead"
    assert realm.pull() == []
    assert realm.ask("GET", "tags/t").ok()["dead"] == 1
    assert realm.ask("GET", "tag/t/status").ok() == {"count": 1}, "a dead job still carries its tags"
    assert realm.post("nack", leases=[lease]).ok()["stale"] == [lease]


def test_expire_as_often_as_the_crash_limit_leaves_the_job_dead(realm: RealmCalls) -> None:
    realm.settings(crash_limit=2)
    realm.add("j").ok()
    expired_lease(realm)
    assert realm.state("j") == "ready"
    expired_lease(realm)
    assert realm.state("j") == "dead"
    assert realm.pull() == []


# -- release and extend ----------------------------------------------------------------------------------------------


def test_release_makes_the_job_ready_and_counts_no_attempt(realm: RealmCalls) -> None:
    realm.add("j", max_attempts=1).ok()
    lease = realm.lease()
    assert realm.post("release", leases=[lease, "x"]).ok() == {"released": [lease], "stale": ["x"]}
    [again] = realm.pull()
    assert again["attempt"] == 1
    assert again["lease_id"] != lease
    assert "error" not in realm.place("j")


def test_release_with_delay_hands_the_job_out_after_it(realm: RealmCalls) -> None:
    realm.add("j").ok()
    realm.post("release", leases=[realm.lease()], delay=60).ok()
    assert realm.state("j") == "delayed"
    assert realm.pull() == []


def test_extend_prolongs_the_lease_from_now_on(realm: RealmCalls) -> None:
    realm.add("j").ok()
    lease = realm.lease(lease_time=5)
    for wished, seconds in [({"lease_time": 1000}, 1000), ({}, 600), ({"lease_time": 20}, 20)]:
        reply = realm.post("extend", leases=[lease, "x"], **wished).ok()
        assert reply == {
            "extended": {lease: pytest.approx(time.time() + seconds, abs=5)},
            "stale": ["x"],
            "cancelled": [],
        }
        assert realm.place("j")["lease_expires_at"] == reply["extended"][lease]


def test_extend_after_expiry_leases_the_job_again_while_nobody_took_it(realm: RealmCalls) -> None:
    realm.add("j").ok()
    lease = expired_lease(realm)
    assert list(realm.post("extend", leases=[lease]).ok()["extended"]) == [lease]
    assert realm.pull() == []
    assert realm.post("ack", leases=[lease]).ok()["acked"] == [lease]


@pytest.mark.parametrize("path", ["ack", "nack", "release", "extend"])
@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "field_missing", "leases"),
        ({"leases": None}, "field_type_wrong", "leases"),
        ({"leases": "LEASE"}, "field_type_wrong", "leases"),
        ({"leases": ["LEASE", 1]}, "field_type_wrong", "leases[1]"),
        ({"leases": ["LEASE"], "lease": 1}, "field_invalid", "lease"),
        ({"leases": ["x"] * 100_001}, "field_invalid", "leases"),
    ],
)
def test_end_lease_with_wrong_body_names_the_field_and_changes_nothing(
    realm: RealmCalls, path: str, body: dict[str, Any], code: str, field: str
) -> None:
    realm.add("j").ok()
    lease = realm.lease()
    said = {name: json.loads(json.dumps(value).replace("LEASE", lease)) for name, value in body.items()}
    before = realm.place("j")
    answer = realm.ask("POST", path, said)
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, code, field), answer
    assert realm.place("j") == before


@pytest.mark.parametrize(
    ("path", "wrong", "code"),
    [
        ("ack", {"exit_code": 1.5}, "field_type_wrong"),
        ("ack", {"exit_code": 2**64}, "field_invalid"),
        ("ack", {"output": 5}, "field_type_wrong"),
        ("ack", {"error": "x"}, "field_invalid"),
        ("nack", {"error": 5}, "field_type_wrong"),
        ("nack", {"exit_code": "1"}, "field_type_wrong"),
        ("nack", {"exit_code": 2**63}, "field_invalid"),
        ("nack", {"delay": -1}, "field_invalid"),
        ("nack", {"delay": 1e300}, "field_invalid"),
        ("release", {"delay": -1}, "field_invalid"),
        ("release", {"delay": "1"}, "field_type_wrong"),
        ("extend", {"lease_time": -1}, "field_invalid"),
        ("extend", {"lease_time": 1e10}, "field_invalid"),
        ("extend", {"delay": 1}, "field_invalid"),
    ],
)
def test_end_lease_with_wrong_field_names_it_and_changes_nothing(
    realm: RealmCalls, path: str, wrong: dict[str, Any], code: str
) -> None:
    realm.add("j").ok()
    lease = realm.lease()
    before = realm.place("j")
    answer = realm.post(path, leases=[lease], **wrong)
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, code, next(iter(wrong))), answer
    assert realm.place("j") == before


@pytest.mark.parametrize("result", [b"NaN", b"[" * 65 + b"]" * 65, b'"\\ud800"', b'"' + b"x" * (65 << 10) + b'"'])
def test_ack_with_result_that_restq_does_not_carry_is_refused(realm: RealmCalls, result: bytes) -> None:
    realm.add("j").ok()
    body = b'{"leases": ["%b"], "result": %b}' % (realm.lease().encode(), result)
    answer = realm.ask("POST", "ack", body)
    assert (answer.status, answer.json["exception"]) == (400, "ValueError"), answer
    assert realm.state("j") == "leased"


# -- exchange --------------------------------------------------------------------------------------------------------


def test_exchange_finishes_adds_and_takes_the_next_in_one_step(realm: RealmCalls) -> None:
    realm.add_all("a", "b")
    first, second = (job["lease_id"] for job in realm.pull(2))
    reply = realm.post(
        "exchange",
        ack={"leases": [first, "x"]},
        nack={"leases": [second], "error": "no", "delay": 60},
        add=[{"job_id": "c", "queue_id": 0, "data": 1}, {"job_id": "d", "queue_id": 0, "delay": 60}],
        pull={"count": 5, "worker": "w"},
    ).ok()
    [job] = reply.pop("pull")["jobs"]
    assert (job["job_id"], job["data"]) == ("c", 1)
    assert reply == {"ack": {"acked": [first], "stale": ["x"]}, "nack": {"nacked": [second], "dead": [], "stale": []}}
    assert {job["job_id"]: job["queues"][0]["state"] for job in realm.list()} == {
        "b": "delayed",
        "c": "leased",
        "d": "delayed",
    }


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        ({}, {}),
        ({"pull": {}}, {"pull": {"jobs": []}}),
        ({"ack": {"leases": []}}, {"ack": {"acked": [], "stale": []}}),
        ({"add": []}, {}),
        ({"pull": {"wait": 0}}, {"pull": {"jobs": []}}),
    ],
)
def test_exchange_replies_only_parts_that_were_asked_for(realm: RealmCalls, body: Any, reply: Any) -> None:
    assert realm.ask("POST", "exchange", body).ok() == reply


def test_exchange_whose_ack_is_stale_does_nothing_at_all(realm: RealmCalls) -> None:
    realm.add_all("a", "b")
    lease = realm.lease()
    answer = realm.post(
        "exchange",
        ack={"leases": ["x"]},
        nack={"leases": [lease]},
        add=[{"job_id": "c", "queue_id": 0}],
        pull={"count": 5},
    )
    answer.refused(409, "ValueError", "lease_stale")
    assert {job["job_id"]: job["queues"][0]["state"] for job in realm.list()} == {"a": "leased", "b": "ready"}


@pytest.mark.parametrize(
    ("part", "status", "code", "field"),
    [
        (
            {"add": [{"job_id": "c", "queue_id": 0}, {"job_id": "b", "queue_id": 0, "data": 2}]},
            409,
            "data_differs",
            "data",
        ),
        ({"add": [{"job_id": "c", "queue_id": ""}]}, 400, "queue_id_invalid", "add[0].queue_id"),
        ({"pull": {"wait": 1}}, 400, "field_invalid", "pull.wait"),
        ({"pull": {"count": -1}}, 400, "field_invalid", "pull.count"),
        ({"nack": {"leases": [], "delay": -1}}, 400, "field_invalid", "nack.delay"),
        ({"pull": {"lease_time": -1}}, 400, "field_invalid", "pull.lease_time"),
        ({"pull": {"queues": [""]}}, 400, "queue_id_invalid", "pull.queues"),
        ({"ack": {"leases": ["x"], "exit_code": "y"}}, 400, "field_type_wrong", "ack.exit_code"),
    ],
)
def test_exchange_with_a_bad_part_does_nothing_at_all(
    realm: RealmCalls, part: Any, status: int, code: str, field: str
) -> None:
    realm.add("a").ok()
    realm.add("b", data=1).ok()
    lease = realm.lease()
    answer = realm.ask("POST", "exchange", {"ack": {"leases": [lease]}, "pull": {}, **part})
    assert (answer.status, answer.json["code"]) == (status, code), answer
    assert answer.json["field"].startswith(field)
    assert {job["job_id"]: job["queues"][0]["state"] for job in realm.list()} == {"a": "leased", "b": "ready"}


def test_exchange_may_add_again_what_it_acks(realm: RealmCalls) -> None:
    realm.add("j", data=1).ok()
    reply = realm.post(
        "exchange", ack={"leases": [realm.lease()]}, add=[{"job_id": "j", "queue_id": 0, "data": 2}], pull={}
    ).ok()
    assert [(job["job_id"], job["data"], job["attempt"]) for job in reply["pull"]["jobs"]] == [("j", 2, 1)]


def test_exchange_in_msgpack_is_the_same(realm: RealmCalls) -> None:
    realm.add("a").ok()
    body = msgpack.packb({"ack": {"leases": [realm.lease()], "result": {"n": 1}}, "pull": {"count": 1}})
    answer = ask(realm.server, "POST", f"/{realm.name}/exchange", body, MSGPACK)
    reply = msgpack.unpackb(answer.body)
    assert (len(reply["ack"]["acked"]), reply["pull"]) == (1, {"jobs": []})


# -- what an add may wish for ----------------------------------------------------------------------------------------


def test_add_with_delay_or_run_at_is_delayed_until_then(realm: RealmCalls) -> None:
    now = time.time()
    realm.add("in a minute", delay=60).ok()
    realm.add("at an hour", run_at=now + 3600).ok()
    realm.add("long ago", run_at=1.5).ok()
    realm.add("soon", 1, delay=0.05).ok()
    assert realm.pull_ids(max_queue=0) == ["long ago"]
    assert realm.place("in a minute")["ready_at"] == pytest.approx(now + 60, abs=5)
    assert realm.place("at an hour")["ready_at"] == pytest.approx(now + 3600, abs=5)
    assert realm.state("at an hour") == "delayed"
    assert eventually(realm.pull_ids) == ["soon"]


def test_add_with_expiry_is_gone_after_it(realm: RealmCalls) -> None:
    realm.add("gone", expires_in=0.05, tags=["t"]).ok()
    realm.add("here", expires_in=500).ok()
    eventually(lambda: realm.ids() == ["here"])
    assert realm.pull_ids() == ["here"]
    assert realm.list()[0]["expires_at"] == pytest.approx(time.time() + 500, abs=5)
    assert realm.ask("GET", "tags/t").ok()["count"] == 0


def test_add_after_tags_is_blocked_while_another_job_carries_one(realm: RealmCalls) -> None:
    realm.add("first", tags=["stage 1"]).ok()
    realm.add("then", after=["stage 1", "stage 0"], tags=["stage 2"]).ok()
    realm.add("last", after=["stage 2"]).ok()
    assert [realm.state(job_id) for job_id in ("first", "then", "last")] == ["ready", "blocked", "blocked"]
    assert sorted(realm.list("prefix=then")[0]["after"]) == ["stage 0", "stage 1"]
    order = []
    for _ in range(3):
        [job] = realm.pull(9)
        order.append(job["job_id"])
        realm.post("ack", leases=[job["lease_id"]]).ok()
    assert order == ["first", "then", "last"]


def test_add_after_its_own_tag_or_one_that_nobody_carries_is_ready(realm: RealmCalls) -> None:
    realm.add("own", tags=["t"], after=["t"]).ok()
    realm.add("free", 1, after=["nobody"]).ok()
    assert realm.pull_ids() == ["own", "free"]


def test_add_on_conflict_does_as_it_says(realm: RealmCalls) -> None:
    realm.add("j", data=1, tags=["t"]).ok()
    lease = realm.lease()
    realm.add("j", data=2, on_conflict="error").refused(409, "ValueError", "job_exists")
    realm.add("j", data=2, on_conflict="merge").refused(409, "ValueError", "data_differs")
    assert realm.add("j", 1, data=2, on_conflict="ignore").ok() == {}
    assert realm.ask("GET", "job/j").ok()["data"] == 1
    assert [place["queue_id"] for place in realm.list()[0]["queues"]] == [0]
    realm.add("j", 2, data=3, tags=["u"], on_conflict="replace").ok()
    assert realm.ask("GET", "job/j").ok() == {"tags": ["u"], "data": 3, "queues": [[2, 0]]}
    realm.post("ack", leases=[lease]).refused(409, "ValueError", "lease_stale")
    realm.add("new", on_conflict="error").ok()


def test_bulk_add_with_conflict_in_one_job_adds_none(realm: RealmCalls) -> None:
    realm.add("b").ok()
    jobs = [{"job_id": job_id, "queue_id": 0, "on_conflict": "error"} for job_id in ("a", "b")]
    answer = realm.post("jobs", jobs=jobs)
    answer.refused(409, "ValueError", "job_exists")
    assert realm.ids() == ["b"]
    everywhere = [{**job, "realm_id": realm.name} for job in jobs]
    ask(realm.server, "POST", "/jobs", {"jobs": everywhere}).refused(409, "ValueError", "job_exists")
    assert realm.ids() == ["b"]


def test_bulk_add_over_realms_takes_the_same_wishes(realm: RealmCalls) -> None:
    jobs = [{"realm_id": realm.name, "job_id": "j", "queue_id": 0, "delay": 60, "max_attempts": 3, "after": ["t"]}]
    ask(realm.server, "POST", "/jobs", {"jobs": jobs}).ok()
    [job] = realm.list()
    assert (job["max_attempts"], job["after"], job["queues"][0]["state"]) == (3, ["t"], "delayed")


@pytest.mark.parametrize(
    ("wish", "value", "code"),
    [
        ("delay", -1, "field_invalid"),
        ("delay", 1e10, "field_invalid"),
        ("delay", "5", "field_type_wrong"),
        ("run_at", -1, "field_invalid"),
        ("run_at", 1e300, "field_invalid"),
        ("expires_in", -1, "field_invalid"),
        ("max_attempts", 0, "field_invalid"),
        ("max_attempts", -1, "field_invalid"),
        ("max_attempts", 2**63, "field_invalid"),
        ("max_attempts", 1.5, "field_type_wrong"),
        ("after", "t", "field_type_wrong"),
        ("after", [""], "tag_invalid"),
        ("after", [1], "field_type_wrong"),
        ("on_conflict", "overwrite", "field_invalid"),
        ("on_conflict", "", "field_invalid"),
        ("on_conflict", 1, "field_type_wrong"),
    ],
)
def test_add_with_wrong_wish_names_it(realm: RealmCalls, wish: str, value: Any, code: str) -> None:
    answers = [
        (realm.add("j", **{wish: value}), wish),
        (realm.post("jobs", jobs=[{"job_id": "j", "queue_id": 0, wish: value}]), f"jobs[0].{wish}"),
        (realm.post("exchange", add=[{"job_id": "j", "queue_id": 0, wish: value}]), f"add[0].{wish}"),
    ]
    for answer, field in answers:
        assert (answer.status, answer.json["code"]) == (400, code), answer
        assert answer.json["field"].startswith(field)
    assert realm.name not in ask(realm.server, "GET", "/").ok()


def test_add_with_delay_and_run_at_is_refused(realm: RealmCalls) -> None:
    realm.add("j", delay=1, run_at=1).refused(400, "ValueError", "field_invalid")


def test_add_beyond_max_jobs_is_429_that_says_when_to_come_again(realm: RealmCalls) -> None:
    realm.settings(max_jobs=2)
    realm.add_all("a", "b")
    answer = realm.add("c")
    answer.refused(429, "ConnectionError", "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    realm.post("jobs", jobs=[{"job_id": "c", "queue_id": 0}]).refused(429, "ConnectionError", "queue_full")
    realm.add("a", 1).ok()  # that one is there already
    lease = realm.lease(queues=[0])
    realm.ask("DELETE", "job/b").ok()
    realm.add("c").ok()
    assert lease in realm.post("ack", leases=[lease]).ok()["acked"]
    realm.settings(max_jobs=None, max_bytes=100)
    realm.add("d", data="x" * 200).refused(429, "ConnectionError", "queue_full")
    realm.settings(max_bytes=None)
    realm.add("d", data="x" * 200).ok()


# -- cancel and redrive ----------------------------------------------------------------------------------------------


def test_cancel_job_that_nobody_holds_removes_it(realm: RealmCalls) -> None:
    realm.add("a/b", tags=["t"]).ok()
    assert realm.ask("POST", f"job/{encoded('a/b')}/cancel").ok() == {"cancelled": "removed"}
    assert total(realm) == 0
    realm.ask("POST", f"job/{encoded('a/b')}/cancel").refused(404, "KeyError", "job_not_found")


@pytest.mark.parametrize("end", ["ack", "nack", "release", "expiry"])
def test_cancel_leased_job_tells_its_worker_and_goes_with_the_lease(realm: RealmCalls, end: str) -> None:
    realm.add("j", 0).ok()
    realm.add("j", 1).ok()
    lease = realm.lease(lease_time=0.5 if end == "expiry" else None)
    assert realm.ask("POST", "job/j/cancel").ok() == {"cancelled": "leased"}
    [job] = realm.list()
    assert (job["cancelled"], [place["queue_id"] for place in job["queues"]]) == (True, [0])
    assert realm.post("extend", leases=[lease]).ok() == {"extended": {}, "stale": [], "cancelled": [lease]}
    assert realm.pull() == []
    if end == "expiry":
        eventually(lambda: realm.list() == [])
        return
    reply = realm.post(end, leases=[lease]).ok()
    assert reply["stale"] == []
    assert realm.list() == []
    assert total(realm) == 0


def dead(realm: RealmCalls, *job_ids: str, queue_id: Any = 0, **wishes: Any) -> None:
    """Add these, dead."""
    realm.add_all(*job_ids, queue_id=queue_id, max_attempts=1, **wishes)
    leases = [job["lease_id"] for job in realm.pull(len(job_ids), queues=[queue_id])]
    assert realm.post("nack", leases=leases, error="no").ok()["dead"] == leases


@pytest.mark.parametrize(
    ("body", "alive"),
    [
        (None, ["a", "b", "c"]),
        ({}, ["a", "b", "c"]),
        ({"queue": 1}, ["c"]),
        ({"queue": "1"}, ["c"]),
        ({"queue": 9}, []),
        ({"jobs": ["a", "c", "a", "none"]}, ["a", "c"]),
        ({"jobs": []}, []),
        ({"jobs": ["a", "c"], "queue": 0}, ["a"]),
    ],
)
def test_redrive_makes_dead_jobs_ready_with_their_attempts_at_0(realm: RealmCalls, body: Any, alive: list[str]) -> None:
    dead(realm, "a", "b")
    dead(realm, "c", queue_id=1)
    realm.add("d", 2, delay=60).ok()
    answer = realm.ask("POST", "redrive", body)
    if body == {"queue": 9} and answer.status == 404:
        assert answer.json["code"] == "queue_not_found"
    else:
        assert answer.ok() == {"redriven": len(alive)}
    jobs = realm.pull(9)
    assert [job["job_id"] for job in jobs] == alive
    assert {job["attempt"] for job in jobs} <= {1}
    assert not any("error" in realm.place(job["job_id"], job["queue_id"]) for job in jobs)


def test_redrive_many_answers_when_all_are_ready(realm: RealmCalls) -> None:
    ids = [f"j{number}" for number in range(3000)]
    dead(realm, *ids, tags=["t"])
    assert realm.ask("POST", "redrive").ok() == {"redriven": 3000}
    assert realm.pull_ids(5000) == ids


def test_redrive_tagged_jobs_leaves_others_dead(realm: RealmCalls) -> None:
    dead(realm, "a", "b", tags=["t"])
    dead(realm, "c", tags=["u"])
    assert realm.ask("POST", "tags/t/redrive").ok() == {"redriven": 2}
    assert realm.pull_ids() == ["a", "b"]


def test_cancel_tagged_jobs_removes_those_that_nobody_holds(realm: RealmCalls) -> None:
    realm.add_all("a", "b", "c", tags=["t"])
    realm.add("d", 1).ok()
    lease = realm.lease()
    assert realm.ask("POST", "tags/t/cancel").ok() == {"removed": 2, "leased": 1}
    assert realm.ids() == ["a", "d"]
    assert realm.post("extend", leases=[lease]).ok()["cancelled"] == [lease]
    assert realm.post("ack", leases=[lease]).ok()["acked"] == [lease]
    assert realm.ids() == ["d"]


def test_move_tagged_jobs_moves_those_that_nobody_holds(realm: RealmCalls) -> None:
    realm.add_all("a", "b", "c", tags=["t"])
    realm.add("d", tags=["u"]).ok()
    realm.lease()
    answer = ask(realm.server, "POST", f"/{realm.name}/tags/t/move", {"from_queue": 0, "to_queue": 5}, JSON)
    assert answer.ok() == {"moved": 2, "leased": 1}
    assert [(job["job_id"], job["queue_id"]) for job in realm.pull(9)] == [("d", 0), ("b", 5), ("c", 5)]


@pytest.mark.parametrize("action", ["redrive", "cancel", "move"])
def test_act_on_unknown_tag_is_404(realm: RealmCalls, action: str) -> None:
    realm.add("j").ok()
    body = {"from_queue": 0, "to_queue": 1} if action == "move" else None
    realm.ask("POST", f"tags/none/{action}", body).refused(404, "KeyError", "tag_not_found")
    realm.ask("POST", f"tags/%0A/{action}", body).refused(400, "ValueError", "tag_invalid")
