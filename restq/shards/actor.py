"""An actor: a realm with its mailbox, and the messages in it."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple, Protocol

from restq.protocol import Reply
from restq.shards.commands import Work
from restq.shards.realm import Realm


class Sender(Protocol):
    """Where a reply goes: one connection of a front end."""

    def reply(self, reply: Reply) -> None:
        """Send it with the next flush, if the front end is still there."""

    def flush(self) -> None:
        """Send what gathered."""


class Mail(NamedTuple):
    """A request as it arrived, from whom and when (monotonic seconds)."""

    sender: Sender
    arrived_at: float
    request_id: int
    operation: str
    realm: str
    params: list[Any]
    body: bytes


class Held(Exception):
    """The realm is held by a task: come again later."""


class Actor:
    """A realm's mailbox, its realm if it exists, and the task that holds it if there is one."""

    __slots__ = ("held", "mail", "name", "queued", "realm", "work")

    def __init__(self, name: str, realm: Realm | None = None) -> None:
        self.name = name
        self.realm = realm
        self.mail: deque[Mail] = deque()
        self.queued = False  # it stands in the round of the mailboxes
        self.held = False
        self.work: tuple[Work, Mail | None] | None = None  # a removal under way, and who waits for it


class _Nobody:
    def reply(self, reply: Reply) -> None:
        """Nobody waits for it."""

    def flush(self) -> None:
        """Nothing gathered."""


def no_mail(realm: str) -> Mail:
    """What stands for the message where a shard asks itself."""
    return Mail(_Nobody(), 0.0, 0, "place_realm", realm, [], b"")
