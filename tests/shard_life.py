"""A shard with its store and the simple realms, side by side: the same messages, turns, crashes and a made-up clock.

The simple realms are told of a message when the shard takes it up, so both see it at the same instant. Replies are
looked at once the commit that covers them is made; after each turn all that can be seen of both must be the same. What
was not committed is forgotten on both sides. What goes on in steps was done at once to all who look; after a crash it
is asked of the loaded realm what of it the file holds, the rest is done as of then.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import realm_views as views
from realm_answers import (
    Between,
    Data,
    Lease,
    Leased,
    Proof,
    Refused,
    Request,
    get_queues,
    lease_of,
    lease_peeked,
    list_jobs,
    peek,
)
from realm_book import Book, Difference, Kept, Undertaking
from realm_model import CHANCE, DEFAULT_LEASE_TIME, Model, ModelPlace
from shard_draws import Draws
from shard_rig import FULL, Sender, completed

from restq.errors import IdempotencyKeyReused, InternalError
from restq.placement import Placement
from restq.protocol import MOVED, Frames, Reply, pack
from restq.protocol import Request as Message
from restq.shards import finishing, leasing
from restq.shards.actor import Mail
from restq.shards.commands import HELD_UP, REALM_OPERATIONS
from restq.shards.commands.call import Call, Work
from restq.shards.data import INLINE_BYTES_MAX
from restq.shards.full import refuse
from restq.shards.invariants import check
from restq.shards.leasing import Wanted
from restq.shards.memory_store import MemoryStore
from restq.shards.realm import Realm
from restq.shards.shard import Shard
from restq.shards.store import Room

REALMS = ("a", "b", "c")
LEASES_MAX = 40  # lease ids that are remembered
EVERYTHING = 1_000_000
FATES = ("", "lost", "unseen", "full")  # of a turn: see `_turn`
LAPSES = (0.25, 1.0, 4.75, 5.0, 8.0, 600.0, 601.0, 100_000.0)
_JOBS = Request("list_jobs", "", [None, None, None, None, "1000", None, "1"])
_QUEUES = Request("get_queues", "")


class Moved(NamedTuple):
    """The realm lives in another shard."""

    shard: int


class Parts(NamedTuple):
    """A reply in parts, one of each realm, in any order of these."""

    by_realm: dict[str, list[Any]]


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
        self._leases: dict[str, tuple[str, Lease]] = {}
        self._numbers: set[int] = set()  # of pulls that were answered
        self._draws = Draws(self.chance, self._leases)
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
        self.shard.committed()
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
            self._compare_rows(self._store._tables)
        self._touched.clear()

    def _refuse(self) -> None:
        """There was no room for the group: what the process does then. There is room again at once."""
        shard = self.shard
        shard.set_room(Room.NONE)
        refused = refuse(shard, shard.outbox, FULL)
        shard.outbox = []
        shard.load(self._store.load(), self.now)
        shard.set_room(Room.ENOUGH)
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
        self._touched.add(name)
        self._conclude(name)
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
            for name, book in books.items():
                realm = self.shard.find(name)
                if realm is not None and realm.next_deadline() > realm.clock:  # it is not told that time passed
                    book.model.settle(realm.clock)
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

    def _conclude_all(self) -> None:
        for name in REALMS:
            if not self._is_held(name):
                self._conclude(name)
            model = self._books[name].model
            if name not in self._under and 0 < model.settings.keep_count < len(model.results):
                del model.results[: -model.settings.keep_count]

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
        request = self._requests.pop(mail.request_id)
        expected = self._answers.pop(mail.request_id)
        kept = expected if isinstance(expected, Kept) else None
        if kept is not None:
            expected = kept.reply if kept.pull == 0 or kept.again else Leased(kept.reply, kept.pull, 0.0)
            if kept.body is not None and kept.body != reply.body:
                raise Difference(f"{request}: {reply.body!r} is not what was given before, {kept.body!r}")
            kept.body = reply.body
        if isinstance(expected, Refused):
            error = expected.error
            if reply.status != error.status or json.loads(reply.body)["code"] != error.code:
                raise Difference(f"{request}: {reply}, not {error.__name__}")
            return
        if isinstance(expected, Moved):
            if (reply.status, reply.extra) != (MOVED, expected.shard):
                raise Difference(f"{request}: {reply}, not {expected}")
            return
        if reply.status != 200:
            raise Difference(f"{request}: {reply}, not {expected}")
        got = msgspec.json.decode(reply.body)
        pull = 0
        if isinstance(expected, Leased):
            expected, pull, _ = expected
            if not reply.extra or reply.extra in self._numbers:
                raise Difference(f"{request}: the number of the pull, {reply.extra}, is not a new one")
            self._numbers.add(reply.extra)
        elif reply.extra and kept is None and request.operation != "lease_peeked":
            raise Difference(f"{request}: nothing was leased by pull {reply.extra}")
        if not self._fits(request.realm, expected, got):
            raise Difference(f"{request}:\n{got}, not\n{expected}")
        if pull:
            self._pulled(request, reply.extra, pull, expected)

    def _pulled(self, request: Request, number: int, pull: int, expected: Any) -> None:
        if isinstance(expected, Parts):
            return
        jobs = expected.get("jobs") or expected.get("pull", {}).get("jobs") or []
        pairs = [(job["job_id"], job["queue_id"]) for job in jobs]
        if request.operation == "pull_2013":
            pairs = [(job_id, queue) for job_id, (queue, _) in expected.items()]
        self._draws.pulled(request, number, pull, pairs)
        for old in list(self._leases)[:-LEASES_MAX]:
            del self._leases[old]

    def _fits(self, realm: str, expected: Any, got: Any) -> bool:
        """Whether a reply is what was to be expected; learns lease ids."""
        if isinstance(expected, Proof):
            known = self._leases.setdefault(got, (realm, expected.lease))
            return known == (realm, expected.lease)
        if isinstance(expected, Data):
            return repr(got) == repr(None if expected.text is None else msgspec.json.decode(expected.text))
        if isinstance(expected, Between):
            return got == expected.low or (None not in (got, expected.low) and expected.low <= got <= expected.high)
        if expected == got:
            return True
        if isinstance(expected, Parts):
            by_realm: dict[str, list[Any]] = {name: [] for name in expected.by_realm}
            for part in got:
                name = part[1] if isinstance(part[1], str) else part[1]["realm"]
                by_realm.setdefault(name, []).append(part)
            parts = expected.by_realm
            return parts.keys() == by_realm.keys() and all(
                self._fits(name, parts[name], by_realm[name]) for name in parts
            )
        if isinstance(expected, dict):
            if not isinstance(got, dict) or len(got) - ("failed_at" in got) != len(expected):
                return False
            return all(name in got and self._fits(realm, value, got[name]) for name, value in expected.items())
        if isinstance(expected, list):
            if not isinstance(got, list) or len(got) != len(expected):
                return False
            return all(map(self._fits, [realm] * len(got), expected, got))
        return False

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
                self._compare_realm(realm, model)

    def _compare_rows(self, tables: dict[str, dict[int, Any]]) -> None:
        """No row is left behind by what is gone."""
        models = [book.model for book in self._books.values()]
        texts = [job.text for model in models for job in model.jobs if job.text is not None]
        expected = {
            "realms": sum(model.exists for model in models),
            "queues": sum(len(model.lease_times) for model in models),
            "tags": sum(len(model.tag_limits) for model in models),
            "jobs": sum(len(model.jobs) for model in models),
            "places": sum(len(model.places) for model in models),
            "payloads": sum(len(text) > INLINE_BYTES_MAX for text in texts),
            "failures": sum(place.failure is not None for model in models for place in model.places),
        }
        self._same("all", "rows", expected, {table: len(tables[table]) for table in expected})

    def _compare_realm(self, realm: Realm, model: Model) -> None:
        model.settle(realm.clock)
        name = realm.name
        if not model.exists:
            raise Difference(f"realm {name} should not be there")
        self._same(name, "jobs", list_jobs(model, _JOBS), self._asked(realm, _JOBS))
        self._same(name, "status", views.shown_status(model), self._asked(realm, _STATUS))
        self._same(name, "queues", get_queues(model, _QUEUES), self._asked(realm, _QUEUES))
        self._same(name, "tags", {"tags": views.shown_tags(model), "cursor": None}, self._asked(realm, _TAGS))
        self._same(name, "config", views.shown_config(model), self._asked(realm, _CONFIG))
        in_force = {lease_of(place) for place in model.places if place.lease is not None}
        for proof, (of_realm, lease) in self._leases.items():
            if of_realm == name:
                place = finishing.leased_place(realm, proof)
                if (place is not None) != (lease in in_force):
                    raise Difference(f"realm {name}: lease {proof} is{' not' if place is None else ''} in force")
        peeked = leasing.peek(realm, Wanted(EVERYTHING), realm.clock)
        order = [(place.job.job_id, place.queue) for place in model.peek(Wanted(EVERYTHING))]
        self._same(name, "order", order, [(place.job.job_id, place.queue.queue_id) for place in peeked])
        if self._turns % 4 == 0:
            check(realm)

    def _asked(self, realm: Realm, request: Request) -> Any:
        call = Call(request.params, b"", realm.clock, self.shard.archive)
        outcome: Any = REALM_OPERATIONS[request.operation](realm, call)
        return msgspec.json.decode(outcome.body)

    def _same(self, name: str, what: str, expected: Any, got: Any) -> None:
        if expected != got and not self._fits(name, expected, got):
            raise Difference(f"realm {name}: {what}\n{got}, not\n{expected}")


_STATUS, _CONFIG, _TAGS = Request("get_status", ""), Request("get_config", ""), Request("get_tags", "", [None] * 3)
