"""Where realms live: pins, and moves to other shards and from them, as far as they concern the shard's own books.

How the rows get to another shard stands in `moving`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from restq import bodies
from restq.errors import RealmNotFound, RestqError
from restq.placement import home
from restq.protocol import Reply
from restq.shards.actor import Actor, Mail, no_mail, refusal
from restq.shards.changes import MovedRow, Task
from restq.shards.commands.call import NOTHING
from restq.shards.realm import Realm

if TYPE_CHECKING:
    from restq.shards.shard import Shard


class Moves:
    """The moves of a shard's realms."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self.asked: list[tuple[Mail, int]] = []  # that the process is to carry out
        self._movers: dict[str, Mail] = {}  # who waits for a move, by realm
        self._epochs: dict[str, int] = {}  # of realms that moved here or from here, also if they are gone
        self.last_arrival = 0  # a number that is another after each arrival, restarts included

    def take(self) -> list[tuple[Mail, int]]:
        """Hand over the moves that are to be carried out: on whose behalf, and to which shard."""
        asked, self.asked = self.asked, []
        return asked

    def begun(self) -> dict[str, Mail]:
        """Who waits for a move, by realm."""
        return dict(self._movers)

    def waiting(self) -> Iterable[Mail]:
        """Who waits for a move."""
        return self._movers.values()

    def load(self, moved: Iterable[MovedRow]) -> None:
        """Be what the store says. The moves that began are asked for again by `resume`, one by one."""
        placement = self._shard.placement
        placement.forget()
        self._epochs.clear()
        for row in moved:
            placement.learn(row.name, row.shard)
            self._epochs[row.name] = row.epoch
        self.asked.clear()
        self._movers.clear()
        self.last_arrival = self._shard.keys.next_key

    def resume(self, actor: Actor, target: int) -> None:
        """Go on with a move that began before a start."""
        actor.held = True
        self.asked.append((no_mail(actor.name), target))

    def place(self, actor: Actor, mail: Mail) -> Reply | None:
        """Pin the realm to a shard (`params[0]`: 1), or let it go home (0), and move it there if need be."""
        pinned = bool(mail.params[0])
        count = self._shard.placement.shard_count
        target = bodies.shard(mail.body, count) if pinned else home(mail.realm, count)
        realm = actor.realm
        if realm is None:
            raise RealmNotFound(f"realm {mail.realm!r} does not exist", "realm")
        was_pinned, realm.pinned = realm.pinned, pinned
        realm.write(changed=True)
        if target == self._shard.index:
            return Reply(mail.request_id, 200, NOTHING)
        realm.set_task(Task("move", target, (int(was_pinned),)))
        actor.held = True
        self.asked.append((mail, target))
        self._movers[mail.realm] = mail
        return None

    def held_realm(self, name: str) -> Realm:
        """The realm that a move holds."""
        realm = self._shard.mailboxes.actor(name).realm
        assert realm is not None, "a realm on the move exists"
        return realm

    def depart(self, mail: Mail, target: int) -> None:
        """The realm is whole in another shard: say so from now on, and remove what is left here."""
        shard = self._shard
        actor = shard.mailboxes.actor(mail.realm)
        realm, actor.realm = actor.realm, None
        assert realm is not None, "a realm on the move exists"
        self.note(mail.realm, target, realm.epoch + 1)
        self._movers.pop(mail.realm, None)
        shard.waking.moved(mail.realm, target)
        shard.tasks.discard(realm)
        shard.replies.unclaim_of(lambda key: key == realm.key)
        shard.answer(mail, Reply(mail.request_id, 200, NOTHING))
        shard.release(actor)

    def came_back(self, realm: Realm) -> None:
        """A realm on its way out comes back: so it was whole where it went, though the answer is still to come."""
        assert realm.task is not None, "it is on its way out"
        self.asked = [(mail, target) for mail, target in self.asked if mail.realm != realm.name]
        self.depart(self._movers.get(realm.name, no_mail(realm.name)), int(realm.task.target or 0))

    def stay(self, mail: Mail, why: RestqError) -> None:
        """The realm did not get to the other shard: it is served here, and all is as it was."""
        shard = self._shard
        actor, realm = shard.mailboxes.actor(mail.realm), self.held_realm(mail.realm)
        assert realm.task is not None, "a move is a task"
        realm.pinned = bool(realm.task.details[0])
        realm.set_task(None)
        self._movers.pop(mail.realm, None)
        shard.answer(mail, refusal(mail, why))
        shard.release(actor)

    def arrive(self, realm: Realm) -> None:
        """A realm that came from another shard counts from now on."""
        realm.epoch += 1
        realm.set_task(None)
        self.note(realm.name, self._shard.index, realm.epoch)
        self.last_arrival = self._shard.keys.take()  # two may have begun before either ends
        self._shard.take_in(realm)
        self._shard.pass_time(self._shard.mailboxes.actor(realm.name))

    def epoch(self, name: str) -> int:
        """The epoch of the last realm of this name that came here or went from here, 0 if none ever did.

        One that is made anew goes on from it: what is left elsewhere of an earlier one must not count.
        """
        return self._epochs.get(name, 0)

    def note(self, name: str, shard: int, epoch: int) -> None:
        """Say from now on where a realm lives."""
        self._shard.placement.learn(name, shard)
        self._epochs[name] = epoch
        # Also where that is its home: a process may have been started with a pin.
        self._shard.changes.moved[name] = MovedRow(name, shard, epoch)
