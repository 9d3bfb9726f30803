"""Requests and replies between a front end and a shard, and their frames: bytes in, records out. No sockets.

A frame is one msgpack array, written after the other without a header: msgpack knows where a value ends.
Bodies are the bytes of HTTP, carried as they came; only the shard reads them, only a client reads the reply's.
Front ends and shards are of one installation, so frames carry no version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

FRAME_BYTES_MAX = 1 << 30  # what the unpacker may hold; bodies are bounded long before, at the door

MOVED = 301  # internal: the realm lives in the shard that `extra` names; ask there. Never reaches a client


class Request(NamedTuple):
    """One operation on one realm, or, with an empty `realm`, on all that the shard holds.

    `once`: the idempotency key and the digest of what was asked under it, or nothing. `waited`: for how many seconds
    it waited before, for realms that live elsewhere by now or in a shard that went away: that counts.
    """

    request_id: int
    operation: str
    realm: str
    params: list[Any]
    body: bytes
    once: Sequence[str] = ()
    waited: float = 0


class Reply(NamedTuple):
    """`status` and `body` are HTTP's.

    `extra` is the number of the pull (0: none leased), the shard for MOVED, or for "recall" of the last arrival.
    """

    request_id: int
    status: int
    body: bytes
    extra: int = 0


_packer = msgpack.Packer(autoreset=True)


def pack(record: Request | Reply) -> bytes:
    """The frame of one record."""
    frame: bytes = _packer.pack(record)
    return frame


class Frames:
    """Takes bytes as they come and gives the arrays that are complete."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=FRAME_BYTES_MAX, use_list=True)

    def feed(self, received: bytes) -> Iterator[list[Any]]:
        """The fields of each frame that these bytes complete, in order."""
        self._unpacker.feed(received)
        return iter(self._unpacker)
