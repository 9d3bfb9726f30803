"""The two encodings of bodies: JSON, which shards read and write, and msgpack, which is turned into it and back."""

from __future__ import annotations

import json
import re

import msgpack

from restq.bodies import COUNT_MAX
from restq.errors import BodyMalformed, ContentTypeUnsupported
from restq.web.unpacking import counting

JSON_TYPE = "application/json"
MSGPACK_TYPE = "application/msgpack"
# Types under which JSON arrives: what clients of 2013, curl and browsers send when nobody says otherwise.
JSON_TYPES = frozenset(
    {"", JSON_TYPE, "text/plain", "text/json", "application/x-www-form-urlencoded", "application/octet-stream"}
)

VALUES_MAX = 20 * COUNT_MAX  # in one msgpack body: twenty for each of the jobs that it may have

_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")  # RFC 9110, 12.4.2


def json_of(body: bytes, content_type: str) -> bytes:
    """The body of a request as JSON. Raises ContentTypeUnsupported, or BodyMalformed where msgpack can't be turned."""
    content_type = content_type.partition(";")[0].strip().lower()
    if content_type == MSGPACK_TYPE:
        return _from_msgpack(body) if body else body
    if body and content_type not in JSON_TYPES and not content_type.endswith("+json"):
        raise ContentTypeUnsupported(
            f"Content-Type: {ascii(content_type)[:80]} is not understood; send {JSON_TYPE} or {MSGPACK_TYPE}"
        )
    return body


def prefers_msgpack(accept: str) -> bool:
    """Whether an `Accept` names msgpack and prefers it to JSON: by q, or, where these are equal, by naming it first.

    A wildcard stands for JSON where JSON is not named. There is always an answer: JSON if all else is refused.
    """
    if "msgpack" not in accept.lower():  # as nearly always
        return False
    ranges: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *params = (word.strip() for word in part.split(";"))
        ranges.setdefault(name, _quality(params))
    asked = ranges.get(MSGPACK_TYPE, 0.0)
    if not asked:
        return False
    if JSON_TYPE in ranges:
        order = list(ranges)
        is_first = order.index(MSGPACK_TYPE) < order.index(JSON_TYPE)
        return asked > ranges[JSON_TYPE] or (asked == ranges[JSON_TYPE] and is_first)
    return asked >= ranges.get("application/*", ranges.get("*/*", 0.0))


def _quality(params: list[str]) -> float:
    """The q among the parameters of a range; 1 where there is none, or none that is a number from 0 to 1."""
    for param in params:
        name, _, value = param.partition("=")
        if name.strip() == "q" and _QUALITY.fullmatch(value.strip()):
            return float(value)
    return 1.0


def msgpack_of(body: bytes) -> bytes:
    """The msgpack of a reply's JSON."""
    packed: bytes = msgpack.packb(json.loads(body))
    return packed


def _from_msgpack(body: bytes) -> bytes:
    """The JSON of a msgpack body; refuses what JSON has no word for."""
    try:
        _, limits = counting(len(body), VALUES_MAX)
        value = msgpack.unpackb(body, strict_map_key=True, **limits)
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        why = str(error) or "it is nested too deeply or not complete"
        raise BodyMalformed(f"the body is not msgpack that is turned into JSON: {why}") from None
