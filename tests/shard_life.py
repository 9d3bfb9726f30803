"""A shard with its store and the simple realms, side by side: the same messages, turns, crashes and a made-up clock.

The simple realms are told of a message when the shard takes it up, so both see it at the same instant. Replies are
looked at once the commit that covers them is made; after each turn all that can be seen of both must be the same. What
was not committed is forgotten on both sides. What goes on in steps was done at once to all who look; after a crash it
is asked of the loaded realm what of it the file holds, the rest is done as of then.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import realm_views as views
from realm_answers import (
    Leased,
    Refused,
    Request,
    lease_of,
    lease_peeked,
    peek,
)
from realm_book import Book, Difference, Kept, Undertaking
from realm_model import CHANCE, DEFAULT_LEASE_TIME, ModelPlace
from shard_draws import Draws
from shard_looks import Looks, Moved, Parts
from shard_rig import FULL, Sender, completed

from restq.errors import IdempotencyKeyReused, InternalError
from restq.placement import Placement
from restq.protocol import Frames, Reply, pack
from restq.protocol import Request as Message
from restq.shards.actor import Mail
from restq.shards.commands import HELD_UP
from restq.shards.commands.call import Work
from restq.shards.full import refuse
from restq.shards.invariants import check
from restq.shards.memory_store import MemoryStore
from restq.shards.realm import Realm
from restq.shards.shard import Shard
from restq.shards.store import Room
from restq.shards.tasks import Passing

REALMS = ("a", "b", "c")
FATES = ("", "lost", "unseen", "full")  # of a turn: see `_turn`
LAPSES = (0.25, 1.0, 4.75, 5.0, 8.0) * 3 + (600.0, 601.0, 100_000.0)


def _mailbox(message: Request | Mail) -> str:
    """Where a message waits: behind those that were sent before it there."""
    return message.realm or ("held up" if message.operation in HELD_UP else "")


class WatchedShard(Shard):
    """Tells of each message that it takes up."""

    told: Callable[[Mail, Any], None]

    def _serve(self, actor: Any, mail: Mail) -> Any:
        outcome = super()._serve(actor, mail)
        self.told(mail, outcome)
        return outcome


class ShardLife:
    """One seed's life of a shard."""

    def __init__(self, seed: int, open_store: Callable[[], Any]) -> None:
        self.chance = random.Random(seed)
        self.steps = 0
        self.now = 1_000.0
        self._open = open_store
        self._store = open_store()
        self._group = 0
        self._frames = Frames()
        self._books: dict[str, Book] = {name: Book() for name in REALMS}
        self._under: dict[str, Undertaking] = {}
        self._looks = Looks()
        self._draws = Draws(self.chance, self._looks.leases)
        self._requests: dict[int, Request] = {}  # which were not answered yet
        self._answers: dict[int, Any] = {}  # to what was taken up
        self._pending: defaultdict[str, deque[int]] = defaultdict(deque)
        self._touched: set[str] = set()
        self._last_id = 0
        self._turns = 0
        self._sender = Sender()
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=400)  # what happened of late
        self._start()
        for name in REALMS:
            self._send(self._draws.keep_done(name))
        self._turn()

    # -- a life ------------------------------------------------------------------------------------------------------

    def live(self, steps: int) -> None:
        """Have so many things happen."""
        chance = self.chance
        while self.steps < steps:
            if chance.random() < 0.25 and not self._has_undo():
                self.now += chance.choice(LAPSES)
                self.steps += 1
            self._draws.now = self.now
            for _ in range(chance.choice((1, 1, 1, 1, 2, 3, 6))):
                if chance.random() < 0.06:
                    self._send(self._draws.several({name: book.model for name, book in self._books.items()}))
                    continue
                name = chance.choice(REALMS)
                self._send(self._draws.request(name, self._books[name].model))
            self._turn(self._fate())
            while chance.random() < 0.9 and self.shard.busy(self.now):
                self._turn(self._fate())
            if chance.random() < 0.01:
                self._restart()

    def _fate(self) -> str:
        """What befalls a turn: more often while something goes on in steps."""
        return self.chance.choices(FATES, cum_weights=(88, 92, 97, 100) if self._under else (94, 96, 98, 100))[0]

    def close(self) -> None:
        """It is over."""
        self._store.close()

    def _has_undo(self) -> bool:
        return any(request.operation == "undo_pull" for request in self._requests.values())

    def _send(self, request: Request) -> None:
        self._last_id += 1
        self._requests[self._last_id] = request
        self._pending[_mailbox(request)].append(self._last_id)
        message = Message(self._last_id, request.operation, request.realm, request.params, request.body, request.once)
        for frame in self._frames.feed(pack(message)):
            self.shard.receive(Mail(self._sender, 0.0, *frame))

    # -- turns, and what befalls them ----------------------------------------------------------------------------------

    def _turn(self, fate: str = "") -> None:
        """One turn; its group is kept and told, lost, kept but not told, or refused by a full disk."""
        before = None
        if fate in ("lost", "full"):
            before = {name: book.copy() for name, book in self._books.items()}, dict(self._under)
        self.trace.append((self.now, "turn", fate))
        self.shard.turn(self.now)
        changes = self.shard.take_changes()
        if before is not None and (fate == "lost" or len(changes)):
            self._books, self._under = before
            if fate == "lost":
                self._restart()
            else:
                self._refuse()
            return
        if len(changes):
            self._group += 1
            completed(self._store.commit(changes, self.shard.mark(self._group, self.now)))
        self.shard.committed(self.shard.outbox)
        self._conclude_all()
        outbox, self.shard.outbox = self.shard.outbox, []
        for mail, reply in outbox:
            if mail.sender is self._sender:
                self._look_at(mail, reply)
        under_way = {id(under.request) for under in self._under.values()}
        if any(id(self._requests[request_id]) not in under_way for request_id in self._answers):
            raise Difference(f"what was taken up is not answered: {self._answers}")
        if fate == "unseen":
            self._restart()
            return
        self._turns += 1
        self._compare(REALMS if self._turns % 8 == 0 else [name for name in REALMS if name in self._touched])
        if self._turns % 32 == 0 and isinstance(self._store, MemoryStore) and not self.shard.busy(self.now):
            self._looks.rows([book.model for book in self._books.values()], self._store._tables)
        self._touched.clear()

    def _refuse(self) -> None:
        """There was no room for the group: what the process does then. There is room again at once."""
        shard = self.shard
        shard.set_room(Room.NONE)
        refused = refuse(shard, shard.outbox, FULL)
        shard.outbox = []
        shard.load(self._store.load(), self.now)
        shard.set_room(Room.ENOUGH)
        shard.committed(refused)
        outbox, shard.outbox = shard.outbox, []  # what waited for a bulk add that rests
        for mail, reply in (*refused, *outbox):
            if reply.status != 507:
                raise Difference(f"{mail.operation}: {reply} where the disk is full")
            self._requests.pop(mail.request_id, None)
        actors = [*shard.mailboxes.actors.values(), shard.mailboxes.several, shard.mailboxes.unheld]
        self._pending.clear()
        for mail in [mail for actor in actors for mail in actor.mail]:
            self._pending[_mailbox(mail)].append(mail.request_id)
        if sorted(self._requests) != sorted(key for pending in self._pending.values() for key in pending):
            raise Difference(f"neither refused nor waiting: {self._requests}, {self._pending}")
        self._answers.clear()
        self._go_on()

    def _restart(self) -> None:
        """All that is in memory is lost."""
        self.steps += 1
        self._store.close()
        self._store = self._open()
        self._requests.clear()
        self._answers.clear()
        self._pending.clear()
        if self.chance.random() < 0.5:
            self.now += self.chance.choice(LAPSES)
        self._start()
        self._go_on()

    def _start(self) -> None:
        self.shard = WatchedShard(
            0, Placement(2, dict.fromkeys(REALMS, 0)), DEFAULT_LEASE_TIME, self._store, chance=lambda: CHANCE
        )
        self.shard.told = self._served
        self.trace.append((self.now, "start"))
        self.shard.load(self._store.load(), self.now)

    def _go_on(self) -> None:
        """The shard was loaded."""
        for name in REALMS:
            self._resume(name, self.shard.find(name))
        self._compare(REALMS)
        self._touched.clear()

    # -- what the simple realms do -------------------------------------------------------------------------------------

    def _served(self, mail: Mail, outcome: Any) -> None:
        """The shard took up a message."""
        self.steps += 1
        name, now = mail.realm, self.now
        self.trace.append((now, mail.realm, mail.operation, mail.params, mail.body, mail.once, type(outcome).__name__))
        if self._pending[_mailbox(mail)].popleft() != mail.request_id:
            raise Difference(f"{mail.operation} was not the next message of realm {name}")
        request = self._requests[mail.request_id]
        request.served_at = now
        if name not in REALMS:
            self._answers[mail.request_id] = self._answer_several(request)
            return
        self._conclude(name)
        was_touched = name in self._touched
        self._touched.add(name)
        if was_touched and isinstance(outcome, Work):
            self._books[name].trim()  # at the end of the turn, for what came before: nobody sees it sooner
        if request.refused is not InternalError:  # else the realm is not even asked
            self._books[name].model.settle(now)
        self._answers[mail.request_id] = self._answer(name, request, isinstance(outcome, Work))

    def _answer(self, name: str, request: Request, is_work: bool) -> Any:
        book, now = self._books[name], self.now
        if request.once:
            kept = book.kept.get(request.once[0])
            if kept is not None and kept.until > now:
                if kept.digest != request.once[1]:
                    return Refused(IdempotencyKeyReused)
                kept.again = True
                return kept
        if request.operation == "undo_pull":
            return book.undo_pull(request)
        before = book.copy() if is_work else None
        answer = Refused(request.refused) if request.refused else book.do(request)
        if before is not None:
            self._under[name] = Undertaking(request, before, answer)
        elif (noted := book.keep(request, answer, now)) is not None:
            return noted
        return answer

    def _answer_several(self, request: Request) -> Any:
        """The answer to what is asked of several realms, or of one that lives elsewhere."""
        if request.realm:
            return Moved(1)
        books = {name: book for name, book in self._books.items() if not self._is_held(name)}
        if request.operation == "get_statuses":
            if len(books) < len(REALMS):
                raise Difference("all realms are looked at while one of them is held")
            for name in books:
                self._let_time_pass(name)
            return {name: views.shown_status(book.model) for name, book in books.items() if book.model.exists}
        parts: dict[str, Any] = {}
        leased: list[ModelPlace] = []
        names = request.params[2] if request.operation == "peek" else [wish[0] for wish in request.params[0]]
        for name in books if names is None else dict.fromkeys(names):
            if name in books:
                book = books[name]
                self._touched.add(name)
                book.model.settle(self.now)
                if request.operation == "peek":
                    parts[name] = peek(book.model, name, request)
                else:
                    parts[name], places = lease_peeked(book.model, name, request)
                    leased += places
        reply = Parts(parts)
        return Leased(reply, lease_of(leased[0])[0], 0.0) if leased else reply

    def _is_held(self, name: str) -> bool:
        actor = self.shard.mailboxes.actors.get(name)
        return actor is not None and actor.held

    def _is_under_way(self, name: str) -> bool:
        """Whether what was asked of it goes on; where only time passes in steps, it does not."""
        actor = self.shard.mailboxes.actors.get(name)
        return actor is not None and actor.held and not (actor.work and isinstance(actor.work[0].steps, Passing))

    def _let_time_pass(self, name: str) -> None:
        """Time passed in a realm that nobody asked for anything: the simple one is not told of that."""
        realm = self.shard.find(name)
        if realm is not None and realm.next_deadline() > realm.clock:  # else there is time to pass first
            self._books[name].model.settle(realm.clock)

    def _conclude_all(self) -> None:
        for name in REALMS:
            if not self._is_under_way(name):
                self._conclude(name)
                self._let_time_pass(name)  # else a start would do as of then what was done, and kept, by now
            if name not in self._under:
                self._books[name].trim()

    def _conclude(self, name: str) -> None:
        """What went on in a realm is done: now its reply counts as kept."""
        under = self._under.pop(name, None)
        if under is None or under.is_undone:
            return
        self._touched.add(name)
        kept = self._books[name].keep(under.request, under.answer, self.now)
        for request_id, request in self._requests.items():
            if request is under.request and kept is not None:
                self._answers[request_id] = kept

    def _resume(self, name: str, realm: Realm | None) -> None:
        """A realm was loaded."""
        under, task = self._under.pop(name, None), None if realm is None else realm.task
        if (under is None or under.request.operation in ("configure_tag", "delete_realm")) and task is None:
            self._books[name].restart(self.now)  # limits are set in the first step, the rest is how jobs are arranged
            return
        if under is None:
            raise Difference(f"realm {name} is held by {task}, of which nothing is known")
        self._books[name], left = under.resume(realm, self.now)
        if left is not None:
            self._under[name] = left

    # -- looking -----------------------------------------------------------------------------------------------------

    def _look_at(self, mail: Mail, reply: Reply) -> None:
        """A reply that is on its way after its commit."""
        request, expected = self._requests.pop(mail.request_id), self._answers.pop(mail.request_id)
        if not (pull := self._looks.reply(request, expected, reply)):
            return
        given = expected.reply if isinstance(expected, Kept | Leased) else expected
        if isinstance(given, Parts):
            return
        jobs = given.get("jobs") or given.get("pull", {}).get("jobs") or []
        pairs = [(job["job_id"], job["queue_id"]) for job in jobs]
        if request.operation == "pull_2013":
            pairs = [(job_id, queue) for job_id, (queue, _) in given.items()]
        self._draws.pulled(request, reply.extra, pull, pairs)

    def _compare(self, names: Any) -> None:
        for name in names:
            actor = self.shard.mailboxes.actors.get(name)
            if actor is not None and actor.held:
                continue
            realm, model = None if actor is None else actor.realm, self._books[name].model
            if realm is None:
                if model.exists:
                    raise Difference(f"realm {name} is not there")
            elif realm.next_deadline() > realm.clock:  # else there is time to pass first
                self._looks.realm(realm, model, self.shard.archive, self.now)
                if self._turns % 4 == 0:
                    check(realm)
