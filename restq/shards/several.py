"""How one request reaches several realms of a shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from restq.placement import Placement
from restq.shards.actor import Actor, Elsewhere, Held
from restq.shards.realm import Realm
from restq.shards.replies import Replies


class Several:
    """The realms of a shard, to an operation on more than one: it asks for all it needs before it changes any."""

    def __init__(
        self,
        index: int,
        placement: Placement,
        actors: Mapping[str, Actor],
        new_realm: Callable[[str], Realm],
        replies: Replies,
        call: tuple[Sequence[str], float],
    ) -> None:
        self._index = index
        self._placement = placement
        self._actors = actors
        self._new_realm = new_realm
        self._replies = replies
        self._once, self._now = call
        self.touched: dict[str, Realm] = {}  # what was given: some may come to be

    def get(self, name: str) -> Realm:
        """The realm, an empty one if there is none. Raises Held, or Elsewhere."""
        if not self.is_free(name):
            raise Held
        realm = self.touched.get(name)
        if realm is None:
            actor = self._actors.get(name)
            realm = actor.realm if actor is not None else None
            realm = self.touched[name] = realm or self._new_realm(name)
        return realm

    def is_free(self, name: str) -> bool:
        """Whether no task holds the realm. Raises Elsewhere."""
        owner = self._placement.shard_of(name)
        if owner != self._index:
            raise Elsewhere(name, owner)
        actor = self._actors.get(name)
        return actor is None or not actor.held

    def names(self) -> list[str]:
        """The realms that exist here."""
        return [name for name, actor in self._actors.items() if actor.realm is not None]

    def is_done(self, realm: Realm) -> bool:
        """Whether this very request did its part in the realm before. Raises IdempotencyKeyReused."""
        return bool(self._once and self._replies.find(realm.key, self._once, self._now))

    def keep(self, realm: Realm, body: bytes, held_until: float = 0.0) -> None:
        """The part of the request in this realm is done, and this is its reply, with leases until then."""
        if self._once:
            self._replies.keep(realm.key, self._once, body, self._now, held_until)
