"""The operations that concern no realm: what front ends ask of a shard for themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from restq.protocol import Reply
from restq.shards.actor import Elsewhere, Mail
from restq.shards.commands import several
from restq.shards.commands.call import NOTHING, Call, Done, Wait, encode
from restq.shards.events import shown
from restq.shards.job import LEASED
from restq.shards.realm import Event, Realm

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
    realms = shard.realms() if names is None else filter(None, map(shard.find, names))
    rows = [row for realm in realms for row in shard.replies.find(realm.key, mail.once, call.now)]
    parts = [body[1:-1] for row in rows if (body := shard.archive.reply(row)) is not None]
    return Reply(mail.request_id, 200, b"[" + b",".join(parts) + b"]", shard.moves.last_arrival)


def wait_ready(shard: Shard, mail: Mail, call: Call) -> Reply | Wait:
    """Wait until a pull over several realms would find something; it leases nothing.

    `params`: the last queue, queues, tags and realms that the pull asks for, each perhaps null, and how many seconds.
    """
    found = has_ready(shard, call)
    if found is not None:
        return found._replace(request_id=mail.request_id)
    return Wait(call.params[4], encode(call.params[:4]), lambda realm, call: None, lambda realm, call: Done(NOTHING))


def wait_on(shard: Shard, mail: Mail, call: Call) -> Reply | Wait:
    """`wait_ready` once more: only what happened to realms since can have made a difference."""
    max_queue, queues, tags, realms, seconds = call.params
    stirred = [name for name in shard.stirred if (shard.find(name) if realms is None else name in realms)]
    return wait_ready(shard, mail, call._replace(params=[max_queue, queues, tags, stirred, seconds]))


def ask_again(shard: Shard, mail: Mail, call: Call) -> Reply | Wait:
    """Ask once more for who waits, after something happened."""
    operation = wait_on if mail.operation == "wait_ready" else INTERNAL_OPERATIONS[mail.operation]
    return operation(shard, mail, call)


def has_ready(shard: Shard, call: Call) -> Reply | None:
    """The answer to `wait_ready` if there is one now."""
    try:
        return Reply(0, 200, NOTHING) if several.has_ready(shard.several(), call) else None
    except Elsewhere as elsewhere:
        return elsewhere.reply(0)


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
    no_events: list[Event] = []
    if number is None or number > shard.events.last:
        found, at, lost = no_events, shard.events.last, 0
    else:
        found, at, lost = shard.events.after(number, realm)
        if not found and not lost:
            call.params[1] = at  # what concerns others is not looked at again
            return Wait(seconds, encode(call.params), lambda realm, call: None, lambda realm, call: Done(b"null"))
    named = [shard.find(realm)] if realm is not None else shard.realms()
    counts = {held.name: _counts(held) for held in named if held is not None}
    said = {"number": at, "lost": lost, "events": [shown(event) for event in found], "counts": counts}
    return Reply(mail.request_id, 200, encode(said))


def _counts(realm: Realm) -> dict[str, int]:
    leased = sum(queue.counts[LEASED] for queue in realm.queues.values())  # `leases` has those that ran out as well
    return {"jobs": len(realm.jobs), "tags": len(realm.tags), "leased": leased}


INTERNAL_OPERATIONS: dict[str, Callable[[Shard, Mail, Call], Reply | Wait]] = {
    "get_stats": get_stats,
    "next_events": next_events,
    "recall": recall,
    "wait_ready": wait_ready,
}
