"""Many calls of one thread under way at once: each is sent without waiting for the replies to those before.

Over a stream of its own. What is under way is bounded in bytes, so that neither side waits for the other to read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from restq.client import streaming
from restq.client.call import Call
from restq.client.connection import as_method
from restq.client.job import Job
from restq.client.peer import Peer
from restq.client.realm_calls import RealmCalls
from restq.client.stream import Refused, Stream
from restq.errors import RestqError

T = TypeVar("T")
P = ParamSpec("P")

MESSAGE_BYTES = 16 << 10  # that gather before they are sent
UNDER_WAY_BYTES_MAX = 64 << 10  # sent and not answered, or one call alone: what the system's buffers hold in any case
UNDER_WAY_MAX = 1_000  # the server's window


class Later(Generic[T]):
    """What a call will give."""

    def __init__(self, pipeline: Pipeline, call: Call[T], size: int) -> None:
        self.call = call
        self.size = size  # of its frame
        self.error: Exception | None = None
        self.is_done = False
        self._pipeline = pipeline
        self._value: T

    def result(self) -> T:
        """What the method of the realm returns, or raises, once it is there."""
        self._pipeline._wait_for(self)
        if self.error is not None:
            raise self.error.with_traceback(None)  # many calls may share it, and each would add to what is there
        return self._value

    def settle(self, read: Callable[[], T]) -> None:
        """It is answered, or never will be: `read` returns or raises what comes of it."""
        self.is_done = True
        try:
            self._value = read()
        except Exception as error:
            self.error = error


def later(
    describe: Callable[Concatenate[RealmCalls[Job], P], Call[T]],
) -> Callable[Concatenate[Pipeline, P], Later[T]]:
    """The method that sends what `describe` describes, in its turn, and returns what it will give."""

    @functools.wraps(describe)
    def send(self: Pipeline, /, *arguments: P.args, **options: P.kwargs) -> Later[T]:
        return self._send(describe(self._calls, *arguments, **options))

    return as_method(send, describe)


class Pipeline:
    """The calls of a realm, each of which returns at once. Made by `Realm.pipeline`, used in a `with`.

    They reach the realm in the order in which they are made. The end of the `with` waits for all of them, and raises
    what the first that failed raises; where the block itself raises, that goes first. None is sent again: what has no
    reply when the connection breaks raises ServerUnreachable, or Overloaded where the server says that it was not done.
    It is of the process that made it, and a call after its end is a ValueError.
    """

    def __init__(self, peer: Peer, realm: str, calls: RealmCalls[Job]) -> None:
        self._peer = peer
        self._calls = calls
        self._seconds = peer.config.client.timeout_seconds
        try:
            self._stream = Stream(peer.uri + streaming.stream_path(realm), self._seconds)
        except Refused as refused:
            raise RestqError(f"{peer.uri} opens no stream: {refused}") from None
        except OSError as error:
            if isinstance(error, RestqError):
                raise
            raise peer.unopened(error, self._seconds) from error
        self._last_id = 0
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._unsent_wait_seconds = 0.0  # the longest of those that are unsent
        self._waits_until = 0.0  # by then all that was sent has waited in the server for as long as it may
        self._asked: dict[int, Later[Any]] = {}  # sent or to be sent, and not answered
        self._asked_bytes = 0
        self._failure: Exception | None = None  # the first
        self._has_ended = False

    # Each takes what the method of `Realm` takes; its result is what that returns.
    add = later(RealmCalls.add)
    bulk_add = later(RealmCalls.bulk_add)
    pull_jobs = later(RealmCalls.pull_jobs)
    ack = later(RealmCalls.ack)
    nack = later(RealmCalls.nack)
    release = later(RealmCalls.release)
    extend = later(RealmCalls.extend)
    exchange = later(RealmCalls.exchange)
    get_job = later(RealmCalls.get_job)
    explain = later(RealmCalls.explain)
    get_tag_status = later(RealmCalls.get_tag_status)
    remove_job = later(RealmCalls.remove_job)
    bulk_remove = later(RealmCalls.bulk_remove)
    cancel_job = later(RealmCalls.cancel_job)
    move_job = later(RealmCalls.move_job)
    request = later(RealmCalls.request)

    def wait(self) -> None:
        """Wait until everything is answered. Raises what the first that failed raises."""
        self._check_process()
        while self._asked:
            self._flush()
            self._receive()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure.with_traceback(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_ended = True
        try:
            if error is None:
                self.wait()
            elif isinstance(error, Exception):  # what was called is done all the same
                with contextlib.suppress(Exception):
                    self.wait()
        finally:
            self._stream.close()

    def _send(self, call: Call[T]) -> Later[T]:
        if self._has_ended:
            raise ValueError("this pipeline has ended: make another")
        self._check_process()
        operation = streaming.operation_of(call)
        if operation is None:
            raise ValueError(f"{call.verb} {call.path[:80]} is none of what a stream carries")
        self._last_id += 1
        frame = operation.frame(self._last_id, call.content, None)
        while self._asked and (
            self._asked_bytes + len(frame) > UNDER_WAY_BYTES_MAX or len(self._asked) >= UNDER_WAY_MAX
        ):
            self._flush()
            self._receive()
        found = Later(self, call, len(frame))
        self._asked[self._last_id] = found
        self._asked_bytes += len(frame)
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)
        self._unsent_wait_seconds = max(self._unsent_wait_seconds, call.wait_seconds)
        if self._unsent_bytes >= MESSAGE_BYTES:
            self._flush()
        return found

    def _check_process(self) -> None:
        if self._stream.pid != os.getpid():  # replies would be taken from the one that goes on with it
            raise ValueError("this pipeline is of another process: make one in each")

    def _flush(self) -> None:
        if not self._unsent:
            return
        message = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        self._waits_until = max(self._waits_until, time.monotonic() + self._unsent_wait_seconds)
        self._unsent_wait_seconds = 0.0
        self._try(lambda: self._stream.send(message, self._seconds))

    def _receive(self) -> None:
        """Take replies, one at least, where something is asked."""
        if self._asked:
            seconds = self._seconds + max(self._waits_until - time.monotonic(), 0)
            self._try(lambda: self._take(self._stream.receive(seconds)))

    def _take(self, replies: list[tuple[int | None, int, bytes]]) -> None:
        for request_id, status, body in replies:
            found = self._asked.pop(request_id or 0, None)
            if found is not None:
                self._asked_bytes -= found.size
                decode = functools.partial(json.loads, body)
                self._settle(found, functools.partial(self._peer.result, found.call, status, decode))

    def _settle(self, found: Later[T], read: Callable[[], T]) -> None:
        found.settle(read)
        self._failure = self._failure or found.error

    def _try(self, go_on: Callable[[], None]) -> None:
        """Where the connection fails, so does all that is asked."""
        try:
            go_on()
        except OSError as error:
            failure = error if isinstance(error, RestqError) else self._peer.unreachable(error, self._seconds)
            asked, self._asked, self._asked_bytes = self._asked, {}, 0
            for found in asked.values():
                self._settle(found, functools.partial(_raise, failure))

    def _wait_for(self, found: Later[Any]) -> None:
        if not found.is_done:
            self._check_process()
        while not found.is_done:
            self._flush()
            self._receive()


def _raise(error: Exception) -> Any:
    raise error
