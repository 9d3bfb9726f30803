"""A shard: its realms as actors, their mail, and the turn that serves it. No sockets, no waiting.

Every realm has a mailbox; a turn goes round the mailboxes, one message each, until there is no mail or the group is
full. So a realm that gets a flood delays its neighbours by a message at a time, and what one realm does is
always in the order in which it came. A realm that is busy with a long task (a removal in steps, a move to another
shard) is *held*: its mail waits, its neighbours go on.

    a task           who begins it               its realm         who ends it              after a crash
    removal          clear, remove tagged,       is held           the last step            goes on from the row
                     delete
    move             pin, unpin                  is held           the target's HAVE        asks the target again
    arrive           another shard's move        counts for        its last rows: it        what came is removed
                                                 nothing yet       counts from then on

What a turn answers is in `outbox` and what it changed in `changes`; the process commits the one and only then
sends the other.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from restq import bodies
from restq.errors import InternalError, Overloaded, RealmNotFound, RestqError, StorageFull
from restq.placement import Placement, home
from restq.protocol import MOVED, Reply
from restq.shards.actor import Actor, Elsewhere, Held, Mail, Several, no_mail
from restq.shards.changes import Changes, Keys, Task
from restq.shards.commands import NOTHING, READING, REALM_OPERATIONS, SHARD_OPERATIONS, Call, Done, Work
from restq.shards.loader import Loader
from restq.shards.moving import ARRIVAL_OPERATIONS, Arrivals
from restq.shards.realm import Realm
from restq.shards.removal import KINDS, Removal, dissolve
from restq.shards.stats import Stats
from restq.shards.store import Loaded, Mark, StoreFailed

GROUP_ROWS_MAX = 8_000  # a group that changed so many rows is committed before more mail is read
TURN_REPLY_BYTES_MAX = 16 << 20  # replies that are sent before more mail is read
MAIL_BYTES_MAX = 64 << 20  # of the bodies that wait; one more is refused
STEP_COUNT = 1_000  # removals in one step of a task: some milliseconds

log = logging.getLogger("restq.shard")
encode = msgspec.json.Encoder().encode


class Shard:
    """The realms of one shard. `payload` reads large data that is in the store already."""

    def __init__(
        self, index: int, placement: Placement, default_lease_time: float, payload: Callable[[int], bytes]
    ) -> None:
        self.index = index
        self.placement = placement
        self.keys = Keys()
        self.changes = Changes()
        self.outbox: list[tuple[Mail, Reply]] = []
        self.stats = Stats()
        self.mail_bytes = 0  # of the bodies that wait
        self._reply_bytes = 0  # of the replies of this turn
        self.moves: list[tuple[Mail, int]] = []  # moves to other shards that the process is to carry out
        self._movers: dict[str, Mail] = {}  # who waits for a move, by realm
        self.full = False  # the disk is: changes are refused until a probe finds room
        self._default_lease_time = default_lease_time
        self._stored_payload = payload
        self._arrivals = Arrivals(self.keys, self.changes, self.find, self.discard, self.arrive)
        self._actors: dict[str, Actor] = {}
        self._round: deque[Actor] = deque()
        self._several = Actor("")  # mailbox for what concerns several realms: it waits while one of them is held
        self._unheld = Actor("")  # mailbox for what waits for no realm: figures, and realms that move in
        self._working: deque[Actor] = deque()  # removals under way

    # -- start -------------------------------------------------------------------------------------------------

    def load(self, loaded: Loaded, now: float) -> None:
        """Be what the store says; what was in memory is forgotten, what waits as mail stays."""
        waiting = [mail for actor in self._actors.values() for mail in actor.mail]
        self.keys.next_key = max(self.keys.next_key, loaded.mark.next_key)
        self.changes.take()
        self._arrivals.forget()
        for actor in (*self._actors.values(), *self._working):
            if actor.realm is not None:
                dissolve(actor.realm)
        self._actors = {}
        self._round.clear()
        self._several.queued = self._unheld.queued = False
        self._working.clear()
        self.moves = []
        self._movers = {}
        for name, shard in loaded.moved.items():
            self.placement.learn(name, shard)
        loader = Loader(self.keys, self.changes)
        loader.add_all(loaded)
        for realm in loader.finish(now):
            self._take_in(realm)
        for mail in waiting:
            self._deliver(self._actor(mail.realm), mail)
        self._enqueue(self._several)
        self._enqueue(self._unheld)

    def _take_in(self, realm: Realm) -> None:
        """Serve a realm that was loaded, or carry on what it was in the midst of."""
        task = realm.task
        if task is not None and task.kind == "arrive":  # it never came to count
            self.discard(realm)
            return
        actor = self._actor(realm.name)
        actor.realm = realm
        self.placement.learn(realm.name, self.index)
        if task is not None and task.kind in KINDS:
            self._begin(actor, Work(Removal(realm, task), lambda _: NOTHING), None)
        elif task is not None and task.kind == "move":
            actor.held = True
            self.moves.append((no_mail(realm.name), int(task.target or 0)))

    def mark(self, group: int, now: float) -> Mark:
        """What the next group leaves behind."""
        return Mark(group, self.keys.next_key, now)

    # -- mail --------------------------------------------------------------------------------------------------

    def receive(self, mail: Mail) -> None:
        """Take a message; a turn will serve it. What does not fit is refused at once, whoever holds up the others."""
        if self.mail_bytes + len(mail.body) > MAIL_BYTES_MAX and mail.operation not in ARRIVAL_OPERATIONS:
            busy = Overloaded(f"shard {self.index} has more requests waiting than fit; nothing was done, try again")
            self._answer(mail, _refusal(mail, busy))
            return
        self.mail_bytes += len(mail.body)
        if mail.realm:
            self._deliver(self._actor(mail.realm), mail)
        else:
            # Two shards whose realms cross must not wait for each other behind a call that waits for both.
            waits = mail.operation in SHARD_OPERATIONS
            self._deliver(self._several if waits else self._unheld, mail)

    def _deliver(self, actor: Actor, mail: Mail) -> None:
        actor.mail.append(mail)
        self._enqueue(actor)

    def _enqueue(self, actor: Actor) -> None:
        if actor.mail and not actor.queued and not actor.held:
            actor.queued = True
            self._round.append(actor)

    def _actor(self, name: str) -> Actor:
        actor = self._actors.get(name)
        if actor is None:
            actor = self._actors[name] = Actor(name)
        return actor

    @property
    def busy(self) -> bool:
        """Whether a turn would find something to do."""
        return bool(self._round or (self._working and not self.full))

    @property
    def has_mail(self) -> bool:
        """Whether somebody waits for an answer that a turn would give."""
        return bool(self._round)

    def turn(self, now: float) -> None:
        """Serve mail, a message a realm in rounds, and carry on one step of one task."""
        self._reply_bytes = 0
        if self._working and not self.full:
            self._step()
        while self._round and len(self.changes) < GROUP_ROWS_MAX and self._reply_bytes < TURN_REPLY_BYTES_MAX:
            actor = self._round.popleft()
            actor.queued = False
            mail = actor.mail.popleft()
            try:
                outcome = self._serve(actor, mail, now)
            except Held:
                actor.mail.appendleft(mail)  # until `release`
                continue
            self.mail_bytes -= len(mail.body)
            if isinstance(outcome, Work):
                self._begin(actor, outcome, mail)
                self._step()
            elif outcome is not None:
                self._answer(mail, outcome)
            self._enqueue(actor)
            self._forget(actor)

    def _serve(self, actor: Actor, mail: Mail, now: float) -> Reply | Work | None:
        """Reply to one message; None where somebody will reply later. Raises Held."""
        call = Call(mail.params, mail.body, now, self._payload)
        try:
            if mail.operation not in _OPERATIONS:
                raise InternalError(f"there is no operation {mail.operation!r}")
            if self.full and mail.operation not in READING:
                raise StorageFull("there is no room left on the disk: nothing was done")
            if not mail.realm:
                return self._serve_several(mail, call)
            owner = self.placement.shard_of(mail.realm)
            if owner != self.index:
                return Reply(mail.request_id, MOVED, b"", owner)
            if mail.operation == "place_realm":
                return self._place(actor, mail)
            realm = actor.realm or self._new_realm(mail.realm)
            outcome = REALM_OPERATIONS[mail.operation](realm, call)
            self._settle(actor, realm)
            return outcome if isinstance(outcome, Work) else _ok(mail, outcome)
        except StoreFailed:
            raise
        except RestqError as error:
            self.stats.count_error(mail.operation, error.code)
            return _refusal(mail, error)
        except Held:
            raise
        except Exception:
            log.exception("shard %d: operation %s failed", self.index, mail.operation)
            if len(self.changes):
                raise  # perhaps half done: only the file knows what is true
            return _refusal(mail, InternalError("restq met a defect of its own; nothing was done"))

    def _new_realm(self, name: str) -> Realm:
        """An empty realm, which comes to be when something is written to it."""
        realm = Realm(self.keys.take(), name, self._default_lease_time, self.keys, self.changes)
        realm.pinned = home(name, self.placement.shard_count) != self.index
        return realm

    def _settle(self, actor: Actor, realm: Realm) -> None:
        """After an operation: a realm may have come to be, or be gone."""
        actor.realm = realm if realm.exists else None
        self._forget(actor)

    def _forget(self, actor: Actor) -> None:
        """A name that nobody uses takes no memory."""
        if actor.realm is None and not actor.mail and not actor.held and self._actors.get(actor.name) is actor:
            del self._actors[actor.name]

    def _payload(self, key: int) -> bytes:
        """Large data of this turn, or of the store."""
        return self.changes.payloads.get(key) or self._stored_payload(key)

    # -- several realms ------------------------------------------------------------------------------------------

    def _serve_several(self, mail: Mail, call: Call) -> Reply:
        if mail.operation == "get_stats":
            return Reply(mail.request_id, 200, encode(self.stats.report(self.index, self._counts())))
        if mail.operation in ARRIVAL_OPERATIONS:
            body = ARRIVAL_OPERATIONS[mail.operation](self._arrivals, mail.params, call.now)
            return Reply(mail.request_id, 200, body)
        several = Several(self.index, self.placement, self._actors, self._new_realm)
        try:
            return _ok(mail, SHARD_OPERATIONS[mail.operation](several, call))
        except Elsewhere as elsewhere:
            return Reply(mail.request_id, MOVED, elsewhere.realm.encode(), elsewhere.shard)
        finally:
            for name, realm in several.touched.items():
                self._settle(self._actor(name), realm)

    def _counts(self) -> dict[str, dict[str, Any]]:
        realms = ((name, actor.realm) for name, actor in self._actors.items())
        return {name: {"jobs": len(realm.jobs), "pinned": realm.pinned} for name, realm in realms if realm is not None}

    # -- tasks ---------------------------------------------------------------------------------------------------

    def _begin(self, actor: Actor, work: Work, mail: Mail | None) -> None:
        actor.held = True
        actor.work = (work, mail)
        self._working.append(actor)

    def _step(self) -> None:
        """Carry on the removal whose turn it is."""
        actor = self._working.popleft()
        assert actor.work is not None, "who is working has work"
        work, mail = actor.work
        if not work.removal.step(STEP_COUNT):
            self._working.append(actor)
            return
        actor.work = None
        if mail is not None:
            self._answer(mail, Reply(mail.request_id, 200, work.reply(work.removal)))
        if actor.realm is not None:
            if not actor.realm.exists and actor.realm.pinned:
                self._note(actor.name, self.index)  # though it is gone, its name stays with this shard
            self._settle(actor, actor.realm)
        self.release(actor)

    def discard(self, realm: Realm) -> None:
        """Remove, in steps, a realm that lives elsewhere by now or never came to count. Its name is free at once."""
        hidden = Actor(realm.name, realm)
        realm.pinned = False
        realm.set_task(Task("arrive"))  # what is left of it after a crash must not count either
        self._begin(hidden, Work(Removal(realm, Task("delete")), lambda _: NOTHING), None)

    def release(self, actor: Actor) -> None:
        """The realm is not held any more: its mail is served again."""
        actor.held = False
        self._enqueue(actor)
        self._forget(actor)
        self._enqueue(self._several)

    # -- moves -----------------------------------------------------------------------------------------------------

    def _place(self, actor: Actor, mail: Mail) -> Reply | None:
        """Pin the realm to a shard (`params[0]`: 1), or let it go home (0), and move it there if need be."""
        pinned = bool(mail.params[0])
        count = self.placement.shard_count
        target = bodies.shard(mail.body, count) if pinned else home(mail.realm, count)
        realm = actor.realm
        if realm is None:
            raise RealmNotFound(f"realm {mail.realm!r} does not exist: it comes to be with its first job", "realm")
        realm.set_pinned(pinned)
        if target == self.index:
            return Reply(mail.request_id, 200, NOTHING)
        realm.set_task(Task("move", target))
        actor.held = True
        self.moves.append((mail, target))
        self._movers[mail.realm] = mail
        return None

    def held_realm(self, name: str) -> Realm:
        """The realm that a move holds."""
        realm = self._actors[name].realm
        assert realm is not None, "a realm on the move exists"
        return realm

    def depart(self, mail: Mail, target: int) -> None:
        """The realm is whole in another shard: say so from now on, and remove what is left here."""
        actor = self._actors[mail.realm]
        realm, actor.realm = actor.realm, None
        assert realm is not None, "a realm on the move exists"
        self._note(mail.realm, target)
        self._movers.pop(mail.realm, None)
        self.discard(realm)
        self._answer(mail, Reply(mail.request_id, 200, NOTHING))
        self.release(actor)

    def arrive(self, realm: Realm) -> None:
        """A realm that came from another shard counts from now on."""
        realm.epoch += 1
        realm.set_task(None)
        self._note(realm.name, self.index)
        actor = self._actor(realm.name)
        actor.realm = realm

    def find(self, name: str) -> Realm | None:
        """The realm of this name, if it exists here."""
        actor = self._actors.get(name)
        return None if actor is None else actor.realm

    def _note(self, name: str, shard: int) -> None:
        self.placement.learn(name, shard)
        self.changes.moved[name] = shard  # also where that is its home: a process may have been started with a pin

    # -- replies -----------------------------------------------------------------------------------------------------

    def refuse(self, outbox: list[tuple[Mail, Reply]], why: StorageFull) -> list[tuple[Mail, Reply]]:
        """What to send instead of these replies, where the group could not be kept: reads are asked once more.

        Who waits for a task is told, too: whether it began in this group, and is undone, or in an earlier one.
        """
        refused: list[tuple[Mail, Reply]] = []
        for mail, _ in outbox:
            if mail.operation in READING:
                self.receive(mail)
            else:
                refused.append((mail, _refusal(mail, why)))
        perhaps = StorageFull("there is no room left on the disk: if this had begun, it goes on once there is")
        waiting = [actor.work[1] for actor in self._working if actor.work is not None and actor.work[1] is not None]
        refused += [(mail, _refusal(mail, perhaps)) for mail in (*waiting, *self._movers.values())]
        return refused

    def _answer(self, mail: Mail, reply: Reply) -> None:
        self._reply_bytes += len(reply.body)
        self.outbox.append((mail, reply))


_OPERATIONS = {*REALM_OPERATIONS, *SHARD_OPERATIONS, *ARRIVAL_OPERATIONS, "get_stats", "place_realm"}


def _refusal(mail: Mail, error: RestqError) -> Reply:
    return Reply(mail.request_id, error.status, encode(error.to_reply()))


def _ok(mail: Mail, done: Done) -> Reply:
    return Reply(mail.request_id, 200, done.body, done.lease)
