"""The route table: which path and method is which operation. A literal segment wins over a named one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from restq.errors import BodyMalformed, MethodNotAllowed, RouteNotFound


class Route(NamedTuple):
    """An operation, and the names of the query fields that follow the path's ids as its parameters.

    `leases`: its reply gives leases, which are undone if the client is gone by then.
    """

    operation: str
    query: tuple[str, ...] = ()
    leases: bool = False


# A `*` stands for one percent-encoded id; where the first segment is one, it is the realm's name.
ROUTES: dict[str, dict[str, Route]] = {
    "/": {"GET": Route("get_statuses")},
    "/healthz": {"GET": Route("get_health")},
    "/readyz": {"GET": Route("get_readiness")},
    "/performance": {"GET": Route("get_performance")},
    "/performance/shards": {"GET": Route("get_shards")},
    "/metrics": {"GET": Route("get_metrics")},
    "/job": {"GET": Route("pull_everywhere_2013", ("count", "realms", "max-queue"))},
    "/pull": {"POST": Route("pull_everywhere")},
    "/jobs": {"POST": Route("bulk_add"), "DELETE": Route("bulk_remove")},
    "/*/": {"DELETE": Route("delete_realm")},
    "/*/status": {"GET": Route("get_status")},
    "/*/config": {"POST": Route("configure")},
    "/*/shard": {"PUT": Route("pin_realm"), "DELETE": Route("unpin_realm")},
    "/*/job": {"GET": Route("pull_2013", ("count", "max-queue"), leases=True)},
    "/*/pull": {"POST": Route("pull", leases=True)},
    "/*/jobs": {"POST": Route("add_jobs"), "DELETE": Route("remove_jobs")},
    "/*/job/*": {"PUT": Route("add_job"), "GET": Route("get_job"), "DELETE": Route("remove_job")},
    "/*/job/*/move": {"POST": Route("move_job")},
    "/*/job/*/from_q/*/to_q/*": {"GET": Route("move_job_2013")},
    "/*/tag/*": {"GET": Route("get_tagged_jobs"), "DELETE": Route("remove_tagged_jobs")},
    "/*/tag/*/status": {"GET": Route("get_tag_status")},
    "/*/queues/*/clear": {"POST": Route("clear_queue"), "GET": Route("clear_queue_2013")},
}


class Match(NamedTuple):
    """What a request line means: the route, the ids of its path, decoded, and its query fields, None if not given."""

    route: Route
    ids: list[str]
    query: list[str | None]


_Pattern = tuple[tuple[str, ...], dict[str, Route]]


def _by_length() -> dict[int, list[_Pattern]]:
    table: dict[int, list[_Pattern]] = {}
    for path, methods in ROUTES.items():
        segments = tuple(path[1:].split("/"))
        table.setdefault(len(segments), []).append((segments, methods))
    return table


_PATTERNS = _by_length()


def match(method: str, target: str) -> Match:
    """Find the route of a request. Raises RouteNotFound, MethodNotAllowed, or BodyMalformed for bad encoding."""
    path, _, query_text = target.partition("?")
    segments = path[1:].split("/")
    for pattern, methods in _PATTERNS.get(len(segments), ()):
        if not path.startswith("/") or not _fits(pattern, segments):
            continue
        route = methods.get(method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise MethodNotAllowed(f"{_shown(path)} does not take {ascii(method)[:20]}; it takes {allowed}", allowed)
        ids = [_decode(segment) for literal, segment in zip(pattern, segments, strict=True) if literal == "*"]
        if not route.query:
            return Match(route, ids, [])
        fields = dict(parse_qsl(query_text, keep_blank_values=True))
        return Match(route, ids, [fields.get(name) for name in route.query])
    raise RouteNotFound(f"there is nothing at {_shown(path)}: see the HTTP table in the README")


def _fits(pattern: Sequence[str], segments: Sequence[str]) -> bool:
    pairs = zip(pattern, segments, strict=True)
    return all(literal == segment or (literal == "*" and segment) for literal, segment in pairs)


def _decode(segment: str) -> str:
    if segment.isascii() and "%" not in segment:
        return segment
    try:
        return unquote_to_bytes(segment.encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise BodyMalformed(f"the path holds an id that is not percent-encoded UTF-8: {_shown(segment)}") from None


def _shown(path: str) -> str:
    return ascii(path if len(path) <= 80 else path[:77] + "...")
