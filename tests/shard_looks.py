"""Whether a shard and the simple realms are the same: the replies, all that can be seen of a realm, and the rows.

What the simple realms can't say, such as the ids of leases, is learned from the first reply that tells it, and must
be the same ever after.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec
import realm_views as views
from realm_answers import Between, Data, Lease, Leased, Proof, Refused, Request, get_queues, lease_of, list_jobs
from realm_book import Difference, Kept
from realm_model import Model

from restq.protocol import MOVED, Reply
from restq.shards import finishing, leasing
from restq.shards.archive import Archive
from restq.shards.commands import REALM_OPERATIONS
from restq.shards.commands.call import Call
from restq.shards.data import INLINE_BYTES_MAX
from restq.shards.leasing import Wanted
from restq.shards.realm import Realm

LEASES_MAX = 40  # lease ids that are remembered
EVERYTHING = 1_000_000
_JOBS = Request("list_jobs", "", [None, None, None, None, "1000", None, "1"])
_QUEUES, _STATUS, _CONFIG = Request("get_queues", ""), Request("get_status", ""), Request("get_config", "")
_TAGS = Request("get_tags", "", [None, None, None])


class Moved(NamedTuple):
    """The realm lives in another shard."""

    shard: int


class Parts(NamedTuple):
    """A reply in parts, one of each realm, in any order of these."""

    by_realm: dict[str, list[Any]]


class Looks:
    """What was told so far."""

    def __init__(self) -> None:
        self.leases: dict[str, tuple[str, Lease]] = {}  # by their ids: the realm, and what stands for it there
        self._numbers: set[int] = set()  # of pulls that were answered

    def reply(self, request: Request, expected: Any, reply: Reply) -> int:
        """Look at a reply; returns what stands for the number of its pull where it gives jobs for the first time."""
        kept = expected if isinstance(expected, Kept) else None
        if kept is not None:
            expected = kept.reply if kept.pull == 0 or kept.again else Leased(kept.reply, kept.pull, 0.0)
            if kept.body is not None and kept.body != reply.body:
                raise Difference(f"{request}: {reply.body!r} is not what was given before, {kept.body!r}")
            kept.body = reply.body
        if isinstance(expected, Refused):
            error = expected.error
            if reply.status != error.status or json.loads(reply.body)["code"] != error.code:
                raise Difference(f"{request}: {reply}, not {error.__name__}")
            return 0
        if isinstance(expected, Moved):
            if (reply.status, reply.extra) != (MOVED, expected.shard):
                raise Difference(f"{request}: {reply}, not {expected}")
            return 0
        if reply.status != 200:
            raise Difference(f"{request}: {reply}, not {expected}")
        got = msgspec.json.decode(reply.body)
        pull = 0
        if isinstance(expected, Leased):
            expected, pull, _ = expected
            if not reply.extra or reply.extra in self._numbers:
                raise Difference(f"{request}: the number of the pull, {reply.extra}, is not a new one")
            self._numbers.add(reply.extra)
        elif reply.extra and kept is None and request.operation != "lease_peeked":
            raise Difference(f"{request}: nothing was leased by pull {reply.extra}")
        if not self._fits(request.realm, expected, got):
            raise Difference(f"{request}:\n{got}, not\n{expected}")
        return pull

    def _fits(self, realm: str, expected: Any, got: Any) -> bool:
        """Whether a reply is what was to be expected; learns lease ids."""
        if isinstance(expected, Proof):
            known = self.leases.setdefault(got, (realm, expected.lease))
            return known == (realm, expected.lease)
        if isinstance(expected, Data):
            return repr(got) == repr(None if expected.text is None else msgspec.json.decode(expected.text))
        if isinstance(expected, Between):
            return got == expected.low or (None not in (got, expected.low) and expected.low <= got <= expected.high)
        if expected == got:
            return True
        if isinstance(expected, Parts):
            by_realm: dict[str, list[Any]] = {name: [] for name in expected.by_realm}
            for part in got:
                name = part[1] if isinstance(part[1], str) else part[1]["realm"]
                by_realm.setdefault(name, []).append(part)
            parts = expected.by_realm
            return parts.keys() == by_realm.keys() and all(
                self._fits(name, parts[name], by_realm[name]) for name in parts
            )
        if isinstance(expected, dict):
            if not isinstance(got, dict) or len(got) - ("failed_at" in got) != len(expected):
                return False
            return all(name in got and self._fits(realm, value, got[name]) for name, value in expected.items())
        if isinstance(expected, list):
            if not isinstance(got, list) or len(got) != len(expected):
                return False
            return all(map(self._fits, [realm] * len(got), expected, got))
        return False

    def rows(self, models: list[Model], tables: dict[str, dict[int, Any]]) -> None:
        """No row is left behind by what is gone."""
        texts = [job.text for model in models for job in model.jobs if job.text is not None]
        expected = {
            "realms": sum(model.exists for model in models),
            "queues": sum(len(model.lease_times) for model in models),
            "tags": sum(len(model.tag_limits) for model in models),
            "jobs": sum(len(model.jobs) for model in models),
            "places": sum(len(model.places) for model in models),
            "payloads": sum(len(text) > INLINE_BYTES_MAX for text in texts),
            "failures": sum(place.failure is not None for model in models for place in model.places),
        }
        self._same("all", "rows", expected, {table: len(tables[table]) for table in expected})

    def realm(self, realm: Realm, model: Model, archive: Archive, now: float) -> None:
        """Compare all that can be seen, as of the clock of the realm."""
        model.settle(realm.clock)
        name = realm.name
        if not model.exists:
            raise Difference(f"realm {name} should not be there")
        self._same(name, "jobs", list_jobs(model, _JOBS), self._asked(realm, archive, _JOBS))
        self._same(name, "status", views.shown_status(model), self._asked(realm, archive, _STATUS))
        self._same(name, "queues", get_queues(model, _QUEUES), self._asked(realm, archive, _QUEUES))
        self._same(name, "tags", {"tags": views.shown_tags(model), "cursor": None}, self._asked(realm, archive, _TAGS))
        self._same(name, "config", views.shown_config(model), self._asked(realm, archive, _CONFIG))
        if model.results:
            done = Request("list_jobs", "", ["done", *_JOBS.params[1:]], served_at=now)  # which tells of their age
            self._same(name, "results", list_jobs(model, done), self._asked(realm, archive, done))
        in_force = {lease_of(place) for place in model.places if place.lease is not None}
        for proof, (of_realm, lease) in self.leases.items():
            if of_realm == name:
                place = finishing.leased_place(realm, proof)
                if (place is not None) != (lease in in_force):
                    raise Difference(f"realm {name}: lease {proof} is{' not' if place is None else ''} in force")
        peeked = leasing.peek(realm, Wanted(EVERYTHING), realm.clock)
        order = [(place.job.job_id, place.queue) for place in model.peek(Wanted(EVERYTHING))]
        self._same(name, "order", order, [(place.job.job_id, place.queue.queue_id) for place in peeked])

    def _asked(self, realm: Realm, archive: Archive, request: Request) -> Any:
        call = Call(request.params, b"", request.served_at or realm.clock, archive)
        outcome: Any = REALM_OPERATIONS[request.operation](realm, call)
        return msgspec.json.decode(outcome.body)

    def _same(self, name: str, what: str, expected: Any, got: Any) -> None:
        if expected != got and not self._fits(name, expected, got):
            raise Difference(f"realm {name}: {what}\n{got}, not\n{expected}")
