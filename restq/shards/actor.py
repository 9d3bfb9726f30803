"""An actor: a realm with its mailbox, and the messages in it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from restq.errors import RestqError
from restq.protocol import MOVED, Reply
from restq.shards.commands.call import Work
from restq.shards.realm import Realm


class Sender(Protocol):
    """Where a reply goes: one connection of a front end."""

    @property
    def is_gone(self) -> bool:
        """Whether nobody is there any more."""

    def reply(self, reply: Reply) -> None:
        """Send it with the next flush, if the front end is still there."""

    def flush(self) -> None:
        """Send what gathered."""

    async def drain(self) -> None:
        """Wait until most of it was taken."""


class Mail(NamedTuple):
    """A request as it arrived, from whom and when (monotonic seconds), and for how long it waited elsewhere before."""

    sender: Sender
    arrived_at: float
    request_id: int
    operation: str
    realm: str
    params: list[Any]
    body: bytes
    once: Sequence[str] = ()  # idempotency key and digest, if it came with one
    waited: float = 0


class Held(Exception):
    """The realm is held by a task: come again later."""


class Actor:
    """A realm's mailbox, its realm if it exists, and the task that holds it if there is one."""

    __slots__ = ("due_at", "held", "mail", "name", "queued", "realm", "work")

    def __init__(self, name: str, realm: Realm | None = None) -> None:
        self.name = name
        self.realm = realm
        self.mail: deque[Mail] = deque()
        self.queued = False  # it stands in the round of the mailboxes
        self.held = False
        self.due_at = math.inf  # time is to pass in its realm then
        self.work: tuple[Work, Mail | None] | None = None  # a sweep under way, and who waits for it


class Elsewhere(Exception):
    """The realm lives in another shard."""

    def __init__(self, realm: str, shard: int) -> None:
        self.realm = realm
        self.shard = shard

    def reply(self, request_id: int) -> Reply:
        """What tells a front end where to ask."""
        return Reply(request_id, MOVED, self.realm.encode(), self.shard)


class _Nobody:
    is_gone = False

    def reply(self, reply: Reply) -> None:
        """Nobody waits for it."""

    def flush(self) -> None:
        """Nothing gathered."""

    async def drain(self) -> None:
        """Nothing to wait for."""


def no_mail(realm: str) -> Mail:
    """What stands for the message where a shard asks itself."""
    return Mail(_Nobody(), 0.0, 0, "place_realm", realm, [], b"")


def refusal(mail: Mail, error: RestqError) -> Reply:
    """The reply to what was refused."""
    return Reply(mail.request_id, error.status, msgspec.json.encode(error.to_reply()))
