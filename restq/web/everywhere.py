"""Calls over several realms: split by shard, asked side by side, merged. The shards keep every rule.

A pull over several shards first asks each for its candidates, which leases nothing, picks the best over all, and then
leases exactly those: so it never leases a job that it does not return. A bulk add over several shards first asks each
whether it would refuse, and then adds: all or none in each shard, and, unless somebody else changes one of the same
jobs in the very instant between, over all of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from restq import bodies, names
from restq.errors import FieldInvalid, RestqError, ShardStarting, ShardUnavailable, StorageFull, from_reply
from restq.names import QueueId
from restq.pipe import Pipe
from restq.placement import Placement
from restq.protocol import MOVED, Reply
from restq.web.metrics import CONTENT_TYPE, exposition

READY_SECONDS = 2.0
ROUNDS_MAX = 4  # a pull asks again where others took its candidates meanwhile
ATTEMPTS_MAX = 8  # beside one for each realm: a call is split anew where a realm moved meanwhile

Job = TypeVar("Job")
log = logging.getLogger("restq.web")
encode = msgspec.json.Encoder().encode


class Outcome(NamedTuple):
    """A response; `leases` are what to undo if nobody receives it: realm, number of the pull, (job, queue) pairs."""

    body: bytes
    leases: Sequence[tuple[str, int, list[tuple[str, QueueId]]]] = ()
    status: int = 200
    content_type: str = "application/json"


NOTHING = Outcome(b"{}")


class PullEverywhere(bodies.Pull, forbid_unknown_fields=True):
    """Body of POST /pull."""

    realms: list[str] | None = None


class AnyJob(msgspec.Struct):
    """What the front end reads of a job of a bulk add; the shard reads the rest."""

    realm_id: str


class RawJobs(msgspec.Struct):
    """A bulk add, its jobs unread."""

    jobs: list[msgspec.Raw] | dict[str, msgspec.Raw]


class LeasedJob(msgspec.Struct, omit_defaults=True):
    """A job as a shard leased it for a pull over several realms."""

    job_id: str
    queue_id: int | str
    data: msgspec.Raw
    tags: list[str]
    lease_expires_at: float
    realm: str


_read_pull = bodies.reader(PullEverywhere)
_read_raw_jobs = bodies.reader(RawJobs)
_read_any_job = bodies.reader(AnyJob)
_read_pairs = bodies.reader(bodies.BulkRemovePairs)
_read_leased = msgspec.json.Decoder(list[LeasedJob | None]).decode


class _RealmMoved(Exception):
    """A shard said that a realm lives elsewhere by now: split the call anew."""


class Everywhere:
    """The calls over several realms. Methods take the query's fields and the body, as the route table says."""

    def __init__(self, pipes: list[Pipe], placement: Placement) -> None:
        self._pipes = pipes
        self._placement = placement
        self._undoing: set[asyncio.Task[None]] = set()

    # -- asking shards -------------------------------------------------------------------------------------------------

    async def _ask(self, calls: dict[int, tuple[str, list[Any], bytes]]) -> dict[int, Reply]:
        """Ask shards side by side. Raises the first refusal, or _RealmMoved."""
        for shard in calls:
            if not self._pipes[shard].is_connected:
                raise ShardStarting(f"shard {shard} is starting again; nothing was done, try again")
        futures = [self._call(shard, *call) for shard, call in calls.items()]
        replies = await asyncio.gather(*futures, return_exceptions=True)
        answered: dict[int, Reply] = {}
        for shard, reply in zip(calls, replies, strict=True):
            if isinstance(reply, BaseException):
                raise reply
            if reply.status == MOVED:
                self._placement.learn(reply.body.decode(), reply.extra)
                raise _RealmMoved
            if reply.status != 200:
                raise from_reply(reply.status, json.loads(reply.body))
            answered[shard] = reply
        return answered

    def _call(self, shard: int, operation: str, params: list[Any], body: bytes) -> asyncio.Future[Reply]:
        """Ask a shard. What can't be sent fails like what was sent: others may have been asked already."""
        try:
            return self._pipes[shard].call(operation, "", params, body)
        except RestqError as error:
            failed: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
            failed.set_exception(ShardUnavailable(f"{error.message}: of other shards that is not known"))
            return failed

    async def _ask_all(self, operation: str) -> list[Any]:
        """Ask every shard the same; its answers, decoded."""
        replies = await self._ask({shard: (operation, [], b"") for shard in range(len(self._pipes))})
        return [json.loads(reply.body) for reply in replies.values()]

    # -- adding and removing -------------------------------------------------------------------------------------------

    async def bulk_add(self, query: list[str | None], body: bytes) -> Outcome:
        """POST /jobs."""
        jobs = _read_raw_jobs(body).jobs
        raw = [bytes(job) for job in (jobs if isinstance(jobs, list) else jobs.values())]
        realms = [_realm_of(job, index) for index, job in enumerate(raw)]
        for _ in range(ATTEMPTS_MAX + len(set(realms))):
            groups = self._split(realms, list(enumerate(raw)))
            adds = {
                shard: ("bulk_add", [[index for index, _ in group]], _bulk_body(job for _, job in group))
                for shard, group in groups.items()
            }
            try:
                if len(adds) > 1:
                    await self._ask({shard: ("bulk_check", *call[1:]) for shard, call in adds.items()})
                await self._ask(adds)
            except _RealmMoved:
                continue  # what was added already is added again, which changes nothing
            except ShardStarting:
                raise
            except (ShardUnavailable, StorageFull) as lost:
                if len(adds) == 1:
                    raise
                told = f"{lost.message}; jobs of other shards may have been added, and adding them again does no harm"
                raise type(lost)(told) from None
            return NOTHING
        raise ShardUnavailable("a realm is on the move; adding the same jobs again does no harm, try again")

    async def bulk_remove(self, query: list[str | None], body: bytes) -> Outcome:
        """DELETE /jobs."""
        pairs = [
            (names.realm_name(realm, f"jobs[{index}]"), names.job_id(job_id, f"jobs[{index}]"))
            for index, (realm, job_id) in enumerate(_read_pairs(body).jobs)
        ]
        realms = [realm for realm, _ in pairs]
        for _ in range(ATTEMPTS_MAX + len(set(realms))):
            groups = self._split(realms, pairs)
            try:
                await self._ask({shard: ("bulk_remove", [group], b"") for shard, group in groups.items()})
            except _RealmMoved:
                continue
            return NOTHING
        raise ShardUnavailable("a realm is on the move; removing the same jobs again does no harm, try again")

    def _split(self, realms: Sequence[str], items: Iterable[Job]) -> dict[int, list[Job]]:
        groups: dict[int, list[Job]] = {}
        for realm, item in zip(realms, items, strict=True):
            groups.setdefault(self._placement.shard_of(realm), []).append(item)
        return groups

    # -- pulling -------------------------------------------------------------------------------------------------------

    async def pull_2013(self, query: list[str | None], body: bytes) -> Outcome:
        """GET /job: the pull of 2013."""
        count, realms_text, last = query
        realms = None if realms_text is None else [name for name in realms_text.split(",") if name]
        jobs, leases = await self._pull(count, bodies.max_queue(last, "max-queue"), realms)
        return Outcome(encode({job.job_id: (job.realm, job.queue_id, job.data) for job in jobs}), leases)

    async def pull(self, query: list[str | None], body: bytes) -> Outcome:
        """POST /pull."""
        wanted = _read_pull(body or b"{}")
        jobs, leases = await self._pull(wanted.count, bodies.max_queue(wanted.max_queue), wanted.realms)
        return Outcome(encode({"jobs": jobs}), leases)

    async def _pull(
        self, count_given: int | str | None, last: QueueId | None, realms: list[str] | None
    ) -> tuple[list[LeasedJob], list[tuple[str, int, list[tuple[str, QueueId]]]]]:
        count = bodies.count(count_given)
        if realms is not None:
            realms = list(dict.fromkeys(names.realm_name(name, "realms") for name in realms))
        pulled: dict[str, LeasedJob] = {}
        leases: list[tuple[str, int, list[tuple[str, QueueId]]]] = []
        for _ in range(ROUNDS_MAX):
            wanted = count - len(pulled)
            try:
                found = await self._peek(count, last, realms)
            except RestqError:
                if pulled:
                    break  # what was leased in an earlier round is not lost with this one
                raise
            best = [candidate for candidate in found if candidate[2] not in pulled][:wanted]
            if not best or wanted < 1:
                break
            lost = False
            leased = await self._lease(best)
            for candidate, (job, lease) in zip(best, leased, strict=True):
                if job is None:
                    lost = True
                    continue
                pulled[candidate[2]] = job
                leases.append((job.realm, lease, [(job.job_id, job.queue_id)]))
            if not lost:
                break
        return list(pulled.values()), leases

    async def _peek(self, count: int, last: QueueId | None, realms: list[str] | None) -> list[list[Any]]:
        """Candidates over all the realms, best first, each job id once: [at, realm, job id, queue id].

        A pull over all realms goes without those whose shard is starting again.
        """
        for _ in range(ATTEMPTS_MAX + len(realms or ())):
            if realms is None:
                shards = [shard for shard, pipe in enumerate(self._pipes) if pipe.is_connected]
                if not shards:
                    raise ShardStarting("the shards are starting; nothing was done, try again")
                asked: dict[int, list[str] | None] = dict.fromkeys(shards)
            else:
                asked = dict(self._split(realms, realms))
            try:
                replies = await self._ask(
                    {shard: ("peek", [count, last, group], b"") for shard, group in asked.items()}
                )
            except _RealmMoved:
                continue
            found: list[list[Any]] = [entry for reply in replies.values() for entry in json.loads(reply.body)]
            found.sort(key=lambda entry: (names.queue_order(entry[3]), entry[0], entry[1], entry[2]))
            best: dict[str, list[Any]] = {}
            for entry in found:
                best.setdefault(entry[2], entry)
            return list(best.values())
        raise ShardUnavailable("a realm is on the move; nothing was leased, try again")

    async def _lease(self, best: list[list[Any]]) -> list[tuple[LeasedJob | None, int]]:
        """Lease these; None for what somebody else took meanwhile. Aligned with `best`."""
        leased: list[tuple[LeasedJob | None, int]] = [(None, 0)] * len(best)
        unasked = list(range(len(best)))
        for _ in range(ATTEMPTS_MAX + len(best)):
            indexes = self._split([best[index][1] for index in unasked], unasked)
            unasked = []
            futures = {
                shard: self._call(shard, "lease_peeked", [[best[index][1:] for index in group]], b"")
                for shard, group in indexes.items()
            }
            replies = await asyncio.gather(*futures.values(), return_exceptions=True)
            for shard, reply in zip(futures, replies, strict=True):
                if isinstance(reply, BaseException) or reply.status not in (200, MOVED):
                    log.warning("shard %d leased nothing for a pull over several realms: %s", shard, reply)
                elif reply.status == MOVED:  # nothing was leased there: once more, where it lives now
                    self._placement.learn(reply.body.decode(), reply.extra)
                    unasked += indexes[shard]
                else:
                    for index, job in zip(indexes[shard], _read_leased(reply.body), strict=True):
                        leased[index] = (job, reply.extra)
            if not unasked:
                break
        return leased

    def undo(self, realm: str, lease: int, pairs: list[tuple[str, QueueId]]) -> None:
        """Give back what was leased for a client that is gone. If this fails too, the lease runs out."""
        task = asyncio.ensure_future(self._undo(realm, lease, pairs))
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def _undo(self, realm: str, lease: int, pairs: list[tuple[str, QueueId]]) -> None:
        try:
            for _ in range(ATTEMPTS_MAX):
                pipe = self._pipes[self._placement.shard_of(realm)]
                reply = await pipe.call("undo_pull", realm, [lease, pairs], b"")
                if reply.status != MOVED:
                    return
                self._placement.learn(realm, reply.extra)
        except RestqError as error:
            log.info("a pull could not be undone: %s", error)

    # -- looking -------------------------------------------------------------------------------------------------------

    async def get_statuses(self, query: list[str | None], body: bytes) -> Outcome:
        """GET /."""
        merged: dict[str, Any] = {}
        for statuses in await self._ask_all("get_statuses"):
            merged.update(statuses)
        return Outcome(encode(dict(sorted(merged.items()))))

    async def get_health(self, query: list[str | None], body: bytes) -> Outcome:
        """GET /healthz: this process answers."""
        return NOTHING

    async def get_readiness(self, query: list[str | None], body: bytes) -> Outcome:
        """GET /readyz: every shard answers, and soon."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ask_all("get_stats")
        except TimeoutError:
            raise ShardUnavailable(f"a shard did not answer within {READY_SECONDS:g} s") from None
        return NOTHING

    async def get_performance(self, query: list[str | None], body: bytes) -> Outcome:
        """GET /performance: per operation, over all shards."""
        merged: dict[str, dict[str, float]] = {}
        for report in await self._ask_all("get_stats"):
            for name, timing in report["operations"].items():
                known = merged.get(name)
                if known is None:
                    merged[name] = timing
                    continue
                known["call_count"] += timing["call_count"]
                known["total_time"] += timing["total_time"]
                known["min_time"] = min(known["min_time"], timing["min_time"])
                known["max_time"] = max(known["max_time"], timing["max_time"])
        return Outcome(encode(dict(sorted(merged.items()))))

    async def get_shards(self, query: list[str | None], body: bytes) -> Outcome:
        """GET /performance/shards: which realm is where, and how busy each shard is."""
        reports = await self._ask_all("get_stats")
        fields = ("shard", "pid", "busy", "requests", "jobs", "realms")
        return Outcome(encode({"shards": [{field: report[field] for field in fields} for report in reports]}))

    async def get_metrics(self, query: list[str | None], body: bytes) -> Outcome:
        """GET /metrics: Prometheus text."""
        return Outcome(exposition(await self._ask_all("get_stats")), content_type=CONTENT_TYPE)


def _bulk_body(jobs: Iterable[bytes]) -> bytes:
    return b'{"jobs":[' + b",".join(jobs) + b"]}"


def _realm_of(job: bytes, index: int) -> str:
    where = f"jobs[{index}]"
    try:
        return names.realm_name(_read_any_job(job).realm_id, "realm_id")
    except RestqError as error:
        if error.field is None:  # it is about all of the job
            raise type(error)(where + error.message.removeprefix("the body"), where) from None
        raise type(error)(f"{where}.{error.message}", f"{where}.{error.field}") from None
    except msgspec.MsgspecError as error:
        raise FieldInvalid(f"{where}: {error}", where) from None
