"""An event loop with a made-up clock, in which several processes run as one, and everything that happens is drawn.

A *node* is what elsewhere is a process: its callbacks run in their order, but which node's turn it is, is drawn for
each callback. A node may stand still, and may die between any two callbacks: none of it ever runs again. The sockets
between nodes are made up, too: what is sent arrives in its order, after a time that is drawn, or is lost with the
connection, in either direction. Nothing here reads a clock or opens a file: the same seed gives the same trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

STEP_SECONDS = 0.00001  # that one callback takes
LATENCY_SECONDS = 0.002  # of a message at most, unless it is held up
SPLIT_CHANCE = 0.05  # that what is written arrives in two parts

_node: contextvars.ContextVar[Node] = contextvars.ContextVar("node")


class Task(asyncio.Task):  # type: ignore[type-arg]
    """One of asyncio's, with the same hash in every run: so that sets of them are gone through in the same order."""

    _hash = 0

    def __hash__(self) -> int:
        self._hash = self._hash or self.get_loop().number()  # type: ignore[attr-defined]
        return self._hash


class Future(asyncio.Future):  # type: ignore[type-arg]
    """One of asyncio's, with the same hash in every run."""

    _hash = 0

    __hash__ = Task.__hash__


class Node:
    """What elsewhere is a process. `died` is called once it is dead."""

    def __init__(self, loop: Loop, name: str, died: Callable[[], None] = lambda: None) -> None:
        self.loop = loop
        self.name = name
        self.is_alive = True
        self.ready: deque[asyncio.Handle] = deque()
        self.stands_until = 0.0
        self.steps_left = -1  # until it dies; negative: it is not to die
        self.died = died
        self.ends: list[End] = []
        self.context = contextvars.copy_context()
        self.context.run(_node.set, self)

    def run(self, work: Coroutine[Any, Any, Any]) -> Task:
        """Begin this in the node."""
        task = Task(work, loop=self.loop, context=self.context.copy())
        self.loop.kept.append(task)
        return task

    def later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> None:
        """Have this called in the node."""
        self.loop.call_later(seconds, call, *arguments, context=self.context)

    def kill(self) -> None:
        """Nothing of it runs any more, and its connections break: what it wrote before may still arrive, or not."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.ready.clear()
        self.loop.note("dies", self.name)
        for end in self.ends:
            if not end.is_lost:
                end.is_lost = True
                end.peer.lose_later(self.loop.chance.random() < 0.5)
        self.died()


class End(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, node: Node, name: str) -> None:
        super().__init__()
        self.node = node
        self.name = name
        self.peer = self
        self.protocol: Any = None
        self.is_lost = False
        self.arrives_at = 0.0  # when the last of what is under way to this end does
        node.ends.append(self)

    def write(self, data: bytes) -> None:
        """Send."""
        loop, peer = self.node.loop, self.peer
        if self.is_lost:
            return
        parts = [data]
        if len(data) > 1 and loop.chance.random() < SPLIT_CHANCE:
            cut = loop.chance.randrange(1, len(data))
            parts = [data[:cut], data[cut:]]
        for part in parts:
            peer.arrives_at = max(peer.arrives_at, loop.time() + loop.chance.random() * LATENCY_SECONDS)
            loop.call_at(peer.arrives_at, peer.take, part, context=peer.node.context)

    def take(self, data: bytes) -> None:
        """Something arrived."""
        if not self.is_lost:
            self.node.loop.note("arrives", self.name, len(data))
            self.node.loop.on_arrival(self, data)
            self.protocol.data_received(data)

    def lose_later(self, at_once: bool) -> None:
        """The other end is gone: notice it after all that was sent, or at once, so that this is lost."""
        loop = self.node.loop
        delay = loop.chance.random() * LATENCY_SECONDS
        at = loop.time() + delay if at_once else max(self.arrives_at, loop.time()) + delay
        loop.call_at(at, self.lose, context=self.node.context)

    def lose(self) -> None:
        """The connection is lost."""
        if not self.is_lost:
            self.is_lost = True
            self.node.ends.remove(self)
            self.node.loop.note("lost", self.name)
            if self.protocol is not None:
                self.protocol.connection_lost(None)

    def abort(self) -> None:
        """Close."""
        if not self.is_lost and self.node.is_alive:
            self.node.loop.call_soon(self.lose, context=self.node.context)
            self.peer.lose_later(False)

    def close(self) -> None:
        """Close."""
        self.abort()

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self.is_lost

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """All that is written is taken."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """There is none."""
        return default


class Listener:
    """A socket on which a node listens."""

    def __init__(self, node: Node, factory: Callable[[], Any]) -> None:
        self.node = node
        self.factory = factory

    def close(self) -> None:
        """It goes with its node."""


class Loop(asyncio.BaseEventLoop):
    """The loop. `chance` draws all that happens, `trace` says what did."""

    def __init__(self, seed: object) -> None:
        super().__init__()
        self.chance = random.Random(str(seed))
        self.trace: list[tuple[Any, ...]] = []
        self.failures: list[str] = []
        self.kept: list[Task] = []  # else the collector would end those of dead nodes, whenever it runs
        self.after_step: Callable[[Node], None] = lambda node: None
        self.on_arrival: Callable[[End, bytes], None] = lambda end, data: None
        self.nodes: list[Node] = []  # those that live, and perhaps some that died
        self._last_number = 0
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_count = 0
        self._awake: dict[Node, None] = {}  # the nodes that have something to run
        self._listeners: dict[str, Listener] = {}
        self.root = Node(self, "root")
        self.set_task_factory(self._new_task)
        self.set_exception_handler(self._failed)

    # -- what asyncio asks of a loop ---------------------------------------------------------------------------------

    def _new_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Task:
        task = Task(work, loop=self, **options)
        self.kept.append(task)
        return task

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        told = f"{context.get('message')}: {context.get('exception')!r}"
        if "was never retrieved" not in told:  # whoever would have may be dead
            self.failures.append(told)

    def _asyncgen_finalizer_hook(self, agen: object) -> None:
        pass  # only dead nodes leave one behind

    def create_future(self) -> Future:
        """A future."""
        return Future(loop=self)

    def time(self) -> float:
        """Seconds since the beginning."""
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        """Have the node to which the context belongs run this next."""
        context = contextvars.copy_context() if context is None else context
        handle = asyncio.Handle(callback, args, self, context)
        self._put(handle, context)
        return handle

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Have the node to which the context belongs run this then."""
        context = contextvars.copy_context() if context is None else context
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def _put(self, handle: asyncio.Handle, context: contextvars.Context) -> None:
        node = context.get(_node, self.root)
        if node.is_alive:
            node.ready.append(handle)
            self._awake[node] = None

    def _run_once(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self._now:
            _, _, timer = heapq.heappop(timers)
            if not timer.cancelled():
                self._put(timer, timer._context)  # type: ignore[attr-defined]
        able = [node for node in self._awake if node.stands_until <= self._now]
        if not able:
            later = [node.stands_until for node in self._awake] + ([timers[0][0]] if timers else [])
            if not later:
                raise RuntimeError("nothing will ever happen again")
            self._now = max(self._now, min(later))
            return
        node = able[int(self.chance.random() * len(able))] if len(able) > 1 else able[0]
        if not node.ready:
            del self._awake[node]
            return
        self._now += STEP_SECONDS
        if node.steps_left >= 0:
            node.steps_left -= 1
            if node.steps_left < 0:
                node.kill()
                return
        handle = node.ready.popleft()
        if not handle.cancelled():
            handle._run()
            self.after_step(node)

    async def create_unix_connection(self, factory: Any, path: Any = None, **options: Any) -> Any:
        """Connect to whoever listens there."""
        await asyncio.sleep(self.chance.random() * LATENCY_SECONDS)
        listener = self._listeners.get(path)
        if listener is None or not listener.node.is_alive:
            raise ConnectionRefusedError(path)
        near, far = _node.get(), listener.node
        name = f"{near.name}-{far.name}/{self.number()}"
        here, there = End(near, f"{name}<"), End(far, f"{name}>")
        here.peer, there.peer = there, here
        here.protocol = factory()
        here.protocol.connection_made(here)
        there.arrives_at = self._now + self.chance.random() * LATENCY_SECONDS
        self.call_at(there.arrives_at, self._accept, listener, there, context=far.context)
        return here, here.protocol

    def _accept(self, listener: Listener, end: End) -> None:
        if not end.is_lost:
            end.protocol = listener.factory()
            end.protocol.connection_made(end)

    async def create_unix_server(self, factory: Any, path: Any = None, **options: Any) -> Any:
        """Listen there."""
        self._listeners[path] = listener = Listener(_node.get(), factory)
        return listener

    # -- for the simulation ------------------------------------------------------------------------------------------

    def note(self, *event: Any) -> None:
        """Say in the trace what happened."""
        self.trace.append((round(self._now, 6), *event))

    def draw(self, most: float) -> float:
        """Seconds."""
        return self.chance.random() * most

    def number(self) -> int:
        """One that was not given before."""
        self._last_number += 1
        return self._last_number

    def end(self) -> None:
        """What is under way goes, and says nothing."""
        for task in self.kept:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            with contextlib.suppress(RuntimeError):
                task.get_coro().close()

    def connections(self) -> list[End]:
        """One end of each connection, of those whose other end is there as well."""
        ends = [end for node in self.nodes if node.is_alive for end in node.ends if end.name.endswith("<")]
        return [end for end in ends if not end.is_lost and not end.peer.is_lost]

    def node(self, name: str, died: Callable[[], None] = lambda: None) -> Node:
        """A new node."""
        self.nodes = [node for node in self.nodes if node.is_alive]
        self.nodes.append(Node(self, name, died))
        return self.nodes[-1]
