"""A call as an operation of a stream: what `docs/stream.rst` says, for both clients. No input or output, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack

from restq import routes
from restq.client.call import Call, path
from restq.errors import UNANSWERED_IS_UNDONE, Overloaded, RestqError


class Operation(NamedTuple):
    """What is asked of one realm."""

    realm: str
    name: str
    params: list[str | None]

    def frame(self, request_id: int, content: bytes | None, key: str | None) -> bytes:
        """Its frame: one of several in a message."""
        said = (request_id, self.name, self.params, content)
        # Not by one Packer for all: threads share this module, and msgpack without its C mixes up what they pack.
        packed: bytes = msgpack.packb(said if key is None else (*said, key))
        return packed


def operation_of(call: Call[Any]) -> Operation | None:
    """The operation that the call stands for. None where only HTTP has it, or can say what is wrong with it."""
    try:
        found = routes.match(call.verb.upper(), "/" + call.path)
    except RestqError:
        return None
    if found.route.operation not in routes.REALM_OPERATIONS:
        return None
    return Operation(found.ids[0], found.route.operation, [*found.ids[1:], *found.query])


def stream_path(realm: str) -> str:
    """Where the stream of a realm is."""
    return path(realm, "stream")


def replies(message: bytes) -> Iterator[tuple[int | None, int, bytes]]:
    """The id, the status and the body of each reply in a message. ConnectionError where it is none of restq's."""
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(message), 1), read_size=1)
    unpacker.feed(message)
    try:
        for reply in unpacker:
            request_id, status, body = reply
            yield request_id, status, body
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise ConnectionError(f"what came over the stream is no reply: {error}") from None


def ended(code: int | None, reason: str | None) -> Exception:
    """What the end of a stream means to what has no reply: it was not done, or nobody knows."""
    if reason == UNANSWERED_IS_UNDONE:
        return Overloaded("the server ended the stream before it began this; nothing was done, try again")
    return ConnectionError(f"the stream ended with {code or 'no code'}{(reason and f' ({reason})') or ''}")
