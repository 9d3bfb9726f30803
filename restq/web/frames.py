"""What is said over a stream: msgpack arrays that come, read and checked, and those that leave. No sockets.

A client says `[id, operation, params, body]`, or with an idempotency key as a fifth. The server says `[id, status,
body]`. Operations and their parameters are those of the route table; bodies are the JSON of HTTP, in either direction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

from restq.errors import BodyMalformed, BodyTooLarge, FieldInvalid, FieldTypeWrong, RestqError, RouteNotFound
from restq.routes import REALM_OPERATIONS, Route
from restq.web import once
from restq.web.unpacking import counting

FRAME = "[id, operation, params, body] or [id, operation, params, body, key]"
END = object()  # of a message
VALUES_MAX = 1_000  # in one frame, which has two arrays and few params
NUMBER_TYPES = frozenset({int, float})

_packer = msgpack.Packer(autoreset=True)


class Asked(NamedTuple):
    """One operation, as `Asking` takes it."""

    route: Route
    params: list[str | None]
    body: bytes
    once: Sequence[str]


class Message:
    """The values of one message, one after the other. Iterating raises BodyMalformed at what is none, or not whole."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._count, limits = counting(self.size, VALUES_MAX)
        self._unpacker = msgpack.Unpacker(max_buffer_size=max(self.size, 1), read_size=1, **limits)
        self._unpacker.feed(content)
        self._whole_size = 0  # of the values so far

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._count.so_far = 0
        try:
            value = next(self._unpacker)
            self._whole_size = self._unpacker.tell()
            return value
        except StopIteration:
            if self._whole_size != self.size:
                raise BodyMalformed("the message ends within a value") from None
            raise
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise BodyMalformed(f"the message is not msgpack of frames: {str(error) or type(error).__name__}") from None


def request_id(frame: Any) -> int:
    """The id that a client gave to a frame. Raises BodyMalformed where there is none: then nobody could be answered."""
    if type(frame) is not list or not frame or type(frame[0]) is not int:
        raise BodyMalformed(f"each value of a message is {FRAME}, where id is an integer")
    found: int = frame[0]
    return found


def read(frame: list[Any], realm: str, body_bytes_max: int) -> Asked:
    """What a frame asks of a realm. Raises what HTTP would raise."""
    if not 4 <= len(frame) <= 5:
        raise FieldInvalid(f"a frame is {FRAME}")
    _, operation, params, body, *rest = frame
    if type(operation) is not str:
        raise FieldTypeWrong("operation: is a string", "operation")
    found = REALM_OPERATIONS.get(operation)
    if found is None:
        raise RouteNotFound(f"{operation[:80]!a} is no operation of one realm: see the HTTP table in the README")
    if type(body) is not bytes:
        body = _encoded(body)
    if len(body) > body_bytes_max:
        raise BodyTooLarge(f"the body is larger than the {body_bytes_max} bytes that this server takes")
    said = _params(params, found.id_count, len(found.route.query))
    key = rest[0] if rest else None
    if key is None or found.method != "POST":
        return Asked(found.route, said, body, ())
    if type(key) is not str:
        raise FieldTypeWrong("key: is a string", "key")
    path = "\0".join((operation, realm, *map(str, said[: found.id_count])))
    return Asked(found.route, said, body, once.read_once(key, found.method, path, body))


def _encoded(body: Any) -> bytes:
    if body is None:
        return b""
    if type(body) is str:
        return body.encode()
    raise FieldTypeWrong("body: is JSON, in bytes or in a string, or nil", "body")


def _params(params: Any, id_count: int, field_count: int) -> list[str | None]:
    """The ids and the fields as text, as they come from a path; fields that are left out are None."""
    if type(params) is not list:
        raise FieldTypeWrong("params: is an array", "params")
    left = id_count + field_count - len(params)
    if left < 0 or left > field_count:
        wanted = f"{id_count} ids and {field_count} fields"
        raise FieldInvalid(f"params: there are {len(params)} where {wanted} go", "params")
    said: list[str | None] = params
    for index, value in enumerate(params):
        if type(value) is str or (value is None and index >= id_count):
            continue
        if type(value) not in NUMBER_TYPES:
            raise FieldTypeWrong(f"params[{index}]: is a string or a number, or nil for a field", f"params[{index}]")
        said[index] = str(value)
    return said + [None] * left if left else said


def reply(to: int | None, status: int, body: bytes) -> bytes:
    """The frame of a reply; `to` nobody's request it is nil."""
    frame: bytes = _packer.pack((to, status, body))
    return frame


def refusal(to: int | None, error: RestqError) -> bytes:
    """The frame of an error."""
    return reply(to, error.status, json.dumps(error.to_reply()).encode())
