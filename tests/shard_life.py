"""A shard with its store and the simple realms, side by side: the same messages, turns, crashes and a made-up clock.

The simple realms are told of a message when the shard takes it up, so both see it at the same instant. Replies are
looked at once the commit that covers them is made; after each turn all that can be seen of both must be the same. What
was not committed is forgotten on both sides. What goes on in steps was done at once to all who look; after a crash it
is asked of the loaded realm what of it the file holds, the rest is done as of then.
"""

from __future__ import annotations

import copy
import json
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import realm_views as views
from realm_answers import (
    AT_ONCE,
    BATCHES,
    SWEEPS,
    Between,
    Data,
    Includes,
    Lease,
    Leased,
    Proof,
    Refused,
    Request,
    get_queues,
    in_force,
    joined,
    lease_of,
    list_jobs,
    sweep_error,
    wanted,
)
from realm_model import CHANCE, DEFAULT_LEASE_TIME, Model, ModelPlace
from shard_draws import Draws
from shard_rig import FULL, Sender, completed

from restq.errors import IdempotencyKeyReused, InternalError
from restq.names import QueueId
from restq.placement import Placement
from restq.protocol import Frames, Reply, pack
from restq.protocol import Request as Message
from restq.shards import finishing, leasing
from restq.shards.actor import Mail
from restq.shards.changes import BATCH
from restq.shards.commands import REALM_OPERATIONS, batches
from restq.shards.commands.call import Call, Work
from restq.shards.full import refuse
from restq.shards.invariants import check
from restq.shards.job import MARK_CANCELLED, MARK_DEAD
from restq.shards.leasing import Wanted
from restq.shards.realm import Realm
from restq.shards.shard import Shard
from restq.shards.store import Room
from restq.shards.sweeps import UNDO_PULL

KEPT_SECONDS = 600.0  # a reply with a key, and at least as long as its leases, up to a day
HELD_SECONDS_MAX = 86_400.0
REALMS = ("a", "b", "c")
LEASES_MAX = 60  # lease ids that are remembered
EVERYTHING = 1_000_000
LAPSES = (0.25, 1.0, 4.75, 5.0, 8.0, 600.0, 601.0, 100_000.0)
_JOBS = Request("list_jobs", "", [None, None, None, None, "1000", None, "1"])
_QUEUES = Request("get_queues", "")


class Difference(AssertionError):
    """The shard and the simple realms are not the same."""


@dataclass(eq=False)
class Kept:
    """A reply under an idempotency key."""

    digest: str
    reply: Any
    until: float
    pull: int  # of which it gives the jobs; unknown after a start
    again: bool = False  # it was given once more
    body: bytes | None = None  # as it was given first


@dataclass(eq=False)
class Book:
    """One realm as its users know it."""

    model: Model = field(default_factory=Model)
    kept: dict[str, Kept] = field(default_factory=dict)

    def keep(self, request: Request, answer: Any, now: float) -> Kept | None:
        """Keep the reply to a request with a key, unless it did nothing."""
        reply, pull, held_until = answer if isinstance(answer, Leased) else Leased(answer, 0, 0.0)
        is_in_vain = request.operation == "pull" and not pull
        if not request.once or is_in_vain or isinstance(answer, Refused) or not self.model.exists:
            return None
        name, digest = request.once
        until = max(now + KEPT_SECONDS, min(held_until, now + HELD_SECONDS_MAX))
        kept = self.kept[name] = Kept(digest, reply, until, pull)
        return kept

    def restart(self, now: float) -> None:
        """The shard starts."""
        self.model.let_leases_run_out(now)
        self.model.restart()
        for kept in self.kept.values():
            kept.again, kept.pull = True, 0


@dataclass(eq=False)
class Undertaking:
    """What goes on in steps. `before`: the realm without any of it."""

    request: Request
    before: Book
    begun_at: float
    answer: Any
    undone: Lease | None = None  # it is a pull that is undone: its number


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
        self._pending: dict[str, deque[int]] = {name: deque() for name in REALMS}
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
            for _ in range(chance.choice((1, 1, 1, 1, 2, 3, 6))):
                name = chance.choice(REALMS)
                self._draws.now = self.now
                self._send(self._draws.request(name, self._books[name].model))
            self._turn(chance.choices(("", "lost", "unseen", "full"), cum_weights=(92, 95, 98, 100))[0])
            while chance.random() < 0.9 and self.shard.busy(self.now):
                self._turn(chance.choices(("", "lost", "unseen", "full"), cum_weights=(94, 96, 98, 100))[0])
            if chance.random() < 0.01:
                self._restart()

    def close(self) -> None:
        """It is over."""
        self._store.close()

    def _has_undo(self) -> bool:
        return any(request.operation == "undo_pull" for request in self._requests.values())

    def _send(self, request: Request) -> None:
        self._last_id += 1
        self._requests[self._last_id] = request
        self._pending[request.realm].append(self._last_id)
        message = Message(self._last_id, request.operation, request.realm, request.params, request.body, request.once)
        for frame in self._frames.feed(pack(message)):
            self.shard.receive(Mail(self._sender, 0.0, *frame))

    # -- turns, and what befalls them ----------------------------------------------------------------------------------

    def _turn(self, fate: str = "") -> None:
        """One turn; its group is kept and told, lost, kept but not told, or refused by a full disk."""
        before = copy.deepcopy((self._books, self._under)) if fate in ("lost", "full") else None
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
        if fate == "unseen":
            self._restart()
            return
        self._turns += 1
        self._compare(REALMS if self._turns % 8 == 0 else [name for name in REALMS if name in self._touched])
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
        waiting = {name: shard.mailboxes.actor(name).mail for name in REALMS}
        self._pending = {name: deque(mail.request_id for mail in waiting[name]) for name in REALMS}
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
        for pending in self._pending.values():
            pending.clear()
        if self.chance.random() < 0.5:
            self.now += self.chance.choice(LAPSES)
        self._start()
        self._go_on()

    def _start(self) -> None:
        self.shard = WatchedShard(0, Placement(1), DEFAULT_LEASE_TIME, self._store, chance=lambda: CHANCE)
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
        if self._pending[name].popleft() != mail.request_id:
            raise Difference(f"{mail.operation} was not the next message of realm {name}")
        self._touched.add(name)
        self._conclude(name)
        request = self._requests[mail.request_id]
        request.served_at = now
        if request.refused is not InternalError:  # else the realm is not even asked
            self._books[name].model.settle(now)
        self._answers[mail.request_id] = self._answer(name, request, isinstance(outcome, Work))

    def _answer(self, name: str, request: Request, is_work: bool) -> Any:
        book, now = self._books[name], self.now
        if request.refused is not None:
            return Refused(request.refused)
        if request.once:
            kept = book.kept.get(request.once[0])
            if kept is not None and kept.until > now:
                if kept.digest != request.once[1]:
                    return Refused(IdempotencyKeyReused)
                kept.again = True
                return kept
        if request.operation == "undo_pull":
            return self._undo_pull(book, request)
        before = copy.deepcopy(book) if is_work else None
        answer = _do(book, request)
        if before is not None:
            self._under[name] = Undertaking(request, before, now, answer)
        elif (noted := book.keep(request, answer, now)) is not None:
            return noted
        return answer

    def _undo_pull(self, book: Book, request: Request) -> Any:
        _, pairs, key = request.params
        pull = request.known["pull"][0]
        kept = book.kept.get(key)
        if kept is not None and kept.again:
            return {}
        if kept is not None and kept.pull == pull:
            del book.kept[key]
        book.model.undo(pull, [(job_id, queue) for job_id, queue in pairs])
        return {}

    def _conclude_all(self) -> None:
        for name in REALMS:
            actor = self.shard.mailboxes.actors.get(name)
            if actor is None or not actor.held:
                self._conclude(name)
            model = self._books[name].model
            if name not in self._under and 0 < model.settings.keep_count < len(model.results):
                del model.results[: -model.settings.keep_count]

    def _conclude(self, name: str) -> None:
        """What went on in a realm is done: now its reply counts as kept."""
        under = self._under.pop(name, None)
        if under is None or under.undone is not None:
            return
        self._touched.add(name)
        kept = self._books[name].keep(under.request, under.answer, self.now)
        for request_id, request in self._requests.items():
            if request is under.request and kept is not None:
                self._answers[request_id] = kept

    def _resume(self, name: str, realm: Realm | None) -> None:
        """A realm as it was loaded: what the file holds of what went on in it, and then the rest, as of now."""
        under, book = self._under.pop(name, None), self._books[name]
        task = None if realm is None else realm.task
        if (under is None or under.request.operation in ("configure_tag", "delete_realm")) and task is None:
            book.restart(self.now)  # limits are set in the first step, the rest is how jobs are arranged
            return
        if under is None:
            raise Difference(f"realm {name} is held by {task}, of which nothing is known")
        book = self._books[name] = under.before
        if task is None or realm is None:
            if _is_sweep(under.request):
                raise Difference(f"{under.request.operation} in realm {name} does not go on")
            book.restart(self.now)
            return
        done, undone = [], under.undone
        if task.kind == UNDO_PULL:
            if undone is None:
                undone = _lease_some(book.model, under.request, realm, int(task.target or 0))
            else:
                given_back = _pairs(book.model, lambda place: not _is_leased(realm, place, int(task.target or 0)))
                book.model.undo(undone[0], given_back)
        elif task.kind == BATCH:
            batch = _batch(book.model, under.request)
            count = int(task.details[2]) * batches.SLICE_COUNT
            done = [batch.do(batch.parts[:count])]
        elif _is_sweep(under.request):
            SWEEPS[under.request.operation](book.model, under.request, _done_in(realm, under.request.operation))
        book.restart(self.now)
        again = copy.deepcopy(book)
        answer: Any = None
        if undone is not None:
            book.model.undo(undone[0], _pairs(book.model, lambda place: True))
        elif done:
            batch = _batch(book.model, under.request)
            answer = joined(done[0], batch.do(batch.parts[count:]))
        elif _is_sweep(under.request):
            answer = SWEEPS[under.request.operation](book.model, under.request, lambda place: True)
        else:
            answer = _do(book, under.request)
        self._under[name] = Undertaking(under.request, again, self.now, answer, undone)

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
        if reply.status != 200:
            raise Difference(f"{request}: {reply}, not {expected}")
        got = msgspec.json.decode(reply.body)
        pull = 0
        if isinstance(expected, Leased):
            expected, pull, _ = expected
            if not reply.extra or reply.extra in self._numbers:
                raise Difference(f"{request}: the number of the pull, {reply.extra}, is not a new one")
            self._numbers.add(reply.extra)
        elif reply.extra and kept is None:
            raise Difference(f"{request}: nothing was leased by pull {reply.extra}")
        if not self._fits(request.realm, expected, got):
            raise Difference(f"{request}:\n{got}, not\n{expected}")
        if pull:
            self._pulled(request, reply.extra, pull, expected)

    def _pulled(self, request: Request, number: int, pull: int, expected: Any) -> None:
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
        if isinstance(expected, dict):
            if not isinstance(got, dict) or len(got) - ("failed_at" in got) != len(expected):
                return False
            return all(name in got and self._fits(realm, value, got[name]) for name, value in expected.items())
        if isinstance(expected, list):
            if not isinstance(got, list) or len(got) != len(expected):
                return False
            return all(map(self._fits, [realm] * len(got), expected, got))
        return bool(expected == got)

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
        for proof, (of_realm, lease) in self._leases.items():
            if of_realm == name:
                place, expected = finishing.leased_place(realm, proof), in_force(model, lease)
                if (place is None) != (expected is None):
                    raise Difference(f"realm {name}: lease {proof} is{' not' if place is None else ''} in force")
        peeked = leasing.peek(realm, Wanted(EVERYTHING), realm.clock)
        order = [(place.job.job_id, place.queue) for place in model.peek(Wanted(EVERYTHING))]
        self._same(name, "order", order, [(place.job.job_id, place.queue.queue_id) for place in peeked])
        check(realm)

    def _asked(self, realm: Realm, request: Request) -> Any:
        call = Call(request.params, b"", realm.clock, self.shard.archive)
        outcome: Any = REALM_OPERATIONS[request.operation](realm, call)
        return msgspec.json.decode(outcome.body)

    def _same(self, name: str, what: str, expected: Any, got: Any) -> None:
        if expected != got and not self._fits(name, expected, got):
            raise Difference(f"realm {name}: {what}\n{got}, not\n{expected}")


_STATUS, _CONFIG, _TAGS = Request("get_status", ""), Request("get_config", ""), Request("get_tags", "", [None] * 3)


def _batch(model: Model, request: Request) -> Any:
    name = "redrive_jobs" if request.operation == "redrive" else request.operation
    return BATCHES[name](model, request)


def _is_sweep(request: Request) -> bool:
    return request.operation in SWEEPS and "jobs" not in (request.said or ())


def _do(book: Book, request: Request) -> Any:
    """Do all of it in the simple realm."""
    if request.operation == "delete_realm":
        book.model, book.kept = book.model.empty(), {}
        return {}
    if request.operation in AT_ONCE:
        return AT_ONCE[request.operation](book.model, request)
    if _is_sweep(request):
        if error := sweep_error(book.model, request):
            return Refused(error)
        return SWEEPS[request.operation](book.model, request, lambda place: True)
    batch = _batch(book.model, request)
    return Refused(batch.error) if batch.error else batch.do(batch.parts)


def _done_in(realm: Realm, operation: str) -> Includes:
    """Whether a sweep has done what it does to a place, as far as the realm says that was loaded."""

    def is_done(of_model: ModelPlace) -> bool:
        place = realm.place(of_model.job.job_id, of_model.queue)
        if operation in ("redrive", "redrive_tagged_jobs"):
            return place is None or place.history.mark != MARK_DEAD
        if operation == "cancel_tagged_jobs":
            return place is None or place.history.mark == MARK_CANCELLED
        return place is None

    return is_done


def _is_leased(realm: Realm, of_model: ModelPlace, number: int) -> bool:
    place = realm.place(of_model.job.job_id, of_model.queue)
    return place is not None and place.history.lease == number


def _pairs(model: Model, includes: Includes) -> list[tuple[str, QueueId]]:
    return [(place.job.job_id, place.queue) for place in model.places if includes(place)]


def _lease_some(model: Model, request: Request, realm: Realm, number: int) -> Lease:
    """Lease what the file holds of a pull in slices; returns what stands for its number."""
    asked = Wanted(int(request.params[0] or 1)) if request.operation == "pull_2013" else wanted(request.said)
    model.pull(Wanted(0))
    pull = model._pulls
    for place in [place for place in model.candidates(asked) if _is_leased(realm, place, number)]:
        model.check_out(place, asked)
        assert lease_of(place)[0] == pull
    return pull, "", 0
