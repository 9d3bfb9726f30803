"""The HTTP table, route by route: the calls on one realm, on real sockets and real shards."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import msgpack
import pytest
from conftest import Server
from wire import JSON, MSGPACK, Answer, ask, connect, encoded, raw_request, received

AWKWARD_IDS = [
    "a/b",
    "/",
    "//",
    "?count=9",
    "#x",
    "%",
    "%2F",
    "%zz",
    ".",
    "..",
    "../../etc/passwd",
    "a b+c",
    "tab\tand\nnewline\r\n",
    "\x01\x7f",
    "größe",
    "日本語",
    "🦀",
    "\u2028",
    "job",
    "from_q",
    "ls -lah; echo \"$HOME\" 'q' \\",
    "x" * 8192,
    "é" * 4096,
    "/" * 8192,
]


def status_of(server: Server, realm: str) -> Any:
    return ask(server, "GET", f"/{encoded(realm)}/status").ok()


def put(server: Server, realm: str, job_id: str, **body: Any) -> Answer:
    return ask(server, "PUT", f"/{encoded(realm)}/job/{encoded(job_id)}", {"queue_id": 0, **body})


# -- jobs one by one -----------------------------------------------------------------------------------------------


def test_put_job_new_answers_empty_object_and_shows_in_get(server: Server, realm_name: str) -> None:
    added = put(server, realm_name, "j", data={"a": [1, None, "ü"]}, tags=["t2", "t1"])
    assert (added.status, added.body, added.headers["content-type"]) == (200, b"{}", "application/json")
    shown = ask(server, "GET", f"/{realm_name}/job/j")
    assert shown.headers["content-type"] == "application/json"
    assert shown.ok() == {"tags": ["t1", "t2"], "data": {"a": [1, None, "ü"]}, "queues": [[0, 0]]}


def test_put_job_again_in_other_queue_adds_queue_and_tags(server: Server, realm_name: str) -> None:
    put(server, realm_name, "j", data=1, tags=["a"]).ok()
    put(server, realm_name, "j", queue_id="b", tags=["b"]).ok()
    put(server, realm_name, "j", queue_id=-3, data=1).ok()
    shown = ask(server, "GET", f"/{realm_name}/job/j").ok()
    assert shown == {"tags": ["a", "b"], "data": 1, "queues": [[-3, 0], [0, 0], ["b", 0]]}
    assert status_of(server, realm_name) == {"total_jobs": 1, "total_tags": 2, "queues": {"-3": 1, "0": 1, "b": 1}}


def test_put_job_without_data_or_tags_shows_null_and_none(server: Server, realm_name: str) -> None:
    put(server, realm_name, "j").ok()
    assert ask(server, "GET", f"/{realm_name}/job/j").ok() == {"tags": [], "data": None, "queues": [[0, 0]]}


@pytest.mark.parametrize("job_id", AWKWARD_IDS, ids=lambda job_id: ascii(job_id[:12]))
def test_use_awkward_job_id_in_every_route_means_that_job(server: Server, realm_name: str, job_id: str) -> None:
    path = f"/{realm_name}/job/{encoded(job_id)}"
    ask(server, "PUT", path, {"queue_id": 0, "data": "d", "tags": ["t"]}).ok()
    assert ask(server, "GET", path).ok() == {"tags": ["t"], "data": "d", "queues": [[0, 0]]}
    assert ask(server, "GET", f"{path}/from_q/0/to_q/1").ok() == {}
    ask(server, "POST", f"{path}/move", {"from_queue": 1, "to_queue": 2}).ok()
    assert ask(server, "GET", f"/{realm_name}/tag/t").ok() == {job_id: {"tags": ["t"], "data": "d", "queues": [[2, 0]]}}
    assert ask(server, "GET", f"/{realm_name}/job").ok() == {job_id: [2, "d"]}
    assert ask(server, "DELETE", path).ok() == {}
    ask(server, "GET", path).refused(404, "KeyError", "job_not_found")
    ask(server, "POST", f"/{realm_name}/jobs", {"jobs": [{"job_id": job_id, "queue_id": 0}]}).ok()
    assert [job["job_id"] for job in ask(server, "POST", f"/{realm_name}/pull").ok()["jobs"]] == [job_id]
    ask(server, "DELETE", f"/{realm_name}/jobs", {"jobs": [job_id]}).ok()
    assert status_of(server, realm_name)["total_jobs"] == 0


@pytest.mark.parametrize("name", ["ordner/a", "?", "%", "ü ö", "a.b", "x" * 512, "🦀" * 128])
def test_use_awkward_tag_and_queue_in_paths_means_those(server: Server, realm_name: str, name: str) -> None:
    put(server, realm_name, "j", queue_id=name, tags=[name]).ok()
    assert ask(server, "GET", f"/{realm_name}/tag/{encoded(name)}/status").ok() == {"count": 1}
    assert ask(server, "GET", f"/{realm_name}/tag/{encoded(name)}").ok() == {
        "j": {"tags": [name], "data": None, "queues": [[name, 0]]}
    }
    assert ask(server, "GET", f"/{realm_name}/queues/{encoded(name)}/clear").ok() == {}
    assert status_of(server, realm_name) == {"total_jobs": 0, "total_tags": 0, "queues": {name: 0}}


@pytest.mark.parametrize("name", ["a b", "größe", "A.b_c-d", "0", "x" * 128, "日本"])
def test_use_realm_with_any_allowed_name_serves_it(server: Server, name: str) -> None:
    ask(server, "DELETE", f"/{encoded(name)}/").ok()
    put(server, name, "j").ok()
    assert ask(server, "GET", "/").ok()[name] == {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1}}
    assert ask(server, "GET", f"/job?count=5&realms={encoded(name)}").ok() == {"j": [name, 0, None]}
    ask(server, "DELETE", f"/{encoded(name)}/").ok()
    assert name not in ask(server, "GET", "/").ok()


def test_delete_job_unknown_is_no_error(server: Server, realm_name: str) -> None:
    assert ask(server, "DELETE", f"/{realm_name}/job/none").ok() == {}
    assert realm_name not in ask(server, "GET", "/").ok()


def test_delete_job_takes_it_out_of_queues_and_tags(server: Server, realm_name: str) -> None:
    put(server, realm_name, "j", tags=["t"]).ok()
    put(server, realm_name, "j", queue_id=1).ok()
    ask(server, "DELETE", f"/{realm_name}/job/j").ok()
    assert status_of(server, realm_name) == {"total_jobs": 0, "total_tags": 0, "queues": {"0": 0, "1": 0}}
    ask(server, "GET", f"/{realm_name}/tag/t/status").refused(404, "KeyError", "tag_not_found")


# -- the same data -------------------------------------------------------------------------------------------------

DATA = {"b": [1, 2.5, {"z": None, "y": True}], "a": "ü"}
SAME = {
    "key order and white space": (b' { "a" : "\\u00fc",\n"b":[1.0, 25e-1, {"y": true, "z" :null}] } ', JSON),
    "no white space": ('{"b":[1,2.5,{"z":null,"y":true}],"a":"ü"}'.encode(), JSON),
}
OTHER = [
    b'{"a":"\\u00fc","b":[1,2.5,{"y":1,"z":null}]}',
    b'{"a":"\\u00fc","b":[1,2.5,{"y":true}]}',
    b'{"a":"\\u00fc","b":[2.5,1,{"y":true,"z":null}]}',
    b'"x"',
    b"0",
    b"false",
    b"[]",
]


@pytest.mark.parametrize("way", SAME)
def test_put_job_with_same_data_written_otherwise_is_same_data(server: Server, realm_name: str, way: str) -> None:
    put(server, realm_name, "j", data=DATA).ok()
    text, headers = SAME[way]
    body = b'{"tags": ["again"], "data": %b, "queue_id": 0}' % text
    ask(server, "PUT", f"/{realm_name}/job/j", body, headers).ok()
    assert ask(server, "GET", f"/{realm_name}/job/j").ok() == {"tags": ["again"], "data": DATA, "queues": [[0, 0]]}


@pytest.mark.parametrize("large", [False, True])
def test_put_job_in_msgpack_with_same_data_as_json_is_same_data(server: Server, realm_name: str, large: bool) -> None:
    data = {**DATA, "long": "x" * 100_000} if large else DATA
    put(server, realm_name, "j", data=data).ok()
    body = msgpack.packb({"queue_id": 0, "data": dict(reversed(data.items())), "tags": ["again"]})
    answer = ask(server, "PUT", f"/{realm_name}/job/j", body, MSGPACK)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/msgpack")
    assert msgpack.unpackb(answer.body) == {}
    shown = ask(server, "GET", f"/{realm_name}/job/j", headers=MSGPACK)
    assert shown.headers["content-type"] == "application/msgpack"
    assert msgpack.unpackb(shown.body) == {"tags": ["again"], "data": data, "queues": [[0, 0]]}


@pytest.mark.parametrize(
    ("accept", "is_msgpack"),
    [
        ("application/msgpack", True),
        ("Application/MsgPack; q=0.5", True),
        ("application/msgpack;q=0", False),
        ("application/msgpack;q=0.000, */*", False),
        ("application/msgpack, application/json", True),
        ("application/json, application/msgpack", False),
        ("application/json;q=0.5, application/msgpack", True),
        ("application/msgpack;q=0.5, application/json", False),
        ("application/msgpack;q=0.5, application/json;q=0", True),
        ("*/*, application/msgpack", True),
        ("application/msgpack;q=0.5, */*", False),
        ("application/*;q=0.2, application/msgpack;q=0.5, */*", True),
        ("application/msgpack;q=nan", True),
        ("application/x-msgpack", False),
        ("text/html", False),
        ("", False),
    ],
)
def test_accept_that_prefers_msgpack_gets_it(server: Server, accept: str, is_msgpack: bool) -> None:
    answer = ask(server, "GET", "/healthz", headers={"Accept": accept})
    expected = ("application/msgpack", b"\x80") if is_msgpack else ("application/json", b"{}")
    assert (answer.headers["content-type"], answer.body) == expected


@pytest.mark.parametrize("text", OTHER)
def test_put_job_with_other_data_is_conflict_and_changes_nothing(server: Server, realm_name: str, text: bytes) -> None:
    put(server, realm_name, "j", data=DATA, tags=["t"]).ok()
    body = b'{"queue_id": 1, "tags": ["u"], "data": %b}' % text
    message = ask(server, "PUT", f"/{realm_name}/job/j", body).refused(409, "ValueError", "data_differs")
    assert "already exists with other data" in message
    assert ask(server, "GET", f"/{realm_name}/job/j").ok() == {"tags": ["t"], "data": DATA, "queues": [[0, 0]]}
    assert status_of(server, realm_name) == {"total_jobs": 1, "total_tags": 1, "queues": {"0": 1}}


@pytest.mark.parametrize(
    "data", [True, False, 0, -1, 1.5, "", "text", [], {}, [[[]]], {"": {"": ""}}, 2**63 - 1, -(2**63), "x" * 200_000]
)
def test_put_job_with_any_json_as_data_gives_it_back(server: Server, realm_name: str, data: Any) -> None:
    put(server, realm_name, "j", data=data).ok()
    assert ask(server, "GET", f"/{realm_name}/job/j").ok()["data"] == data
    assert ask(server, "GET", f"/{realm_name}/job").ok() == {"j": [0, data]}


# -- pulls ---------------------------------------------------------------------------------------------------------


def fill(server: Server, realm: str, *jobs: tuple[Any, ...]) -> None:
    """Add (job id, queue id) in this order, the id as data."""
    listed = [{"job_id": job_id, "queue_id": queue_id, "data": f"data of {job_id}"} for job_id, queue_id in jobs]
    ask(server, "POST", f"/{realm}/jobs", {"jobs": listed}).ok()


def test_get_job_by_default_leases_one_of_the_lowest_queue(server: Server, realm_name: str) -> None:
    fill(server, realm_name, ("c", 10), ("b", 2), ("a", 2), ("d", "q"))
    pulled = [list(ask(server, "GET", f"/{realm_name}/job").ok().items()) for _ in range(5)]
    assert pulled == [
        [("b", [2, "data of b"])],
        [("a", [2, "data of a"])],
        [("c", [10, "data of c"])],
        [("d", ["q", "data of d"])],
        [],
    ]


def test_get_job_with_max_queue_leaves_later_queues_alone(server: Server, realm_name: str) -> None:
    fill(server, realm_name, ("n", -1), ("a", 2), ("b", 10), ("c", "q"), ("d", "r"))
    assert list(ask(server, "GET", f"/{realm_name}/job?count=9&max-queue=2").ok()) == ["n", "a"]
    assert list(ask(server, "GET", f"/{realm_name}/job?count=9&max-queue=q").ok()) == ["b", "c"]
    assert list(ask(server, "GET", f"/{realm_name}/job?max-queue=r&count=9").ok()) == ["d"]


def test_get_job_with_count_zero_leases_nothing(server: Server, realm_name: str) -> None:
    fill(server, realm_name, ("a", 0))
    assert ask(server, "GET", f"/{realm_name}/job?count=0").ok() == {}
    assert list(ask(server, "GET", f"/{realm_name}/job?count=100000").ok()) == ["a"]


def test_pull_by_post_gives_jobs_in_order_with_lease_ends(server: Server, realm_name: str) -> None:
    ask(server, "POST", f"/{realm_name}/config", {"queue_lease_time": [0, 50]}).ok()
    put(server, realm_name, "a", data=[1], tags=["u", "t"]).ok()
    put(server, realm_name, "b", queue_id=1).ok()
    before = time.time()
    jobs = ask(server, "POST", f"/{realm_name}/pull", {"count": 5}).ok()["jobs"]
    ends = [job.pop("lease_expires_at") for job in jobs]
    assert len({job.pop("lease_id") for job in jobs}) == 2
    assert jobs == [
        {"job_id": "a", "queue_id": 0, "data": [1], "tags": ["t", "u"], "attempt": 1},
        {"job_id": "b", "queue_id": 1, "data": None, "tags": [], "attempt": 1},
    ]
    assert [round(end - before) // 10 for end in ends] == [5, 60]
    assert ask(server, "POST", f"/{realm_name}/pull", {"count": 5}).ok() == {"jobs": []}


def test_pull_by_post_without_body_or_with_max_queue_pulls_so(server: Server, realm_name: str) -> None:
    fill(server, realm_name, ("a", 0), ("b", 0), ("c", 1))
    assert [job["job_id"] for job in ask(server, "POST", f"/{realm_name}/pull").ok()["jobs"]] == ["a"]
    wanted = {"count": 5, "max_queue": 0}
    assert [job["job_id"] for job in ask(server, "POST", f"/{realm_name}/pull", wanted).ok()["jobs"]] == ["b"]


def test_pull_job_in_two_queues_returns_it_once_a_pull(server: Server, realm_name: str) -> None:
    put(server, realm_name, "j").ok()
    put(server, realm_name, "j", queue_id=1).ok()
    assert ask(server, "GET", f"/{realm_name}/job?count=5").ok() == {"j": [0, None]}
    assert ask(server, "GET", f"/{realm_name}/job?count=5").ok() == {"j": [1, None]}
    assert ask(server, "GET", f"/{realm_name}/job?count=5").ok() == {}
    queues = ask(server, "GET", f"/{realm_name}/job/j").ok()["queues"]
    assert [queue_id for queue_id, _ in queues] == [0, 1]
    assert all(0 < seconds < 60 for _, seconds in queues)


def test_read_leased_job_shows_seconds_since_check_out(server: Server, realm_name: str) -> None:
    put(server, realm_name, "j").ok()
    before = time.time()
    ask(server, "GET", f"/{realm_name}/job").ok()
    [[queue_id, seconds]] = ask(server, "GET", f"/{realm_name}/job/j").ok()["queues"]
    assert queue_id == 0
    assert 0 < seconds <= time.time() - before + 0.5


# -- moves, clearing, tags -----------------------------------------------------------------------------------------

MOVES = ["GET", "POST"]


def move(server: Server, realm: str, way: str, job_id: str, from_queue: Any, to_queue: Any) -> Answer:
    path = f"/{realm}/job/{encoded(job_id)}"
    if way == "GET":
        return ask(server, "GET", f"{path}/from_q/{from_queue}/to_q/{to_queue}")
    return ask(server, "POST", f"{path}/move", {"from_queue": from_queue, "to_queue": to_queue})


@pytest.mark.parametrize("way", MOVES)
def test_move_job_to_new_queue_puts_it_there(server: Server, realm_name: str, way: str) -> None:
    put(server, realm_name, "j").ok()
    assert move(server, realm_name, way, "j", 0, "late").ok() == {}
    assert status_of(server, realm_name)["queues"] == {"0": 0, "late": 1}


@pytest.mark.parametrize("way", MOVES)
def test_move_job_already_in_target_just_leaves_source(server: Server, realm_name: str, way: str) -> None:
    put(server, realm_name, "j").ok()
    put(server, realm_name, "j", queue_id=1).ok()
    move(server, realm_name, way, "j", 0, 1).ok()
    assert status_of(server, realm_name) == {"total_jobs": 1, "total_tags": 0, "queues": {"0": 0, "1": 1}}


@pytest.mark.parametrize("way", MOVES)
@pytest.mark.parametrize(("job_id", "from_queue"), [("none", 0), ("j", 7), ("j", 1)])
def test_move_job_that_is_not_there_is_value_error(
    server: Server, realm_name: str, way: str, job_id: str, from_queue: int
) -> None:
    put(server, realm_name, "j").ok()
    put(server, realm_name, "k", queue_id=1).ok()
    refused = move(server, realm_name, way, job_id, from_queue, 2)
    refused.refused(404, "ValueError", "job_not_in_queue")
    assert status_of(server, realm_name)["queues"] == {"0": 1, "1": 1}


@pytest.mark.parametrize("way", MOVES)
def test_move_job_leased_out_of_that_queue_is_value_error(server: Server, realm_name: str, way: str) -> None:
    put(server, realm_name, "j").ok()
    put(server, realm_name, "j", queue_id=1).ok()
    ask(server, "GET", f"/{realm_name}/job").ok()
    move(server, realm_name, way, "j", 0, 2).refused(409, "ValueError", "job_leased")
    assert move(server, realm_name, way, "j", 1, 2).ok() == {}


@pytest.mark.parametrize(("method", "reply"), [("GET", {}), ("POST", {"removed": 1})])
def test_clear_queue_removes_jobs_that_stand_in_no_other(
    server: Server, realm_name: str, method: str, reply: Any
) -> None:
    fill(server, realm_name, ("only", 0), ("both", 0), ("both", 1), ("other", 1))
    assert ask(server, method, f"/{realm_name}/queues/0/clear").ok() == reply
    assert status_of(server, realm_name) == {"total_jobs": 2, "total_tags": 0, "queues": {"0": 0, "1": 2}}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_clear_queue_unknown_is_value_error(server: Server, realm_name: str, method: str) -> None:
    put(server, realm_name, "j").ok()
    ask(server, method, f"/{realm_name}/queues/7/clear").refused(404, "ValueError", "queue_not_found")
    assert status_of(server, realm_name)["queues"] == {"0": 1}


def test_clear_queue_of_many_jobs_answers_when_all_are_gone(server: Server, realm_name: str) -> None:
    fill(server, realm_name, *((f"job {number}", 0) for number in range(5000)))
    assert ask(server, "POST", f"/{realm_name}/queues/0/clear").ok() == {"removed": 5000}
    assert status_of(server, realm_name) == {"total_jobs": 0, "total_tags": 0, "queues": {"0": 0}}


def test_read_tag_gives_its_jobs_and_their_count(server: Server, realm_name: str) -> None:
    put(server, realm_name, "a", data=1, tags=["t"]).ok()
    put(server, realm_name, "b", tags=["t", "u"]).ok()
    put(server, realm_name, "c", tags=["u"]).ok()
    assert ask(server, "GET", f"/{realm_name}/tag/t").ok() == {
        "a": {"tags": ["t"], "data": 1, "queues": [[0, 0]]},
        "b": {"tags": ["t", "u"], "data": None, "queues": [[0, 0]]},
    }
    assert ask(server, "GET", f"/{realm_name}/tag/t/status").ok() == {"count": 2}


def test_delete_tag_removes_its_jobs_and_the_tag(server: Server, realm_name: str) -> None:
    put(server, realm_name, "a", tags=["t", "u"]).ok()
    put(server, realm_name, "b", tags=["u"]).ok()
    assert ask(server, "DELETE", f"/{realm_name}/tag/t").ok() == {}
    assert status_of(server, realm_name) == {"total_jobs": 1, "total_tags": 1, "queues": {"0": 1}}
    ask(server, "GET", f"/{realm_name}/tag/t/status").refused(404, "KeyError", "tag_not_found")
    ask(server, "GET", f"/{realm_name}/tag/t").refused(404, "KeyError", "tag_not_found")
    assert ask(server, "DELETE", f"/{realm_name}/tag/t").ok() == {}


# -- bulk ----------------------------------------------------------------------------------------------------------


def test_bulk_add_list_and_bulk_remove_apply_all(server: Server, realm_name: str) -> None:
    jobs = [
        {"job_id": "a", "queue_id": 0, "data": {"x": 1}, "tags": ["t"]},
        {"job_id": "a", "queue_id": 1},
        {"job_id": "b", "queue_id": "0"},
    ]
    assert ask(server, "POST", f"/{realm_name}/jobs", {"jobs": jobs}).ok() == {}
    assert status_of(server, realm_name) == {"total_jobs": 2, "total_tags": 1, "queues": {"0": 2, "1": 1}}
    assert ask(server, "DELETE", f"/{realm_name}/jobs", {"jobs": ["a", "none"]}).ok() == {}
    assert status_of(server, realm_name) == {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1, "1": 0}}


def test_bulk_add_object_takes_its_values_in_order(server: Server, realm_name: str) -> None:
    jobs = {"x": {"job_id": "second", "queue_id": 0}, "a": {"job_id": "first", "queue_id": 0}}
    ask(server, "POST", f"/{realm_name}/jobs", {"jobs": jobs}).ok()
    assert list(ask(server, "GET", f"/{realm_name}/job?count=2").ok()) == ["second", "first"]


def test_bulk_add_nothing_changes_nothing(server: Server, realm_name: str) -> None:
    assert ask(server, "POST", f"/{realm_name}/jobs", {"jobs": []}).ok() == {}
    assert ask(server, "DELETE", f"/{realm_name}/jobs", {"jobs": []}).ok() == {}
    assert status_of(server, realm_name) == {"total_jobs": 0, "total_tags": 0, "queues": {}}


def test_bulk_add_with_other_data_in_the_last_job_applies_none(server: Server, realm_name: str) -> None:
    put(server, realm_name, "known", data=1).ok()
    jobs = [{"job_id": "new", "queue_id": 5, "tags": ["t"]}, {"job_id": "known", "queue_id": 0, "data": 2}]
    refused = ask(server, "POST", f"/{realm_name}/jobs", {"jobs": jobs})
    assert refused.refused(409, "ValueError", "data_differs").startswith("jobs[1]")
    assert status_of(server, realm_name) == {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1}}


def test_use_numbers_as_job_ids_are_the_strings_json_writes(server: Server, realm_name: str) -> None:
    jobs = [{"job_id": number, "queue_id": 0} for number in (2, -7, 1.5, 2**63 - 1)]
    ask(server, "POST", f"/{realm_name}/jobs", {"jobs": jobs}).ok()
    assert ask(server, "GET", f"/{realm_name}/job/2").ok()["queues"] == [[0, 0]]
    assert list(ask(server, "GET", f"/{realm_name}/job?count=9").ok()) == ["2", "-7", "1.5", "9223372036854775807"]
    ask(server, "DELETE", f"/{realm_name}/jobs", {"jobs": [2, "-7", 1.5]}).ok()
    assert status_of(server, realm_name)["total_jobs"] == 1


# -- realm ---------------------------------------------------------------------------------------------------------


def test_configure_default_lease_time_holds_for_later_queues(server: Server, realm_name: str) -> None:
    put(server, realm_name, "old", queue_id=0).ok()
    assert ask(server, "POST", f"/{realm_name}/config", {"default_lease_time": 50}).ok() == {}
    put(server, realm_name, "new", queue_id=1).ok()
    before = time.time()
    jobs = ask(server, "POST", f"/{realm_name}/pull", {"count": 2}).ok()["jobs"]
    assert [round((job["lease_expires_at"] - before) / 10) for job in jobs] == [60, 5]


def test_configure_queue_lease_time_makes_the_queue(server: Server, realm_name: str) -> None:
    body = {"default_lease_time": 100.5, "queue_lease_time": ["late", 0]}
    assert ask(server, "POST", f"/{realm_name}/config", body).ok() == {}
    assert status_of(server, realm_name) == {"total_jobs": 0, "total_tags": 0, "queues": {"late": 0}}
    put(server, realm_name, "j", queue_id="late").ok()
    for _ in range(3):  # a lease of no time is over at once
        assert ask(server, "GET", f"/{realm_name}/job").ok() == {"j": ["late", None]}


def test_delete_realm_removes_all_of_it(server: Server, realm_name: str) -> None:
    fill(server, realm_name, *((f"job {number}", number % 3) for number in range(3000)))
    assert ask(server, "DELETE", f"/{realm_name}/").ok() == {}
    assert realm_name not in ask(server, "GET", "/").ok()
    assert status_of(server, realm_name) == {"total_jobs": 0, "total_tags": 0, "queues": {}}
    assert ask(server, "DELETE", f"/{realm_name}/").ok() == {}
    put(server, realm_name, "job 1", data="other").ok()
    assert status_of(server, realm_name) == {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1}}


EMPTY_READS: list[tuple[str, str, int, Any]] = [
    ("GET", "status", 200, {"total_jobs": 0, "total_tags": 0, "queues": {}}),
    ("GET", "job", 200, {}),
    ("GET", "job?count=5&max-queue=3", 200, {}),
    ("POST", "pull", 200, {"jobs": []}),
    ("GET", "job/j", 404, "job_not_found"),
    ("DELETE", "job/j", 200, {}),
    ("GET", "tag/t", 404, "tag_not_found"),
    ("GET", "tag/t/status", 404, "tag_not_found"),
    ("DELETE", "tag/t", 200, {}),
    ("GET", "queues/0/clear", 404, "queue_not_found"),
    ("POST", "queues/0/clear", 404, "queue_not_found"),
    ("GET", "job/j/from_q/0/to_q/1", 404, "job_not_in_queue"),
    ("DELETE", "", 200, {}),
]


@pytest.mark.parametrize(("method", "path", "status", "reply"), EMPTY_READS)
def test_read_realm_never_written_to_does_not_make_it(
    server: Server, realm_name: str, method: str, path: str, status: int, reply: Any
) -> None:
    answer = ask(server, method, f"/{realm_name}/{path}")
    assert answer.status == status
    assert (answer.json if status == 200 else answer.json["code"]) == reply
    assert realm_name not in ask(server, "GET", "/").ok()


# -- how bodies may come -------------------------------------------------------------------------------------------

CONTENT_TYPES: list[Mapping[str, str]] = [
    {},
    {"Content-Type": ""},
    {"Content-Type": "application/json"},
    {"Content-Type": "Application/JSON; charset=utf-8"},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/octet-stream"},
    {"Content-Type": "application/vnd.api+json"},
]


@pytest.mark.parametrize("headers", CONTENT_TYPES)
def test_send_json_under_any_usual_content_type_is_understood(
    server: Server, realm_name: str, headers: Mapping[str, str]
) -> None:
    ask(server, "PUT", f"/{realm_name}/job/j", b'{"queue_id": 0, "data": "d"}', headers).ok()
    assert ask(server, "GET", f"/{realm_name}/job", headers=headers).ok() == {"j": [0, "d"]}


def test_send_and_accept_msgpack_speaks_msgpack_both_ways(server: Server, realm_name: str) -> None:
    jobs = [{"job_id": "a", "queue_id": 0, "data": {"x": [1, 2.5, None, "ü"]}, "tags": ["t"]}]
    ask(server, "POST", f"/{realm_name}/jobs", msgpack.packb({"jobs": jobs}), MSGPACK)
    pulled = ask(server, "POST", f"/{realm_name}/pull", msgpack.packb({"count": 2}), MSGPACK)
    assert pulled.headers["content-type"] == "application/msgpack"
    [job] = msgpack.unpackb(pulled.body)["jobs"]
    assert job.pop("lease_expires_at") > time.time()
    assert isinstance(job.pop("lease_id"), str)
    assert job == {"job_id": "a", "queue_id": 0, "data": {"x": [1, 2.5, None, "ü"]}, "tags": ["t"], "attempt": 1}


def test_accept_msgpack_on_refusal_refuses_in_msgpack(server: Server, realm_name: str) -> None:
    refused = ask(server, "GET", f"/{realm_name}/job/j", headers={"Accept": "application/msgpack"})
    assert (refused.status, refused.headers["content-type"]) == (404, "application/msgpack")
    reply = msgpack.unpackb(refused.body)
    assert (reply["error"], reply["exception"], reply["code"]) == (404, "KeyError", "job_not_found")


def test_send_chunked_body_is_understood(server: Server, realm_name: str) -> None:
    text = json.dumps({"queue_id": 0, "data": "x" * 1000}).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (text[:7], text[7:])) + b"0\r\n\r\n"
    headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    with connect(server) as connection:
        connection.sendall(raw_request("PUT", f"/{realm_name}/job/j", headers=headers) + chunks)
        assert received(connection).ok() == {}
    assert ask(server, "GET", f"/{realm_name}/job").ok() == {"j": [0, "x" * 1000]}
