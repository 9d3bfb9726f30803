"""What a shard answers where the disk has no room for what it did."""

from __future__ import annotations

from restq.errors import RestqError, StorageFull
from restq.protocol import Reply
from restq.shards.actor import Mail, refusal
from restq.shards.room import check_room
from restq.shards.shard import Shard
from restq.shards.store import Room

_GOES_ON = StorageFull("there is no room left on the disk: if this had begun, it goes on, or is undone, once there is")


def refuse(shard: Shard, outbox: list[tuple[Mail, Reply]], why: StorageFull) -> list[tuple[Mail, Reply]]:
    """What to send instead of these replies, and to who waits for a task, where the group could not be kept.

    What the shard still has room for, be it for reads alone, is asked once more, or goes on where it began in an
    earlier group. The others are told which of the two it is: what began in this one is undone.
    """
    refused: list[tuple[Mail, Reply]] = []
    for mail in (*(mail for mail, _ in outbox), *shard.tasks.waiting(), *shard.moves.waiting()):
        has_begun = shard.begun.get(mail.realm) is mail
        if not _goes_on(shard, mail):
            refused.append((mail, refusal(mail, _GOES_ON if has_begun else why)))
        elif has_begun:
            shard.tasks.hand_over(mail)
        else:
            shard.receive(mail)
    return refused


def _goes_on(shard: Shard, mail: Mail) -> bool:
    try:
        check_room(min(shard.room, Room.LITTLE), mail, shard.mailboxes.actors.get(mail.realm))
    except RestqError:
        return False
    return True
