"""Calls over several realms: split by realm or by shard, asked side by side, merged. The shards keep every rule.

A bulk add over several realms first asks each whether it would refuse, and then adds: all or none in each realm, and,
unless somebody else changes one of the same jobs meanwhile, over all of them. Pulls are in `pulls`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from restq import bodies, names
from restq.errors import FieldInvalid, Overloaded, RestqError, ShardUnavailable
from restq.web.calls import NOTHING, Call, Operation, Outcome
from restq.web.metrics import CONTENT_TYPE, exposition
from restq.web.shards import Shards

READY_SECONDS = 2.0

RealmCalls = dict[str, tuple[str, list[Any], bytes]]  # by realm: operation, params, body

encode = msgspec.json.Encoder().encode


class AnyJob(msgspec.Struct):
    """What the front end reads of a job of a bulk add; the shard reads the rest."""

    realm_id: str


class RawJobs(msgspec.Struct):
    """A bulk add, its jobs unread."""

    jobs: list[msgspec.Raw] | dict[str, msgspec.Raw]


_read_raw_jobs = bodies.reader(RawJobs)
_read_any_job = bodies.reader(AnyJob)
_read_pairs = bodies.reader(bodies.BulkRemovePairs)


class Everywhere:
    """The calls over several realms, but for pulls."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self.operations: dict[str, Operation] = {
            "bulk_add": self.bulk_add,
            "bulk_remove": self.bulk_remove,
            "get_health": self.get_health,
            "get_metrics": self.get_metrics,
            "get_performance": self.get_performance,
            "get_readiness": self.get_readiness,
            "get_shards": self.get_shards,
            "get_statuses": self.get_statuses,
        }

    # -- adding and removing -------------------------------------------------------------------------------------------

    async def bulk_add(self, call: Call) -> Outcome:
        """POST /jobs."""
        jobs = _read_raw_jobs(call.body).jobs
        raw = [bytes(job) for job in (jobs if isinstance(jobs, list) else jobs.values())]
        bodies.check_count(len(raw), "jobs")
        realms = [_realm_of(job, index) for index, job in enumerate(raw)]
        by_realm: dict[str, list[int]] = {}
        for index, realm in enumerate(realms):
            by_realm.setdefault(realm, []).append(index)
        calls = {realm: ([indexes], _bulk_body(raw[index] for index in indexes)) for realm, indexes in by_realm.items()}
        if len(calls) > 1:
            checks: RealmCalls = {realm: ("check_jobs", *call) for realm, call in calls.items()}
            await self._shards.ask_realms(checks, call.once)
        again = "adds the rest" if call.once else "does no harm while none of them is done"
        await self._change({realm: ("add_jobs", *call) for realm, call in calls.items()}, again, call.once)
        return NOTHING

    async def bulk_remove(self, call: Call) -> Outcome:
        """DELETE /jobs."""
        given = _read_pairs(call.body).jobs
        bodies.check_count(len(given), "jobs")
        by_realm: dict[str, list[str]] = {}
        for index, (realm, job_id) in enumerate(given):
            at = f"jobs[{index}]"
            by_realm.setdefault(names.realm_name(realm, at), []).append(names.job_id(job_id, at))
        removes: RealmCalls = {
            realm: ("remove_jobs", [], encode({"jobs": job_ids})) for realm, job_ids in by_realm.items()
        }
        await self._change(removes, "removes the rest")
        return NOTHING

    async def _change(self, calls: RealmCalls, again: str, once: Sequence[str] = ()) -> None:
        """Have realms do this; what is refused says what may be done all the same, and what sending it again does."""
        try:
            await self._shards.ask_realms(calls, once)
        except RestqError as error:
            if len(calls) == 1:
                raise
            # Codes that promise that nothing was done are none of a request of which a part may be.
            kind = ShardUnavailable if isinstance(error, (Overloaded, ShardUnavailable)) else type(error)
            told = f"in one of the realms: {error.message}; others may be done, and sending it again {again}"
            raise kind(told, error.field) from None

    # -- looking -------------------------------------------------------------------------------------------------------

    async def get_statuses(self, call: Call) -> Outcome:
        """GET /."""
        merged: dict[str, Any] = {}
        for statuses in await self._shards.ask_all("get_statuses"):
            merged.update(statuses)
        return Outcome(encode(dict(sorted(merged.items()))))

    async def get_health(self, call: Call) -> Outcome:
        """GET /healthz: this process answers."""
        return NOTHING

    async def get_readiness(self, call: Call) -> Outcome:
        """GET /readyz: every shard answers, and soon."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._shards.ask_all("get_stats")
        except TimeoutError:
            raise ShardUnavailable(f"a shard did not answer within {READY_SECONDS:g} s") from None
        return NOTHING

    async def get_performance(self, call: Call) -> Outcome:
        """GET /performance: per operation, over all shards."""
        merged: dict[str, dict[str, float]] = {}
        for report in await self._shards.ask_all("get_stats"):
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

    async def get_shards(self, call: Call) -> Outcome:
        """GET /performance/shards: which realm is where, and how busy each shard is."""
        reports = await self._shards.ask_all("get_stats")
        fields = ("shard", "pid", "busy", "requests", "jobs", "realms")
        return Outcome(encode({"shards": [{field: report[field] for field in fields} for report in reports]}))

    async def get_metrics(self, call: Call) -> Outcome:
        """GET /metrics: Prometheus text."""
        return Outcome(exposition(await self._shards.ask_all("get_stats")), content_type=CONTENT_TYPE)


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
