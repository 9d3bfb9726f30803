"""Who waits in a shard: requests that are answered once there is something to give, or when their time is up.

Those that ask for the same are a group: what is in vain for the first of them is in vain for all. Within a realm they
are served in the order in which they came. Nobody is asked twice while nothing happens: waiting costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator

from restq.shards.actor import Mail, Sender
from restq.shards.commands.call import Wait
from restq.shards.heap import LazyHeap


class Waiter:
    """One request that waits."""

    __slots__ = ("due_at", "is_done", "mail", "order", "wait")

    def __init__(self, mail: Mail, wait: Wait, order: int, due_at: float) -> None:
        self.mail = mail
        self.wait = wait
        self.order = order
        self.due_at = due_at
        self.is_done = False


class Waiters:
    """All that wait in a shard, by realm ("" for several) and group, by sender, and by the end of their time."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[Hashable, dict[int, Waiter]]] = {}
        self._by_request: dict[tuple[int, int], Waiter] = {}  # by sender's identity and request id
        self._by_once: dict[tuple[str, str], Waiter] = {}  # by realm and idempotency key
        self._deadlines: LazyHeap[tuple[float, int, Waiter]] = LazyHeap(lambda entry: not entry[2].is_done)
        self._last_order = 0

    def __len__(self) -> int:
        return len(self._by_request)

    def add(self, mail: Mail, wait: Wait, due_at: float) -> Waiter:
        """Have a request wait until then."""
        self._last_order += 1
        waiter = Waiter(mail, wait, self._last_order, due_at)
        self._groups.setdefault(mail.realm, {}).setdefault(_group(wait), {})[waiter.order] = waiter
        self._by_request[id(mail.sender), mail.request_id] = waiter
        if mail.once:
            self._by_once[mail.realm, mail.once[0]] = waiter
        self._deadlines.push((waiter.due_at, waiter.order, waiter))
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """It waits no longer."""
        waiter.is_done = True
        self._deadlines.discard()
        del self._by_request[id(waiter.mail.sender), waiter.mail.request_id]
        if waiter.mail.once:
            del self._by_once[waiter.mail.realm, waiter.mail.once[0]]
        groups = self._groups[waiter.mail.realm]
        group = groups[_group(waiter.wait)]
        del group[waiter.order]
        if not group:
            del groups[_group(waiter.wait)]
            if not groups:
                del self._groups[waiter.mail.realm]

    def has(self, realm: str) -> bool:
        """Whether anybody waits for something of this realm."""
        return realm in self._groups

    def heads(self, realm: str) -> list[Waiter]:
        """The first of each group that waits for jobs of the realm, in the order in which they came."""
        groups = self._groups.get(realm, {}).values()
        heads = [next(iter(group.values())) for group in groups]
        return sorted((head for head in heads if head.wait.watch is None), key=lambda waiter: waiter.order)

    def following(self, waiter: Waiter) -> Waiter | None:
        """The first of the waiter's group, which it is no longer in."""
        group = self._groups.get(waiter.mail.realm, {}).get(_group(waiter.wait))
        return next(iter(group.values())) if group else None

    def watching(self, realm: str, tag: str) -> list[Waiter]:
        """Those that wait for the end of a tag."""
        return list(self._groups.get(realm, {}).get((tag,), {}).values())

    def of_realm(self, realm: str) -> list[Waiter]:
        """All that wait for something of this realm, in the order in which they came."""
        found = [waiter for group in self._groups.get(realm, {}).values() for waiter in group.values()]
        return sorted(found, key=lambda waiter: waiter.order)

    def of_request(self, sender: Sender, request_id: int) -> Waiter | None:
        """The one that this request is, if it waits."""
        return self._by_request.get((id(sender), request_id))

    def of_once(self, mail: Mail) -> Waiter | None:
        """The one that waits under the same idempotency key."""
        return self._by_once.get((mail.realm, mail.once[0])) if mail.once else None

    def of_sender(self, sender: Sender) -> list[Waiter]:
        """Those that a front end waits for."""
        return [waiter for waiter in self._by_request.values() if waiter.mail.sender is sender]

    def all(self) -> list[Waiter]:
        """All of them."""
        return list(self._by_request.values())

    def next_deadline(self) -> float:
        """When somebody's time is up next; infinity if nobody waits."""
        first = self._deadlines.peek()
        return math.inf if first is None else first[0]

    def due(self, now: float) -> Iterator[Waiter]:
        """Those whose time is up; each must be removed before the next is asked for."""
        while (first := self._deadlines.peek()) is not None and first[0] <= now:
            yield first[2]


def _group(wait: Wait) -> Hashable:
    """Those that watch a tag are apart from those that ask for jobs."""
    return wait.group if wait.watch is None else (wait.watch,)
