"""A stream: one client's WebSocket to one realm, over which many operations are under way at once.

What a client says is in `frames`. Operations go to the realm in the order in which they came, as many as a window has
room for; meanwhile what came waits, and the socket is not read. Replies leave in the order in which they are there,
those of one turn of the loop in one message. Who does not take its replies is not read either.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol

from restq.errors import UNANSWERED_IS_UNDONE, BodyMalformed, Overloaded, RestqError
from restq.routes import Route
from restq.web import frames
from restq.web.app import App
from restq.web.asking import Asking, LongPoll, check_room, known
from restq.web.upgrade import dissolve, quiet

WINDOW = 1_000  # operations of one stream under way, beside those that wait
WAITS_MAX = 1_000  # operations of one stream that wait; what comes beyond them is answered with what there is
WINDOW_BYTES_MAX = 8 << 20  # of bodies under way of one stream, or one alone
FRAME_BYTES_MAX = 64 << 10  # of a message beside one body of the largest size
UNTAKEN_BYTES_MAX = 64 << 10  # of replies that the system does not take; beyond it the client is not read
UNREAD_BYTES_MAX = 256 << 10  # of a message that is not whole yet, before it counts among the bodies held
PING_SECONDS = 30.0  # who says nothing for so long is pinged, and cut off if that is in vain for as long again
CLOSE_SECONDS = 5.0  # for the client to close its side

NORMAL, GOING_AWAY, UNSUPPORTED, INVALID, TRY_AGAIN = 1000, 1001, 1003, 1007, 1013

log = logging.getLogger("restq.web")


class Stream(asyncio.Protocol):
    """One such connection. `handshake` is the answer to the client's, to be sent first; `ahead` came before it."""

    def __init__(self, app: App, realm: str, handshake: bytes, ahead: bytes = b"") -> None:
        self.realm = realm
        self._app = app
        self._handshake = handshake
        self._ahead = ahead
        self._message_bytes_max = app.body_bytes_max + FRAME_BYTES_MAX
        self._websocket = ServerProtocol(state=State.OPEN, max_size=self._message_bytes_max, logger=quiet)
        self._transport: asyncio.Transport | None = None
        self._part = bytearray()  # of a message that comes in several frames
        self._unread_bytes = 0  # of a message that is not whole yet
        self._messages: deque[frames.Message] = deque()  # whole, and not all of their operations begun
        self._under_way = 0
        self._bytes_under_way = 0
        self._polls: set[LongPoll] = set()  # of those under way, what waits
        self._replies: list[bytes] = []  # to be sent in this turn
        self._is_busy = False  # something is under way, or was answered in this turn
        self._is_paused = False  # it is not read
        self._is_slow = False  # it does not take its replies
        self._has_spoken = True  # since the last ping
        self._ending: tuple[int, str] | None = None  # nothing more is begun; once all is answered, so it is closed
        self._is_over = False  # nothing more is sent
        self._alarm: asyncio.TimerHandle | None = None

    # -- from the loop -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the loop: it is ours from now on."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.set_write_buffer_limits(high=UNTAKEN_BYTES_MAX, low=0)
        self._app.streams.add(self)
        self._app.crowd.rests(self, time.monotonic())
        limits = {"window": WINDOW, "waits": WAITS_MAX, "body_bytes": self._app.body_bytes_max}
        limits["message_bytes"] = self._message_bytes_max
        self._transport.write(self._handshake)
        self._websocket.send_binary(frames.reply(None, 200, json.dumps(limits).encode()))
        self._write()
        self._alarm = asyncio.get_running_loop().call_later(PING_SECONDS, self._look)
        if self._app.draining:
            self.drain()
        ahead, self._ahead = self._ahead, b""
        self.data_received(ahead)

    def connection_lost(self, exc: Exception | None) -> None:
        """From the loop: the client is gone. What it asked for is done all the same, but nothing waits for it."""
        self._transport = None
        self._app.streams.discard(self)
        self._app.crowd.gone(self)
        if self._alarm is not None:
            self._alarm.cancel()
        self._forget_unbegun()
        self._leave()
        if not self._under_way:
            self._rest()
        self._websocket.receive_eof()
        dissolve(self._websocket)

    def data_received(self, data: bytes) -> None:
        """From the loop: frames, whole or in part."""
        self._has_spoken = True
        if self._ending is not None:  # all that comes now is not begun
            return
        self._websocket.receive_data(data)
        events = self._websocket.events_received()
        for event in events:
            self._take(cast(Frame, event))
        self._count_unread(len(self._part) if events else self._unread_bytes + len(data))
        self._begin()
        self._write()

    def pause_writing(self) -> None:
        """From the loop: the client does not take its replies. It is asked for nothing more meanwhile."""
        assert self._transport is not None, "who is gone is told nothing"
        self._is_slow = True
        self._app.crowd.reads(self, self._transport.get_write_buffer_size(), time.monotonic())
        self._pause()

    def resume_writing(self) -> None:
        """From the loop: it took all of them."""
        self._is_slow = False
        self._app.crowd.has_read(self)
        self._begin()

    # -- for the front end ---------------------------------------------------------------------------------------------

    def closed(self) -> bool:
        """Whether the client is gone."""
        return self._transport is None

    @property
    def is_gone(self) -> bool:
        """Whether a reply would reach nobody."""
        return self._is_over or self._transport is None

    @property
    def writing(self) -> bool:
        """Whether something is still to be sent."""
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    def close(self) -> None:
        """Give way to others: at once, unless nothing is under way."""
        if self._is_busy or self._is_slow:
            if self._transport is not None:
                self._transport.abort()
        else:
            self._end(TRY_AGAIN, UNANSWERED_IS_UNDONE)

    def drain(self) -> None:
        """Begin nothing more, and close once everything is answered."""
        self._end(GOING_AWAY, UNANSWERED_IS_UNDONE)

    # -- asking --------------------------------------------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        """A frame of a message, or of the WebSocket's own."""
        if frame.opcode is Opcode.TEXT:
            error = BodyMalformed(f"text is not understood: send binary messages of msgpack, each value {frames.FRAME}")
            self._end(UNSUPPORTED, "send binary messages of msgpack", error)
        elif frame.opcode is Opcode.BINARY or frame.opcode is Opcode.CONT:
            if self._ending is not None:
                return
            if self._part or not frame.fin:
                self._part += frame.data
            if frame.fin:
                message = frames.Message(bytes(self._part or frame.data))
                self._part.clear()
                self._app.held_bytes += message.size
                self._messages.append(message)

    def _begin(self) -> None:
        """Begin what there is room for, and read on once nothing is left."""
        while self._messages and not self._is_full():
            message = self._messages[0]
            try:
                frame = next(message, frames.END)
                if frame is not frames.END:
                    self._ask(frame)
                    continue
            except BodyMalformed as error:
                self._end(INVALID, "send messages of whole msgpack arrays", error)
                return
            self._messages.popleft()
            self._app.held_bytes -= message.size
        if self._is_full():
            self._pause()
        else:
            self._resume()

    def _is_full(self) -> bool:
        return (
            self._is_slow or self._under_way - len(self._polls) >= WINDOW or self._bytes_under_way >= WINDOW_BYTES_MAX
        )

    def _ask(self, frame: Any) -> None:
        """Begin one operation. Raises BodyMalformed where it has no id; all else is told in a reply."""
        request_id = frames.request_id(frame)
        if not self._is_busy:
            self._is_busy = True
            self._app.opened()
            self._app.crowd.asks(self)
        try:
            if self._app.crowd.reply_bytes:
                check_room(self._app, 0)
            asked = frames.read(frame, self.realm, self._app.body_bytes_max)
            if self._app.held_bytes + len(asked.body) > self._app.held_bytes_max + self._messages[0].size:
                raise Overloaded("the server holds more request bodies than fit; nothing was done, try again")
        except Exception as error:
            self._reply(frames.refusal(request_id, known(error, f"a frame for {self.realm!r}")))
            return
        poll = LongPoll(self._app) if asked.route.waits else None
        if poll is not None:
            if len(self._polls) < WAITS_MAX:
                self._polls.add(poll)
            else:
                poll.leave()
        self._under_way += 1
        self._bytes_under_way += len(asked.body)
        self._app.held_bytes += len(asked.body)
        _Operation(self, request_id, asked.route, asked.params, asked.body, asked.once, poll).ask()

    # -- answering -----------------------------------------------------------------------------------------------------

    def answered(self, size: int, poll: LongPoll | None, reply: bytes) -> None:
        """An operation with a body of this size is done; its reply leaves with the others of this turn."""
        self._under_way -= 1
        self._bytes_under_way -= size
        self._app.held_bytes -= size
        if poll is not None:
            self._polls.discard(poll)
        if not self.is_gone:
            self._reply(reply)
        elif not self._under_way:
            self._rest()

    def _reply(self, reply: bytes) -> None:
        if not self._replies:
            asyncio.get_running_loop().call_soon(self._flush)
        self._replies.append(reply)

    def _flush(self) -> None:
        """Send what was answered in this turn, and begin what there is room for by now."""
        if self.is_gone:
            self._replies.clear()
            return
        content = b"".join(self._replies)
        self._replies.clear()
        self._websocket.send_binary(content)
        if self._is_slow:
            self._app.crowd.reads(self, len(content), time.monotonic())
        self._write()
        self._begin()
        if not self._under_way and not self._replies:
            self._rest()

    def _write(self) -> None:
        """Send what the WebSocket has to say."""
        written = self._websocket.data_to_send()
        if not written or self._transport is None:
            return
        is_last = written[-1] == SEND_EOF
        self._transport.write(b"".join(written))
        if is_last:
            self._is_over = True
            self._end(NORMAL, "")
            self._close()

    # -- resting and ending --------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Nothing is under way, or nobody waits for it."""
        if self._is_busy:
            self._is_busy = False
            self._app.closed()
            self._app.crowd.rests(self, time.monotonic())
        if self._ending is not None:
            self._close()

    def _end(self, code: int, reason: str, error: RestqError | None = None) -> None:
        """Begin nothing more; tell the client of this error, and close once everything is answered."""
        if self._ending is not None:
            return
        self._ending = code, reason
        self._forget_unbegun()
        self._leave()
        if error is not None:
            self._reply(frames.refusal(None, error))
        elif not self._is_busy:
            self._close()

    def _close(self) -> None:
        if self._transport is None or self._transport.is_closing() or self._ending is None:
            return
        if not self._is_over:
            self._is_over = True
            self._websocket.send_close(*self._ending)
            self._transport.write(b"".join(self._websocket.data_to_send()))
        self._resume()  # what the client still says is not begun, and without it we would not see it go
        if self._transport.can_write_eof():
            self._transport.write_eof()
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._transport.abort)

    def _forget_unbegun(self) -> None:
        self._count_unread(0)
        self._part.clear()
        self._app.held_bytes -= sum(message.size for message in self._messages)
        self._messages.clear()

    def _leave(self) -> None:
        for poll in list(self._polls):
            poll.leave()

    def _count_unread(self, size: int) -> None:
        """So much of a message is here that is not whole."""
        before, self._unread_bytes = self._unread_bytes, size
        self._app.held_bytes += max(0, size - UNREAD_BYTES_MAX) - max(0, before - UNREAD_BYTES_MAX)
        if size > UNREAD_BYTES_MAX and self._app.held_bytes > self._app.held_bytes_max:
            self._end(TRY_AGAIN, UNANSWERED_IS_UNDONE)

    def _pause(self) -> None:
        if not self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = False
            self._has_spoken = True  # for all we know
            self._transport.resume_reading()

    def _look(self) -> None:
        """See whether the client is still there."""
        if self._transport is None:
            return
        if not self._has_spoken and not self._is_paused:
            self._transport.abort()
            return
        self._has_spoken = False
        if not self._is_busy:
            self._app.crowd.rests(self, time.monotonic())  # anew: a stream may rest for as long as its client is there
        if not self._is_slow and not self._is_over:
            self._websocket.send_ping(b"")
            self._write()
        self._alarm = asyncio.get_running_loop().call_later(PING_SECONDS, self._look)


class _Operation(Asking):
    """One operation of a stream."""

    __slots__ = ("_request_id", "_size", "_stream")

    def __init__(
        self,
        stream: Stream,
        request_id: int,
        route: Route,
        params: list[Any],
        body: bytes,
        once: Sequence[str],
        poll: LongPoll | None,
    ) -> None:
        super().__init__(stream._app, route, stream.realm, params, body, once, poll)
        self._stream = stream
        self._request_id = request_id
        self._size = len(body)

    def answer(self, status: int, body: bytes) -> None:
        if self._app.debug:
            log.info("%s of %s over a stream %d", self._route.operation, self._realm, status)
        self._stream.answered(self._size, self._poll, frames.reply(self._request_id, status, body))

    def refuse(self, error: RestqError) -> None:
        self._stream.answered(self._size, self._poll, frames.refusal(self._request_id, error))

    def is_gone(self) -> bool:
        return self._stream.is_gone
