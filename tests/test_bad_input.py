"""Bad input, everywhere: the right 4xx in the right shape, one sentence, nothing changed, and nobody else affected."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from conftest import Server, StartServer, _servers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire import JSON, MSGPACK, Answer, Wire, ask, connect, encoded, names_on, raw_request, received, refusal

JOB = b'{"queue_id": 0}'


@pytest.fixture
def kept(server: Server, realm_name: str) -> Iterator[str]:
    """A realm with a job in it, of which nothing may have changed at the end."""
    job = {"queue_id": 0, "data": {"a": 1}, "tags": ["t"]}
    ask(server, "PUT", f"/{realm_name}/job/kept", job).ok()
    before = ask(server, "GET", "/").ok()[realm_name]
    yield realm_name
    assert ask(server, "GET", "/").ok()[realm_name] == before
    assert ask(server, "GET", f"/{realm_name}/tag/t").ok() == {
        "kept": {"tags": ["t"], "data": {"a": 1}, "queues": [[0, 0]]}
    }


def routes_with_body(realm: str) -> dict[str, tuple[str, str]]:
    return {
        "put job": ("PUT", f"/{realm}/job/new"),
        "move": ("POST", f"/{realm}/job/kept/move"),
        "jobs": ("POST", f"/{realm}/jobs"),
        "remove jobs": ("DELETE", f"/{realm}/jobs"),
        "pull": ("POST", f"/{realm}/pull"),
        "config": ("POST", f"/{realm}/config"),
        "shard": ("PUT", f"/{realm}/shard"),
        "ack": ("POST", f"/{realm}/ack"),
        "nack": ("POST", f"/{realm}/nack"),
        "release": ("POST", f"/{realm}/release"),
        "extend": ("POST", f"/{realm}/extend"),
        "exchange": ("POST", f"/{realm}/exchange"),
        "redrive": ("POST", f"/{realm}/redrive"),
        "redrive tag": ("POST", f"/{realm}/tags/t/redrive"),
        "cancel": ("POST", f"/{realm}/job/kept/cancel"),
        "cancel tag": ("POST", f"/{realm}/tags/t/cancel"),
        "clear": ("POST", f"/{realm}/queues/0/clear"),
        "queue": ("PUT", f"/{realm}/queues/0"),
        "tag": ("PUT", f"/{realm}/tags/t"),
        "move tag": ("POST", f"/{realm}/tags/t/move"),
        "settings": ("PUT", f"/{realm}/config"),
        "all jobs": ("POST", "/jobs"),
        "remove all jobs": ("DELETE", "/jobs"),
        "pull all": ("POST", "/pull"),
    }


ROUTES = list(routes_with_body(""))
NEED_NO_BODY = ("pull", "pull all", "redrive", "redrive tag", "cancel", "cancel tag", "clear")
NEED_A_BODY = [name for name in ROUTES if name not in NEED_NO_BODY]

# -- no JSON -------------------------------------------------------------------------------------------------------

MALFORMED = {
    "text": b"hello",
    "cut off": b'{"jobs": [',
    "two values": b"{} {}",
    "single quotes": b"{'queue_id': 0}",
    "comma": b'{"queue_id": 0,}',
    "no UTF-8": b'{"queue_id": "\xff", "jobs": "\xff", "shard": "\xff", "default_lease_time": "\xff"}',
    "UTF-16": '{"queue_id": 0}'.encode("utf-16"),
    "NUL": b"\0",
    "bracket": b"}",
    "surrogate": b'{"queue_id": "\\ud800", "jobs": "\\udfff", "shard": "\\ud800", "count": "\\ud800"}',
    "raw newline in text": b'{"queue_id": "a\nb", "jobs": "a\nb"}',
}


@pytest.mark.parametrize("text", MALFORMED)
@pytest.mark.parametrize("route", ROUTES)
def test_send_malformed_json_is_refused_with_400(server: Server, kept: str, route: str, text: str) -> None:
    reply = refusal(ask(server, *routes_with_body(kept)[route], MALFORMED[text], JSON))
    assert reply["error"] == 400
    assert reply["exception"] in {"ValueError", "TypeError", "KeyError"}


@pytest.mark.parametrize("route", ["cancel", "cancel tag", "clear", "redrive", "redrive tag"])
def test_send_field_where_none_is_known_is_refused_and_nothing_done(server: Server, kept: str, route: str) -> None:
    answer = ask(server, *routes_with_body(kept)[route], {"queues": 1})
    assert answer.refused(400, "ValueError", "field_invalid")
    assert answer.json["field"] == "queues"


@pytest.mark.parametrize("route", NEED_A_BODY)
@pytest.mark.parametrize("body", [b"", b" ", b"\n"])
def test_send_no_body_where_one_is_needed_is_refused_with_400(
    server: Server, kept: str, route: str, body: bytes
) -> None:
    answer = ask(server, *routes_with_body(kept)[route], body, JSON)
    answer.refused(400, "ValueError", "body_malformed")


@pytest.mark.parametrize("value", [None, True, 5, 1.5, "text", [], [{}], [[]]])
@pytest.mark.parametrize("route", ROUTES)
def test_send_json_that_is_no_object_is_refused_with_400(server: Server, kept: str, route: str, value: Any) -> None:
    body = json.dumps(value).encode()
    ask(server, *routes_with_body(kept)[route], body, JSON).refused(400, "TypeError", "field_type_wrong")


@pytest.mark.parametrize(
    "body", [b"\xc1", b"\x81\xa1a", b"\xff", b"\x92\x01", b"\x81\x01\x02", b"\xc4\x01a", b"\x80" * 2]
)
@pytest.mark.parametrize("route", ROUTES)
def test_send_malformed_msgpack_is_refused_with_400(server: Server, kept: str, route: str, body: bytes) -> None:
    answer = ask(server, *routes_with_body(kept)[route], body, {"Content-Type": "application/msgpack"})
    assert refusal(answer)["error"] == 400


@pytest.mark.parametrize(
    "data",
    [b"bytes", {"k": b"bytes"}, float("nan"), float("inf"), msgpack.Timestamp(1), msgpack.ExtType(5, b"x"), {1: 2}],
    ids=repr,
)
def test_send_msgpack_that_json_cannot_say_is_refused_with_400(server: Server, kept: str, data: Any) -> None:
    body = msgpack.packb({"queue_id": 0, "data": data})
    answer = ask(server, "PUT", f"/{kept}/job/new", body, {"Content-Type": "application/msgpack"})
    answer.refused(400, "ValueError", "body_malformed")


# -- data ----------------------------------------------------------------------------------------------------------

BAD_DATA = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "NaN inside": b'{"a": [NaN]}',
    "number out of range": b"1e999",
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate": b'"a\\udc00"',
    "surrogate as key": b'{"\\ud83d": 1}',
    "surrogate below": b'[[{"a": "\\ud800x"}]]',
    "UTF-8 of a surrogate": b'"\xed\xa0\x80"',
    "no UTF-8": b'"\xff"',
    "integer over 64 bits": b"18446744073709551616",
    "integer under 64 bits": b"-9223372036854775809",
    "integer over 64 bits inside": b'{"a": [1180591620717411303424]}',
    "very long integer": b"9" * 10_000,
    "65 arrays": b"[" * 65 + b"]" * 65,
    "65 objects": b'{"a":' * 64 + b"{}" + b"}" * 64,
    "5,000 arrays": b"[" * 5000 + b"]" * 5000,
    "5,000 objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "200,000 open arrays": b"[" * 200_000,
    "wrong escape": b'"\\x41"',
    "leading zero": b"01",
    "wrong word": b"undefined",
}


@pytest.mark.parametrize("data", BAD_DATA)
@pytest.mark.parametrize("route", ["put job", "jobs", "all jobs"])
def test_add_job_with_data_that_restq_does_not_carry_is_refused(
    server: Server, kept: str, route: str, data: str
) -> None:
    body = b'{"queue_id": 0, "job_id": "new", "realm_id": "%b", "data": %b}' % (kept.encode(), BAD_DATA[data])
    if route != "put job":
        body = b'{"jobs": [%b]}' % body
    answer = ask(server, *routes_with_body(kept)[route], body, JSON)
    answer.refused(400, "ValueError", "body_malformed")


GOOD_DATA = {
    "64 arrays": b"[" * 64 + b"]" * 64,
    "64 objects": b'{"a":' * 63 + b"{}" + b"}" * 63,
    "200 shallow arrays": b"[" + b"[]," * 199 + b"[]]",
    "largest integer": b"9223372036854775807",
    "smallest integer": b"-9223372036854775808",
    "surrogate pair": b'"\\ud83e\\udd80"',
    "largest number": b"1.7976931348623157e308",
}


@pytest.mark.parametrize("data", GOOD_DATA)
@pytest.mark.parametrize("route", ["put job", "jobs", "all jobs"])
def test_add_job_with_data_at_the_limit_is_taken(server: Server, realm_name: str, route: str, data: str) -> None:
    body = b'{"queue_id": 0, "job_id": "new", "realm_id": "%b", "data": %b}' % (realm_name.encode(), GOOD_DATA[data])
    if route != "put job":
        body = b'{"jobs": [%b]}' % body
    ask(server, *routes_with_body(realm_name)[route], body, JSON).ok()
    assert ask(server, "GET", f"/{realm_name}/job").ok() == {"new": [0, json.loads(GOOD_DATA[data])]}


# -- fields --------------------------------------------------------------------------------------------------------

WRONG_JOBS: list[tuple[str, Any, str]] = [
    ("queue_id", None, "field_type_wrong"),
    ("queue_id", True, "field_type_wrong"),
    ("queue_id", 1.5, "field_type_wrong"),
    ("queue_id", [0], "field_type_wrong"),
    ("queue_id", {}, "field_type_wrong"),
    ("queue_id", "", "queue_id_invalid"),
    ("queue_id", "a\nb", "queue_id_invalid"),
    ("queue_id", "\x7f", "queue_id_invalid"),
    ("queue_id", "x" * 513, "queue_id_invalid"),
    ("queue_id", "é" * 257, "queue_id_invalid"),
    ("queue_id", 2**63, "queue_id_invalid"),
    ("queue_id", "9" * 25, "queue_id_invalid"),
    ("tags", "work", "field_type_wrong"),
    ("tags", 5, "field_type_wrong"),
    ("tags", {"a": 1}, "field_type_wrong"),
    ("tags", [5], "field_type_wrong"),
    ("tags", [None], "field_type_wrong"),
    ("tags", ["ok", ["t"]], "field_type_wrong"),
    ("tags", [""], "tag_invalid"),
    ("tags", ["ok", "a\tb"], "tag_invalid"),
    ("tags", ["x" * 513], "tag_invalid"),
    ("job_id", None, "field_type_wrong"),
    ("job_id", True, "field_type_wrong"),
    ("job_id", ["j"], "field_type_wrong"),
    ("job_id", "", "job_id_invalid"),
    ("job_id", "a\0b", "job_id_invalid"),
    ("job_id", "x" * 8193, "job_id_invalid"),
    ("job_id", "é" * 4097, "job_id_invalid"),
    ("job_id", 2**64, "job_id_invalid"),
    ("realm_id", None, "field_type_wrong"),
    ("realm_id", 5, "field_type_wrong"),
    ("realm_id", "", "realm_name_invalid"),
    ("realm_id", "a/b", "realm_name_invalid"),
    ("realm_id", "-a", "realm_name_invalid"),
    ("realm_id", "jobs", "realm_name_invalid"),
    ("realm_id", "x" * 129, "realm_name_invalid"),
]
BULK_ROUTES = ["jobs", "all jobs"]
NO_FIELD = ("jobs", "realm_id")  # there the path names the realm
_EXCEPTIONS = {"field_type_wrong": "TypeError", "field_missing": "KeyError"}


@pytest.mark.parametrize(("field", "value", "code"), [row for row in WRONG_JOBS if row[0] in ("queue_id", "tags")])
def test_put_job_with_wrong_field_names_it(server: Server, kept: str, field: str, value: Any, code: str) -> None:
    answer = ask(server, "PUT", f"/{kept}/job/new", {"queue_id": 1, field: value})
    message = answer.refused(400, _EXCEPTIONS.get(code, "ValueError"), code)
    assert answer.json["field"].startswith(field)
    assert message.startswith(field)


@pytest.mark.parametrize(
    ("route", "field", "value", "code"),
    [(route, *row) for route in BULK_ROUTES for row in WRONG_JOBS if (route, row[0]) != NO_FIELD],
)
def test_bulk_add_with_one_wrong_job_names_its_index_and_applies_none(
    server: Server, kept: str, route: str, field: str, value: Any, code: str
) -> None:
    jobs: list[dict[str, Any]] = [
        {"realm_id": kept, "job_id": f"new {number}", "queue_id": number, "tags": ["new"]} for number in range(5)
    ]
    jobs[3][field] = value
    answer = ask(server, *routes_with_body(kept)[route], {"jobs": jobs})
    message = answer.refused(400, _EXCEPTIONS.get(code, "ValueError"), code)
    assert message.startswith(f"jobs[3].{field}")
    assert answer.json["field"].startswith(f"jobs[3].{field}")


@pytest.mark.parametrize(
    ("route", "missing"),
    [
        (route, field)
        for route in BULK_ROUTES
        for field in ("queue_id", "job_id", "realm_id")
        if (route, field) != NO_FIELD
    ],
)
def test_bulk_add_with_a_field_missing_names_it(server: Server, kept: str, route: str, missing: str) -> None:
    jobs = [{"realm_id": kept, "job_id": "new", "queue_id": 5}, {"realm_id": kept, "job_id": "two", "queue_id": 5}]
    del jobs[1][missing]
    answer = ask(server, *routes_with_body(kept)[route], {"jobs": jobs})
    message = answer.refused(400, "KeyError", "field_missing")
    assert answer.json["field"] == f"jobs[1].{missing}"
    assert message == f"jobs[1].{missing}: this field is required"


@pytest.mark.parametrize("route", BULK_ROUTES)
@pytest.mark.parametrize("job", [None, 5, "text", [], [["realm_id", "x"]]])
def test_bulk_add_with_something_that_is_no_job_names_its_index(
    server: Server, kept: str, route: str, job: Any
) -> None:
    jobs = [{"realm_id": kept, "job_id": "new", "queue_id": 5}, job]
    answer = ask(server, *routes_with_body(kept)[route], {"jobs": jobs})
    message = answer.refused(400, "TypeError", "field_type_wrong")
    assert message.startswith("jobs[1]: ")
    assert answer.json["field"] == "jobs[1]"


def test_bulk_add_over_shards_with_one_wrong_job_applies_none(server: Server, realm_name: str) -> None:
    realms = [next(names_on(shard, realm_name)) for shard in (0, 1)]
    jobs = [{"realm_id": realms[number % 2], "job_id": f"j{number}", "queue_id": 0} for number in range(6)]
    jobs[5]["queue_id"] = "a\nb"
    answer = ask(server, "POST", "/jobs", {"jobs": jobs})
    answer.refused(400, "ValueError", "queue_id_invalid")
    assert answer.json["field"] == "jobs[5].queue_id"
    assert not set(realms) & set(ask(server, "GET", "/").ok())


@pytest.mark.parametrize("count", [100_001])
def test_bulk_add_more_jobs_than_one_request_takes_is_refused(server: Server, kept: str, count: int) -> None:
    jobs = [{"job_id": number, "queue_id": 0} for number in range(count)]
    ask(server, "POST", f"/{kept}/jobs", {"jobs": jobs}).refused(400, "ValueError", "field_invalid")


WRONG_BODIES: list[tuple[str, Any, str, str]] = [
    ("put job", {}, "field_missing", "queue_id"),
    ("put job", {"queue": 0}, "field_missing", "queue_id"),
    ("move", {}, "field_missing", "from_queue"),
    ("move", {"from_queue": 0}, "field_missing", "to_queue"),
    ("move", {"from_queue": 0, "to_queue": None}, "field_type_wrong", "to_queue"),
    ("move", {"from_queue": 0, "to_queue": ""}, "queue_id_invalid", "to_queue"),
    ("move", {"from_queue": "\n", "to_queue": 0}, "queue_id_invalid", "from_queue"),
    ("move", {"from_queue": 0, "to_queue": 2**63}, "queue_id_invalid", "to_queue"),
    ("move", {"from_queue": 0, "to_queue": 1, "from_q": 0}, "field_invalid", "from_q"),
    ("jobs", {}, "field_missing", "jobs"),
    ("jobs", {"jobs": None}, "field_type_wrong", "jobs"),
    ("jobs", {"jobs": "text"}, "field_type_wrong", "jobs"),
    ("all jobs", {}, "field_missing", "jobs"),
    ("all jobs", {"jobs": 5}, "field_type_wrong", "jobs"),
    ("remove jobs", {}, "field_missing", "jobs"),
    ("remove jobs", {"jobs": "kept"}, "field_type_wrong", "jobs"),
    ("remove jobs", {"jobs": {"a": "kept"}}, "field_type_wrong", "jobs"),
    ("remove jobs", {"jobs": ["kept", None]}, "field_type_wrong", "jobs[1]"),
    ("remove jobs", {"jobs": ["kept", ""]}, "job_id_invalid", "jobs[1]"),
    ("remove jobs", {"jobs": ["kept", "\0"]}, "job_id_invalid", "jobs[1]"),
    ("remove jobs", {"jobs": ["kept", 2**64]}, "job_id_invalid", "jobs[1]"),
    ("remove all jobs", {}, "field_missing", "jobs"),
    ("remove all jobs", {"jobs": [["REALM", "kept"], ["REALM"]]}, "field_type_wrong", "jobs[1]"),
    ("remove all jobs", {"jobs": [["REALM", "kept"], ["REALM", "b", "c"]]}, "field_type_wrong", "jobs[1]"),
    ("remove all jobs", {"jobs": [["REALM", "kept"], "REALM"]}, "field_type_wrong", "jobs[1]"),
    ("remove all jobs", {"jobs": [["REALM", "kept"], ["-x", "b"]]}, "realm_name_invalid", "jobs[1]"),
    ("remove all jobs", {"jobs": [["REALM", "kept"], ["REALM", ""]]}, "job_id_invalid", "jobs[1]"),
    ("pull", {"count": -1}, "field_invalid", "count"),
    ("pull", {"count": 100_001}, "field_invalid", "count"),
    ("pull", {"count": 2**64}, "field_invalid", "count"),
    ("pull", {"count": "5"}, "field_type_wrong", "count"),
    ("pull", {"count": True}, "field_type_wrong", "count"),
    ("pull", {"count": 1.5}, "field_type_wrong", "count"),
    ("pull", {"max_queue": ""}, "queue_id_invalid", "max_queue"),
    ("pull", {"max_queue": [0]}, "field_type_wrong", "max_queue"),
    ("pull", {"max-queue": 0}, "field_invalid", "max-queue"),
    ("pull all", {"count": -1}, "field_invalid", "count"),
    ("pull all", {"realms": "REALM"}, "field_type_wrong", "realms"),
    ("pull all", {"realms": ["REALM", 5]}, "field_type_wrong", "realms[1]"),
    ("pull all", {"realms": ["REALM", "a/b"]}, "realm_name_invalid", "realms"),
    ("pull all", {"realm": "REALM"}, "field_invalid", "realm"),
    ("config", {"default_lease_time": "5"}, "field_type_wrong", "default_lease_time"),
    ("config", {"default_lease_time": True}, "field_type_wrong", "default_lease_time"),
    ("config", {"default_lease_time": -0.5}, "field_invalid", "default_lease_time"),
    ("config", {"default_lease_time": 1e300}, "field_invalid", "default_lease_time"),
    ("config", {"default_lease_time": 5, "queue_lease_time": [0, -1]}, "field_invalid", "queue_lease_time"),
    ("config", {"default_lease_time": 5, "queue_lease_time": [0]}, "field_type_wrong", "queue_lease_time"),
    ("config", {"queue_lease_time": 5}, "field_type_wrong", "queue_lease_time"),
    ("config", {"queue_lease_time": {"0": 5}}, "field_type_wrong", "queue_lease_time"),
    ("config", {"queue_lease_time": ["\n", 5]}, "queue_id_invalid", "queue_lease_time"),
    ("shard", {}, "field_missing", "shard"),
    ("shard", {"shard": "0"}, "field_type_wrong", "shard"),
    ("shard", {"shard": 2}, "field_invalid", "shard"),
    ("shard", {"shard": -1}, "field_invalid", "shard"),
]


def with_realm(value: Any, realm: str) -> Any:
    """The body with the realm's name put where REALM stands."""
    return json.loads(json.dumps(value).replace("REALM", realm))


@pytest.mark.parametrize(("route", "body", "code", "field"), WRONG_BODIES)
def test_send_wrong_body_names_the_field(
    server: Server, kept: str, route: str, body: Any, code: str, field: str
) -> None:
    answer = ask(server, *routes_with_body(kept)[route], with_realm(body, kept))
    message = answer.refused(400, _EXCEPTIONS.get(code, "ValueError"), code)
    assert answer.json["field"].startswith(field)
    assert message.startswith(field)


@pytest.mark.parametrize("field", ["a\nb", "a`b", "\u2028", "x" * 10_000])
def test_send_unknown_field_with_odd_name_is_one_line(server: Server, kept: str, field: str) -> None:
    reply = refusal(ask(server, "POST", f"/{kept}/pull", {field: 1}))
    assert (reply["error"], reply["code"]) == (400, "field_invalid")


# -- names in paths and queries ------------------------------------------------------------------------------------

BAD_REALMS = ["-x", ".", "..", ".hidden", "a/b", "a\nb", "x" * 129, "a?b", "a%b", "ui", "docs", "events", "\u2028"]


@pytest.mark.parametrize("name", BAD_REALMS)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "status"), ("PUT", "job/j"), ("GET", "job"), ("POST", "pull"), ("DELETE", ""), ("POST", "jobs")],
)
def test_name_realm_wrongly_is_refused_with_400(server: Server, name: str, method: str, path: str) -> None:
    body = {"queue_id": 0, "jobs": []} if method in ("PUT", "POST") and path != "pull" else None
    answer = ask(server, method, f"/{encoded(name)}/{path}", body)
    answer.refused(400, "ValueError", "realm_name_invalid")


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", f"job/{'x' * 8193}", "job_id_invalid"),
        ("PUT", f"job/{'%C3%A9' * 4097}", "job_id_invalid"),
        ("DELETE", "job/a%00b", "job_id_invalid"),
        ("GET", "tag/a%0Ab", "tag_invalid"),
        ("GET", "tag/%C2%85/status", "tag_invalid"),
        ("DELETE", f"tag/{'x' * 513}", "tag_invalid"),
        ("GET", "queues/%00/clear", "queue_id_invalid"),
        ("POST", f"queues/{'x' * 513}/clear", "queue_id_invalid"),
        ("POST", "queues/9223372036854775808/clear", "queue_id_invalid"),
        ("GET", "job/kept/from_q/%0A/to_q/1", "queue_id_invalid"),
        ("GET", "job/kept/from_q/0/to_q/-9223372036854775809", "queue_id_invalid"),
        ("GET", "job?count=x", "field_invalid"),
        ("GET", "job?count=", "field_invalid"),
        ("GET", "job?count=-1", "field_invalid"),
        ("GET", "job?count=1.5", "field_invalid"),
        ("GET", "job?count=100001", "field_invalid"),
        ("GET", f"job?count={'9' * 5000}", "field_invalid"),
        ("GET", "job?count=%FF", "field_invalid"),
        ("GET", "job?max-queue=", "queue_id_invalid"),
        ("GET", "job?max-queue=%0A", "queue_id_invalid"),
        ("GET", "job/%FF", "body_malformed"),
        ("GET", "job/%ED%A0%80", "body_malformed"),
        ("GET", "tag/%C3", "body_malformed"),
    ],
)
def test_name_something_wrongly_in_path_or_query_is_refused_with_400(
    server: Server, kept: str, method: str, path: str, code: str
) -> None:
    body = JOB if method == "PUT" else None
    ask(server, method, f"/{kept}/{path}", body).refused(400, "ValueError", code)


@pytest.mark.parametrize("query", ["count=x", "count=-1", "realms=a%2Fb", "realms=ok,-x", "max-queue=%0A"])
def test_pull_over_realms_with_wrong_query_is_refused_with_400(server: Server, kept: str, query: str) -> None:
    reply = refusal(ask(server, "GET", f"/job?{query}"))
    assert (reply["error"], reply["exception"]) == (400, "ValueError")


# -- routes, methods, types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/x",
        "//",
        "//status",
        "/REALM",
        "/REALM/nothing",
        "/REALM/job/",
        "/REALM/job/a/b",
        "/REALM/job//move",
        "/REALM/tag/",
        "/REALM/queues/",
        "/REALM/queues/0/none",
        "/REALM/tags/",
        "/REALM/tags/t/clear",
        "/REALM/job/kept/from_q/0/to_q/",
        "/REALM/status/",
        "/performance/none",
        "/favicon.ico",
        "*",
        "/%00",
        "/x?y=%FF",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_ask_unknown_route_is_404(server: Server, kept: str, method: str, path: str) -> None:
    with connect(server) as connection:
        connection.sendall(raw_request(method, path.replace("REALM", kept)))
        received(connection).refused(404, "KeyError", "route_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/", "GET, HEAD"),
        ("PUT", "/healthz", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
        ("GET", "/pull", "POST"),
        ("PUT", "/job", "GET"),
        ("GET", "/jobs", "DELETE, POST"),
        ("GET", "/REALM/", "DELETE"),
        ("PATCH", "/REALM/job/kept", "DELETE, GET, HEAD, PUT"),
        ("OPTIONS", "/REALM/status", "GET, HEAD"),
        ("BREW", "/REALM/status", "GET, HEAD"),
        ("get", "/REALM/status", "GET, HEAD"),
        ("DELETE", "/REALM/queues/0/clear", "GET, POST"),
        ("POST", "/REALM/job", "GET"),
        ("GET", "/REALM/pull", "POST"),
        ("POST", "/REALM/tag/t", "DELETE, GET, HEAD"),
        ("DELETE", "/REALM/config", "GET, HEAD, POST, PUT"),
        ("PUT", "/REALM/ack", "POST"),
        ("PUT", "/REALM/jobs", "DELETE, GET, HEAD, POST"),
        ("DELETE", "/REALM/queues/0", "GET, HEAD, PUT"),
        ("POST", "/REALM/tags/t", "GET, HEAD, PUT"),
        ("GET", "/REALM/shard", "DELETE, PUT"),
        ("DELETE", "/REALM/job/kept/from_q/0/to_q/1", "GET"),
        ("GET", "/REALM/job/kept/move", "POST"),
    ],
)
def test_ask_with_another_method_is_405_and_names_the_right_ones(
    server: Server, kept: str, method: str, path: str, allowed: str
) -> None:
    answer = ask(server, method, path.replace("REALM", kept))
    answer.refused(405, "ValueError", "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_ask_head_of_what_changes_something_is_405_without_a_body_on_a_connection_that_goes_on(
    server: Server, kept: str
) -> None:
    wire = Wire(server.port)
    for path in (f"/{kept}/job", "/job", f"/{kept}/job/kept/from_q/0/to_q/1", f"/{kept}/events"):
        answer = wire.ask("HEAD", path)
        assert (answer.status, answer.body, answer.headers["allow"]) == (405, b"", "GET")
    assert wire.ask("GET", "/healthz").ok() == {}
    wire.close()


@pytest.mark.parametrize(
    "path", ["/healthz", "/metrics", "/performance", "/REALM/status", "/REALM/job/kept", "/REALM/no"]
)
def test_ask_head_is_answered_as_get_without_the_body(server: Server, kept: str, path: str) -> None:
    wire = Wire(server.port)
    path = path.replace("REALM", kept)
    shown = wire.ask("GET", path)
    answer = wire.ask("HEAD", path)
    assert (answer.status, answer.body) == (shown.status, b"")
    assert answer.headers["content-type"] == shown.headers["content-type"]
    assert int(answer.headers["content-length"]) > 0
    assert wire.ask("GET", "/healthz").ok() == {}
    wire.close()


@pytest.mark.parametrize("content_type", ["text/html", "application/xml", "multipart/form-data; boundary=x", "odd"])
@pytest.mark.parametrize("route", ROUTES)
def test_send_body_of_unknown_type_is_415(server: Server, kept: str, route: str, content_type: str) -> None:
    answer = ask(server, *routes_with_body(kept)[route], JOB, {"Content-Type": content_type})
    answer.refused(415, "TypeError", "content_type_unsupported")


# -- too large, malformed, cut off ---------------------------------------------------------------------------------

SMALL_BYTES_MAX = 20_000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes bodies of up to SMALL_BYTES_MAX."""
    with pytest.MonkeyPatch.context() as patch, _servers(tmp_path_factory) as start:
        patch.setenv("RESTQ_WEBAPP_BODY_BYTES_MAX", str(SMALL_BYTES_MAX))
        yield start()


def add_of_size(size: int) -> bytes:
    empty = json.dumps({"queue_id": 0, "data": ""}).encode()
    return json.dumps({"queue_id": 0, "data": "x" * (size - len(empty))}).encode()


@pytest.mark.parametrize("over", [1, 1000, SMALL_BYTES_MAX * 6])
def test_send_body_over_the_limit_is_413_that_a_plain_client_reads(small: Server, realm_name: str, over: int) -> None:
    answer = ask(small, "PUT", f"/{realm_name}/job/j", add_of_size(SMALL_BYTES_MAX + over))
    assert str(SMALL_BYTES_MAX) in answer.refused(413, "ValueError", "body_too_large")
    assert realm_name not in ask(small, "GET", "/").ok()


@pytest.mark.parametrize("over", [1, 1000, SMALL_BYTES_MAX * 6])
def test_send_chunked_body_over_the_limit_is_413_that_a_plain_client_reads(
    small: Server, realm_name: str, over: int
) -> None:
    body = add_of_size(SMALL_BYTES_MAX + over)
    chunks = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    headers = {"Transfer-Encoding": "chunked"}
    with connect(small) as connection:
        connection.sendall(raw_request("PUT", f"/{realm_name}/job/j", headers=headers) + chunked)
        received(connection).refused(413, "ValueError", "body_too_large")
    assert realm_name not in ask(small, "GET", "/").ok()


def test_send_body_at_the_limit_is_taken(small: Server, realm_name: str) -> None:
    ask(small, "PUT", f"/{realm_name}/job/j", add_of_size(SMALL_BYTES_MAX)).ok()
    assert ask(small, "GET", f"/{realm_name}/status").ok()["total_jobs"] == 1


def test_send_body_that_the_memory_is_too_little_for_is_413(
    start_server: StartServer, realm_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process may have 128 MiB, so a body 4 MiB, though 32 are configured: it stands there some times over."""
    monkeypatch.delenv("RESTQ_WEBAPP_BODY_BYTES_MAX", raising=False)
    limits = ["sh", "-c", 'ulimit -d 131072 && exec "$0" "$@"', sys.executable, "-m", "restq"]
    little = start_server(program=limits)
    answer = ask(little, "PUT", f"/{realm_name}/job/j", add_of_size((4 << 20) + 1))
    assert str(4 << 20) in answer.refused(413, "ValueError", "body_too_large")
    ask(little, "PUT", f"/{realm_name}/job/j", add_of_size(4 << 20)).ok()


def test_announce_body_far_over_the_limit_is_413_before_it_is_sent(small: Server, realm_name: str) -> None:
    headers = {"Content-Length": str(10**15), "Expect": "100-continue"}
    with connect(small) as connection:
        connection.sendall(raw_request("PUT", f"/{realm_name}/job/j", headers=headers))
        received(connection).refused(413, "ValueError", "body_too_large")


def test_expect_continue_with_a_body_that_fits_is_told_to_go_on(small: Server, realm_name: str) -> None:
    with connect(small) as connection:
        headers = {"Content-Length": str(len(JOB)), "Expect": "100-continue"}
        connection.sendall(raw_request("PUT", f"/{realm_name}/job/j", headers=headers))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(JOB)
        assert received(connection).ok() == {}


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0\1\2\3\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9.9\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon here\r\n\r\n",
        b"PUT /r/job/j HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"PUT /r/job/j HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"PUT /r/job/j HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"PUT /r/job/j HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT /r/job/j HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_send_malformed_http_is_400_and_closes(server: Server, kept: str, request_bytes: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(request_bytes.replace(b"/r/", f"/{kept}/".encode()))
        reply = rest_of(connection)
    assert reply.startswith(b"HTTP/1.1 400"), reply
    assert b"Traceback" not in reply


def test_send_headers_without_end_closes_the_connection(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(ConnectionError):  # at the latest once what lies between is full
            connection.sendall((b"X-Long: " + b"x" * 8000 + b"\r\n") * 5000)
    assert ask(server, "GET", "/healthz").ok() == {}


def test_send_huge_header_gets_no_500(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(raw_request("GET", "/", headers={"X-Long": "x" * 40_000}))
        reply = rest_of(connection)
    assert reply == b"" or reply.startswith(b"HTTP/1.1 4")
    assert ask(server, "GET", "/healthz").ok() == {}


def test_close_in_the_midst_of_a_body_adds_nothing(server: Server, kept: str) -> None:
    with connect(server) as connection:
        headers = {"Content-Length": str(len(JOB) + 1)}
        connection.sendall(raw_request("PUT", f"/{kept}/job/new", headers=headers) + JOB)
        connection.shutdown(socket.SHUT_WR)
        assert rest_of(connection) == b""
    ask(server, "GET", f"/{kept}/job/new").refused(404, "KeyError", "job_not_found")


# -- neighbours ----------------------------------------------------------------------------------------------------


def test_send_bad_requests_between_good_ones_on_one_connection_affects_only_the_bad(
    server: Server, realm_name: str
) -> None:
    good = [raw_request("PUT", f"/{realm_name}/job/{number}", b'{"queue_id": 0}') for number in range(20)]
    bad = [
        raw_request("PUT", f"/{realm_name}/job/bad", b'{"queue_id": 0, "data": NaN}'),
        raw_request("PUT", f"/{realm_name}/job/bad", b'{"queue_id": 0, "tags": ["a\\nb"]}'),
        raw_request("POST", f"/{realm_name}/jobs", b'{"jobs": [{"job_id": "bad", "queue_id": 0}, 5]}'),
        raw_request("GET", f"/{realm_name}/job/%FF"),
        raw_request("POST", f"/{realm_name}/config", b'{"default_lease_time": -1}'),
    ]
    order = [good[number // 2] if number % 2 == 0 else bad[number // 2 % len(bad)] for number in range(40)]
    with connect(server) as connection:
        connection.sendall(b"".join(order))
        statuses = []
        for _ in order:
            statuses.append(next_status(connection))
    assert statuses == [200, 400] * 20
    assert ask(server, "GET", f"/{realm_name}/status").ok() == {"total_jobs": 20, "total_tags": 0, "queues": {"0": 20}}


def next_status(connection: socket.socket) -> int:
    """The status of the next reply, whose body is read too, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while length > 0:
        length -= len(connection.recv(length))
    return int(head.split()[1])


def test_send_bad_requests_side_by_side_in_one_turn_affects_no_neighbour(server: Server, realm_name: str) -> None:
    pairs = [
        (
            raw_request("PUT", f"/{realm_name}/job/{number}", b'{"queue_id": 0, "data": %d}' % number),
            raw_request("PUT", f"/{realm_name}/job/{number}", b'{"queue_id": 1, "data": "other", "tags": ["t"]}'),
        )
        for number in range(30)
    ]
    connections = [connect(server) for pair in pairs for _ in pair]
    try:
        for number, (first, _) in enumerate(pairs):
            connections[2 * number].sendall(first)
        assert {received(connection).status for connection in connections[::2]} == {200}
        for number, (_, other) in enumerate(pairs):
            connections[2 * number].sendall(other)
            connections[2 * number + 1].sendall(raw_request("PUT", f"/{realm_name}/job/n{number}", JOB))
        replies = [received(connection).status for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    assert replies == [409, 200] * 30
    assert ask(server, "GET", f"/{realm_name}/status").ok() == {"total_jobs": 60, "total_tags": 0, "queues": {"0": 60}}


# -- at random -----------------------------------------------------------------------------------------------------

METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"])
WORDS = st.sampled_from(
    "job jobs pull tag status queues clear config shard move from_q to_q performance ack nack release extend exchange "
    "redrive tags cancel explain ?state=done ?limit=2 ?cursor=x REALM REALM REALM kept 0 1 t "
    "%00 %FF %2F .. * ?count=1 ?count=-1 ?count=x ?max-queue= é".replace("é", "%C3%A9").split()
)
PATHS = st.lists(WORDS, max_size=7).map(lambda words: "/" + "/".join(words).replace("/?", "?"))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**66), 2**66)
    | st.floats(width=32)
    | st.text(max_size=8)
    | st.sampled_from(["REALM", "kept", "-x", "a\nb", "\0", "\ud800"])
)
FIELDS = st.sampled_from(
    "queue_id data tags jobs job_id realm_id count max_queue realms default_lease_time queue_lease_time shard "
    "from_queue to_queue leases error result output exit_code delay run_at expires_in after on_conflict lease_time "
    "worker ack nack add pull queue queues paused rate backoff base keep_done seconds max_attempts crash_limit".split()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=4), max_leaves=12
)
BODIES = (
    st.dictionaries(FIELDS, VALUES, max_size=4).map(lambda value: json.dumps(value).encode())
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=40)
)
TYPES = st.sampled_from([JSON, {}, MSGPACK, {"Content-Type": "text/html"}])


def without_changes(answer: Answer, realm: str, before: Any, after: Any) -> None:
    """What holds for every answer: a refusal is complete and has changed nothing."""
    assert answer.status < 500, answer
    assert b"Traceback" not in answer.body
    if answer.status == 200:
        return
    if answer.headers["content-type"] == "application/msgpack":
        text = json.dumps(msgpack.unpackb(answer.body)).encode()
        answer = Answer(answer.status, {**answer.headers, "content-type": "application/json"}, text)
    refusal(answer)
    assert before == after, f"changed by what was refused: {answer}"


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(method=METHODS, path=PATHS, body=BODIES, headers=TYPES)
def test_send_anything_at_random_never_fails_nor_changes_what_it_refuses(
    server: Server, realm_name: str, method: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    path, body = path.replace("REALM", realm_name), body.replace(b"REALM", realm_name.encode())
    wire = Wire(server.port)
    wire.ask("PUT", f"/{realm_name}/job/kept", JOB).ok()
    before = wire.ask("GET", f"/{realm_name}/status").ok()
    answer = wire.ask(method, path, body, headers)
    without_changes(answer, realm_name, before, wire.ask("GET", f"/{realm_name}/status").ok())
    wire.close()


def test_look_into_the_logs_after_all_that_finds_no_traceback(
    server: Server, start_server: StartServer, realm_name: str
) -> None:
    own = start_server()
    for route in ROUTES:
        for text in MALFORMED.values():
            ask(own, *routes_with_body(realm_name)[route], text, JSON)
    with connect(own) as connection:
        connection.sendall(b"\0\r\n\r\n")
        rest_of(connection)
    assert ask(own, "GET", "/readyz").ok() == {}
    assert own.stop() == 0
    assert "Traceback" not in own.log.read_text()
    assert "Traceback" not in server.log.read_text()
