"""What goes on in steps in a shard: sweeps, batches, much that is due. Who is held by it, and whose step is next."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from restq.errors import RestqError, RowDamaged
from restq.shards import endings
from restq.shards.actor import Actor, Mail, no_mail, refusal
from restq.shards.agenda import Agenda
from restq.shards.changes import BATCH, Task
from restq.shards.commands import REALM_OPERATIONS
from restq.shards.commands.batches import finish
from restq.shards.commands.call import NOTHING, Call, Done, Steps, Work
from restq.shards.commands.jobs import swept
from restq.shards.realm import Realm
from restq.shards.room import rests
from restq.shards.store import StoreFailed
from restq.shards.sweeps import KINDS, UNDO_PULL, Sweep

if TYPE_CHECKING:
    from restq.shards.shard import Shard

log = logging.getLogger("restq.shard")

STEP_COUNT = 1_000  # jobs in one step: some milliseconds
LITTLE_COUNT = 10  # of what is due in a realm is done at once, however much is due in others
RESUMED = KINDS | {BATCH}  # kinds of tasks that go on here after a start


class Passing:
    """Time that passes in a realm until an instant."""

    def __init__(self, realm: Realm, until: float) -> None:
        self._realm = realm
        self._until = until

    def step(self, count: int) -> bool:
        """Do up to `count` of what is due by then; True once that is all."""
        return self._realm.advance(self._until, count) > 0


class GoingOn:
    """What goes on after a start, as if no time had passed; but leases that ran out by the start are seen to first.

    Time would take jobs away between two slices of a bulk add, and a later slice make them anew, without what the first
    said of them.
    """

    def __init__(self, realm: Realm, steps: Steps) -> None:
        self._realm = realm
        self._steps = steps

    def step(self, count: int) -> bool:
        """Settle up to `count` leases of one queue, or do up to `count` of the steps; True once all is done."""
        for queue in self._realm.queues.values():
            if endings.settle_lapsed(self._realm, queue.lapsed, count):
                return False
        return self._steps.step(count)


class Tasks:
    """The realms that a task holds, in the order in which their next steps are made."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self.actors: deque[Actor] = deque()
        self.resting: deque[Actor] = deque()  # there is too little room on the disk for them to go on
        self._heirs: dict[str, Mail] = {}  # by realm: who goes on waiting while memory goes back to the store

    def begin(self, actor: Actor, work: Work, mail: Mail | None) -> None:
        """Hold the realm until the work is done, and then answer."""
        actor.held = True
        actor.work = (work, mail)
        _note_key(actor, mail)  # at once: the next step may be another's
        self.actors.append(actor)

    def resume(self, actor: Actor, realm: Realm, task: Task) -> None:
        """Go on with what began before a start: mostly nobody waits for it, but its reply is kept if it has a key.

        Raises RowDamaged where the file no longer holds what it needs: half of it is not to be served.
        """
        mail = self._heirs.pop(actor.name, None)
        if mail is None and task.once:
            mail = no_mail(actor.name)._replace(once=task.once)
        if task.kind != BATCH:
            work = swept(Sweep(realm, task))
            self.begin(actor, work._replace(steps=GoingOn(realm, work.steps)), mail)
            return
        operation, now, *_ = task.details
        body = self._shard.archive.payload(int(task.target or 0))
        call = Call([], body, float(now), self._shard.archive, is_resumed=True)
        try:
            outcome = REALM_OPERATIONS[str(operation)](realm, call)
        except (RowDamaged, StoreFailed):
            raise
        except RestqError as error:  # rules may have become stricter since: no start must fail for ever
            log.error("realm %r: what was begun of %s is not gone on with: %s", realm.name, operation, error)
            finish(realm)
            if mail is not None:
                self._shard.answer(mail, refusal(mail, error))
            return
        assert isinstance(outcome, Work), "what was done in slices once has as many again"
        self.begin(actor, outcome._replace(steps=GoingOn(realm, outcome.steps)), mail)

    def pass_time(self, agenda: Agenda, now: float) -> None:
        """In the realms where something is due: so much in all, and a little in each. One that has more is held."""
        count = STEP_COUNT
        while not self._shard.full and agenda.next_at() <= now:
            actor = agenda.pop()
            assert isinstance(actor, Actor), "the agenda of a shard holds actors"
            if actor.realm is None or actor.held:
                continue  # `release` puts it down again
            count = actor.realm.advance(now, max(count, LITTLE_COUNT))
            if count > 0:
                self._shard.happened(actor)
            else:
                self.begin(actor, Work(Passing(actor.realm, now), lambda: Done(NOTHING)), None)

    def put_off(self, mail: Mail) -> bool:
        """Put a request into its mailbox to be served after the task of its realm; False if none is under way."""
        actor = self._shard.mailboxes.actors.get(mail.realm)
        if actor is None or actor.work is None:
            return False
        self._shard.receive(mail)
        return True

    def discard(self, realm: Realm) -> None:
        """Remove a realm that lives elsewhere by now or never came to count. Its name is free at once."""
        realm.pinned = False
        realm.set_task(Task("arrive"))  # what is left of it after a crash must not count either
        self.begin(Actor(realm.name, realm), swept(Sweep(realm, Task("delete"))), None)

    def step(self) -> None:
        """Carry on the sweep whose turn it is, if there is one."""
        if not self.actors:
            return
        shard = self._shard
        actor = self.actors.popleft()
        if rests(shard.room, actor):
            self.resting.append(actor)
            return
        assert actor.work is not None, "who is held by a sweep has work"
        work, mail = actor.work
        done: Done | RestqError
        try:
            if not work.steps.step(STEP_COUNT):
                _note_key(actor, mail)  # of a batch, which has its row once it is checked
                self.actors.append(actor)
                if actor.realm is not None:
                    shard.bounds.count(actor.realm)
                return
            done = work.reply()
        except StoreFailed:
            raise
        except RestqError as error:  # a batch is refused, before anything of it is done
            done = error.with_traceback(None)  # whose frames hold the error: a cycle, and no collector runs
        actor.work = None
        realm = actor.realm
        assert realm is not None, "a sweep is one of a realm"
        if mail is not None:
            shard.conclude(mail, done, realm)
        if not realm.exists and realm.pinned:
            shard.moves.note(actor.name, shard.index, realm.epoch)  # though it is gone, its name stays with this shard
        shard.settle(actor, realm)
        shard.release(actor)

    def forget(self) -> None:
        """Memory goes back to the store, which knows of those that began."""
        self.actors.clear()
        self.resting.clear()

    def wake(self) -> None:
        """There is room for all of them again."""
        self.actors.extend(self.resting)
        self.resting.clear()

    def waiting(self) -> list[Mail]:
        """Who waits for a task."""
        return [mail for _, mail in self._waiting()]

    def begun(self) -> dict[str, Mail]:
        """Who waits for what a start would go on with, by realm."""
        begun = {}
        for actor, mail in self._waiting():
            task = None if actor.realm is None else actor.realm.task
            if task is not None and task.kind in RESUMED and task.kind != UNDO_PULL:
                begun[actor.name] = mail
        return begun

    def hand_over(self, mail: Mail) -> None:
        """Have a request, which waits for what began, wait for it still once memory has gone back to the store."""
        self._heirs[mail.realm] = mail

    def _waiting(self) -> Iterator[tuple[Actor, Mail]]:
        for actor in (*self.actors, *self.resting):
            if actor.work is not None and actor.work[1] is not None:
                yield actor, actor.work[1]


def _note_key(actor: Actor, mail: Mail | None) -> None:
    """Have the task's row say under which key it was asked for: should it end after a start, its reply is kept too.

    Of a pull that is undone there is none: it is tried anew.
    """
    task = None if actor.realm is None else actor.realm.task
    if mail is None or not mail.once or task is None or task.once or task.kind == UNDO_PULL:
        return
    assert actor.realm is not None, "who has a task is a realm"
    actor.realm.set_task(task._replace(once=tuple(mail.once)))
