"""Who waits in a shard: requests that are answered once there is something to give, or when their time is up.

Those that ask for the same of the same realms are a group: what is in vain for the first of them is in vain for all.
All who wait for jobs of a realm, be it of that one alone or of several, stand in one line, in the order in which they
came. Nobody is asked twice while nothing happens: waiting costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator

from restq.shards.actor import Mail, Sender
from restq.shards.commands.call import Wait
from restq.shards.heap import LazyHeap

_ALL = ""  # in the place of a realm's name: of all realms, also of those that come to be later

Order = tuple[float, int]  # when a request came, and its number among all: who is lowest is served first


class Waiter:
    """One request that waits."""

    __slots__ = ("due_at", "group", "is_done", "mail", "order", "wait")

    def __init__(self, mail: Mail, wait: Wait, order: Order, group: Group) -> None:
        self.mail = mail
        self.wait = wait
        self.order = order
        self.group = group
        self.due_at = order[0] + wait.seconds
        self.is_done = False


class Group:
    """Those that ask for the same of the same realms; `names` are those of the realms in whose lines they stand."""

    __slots__ = ("_line", "key", "names")

    def __init__(self, key: Hashable, names: tuple[str, ...]) -> None:
        self.key = key
        self.names = names
        self._line: LazyHeap[tuple[Order, Waiter]] = LazyHeap(lambda entry: not entry[1].is_done)

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Waiter]:
        """All of them, in any order."""
        return (waiter for _, waiter in self._line.entries if not waiter.is_done)

    def add(self, waiter: Waiter) -> None:
        """One more, in its place: one that asks anew may have come before others."""
        self._line.push((waiter.order, waiter))

    def discard(self) -> None:
        """One of them is done."""
        self._line.discard()

    def first(self) -> Waiter | None:
        """Who came first."""
        entry = self._line.peek()
        return None if entry is None else entry[1]


class Waiters:
    """All that wait in a shard, by group, by the realms that these concern, by sender, and by the end of their time."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, Group] = {}
        self._by_realm: dict[str, dict[Hashable, Group]] = {}
        self._listening: dict[Hashable, Group] = {}
        self._by_request: dict[tuple[int, int], Waiter] = {}  # by sender's identity and request id
        self._by_once: dict[tuple[str, str], Waiter] = {}  # by realm ("" for several) and idempotency key
        self._deadlines: LazyHeap[tuple[float, Order, Waiter]] = LazyHeap(lambda entry: not entry[2].is_done)

    def __len__(self) -> int:
        return len(self._by_request)

    def add(self, mail: Mail, wait: Wait, order: Order) -> Waiter:
        """Have a request wait in this place."""
        key = _key(mail, wait)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key, _names(mail, wait))
            for name in group.names:
                self._by_realm.setdefault(name, {})[key] = group
            if wait.is_for_news:
                self._listening[key] = group
        waiter = Waiter(mail, wait, order, group)
        group.add(waiter)
        self._by_request[id(mail.sender), mail.request_id] = waiter
        if mail.once:
            self._by_once[mail.realm, mail.once[0]] = waiter
        self._deadlines.push((waiter.due_at, order, waiter))
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """It waits no longer."""
        waiter.is_done = True
        self._deadlines.discard()
        del self._by_request[id(waiter.mail.sender), waiter.mail.request_id]
        if waiter.mail.once:
            del self._by_once[waiter.mail.realm, waiter.mail.once[0]]
        group = waiter.group
        group.discard()
        if not group:
            del self._groups[group.key]
            self._listening.pop(group.key, None)
            for name in group.names:
                del self._by_realm[name][group.key]
                if not self._by_realm[name]:
                    del self._by_realm[name]

    def has(self, realm: str) -> bool:
        """Whether anybody waits for something of this realm."""
        return realm in self._by_realm or _ALL in self._by_realm

    def heads(self, realm: str) -> list[Waiter]:
        """The first of each group that waits for jobs of the realm, in the order in which they came."""
        groups = (*self._by_realm.get(realm, {}).values(), *self._by_realm.get(_ALL, {}).values())
        heads = [head for group in groups if (head := group.first()) is not None and head.wait.is_for_jobs]
        return _in_order(heads)

    def watching(self, realm: str, tag: str) -> list[Waiter]:
        """Those that wait for the end of a tag."""
        return _in_order(self._groups.get((realm, tag), ()))

    def listening(self) -> list[Group]:
        """Those that wait for news, by what they know already."""
        return list(self._listening.values())

    def of_realm(self, realm: str) -> list[Waiter]:
        """All that wait for something of this realm and name it, in the order in which they came."""
        return _in_order(waiter for group in self._by_realm.get(realm, {}).values() for waiter in group)

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
        """All of them, in the order in which they came."""
        return _in_order(self._by_request.values())

    def next_deadline(self) -> float:
        """When somebody's time is up next; infinity if nobody waits."""
        first = self._deadlines.peek()
        return math.inf if first is None else first[0]

    def due(self, now: float) -> Iterator[Waiter]:
        """Those whose time is up; each must be removed before the next is asked for."""
        while (first := self._deadlines.peek()) is not None and first[0] <= now:
            yield first[2]


def _key(mail: Mail, wait: Wait) -> Hashable:
    """What makes a group: those that watch a tag are apart from those that ask for jobs, and from those that listen."""
    if wait.watch is not None:
        return mail.realm, wait.watch
    return mail.realm or wait.realms, wait.group, wait.is_for_news


def _names(mail: Mail, wait: Wait) -> tuple[str, ...]:
    if mail.realm:
        return (mail.realm,)
    if wait.realms is None:
        return () if wait.is_for_news else (_ALL,)
    return wait.realms


def _in_order(waiters: Iterable[Waiter]) -> list[Waiter]:
    return sorted(waiters, key=lambda waiter: waiter.order)
