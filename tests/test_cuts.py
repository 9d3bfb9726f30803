"""Connections that are cut at any byte of a request or a reply: what is sent again under its key is done once.

What a request does that was cut and sent again is compared with what the same request does elsewhere uncut. In each run
a few bytes of each; RESTQ_TEST_LONG=1 cuts at every byte.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from conftest import Server
from longrun import seeds, trials
from proxy import REPLY, REQUEST, Cut, Proxy, proxy
from realm_calls import KEY, RealmCalls
from twins import QUADRUPLETS, Loop, Twin, twins
from wire import JSON, connect, names_on, raw_request, received

from restq.client import peer
from restq.errors import ServerUnreachable

ATTEMPTS_MAX = 8
CUTS = trials(3, 10_000)  # of the bytes of each request, and of each reply: all there are, if that is fewer
CLIENT_CUTS = trials(1, 12)
LENGTHS_DIFFER = 9  # bytes, of replies to the same request: ids and instants
SEED = seeds(1, 1)[0]


class Asked(NamedTuple):
    """A request: where over HTTP, and which method of the clients."""

    path: str
    body: Any
    method: str
    given: dict[str, Any]
    over_realms: bool = False


def asked(names: list[str], lease: str) -> dict[str, Asked]:
    """What is asked of realms like `Pair`: to do any of it twice, or half, shows."""
    one = names[0]
    jobs = [{"job_id": f"new {n}", "queue_id": 0, "data": n, "tags": ["new"], "on_conflict": "error"} for n in range(3)]
    everywhere = [{**job, "realm_id": name} for name in names for job in jobs]
    exchange = {"ack": {"leases": [lease], "result": 5}, "add": jobs, "pull": {"count": 1, "lease_time": 3600}}
    move = {"from_queue": 0, "to_queue": 2}
    pull = {"count": 1, "lease_time": 3600}
    return {
        "add": Asked(f"/{one}/jobs", {"jobs": jobs}, "bulk_add", {"jobs": jobs}),
        "add over realms": Asked("/jobs", {"jobs": everywhere}, "bulk_add", {"jobs": everywhere}, True),
        "pull": Asked(f"/{one}/pull", pull, "pull_jobs", pull),
        "pull that waits": Asked(f"/{one}/pull", {**pull, "wait": 9}, "pull_jobs", {**pull, "wait": 9}),
        "pull over realms": Asked("/pull", {**pull, "realms": names}, "pull_jobs", {**pull, "realms": names}, True),
        "ack": Asked(f"/{one}/ack", {"leases": [lease], "result": 5}, "ack", {"leases": lease, "result": 5}),
        "nack": Asked(f"/{one}/nack", {"leases": [lease], "error": "e"}, "nack", {"leases": lease, "error": "e"}),
        "release": Asked(f"/{one}/release", {"leases": [lease]}, "release", {"leases": lease}),
        "extend": Asked(
            f"/{one}/extend", {"leases": [lease], "lease_time": 7200}, "extend", {"leases": lease, "lease_time": 7200}
        ),
        "exchange": Asked(f"/{one}/exchange", exchange, "exchange", exchange),
        "move": Asked(f"/{one}/job/a/move", move, "move_job", {"job_id": "a", "from_q": 0, "to_q": 2}),
        "move tag": Asked(f"/{one}/tags/t/move", move, "move_tagged_jobs", {"tag": "t", **move}),
        "cancel": Asked(f"/{one}/job/a/cancel", None, "cancel_job", {"job_id": "a"}),
        "cancel tag": Asked(f"/{one}/tags/t/cancel", None, "cancel_tagged_jobs", {"tag": "t"}),
        "redrive": Asked(f"/{one}/redrive", {"queue": 1}, "redrive", {"queue": 1}),
        "clear": Asked(f"/{one}/queues/0/clear", None, "clear_queue", {"queue_id": 0}),
    }


OPERATIONS = list(asked(["", ""], ""))


class Pair:
    """Two realms of both shards with jobs in every state; `lease` is one that holds, of the first."""

    def __init__(self, server: Server) -> None:
        prefix = f"cut-{uuid.uuid4().hex[:8]}"
        self.names = [next(names_on(shard, prefix)) for shard in (0, 1)]
        self.realms = [RealmCalls(server, name) for name in self.names]
        first = self.realms[0]
        first.settings(keep_done={"count": 9})
        first.queue_settings(1, max_attempts=1)
        first.add_all("dead", queue_id=1)
        first.post("nack", leases=[first.lease()]).ok()
        first.add_all("held", "a", "b", tags=["t"])
        self.lease = first.lease(lease_time=3600)
        self.realms[1].add_all("c", queue_id=1)

    def asked(self, operation: str) -> Asked:
        return asked(self.names, self.lease)[operation]

    def state(self) -> Any:
        """All that can be seen of them but for what no two realms share."""
        shown = []
        for realm in self.realms:
            jobs = [(job, [_place(place) for place in job.pop("queues")]) for job in realm.list("data=1")]
            done = [(job["job_id"], job["attempt"], job["result"]) for job in realm.list("state=done")]
            shown.append((jobs, done, realm.ask("GET", "status").ok()))
        return shown

    def leveled(self, answer: Any) -> Any:
        """An answer but for what no two realms share."""
        text = json.dumps(answer)
        for number, known in enumerate((*self.names, self.lease)):
            text = text.replace(json.dumps(known), f'"#{number}"')
        return _without_leases(json.loads(text))


def _place(place: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in place.items() if not name.endswith("_at")}


def _without_leases(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_leases(item) for name, item in value.items() if name not in _UNIQUE}
    if isinstance(value, list):
        return [_without_leases(item) for item in value]
    return 0 if isinstance(value, float) else value  # instants


_UNIQUE = ("lease_id", "lease_expires_at")


def sent_until_answered(port: int, request: bytes) -> tuple[Any, int]:
    """What a client is answered in the end that sends the same again over a new connection, and how often it did."""
    for attempt in range(ATTEMPTS_MAX):
        with connect_to(port) as connection, contextlib.suppress(OSError, http.client.HTTPException):
            connection.sendall(request)
            answer = received(connection, "POST")
            if answer.body:  # else its headers were cut, which `http.client` takes for their end
                return answer.ok(), attempt
    raise AssertionError(f"not answered {ATTEMPTS_MAX} times")


def connect_to(port: int) -> Any:
    return connect(_Port(port))  # type: ignore[arg-type]


class _Port(NamedTuple):
    port: int


def written(this: Asked, key: str) -> bytes:
    body = b"" if this.body is None else json.dumps(this.body).encode()
    return raw_request("POST", this.path, body, {**JSON, KEY: key})


def spread(length: int, count: int, chance: random.Random) -> list[int]:
    """So many of the places of 0 to `length`, the first and the last among them; all, if that is no more."""
    if count > length:
        return list(range(length + 1))
    return sorted({0, length, *chance.sample(range(1, length), max(count - 2, 0))})


@pytest.fixture(scope="module")
def way(server: Server) -> Iterator[Proxy]:
    with proxy(server.port) as made:
        yield made


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients pause a little between two tries."""
    monkeypatch.setattr(peer, "RETRY_SECONDS_MIN", 0.001)


def cuts_of(lengths: dict[str, int], count: int) -> Iterator[tuple[Cut, ...]]:
    """One cut at a time, as FIN or RST; where there are many, now and then two or three in a row."""
    chance = random.Random(SEED)
    for direction in (REQUEST, REPLY):
        for number, at in enumerate(spread(lengths[direction], count, chance)):
            cuts = [Cut(direction, at, number % 2 == 0)]
            while number % 5 == 4 and len(cuts) < 3:
                again = chance.choice((REQUEST, REPLY))
                cuts.append(Cut(again, chance.randrange(lengths[again]), chance.random() < 0.5))
            yield tuple(cuts)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_cut_request_sent_again_under_its_key_is_done_once(
    server: Server, way: Proxy, operation: str, record_property: Callable[[str, object], None]
) -> None:
    uncut = Pair(server)
    way.plan()
    answer, _ = sent_until_answered(way.port, written(uncut.asked(operation), uuid.uuid4().hex))
    lengths = dict(way.passed)
    expected = uncut.leveled(answer), uncut.state()
    plans = list(cuts_of(lengths, CUTS))
    for cuts in plans:
        pair = Pair(server)
        way.plan(*cuts)
        request = written(pair.asked(operation), uuid.uuid4().hex)
        answer, again = sent_until_answered(way.port, request)
        assert (pair.leveled(answer), pair.state()) == expected, f"RESTQ_SEED={SEED}: {cuts}"
        # names of realms and leases have not always as many digits: a cut may come after the end
        ends = {REQUEST: len(request), REPLY: lengths[REPLY] - LENGTHS_DIFFER - 1}
        if all(cut.at <= ends[cut.way] for cut in cuts):
            assert (again, way.cuts_left) == (len(cuts), 0), f"RESTQ_SEED={SEED}: {cuts}"
    record_property("cuts", sum(map(len, plans)))
    print(f"{operation}: {sum(map(len, plans))} cuts")


@pytest.mark.parametrize("operation", ["add over realms", "pull over realms", "exchange"])
def test_send_byte_by_byte_is_one_request_like_any_other(server: Server, way: Proxy, operation: str) -> None:
    whole, slow = Pair(server), Pair(server)
    way.plan()
    expected, _ = sent_until_answered(way.port, written(whole.asked(operation), uuid.uuid4().hex))
    way.byte_by_byte = True
    try:
        answer, again = sent_until_answered(way.port, written(slow.asked(operation), uuid.uuid4().hex))
    finally:
        way.byte_by_byte = False
    assert (slow.leveled(answer), slow.state(), again) == (whole.leveled(expected), whole.state(), 0)


# -- the clients -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


@pytest.fixture(**twins(QUADRUPLETS))
def twin(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Twin]:
    """Each of the two clients, over HTTP and over streams."""
    with contextlib.ExitStack() as stack:
        yield Twin(request.param, loop, stack)


def client_of(twin: Twin, uri: str, this: Asked, names: list[str]) -> Any:
    return twin.realms(uri) if this.over_realms else twin.realm(names[0], uri)


def told(result: Any) -> Any:
    """What a client's method returned, as HTTP says it."""
    if isinstance(result, dict):
        return {name: told(item) for name, item in result.items()}
    if isinstance(result, list):
        return [told(item) for item in result]
    job = getattr(result, "target", result)
    return (job.job_id, job.queue_id, job.data, job.attempt) if hasattr(job, "lease_id") else result


@pytest.mark.parametrize("operation", OPERATIONS)
def test_cut_call_of_a_client_is_sent_again_and_done_once(
    server: Server, way: Proxy, twin: Twin, operation: str
) -> None:
    uncut = Pair(server)
    this = uncut.asked(operation)
    way.plan()
    result = getattr(client_of(twin, way.uri, this, uncut.names), this.method)(**this.given)
    lengths = dict(way.passed)
    expected = uncut.leveled(told(result)), uncut.state()
    for number, cuts in enumerate(cuts_of(lengths, CLIENT_CUTS)):
        pair = Pair(server)
        this = pair.asked(operation)
        client = client_of(twin, way.uri, this, pair.names)
        way.plan()
        if number % 2:  # over a connection that served before, which may be cut while it waits for the call
            client.shards() if this.over_realms else client.get_config()
        way.plan(*cuts)
        result = getattr(client, this.method)(**this.given)
        assert (pair.leveled(told(result)), pair.state()) == expected, f"RESTQ_SEED={SEED}: {cuts}"


@contextlib.contextmanager
def not_known(maybe: bool) -> Iterator[None]:
    """The client says in here that what became of a call is not known; or `maybe`."""
    said = None
    try:
        yield
    except ServerUnreachable as error:
        said = str(error)
    assert maybe if said is None else "is not known" in said, said


@pytest.mark.parametrize("verb", ["add", "remove"])
def test_cut_call_without_a_key_says_that_it_is_not_known_unless_it_is(
    server: Server, way: Proxy, twin: Twin, verb: str
) -> None:
    chance = random.Random(SEED)
    name = f"cut-{uuid.uuid4().hex[:8]}"
    realm = RealmCalls(server, name)
    calls: dict[str, Callable[[Any], Any]] = {
        "add": lambda client: client.add("j", 0, on_conflict="error"),
        "remove": lambda client: client.remove_job("j"),
    }
    before, after = ([], ["j"]) if verb == "add" else (["j"], [])

    def begin() -> None:
        if realm.ids():
            realm.ask("DELETE", "").ok()
        realm.add_all(*before)
        way.plan()

    client = twin.realm(name, way.uri)
    begin()
    calls[verb](client)
    lengths = dict(way.passed)
    assert realm.ids() == after
    begin()
    calls[verb](client)
    handshake = {direction: lengths[direction] - way.passed[direction] for direction in lengths}  # 0 but for a stream
    for direction in (REQUEST, REPLY):
        for at in spread(lengths[direction], CLIENT_CUTS * 4, chance):
            client = twin.realm(name, way.uri)  # with no connection yet
            begin()
            way.plan(Cut(direction, at, chance.random() < 0.5))
            is_whole = direction == REPLY and at == lengths[REPLY]
            # A stream that is cut within its handshake, before anything was asked, is opened again for the call.
            is_unopened = 0 < handshake[direction] >= at
            is_done = False
            with not_known(maybe=is_whole or is_unopened):
                calls[verb](client)
                is_done = True
            possible = [before, after] if is_unopened or at == lengths[direction] else [before]
            if is_done or (direction == REPLY and not is_unopened):
                possible = [after]
            assert realm.ids() in possible, at
