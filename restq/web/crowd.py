"""The connections that are closed: those that ask nothing for too long, and, where there are too many, slow readers.

Tornado could time requests by itself, with a future and a timer for each: they take an eighth of its time for a small
request, and 3 KB for a connection that asks nothing.
"""

from __future__ import annotations

from typing import Protocol

SLOW_SECONDS = 5.0  # that a reply may take in any case
IDLE_SECONDS = 60.0  # that a connection may ask nothing, and that a request may take to arrive after its headers
IDLE_SECONDS_MIN = 0.1  # who is new, or was just answered, is about to ask


class Connection(Protocol):
    """One client's: Tornado's IOStream, or a `Stream`."""

    def closed(self) -> bool:
        """Whether it is."""

    def close(self) -> None:
        """Close it."""


class Crowd:
    """What is known of a front end's connections: which of them rest, and which take their time to read a reply.

    `replies_bytes_max`: of replies on their way to slow clients, or one alone; more make the slowest give way.
    """

    def __init__(self, replies_bytes_max: int) -> None:
        self.replies_bytes_max = replies_bytes_max
        self.reply_bytes = 0  # of all replies that are not sent whole
        self._idle: dict[Connection, float] = {}  # without a whole request since when; the longest first
        self._reading: dict[Connection, tuple[float, int]] = {}  # since when, and how many bytes; the first began first

    def __len__(self) -> int:
        """How many ask nothing."""
        return len(self._idle)

    def rests(self, stream: Connection, now: float) -> None:
        """It asks nothing from now on: it is new, was answered, or only began to ask."""
        self._idle.pop(stream, None)
        if not stream.closed():
            self._idle[stream] = now

    def asks(self, stream: Connection) -> None:
        """It asked for something, and waits for the answer."""
        self._idle.pop(stream, None)

    def reads(self, stream: Connection, size: int, now: float) -> None:
        """It was sent a reply, and did not take all of it at once."""
        since, before = self._reading.get(stream, (now, 0))
        self._reading[stream] = since, before + size
        self.reply_bytes += size

    def has_read(self, stream: Connection) -> None:
        """It took all of its reply, or never will."""
        self.reply_bytes -= self._reading.pop(stream, (0.0, 0))[1]

    def gone(self, stream: Connection) -> None:
        """It is closed."""
        self._idle.pop(stream, None)
        self.has_read(stream)

    def drop_idle(self, now: float) -> bool:
        """Close the connection that has asked nothing for the longest time; whether there was one."""
        stream, since = next(iter(self._idle.items()), (None, now))
        if stream is None or now - since < IDLE_SECONDS_MIN:
            return False
        del self._idle[stream]
        stream.close()
        return True

    def drop_late(self, now: float) -> float:
        """Close all that asked nothing whole for `IDLE_SECONDS`; returns the seconds until there may be another."""
        while self._idle:
            stream, since = next(iter(self._idle.items()))
            if (left := since + IDLE_SECONDS - now) > 0:
                return left
            del self._idle[stream]
            stream.close()
        return IDLE_SECONDS

    def make_room(self, size: int, now: float) -> bool:
        """Whether a reply more fits into memory, once those who have been reading for too long are cut off for it."""
        while self.reply_bytes and self.reply_bytes + size > self.replies_bytes_max:
            stream, (since, _) = next(iter(self._reading.items()))
            if now - since < SLOW_SECONDS:
                return False
            self.gone(stream)
            stream.close()
        return True
