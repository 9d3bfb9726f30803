"""What can be seen and set over HTTP, route by route: jobs, results, queues, tags, why a job waits, settings."""

from __future__ import annotations

import time
from typing import Any

import pytest
from conftest import Server, StartServer
from polling import eventually
from realm_calls import RealmCalls
from wire import ask, encoded

STATES = ("ready", "leased", "delayed", "blocked", "dead")


@pytest.fixture
def realm(server: Server, realm_name: str) -> RealmCalls:
    return RealmCalls(server, realm_name)


def one_of_each(realm: RealmCalls) -> None:
    """A job in each state, named after it."""
    realm.add("dead", max_attempts=1, tags=["t"]).ok()
    realm.post("nack", leases=[realm.lease()], error="why", exit_code=7).ok()
    realm.add("leased", tags=["t"], data=[1]).ok()
    realm.lease(worker="w1")
    realm.add("delayed", delay=100, tags=["t"]).ok()
    realm.add("blocked", after=["t"], tags=["u"]).ok()
    realm.add("ready", 1, tags=["t", "v"]).ok()


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_list_jobs_shows_each_as_it_stands(realm: RealmCalls) -> None:
    before = time.time()
    one_of_each(realm)
    jobs = realm.list()
    assert [job["job_id"] for job in jobs] == ["dead", "leased", "delayed", "blocked", "ready"]
    places = {job["job_id"]: dict(job["queues"][0]) for job in jobs}
    assert {job_id: place.pop("state") for job_id, place in places.items()} == {state: state for state in STATES}
    near = {name: pytest.approx(before, abs=10) for name in ("ready_at", "failed_at", "leased_at")}
    ready_at, failed_at, leased_at = near["ready_at"], near["failed_at"], near["leased_at"]
    assert places["leased"] == {
        "queue_id": 0,
        "attempt": 1,
        "leased_at": leased_at,
        "lease_expires_at": pytest.approx(before + 600, abs=10),
        "worker": "w1",
    }
    assert places["delayed"] == {"queue_id": 0, "attempt": 0, "ready_at": pytest.approx(before + 100, abs=10)}
    assert places["ready"] == {"queue_id": 1, "attempt": 0, "ready_at": ready_at}
    assert places["blocked"] == {"queue_id": 0, "attempt": 0, "ready_at": ready_at}
    places["dead"].pop("ready_at", None)
    assert places["dead"] == {"queue_id": 0, "attempt": 1, "error": "why", "exit_code": 7, "failed_at": failed_at}
    for job in jobs:
        del job["queues"]
    assert jobs == [
        {"job_id": "dead", "tags": ["t"], "max_attempts": 1},
        {"job_id": "leased", "tags": ["t"]},
        {"job_id": "delayed", "tags": ["t"]},
        {"job_id": "blocked", "tags": ["u"], "after": ["t"]},
        {"job_id": "ready", "tags": ["t", "v"]},
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        *[(f"state={state}", [state]) for state in STATES],
        ("queue=0", ["dead", "leased", "delayed", "blocked"]),
        ("queue=1", ["ready"]),
        ("queue=none", []),
        ("tag=t", ["dead", "leased", "delayed", "ready"]),
        ("tag=none", []),
        ("prefix=de", ["dead", "delayed"]),
        ("prefix=", ["dead", "leased", "delayed", "blocked", "ready"]),
        ("prefix=de&state=dead", ["dead"]),
        ("tag=t&queue=0&state=leased&prefix=l&limit=1000", ["leased"]),
        ("state=ready&queue=0", []),
        ("data=0", ["dead", "leased", "delayed", "blocked", "ready"]),
    ],
)
def test_list_jobs_with_filters_shows_only_what_fits(realm: RealmCalls, query: str, expected: list[str]) -> None:
    one_of_each(realm)
    page = realm.ask("GET", f"jobs?{query}").ok()
    assert [job["job_id"] for job in page["jobs"]] == expected
    assert not any("data" in job for job in page["jobs"])


def test_list_jobs_with_data_shows_it(realm: RealmCalls) -> None:
    realm.add("a", data={"x": 1}).ok()
    realm.add("b").ok()
    assert [job["data"] for job in realm.list("data=1")] == [{"x": 1}, None]


def test_list_jobs_with_large_data_gives_pages_that_end(realm: RealmCalls) -> None:
    data = "x" * (7 << 20)
    for number in range(6):
        realm.add(f"j{number}", data=data).ok()
    found, cursor, sizes = [], "", []
    while cursor is not None:
        answer = realm.ask("GET", f"jobs?data=1{cursor and f'&cursor={cursor}'}")
        sizes.append(len(answer.body))
        page = answer.ok()
        found += [job["job_id"] for job in page["jobs"]]
        assert all(job["data"] == data for job in page["jobs"])
        cursor = page["cursor"]
    assert found == [f"j{number}" for number in range(6)]
    assert max(sizes) < 40 << 20


@pytest.mark.parametrize("limit", [1, 3, 10, 11])
def test_list_jobs_page_by_page_shows_each_once_in_order(realm: RealmCalls, limit: int) -> None:
    ids = [f"j{number}" for number in range(10)]
    realm.add_all(*ids)
    found, cursor = [], None
    for _ in range(20):
        page = realm.ask("GET", f"jobs?limit={limit}{'' if cursor is None else f'&cursor={encoded(cursor)}'}").ok()
        assert len(page["jobs"]) <= limit
        found += [job["job_id"] for job in page["jobs"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert found == ids


def test_list_jobs_page_by_page_while_others_come_and_go_misses_none_that_stays(realm: RealmCalls) -> None:
    realm.add_all(*(f"j{number}" for number in range(9)))
    first = realm.ask("GET", "jobs?limit=3").ok()
    assert [job["job_id"] for job in first["jobs"]] == ["j0", "j1", "j2"]
    for job_id in ("j0", "j2", "j3"):
        realm.ask("DELETE", f"job/{job_id}").ok()
    realm.add("new").ok()
    rest = realm.ask("GET", f"jobs?cursor={first['cursor']}").ok()
    assert ([job["job_id"] for job in rest["jobs"]], rest["cursor"]) == (["j4", "j5", "j6", "j7", "j8", "new"], None)


def test_list_jobs_goes_on_after_restart(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realm = RealmCalls(own, realm_name)
    realm.add_all("a", "b", "c")
    cursor = realm.ask("GET", "jobs?limit=1").ok()["cursor"]
    assert own.stop() == 0
    realm.server = start_server(own.data_dir)
    assert realm.ids(f"cursor={cursor}") == ["b", "c"]
    assert realm.ids() == ["a", "b", "c"]


def test_list_rare_jobs_among_many_ends_with_all_of_them(realm: RealmCalls) -> None:
    for start in range(0, 12_000, 4000):
        realm.add_all(*(f"j{number}" for number in range(start, start + 4000)), tags=["many"])
        realm.add(f"rare {start}").ok()
    found, cursor, pages = [], "", 0
    while cursor is not None:
        page = realm.ask("GET", f"jobs?prefix=rare{cursor and f'&cursor={cursor}'}").ok()
        found += [job["job_id"] for job in page["jobs"]]
        cursor = page["cursor"]
        pages += 1
        assert pages < 20
    assert found == ["rare 0", "rare 4000", "rare 8000"]


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ("state=gone", "field_invalid", "state"),
        ("state=", "field_invalid", "state"),
        ("queue=", "queue_id_invalid", "queue"),
        ("tag=", "tag_invalid", "tag"),
        ("limit=0", "field_invalid", "limit"),
        ("limit=1001", "field_invalid", "limit"),
        ("limit=x", "field_invalid", "limit"),
        ("data=yes", "field_invalid", "data"),
        ("cursor=x", "field_invalid", "cursor"),
        ("cursor=", "field_invalid", "cursor"),
        (f"cursor={'9' * 400}", "field_invalid", "cursor"),
        ("cursor=-1", "field_invalid", "cursor"),
        ("stat=ready", "field_invalid", "stat"),
        ("state=done&cursor=x", "field_invalid", "cursor"),
    ],
)
def test_list_jobs_with_wrong_query_names_the_field(realm: RealmCalls, query: str, code: str, field: str) -> None:
    answer = realm.ask("GET", f"jobs?{query}")
    answer.refused(400, "ValueError", code)
    assert answer.json["field"] == field


# -- results ---------------------------------------------------------------------------------------------------------


def test_list_done_shows_results_in_the_order_in_which_they_came(realm: RealmCalls) -> None:
    realm.settings(keep_done={"count": 10})
    realm.add_all("a", "b", "c", queue_id=3, tags=["t"])
    leases = {job["job_id"]: job["lease_id"] for job in realm.pull(3, worker="w")}
    before = time.time()
    realm.post("ack", leases=[leases["c"]], result={"n": [1]}, exit_code=0, output="said").ok()
    realm.post("ack", leases=[leases["a"]], result=None).ok()
    realm.post("ack", leases=[leases["b"]]).ok()
    results = realm.list("state=done")
    assert [result["job_id"] for result in results] == ["c", "a", "b"]
    shown = results[0]
    for name in ("leased_at", "done_at"):
        assert shown.pop(name) == pytest.approx(before, abs=10)
    shown.pop("added_at", None)
    assert shown == {
        "job_id": "c",
        "queue_id": 3,
        "state": "done",
        "tags": ["t"],
        "attempt": 1,
        "worker": "w",
        "result": {"n": [1]},
        "exit_code": 0,
        "output": "said",
    }
    assert results[1]["result"] is None
    assert "result" not in results[2]
    assert realm.list() == []


def test_list_done_page_by_page_and_filtered(realm: RealmCalls) -> None:
    realm.settings(keep_done={"seconds": 1000})
    realm.add_all(*(f"a{number}" for number in range(5)), tags=["t"])
    realm.add_all("b", queue_id=1)
    realm.post("ack", leases=[job["lease_id"] for job in realm.pull(9)]).ok()
    first = realm.ask("GET", "jobs?state=done&limit=4").ok()
    rest = realm.ask("GET", f"jobs?state=done&limit=4&cursor={first['cursor']}").ok()
    assert [job["job_id"] for job in first["jobs"] + rest["jobs"]] == ["a0", "a1", "a2", "a3", "a4", "b"]
    assert rest["cursor"] is None
    assert realm.ids("state=done&queue=1") == ["b"]
    assert realm.ids("state=done&tag=t&prefix=a3") == ["a3"]


def test_list_done_keeps_no_more_than_was_configured(realm: RealmCalls) -> None:
    realm.settings(keep_done={"count": 2})
    realm.add_all("a", "b", "c")
    for _ in range(3):
        realm.post("ack", leases=[realm.lease()]).ok()
    assert realm.ids("state=done") == ["b", "c"]
    realm.settings(keep_done={"seconds": 0.05})
    eventually(lambda: realm.list("state=done") == [])
    realm.settings(keep_done=None)
    realm.add("d").ok()
    realm.post("ack", leases=[realm.lease()], result=1).ok()
    eventually(lambda: realm.list("state=done") == [])


def test_ack_with_long_output_keeps_its_end(realm: RealmCalls) -> None:
    realm.settings(keep_done={"count": 1})
    realm.add("j").ok()
    realm.post("ack", leases=[realm.lease()], output="é" * 50_000 + "end").ok()
    output = realm.list("state=done")[0]["output"]
    assert output.endswith("éend")
    assert (64 << 10) - 2 < len(output.encode()) <= 64 << 10


def test_get_settings_after_restart_writes_lease_times_as_before(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realm = RealmCalls(own, realm_name)
    realm.add("j", delay=900).ok()
    realm.settings(default_lease_time=60)
    realm.queue_settings(1, lease_time=2.5)
    realm.queue_settings(2, lease_time=3.0)
    before = [realm.ask("GET", path).body for path in ("queues", "config")]
    assert b'"lease_time":600,' in before[0]
    assert b'"lease_time":3,' in before[0]
    assert b'"default_lease_time":60,' in before[1]
    own.process.kill()
    own.process.wait()
    realm.server = start_server(own.data_dir)
    assert [realm.ask("GET", path).body for path in ("queues", "config")] == before


def test_list_done_after_restart_is_the_same(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realm = RealmCalls(own, realm_name)
    realm.settings(keep_done={"count": 5})
    realm.add("j").ok()
    realm.post("ack", leases=[realm.lease()], result=[1]).ok()
    before = realm.list("state=done")
    own.process.kill()
    own.process.wait()
    realm.server = start_server(own.data_dir)
    assert realm.list("state=done") == before
    assert before[0]["result"] == [1]


# -- why -------------------------------------------------------------------------------------------------------------


def test_explain_job_says_why_it_is_where_it_is(realm: RealmCalls) -> None:
    one_of_each(realm)
    words = {"dead": "dead", "leased": "w1", "delayed": "delayed", "blocked": "'t'", "ready": "ready"}
    for job_id, word in words.items():
        told = realm.ask("GET", f"job/{job_id}/explain").ok()
        [place] = told["queues"]
        assert (told["job_id"], place["state"]) == (job_id, job_id)
        assert word in place["explanation"]
        assert told["explanation"].isprintable()
    assert realm.ask("GET", "job/blocked/explain").ok()["queues"][0]["after"] == {"t": 4}


def test_explain_job_names_the_limit_that_holds_it(realm: RealmCalls) -> None:
    realm.add_all("a", "b", tags=["t"])
    realm.tag_settings("t", max_leased=1)
    realm.lease()
    [place] = realm.ask("GET", "job/b/explain").ok()["queues"]
    assert [{name: limit[name] for name in ("kind", "name", "max_leased", "leased")} for limit in place["limits"]] == [
        {"kind": "tag", "name": "t", "max_leased": 1, "leased": 1}
    ]
    realm.queue_settings(0, paused=True)
    limits = realm.ask("GET", "job/b/explain").ok()["queues"][0]["limits"]
    assert [limit["name"] for limit in limits if limit["kind"] == "queue" and limit["paused"]] == [0]
    realm.queue_settings(0, paused=False, rate=0.001)
    realm.tag_settings("t", max_leased=None)
    assert realm.pull_ids() == ["b"]
    realm.add("c").ok()
    [limit] = realm.ask("GET", "job/c/explain").ok()["queues"][0]["limits"]
    assert (limit["rate"], limit["next_at"]) == (0.001, pytest.approx(time.time() + 1000, abs=20))


def test_explain_unknown_job_is_404(realm: RealmCalls) -> None:
    realm.ask("GET", "job/none/explain").refused(404, "KeyError", "job_not_found")


# -- queues ----------------------------------------------------------------------------------------------------------


def test_get_queues_shows_counts_in_order_of_service(realm: RealmCalls) -> None:
    one_of_each(realm)
    realm.add("text", "q").ok()
    queues = realm.ask("GET", "queues").ok()["queues"]
    assert [queue["queue_id"] for queue in queues] == [0, 1, "q"]
    counts = {name: queues[0][name] for name in ("count", *STATES)}
    assert counts == {"count": 4, "ready": 0, "leased": 1, "delayed": 1, "blocked": 1, "dead": 1}
    assert queues[0]["oldest_ready_seconds"] is None
    assert 0 <= queues[1]["oldest_ready_seconds"] < 10
    assert queues[1]["settings"] == {"lease_time": 600, "paused": False}
    assert realm.ask("GET", "queues/q").ok() == {**queues[2], "oldest_ready_seconds": pytest.approx(0, abs=10)}
    realm.ask("GET", "queues/none").refused(404, "ValueError", "queue_not_found")
    realm.ask("GET", "queues/%0A").refused(400, "ValueError", "queue_id_invalid")


def test_put_queue_keeps_what_is_not_named_and_null_takes_away(realm: RealmCalls) -> None:
    backoff = {"base": 1, "factor": 2, "max": 3600, "jitter": 0.5}
    assert realm.queue_settings(7, lease_time=5, max_attempts=3, backoff={"base": 1}, max_leased=2, rate=1.5) == {
        "lease_time": 5,
        "max_attempts": 3,
        "backoff": backoff,
        "max_leased": 2,
        "rate": 1.5,
        "paused": False,
    }
    assert realm.queue_settings(7, paused=True, max_attempts=None, rate=None) == {
        "lease_time": 5,
        "backoff": backoff,
        "max_leased": 2,
        "paused": True,
    }
    assert realm.queue_settings(7, backoff=None, max_leased=None, paused=False) == {"lease_time": 5, "paused": False}
    assert realm.ask("GET", "queues/7").ok()["settings"] == {"lease_time": 5, "paused": False}


def test_put_queue_holds_for_what_is_pulled_from_then_on(realm: RealmCalls) -> None:
    realm.add_all("a", "b", "c")
    realm.queue_settings(0, lease_time=50, max_leased=2)
    jobs = realm.pull(9)
    assert [job["job_id"] for job in jobs] == ["a", "b"]
    assert jobs[0]["lease_expires_at"] == pytest.approx(time.time() + 50, abs=5)
    assert realm.pull(9) == []
    realm.post("ack", leases=[jobs[0]["lease_id"]]).ok()
    assert realm.pull_ids() == ["c"]


def test_pause_queue_hands_nothing_out_until_it_goes_on(realm: RealmCalls) -> None:
    realm.add_all("a", "b")
    realm.add("c", 1).ok()
    lease = realm.lease()
    realm.queue_settings(0, paused=True)
    assert realm.pull_ids() == ["c"]
    assert realm.post("ack", leases=[lease]).ok()["acked"] == [lease]
    realm.queue_settings(0, paused=False)
    assert realm.pull_ids() == ["b"]


def test_rate_of_queue_spreads_what_is_handed_out(realm: RealmCalls) -> None:
    realm.queue_settings(0, rate=20)
    realm.add_all(*(f"j{number}" for number in range(30)))
    started_at = time.monotonic()
    assert len(realm.pull(30)) <= 20
    taken = 20
    while taken < 30:
        taken += len(eventually(lambda: realm.pull(30)))
    assert time.monotonic() - started_at > 0.5


SETTINGS = {"queues/0": "queue", "tags/t": "tag", "config": "realm"}


@pytest.mark.parametrize(
    ("path", "body", "code", "field"),
    [
        *[(path, {"nonsense": 1}, "field_invalid", "nonsense") for path in SETTINGS],
        *[
            (path, {"max_leased": value}, "field_invalid", "max_leased")
            for path in ("queues/0", "tags/t")
            for value in (0, -1, 2**63)
        ],
        *[
            (path, {"rate": value}, "field_invalid", "rate")
            for path in ("queues/0", "tags/t")
            for value in (0, -1, 1e300)
        ],
        *[(path, {"paused": None}, "field_type_wrong", "paused") for path in ("queues/0", "tags/t")],
        *[(path, {"paused": 1}, "field_type_wrong", "paused") for path in ("queues/0", "tags/t")],
        ("queues/0", {"lease_time": -1}, "field_invalid", "lease_time"),
        ("queues/0", {"lease_time": 1e10}, "field_invalid", "lease_time"),
        ("queues/0", {"max_attempts": 0}, "field_invalid", "max_attempts"),
        ("queues/0", {"backoff": {}}, "field_missing", "backoff.base"),
        ("queues/0", {"backoff": {"base": -1}}, "field_invalid", "backoff.base"),
        ("queues/0", {"backoff": {"base": 1, "jitter": 1.5}}, "field_invalid", "backoff.jitter"),
        ("queues/0", {"backoff": {"base": 1, "factor": 0}}, "field_invalid", "backoff.factor"),
        ("queues/0", {"backoff": {"base": 1, "max": -1}}, "field_invalid", "backoff.max"),
        ("queues/0", {"backoff": {"base": 1, "min": 1}}, "field_invalid", "backoff.min"),
        ("queues/0", {"backoff": {"base": 10**400}}, "field_invalid", "backoff.base"),
        ("config", {"keep_done": {"seconds": 10**400}}, "field_invalid", "keep_done.seconds"),
        ("tags/t", {"lease_time": 5}, "field_invalid", "lease_time"),
        ("tags/t", {"max_attempts": 5}, "field_invalid", "max_attempts"),
        ("config", {"default_lease_time": -1}, "field_invalid", "default_lease_time"),
        ("config", {"max_attempts": 0}, "field_invalid", "max_attempts"),
        ("config", {"crash_limit": -1}, "field_invalid", "crash_limit"),
        ("config", {"max_jobs": 1.5}, "field_type_wrong", "max_jobs"),
        ("config", {"max_bytes": "1"}, "field_type_wrong", "max_bytes"),
        ("config", {"keep_done": {"seconds": -1}}, "field_invalid", "keep_done.seconds"),
        ("config", {"keep_done": {"count": -1}}, "field_invalid", "keep_done.count"),
        ("config", {"keep_done": 5}, "field_type_wrong", "keep_done"),
        ("config", {"queue_lease_time": [0, 5]}, "field_invalid", "queue_lease_time"),
    ],
)
def test_put_wrong_settings_names_the_field_and_changes_nothing(
    realm: RealmCalls, path: str, body: dict[str, Any], code: str, field: str
) -> None:
    realm.add("j", tags=["t"]).ok()
    before = {name: realm.ask("GET", name).ok() for name in SETTINGS}
    good = {"default_lease_time": 7} if path == "config" else {"paused": True} if "paused" not in body else {}
    answer = realm.ask("PUT", path, {**good, **body})
    assert (answer.status, answer.json["code"], answer.json["field"]) == (400, code, field), answer
    after = {name: realm.ask("GET", name).ok() for name in SETTINGS}
    for shown in (before, after):
        shown["queues/0"].pop("oldest_ready_seconds")
    assert after == before


# -- tags ------------------------------------------------------------------------------------------------------------


def test_get_tags_shows_them_by_name_page_by_page(realm: RealmCalls) -> None:
    realm.add_all("a", "b", tags=["x1", "x2", "y"])
    realm.add("c", tags=["x3", "ü"]).ok()
    page = realm.ask("GET", "tags").ok()
    assert [tag["tag"] for tag in page["tags"]] == ["x1", "x2", "x3", "y", "ü"]
    assert page["cursor"] is None
    first = realm.ask("GET", "tags?prefix=x&limit=2").ok()
    assert [(tag["tag"], tag["count"]) for tag in first["tags"]] == [("x1", 2), ("x2", 2)]
    rest = realm.ask("GET", f"tags?prefix=x&limit=2&cursor={encoded(first['cursor'])}").ok()
    assert [(tag["tag"], tag["count"]) for tag in rest["tags"]] == [("x3", 1)]
    assert rest["cursor"] is None
    assert realm.ask("GET", "tags?prefix=none").ok() == {"tags": [], "cursor": None}


def test_get_tag_counts_jobs_and_their_places(realm: RealmCalls) -> None:
    one_of_each(realm)
    realm.add("ready", 2).ok()
    expected = {"tag": "t", "count": 4, "ready": 2, "leased": 1, "delayed": 1, "blocked": 0, "dead": 1}
    assert realm.ask("GET", "tags/t").ok() == {**expected, "settings": {"paused": False}}
    assert realm.ask("GET", "tags/u").ok()["blocked"] == 1


def test_get_unknown_tag_counts_0(realm: RealmCalls) -> None:
    told = realm.ask("GET", f"tags/{encoded('a/b ü')}").ok()
    assert told == {"tag": "a/b ü", "count": 0, **dict.fromkeys(STATES, 0), "settings": {"paused": False}}
    realm.ask("GET", "tags/%0A").refused(400, "ValueError", "tag_invalid")
    realm.ask("GET", "tags?limit=0").refused(400, "ValueError", "field_invalid")
    assert realm.name not in ask(realm.server, "GET", "/").ok()


def test_put_tag_limits_what_is_leased_over_all_queues(realm: RealmCalls) -> None:
    assert realm.tag_settings("t", max_leased=2, rate=100) == {"max_leased": 2, "rate": 100, "paused": False}
    for queue_id in range(3):
        realm.add(f"j{queue_id}", queue_id, tags=["t"]).ok()
    realm.add("free", 5).ok()
    jobs = realm.pull(9)
    assert [job["job_id"] for job in jobs] == ["j0", "j1", "free"]
    assert realm.pull(9) == []
    realm.post("release", leases=[jobs[0]["lease_id"]]).ok()
    assert realm.pull_ids() == ["j0"]
    assert realm.tag_settings("t", max_leased=None, rate=None) == {"paused": False}
    assert realm.pull_ids() == ["j2"]


def test_pause_tag_before_any_job_carries_it_holds_those_to_come(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realm = RealmCalls(own, realm_name)
    realm.tag_settings("t", paused=True)
    realm.add("j", tags=["t"]).ok()
    assert realm.pull() == []
    own.process.kill()
    own.process.wait()
    realm.server = start_server(own.data_dir)
    assert realm.pull() == []
    assert realm.ask("GET", "tags/t").ok()["settings"] == {"paused": True}
    realm.tag_settings("t", paused=False)
    assert realm.pull_ids() == ["j"]


# -- the realm -------------------------------------------------------------------------------------------------------


PLAIN = {
    "default_lease_time": 600,
    "max_attempts": None,
    "crash_limit": None,
    "backoff": None,
    "max_jobs": None,
    "max_bytes": None,
    "keep_done": None,
}


def test_get_config_of_new_realm_shows_no_limits(realm: RealmCalls) -> None:
    assert realm.ask("GET", "config").ok() == PLAIN
    assert realm.name not in ask(realm.server, "GET", "/").ok()


def test_put_config_keeps_what_is_not_named_and_null_takes_away(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    realm = RealmCalls(own, realm_name)
    backoff = {"base": 2, "factor": 3, "max": 100, "jitter": 0}
    said: dict[str, Any] = {
        "default_lease_time": 5,
        "max_attempts": 3,
        "crash_limit": 4,
        "max_jobs": 10,
        "max_bytes": 1000,
        "backoff": backoff,
        "keep_done": {"seconds": 60, "count": 7},
    }
    assert realm.settings(**said) == said
    assert realm.settings(max_attempts=None, keep_done={"count": 1}) == {
        **said,
        "max_attempts": None,
        "keep_done": {"seconds": None, "count": 1},
    }
    assert own.stop() == 0
    realm.server = start_server(own.data_dir)
    assert realm.ask("GET", "config").ok()["backoff"] == backoff
    nothing = {name: None for name in said if name != "default_lease_time"}
    assert realm.settings(**nothing) == {**PLAIN, "default_lease_time": 5}


def test_post_config_of_2013_shows_in_the_new_one(realm: RealmCalls) -> None:
    realm.post("config", default_lease_time=30, queue_lease_time=[3, 9]).ok()
    assert realm.ask("GET", "config").ok() == {**PLAIN, "default_lease_time": 30}
    assert realm.ask("GET", "queues/3").ok()["settings"] == {"lease_time": 9, "paused": False}


EMPTY_READS: list[tuple[str, str, int, Any]] = [
    ("GET", "jobs", 200, {"jobs": [], "cursor": None}),
    ("GET", "jobs?state=done", 200, {"jobs": [], "cursor": None}),
    ("GET", "queues", 200, {"queues": []}),
    ("GET", "queues/0", 404, "queue_not_found"),
    ("GET", "tags", 200, {"tags": [], "cursor": None}),
    ("GET", "config", 200, PLAIN),
    ("GET", "job/j/explain", 404, "job_not_found"),
    ("POST", "job/j/cancel", 404, "job_not_found"),
    ("POST", "redrive", 200, {"redriven": 0}),
    ("POST", "tags/t/redrive", 404, "tag_not_found"),
    ("POST", "tags/t/cancel", 404, "tag_not_found"),
    ("GET", "tags/t?wait=60", 200, None),
]


@pytest.mark.parametrize(("method", "path", "status", "reply"), EMPTY_READS)
def test_ask_realm_never_written_to_does_not_make_it(
    realm: RealmCalls, method: str, path: str, status: int, reply: Any
) -> None:
    answer = realm.ask(method, path)
    assert answer.status == status, answer
    if reply is not None:
        assert (answer.json if status == 200 else answer.json["code"]) == reply
    assert realm.name not in ask(realm.server, "GET", "/").ok()
