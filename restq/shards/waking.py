"""Answering who waits: as soon as there is something for them, when their time is up, or when they leave."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable

from restq.errors import IdempotencyKeyReused
from restq.protocol import MOVED, Reply
from restq.shards import leasing
from restq.shards.actor import Mail, Sender
from restq.shards.archive import Archive
from restq.shards.commands.call import Call, Done, Wait
from restq.shards.leasing import Wanted
from restq.shards.realm import Realm
from restq.shards.replies import Replies
from restq.shards.waiting import Order, Waiter, Waiters

LEFT_MAX = 10_000  # requests that were left before they were served, and are remembered

_ANY = Wanted()


class Waking:
    """The waiters of a shard. `answer` sends a reply, `realm_of` gives a realm, an empty one if there is none.

    `put_off` has a request served anew after the task that is under way in its realm; False if there is none.
    """

    def __init__(
        self,
        archive: Archive,
        replies: Replies,
        answer: Callable[[Mail, Reply], None],
        realm_of: Callable[[str], Realm],
        put_off: Callable[[Mail], bool],
    ) -> None:
        self._waiting = Waiters()
        self._archive = archive
        self._replies = replies
        self._answer = answer
        self._realm_of = realm_of
        self._put_off = put_off
        self._left: dict[tuple[int, int], None] = {}
        self._orders: dict[tuple[int, int], Order] = {}  # of those that may have to wait once more: their places
        self._last_number = 0

    def wait(self, mail: Mail, wait: Wait, now: float) -> None:
        """Have a request wait. The same request once more, by its idempotency key, takes the place of the first."""
        if (id(mail.sender), mail.request_id) in self._left:
            realm = self._realm_of(mail.realm)
            self._answer(mail, self._ok(mail, wait.nothing(realm, self._call(mail, now)), realm, now))
            return
        if (other := self._waiting.of_once(mail)) is not None:
            self._give_up(other, now)
        if wait.watch is not None:
            self._realm_of(mail.realm).tags.watched.add(wait.watch)
        self._last_number += 1
        order = now - mail.waited, self._last_number
        self._waiting.add(mail, wait, self._orders.pop((id(mail.sender), mail.request_id), order))

    def supersede(self, mail: Mail, now: float) -> None:
        """The same request came again, by another way: who waits under its key waits no longer."""
        if (other := self._waiting.of_once(mail)) is not None and other.mail.once == mail.once:
            self._give_up(other, now)

    def check(self, mail: Mail) -> None:
        """Raise IdempotencyKeyReused if another request waits under the key of this one."""
        other = self._waiting.of_once(mail)
        if other is not None and other.mail.once != mail.once:
            told = f"another request waits under the idempotency key {mail.once[0]!r}"
            raise IdempotencyKeyReused(told, "Idempotency-Key")

    def happened(self, name: str, realm: Realm | None, now: float) -> None:
        """Something happened to a realm: answer whom that gives something to, first come, first served."""
        if not self._waiting.has(name):
            if realm is not None:
                realm.tags.watched.clear()
                realm.tags.vanished.clear()
            return
        if realm is None:  # it is gone, and all tags with it
            for waiter in self._waiting.of_realm(name):
                if waiter.wait.watch is not None:
                    self._give_up(waiter, now)
            return
        for tag in realm.tags.vanished:
            if tag not in realm.tags:
                realm.tags.watched.discard(tag)
                for waiter in self._waiting.watching(name, tag):
                    self._give_up(waiter, now)
        realm.tags.vanished.clear()
        if realm.next_deadline() <= now or not leasing.has_ready(realm, _ANY):
            return  # where there is time to pass first, we are told again then
        heads = self._waiting.heads(name)
        while heads and leasing.has_ready(realm, _ANY):
            waiter = heads.pop(0)
            done = waiter.wait.again(realm, self._call(waiter.mail, now))
            if done is None:  # in vain for all of its group
                continue
            self._finish(waiter, done, realm, now)
            if (following := waiter.group.first()) is not None:
                insort(heads, following, key=lambda head: head.order)

    def tell(self, now: float) -> None:
        """There is news: tell those whom it concerns."""
        for group in self._waiting.listening():
            waiters = list(group)
            news = waiters[0].wait.again(self._realm_of(""), self._call(waiters[0].mail, now))
            if news is not None:
                for waiter in waiters:
                    self._end(waiter, Reply(waiter.mail.request_id, 200, news.body))

    def time_up(self, now: float) -> None:
        """Answer those who waited as long as they wanted to."""
        for waiter in self._waiting.due(now):
            self._give_up(waiter, now)

    def leave(self, sender: Sender, request_id: int, now: float) -> None:
        """A front end does not want to wait for a request any longer, which may not even be served yet."""
        self._left[id(sender), request_id] = None
        if len(self._left) > LEFT_MAX:
            del self._left[next(iter(self._left))]
        waiter = self._waiting.of_request(sender, request_id)
        if waiter is not None:
            self._give_up(waiter, now)

    def served(self, mails: Iterable[Mail]) -> None:
        """Requests are told their answers: that they were left, or their places, means nothing any more."""
        for mail in mails if self._left or self._orders else ():
            for remembered in (self._left, self._orders):
                remembered.pop((id(mail.sender), mail.request_id), None)

    def gone(self, sender: Sender) -> None:
        """A front end is gone: nobody waits for its requests."""
        for waiter in self._waiting.of_sender(sender):
            self._waiting.remove(waiter)
        self._left = {left: None for left in self._left if left[0] != id(sender)}
        self._orders = {key: order for key, order in self._orders.items() if key[0] != id(sender)}

    def moved(self, name: str, shard: int) -> None:
        """A realm lives elsewhere by now: who named it waits there."""
        for waiter in self._waiting.of_realm(name):
            self._end(waiter, Reply(waiter.mail.request_id, MOVED, name.encode(), shard))

    def end(self, now: float) -> None:
        """Answer all who wait, with what there is."""
        for waiter in self._waiting.all():
            self._give_up(waiter, now)

    def take_mail(self) -> list[Mail]:
        """Have nobody wait any more; returns their requests, to be served anew. They keep their places."""
        waiters = self._waiting.all()
        self._waiting = Waiters()
        self._orders.update({(id(waiter.mail.sender), waiter.mail.request_id): waiter.order for waiter in waiters})
        return [waiter.mail for waiter in waiters]

    def next_deadline(self) -> float:
        """When somebody's time is up next."""
        return self._waiting.next_deadline()

    def _call(self, mail: Mail, now: float) -> Call:
        return Call(mail.params, mail.body, now, self._archive)

    def _give_up(self, waiter: Waiter, now: float) -> None:
        mail = waiter.mail
        if waiter.wait.watch is not None and self._put_off(mail):  # what it would be told is half of a task
            self._remove(waiter)
            return
        realm = self._realm_of(mail.realm)
        self._finish(waiter, waiter.wait.nothing(realm, self._call(mail, now)), realm, now)

    def _finish(self, waiter: Waiter, done: Done, realm: Realm, now: float) -> None:
        self._end(waiter, self._ok(waiter.mail, done, realm, now))

    def _end(self, waiter: Waiter, reply: Reply) -> None:
        self._remove(waiter)
        self._answer(waiter.mail, reply)

    def _remove(self, waiter: Waiter) -> None:
        """It waits no longer, unless it has to once more: then in its place, for the rest of its time."""
        self._waiting.remove(waiter)
        self._orders[id(waiter.mail.sender), waiter.mail.request_id] = waiter.order

    def _ok(self, mail: Mail, done: Done, realm: Realm, now: float) -> Reply:
        """The reply, which is kept in the realm where something was done."""
        if mail.once and mail.realm:
            self._replies.note(realm.key, mail, done, now)
        elif mail.once and done.lease:
            self._replies.keep(realm.key, mail.once, done, now)
        return Reply(mail.request_id, 200, done.body, done.lease)
