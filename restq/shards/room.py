"""How much room a shard's disk has for changes, and which of them go on where it is little.

A disk that is full refuses what makes the data grow: adds above all. What takes away, gives back or hands out goes on,
as else nothing would ever make room: removes, clears, cancels, acks, nacks, releases, extends, pulls. These need room,
too: for SQLite's log, and for what a pull or a nack notes of a job. It comes out of a reserve (see `reserve`), the
last quarter of which is left to what takes away.

A large body that can't fit is refused by itself, before anything is done: were it tried, all that arrived with it would
be undone with it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from restq.errors import StorageFull
from restq.shards.actor import Actor, Mail
from restq.shards.changes import BATCH
from restq.shards.commands import READING
from restq.shards.store import Room

LARGE_BYTES = 64 << 10  # of a body; smaller ones are not looked at one by one
GROWTH = 3  # bytes that the disk takes for a byte of a body: in the log, in the database, and what rows have around it

_NEEDS = dict.fromkeys(READING, Room.NONE)
_NEEDS |= dict.fromkeys(
    (
        "ack",
        "cancel_job",
        "cancel_tagged_jobs",
        "clear_queue",
        "clear_queue_2013",
        "delete_realm",
        "extend",
        "release",
        "remove_job",
        "remove_jobs",
        "remove_tagged_jobs",
        "undo_pull",
    ),
    Room.SCARCE,
)
# A pull notes its lease, an exchange and a nack what became of others; replies under idempotency keys are kept as well.
_NEEDS |= dict.fromkeys(("exchange", "lease_peeked", "nack", "pull", "pull_2013", "pull_waiting"), Room.LITTLE)
_NEEDS["arrive_begin"] = Room.NONE  # it looks by itself, once it knows whether the realm was here before

_TOLD = {
    Room.NONE: "there is no room left on the disk: nothing was done",
    Room.SCARCE: "the disk is full, and the reserve is kept for what takes away, such as removes: nothing was done",
    Room.LITTLE: "the disk is full: until there is room restq takes nothing that adds to the data: nothing was done",
}
RESTING = StorageFull("the disk is full, and a bulk add that was begun in this realm waits for room: nothing was done")


class _Adding(msgspec.Struct):
    add: msgspec.Raw = msgspec.Raw(b"null")


_read_adding = msgspec.json.Decoder(_Adding).decode


def needs(mail: Mail, actor: Actor | None) -> Room:
    """How much room there must be for this request to be served."""
    realm = None if actor is None else actor.realm
    if mail.operation == "ack" and realm is not None and realm.settings.keeps_results:
        return Room.LITTLE
    if mail.operation == "exchange" and _adds(mail.body):
        return Room.ENOUGH
    return _NEEDS.get(mail.operation, Room.ENOUGH)


def _adds(body: bytes) -> bool:
    try:
        return bytes(_read_adding(body).add) not in (b"null", b"[]")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False  # it is refused for what it is


def check_room(room: Room, mail: Mail, actor: Actor | None) -> None:
    """Raise StorageFull where there is too little room for this request."""
    if room < Room.ENOUGH and room < needs(mail, actor):
        raise StorageFull(_TOLD[room])


class Growth:
    """What the large bodies of a group make the data grow by. `growable` says by how many bytes they may grow."""

    def __init__(self, growable: Callable[[], float]) -> None:
        self._growable = growable
        self._bytes = 0

    def begin(self) -> None:
        """A new group begins."""
        self._bytes = 0

    def check(self, room: Room, mail: Mail, actor: Actor | None) -> None:
        """Raise StorageFull where there is too little room, or none for this body beside the others of the group."""
        check_room(room, mail, actor)
        size = len(mail.body)
        if size < LARGE_BYTES or needs(mail, actor) < Room.ENOUGH:
            return
        if (self._bytes + size) * GROWTH > self._growable():
            raise StorageFull(f"the disk has no room for the {size} bytes of this request: nothing was done")
        self._bytes += size


def rests(room: Room, actor: Actor) -> bool:
    """Whether what holds this realm can't go on: a bulk add that was begun before there was too little room."""
    task = None if actor.realm is None else actor.realm.task
    return room < Room.ENOUGH and task is not None and task.kind == BATCH and task.details[0] == "add_jobs"
