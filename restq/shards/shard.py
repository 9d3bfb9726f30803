"""A shard: its realms as actors, their mail, and the turn that serves it. No sockets, no waiting.

Every realm has a mailbox; a turn goes round the mailboxes, one message each, until there is no mail or the group is
full. So a realm that gets a flood delays its neighbours by a message at a time, and what one realm does is
always in the order in which it came. A realm that is busy with a long task (a sweep in steps, a move to another
shard) is *held*: its mail waits, its neighbours go on. Time passes in a realm before each of its messages, and when
something is due in it; whoever waits for its jobs is asked after each thing that happened to it.

    a task           who begins it               its realm         who ends it              after a crash
    sweep            clear, remove tagged,       is held           the last step            begins anew from the row
                     delete, redrive, ..
    batch            a very large body           is held           the last slice           goes on
    undo_pull        a very large pull           is held           the last slice           what it leased is undone
    passing          much that is due at once    is held           the last of it           what is left is due
    move             pin, unpin                  is held           its arrival, or failure  asks the target again
    arrive           another shard's move        counts for        its last rows: it        what came is removed
                                                 nothing yet       counts from then on

What a turn answers is in `outbox` and what it changed in `changes`; the process commits the one and only then
sends the other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence

from restq.errors import InternalError, Overloaded, RestqError
from restq.placement import Placement, home
from restq.protocol import MOVED, Reply
from restq.shards.actor import Actor, Held, Mail, refusal
from restq.shards.agenda import Agenda
from restq.shards.archive import Archive, Reading
from restq.shards.bounds import Bounds
from restq.shards.changes import Changes, Keys
from restq.shards.chores import Chores
from restq.shards.commands import HELD_UP, PULLING, REALM_OPERATIONS, SHARD_OPERATIONS
from restq.shards.commands.call import NOTHING, Call, Done, Wait, Work
from restq.shards.events import Events
from restq.shards.internal import INTERNAL_OPERATIONS
from restq.shards.loader import Loader
from restq.shards.mailboxes import Mailboxes
from restq.shards.moves import Moves
from restq.shards.moving import ARRIVAL_OPERATIONS, Arrivals
from restq.shards.realm import Realm
from restq.shards.replies import Replies
from restq.shards.room import RESTING, Growth, rests
from restq.shards.several import Several, serve_several
from restq.shards.stats import Stats
from restq.shards.store import Loaded, Mark, Room, StoreFailed
from restq.shards.tasks import RESUMED, Tasks
from restq.shards.waking import Waking

GROUP_ROWS_MAX = 8_000  # a group that changed so many rows is committed before more mail is read
LITTLE_ROWS_MAX = 500  # the same where there is little room on the disk: each row may take a page of the log
TURN_REPLY_BYTES_MAX = 16 << 20  # replies that are sent before more mail is read

log = logging.getLogger("restq.shard")


class Shard:
    """The realms of one shard. `store` reads what memory does not hold; `chance` is for jitter."""

    def __init__(
        self,
        index: int,
        placement: Placement,
        default_lease_time: float,
        store: Reading,
        chance: Callable[[], float] = lambda: 0.5,
        bounds: Bounds | None = None,
    ) -> None:
        self.index = index
        self.placement = placement
        self.keys = Keys(shard=index)
        self.changes = Changes()
        self.outbox: list[tuple[Mail, Reply]] = []
        self.begun: dict[str, Mail] = {}  # who waits for a task of which the file knows, by realm
        self.stats = Stats()
        self.mailboxes = Mailboxes()
        self._reply_bytes = 0  # of the replies of this turn
        self.room = Room.ENOUGH  # on the disk: see `set_room`
        self._default_lease_time = default_lease_time
        self._chance = chance
        self._now = 0.0
        self.archive = Archive(store, self.changes)
        self._growth = Growth(store.growable)
        self.replies = Replies(self.keys, self.changes)
        self.bounds = bounds or Bounds()
        self.tasks = Tasks(self)
        self.waking = Waking(self.archive, self.replies, self.answer, self._realm_of, self.tasks.put_off)
        self.events = Events()
        self._chores = Chores(self.archive, self.changes, self.replies)
        self.moves = Moves(self)
        self.arrivals = Arrivals(self, self.tasks.discard, self.moves)
        self._agenda = Agenda()  # of actors, in whose realms time is to pass

    @property
    def full(self) -> bool:
        """Whether the disk has no room for any change: all of them are refused, and what time brings about waits."""
        return self.room == Room.NONE

    def set_room(self, room: Room) -> None:
        """So much room there is from now on: what needs more is refused, or rests."""
        self.room = room
        if room == Room.ENOUGH:
            self.tasks.wake()

    def load(self, loaded: Loaded, now: float) -> None:
        """Be what the store says; what was in memory is forgotten, what waits as mail stays."""
        self._now = now
        self.keys.next_key = max(self.keys.next_key, loaded.mark.next_key)
        self.changes.take()
        self.events.forget()
        self.bounds.forget()
        self.arrivals.forget()
        mail = self.mailboxes.clear() + self.waking.take_mail()
        self._agenda = Agenda()
        self.tasks.forget()
        self.moves.load(loaded.moved)
        known = {row.key for row in loaded.realms}
        keeps = bool(loaded.replies or loaded.result_counts)
        self._chores.load([key for key in loaded.result_counts if key not in known], keeps, now)
        loader = self.new_loader()
        loader.add_all(loaded)
        self.replies.load(loaded.replies)
        for realm in loader.finish(now):
            self.take_in(realm)
        asked_for = {0, *(realm.key for realm in self.realms())}  # 0: of requests on several realms
        self.replies.unclaim_of(lambda key: key not in asked_for)
        for waiting in mail:
            self.receive(waiting)

    def new_loader(self) -> Loader:
        """What makes realms of rows here."""
        return Loader(self.keys, self.changes, self._chance)

    def take_in(self, realm: Realm) -> None:
        """Serve a realm that was loaded, or carry on what it was in the midst of."""
        task = realm.task
        if task is not None and task.kind == "arrive":  # it never came to count
            self.tasks.discard(realm)
            return
        actor = self.mailboxes.actor(realm.name)
        actor.realm = realm
        realm.events, realm.bounds = self.events.told, self.bounds
        self.placement.learn(realm.name, self.index)
        self.bounds.count(realm)
        if realm.result_count:
            self._chores.keeps(realm)
        self._agenda.put(actor, realm.next_deadline())
        if task is not None and task.kind in RESUMED:
            self.tasks.resume(actor, realm, task)
        elif task is not None and task.kind == "move":
            self.moves.resume(actor, int(task.target or 0))

    def mark(self, group: int, now: float) -> Mark:
        """What the next group leaves behind."""
        return Mark(group, self.keys.next_key, now)

    # -- mail --------------------------------------------------------------------------------------------------

    def receive(self, mail: Mail) -> None:
        """Take a message; a turn will serve it. What does not fit is refused at once, whoever holds up the others."""
        if mail.operation == "leave":
            self.waking.leave(mail.sender, mail.params[0], self._now)
            return
        if not self.mailboxes.have_room(mail) and mail.operation not in ARRIVAL_OPERATIONS:
            busy = Overloaded(f"shard {self.index} has more requests waiting than fit; nothing was done, try again")
            self.answer(mail, refusal(mail, busy))
            return
        if mail.realm:
            actor = self.mailboxes.actor(mail.realm)
            if rests(self.room, actor):
                self.answer(mail, refusal(mail, RESTING))
                return
        else:
            # Two shards whose realms cross must not wait for each other behind a call that waits for both.
            actor = self.mailboxes.several if mail.operation in HELD_UP else self.mailboxes.unheld
        self.mailboxes.receive(actor, mail)

    def busy(self, now: float) -> bool:
        """Whether a turn would find something to do."""
        return bool(self.mailboxes or (self.tasks.actors and not self.full) or self.next_deadline() <= now)

    def next_deadline(self) -> float:
        """When a turn is to be made even if nothing arrives; infinity if never."""
        by_itself = math.inf if self.full else min(self._agenda.next_at(), self._chores.next_at)
        return min(by_itself, self.waking.next_deadline())

    def turn(self, now: float) -> None:
        """Carry on one step of one task, let time pass, and serve mail, a message a realm in rounds."""
        self._now = now
        self._reply_bytes = 0
        self._growth.begin()
        if not self.full:
            self.tasks.step()
            self.tasks.pass_time(self._agenda, now)
            self._chores.do(self.realms(), now)
        rows_max = GROUP_ROWS_MAX if self.room == Room.ENOUGH else LITTLE_ROWS_MAX
        while self.mailboxes and len(self.changes) < rows_max:
            actor, mail = self.mailboxes.take()
            try:
                outcome = self._serve(actor, mail)
            except Held:
                if self.tasks.resting and actor is self.mailboxes.several:
                    self.answer(mail, refusal(mail, RESTING))
                    continue
                self.mailboxes.put_back(actor, mail)  # until `release`
                continue
            self._follow(actor, mail, outcome)
            if self._reply_bytes > TURN_REPLY_BYTES_MAX:
                break
        self.waking.time_up(now)
        self.bounds.reply_count = self.replies.count
        if not self.full:
            self._chores.end_turn(now)

    def take_changes(self) -> Changes:
        """What is to be committed: nothing while the disk is full. What time brings about meanwhile waits for room."""
        return Changes() if self.full else self.changes.take()

    def _follow(self, actor: Actor, mail: Mail, outcome: Reply | Work | Wait | None) -> None:
        if isinstance(outcome, Work):
            self.tasks.begin(actor, outcome, mail)
            self.tasks.step()
        elif isinstance(outcome, Wait):
            self.waking.wait(mail, outcome, self._now)
        elif outcome is not None:
            self.answer(mail, outcome)
        if actor.realm is not None and not actor.held:
            self.happened(actor)
        self.mailboxes.enqueue(actor)
        self.mailboxes.forget(actor)

    def _serve(self, actor: Actor, mail: Mail) -> Reply | Work | Wait | None:
        """Reply to one message; None where somebody will reply later. Raises Held."""
        call = Call(mail.params, mail.body, self._now, self.archive)
        self.tasks.pass_time(self._agenda, self._now)
        if actor.held:
            raise Held
        try:
            if mail.operation not in _OPERATIONS:
                raise InternalError(f"there is no operation {mail.operation!r}")
            if mail.sender.is_gone and mail.operation in PULLING:
                return Reply(mail.request_id, 200, NOTHING)  # leased to nobody, jobs would only wait for their leases
            self._growth.check(self.room, mail, actor)
            if not mail.realm:
                return serve_several(self, mail, call)
            owner = self.placement.shard_of(mail.realm)
            if owner != self.index:
                return Reply(mail.request_id, MOVED, b"", owner)
            if mail.operation == "place_realm":
                return self.moves.place(actor, mail)
            return self._serve_realm(actor, mail, call)
        except StoreFailed:
            raise
        except RestqError as error:
            self.stats.count_error(mail.operation, error.code)
            return refusal(mail, error)
        except Held:
            raise
        except Exception:
            log.exception("shard %d: operation %s failed", self.index, mail.operation)
            if len(self.changes):
                raise  # perhaps half done: only the file knows what is true
            return refusal(mail, InternalError("restq met a defect of its own; nothing was done"))

    def _serve_realm(self, actor: Actor, mail: Mail, call: Call) -> Reply | Work | Wait:
        realm = actor.realm or self._new_realm(mail.realm)
        if not self.full:
            realm.advance(self._now)
        self.waking.check(mail)
        if mail.once and (kept := self.replies.find(realm.key, mail.once, self._now)):
            body = self.archive.reply(kept[0])
            if body is not None:
                return Reply(mail.request_id, 200, body)
        if mail.operation == "undo_pull":
            lease, _, *key = mail.params
            if not self.replies.withdraw(realm.key, "".join(key), lease):
                return Reply(mail.request_id, 200, NOTHING)
        outcome = REALM_OPERATIONS[mail.operation](realm, call)
        if isinstance(outcome, Work):
            actor.realm = realm  # which comes to be with the first step that writes
            return outcome
        self.settle(actor, realm)
        if isinstance(outcome, Wait):
            return outcome
        return self._ok(mail, outcome, realm)

    def conclude(self, mail: Mail, done: Done | RestqError, realm: Realm) -> None:
        """A task is done, or refused."""
        self.answer(mail, refusal(mail, done) if isinstance(done, RestqError) else self._ok(mail, done, realm))

    def _ok(self, mail: Mail, done: Done, realm: Realm) -> Reply:
        if mail.once:
            self.replies.note(realm.key, mail, done, self._now)
        return Reply(mail.request_id, 200, done.body, done.lease)

    def _new_realm(self, name: str) -> Realm:
        """An empty realm, which comes to be when something is written to it."""
        realm = Realm(self.keys.take(), name, self._default_lease_time, self.keys, self.changes, self._chance)
        realm.pinned = home(name, self.placement.shard_count) != self.index
        realm.epoch = self.moves.epoch(name)
        realm.events, realm.bounds = self.events.told, self.bounds
        return realm

    def _realm_of(self, name: str) -> Realm:
        return self.find(name) or self._new_realm(name)

    # -- time --------------------------------------------------------------------------------------------------

    def pass_time(self, actor: Actor) -> None:
        """Let time pass in a realm, as far as one turn goes: who waits there is ahead of who comes after it."""
        if actor.realm is not None:
            self._agenda.put(actor, actor.realm.next_deadline())
        self.tasks.pass_time(self._agenda, self._now)
        if not actor.held:
            self.happened(actor)

    def happened(self, actor: Actor) -> None:
        """Something happened to a realm, or time passed in it: whoever waits may get something.

        Not while the disk is full: what could not be kept is given to nobody. Once there is room, this is made up for.
        """
        realm = actor.realm
        if not self.full:
            self.waking.happened(actor.name, realm, self._now)
        if realm is not None:
            self._agenda.put(actor, self._now if self.full else realm.next_deadline())
            self.bounds.count(realm)

    # -- what concerns several realms, or none ---------------------------------------------------------------------

    def several(self, once: Sequence[str] = ()) -> Several:
        """The realms of this shard, to a request, perhaps with a key, on more than one of them."""
        return Several(
            self.index, self.placement, self.mailboxes.actors, self._new_realm, self.replies, once, self._now
        )

    def realms(self) -> Iterator[Realm]:
        """The realms that exist here."""
        return (actor.realm for actor in self.mailboxes.actors.values() if actor.realm is not None)

    # -- tasks, and realms that come and go ----------------------------------------------------------------------

    def settle(self, actor: Actor, realm: Realm) -> None:
        """After an operation or a task: a realm may have come to be, or be gone."""
        if not realm.exists and actor.realm is realm:
            self._chores.orphan(realm.key, self._now)
        elif realm.result_count:
            self._chores.keeps(realm)
        actor.realm = realm if realm.exists else None
        self.bounds.count(realm)
        self.mailboxes.forget(actor)

    def release(self, actor: Actor) -> None:
        """The realm is not held any more: its mail is served again."""
        actor.held = False
        if self.mailboxes.actors.get(actor.name) is actor:
            self.pass_time(actor)
        self.mailboxes.enqueue(actor)
        self.mailboxes.forget(actor)
        self.mailboxes.enqueue(self.mailboxes.several)

    def committed(self, outbox: Sequence[tuple[Mail, Reply]]) -> None:
        """What this turn did is committed, or undone: now these are told."""
        self.begun = self.tasks.begun() | self.moves.begun()
        self.waking.served(mail for mail, _ in outbox)
        has_news = bool(self.events.told)
        if self.events.record(self._now):
            for realm in self.realms():
                realm.events = None
        elif has_news:
            self.waking.tell(self._now)

    def find(self, name: str) -> Realm | None:
        """The realm of this name, if it exists here."""
        actor = self.mailboxes.actors.get(name)
        return None if actor is None else actor.realm

    # -- replies -----------------------------------------------------------------------------------------------------

    def answer(self, mail: Mail, reply: Reply) -> None:
        """Have a reply sent once the turn is committed."""
        self._reply_bytes += len(reply.body)
        self.outbox.append((mail, reply))


_OPERATIONS = {*REALM_OPERATIONS, *SHARD_OPERATIONS, *ARRIVAL_OPERATIONS, *INTERNAL_OPERATIONS, "place_realm"}
