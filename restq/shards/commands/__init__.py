"""The table of operations: each reads its arguments, calls the realm, and writes the reply's JSON.

No rule about queues lives here, and no socket. An operation either raises and has changed nothing, or returns
an outcome (see `call`): most are done at once; one that concerns many jobs is carried on step by step; one that has
nothing to give may wait.
"""

from __future__ import annotations

from collections.abc import Callable

from restq.shards.commands import jobs, leases, settings, several
from restq.shards.commands.call import Call, Done, Outcome, Wait
from restq.shards.commands.several import Realms
from restq.shards.realm import Realm

REALM_OPERATIONS: dict[str, Callable[[Realm, Call], Outcome]] = {
    "ack": leases.ack,
    "add_job": jobs.add_job,
    "add_jobs": jobs.add_jobs,
    "cancel_job": jobs.cancel_job,
    "cancel_tagged_jobs": jobs.cancel_tagged_jobs,
    "check_jobs": jobs.check_jobs,
    "clear_queue": settings.clear_queue,
    "clear_queue_2013": settings.clear_queue_2013,
    "configure_2013": settings.configure_2013,
    "configure_queue": settings.configure_queue,
    "configure_tag": settings.configure_tag,
    "delete_realm": settings.delete_realm,
    "exchange": leases.exchange,
    "explain_job": jobs.explain_job,
    "extend": leases.extend,
    "get_config": settings.get_config,
    "get_job": jobs.get_job,
    "get_queue": settings.get_queue,
    "get_queues": settings.get_queues,
    "get_status": settings.get_status,
    "get_tag": settings.get_tag,
    "get_tag_status": settings.get_tag_status,
    "get_tagged_jobs": jobs.get_tagged_jobs,
    "get_tags": settings.get_tags,
    "list_jobs": jobs.list_jobs,
    "move_job": jobs.move_job,
    "move_job_2013": jobs.move_job_2013,
    "move_tagged_jobs": jobs.move_tagged_jobs,
    "nack": leases.nack,
    "pull": leases.pull,
    "pull_2013": leases.pull_2013,
    "configure": settings.configure,
    "redrive": jobs.redrive,
    "redrive_tagged_jobs": jobs.redrive_tagged_jobs,
    "release": leases.release,
    "remove_job": jobs.remove_job,
    "remove_jobs": jobs.remove_jobs,
    "remove_tagged_jobs": jobs.remove_tagged_jobs,
    "undo_pull": leases.undo_pull,
}

SHARD_OPERATIONS: dict[str, Callable[[Realms, Call], Done | Wait]] = {
    "get_statuses": several.get_statuses,
    "lease_peeked": several.lease_peeked,
    "peek": several.peek,
    "pull_waiting": several.pull_waiting,
}

# What needs every realm, and waits while a task holds one of them.
HELD_UP = frozenset({"get_statuses"})

# What leases jobs, and nothing else.
PULLING = frozenset({"lease_peeked", "pull", "pull_2013", "pull_waiting"})

# What changes nothing: a full disk does not hold it up.
READING = frozenset(
    {"explain_job", "get_config", "get_job", "get_queue", "get_queues", "get_stats", "get_status", "get_statuses"}
    | {"get_tag", "get_tag_status", "get_tagged_jobs", "get_tags", "list_jobs", "next_events", "peek", "recall"}
)
