"""What befalls a move between shards while it is under way: at a drawn message of it, in either direction."""

from __future__ import annotations

from collections.abc import Callable

from sim_loop import End
from simulation import ShardNode, World

from restq.shards.moving import HAVE, TAKE

SIGNS = (b"arrive_begin", b"arrive_rows", b"arrive_kept", b"arrive_end", b"arrive_end", HAVE, HAVE, HAVE, TAKE, TAKE)
CALM_STRIKES = ("late answer", "late rows", "late answer, call back", "stand")
STRIKES = (
    *["kill", "kill source, call back", "kill source, late rows", "late answer, call back", "cut"] * 2,
    *["kill both", "fail", "stand"],
)
COUNT_MAX = 4  # messages of one kind that may pass before it strikes
STEPS = 14  # of a process, after the message, at most
CUT_SECONDS = 0.01
DELAY_SECONDS = 2.0


class Ambush:
    """Waits for one message of a move, and then strikes. `call_back` has realms move to this shard."""

    def __init__(self, world: World, call_back: Callable[[int], object]) -> None:
        self._world = world
        self._call_back = call_back
        self._loop = world.loop
        self._sign = b""
        self._left = 0
        self._loop.on_arrival = self._arrived

    def lay(self) -> None:
        """Wait for a message that is drawn."""
        self._sign = self._loop.chance.choice(SIGNS)
        self._left = 1 + self._loop.chance.randrange(COUNT_MAX)

    def leave(self) -> None:
        """Wait for none."""
        self._sign = b""

    def _arrived(self, end: End, data: bytes) -> None:
        if not self._sign or not end.name.startswith("shard") or self._sign not in data:
            return
        self._left -= 1
        if self._left <= 0:
            self._sign = b""
            self._strike(end)

    def _strike(self, end: End) -> None:
        """`source` is the end of the shard that the realm leaves, `chosen` that of either."""
        chance, ends = self._loop.chance, [end, end.peer]
        source, chosen = end if end.name.endswith("<") else end.peer, chance.choice(ends)
        what = chance.choice(CALM_STRIKES if self._world.is_calm else STRIKES)
        self._loop.note("strikes", what, chosen.name)
        if "kill source" in what:
            self._kill(source)
        if "late answer" in what:
            self._hold_up(source)
        if "late rows" in what:
            self._hold_up(source.peer)
        if "call back" in what:
            self._call_back(self._shard(source).index)
        if what == "kill":
            self._kill(chosen)
        elif what == "kill both":
            self._kill(source)
            self._kill(source.peer)
        elif what == "cut":
            for each in ends:
                each.node.later(self._loop.draw(CUT_SECONDS), each.lose)
        elif what == "fail":
            self._shard(chosen).disk.fails = True
        elif what == "stand":
            chosen.node.stands_until = self._loop.time() + self._loop.draw(DELAY_SECONDS)

    def _kill(self, end: End) -> None:
        end.node.steps_left = self._loop.chance.randrange(STEPS)

    def _hold_up(self, end: End) -> None:
        end.arrives_at = max(end.arrives_at, self._loop.time() + self._loop.draw(DELAY_SECONDS))

    def _shard(self, end: End) -> ShardNode:
        return next(shard for shard in self._world.shards if shard.node is end.node)
