"""One call on one realm, on its way: asked where the realm lives, followed where it moves to, and answered.

Whoever took it from a client, an `Exchange` or a `Stream`, gives it its two ends: how to answer, and whether the client
is still there. No HTTP and no frames live here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from restq.errors import InternalError, Overloaded, RestqError, ShardUnavailable
from restq.protocol import MOVED, Reply
from restq.routes import Route
from restq.web.app import App
from restq.web.calls import Lease

LARGE_BYTES = 64 << 10  # of a reply that has to fit beside others; what is smaller fits into the system's buffers
HOPS_MAX = 8  # how often a request follows a realm that moves

log = logging.getLogger("restq.web")


class LongPoll:
    """What may wait for its answer, until it is left: once its client is gone, or this front end ends."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._stop: Callable[[], None] | None = None  # until it is answered
        self._has_left = False

    def wait(self, stop: Callable[[], None]) -> None:
        """It waits from now on, and `stop` has it answered with what there is."""
        self._stop = stop
        self._app.waiting.add(self.leave)
        if self._has_left or self._app.draining or len(self._app.waiting) > self._app.waiting_max:
            stop()

    def leave(self) -> None:
        """Wait no longer: what there is is the answer."""
        self._has_left = True
        if self._stop is not None:
            self._stop()

    def end(self) -> None:
        """It is answered."""
        if self._stop is not None:
            self._stop = None
            self._app.waiting.discard(self.leave)


class Asking(ABC):
    """One call on one realm. What becomes of it, `answer` or `refuse` tells the client, once."""

    __slots__ = ("_app", "_asked_at", "_body", "_hops", "_once", "_operation", "_params", "_poll", "_realm", "_route")

    def __init__(
        self,
        app: App,
        route: Route,
        realm: str,
        params: list[Any],
        body: bytes,
        once: Sequence[str] = (),
        poll: LongPoll | None = None,
    ) -> None:
        """`params`: the ids of the path after the realm, then the query's fields. `once`: the idempotency key and the
        digest of what is asked under it. `poll`: given where it may wait.
        """
        self._app = app
        self._route = route
        self._realm = realm
        self._operation, self._params, self._body = route.operation, params, body
        if route.at_shard is not None:
            self._operation, self._params = route.at_shard.operation, list(route.at_shard.params)
            self._body = body if route.at_shard.takes_body else b""
        self._once = once
        self._poll = poll
        self._hops = 0
        self._asked_at = 0.0  # for the first time, where it may wait

    @abstractmethod
    def answer(self, status: int, body: bytes) -> None:
        """Tell the client what the realm said."""

    @abstractmethod
    def refuse(self, error: RestqError) -> None:
        """Tell the client why there is no such answer."""

    @abstractmethod
    def is_gone(self) -> bool:
        """Whether the client would not get an answer."""

    def ask(self) -> None:
        """Ask the realm. Raises nothing: what can't be asked is refused."""
        try:
            self._ask()
        except Exception as error:
            self._refuse_any(error)

    def _ask(self) -> None:
        pipe = self._app.shards.pipe_of(self._realm)
        if self._poll is None:
            pipe.ask(self, self._operation, self._realm, self._params, self._body, self._once)
            return
        now = asyncio.get_running_loop().time()
        self._asked_at = self._asked_at or now
        waited = now - self._asked_at
        pipe.ask(self, self._operation, self._realm, self._params, self._body, self._once, waits=True, waited=waited)
        self._poll.wait(partial(pipe.leave, self))

    def replied(self, reply: Reply) -> None:
        """From the pipe: the shard answered."""
        try:
            if reply.status == MOVED:
                self._follow(reply.extra)
            else:
                self._deliver(reply)
        except Exception as error:
            self._refuse_any(error)

    def lost(self, error: ShardUnavailable) -> None:
        """From the pipe: the shard went away."""
        self._refuse_any(error)

    def _follow(self, shard: int) -> None:
        self._app.shards.placement.learn(self._realm, shard)
        self._hops += 1
        if self._hops > HOPS_MAX:
            raise ShardUnavailable(f"realm {self._realm!r} is on the move; nothing was done, try again")
        self._ask()

    def _deliver(self, reply: Reply) -> None:
        is_gone = self.is_gone()
        if len(reply.body) >= LARGE_BYTES and self._route.undoes and not is_gone:
            try:
                check_room(self._app, len(reply.body))
            except Overloaded:
                if reply.extra and self._route.leases:
                    self._undo(reply)
                raise
        if is_gone and reply.extra and self._route.leases:
            self._undo(reply)
        if self._poll is not None:
            self._poll.end()
        self.answer(reply.status, reply.body)

    def _undo(self, reply: Reply) -> None:
        """The client is gone: what was leased for it is given back, and a repeat of the pull leases anew.

        Not what came of an exchange under a key: it did more than lease, so that a repeat must get this very reply.
        """
        decoded = json.loads(reply.body)
        if self._route.operation == "exchange":
            if self._once:
                return
            decoded = decoded["pull"]
        if self._route.operation == "pull_2013":
            pairs = [(job_id, queue_id) for job_id, (queue_id, _) in decoded.items()]
        else:
            pairs = [(job["job_id"], job["queue_id"]) for job in decoded["jobs"]]
        self._app.shards.undo(Lease(self._realm, reply.extra, pairs), self._once[0] if self._once else "")

    def _refuse_any(self, error: Exception) -> None:
        """Every request is answered, whatever happens to it."""
        if self._poll is not None:
            self._poll.end()
        try:
            self.refuse(known(error, f"{self._route.operation} in {self._realm!r}"))
        except Exception:  # of one client; the pipe, which tells us, goes on for all others
            log.exception("a refusal of %s failed", self._route.operation)


def known(error: Exception, what: str) -> RestqError:
    """The error to tell the client. One that is none of restq's own is a defect, which the log says more of."""
    if isinstance(error, RestqError):
        return error
    log.error("%s failed", what, exc_info=error)
    return InternalError("restq met a defect of its own; whether the request was done is not known")


def check_room(app: App, size: int) -> None:
    """Raise Overloaded where a reply of this size does not fit into memory beside those that are on their way.

    To be asked of large ones that may be undone: those that tell what was done are sent in any case.
    """
    if not app.crowd.make_room(size, time.monotonic()):
        raise Overloaded("more replies wait for slow clients than fit; nothing was done, try again")
