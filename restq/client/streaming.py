"""A call as an operation of a stream: what `docs/stream.rst` says, for both clients. No input or output, no clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack

from restq import routes
from restq.client.call import Call, path
from restq.errors import UNANSWERED_IS_UNDONE, Overloaded, RestqError

REFUSED_SECONDS = 10.0  # for which no other stream to a realm is tried, after one was refused
REFUSALS_MAX = 10_000  # that are kept in mind: a client may see any number of realms


class Refusals:
    """The realms to which the server opened no stream lately: their calls go over HTTP at once.

    By realm, and not for all of them: a server refuses a name that can be no realm's, and what is behind a proxy may
    differ from path to path. Threads may share it.
    """

    def __init__(self) -> None:
        self._ends_at: OrderedDict[str, float] = OrderedDict()

    def add(self, realm: str, now: float) -> None:
        """The server refused. `now` is any steady clock's."""
        self._ends_at[realm] = now + REFUSED_SECONDS
        if len(self._ends_at) > REFUSALS_MAX:
            self._ends_at.popitem(last=False)

    def hold(self, realm: str, now: float) -> bool:
        """Whether it would refuse again, as far as is known."""
        ends_at = self._ends_at.get(realm)
        if ends_at is None:
            return False
        if now < ends_at:
            return True
        self._ends_at.pop(realm, None)
        return False


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
