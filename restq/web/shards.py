"""All shards, asked side by side: which of them to ask, and what it means when one of them does not answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from restq.errors import RestqError, ShardStarting, ShardUnavailable, from_reply
from restq.pipe import Pipe, Promise
from restq.placement import Placement
from restq.protocol import MOVED, Reply
from restq.web.calls import Lease

REALMS_MAX = 1_000  # that are asked side by side
ATTEMPTS_MAX = 8  # beside one for each realm: a call is split anew where a realm moved meanwhile

Item = TypeVar("Item")
log = logging.getLogger("restq.web")


class RealmMoved(Exception):
    """A shard said that a realm lives elsewhere by now, and did nothing: split anew."""


class Shards:
    """The pipes to all shards, and which realm is behind which."""

    def __init__(self, pipes: Sequence[Pipe], placement: Placement) -> None:
        self.pipes = pipes
        self.placement = placement
        self._undoing: set[asyncio.Task[None]] = set()

    def pipe_of(self, realm: str) -> Pipe:
        """The pipe to the shard where this realm lives, as far as is known."""
        return self.pipes[self.placement.shard_of(realm)]

    def connected(self) -> list[int]:
        """The shards that are there. Raises ShardStarting if none is."""
        shards = [shard for shard, pipe in enumerate(self.pipes) if pipe.is_connected]
        if not shards:
            raise ShardStarting("the shards are starting; nothing was done, try again")
        return shards

    def split(self, realms: Sequence[str], items: Iterable[Item]) -> dict[int, list[Item]]:
        """The items by shard; `realms` says of each in which realm it is."""
        groups: dict[int, list[Item]] = {}
        for realm, item in zip(realms, items, strict=True):
            groups.setdefault(self.placement.shard_of(realm), []).append(item)
        return groups

    async def ask(
        self, calls: Mapping[int, tuple[str, list[Any], bytes]], once: Sequence[str] = ()
    ) -> dict[int, Reply]:
        """Ask shards side by side, all under one idempotency key. Raises the first refusal, or RealmMoved."""
        for shard in calls:
            if not self.pipes[shard].is_connected:
                raise ShardStarting(f"shard {shard} is starting again; nothing was done, try again")
        futures = [self.call(shard, *call, once=once) for shard, call in calls.items()]
        replies = await asyncio.gather(*futures, return_exceptions=True)
        answered: dict[int, Reply] = {}
        for shard, reply in zip(calls, replies, strict=True):
            if isinstance(reply, BaseException):
                raise reply
            if reply.status == MOVED:
                self.learn(reply)
            elif reply.status != 200:
                raise from_reply(reply.status, json.loads(reply.body))
            else:
                answered[shard] = reply
        if len(answered) < len(calls):
            raise RealmMoved
        return answered

    async def ask_realms(self, calls: Mapping[str, tuple[str, list[Any], bytes]], once: Sequence[str] = ()) -> None:
        """Ask realms, wherever each lives by now, all under one idempotency key. Raises the first refusal.

        Other realms may then be done, or not asked at all.
        """
        left = dict(calls)
        for _ in range(ATTEMPTS_MAX + len(calls)):
            asked = list(itertools.islice(left, REALMS_MAX))
            shards = map(self.placement.shard_of, asked)
            futures = [
                self.call(shard, *left[realm], once=once, realm=realm)
                for shard, realm in zip(shards, asked, strict=True)
            ]
            replies = await asyncio.gather(*futures, return_exceptions=True)
            for realm, reply in zip(asked, replies, strict=True):
                if isinstance(reply, BaseException):
                    raise reply
                if reply.status == MOVED:
                    self.placement.learn(realm, reply.extra)
                elif reply.status != 200:
                    raise from_reply(reply.status, json.loads(reply.body))
                else:
                    del left[realm]
            if not left:
                return
        raise ShardUnavailable("a realm is on the move; nothing was done in it, try again")

    def call(
        self,
        shard: int,
        operation: str,
        params: list[Any],
        body: bytes = b"",
        waits: bool = False,
        once: Sequence[str] = (),
        realm: str = "",
    ) -> Promise:
        """Ask a shard, or a realm there. What can't be sent fails like what was sent."""
        try:
            return self.pipes[shard].call(operation, realm, params, body, once, waits)
        except RestqError as error:
            failed = Promise(loop=asyncio.get_running_loop())
            failed.set_exception(error)
            return failed

    def learn(self, reply: Reply) -> None:
        """A shard said where a realm lives by now."""
        self.placement.learn(reply.body.decode(), reply.extra)

    async def ask_all(self, operation: str) -> list[Any]:
        """Ask every shard the same; its answers, decoded."""
        replies = await self.ask({shard: (operation, [], b"") for shard in range(len(self.pipes))})
        return [json.loads(reply.body) for reply in replies.values()]

    def undo(self, lease: Lease, key: str = "") -> None:
        """Give back what was leased for a client that is gone, and forget the reply kept under its idempotency key.

        If this fails too, the lease runs out.
        """
        task = asyncio.ensure_future(self._undo(lease, key))
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def _undo(self, lease: Lease, key: str) -> None:
        realm, number, pairs = lease
        try:
            for _ in range(ATTEMPTS_MAX):
                reply = await self.pipe_of(realm).call("undo_pull", realm, [number, pairs, key], b"")
                if reply.status != MOVED:
                    return
                self.placement.learn(realm, reply.extra)
        except RestqError as error:
            log.info("a pull could not be undone: %s", error)
