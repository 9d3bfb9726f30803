"""A pull over several realms that waits: in every shard concerned, it stands in the lines of its realms there.

The first shard that has jobs for it leases them, as it does for a pull of one realm, and the other shards are left.
What they leased all the same is given back at once. Where a realm moved, or a shard is there again, it asks anew; as it
says for how long it has waited, it keeps its place.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from restq.errors import ShardUnavailable, from_reply
from restq.pipe import Promise
from restq.protocol import MOVED, Reply
from restq.web.calls import Call
from restq.web.shards import ATTEMPTS_MAX, Shards

STARTING_SECONDS = 1.0  # between two looks whether a shard that is starting again is there
LEAVING_SECONDS = 0.25  # for so long a pull whose time is up waits for what shards that it left say

Groups = Mapping[int, list[str] | None]  # by shard: the realms to ask it about, None for all that it holds


class Line:
    """One such pull. `groups` says which shards to ask by now; `give_back` takes replies whose jobs nobody gets."""

    def __init__(
        self, shards: Shards, call: Call, groups: Callable[[], Groups], give_back: Callable[[Reply], None]
    ) -> None:
        self._shards = shards
        self._call = call
        self._groups = groups
        self._give_back = give_back
        self._params: list[Any] = []
        self._began_at = 0.0
        self._asked: dict[int, tuple[list[str] | None, Promise]] = {}  # by shard: of which realms
        self._moves_left = ATTEMPTS_MAX

    async def replies(self, params: list[Any], seconds: float, began_at: float) -> list[Reply]:
        """Those that hold jobs, of all shards that gave some at the same moment; none if time is up, or it was left.

        `params`: what to ask for, but for the realms. `began_at`: when it began to wait, for so many seconds. Raises
        what a shard refused, or ShardUnavailable where one went away whose realms were asked for by name.
        """
        loop, left = asyncio.get_running_loop(), self._call.left
        self._params, self._began_at = [*params, seconds], began_at
        ends_at = began_at + seconds
        try:
            while True:
                is_whole = self._ask()
                under_way = self._under_way()
                seconds = ends_at - loop.time()
                if left.done() or seconds <= 0 or (self._asked and not under_way):
                    break
                ends: list[asyncio.Future[Any]] = [left, *under_way]
                seconds = seconds if is_whole else min(seconds, STARTING_SECONDS)
                await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if found := self._take():
                    return found
            for shard, (_, future) in self._asked.items():
                self._shards.pipes[shard].leave(future)
            if under_way:
                await asyncio.wait(under_way, timeout=LEAVING_SECONDS)
            return self._take()
        finally:
            for shard in list(self._asked):
                self._leave(shard)

    def _under_way(self) -> list[Promise]:
        return [future for _, future in self._asked.values() if not future.done()]

    def _ask(self) -> bool:
        """Wait where its realms are by now, and nowhere else. Returns whether all shards concerned are there."""
        groups = self._groups()
        for shard, (realms, _) in list(self._asked.items()):
            if shard not in groups or groups[shard] != realms:
                self._leave(shard)
        waited = max(0.0, asyncio.get_running_loop().time() - self._began_at)
        for shard, realms in groups.items():
            if shard not in self._asked:
                params, once = [realms, *self._params], self._call.once
                pipe = self._shards.pipes[shard]
                future = pipe.call("pull_waiting", "", params, b"", once, waits=True, waited=waited)
                self._asked[shard] = realms, future
        return None not in groups.values() or len(groups) == len(self._shards.pipes)

    def _take(self) -> list[Reply]:
        """The replies that hold jobs. Who answered without any answers no more; who can't is asked anew, or raised."""
        found: list[Reply] = []
        refusal: Exception | None = None
        for shard, (realms, future) in list(self._asked.items()):
            if not future.done():
                continue
            try:
                reply = future.result()
                if reply.status == MOVED:
                    del self._asked[shard]
                    self._follow(reply, len(realms or ()))
                elif reply.status != 200:
                    refusal = from_reply(reply.status, json.loads(reply.body))
                elif holds_jobs(reply):
                    del self._asked[shard]
                    found.append(reply)
            except ShardUnavailable as lost:
                self._asked.pop(shard, None)
                if realms is not None or not any(pipe.is_connected for pipe in self._shards.pipes):
                    refusal = lost
        if refusal is not None and not found:
            raise refusal
        return found

    def _follow(self, reply: Reply, realm_count: int) -> None:
        self._shards.learn(reply)
        self._moves_left -= 1
        if self._moves_left + realm_count < 0:
            raise ShardUnavailable("a realm is on the move; nothing was leased, try again")

    def _leave(self, shard: int) -> None:
        """Wait there no longer; what it leased by now is given back."""
        _, future = self._asked.pop(shard)
        self._shards.pipes[shard].leave(future)
        future.add_done_callback(self._late)

    def _late(self, future: Promise) -> None:
        if future.exception() is None and future.result().status == 200 and holds_jobs(future.result()):
            self._give_back(future.result())


def holds_jobs(reply: Reply) -> bool:
    """Whether a shard leased anything."""
    return reply.body != b"[]"
