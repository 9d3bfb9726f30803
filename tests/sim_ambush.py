"""What befalls a move between shards while it is under way: at a drawn message of it, in either direction."""

from __future__ import annotations

from collections.abc import Callable

from sim_loop import End
from simulation import ShardNode, World

from restq.shards.moving import HAVE, TAKE

SIGNS = (b"arrive_begin", b"arrive_rows", b"arrive_kept", b"arrive_end", HAVE, HAVE, HAVE, TAKE)
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
        chance, ends = self._loop.chance, [end, end.peer]
        chosen = chance.choice(ends)
        what = chance.choice(("hold up", "stand") if self._world.is_calm else ("kill",) * 4 + _STRIKES)
        self._loop.note("strikes", what, chosen.name)
        if what == "kill":
            chosen.node.steps_left = chance.randrange(STEPS)
        elif what == "kill both":
            for each in ends:
                each.node.steps_left = chance.randrange(STEPS)
        elif what == "cut":
            for each in ends:
                each.node.later(self._loop.draw(CUT_SECONDS), each.lose)
        elif what == "fail":
            self._shard(chosen).disk.fails = True
        elif what == "kill and call back":
            chosen.node.steps_left = chance.randrange(STEPS)
            self._call_back(self._shard(chosen).index)
        elif what == "kill and be late":
            chosen.node.steps_left = chance.randrange(STEPS)
            chosen.peer.arrives_at = max(chosen.peer.arrives_at, self._loop.time() + self._loop.draw(DELAY_SECONDS))
        elif what == "hold up":
            chosen.arrives_at = max(chosen.arrives_at, self._loop.time() + self._loop.draw(DELAY_SECONDS))
        else:
            chosen.node.stands_until = self._loop.time() + self._loop.draw(DELAY_SECONDS)

    def _shard(self, end: End) -> ShardNode:
        return next(shard for shard in self._world.shards if shard.node is end.node)


_STRIKES = (
    *["kill and call back"] * 4,
    *["kill and be late"] * 4,
    "kill both",
    "cut",
    "cut",
    "fail",
    "hold up",
    "stand",
)
