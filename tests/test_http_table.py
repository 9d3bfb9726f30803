"""The HTTP table itself: every method of every path over a real socket, in both encodings, with what comes of it.

TABLE says it all: a route that it does not have fails, and so does an entry that changes something and does not say
where that is seen. What requests and replies mean in all their cases is tested in the other files.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgpack
import pytest
from conftest import Server
from realm_calls import RealmCalls
from wire import JSON, MSGPACK, ask, connect, encoded, names_on, raw_request

from restq.routes import ROUTES, Route

README = (Path(__file__).resolve().parent.parent / "README.rst").read_text(encoding="utf-8")
METHODS = {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"}
EVENTS, TEXT = "text/event-stream", "text/plain"
DECODE = {"application/json": json.loads, "application/msgpack": msgpack.unpackb, TEXT: bytes.decode}


# -- what replies are compared with ------------------------------------------------------------------------------------


@dataclass(eq=False)
class Fits:
    """Equals what is of this type and passes the test."""

    kind: type
    test: Callable[[Any], bool]

    def __eq__(self, other: object) -> bool:
        return type(other) is self.kind and self.test(other)


@dataclass(eq=False)
class Has:
    """Equals each object that has at least these fields."""

    fields: dict[str, Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and {name: other[name] for name in self.fields if name in other} == self.fields


def near(seconds: float) -> Fits:
    """The instant in so many seconds, or nearly."""
    return Fits(float, lambda at: abs(at - time.time() - seconds) < 20)


COUNT = Fits(int, lambda count: count >= 0)
AGE = Fits(float, lambda seconds: 0 < seconds < 20)
SHARE = Fits(float, lambda share: 0 <= share <= 1)
LEASE_ID = Fits(str, lambda lease: re.fullmatch(r"\d+-\d+-[0-9a-f]+", lease) is not None)
METRICS = Fits(str, lambda text: '\nrestq_shard_jobs{shard="0"} ' in text)


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A request, its reply, and what GETs of some targets reply after it, but not before it.

    `<realm>` and such are words of the scene; `ids` are what the stars of the path stand for, but for the realm's.
    `content_type` is named where the reply is neither JSON nor msgpack, whatever the client accepts; that of a stream
    is the event of a job that is added meanwhile.
    """

    route: str
    ids: tuple[str, ...] = ()
    query: str = ""
    body: Any = None
    reply: Any = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)
    content_type: str = ""


def place(job_id: str, queue_id: int | str, state: str, attempt: int, **more: Any) -> dict[str, Any]:
    """Where a list must show a job."""
    shown = {"queue_id": queue_id, "state": state, "attempt": attempt, **more}
    return {f"/<realm>/jobs?prefix={encoded(job_id)}": Has({"jobs": [Has({"job_id": job_id, "queues": [shown]})]})}


def taken(job_id: str, queue_id: int | str, seconds: float, worker: str) -> dict[str, Any]:
    """Where a list must show a job that was just leased."""
    return place(job_id, queue_id, "leased", 1, leased_at=near(0), lease_expires_at=near(seconds), worker=worker)


def given(**more: Any) -> dict[str, Any]:
    """What a PULL gives."""
    job = {"job_id": "a/b", "queue_id": 1, "data": DATA, "tags": ["t/ü"], "attempt": 1, **more}
    return {"jobs": [{**job, "lease_id": LEASE_ID, "lease_expires_at": near(50)}]}


def counts(state: str) -> dict[str, Any]:
    """What is told of a queue or a tag with one job in this state, or with none."""
    states = ("ready", "leased", "delayed", "blocked", "dead")
    return {"count": int(state in states), **{each: int(each == state) for each in states}}


def queue(queue_id: int | str, state: str, age: Any = None) -> dict[str, Any]:
    """A queue with one job."""
    settings = {"lease_time": 600, "paused": False}
    return {"queue_id": queue_id, **counts(state), "oldest_ready_seconds": age, "settings": settings}


def tag(name: str, state: str) -> dict[str, Any]:
    """A tag of one job, or of none."""
    return {"tag": name, **counts(state), "settings": {"paused": False}}


def shards(*realms: dict[str, Any]) -> dict[str, Any]:
    """Every shard, and how it must show some of its realms."""
    told = {"pid": COUNT, "busy": SHARE, "requests": COUNT, "jobs": COUNT}
    return {"shards": [{"shard": number, **told, "realms": Has(some)} for number, some in enumerate(realms)]}


JOB, NEW, SHARDS = "/<realm>/job/a%2Fb", "/<realm>/job/new", "/performance/shards"
DATA = {"n": [1, None, "ü"]}
SHOWN = {"tags": ["t/ü"], "data": DATA, "queues": [[1, 0]]}
QUERY_2013 = "count=2&max-queue=last&realms=<other>,<realm>"
CHECKED_OUT = {JOB: {**SHOWN, "queues": [[1, AGE]]}}
GONE = {JOB: Has({"code": "job_not_found"})}
CLEARED = {**GONE, "/<realm>/queues/1": Has({"count": 0})}
CANCELLED = {"/<realm>/jobs?prefix=held": Has({"jobs": [Has({"cancelled": True})]})}
ADD = {"queue_id": 5, "data": 1, "tags": ["x"]}
BULK = [{"realm_id": realm, "job_id": "new", **ADD} for realm in ("<realm>", "<other>")]
ADDED = {"tags": ["x"], "data": 1, "queues": [[5, 0]]}
EVENT = {"realm": "<realm>", "job_id": "new", "queue_id": 5, "at": near(0)}
STATUS = {"total_jobs": 3, "total_tags": 3, "queues": {"1": 1, "3": 1, "q/2": 1}}
NO_STATUS = {"total_jobs": 0, "total_tags": 0, "queues": {}}
PULL, PULLED = {"count": 2, "queues": [1, 7], "lease_time": 50, "worker": "w2"}, taken("a/b", 1, 50, "w2")
MOVE, MOVED = {"from_queue": 1, "to_queue": "q 9"}, place("a/b", "q 9", "ready", 0, ready_at=near(0))
REDRIVEN = place("dead", "q/2", "ready", 0, ready_at=near(0))
LEASES, STALE = {"leases": ["<lease>", "0-0-0"]}, {"stale": ["0-0-0"]}
NACK = {**LEASES, "error": "broken", "exit_code": 2, "delay": 90}
NACKED = place("held", 3, "delayed", 1, ready_at=near(90), error="broken", exit_code=2, failed_at=near(0))
OUTCOME = {"result": [1], "exit_code": 0, "output": "said"}
DONE = {"job_id": "held", "queue_id": 3, "state": "done", "tags": ["work"], "attempt": 1, "worker": "w"}
RESULTS = {"jobs": [{**DONE, "leased_at": near(0), "done_at": near(0), **OUTCOME}], "cursor": None}
ACKED = {"/<realm>/job/held": Has({"code": "job_not_found"}), "/<realm>/jobs?state=done": RESULTS}
RELEASED, EXTENDED = place("held", 3, "delayed", 0, ready_at=near(90)), taken("held", 3, 50, "w")
EXCHANGE = {
    "ack": {**LEASES, **OUTCOME},
    "nack": {"leases": ["0-0-0"]},
    "add": [{"job_id": "new", **ADD}],
    "pull": PULL,
}
EXCHANGED = {"ack": {"acked": ["<lease>"], **STALE}, "nack": {"nacked": [], "dead": [], **STALE}, "pull": given()}
EXTENSIONS = {"extended": {"<lease>": near(50)}, **STALE, "cancelled": []}
BACKOFF = {"base": 2, "factor": 3, "max": 90, "jitter": 0}
LIMITS = {"max_leased": 2, "rate": 0.5, "paused": True}
QUEUE_LIMITS = {"lease_time": 9, "max_attempts": 4, "backoff": BACKOFF, **LIMITS}
TAG_LIMITED = {"/<realm>/tags/t%2F%C3%BC": {**tag("t/ü", "ready"), "settings": LIMITS}}
QUEUE_LIMITED = {"/<realm>/queues/q%2F2": {**queue("q/2", "dead"), "settings": QUEUE_LIMITS}}
CONFIG: dict[str, Any] = {"default_lease_time": 600, "max_attempts": None, "crash_limit": None, "backoff": None}
CONFIG |= {"max_jobs": 900, "max_bytes": None, "keep_done": {"seconds": None, "count": 9}}
CHANGES = {"default_lease_time": 5, "max_attempts": 3, "crash_limit": 4, "backoff": BACKOFF, "max_bytes": 9000}
CONFIG_2013 = {"default_lease_time": 7, "queue_lease_time": ["q/2", 9]}
CONFIGURED_2013 = {
    "/<realm>/config": {**CONFIG, "default_lease_time": 7},
    "/<realm>/queues/q%2F2": {**queue("q/2", "dead"), "settings": {"lease_time": 9, "paused": False}},
}
TIMING = {"call_count": COUNT, "min_time": AGE, "max_time": AGE, "total_time": Fits(float, lambda seconds: seconds > 0)}
READY = {"queue_id": 1, "state": "ready", "attempt": 0, "ready_at": near(0)}
WHY = "it is ready, and next pulls have it in turn: 0 jobs are ready in queues before this one, 1 in this one."
EXPLAINED = {"job_id": "a/b", "explanation": f"In queue 1 {WHY}", "queues": [{**READY, "explanation": WHY}]}
LISTED = {"jobs": [{"job_id": "a/b", "tags": ["t/ü"], "queues": [READY], "data": DATA}], "cursor": None}
LIST_QUERY = "state=ready&queue=1&tag=t%2F%C3%BC&prefix=a&limit=2&cursor=<jobs>&data=1"
QUEUES = {"queues": [queue(1, "ready", AGE), queue(3, "leased"), queue("q/2", "dead")]}

TABLE = [
    # jobs
    Entry("PUT /*/job/*", ("new",), body=ADD, seen={NEW: ADDED}),
    Entry("GET /*/job/*", ("a/b",), reply=SHOWN),
    Entry("DELETE /*/job/*", ("a/b",), seen=GONE),
    Entry("GET /*/job/*/explain", ("a/b",), reply=EXPLAINED),
    Entry("POST /*/job/*/move", ("a/b",), body=MOVE, seen=MOVED),
    Entry("POST /*/job/*/cancel", ("a/b",), reply={"cancelled": "removed"}, seen=GONE),
    Entry("POST /*/job/*/cancel", ("held",), reply={"cancelled": "leased"}, seen=CANCELLED),
    Entry("POST /*/jobs", body={"jobs": [{"job_id": "new", **ADD}]}, seen={NEW: ADDED}),
    Entry("DELETE /*/jobs", body={"jobs": ["none", "a/b"]}, seen=GONE),
    Entry("GET /*/jobs", query=LIST_QUERY, reply=LISTED),
    Entry("POST /*/redrive", body={"queue": "q/2", "jobs": ["dead"]}, reply={"redriven": 1}, seen=REDRIVEN),
    # leases
    Entry("POST /*/pull", body=PULL, reply=given(), seen=PULLED),
    Entry("POST /*/ack", body={**LEASES, **OUTCOME}, reply={"acked": ["<lease>"], **STALE}, seen=ACKED),
    Entry("POST /*/nack", body=NACK, reply={"nacked": ["<lease>"], "dead": [], **STALE}, seen=NACKED),
    Entry("POST /*/release", body={**LEASES, "delay": 90}, reply={"released": ["<lease>"], **STALE}, seen=RELEASED),
    Entry("POST /*/extend", body={**LEASES, "lease_time": 50}, reply=EXTENSIONS, seen=EXTENDED),
    Entry("POST /*/exchange", body=EXCHANGE, reply=EXCHANGED, seen={**ACKED, NEW: ADDED, **PULLED}),
    # queues, tags, realms
    Entry("GET /*/queues", reply=QUEUES),
    Entry("GET /*/queues/*", ("q/2",), reply=queue("q/2", "dead")),
    Entry("PUT /*/queues/*", ("q/2",), body=QUEUE_LIMITS, reply=QUEUE_LIMITS, seen=QUEUE_LIMITED),
    Entry("POST /*/queues/*/clear", ("1",), reply={"removed": 1}, seen=CLEARED),
    Entry("GET /*/tags", query="prefix=t&limit=1&cursor=<tags>", reply={"tags": [tag("t/ü", "ready")], "cursor": None}),
    Entry("GET /*/tags/*", ("t/ü",), reply=tag("t/ü", "ready")),
    Entry("GET /*/tags/*", ("none",), query="wait=300", reply=tag("none", "")),
    Entry("PUT /*/tags/*", ("t/ü",), body=LIMITS, reply=LIMITS, seen=TAG_LIMITED),
    Entry("POST /*/tags/*/redrive", ("grave",), reply={"redriven": 1}, seen=REDRIVEN),
    Entry("POST /*/tags/*/cancel", ("t/ü",), reply={"removed": 1, "leased": 0}, seen=GONE),
    Entry("POST /*/tags/*/move", ("t/ü",), body=MOVE, reply={"moved": 1, "leased": 0}, seen=MOVED),
    Entry("GET /*/tag/*", ("t/ü",), reply={"a/b": SHOWN}),
    Entry("GET /*/tag/*/status", ("t/ü",), reply={"count": 1}),
    Entry("DELETE /*/tag/*", ("t/ü",), seen=GONE),
    Entry("GET /*/config", reply=CONFIG),
    Entry("PUT /*/config", body=CHANGES, reply={**CONFIG, **CHANGES}, seen={"/<realm>/config": {**CONFIG, **CHANGES}}),
    Entry("POST /*/config", body=CONFIG_2013, seen=CONFIGURED_2013),
    Entry("GET /*/status", reply=STATUS),
    Entry("DELETE /*/", seen={"/<realm>/status": NO_STATUS}),
    Entry("PUT /*/shard", body={"shard": 1}, seen={SHARDS: shards({}, {"<realm>": {"jobs": 3, "pinned": True}})}),
    Entry("DELETE /*/shard", seen={SHARDS: shards({"<realm>": {"jobs": 3, "pinned": False}}, {})}),
    Entry("GET /*/events", reply=EVENT, content_type=EVENTS),
    # over realms
    Entry("GET /", reply=Has({"<realm>": STATUS})),
    Entry("POST /pull", body={**PULL, "realms": ["<other>", "<realm>"]}, reply=given(realm="<realm>"), seen=PULLED),
    Entry("POST /jobs", body={"jobs": BULK}, seen={NEW: ADDED, "/<other>/job/new": ADDED}),
    Entry("DELETE /jobs", body={"jobs": [["<other>", "none"], ["<realm>", "a/b"]]}, seen=GONE),
    Entry("GET /events", reply=EVENT, content_type=EVENTS),
    # the server
    Entry("GET /performance", reply=Has({"add_job": TIMING, "nack": TIMING})),
    Entry("GET /performance/shards", reply=shards({"<realm>": {"jobs": 3, "pinned": True}}, {})),
    Entry("GET /metrics", reply=METRICS, content_type=TEXT),
    Entry("GET /healthz"),
    Entry("GET /readyz"),
    # what changes something by GET, as in 2013
    Entry("GET /*/job", query="count=2&max-queue=last", reply={"a/b": [1, DATA]}, seen=CHECKED_OUT),
    Entry("GET /job", query=QUERY_2013, reply={"a/b": ["<realm>", 1, DATA]}, seen=CHECKED_OUT),
    Entry("GET /*/job/*/from_q/*/to_q/*", ("a/b", "1", "q 9"), seen=MOVED),
    Entry("GET /*/queues/*/clear", ("1",), seen=CLEARED),
]


# -- what is asked -----------------------------------------------------------------------------------------------------


class Scene:
    """A realm in shard 0 with a job `a/b` that is ready, `held` that is leased, and `dead`; and the words for it."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        realm = RealmCalls(server, next(names_on(0, name)))
        realm.settings(max_jobs=900, keep_done={"count": 9})
        realm.ask("PUT", "shard", {"shard": 0}).ok()
        realm.add("dead", "q/2", tags=["grave"], max_attempts=1).ok()
        realm.post("nack", leases=[realm.lease()]).ok()
        realm.add("held", 3, tags=["work"]).ok()
        lease = realm.lease(worker="w", lease_time=900)
        realm.add("a/b", 1, data=DATA, tags=["t/ü"]).ok()
        cursors = {kind: encoded(realm.ask("GET", f"{kind}?limit=1").ok()["cursor"]) for kind in ("jobs", "tags")}
        self.words = {"realm": realm.name, "other": next(names_on(1, name)), "lease": lease, **cursors}

    def filled(self, said: Any) -> Any:
        """What the table says, with the words of this scene."""
        if isinstance(said, str):
            return re.sub(r"<(\w+)>", lambda word: self.words[word[1]], said)
        if isinstance(said, dict):
            return {self.filled(name): self.filled(value) for name, value in said.items()}
        if isinstance(said, Has):
            return Has(self.filled(said.fields))
        return [self.filled(value) for value in said] if isinstance(said, list) else said

    def request(self, entry: Entry, headers: Mapping[str, str] = JSON) -> tuple[str, str, bytes, Mapping[str, str]]:
        """The request of an entry: method, target, body in the encoding that the headers name, headers."""
        method, path = entry.route.split()
        ids = iter([self.words["realm"], *entry.ids])
        target = re.sub(r"\*", lambda _: encoded(next(ids)), path) + (entry.query and f"?{self.filled(entry.query)}")
        encode = msgpack.packb if headers is MSGPACK else lambda body: json.dumps(body).encode()
        return method, target, b"" if entry.body is None else encode(self.filled(entry.body)), headers

    def see(self, entry: Entry) -> dict[str, Any]:
        """What is seen now where an entry says that something is to be seen."""
        return {target: ask(self.server, "GET", target).json for target in self.filled(entry.seen)}

    def sees_none_of(self, entry: Entry) -> bool:
        """Whether none of what is seen after the request is seen now."""
        now = self.see(entry)
        return all(now[target] != reply for target, reply in self.filled(entry.seen).items())


@pytest.fixture
def scene(server: Server, realm_name: str) -> Scene:
    return Scene(server, realm_name)


def routes(holds: Callable[[Route], bool] = lambda route: True) -> dict[str, Route]:
    """The routes of which this holds, but for the one that ends HTTP."""
    every = {f"{method} {path}": route for path, methods in ROUTES.items() for method, route in methods.items()}
    every = {name: route for name, route in every.items() if not route.upgrades}
    return {name: route for name, route in every.items() if holds(route)}


def entries(of: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test with each entry of these routes."""
    chosen = [entry for entry in TABLE if entry.route in of]
    return pytest.mark.parametrize("entry", chosen, ids=lambda entry: " ".join([entry.route, *entry.ids]))


STRICT, ENDLESS = routes(lambda route: route.strict), routes(lambda route: route.events)
FIELDS = {(name, field) for name, route in routes().items() for field in route.query}


def test_read_table_has_every_route_with_every_field_of_its_query() -> None:
    assert {entry.route for entry in TABLE} == set(routes())
    assert {(entry.route, name) for entry in TABLE for name in parse_qs(entry.query)} == FIELDS


def test_read_table_says_what_is_seen_of_whatever_changes_something() -> None:
    unseen = {entry.route for entry in TABLE if not entry.seen}
    assert unseen == {name for name, route in routes().items() if name[:4] == "GET " and "2013" not in route.operation}


def test_read_readme_names_the_fields_of_each_query() -> None:
    rows = re.findall(r"^``([A-Z]+) (/.*?)(?=^``|^==)", README, re.MULTILINE | re.DOTALL)
    shown = {
        (f"{method} {re.sub(r'{.*?}', '*', re.split('[?`]', row)[0])}", name)
        for method, row in rows
        for name in re.findall(r"[?&]([a-z-]+)=", row)
    }
    assert shown == FIELDS


@pytest.mark.parametrize("headers", [JSON, MSGPACK], ids=["json", "msgpack"])
@entries(routes().keys() - ENDLESS)
def test_ask_route_answers_and_does_what_the_table_says(scene: Scene, entry: Entry, headers: Mapping[str, str]) -> None:
    assert scene.sees_none_of(entry)
    answer = ask(scene.server, *scene.request(entry, headers))
    content_type = answer.headers["content-type"].partition(";")[0]
    assert (answer.status, content_type) == (200, entry.content_type or headers["Content-Type"]), answer
    assert DECODE[content_type](answer.body) == scene.filled(entry.reply)
    assert scene.see(entry) == scene.filled(entry.seen)


@contextlib.contextmanager
def begun(scene: Scene, entry: Entry, headers: Mapping[str, str] = JSON) -> Iterator[http.client.HTTPResponse]:
    """The response to the request of an entry, which may have no end."""
    with connect(scene.server) as connection:
        connection.sendall(raw_request(*scene.request(entry, headers)))
        response = http.client.HTTPResponse(connection)
        response.begin()
        yield response


def told(response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """The events of a stream: kind and data."""
    kind = ""
    while line := response.readline().decode():
        name, _, value = line.strip().partition(": ")
        if name == "data":
            yield kind, json.loads(value)
        kind = value if name == "event" else kind


@pytest.mark.parametrize("headers", [{}, MSGPACK], ids=["any", "msgpack"])
@entries(ENDLESS)
def test_listen_to_stream_tells_what_happens(scene: Scene, entry: Entry, headers: Mapping[str, str]) -> None:
    with begun(scene, entry, headers) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, entry.content_type)
        events = told(response)
        assert any(kind == "counts" and scene.words["realm"] in data for kind, data in events)  # from now on
        ask(scene.server, "PUT", scene.filled(NEW), ADD).ok()
        assert ("added", scene.filled(entry.reply)) in events


@entries(STRICT)
def test_ask_strict_route_with_unknown_field_in_query_is_refused_and_does_nothing(scene: Scene, entry: Entry) -> None:
    with begun(scene, replace(entry, query="nonsense=1")) as response:
        assert response.status == 400
        assert json.load(response) == Has({"code": "field_invalid", "field": "nonsense"})
    assert scene.sees_none_of(entry)


@entries(routes().keys() - STRICT)
def test_ask_route_that_is_not_strict_with_unknown_field_in_query_answers(scene: Scene, entry: Entry) -> None:
    request = scene.request(replace(entry, query=f"{entry.query}&nonsense=1"))
    assert ask(scene.server, *request).status == 200


@pytest.mark.parametrize("path", ROUTES)
def test_ask_path_with_another_method_is_405_that_lists_those_it_takes(server: Server, path: str) -> None:
    for method in METHODS - ROUTES[path].keys():
        answer = ask(server, method, path.replace("*", "x"))
        answer.refused(405, "ValueError", "method_not_allowed")
        assert sorted({*answer.headers["allow"].split(", ")} - {"HEAD"}) == sorted(ROUTES[path])
