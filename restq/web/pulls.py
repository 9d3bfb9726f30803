"""Pulls over several realms.

Each shard is first asked for its candidates, which leases nothing; the best over all are picked, and then exactly
those are leased: so a pull never leases a job that it does not return. One that waits then stands in the lines of all
its realms, see `line`. Under an idempotency key, the shards are first asked what they leased for it before, and from
then on lease nothing to one that began earlier; while one of them is starting again, what it leased waits there for its
leases to end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from restq import bodies, names
from restq.errors import RestqError, ShardStarting, ShardUnavailable, from_reply
from restq.names import QueueId
from restq.protocol import MOVED, Reply
from restq.web.calls import Call, Lease, Operation, Outcome
from restq.web.line import Line
from restq.web.once import Turns
from restq.web.shards import ATTEMPTS_MAX, RealmMoved, Shards

ROUNDS_MAX = 4  # a pull asks again where others took its candidates meanwhile

log = logging.getLogger("restq.web")
encode = msgspec.json.Encoder().encode


class PullEverywhere(bodies.Pull, forbid_unknown_fields=True):
    """Body of POST /pull."""

    realms: list[str] | None = None
    distinct: bool = False


class LeasedJob(msgspec.Struct):
    """A job as a shard leased it for a pull over several realms."""

    job_id: str
    queue_id: int | str
    data: msgspec.Raw
    tags: list[str]
    attempt: int
    lease_id: str
    lease_expires_at: float
    realm: str


class Wanted(NamedTuple):
    """What a pull wants, checked; `realms`, `queues`, `tags` and `last` are None for all.

    `is_distinct`: of the jobs of one id in several realms, no more than one.
    """

    job_count: int
    last: QueueId | None
    realms: list[str] | None
    queues: list[QueueId] | None = None
    tags: list[str] | None = None
    lease_time: int | float | None = None
    worker: str = ""
    is_distinct: bool = False

    def identity(self, realm: str, job_id: str) -> tuple[str, str]:
        """What no two of its jobs have in common."""
        return "" if self.is_distinct else realm, job_id


class Keyed(NamedTuple):
    """The idempotency key of a pull, with the digest of what is asked under it, and its claim to lease under it."""

    once: Sequence[str] = ()
    claim: Sequence[float] = ()


class Pulled(NamedTuple):
    """What a pull leased."""

    jobs: list[LeasedJob]
    leases: list[Lease]


UNKEYED = Keyed()
_read_pull = bodies.reader(PullEverywhere)
_read_leased = msgspec.json.Decoder(list[tuple[int, LeasedJob]]).decode


class Pulls:
    """The pulls over several realms."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._turns = Turns()
        self.operations: dict[str, Operation] = {"pull_everywhere_2013": self.pull_2013, "pull_everywhere": self.pull}

    async def pull_2013(self, call: Call) -> Outcome:
        """GET /job: the pull of 2013."""
        count, realms_text, last = call.query
        realms = None if realms_text is None else [name for name in realms_text.split(",") if name]
        last_queue = bodies.max_queue(last, "max-queue")
        wanted = Wanted(bodies.count(count), last_queue, _realm_names(realms), is_distinct=True)
        jobs, leases = await self._pull(wanted)
        return Outcome(encode({job.job_id: (job.realm, job.queue_id, job.data) for job in jobs}), leases)

    async def pull(self, call: Call) -> Outcome:
        """POST /pull."""
        body = _read_pull(call.body or b"{}")
        wanted = _wanted(body)
        wait = bodies.wait(body.wait) if wanted.job_count else 0
        if not call.once:
            return await self._pull_waiting(wanted, wait, call)
        async with self._turns.turn(call.once, call.left):
            # All front ends are of one machine, where loops have one clock.
            keyed = Keyed(call.once, (asyncio.get_running_loop().time(), os.getpid()))
            jobs = await self._recall(wanted, keyed)
            return Outcome(encode({"jobs": jobs})) if jobs else await self._pull_waiting(wanted, wait, call, keyed)

    async def _recall(self, wanted: Wanted, keyed: Keyed) -> list[LeasedJob]:
        """What this very pull leased when it came before."""
        replies = await self._recalled(wanted, keyed)
        # A realm on the move is told of by two shards for a moment.
        found = {
            (job.realm, job.lease_id): (index, job)
            for reply in replies.values()
            for index, job in _read_leased(reply.body)
        }
        return _in_order(found.values())[: wanted.job_count]

    async def _recalled(self, wanted: Wanted, keyed: Keyed) -> dict[int, Reply]:
        """What each shard recalls, no realm overlooked.

        One that moved from a shard that was asked late to one that was asked early was asked for nowhere. So all are
        asked once more: if none has had an arrival since, there was no such realm.
        """
        replies: dict[int, Reply] = {}
        for _ in range(ATTEMPTS_MAX):
            calls = {shard: ("recall", [wanted.realms, keyed.claim], b"") for shard in self._shards.connected()}
            before, replies = replies, await self._shards.ask(calls, keyed.once)
            if len(calls) == 1 or _arrivals(before) == _arrivals(replies):
                return before or replies
        raise ShardUnavailable("realms are on the move; nothing was leased, try again")

    async def _pull_waiting(self, wanted: Wanted, wait: float, call: Call, keyed: Keyed = UNKEYED) -> Outcome:
        began_at = asyncio.get_running_loop().time()
        jobs, leases = await self._pull(wanted, keyed)
        if not jobs and wait and not call.left.done():
            key = keyed.once[0] if keyed.once else ""
            line = Line(self._shards, call, lambda: self._groups(wanted), lambda reply: self._give_back(reply, key))
            which: list[Any] = [wanted.job_count, wanted.last, wanted.queues, wanted.tags]
            params = [*which, wanted.lease_time, wanted.worker, keyed.claim]
            jobs, leases = self._chosen(await line.replies(params, wait, began_at), wanted, key)
        return Outcome(encode({"jobs": jobs}), leases)

    def _chosen(self, replies: Sequence[Reply], wanted: Wanted, key: str) -> Pulled:
        """What of these to return: that of the best queue, and as many of the others as fit, each whole or not at all.

        So what is kept under an idempotency key is what was returned, or is forgotten.
        """
        parts = [(_read_leased(reply.body), reply) for reply in replies]
        parts.sort(key=lambda part: min(names.queue_order(job.queue_id) for _, job in part[0]))
        pulled: dict[tuple[str, str], tuple[int, LeasedJob]] = {}
        leases: list[Lease] = []
        for leased, reply in parts:
            part = {wanted.identity(entry[1].realm, entry[1].job_id): entry for entry in leased}
            if pulled and (len(pulled) + len(part) > wanted.job_count or pulled.keys() & part.keys()):
                self._give_back(reply, key)
                continue
            pulled |= part
            leases += _leases(leased, reply.extra)
        return Pulled(_in_order(pulled.values()), leases)

    def _give_back(self, reply: Reply, key: str) -> None:
        for lease in _leases(_read_leased(reply.body), reply.extra):
            self._shards.undo(lease, key)

    async def _pull(self, wanted: Wanted, keyed: Keyed = UNKEYED) -> Pulled:
        pulled: dict[tuple[str, str], tuple[int, LeasedJob]] = {}
        pairs: dict[tuple[str, int], list[tuple[str, names.QueueId]]] = {}
        asked_count = 0
        for _ in range(ROUNDS_MAX):
            count = wanted.job_count - len(pulled)
            try:
                found = await self._peek(wanted)
            except RestqError:
                if pulled:
                    break  # what was leased in an earlier round is not lost with this one
                raise
            best = [candidate for candidate in found if wanted.identity(*candidate[1:3]) not in pulled][:count]
            if not best or count < 1:
                break
            leased, lost = await self._lease(dict(enumerate(best, asked_count)), wanted, keyed)
            asked_count += len(best)
            if lost is not None and (keyed.once or not (pulled or leased)):
                told = (
                    "; sent again, this gives what it leased"
                    if keyed.once
                    else "; it may have leased jobs, for their time"
                )
                raise ShardUnavailable(lost.message + told)
            for index, (job, number) in leased.items():
                pulled[wanted.identity(job.realm, job.job_id)] = index, job
                pairs.setdefault((job.realm, number), []).append((job.job_id, job.queue_id))
            if len(leased) == len(best):
                break
        leases = [Lease(realm, number, leased) for (realm, number), leased in pairs.items()]
        return Pulled(_in_order(pulled.values()), leases)

    def _groups(self, wanted: Wanted) -> dict[int, list[str] | None]:
        """The shards to ask, and about which of their realms: all over which this goes, or None for all they hold.

        A pull over all realms goes without those whose shard is starting again.
        """
        if wanted.realms is None:
            return dict.fromkeys(self._shards.connected())
        return dict(self._shards.split(wanted.realms, wanted.realms))

    async def _peek(self, wanted: Wanted) -> list[list[Any]]:
        """Candidates over all the realms, best first, each job once: [at, realm, job id, queue id]."""
        for _ in range(ATTEMPTS_MAX + len(wanted.realms or ())):
            calls = {
                shard: ("peek", [wanted.job_count, wanted.last, group, wanted.queues, wanted.tags], b"")
                for shard, group in self._groups(wanted).items()
            }
            try:
                replies = await self._shards.ask(calls)
            except RealmMoved:
                continue
            found: list[list[Any]] = [entry for reply in replies.values() for entry in json.loads(reply.body)]
            found.sort(key=lambda entry: (names.queue_order(entry[3]), entry[0], entry[1], entry[2]))
            best: dict[tuple[str, str], list[Any]] = {}
            for entry in found:
                best.setdefault(wanted.identity(*entry[1:3]), entry)
            return list(best.values())
        raise ShardUnavailable("a realm is on the move; nothing was leased, try again")

    async def _lease(
        self, best: dict[int, list[Any]], wanted: Wanted, keyed: Keyed
    ) -> tuple[dict[int, tuple[LeasedJob, int]], ShardUnavailable | None]:
        """Lease these, by index, under one key; without those that somebody else took meanwhile.

        Of what a shard leased that went away meanwhile nothing is known, and where the same pull began again later it
        is for that one to say: this is returned too.
        """
        lost: ShardUnavailable | None = None
        leased: dict[int, tuple[LeasedJob, int]] = {}
        unasked = list(best)
        for _ in range(ATTEMPTS_MAX + len(best)):
            indexes = self._shards.split([best[index][1] for index in unasked], unasked)
            unasked = []
            futures = []
            for shard, group in indexes.items():
                params = [[[*best[index][1:], index] for index in group], wanted.lease_time, wanted.worker, keyed.claim]
                futures.append(self._shards.call(shard, "lease_peeked", params, once=keyed.once))
            replies = await asyncio.gather(*futures, return_exceptions=True)
            for shard, reply in zip(indexes, replies, strict=True):
                if isinstance(reply, ShardUnavailable) and not isinstance(reply, ShardStarting):
                    lost = reply
                elif not isinstance(reply, BaseException) and (overtaken := _overtaken(reply)) is not None:
                    lost = overtaken
                elif isinstance(reply, BaseException) or reply.status not in (200, MOVED):
                    log.warning("shard %d leased nothing for a pull over several realms: %s", shard, reply)
                elif reply.status == MOVED:  # nothing was leased there: once more, where it lives now
                    self._shards.learn(reply)
                    unasked += indexes[shard]
                else:
                    leased.update((index, (job, reply.extra)) for index, job in _read_leased(reply.body))
            if not unasked:
                break
        return leased, lost


def _overtaken(reply: Reply) -> ShardUnavailable | None:
    """What a shard says to a request that came again since."""
    error = from_reply(503, json.loads(reply.body)) if reply.status == 503 else None
    return error if isinstance(error, ShardUnavailable) else None


def _arrivals(replies: dict[int, Reply]) -> dict[int, int]:
    return {shard: reply.extra for shard, reply in replies.items()}


def _wanted(body: PullEverywhere) -> Wanted:
    queues, tags = body.queues, body.tags
    bodies.check_count(len(queues or ()), "queues", bodies.PULL_TAGS_MAX)
    bodies.check_count(len(tags or ()), "tags", bodies.PULL_TAGS_MAX)
    return Wanted(
        bodies.count(body.count),
        bodies.max_queue(body.max_queue),
        _realm_names(body.realms),
        None if queues is None else [names.queue_id(queue, "queues") for queue in queues],
        None if tags is None else [names.tag(tag) for tag in tags],
        bodies.lease_time(body.lease_time),
        bodies.worker(body.worker),
        body.distinct,
    )


def _realm_names(realms: Sequence[str] | None) -> list[str] | None:
    return None if realms is None else list(dict.fromkeys(names.realm_name(name, "realms") for name in realms))


def _in_order(leased: Iterable[tuple[int, LeasedJob]]) -> list[LeasedJob]:
    """Jobs by queue and index: a reply and its repeat have them in the same order, whichever shards gave them."""
    found = sorted(leased, key=lambda entry: (names.queue_order(entry[1].queue_id), entry[0], entry[1].realm))
    return [job for _, job in found]


def _leases(leased: Iterable[tuple[int, LeasedJob]], number: int) -> list[Lease]:
    """What to undo, should nobody get these of one pull."""
    pairs: dict[str, list[tuple[str, QueueId]]] = {}
    for _, job in leased:
        pairs.setdefault(job.realm, []).append((job.job_id, job.queue_id))
    return [Lease(realm, number, of_it) for realm, of_it in pairs.items()]
