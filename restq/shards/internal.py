"""The operations that concern no realm: what front ends ask of a shard for themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from restq.protocol import Reply
from restq.shards.actor import Elsewhere, Mail
from restq.shards.commands.call import Call, Done, Wait, encode
from restq.shards.events import Event, shown
from restq.shards.job import LEASED
from restq.shards.realm import Realm

if TYPE_CHECKING:
    from restq.shards.shard import Shard


def get_stats(shard: Shard, mail: Mail, call: Call) -> Reply:
    """What the shard counted of its own work."""
    counts = {realm.name: {"jobs": len(realm.jobs), "pinned": realm.pinned} for realm in shard.realms()}
    return Reply(mail.request_id, 200, encode(shard.stats.report(shard.index, counts)))


def recall(shard: Shard, mail: Mail, call: Call) -> Reply:
    """What this very pull over several realms leased here when it came before: [index, job], in any order.

    `params`: the realms over which it goes, or null for all, and its claim. With the reply goes the number of the last
    arrival: where it has changed since, a realm that came here meanwhile may have been asked for nowhere.
    """
    names, claim = call.params
    shard.replies.claims.make(mail.once, claim)
    shard.waking.supersede(mail, call.now)
    return Reply(mail.request_id, 200, shard.several(mail.once).recalled(names, call), shard.moves.last_arrival)


def next_events(shard: Shard, mail: Mail, call: Call) -> Reply | Wait:
    """What happened after an event, or, the first time, just its number; waits for the next one.

    `params`: the realm, or null for all; the number of the last event that is known, or null; for how many seconds.
    """
    realm, number, seconds = call.params
    if realm is not None and (owner := shard.placement.shard_of(realm)) != shard.index:
        return Elsewhere(realm, owner).reply(mail.request_id)
    if shard.events.listen(call.now):
        for held in shard.realms():
            held.events = shard.events.told
    if number is None or number > shard.events.last:
        return Reply(mail.request_id, 200, _told(shard, realm, [], shard.events.last, 0))
    if (news := _news(shard, call)) is not None:
        return Reply(mail.request_id, 200, news.body)
    realms = None if realm is None else (realm,)
    nothing = Done(b"null")
    return Wait(
        seconds,
        encode(call.params),
        lambda _, call: _news(shard, call),
        lambda _, call: nothing,
        realms=realms,
        is_for_news=True,
    )


def _news(shard: Shard, call: Call) -> Done | None:
    """What `next_events` asks for, if there is something."""
    realm, number, _ = call.params
    found, at, lost = shard.events.after(number, realm)
    if found or lost:
        return Done(_told(shard, realm, found, at, lost))
    call.params[1] = at  # what concerns others is not looked at again
    return None


def _told(shard: Shard, realm: str | None, found: list[Event], at: int, lost: int) -> bytes:
    named = [shard.find(realm)] if realm is not None else shard.realms()
    counts = {held.name: _counts(held) for held in named if held is not None}
    return encode({"number": at, "lost": lost, "events": [shown(event) for event in found], "counts": counts})


def _counts(realm: Realm) -> dict[str, int]:
    leased = sum(queue.counts[LEASED] for queue in realm.queues.values())  # `leases` has those that ran out as well
    return {"jobs": len(realm.jobs), "tags": len(realm.tags), "leased": leased}


INTERNAL_OPERATIONS: dict[str, Callable[[Shard, Mail, Call], Reply | Wait]] = {
    "get_stats": get_stats,
    "next_events": next_events,
    "recall": recall,
}
