"""The operations on queues, tags and the realm as a whole: what they hold, how they are configured, how they end."""

from __future__ import annotations

from msgspec import UNSET

from restq import bodies, names
from restq.errors import FieldInvalid, TagNotFound
from restq.shards import configuring, limits, listing, sweeps
from restq.shards.commands.call import NOTHING, Call, Done, Outcome, Wait, Work, encode
from restq.shards.commands.jobs import swept
from restq.shards.realm import Realm
from restq.shards.settings import PLAIN_QUEUE, UNLIMITED

_read_config = bodies.reader(bodies.Config)
_read_queue_settings = bodies.reader(bodies.QueueSettings)
_read_tag_settings = bodies.reader(bodies.LimitSettings)
_read_realm_settings = bodies.reader(bodies.RealmSettings)


# -- the realm -------------------------------------------------------------------------------------------------------


def get_status(realm: Realm, call: Call) -> Done:
    """GET /{realm}/status, as in 2013."""
    return Done(encode(status(realm)))


def status(realm: Realm) -> dict[str, object]:
    """The counts of the realm: its jobs, its tags, the jobs that stand in each queue, in whatever state."""
    return {
        "total_jobs": len(realm.jobs),
        "total_tags": len(realm.tags),
        "queues": {str(queue.queue_id): len(queue) for queue in realm.served()},
    }


def configure_2013(realm: Realm, call: Call) -> Done:
    """POST /{realm}/config, as in 2013: lease times of queues to come, and of one queue, made if need be."""
    config = _read_config(call.body)
    default = bodies.lease_time(config.default_lease_time, "default_lease_time")
    of_queue = config.queue_lease_time
    if of_queue is not None:
        bodies.lease_time(of_queue[1], "queue_lease_time")
        of_queue = (names.queue_id(of_queue[0], "queue_lease_time"), of_queue[1])
    if default is not None:
        realm.default_lease_time = default
        realm.write(changed=True)
    if of_queue is not None:
        realm.write()
        queue = realm.queue(of_queue[0])
        queue.lease_time = of_queue[1]
        realm.note_queue(queue)
    return Done(NOTHING)


def get_config(realm: Realm, call: Call) -> Done:
    """GET /{realm}/config."""
    return Done(encode(configuring.shown_realm(realm.default_lease_time, realm.settings)))


def configure(realm: Realm, call: Call) -> Done:
    """PUT /{realm}/config."""
    said = _read_realm_settings(call.body)
    settings = configuring.realm_settings(realm.settings, said, realm.clock)
    lease_time = said.default_lease_time
    if lease_time is None:
        raise FieldInvalid("default_lease_time: can't be taken away", "default_lease_time")
    if lease_time is not UNSET:
        realm.default_lease_time = bodies.lease_time(lease_time, "default_lease_time") or 0
    realm.settings = settings
    realm.write(changed=True)
    return get_config(realm, call)


def delete_realm(realm: Realm, call: Call) -> Outcome:
    """DELETE /{realm}/."""
    return swept(sweeps.delete(realm)) if realm.exists else Done(NOTHING)


# -- queues ----------------------------------------------------------------------------------------------------------


def clear_queue(realm: Realm, call: Call) -> Work:
    """POST /{realm}/queues/{queue_id}/clear."""
    bodies.check_nothing(call.body)
    return swept(sweeps.clear_queue(realm, names.queue_id(call.params[0])))


def clear_queue_2013(realm: Realm, call: Call) -> Work:
    """GET /{realm}/queues/{queue_id}/clear."""
    return Work(sweeps.clear_queue(realm, names.queue_id(call.params[0])), lambda: Done(NOTHING))


def get_queues(realm: Realm, call: Call) -> Done:
    """GET /{realm}/queues."""
    return Done(encode({"queues": [listing.shown_queue(realm, queue) for queue in realm.served()]}))


def get_queue(realm: Realm, call: Call) -> Done:
    """GET /{realm}/queues/{queue_id}."""
    queue = sweeps.get_queue(realm, names.queue_id(call.params[0]))
    return Done(encode(listing.shown_queue(realm, queue)))


def configure_queue(realm: Realm, call: Call) -> Done:
    """PUT /{realm}/queues/{queue_id}."""
    said = _read_queue_settings(call.body)
    queue_id = names.queue_id(call.params[0])
    known = realm.queues.get(queue_id)
    settings = configuring.queue_settings(PLAIN_QUEUE if known is None else known.settings, said)
    lease_time = said.lease_time
    if lease_time is None:
        raise FieldInvalid("lease_time: can't be taken away", "lease_time")
    if lease_time is not UNSET:
        bodies.lease_time(lease_time)
    realm.write()
    queue = realm.queue(queue_id)
    limits.configure_queue(realm, queue, queue.lease_time if lease_time is UNSET else lease_time, settings)
    return Done(encode(configuring.shown_queue(queue.lease_time, settings)))


# -- tags ------------------------------------------------------------------------------------------------------------


def get_tag_status(realm: Realm, call: Call) -> Done:
    """GET /{realm}/tag/{tag}/status, as in 2013."""
    tag = names.tag(call.params[0], "tag")
    if tag not in realm.tags:
        raise TagNotFound(f"no job of realm {realm.name!r} is tagged {tag!r}", "tag")
    return Done(encode({"count": len(realm.tags[tag].jobs)}))


def get_tags(realm: Realm, call: Call) -> Done:
    """GET /{realm}/tags."""
    prefix, limit, cursor = call.params
    tags, following = listing.list_tags(realm, prefix or "", bodies.limit(limit), cursor)
    return Done(encode({"tags": [listing.shown_tag(realm, tag) for tag in tags], "cursor": following}))


def get_tag(realm: Realm, call: Call) -> Outcome:
    """GET /{realm}/tags/{tag}: with `wait`, once no job carries it."""
    tag, seconds = names.tag(call.params[0], "tag"), bodies.wait(call.params[1])
    if not seconds or tag not in realm.tags:
        return _tag(realm, tag)
    return Wait(
        seconds,
        tag,
        lambda realm, call: None if tag in realm.tags else _tag(realm, tag),
        lambda realm, call: _tag(realm, tag),
        watch=tag,
    )


def _tag(realm: Realm, tag: str) -> Done:
    return Done(encode(listing.shown_tag(realm, tag)))


def configure_tag(realm: Realm, call: Call) -> Outcome:
    """PUT /{realm}/tags/{tag}."""
    said = _read_tag_settings(call.body)
    tag = names.tag(call.params[0], "tag")
    known = realm.tags.limits.get(tag)
    settings = configuring.limit_settings(UNLIMITED if known is None else known.settings, said)
    reply = encode(configuring.shown_limits(settings))
    if limits.configure_tag(realm, tag, settings) and tag in realm.tags:
        return Work(sweeps.rearrange(realm, tag), lambda: Done(reply))
    return Done(reply)
