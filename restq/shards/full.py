"""What a shard answers where the disk has no room for what it did."""

from __future__ import annotations

from restq.errors import RestqError, StorageFull
from restq.protocol import Reply
from restq.shards.actor import Mail, refusal
from restq.shards.room import check_room
from restq.shards.shard import Shard
from restq.shards.store import Room


def refuse(shard: Shard, outbox: list[tuple[Mail, Reply]], why: StorageFull) -> list[tuple[Mail, Reply]]:
    """What to send instead of these replies, where the group could not be kept.

    What the shard still has room for, be it for reads alone, is asked once more. Who waits for a task is told, too:
    whether it began in this group, and is undone, or in an earlier one.
    """
    refused: list[tuple[Mail, Reply]] = []
    for mail, _ in outbox:
        if _goes_on(shard, mail):
            shard.receive(mail)
        else:
            refused.append((mail, refusal(mail, why)))
    perhaps = StorageFull(
        "there is no room left on the disk: if this had begun, it goes on, or is undone, once there is"
    )
    refused += [(mail, refusal(mail, perhaps)) for mail in (*shard.tasks.waiting(), *shard.moves.waiting())]
    return refused


def _goes_on(shard: Shard, mail: Mail) -> bool:
    try:
        check_room(min(shard.room, Room.LITTLE), mail, shard.mailboxes.actors.get(mail.realm))
    except RestqError:
        return False
    return True
