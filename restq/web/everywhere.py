"""Calls over several realms: split by realm or by shard, asked side by side, merged. The shards keep every rule.

A bulk add over several realms first asks their shards whether they would refuse, and then adds: all or none in each
realm, and, unless somebody else changes one of the same jobs meanwhile, over all of them. Pulls are in `pulls`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from restq import bodies, names
from restq.errors import FieldInvalid, RestqError, ShardStarting, ShardUnavailable
from restq.web.calls import NOTHING, Call, Operation, Outcome
from restq.web.metrics import CONTENT_TYPE, exposition
from restq.web.shards import ATTEMPTS_MAX, RealmMoved, Shards

READY_SECONDS = 2.0
SLICE_COUNT = 1_000  # jobs that a shard checks at once

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
        if len(by_realm) > 1:
            for start in range(0, len(raw), SLICE_COUNT):
                await self._check(realms, raw, range(start, min(start + SLICE_COUNT, len(raw))), call.once)
        adds = {
            realm: ("add_jobs", [indexes], _bulk_body(raw[index] for index in indexes))
            for realm, indexes in by_realm.items()
        }
        try:
            await self._shards.ask_realms(adds, call.once)
        except ShardStarting:
            raise
        except RestqError as error:
            if len(adds) == 1:
                raise
            again = "adds the rest" if call.once else "does no harm while none of them is done"
            told = f"{error.message}; jobs of other realms may have been added, and sending it again {again}"
            raise type(error)(told, error.field) from None
        return NOTHING

    async def _check(self, realms: Sequence[str], raw: Sequence[bytes], some: range, once: Sequence[str]) -> None:
        """Raise what adding these would raise, as far as can be said before."""
        for _ in range(ATTEMPTS_MAX + len(set(realms))):
            groups = self._shards.split([realms[index] for index in some], some)
            checks = {
                shard: ("bulk_check", [indexes], _bulk_body(raw[index] for index in indexes))
                for shard, indexes in groups.items()
            }
            try:
                await self._shards.ask(checks, once)
            except RealmMoved:
                continue
            return
        raise ShardUnavailable("a realm is on the move; nothing was done, try again")

    async def bulk_remove(self, call: Call) -> Outcome:
        """DELETE /jobs."""
        given = _read_pairs(call.body).jobs
        bodies.check_count(len(given), "jobs")
        by_realm: dict[str, list[str]] = {}
        for index, (realm, job_id) in enumerate(given):
            at = f"jobs[{index}]"
            by_realm.setdefault(names.realm_name(realm, at), []).append(names.job_id(job_id, at))
        await self._shards.ask_realms(
            {realm: ("remove_jobs", [], encode({"jobs": job_ids})) for realm, job_ids in by_realm.items()}
        )
        return NOTHING

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
