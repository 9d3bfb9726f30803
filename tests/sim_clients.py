"""Those who use the server of a simulation: each adds, pulls, finishes and removes at random, and notes the answers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from checker import ACK, EXTEND, NACK, RELEASE, Call, Checker, Scope, Unit
from simulation import Answer, World

from restq.shards.data import INLINE_BYTES_MAX

QUEUES = (0, 1)
TAGS = ("red", "blue")
EXTEND_SECONDS = 60  # no extension shortens a lease
LEASE_SECONDS = (1, 4, 15, EXTEND_SECONDS)
PATIENCE_SECONDS = 4.0  # how long a client waits for an answer at most, beyond what it asked the server to wait
REPEATS_MAX = 60
CALLS_BACK = 10
UNKNOWN, REFUSED, AGAIN = "unknown", "refused", "again"
DONE = {ACK: "acked", NACK: "nacked", RELEASE: "released", EXTEND: "extended"}


def tags_of(job_id: str) -> list[str]:
    """The tags that everybody gives a job: so it is known which jobs a tag has."""
    number = sum(job_id.encode())
    return [TAGS[number % 2]] if number % 3 == 0 else []


def data_of(job_id: str) -> Any:
    """The data that everybody gives a job."""
    number = sum(job_id.encode())
    return {"id": job_id, "large": "x" * INLINE_BYTES_MAX} if number % 7 == 0 else None if number % 7 == 1 else job_id


def named(realm: str, lease: str) -> str:
    """A lease id as the checker knows it: two realms may have the same."""
    return f"{realm}: {lease}"


class Client:
    """One of them; `wrong` is what it was told and can't be."""

    def __init__(self, world: World, checker: Checker, name: str, realms: Sequence[str]) -> None:
        self.world = world
        self.checker = checker
        self.name = name
        self.node = world.loop.node(name)
        self.realms = realms
        self.wrong: list[str] = []
        self._chance = random.Random(world.loop.chance.random())
        self._held: list[tuple[str, str]] = []  # realm, lease
        self._old: list[tuple[str, str]] = []
        self._count = 0
        self._doings: list[Callable[[], Any]] = [
            *[self.add] * 3,
            *[self.add_many] * 3,
            *[self.add_everywhere] * 2,
            *[self.pull] * 6,
            *[self.pull_everywhere] * 3,
            *[self.finish] * 9,
            *[self.exchange] * 3,
            self.remove,
            self.remove_everywhere,
            self.remove_some,
            *[self.pin] * 2,
            self.wait_for_tag,
            self.configure,
        ]

    async def live(self, count: int) -> None:
        """Do so many things."""
        for _ in range(count):
            await self._chance.choice(self._doings)()
            if self._chance.random() < 0.3:
                await asyncio.sleep(self._chance.random() * self._chance.choice((0.01, 0.1, 2.0)))

    async def roam(self) -> None:
        """Have realms move to and fro, until cancelled."""
        while True:
            await self.pin()
            await asyncio.sleep(self._chance.random() * self._chance.choice((0.01, 0.2, 2.0)))

    async def call_back(self, shard: int) -> None:
        """Have realms move to this shard, whether it serves or not."""
        for _ in range(CALLS_BACK):
            await self._remove(("PUT", f"/{self._realm()}/shard", {"shard": shard}))
            await asyncio.sleep(self._chance.random() * 0.05)

    async def ask(self, method: str, target: str, said: Any) -> Any:
        """The answer where all is well."""
        body = b"" if said is None else json.dumps(said).encode()
        answer = await self.world.ask(self.node, self.world.frontends[0], (method, target, body, {}), 60.0)
        assert answer is not None, "all is well"
        assert answer.status == 200, answer
        return answer.json

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _ask(self, call: Call, request: tuple[str, str, Any], wait: float = 0.0) -> Answer | None:
        """The answer to a call if it is done. With a key (most POSTs have one) it is asked until it is answered."""
        method, target, said = request
        key = f"{self.name}/{call.number}" if method == "POST" and self._chance.random() < 0.85 else ""
        body = b"" if said is None else json.dumps(said).encode()
        headers = {"Idempotency-Key": key} if key else {}
        note = self.world.loop.note
        note(self.name, "asks", call.number, method, target)
        for _ in range(REPEATS_MAX if key else 1):
            patience = wait + self._chance.random() ** 3 * PATIENCE_SECONDS
            frontend = self._chance.choice(self.world.frontends)
            answer = await self.world.ask(self.node, frontend, (method, target, body, headers), patience)
            note(self.name, "is told", call.number, answer and answer.status, len(answer.body) if answer else 0)
            if answer is not None and answer.status < 300:
                return answer
            meaning = self._meaning(call, answer)
            if meaning == UNKNOWN:
                call.was_repeated = True
            elif meaning == REFUSED:
                is_stale = answer is not None and answer.json["code"] == "lease_stale"
                # Else an earlier request may be done yet, or was in some realms.
                if not call.was_repeated or (is_stale and len(self._realms(call)) < 2 and not self._lost_its_key(call)):
                    call.failed(self.world.now(), list(call.ends) if is_stale else [])
                return None
            await asyncio.sleep(self._chance.random() * 0.5)
        if not call.was_repeated:
            call.failed(self.world.now())
        return None

    def _meaning(self, call: Call, answer: Answer | None) -> str:
        """What an answer that is no success says: it is believed."""
        if answer is None:
            return UNKNOWN
        message = answer.json["message"]
        if answer.status in (400, 405, 413, 415, 422, 500):
            self.wrong.append(f"{call} was answered with {answer.status}: {message}")
        if "may have been" in message or "may be done" in message:
            return UNKNOWN
        if answer.status < 500:
            return REFUSED
        return AGAIN if "nothing was" in message else UNKNOWN

    def _lost_its_key(self, call: Call) -> bool:
        """Whether a realm of its leases may have been deleted, and with it what says that it was done before."""
        realms = {lease.split(": ")[0] for lease in call.ends}
        others = (other for other in self.checker.calls if not other.is_failed)
        return any(Scope(realm) in other.removes for other in others for realm in realms)

    @staticmethod
    def _realms(call: Call) -> set[str]:
        return {unit.realm for unit in call.adds} | {scope.realm for scope in call.removes}

    def _begin(self, what: str, **effects: Any) -> Call:
        return self.checker.begin(self.world.now(), f"{self.name}: {what}", **effects)

    # -- adding ------------------------------------------------------------------------------------------------------

    def _job(self) -> dict[str, Any]:
        self._count += 1
        is_new = self._chance.random() < 0.8
        job_id = f"{self.name} {self._count}" if is_new else f"shared {self._chance.randrange(6)}"
        job: dict[str, Any] = {"job_id": job_id, "queue_id": self._chance.choice(QUEUES), "tags": tags_of(job_id)}
        if (data := data_of(job_id)) is not None:
            job["data"] = data
        if self._chance.random() < 0.1:
            job["delay"] = self._chance.random() * 10
        if self._chance.random() < 0.1:
            job["max_attempts"] = 2
        return job

    def _jobs(self, most: int) -> list[dict[str, Any]]:
        return [self._job() for _ in range(self._chance.randint(1, most))]

    def _realm(self) -> str:
        return self._chance.choice(self.realms)

    def _adds(self, realm: str, jobs: Sequence[dict[str, Any]]) -> dict[Unit, frozenset[str]]:
        return {Unit(realm, job["queue_id"], job["job_id"]): frozenset(job["tags"]) for job in jobs}

    async def add(self) -> None:
        """PUT /{realm}/job/{id}."""
        realm, job = self._realm(), self._job()
        call = self._begin("add", adds=self._adds(realm, [job]))
        target = f"/{realm}/job/{job.pop('job_id').replace(' ', '%20')}"
        if await self._ask(call, ("PUT", target, job)):
            call.ok(self.world.now())

    async def add_many(self) -> None:
        """POST /{realm}/jobs."""
        realm, jobs = self._realm(), self._jobs(8)
        replaces = self._chance.random() < 0.15
        for job in jobs if replaces else ():
            job["on_conflict"] = "replace"
        removes = [Scope(realm, None, job["job_id"]) for job in jobs] if replaces else []
        call = self._begin(f"add {len(jobs)}", adds=self._adds(realm, jobs), removes=removes, cancels=False)
        call.replaces = replaces
        if await self._ask(call, ("POST", f"/{realm}/jobs", {"jobs": jobs})):
            call.ok(self.world.now())

    async def add_everywhere(self) -> None:
        """POST /jobs."""
        jobs = [{**job, "realm_id": self._realm()} for job in self._jobs(8)]
        adds: dict[Unit, frozenset[str]] = {}
        for job in jobs:
            adds |= self._adds(job["realm_id"], [job])
        call = self._begin(f"add {len(jobs)} everywhere", adds=adds)
        if await self._ask(call, ("POST", "/jobs", {"jobs": jobs})):
            call.ok(self.world.now())

    # -- pulling -----------------------------------------------------------------------------------------------------

    def _wanted(self, wait: float) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "count": self._chance.choice((1, 1, 2, 7)),
            "lease_time": self._chance.choice(LEASE_SECONDS),
        }
        if wait:
            wanted["wait"] = wait
        if self._chance.random() < 0.1:
            wanted["queues"] = [self._chance.choice(QUEUES)]
        if self._chance.random() < 0.1:
            wanted["tags"] = [self._chance.choice(TAGS)]
        return wanted

    def take(self, call: Call, jobs: Sequence[dict[str, Any]], realm: str, lease_seconds: float) -> list[str]:
        """Note what a pull gave; returns the leases."""
        for job in jobs:
            unit = Unit(job.get("realm", realm), job["queue_id"], job["job_id"])
            lease = named(unit.realm, job["lease_id"])
            call.delivered(unit, lease, lease_seconds, job["lease_expires_at"], job["attempt"])
            self._held.append((unit.realm, job["lease_id"]))
            if job["data"] != data_of(unit.job) or job["tags"] != tags_of(unit.job):
                self.wrong.append(f"{call} gave {unit} with other data or tags")
        return [job["lease_id"] for job in jobs]

    async def pull(self) -> None:
        """POST /{realm}/pull."""
        realm, wait = self._realm(), self._chance.choice((0.0, 0.0, 1.0, 5.0))
        wanted = self._wanted(wait)
        call = self._begin(f"pull {wanted['count']}", pulls=realm)
        answer = await self._ask(call, ("POST", f"/{realm}/pull", wanted), wait)
        if answer is not None:
            call.ok(self.world.now())
            call.may_hide = self._may_have_leased_else(call, answer, wanted["lease_time"])
            self.take(call, answer.json["jobs"], realm, wanted["lease_time"])

    @staticmethod
    def _may_have_leased_else(call: Call, answer: Answer, lease_seconds: float) -> bool:
        """Whether an earlier request of it leased other jobs, or may yet.

        That there were no jobs for one is not kept; and what one leased may be undone, though after its leases ran out.
        """
        return call.was_repeated and (not answer.json["jobs"] or call.ended - call.began > lease_seconds)

    async def pull_everywhere(self) -> None:
        """POST /pull."""
        wait = self._chance.choice((0.0, 0.0, 1.0, 5.0))
        wanted = self._wanted(wait)
        if self._chance.random() < 0.5:
            wanted["realms"] = self._chance.sample(self.realms, self._chance.randint(1, len(self.realms)))
        call = self._begin(f"pull {wanted['count']} everywhere", pulls="")
        answer = await self._ask(call, ("POST", "/pull", wanted), wait)
        if answer is not None:
            call.ok(self.world.now())
            # Where a shard went away, what it leased waits for its leases to end.
            call.may_hide = not self.world.is_calm or self._may_have_leased_else(call, answer, wanted["lease_time"])
            self.take(call, answer.json["jobs"], "", wanted["lease_time"])

    # -- finishing ---------------------------------------------------------------------------------------------------

    def _leases(self, most: int) -> tuple[str, list[str]]:
        """Some leases of one realm; most are held, some were ended before."""
        some = self._old if self._old and self._chance.random() < 0.15 else self._held
        if not some:
            return self._realm(), []
        realm = self._chance.choice(some)[0]
        found = [held for held in some if held[0] == realm]
        chosen = self._chance.sample(found, min(len(found), self._chance.randint(1, most)))
        return realm, [lease for _, lease in chosen]

    def _let_go(self, realm: str, leases: Sequence[str]) -> None:
        for lease in leases:
            if (realm, lease) in self._held:
                self._held.remove((realm, lease))
            self._old.append((realm, lease))
        del self._old[:-20]

    async def finish(self) -> None:
        """POST /{realm}/ack, nack, release or extend."""
        realm, leases = self._leases(5)
        if leases:
            await self.finish_with(self._chance.choice((ACK, ACK, ACK, NACK, RELEASE, EXTEND)), realm, leases)

    async def finish_with(self, verb: str, realm: str, leases: Sequence[str]) -> None:
        """Say what becomes of these leases."""
        said: dict[str, Any] = {"leases": leases}
        if verb == EXTEND:
            said["lease_time"] = EXTEND_SECONDS
        elif verb != ACK and self._chance.random() < 0.5:
            said["delay"] = self._chance.random() * 3
        if verb == ACK and self._chance.random() < 0.5:
            said["result"] = leases
        elif verb == NACK and self._chance.random() < 0.5:
            said["error"] = f"{self.name} {self._count}"
        ends = dict.fromkeys((named(realm, lease) for lease in leases), verb)
        call = self._begin(f"{verb} {' '.join(leases)}", ends=ends)
        answer = await self._ask(call, ("POST", f"/{realm}/{verb}", said))
        if verb != EXTEND or answer is None:
            self._let_go(realm, leases)
        if answer is not None:
            told = answer.json
            done, stale = [*told[DONE[verb]], *told.get("dead", ())], told["stale"]
            expires = {named(realm, lease): at for lease, at in told["extended"].items()} if verb == EXTEND else {}
            call.ok(self.world.now(), *([named(realm, lease) for lease in some] for some in (done, stale)), expires)

    async def exchange(self) -> None:
        """POST /{realm}/exchange."""
        realm, leases = self._leases(3)
        jobs = self._jobs(2) if self._chance.random() < 0.5 else []
        wanted = self._wanted(0)
        body: dict[str, Any] = {"pull": wanted, "add": jobs}
        if leases:
            body[ACK] = {"leases": leases}
        adds, ends = self._adds(realm, jobs), dict.fromkeys((named(realm, lease) for lease in leases), ACK)
        call = self._begin(f"exchange {' '.join(leases)}", adds=adds, ends=ends, pulls=realm)
        answer = await self._ask(call, ("POST", f"/{realm}/exchange", body))
        self._let_go(realm, leases)
        if answer is not None:
            told = answer.json
            acked = told.get(ACK, {"acked": [], "stale": []})
            some = ([named(realm, lease) for lease in acked[what]] for what in ("acked", "stale"))
            call.ok(self.world.now(), *some)
            self.take(call, told["pull"]["jobs"], realm, wanted["lease_time"])

    # -- removing ----------------------------------------------------------------------------------------------------

    def _some_job(self) -> str:
        return f"shared {self._chance.randrange(6)}" if self._chance.random() < 0.5 else f"{self.name} {self._count}"

    async def _remove(self, request: tuple[str, str, Any], *scopes: Scope, cancels: bool = False) -> None:
        call = self._begin(f"{request[0]} {request[1]}", removes=scopes, cancels=cancels)
        if await self._ask(call, request):
            call.ok(self.world.now())

    async def remove(self) -> None:
        """Remove, or cancel, one job or some of one realm."""
        realm, job_id = self._realm(), self._some_job()
        path = f"/{realm}/job/{job_id.replace(' ', '%20')}"
        scope = Scope(realm, None, job_id)
        if self._chance.random() < 0.3:
            await self._remove(("POST", f"{path}/cancel", None), scope, cancels=True)
        elif self._chance.random() < 0.5:
            await self._remove(("DELETE", path, None), scope)
        else:
            job_ids = {self._some_job() for _ in range(5)}
            scopes = [Scope(realm, None, other) for other in sorted(job_ids)]
            await self._remove(("DELETE", f"/{realm}/jobs", {"jobs": sorted(job_ids)}), *scopes)

    async def remove_everywhere(self) -> None:
        """DELETE /jobs."""
        scopes = [Scope(self._realm(), None, self._some_job()) for _ in range(3)]
        await self._remove(("DELETE", "/jobs", {"jobs": [(scope.realm, scope.job) for scope in scopes]}), *scopes)

    async def remove_some(self) -> None:
        """What takes many jobs at once."""
        realm, tag, queue = self._realm(), self._chance.choice(TAGS), self._chance.choice(QUEUES)
        drawn = self._chance.random()
        if drawn < 0.3:
            await self._remove(("POST", f"/{realm}/queues/{queue}/clear", None), Scope(realm, queue))
        elif drawn < 0.5:
            await self._remove(("DELETE", f"/{realm}/tag/{tag}", None), Scope(realm, tag=tag))
        elif drawn < 0.7:
            await self._remove(("POST", f"/{realm}/tags/{tag}/cancel", None), Scope(realm, tag=tag), cancels=True)
        elif drawn < 0.8:
            await self._remove(("DELETE", f"/{realm}/", None), Scope(realm))
        else:
            await self._remove(("POST", f"/{realm}/redrive", {}))

    async def pin(self) -> None:
        """Have a realm move to another shard."""
        shard = self._chance.randrange(len(self.world.shards))
        await self._remove(("PUT", f"/{self._realm()}/shard", {"shard": shard}))

    async def configure(self) -> None:
        """PUT /{realm}/config and /{realm}/tags/{tag}."""
        realm, tag = self._realm(), self._chance.choice(TAGS)
        await self._remove(("PUT", f"/{realm}/config", {"keep_done": {"count": self._chance.randint(1, 9)}}))
        await self._remove(("PUT", f"/{realm}/tags/{tag}", {"max_leased": self._chance.randint(2, 5)}))

    async def wait_for_tag(self) -> None:
        """GET /{realm}/tags/{tag}?wait=."""
        call = self._begin("wait for a tag")
        await self._ask(call, ("GET", f"/{self._realm()}/tags/{self._chance.choice(TAGS)}?wait=2", None), 2.0)
