"""The route table: which path and method is which operation. A literal segment wins over a named one.

Front ends find in it what a request asks, and the clients what a call is called over a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from restq.errors import BodyMalformed, FieldInvalid, MethodNotAllowed, RouteNotFound


class ShardOperation(NamedTuple):
    """What the shard is asked in the stead of a route's own operation, params and, unless it `takes_body`, body."""

    operation: str
    params: tuple[int, ...]
    takes_body: bool


class Route(NamedTuple):
    """An operation, and the names of the query fields that follow the path's ids as its parameters.

    `leases`: its reply gives leases, which are undone if the client is gone by then. `waits`: its answer may take its
    time, and can be had at once. `strict`: query fields that it does not know are refused. `events`: it is answered
    by events, for as long as the client listens. `changes`: a GET of 2013 that changes what the server holds. `undoes`:
    where its reply does not fit into memory it is as if nothing was done, as for every GET: a lease is undone.
    `upgrades`: the connection is a WebSocket from then on. `at_shard`: where two routes are one operation of the shard.
    """

    operation: str
    query: tuple[str, ...] = ()
    leases: bool = False
    waits: bool = False
    strict: bool = False
    events: bool = False
    changes: bool = False
    undoes: bool = False
    upgrades: bool = False
    at_shard: ShardOperation | None = None


def _new(operation: str, *query: str, leases: bool = False, waits: bool = False, events: bool = False) -> Route:
    """A route that 2013 did not have: a slip in its query is noticed."""
    return Route(operation, query, leases, waits, True, events)


# A `*` stands for one percent-encoded id; where the first segment is one, it is the realm's name.
ROUTES: dict[str, dict[str, Route]] = {
    "/": {"GET": Route("get_statuses")},
    "/healthz": {"GET": Route("get_health")},
    "/readyz": {"GET": Route("get_readiness")},
    "/performance": {"GET": Route("get_performance")},
    "/performance/shards": {"GET": Route("get_shards")},
    "/metrics": {"GET": Route("get_metrics")},
    "/job": {"GET": Route("pull_everywhere_2013", ("count", "realms", "max-queue"), changes=True)},
    "/pull": {"POST": Route("pull_everywhere", waits=True, undoes=True)},
    "/jobs": {"POST": Route("bulk_add"), "DELETE": Route("bulk_remove")},
    "/events": {"GET": _new("get_all_events", events=True)},
    "/*/events": {"GET": _new("get_events", events=True)},
    "/*/": {"DELETE": Route("delete_realm")},
    "/*/stream": {"GET": Route("open_stream", strict=True, upgrades=True)},
    "/*/status": {"GET": Route("get_status")},
    "/*/config": {"POST": Route("configure_2013"), "GET": _new("get_config"), "PUT": _new("configure")},
    "/*/shard": {
        "PUT": Route("pin_realm", at_shard=ShardOperation("place_realm", (1,), takes_body=True)),
        "DELETE": Route("unpin_realm", at_shard=ShardOperation("place_realm", (0,), takes_body=False)),
    },
    "/*/job": {"GET": Route("pull_2013", ("count", "max-queue"), leases=True, changes=True)},
    "/*/pull": {"POST": Route("pull", leases=True, waits=True, undoes=True)},
    "/*/ack": {"POST": _new("ack")},
    "/*/nack": {"POST": _new("nack")},
    "/*/release": {"POST": _new("release")},
    "/*/extend": {"POST": _new("extend")},
    "/*/exchange": {"POST": _new("exchange", leases=True)},
    "/*/redrive": {"POST": _new("redrive")},
    "/*/jobs": {
        "POST": Route("add_jobs"),
        "DELETE": Route("remove_jobs"),
        "GET": _new("list_jobs", "state", "queue", "tag", "prefix", "limit", "cursor", "data"),
    },
    "/*/job/*": {"PUT": Route("add_job"), "GET": Route("get_job"), "DELETE": Route("remove_job")},
    "/*/job/*/move": {"POST": Route("move_job")},
    "/*/job/*/cancel": {"POST": _new("cancel_job")},
    "/*/job/*/explain": {"GET": _new("explain_job")},
    "/*/job/*/from_q/*/to_q/*": {"GET": Route("move_job_2013", changes=True)},
    "/*/tag/*": {"GET": Route("get_tagged_jobs"), "DELETE": Route("remove_tagged_jobs")},
    "/*/tag/*/status": {"GET": Route("get_tag_status")},
    "/*/queues": {"GET": _new("get_queues")},
    "/*/queues/*": {"GET": _new("get_queue"), "PUT": _new("configure_queue")},
    "/*/queues/*/clear": {"POST": Route("clear_queue"), "GET": Route("clear_queue_2013", changes=True)},
    "/*/tags": {"GET": _new("get_tags", "prefix", "limit", "cursor")},
    "/*/tags/*": {"GET": _new("get_tag", "wait", waits=True), "PUT": _new("configure_tag")},
    "/*/tags/*/redrive": {"POST": _new("redrive_tagged_jobs")},
    "/*/tags/*/move": {"POST": _new("move_tagged_jobs")},
    "/*/tags/*/cancel": {"POST": _new("cancel_tagged_jobs")},
}


class Match(NamedTuple):
    """What a request line means: the route, the ids of its path, decoded, and its query fields, None if not given."""

    route: Route
    ids: list[str]
    query: list[str | None]

    @property
    def path(self) -> str:
        """What the path means: the same for all ways to encode it."""
        return "\0".join((self.route.operation, *self.ids))


_Pattern = tuple[tuple[str, ...], dict[str, Route]]


def _key(segments: Sequence[str]) -> tuple[int, str]:
    """Under what a path is looked up: its length, and its second segment, which is a literal in every pattern."""
    return len(segments), segments[1] if len(segments) > 1 else ""


def _by_key() -> dict[tuple[int, str], list[_Pattern]]:
    table: dict[tuple[int, str], list[_Pattern]] = {}
    for path, methods in ROUTES.items():
        segments = tuple(path[1:].split("/"))
        table.setdefault(_key(segments), []).append((segments, _completed(methods)))
    return table


def _completed(methods: dict[str, Route]) -> dict[str, Route]:
    """With what holds for every GET: it undoes, and answers a HEAD unless it changes something, or never ends."""
    route = methods.get("GET")
    if route is None:
        return methods
    methods = {**methods, "GET": route._replace(undoes=True)}
    return methods if route.changes or route.events or route.upgrades else {**methods, "HEAD": route}


_PATTERNS = _by_key()


class RealmOperation(NamedTuple):
    """An operation of one realm, where it is asked for by its name: over a stream."""

    route: Route
    method: str
    id_count: int  # of ids after the realm: the first of its parameters; the query's fields follow


def _realm_operations() -> dict[str, RealmOperation]:
    table: dict[str, RealmOperation] = {}
    for path, methods in ROUTES.items():
        if path.startswith("/*/"):
            for method, route in _completed(methods).items():
                if method != "HEAD" and not route.events and not route.upgrades:
                    assert route.operation not in table, "a name stands for one operation"
                    table[route.operation] = RealmOperation(route, method, path.count("*") - 1)
    return table


REALM_OPERATIONS = _realm_operations()


def match(method: str, target: str) -> Match:
    """Find the route of a request. Raises RouteNotFound, MethodNotAllowed, or BodyMalformed for bad encoding."""
    path, _, query_text = target.partition("?")
    segments = path[1:].split("/")
    for pattern, methods in _PATTERNS.get(_key(segments), ()):
        if not path.startswith("/") or not _fits(pattern, segments):
            continue
        route = methods.get(method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise MethodNotAllowed(f"{_shown(path)} does not take {ascii(method)[:20]}; it takes {allowed}", allowed)
        ids = [_decode(segment) for literal, segment in zip(pattern, segments, strict=True) if literal == "*"]
        if not route.query and not (route.strict and query_text):
            return Match(route, ids, [])
        fields = _fields(route, query_text)
        return Match(route, ids, [fields.get(name) for name in route.query])
    raise RouteNotFound(f"there is nothing at {_shown(path)}: see the HTTP table in the README")


def _fits(pattern: Sequence[str], segments: Sequence[str]) -> bool:
    pairs = zip(pattern, segments, strict=True)
    return all(literal == segment or (literal == "*" and segment) for literal, segment in pairs)


def _fields(route: Route, query_text: str) -> dict[str, str]:
    """The fields of a query. Raises FieldInvalid where a strict route knows one of them not, or twice."""
    if not route.strict:
        return dict(parse_qsl(query_text, keep_blank_values=True))
    fields: dict[str, str] = {}
    try:
        for name, value in parse_qsl(query_text, keep_blank_values=True, errors="strict"):
            if name not in route.query:
                field = name if name and name.isprintable() else ascii(name)
                raise FieldInvalid(f"{field}: there is no such field in this query", field)
            if name in fields:
                raise FieldInvalid(f"{name}: is given twice", name)
            fields[name] = value
    except UnicodeDecodeError:
        raise BodyMalformed(f"the query is not percent-encoded UTF-8: {_shown(query_text)}") from None
    return fields


def _decode(segment: str) -> str:
    if segment.isascii() and "%" not in segment:
        return segment
    try:
        return unquote_to_bytes(segment.encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise BodyMalformed(f"the path holds an id that is not percent-encoded UTF-8: {_shown(segment)}") from None


def _shown(path: str) -> str:
    return ascii(path if len(path) <= 80 else path[:77] + "...")
