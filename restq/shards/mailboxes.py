"""The mailboxes of a shard, and the round in which they are served: a message each, so no realm starves another."""

from __future__ import annotations

from collections import deque

from restq.shards.actor import Actor, Mail

BYTES_MAX = 64 << 20  # of the bodies that wait


class Mailboxes:
    """One for each realm that is there or is asked for, and two for what concerns none alone."""

    def __init__(self) -> None:
        self.actors: dict[str, Actor] = {}
        self.several = Actor("")  # what concerns several realms: it waits while one of them is held
        self.unheld = Actor("")  # what waits for no realm: figures, and realms that move in
        self.bytes = 0  # of the bodies that wait
        self._round: deque[Actor] = deque()

    def __bool__(self) -> bool:
        """Whether there is mail to be served."""
        return bool(self._round)

    def actor(self, name: str) -> Actor:
        """The actor of a realm's name, made if need be."""
        actor = self.actors.get(name)
        if actor is None:
            actor = self.actors[name] = Actor(name)
        return actor

    def forget(self, actor: Actor) -> None:
        """A name that nobody uses takes no memory."""
        if actor.realm is None and not actor.mail and not actor.held and self.actors.get(actor.name) is actor:
            del self.actors[actor.name]

    def have_room(self, mail: Mail) -> bool:
        """Whether one more message fits. Where nothing waits each does: a large body must not be refused for ever."""
        return not self.bytes or self.bytes + len(mail.body) <= BYTES_MAX

    def receive(self, actor: Actor, mail: Mail) -> None:
        """A message for this mailbox."""
        self.bytes += len(mail.body)
        actor.mail.append(mail)
        self.enqueue(actor)

    def enqueue(self, actor: Actor) -> None:
        """Serve what is in this mailbox, unless its realm is held."""
        if actor.mail and not actor.queued and not actor.held:
            actor.queued = True
            self._round.append(actor)

    def take(self) -> tuple[Actor, Mail]:
        """The next message of the round; there must be one."""
        actor = self._round.popleft()
        actor.queued = False
        mail = actor.mail.popleft()
        self.bytes -= len(mail.body)
        return actor, mail

    def put_back(self, actor: Actor, mail: Mail) -> None:
        """The message that was taken can't be served now."""
        self.bytes += len(mail.body)
        actor.mail.appendleft(mail)

    def clear(self) -> list[Mail]:
        """Have no realms any more; returns their mail. What concerns no realm alone stays."""
        waiting = [mail for actor in self.actors.values() for mail in actor.mail]
        self.actors.clear()
        self._round.clear()
        self.bytes -= sum(len(mail.body) for mail in waiting)
        for actor in (self.several, self.unheld):
            actor.queued = False
            self.enqueue(actor)
        return waiting
