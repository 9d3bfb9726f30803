"""How one request reaches several realms of a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from restq.placement import Placement
from restq.protocol import Reply
from restq.shards.actor import Actor, Elsewhere, Held, Mail
from restq.shards.commands import SHARD_OPERATIONS
from restq.shards.commands.call import Call, Done, Wait
from restq.shards.internal import INTERNAL_OPERATIONS
from restq.shards.moving import ARRIVAL_OPERATIONS
from restq.shards.realm import Realm
from restq.shards.replies import Replies

if TYPE_CHECKING:
    from restq.shards.shard import Shard


class Several:
    """The realms of a shard, to an operation on more than one: it asks for all it needs before it changes any."""

    def __init__(
        self,
        index: int,
        placement: Placement,
        actors: Mapping[str, Actor],
        new_realm: Callable[[str], Realm],
        replies: Replies,
        once: Sequence[str],
        now: float,
    ) -> None:
        self._index = index
        self._placement = placement
        self._actors = actors
        self._new_realm = new_realm
        self._replies = replies
        self._once = once
        self._now = now
        self.touched: dict[str, Realm] = {}  # what was given: some may come to be

    def get(self, name: str) -> Realm:
        """The realm, an empty one if there is none. Raises Held, or Elsewhere."""
        if self._is_held(name):
            raise Held
        realm = self.touched.get(name)
        if realm is None:
            actor = self._actors.get(name)
            realm = actor.realm if actor is not None else None
            realm = self.touched[name] = realm or self._new_realm(name)
        return realm

    def is_free(self, name: str) -> bool:
        """Whether no task holds the realm, and no time is to pass in it before all else. Raises Elsewhere."""
        if self._is_held(name):
            return False
        actor = self._actors.get(name)
        return actor is None or actor.realm is None or actor.realm.next_deadline() > self._now

    def _is_held(self, name: str) -> bool:
        owner = self._placement.shard_of(name)
        if owner != self._index:
            raise Elsewhere(name, owner)
        actor = self._actors.get(name)
        return actor is not None and actor.held

    def names(self) -> list[str]:
        """The realms that exist here."""
        return [name for name, actor in self._actors.items() if actor.realm is not None]

    def claim(self, claim: Sequence[float]) -> None:
        """Claim the request's key. Raises ShardUnavailable."""
        if self._once:
            self._replies.claims.make(self._once, claim)

    def keep(self, realm: Realm, done: Done, now: float) -> None:
        """The part of the request in this realm is done, and this is its reply."""
        if self._once:
            self._replies.keep(realm.key, self._once, done, now)

    def recalled(self, names: Iterable[str] | None, call: Call) -> bytes:
        """The parts that this very request did in these realms, or in all, when it came before: lists as one list.

        A realm that a task holds is no exception.
        """
        if not self._once:
            return b"[]"
        actors = self._actors.values() if names is None else filter(None, map(self._actors.get, names))
        realms = [actor.realm for actor in actors if actor.realm is not None]
        rows = [row for realm in realms for row in self._replies.find(realm.key, self._once, call.now)]
        parts = [body[1:-1] for row in rows if (body := call.archive.reply(row)) is not None]
        return b"[" + b",".join(parts) + b"]"


def serve_several(shard: Shard, mail: Mail, call: Call) -> Reply | Wait:
    """Reply to a message that concerns several realms, or none. Raises Held."""
    if mail.operation in INTERNAL_OPERATIONS:
        return INTERNAL_OPERATIONS[mail.operation](shard, mail, call)
    if mail.operation in ARRIVAL_OPERATIONS:
        body = ARRIVAL_OPERATIONS[mail.operation](shard.arrivals, mail.params, mail.sender, call.now)
        return Reply(mail.request_id, 200, body)
    shard.waking.check(mail)
    several = shard.several(mail.once)
    try:
        outcome = SHARD_OPERATIONS[mail.operation](several, call)
        return outcome if isinstance(outcome, Wait) else Reply(mail.request_id, 200, outcome.body, outcome.lease)
    except Elsewhere as elsewhere:
        return elsewhere.reply(mail.request_id)
    finally:
        for name, realm in several.touched.items():
            actor = shard.mailboxes.actor(name)
            shard.settle(actor, realm)
            if realm.exists:
                shard.happened(actor)
