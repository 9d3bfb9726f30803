"""What is asked of a shard, drawn at random: mostly what makes sense, some of it stale, some of it wrong in itself."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import msgspec
from realm_answers import Lease, Request, in_force
from realm_model import TEXTS, Model
from shard_rig import HOME_1

from restq import errors
from restq.names import QueueId

JOB_IDS = ("a", "b", "c", "d", "e/f", "ü", "g", "h", "i", "j", "k", "l")
QUEUES: tuple[QueueId, ...] = (0, 0, 0, 1, 1, 2, "b10")
ELSEWHERE = HOME_1
TAGS = ("blue", "green", "red")
SPANS = (0.0, 0.25, 1.0, 5.0, 600.0)  # multiples of 1/128: sums of them are exact
KEPT = (None, {"count": 3}, {"seconds": 60.0}, {"seconds": 60.0, "count": 3})  # of what is done
NEVER_GIVEN = ("1-1", "0-0", "x", "999999999-1-1", "-", "1-2-3", "٣-٤-1", "1-01-0")
OF_LEASES = frozenset({"ack", "exchange", "extend", "nack", "release"})
KEYED = frozenset(
    "ack add_jobs cancel_job cancel_tagged_jobs clear_queue configure_2013 exchange extend move_job move_tagged_jobs"
    " nack pull redrive redrive_tagged_jobs release".split()
)
_WEIGHTS = {
    "ack": 8,
    "add_job": 8,
    "add_jobs": 12,
    "cancel_job": 3,
    "cancel_tagged_jobs": 2,
    "clear_queue": 1,
    "clear_queue_2013": 0.5,
    "configure": 2,
    "configure_2013": 0.5,
    "configure_queue": 3,
    "configure_tag": 3,
    "delete_realm": 0.5,
    "exchange": 6,
    "extend": 4,
    "get_config": 0.5,
    "get_job": 1,
    "get_queues": 1,
    "get_status": 1,
    "get_tag": 0.5,
    "get_tag_status": 0.5,
    "get_tags": 1,
    "list_jobs": 2,
    "move_job": 3,
    "move_tagged_jobs": 2,
    "nack": 6,
    "pull": 12,
    "pull_2013": 1,
    "redrive": 3,
    "redrive_tagged_jobs": 1.5,
    "release": 4,
    "remove_job": 2,
    "remove_jobs": 1.5,
    "remove_tagged_jobs": 1,
    "undo_pull": 2,
    "wrong": 4,
}
_NAMES = list(_WEIGHTS)
_CUMULATED = [sum(list(_WEIGHTS.values())[: index + 1]) for index in range(len(_WEIGHTS))]
# What no shard does, and what it is refused for.
_WRONG: tuple[tuple[str, list[Any], bytes, type[errors.RestqError]], ...] = (
    ("add_job", ["a"], b"{", errors.BodyMalformed),
    ("add_job", ["a"], b"{}", errors.FieldMissing),
    ("add_job", [""], b'{"queue_id": 0}', errors.JobIdInvalid),
    ("add_job", ["a"], b'{"queue_id": true}', errors.FieldTypeWrong),
    ("add_job", ["a"], b'{"queue_id": 0, "data": 123456789012345678901234567890}', errors.BodyMalformed),
    (
        "add_jobs",
        [],
        b'{"jobs": [{"job_id": "b", "queue_id": 0}, {"job_id": "c", "queue_id": ""}]}',
        errors.QueueIdInvalid,
    ),
    (
        "add_jobs",
        [],
        b'{"jobs": [' + b'{"job_id": "b", "queue_id": 0},' * 4 + b'{"job_id": "c", "queue_id": 0, "delay": -1}]}',
        errors.FieldInvalid,
    ),
    ("ack", [], b'{"leases": 1}', errors.FieldTypeWrong),
    ("configure_queue", [0], b'{"rate": -1}', errors.FieldInvalid),
    ("configure", [], b'{"max_jobs": 0}', errors.FieldInvalid),
    ("exchange", [], b'{"ack": {"leases": []}, "pull": {"wait": 1}}', errors.FieldInvalid),
    ("list_jobs", ["nowhere", None, None, None, None, None, None], b"", errors.FieldInvalid),
    ("pull", [], b'{"count": -1}', errors.FieldInvalid),
    ("pull", [], b"\xff", errors.BodyMalformed),
    ("remove_jobs", [], b'{"jobs": ["a", ""]}', errors.JobIdInvalid),
    ("what_is_that", [], b"", errors.InternalError),
)


class Draws:
    """Draws what is asked. `leases`: those that were given, by their ids."""

    def __init__(self, chance: random.Random, leases: dict[str, tuple[str, Lease]]) -> None:
        self._chance = chance
        self._leases = leases
        self.now = 0.0
        self._pulls: list[tuple[str, float, int, int, list[tuple[str, QueueId]], str]] = []
        self._keyed: list[Request] = []
        self._last_key = 0

    def pulled(self, request: Request, number: int, pull: int, pairs: list[tuple[str, QueueId]]) -> None:
        """A pull was answered: under this number in the shard, and in the model."""
        key = request.once[0] if request.once else ""
        self._pulls = [*self._pulls[-7:], (request.realm, self.now, number, pull, pairs, key)]

    def request(self, realm: str, model: Model) -> Request:
        """Something to ask of a realm."""
        chance = self._chance
        if self._keyed and chance.random() < 0.06:  # once more, perhaps long after
            again = chance.choice(self._keyed[-12:])
            return Request(again.operation, again.realm, again.params, again.said, again.body, again.once, again.known)
        operation = chance.choices(_NAMES, cum_weights=_CUMULATED)[0]
        if operation == "wrong":
            name, params, body, error = chance.choice(_WRONG)
            return Request(name, realm, params, None, body, refused=error)
        if operation in OF_LEASES and not any(place.lease for place in model.places) and chance.random() < 0.8:
            operation = chance.choice(("add_jobs", "pull"))  # or most of what is asked were in vain
        request = getattr(self, f"_{operation}", self._plain)(Request(operation, realm), model)
        if request.said is not None:
            request.body = msgspec.json.encode(request.said)
        if operation in KEYED and chance.random() < 0.3:
            self._put_under_key(request)
        return request

    def several(self, models: dict[str, Model]) -> Request:
        """Something to ask of several realms, or of one that lives in another shard."""
        chance = self._chance
        operation = chance.choice(("get_statuses", "peek", "lease_peeked", "lease_peeked", "elsewhere"))
        if operation == "elsewhere":
            return Request("get_status", ELSEWHERE)
        request = Request(operation, "")
        if operation == "peek":
            names = chance.choice((None, [*models], [next(iter(models)), "nowhere"]))
            tags = chance.choice((None, None, ["blue", "red"]))
            request.params = [chance.choice((0, 1, 2, 5)), chance.choice((None, 1)), names, None, tags]
        elif operation == "lease_peeked":
            places = [(name, place) for name, model in models.items() for place in model.places]
            some = chance.sample(places, min(len(places), chance.choice((1, 2, 4))))
            wanted = [[name, place.job.job_id, place.queue, index] for index, (name, place) in enumerate(some)]
            if not places or chance.random() < 0.2:
                wanted.append([chance.choice([*models]), "nothing", chance.choice(QUEUES), len(some)])
            request.params = [wanted, chance.choice((None, *SPANS)), chance.choice((None, "w1")), []]
        return request

    def _put_under_key(self, request: Request) -> None:
        chance = self._chance
        if self._keyed and chance.random() < 0.03:
            key = chance.choice(self._keyed).once[0]  # of another request
        else:
            self._last_key += 1
            key = f"key {self._last_key}"
        what = repr((request.operation, request.realm, request.params)).encode() + request.body
        request.once = (key, hashlib.blake2b(what, digest_size=16).hexdigest())
        self._keyed = [*self._keyed[-30:], request]

    # -- parts -------------------------------------------------------------------------------------------------------

    def _some_tags(self) -> list[str]:
        return [tag for tag in TAGS if self._chance.random() < 0.3]

    def _job_id(self, model: Model) -> str:
        if model.jobs and self._chance.random() < 0.8:
            return self._chance.choice(model.jobs).job_id
        return self._chance.choice(JOB_IDS)

    def _pair(self, model: Model) -> tuple[str, QueueId]:
        if model.places and self._chance.random() < 0.8:
            place = self._chance.choice(model.places)
            return place.job.job_id, place.queue
        return self._chance.choice(JOB_IDS), self._chance.choice(QUEUES)

    def _maybe(self, said: dict[str, Any], likelihood: float, name: str, values: Any) -> None:
        if self._chance.random() < likelihood:
            said[name] = self._chance.choice(values)

    def _new_job(self, job_id: str | None) -> dict[str, Any]:
        chance = self._chance
        said: dict[str, Any] = {"queue_id": chance.choice(QUEUES)}
        if job_id is not None:
            said["job_id"] = job_id
        if tags := self._some_tags():
            said["tags"] = tags
        if chance.random() < 0.15:
            said["data"] = msgspec.Raw(chance.choice(TEXTS))
        if chance.random() < 0.3:
            self._maybe(said, 0.4, "delay", SPANS)
            self._maybe(said, 0.25, "expires_in", (0.25, 5.0, 601.0))
            self._maybe(said, 0.25, "max_attempts", (1, 2))
            self._maybe(said, 0.4, "on_conflict", ("merge", "ignore", "replace", "error"))
            if chance.random() < 0.4:
                said["after"] = self._some_tags()
        return said

    def _wanted(self) -> dict[str, Any]:
        said: dict[str, Any] = {"count": self._chance.choice((0, 1, 1, 2, 2, 4, 5, 8, 9))}
        self._maybe(said, 0.15, "max_queue", QUEUES)
        self._maybe(said, 0.1, "queues", ([0], [1, 2], ["b10", 0]))
        self._maybe(said, 0.2, "tags", (["red"], ["blue", "red"], []))
        self._maybe(said, 0.5, "lease_time", (*SPANS, 600.0))
        self._maybe(said, 0.4, "worker", ("w1", "ü"))
        return said

    def _some_leases(self, request: Request, model: Model) -> list[str]:
        """Lease ids, mostly in force, perhaps stale, twice, of another realm or never given."""
        chance = self._chance
        own = [proof for proof, (realm, _) in self._leases.items() if realm == request.realm]
        held = [proof for proof in own if in_force(model, self._leases[proof][1])]
        proofs = []
        for _ in range(chance.choice((1, 1, 2, 3, 5))):
            if held and chance.random() < 0.8:
                proofs.append(chance.choice(held))
            elif self._leases and chance.random() < 0.8:
                proofs.append(chance.choice(list(self._leases)))
            else:
                proofs.append(chance.choice(NEVER_GIVEN))
        for proof in proofs:
            if proof in self._leases and self._leases[proof][0] == request.realm:
                request.known[proof] = self._leases[proof][1]
        return proofs

    # -- operations --------------------------------------------------------------------------------------------------

    def _plain(self, request: Request, model: Model) -> Request:
        if request.operation in (
            "get_tag",
            "get_tag_status",
            "remove_tagged_jobs",
            "cancel_tagged_jobs",
            "redrive_tagged_jobs",
        ):
            request.params = [self._chance.choice(TAGS), *([None] if request.operation == "get_tag" else [])]
        elif request.operation in ("remove_job", "cancel_job", "get_job"):
            request.params = [self._job_id(model)]
        elif request.operation in ("clear_queue", "clear_queue_2013"):
            request.params = [self._chance.choice(QUEUES)]
        elif request.operation == "get_tags":
            request.params = [None, None, None]
        return request

    def _add_job(self, request: Request, model: Model) -> Request:
        request.params = [self._chance.choice(JOB_IDS)]
        request.said = self._new_job(None)
        return request

    def _add_jobs(self, request: Request, model: Model) -> Request:
        count = self._chance.choice((1, 2, 2, 3, 4, 5, 7, 9))
        request.said = {"jobs": [self._new_job(self._chance.choice(JOB_IDS)) for _ in range(count)]}
        return request

    def _remove_jobs(self, request: Request, model: Model) -> Request:
        request.said = {"jobs": [self._job_id(model) for _ in range(self._chance.choice((1, 2, 4)))]}
        return request

    def _list_jobs(self, request: Request, model: Model) -> Request:
        chance = self._chance
        state = chance.choice((None, "done", "done", "ready", "leased", "delayed", "blocked", "dead"))
        is_all = state == "done"
        request.params = [
            state,
            None if is_all else chance.choice((None, None, 0, 1)),
            None if is_all else chance.choice((None, None, *TAGS)),
            None if is_all else chance.choice((None, "", "a")),
            "1000",
            None,
            "1",
        ]
        return request

    def _pull(self, request: Request, model: Model) -> Request:
        request.said = self._wanted()
        return request

    def _pull_2013(self, request: Request, model: Model) -> Request:
        request.params = [self._chance.choice((None, "1", "2", "5")), None]
        return request

    def _undo_pull(self, request: Request, model: Model) -> Request:
        # Once its reply need not be kept any more, nobody can say whether it still is.
        own = [pull for pull in self._pulls if pull[0] == request.realm and (not pull[5] or self.now < pull[1] + 300)]
        if not own:
            return self._pull(Request("pull", request.realm), model)
        _, _, number, pull, pairs, key = self._chance.choice(own)
        request.params = [number, [list(pair) for pair in pairs], key]
        request.known = {"pull": (pull, "", 0)}
        return request

    def _exchange(self, request: Request, model: Model) -> Request:
        said: dict[str, Any] = {}
        if self._chance.random() < 0.7:
            said["ack"] = self._outcome({"leases": self._some_leases(request, model)})
        if self._chance.random() < 0.3:
            said["nack"] = {"leases": self._some_leases(request, model), "error": "boom"}
        if self._chance.random() < 0.5:
            said["add"] = [self._new_job(self._chance.choice(JOB_IDS)) for _ in range(self._chance.choice((1, 2, 4)))]
        if self._chance.random() < 0.7:
            said["pull"] = self._wanted()
        request.said = said
        return request

    def _outcome(self, said: dict[str, Any]) -> dict[str, Any]:
        self._maybe(said, 0.3, "exit_code", (0, 3))
        self._maybe(said, 0.3, "result", ([1], None, "x"))
        self._maybe(said, 0.2, "output", ("", "ö"))
        return said

    def _ack(self, request: Request, model: Model) -> Request:
        request.said = self._outcome({"leases": self._some_leases(request, model)})
        return request

    def _nack(self, request: Request, model: Model) -> Request:
        request.said = {"leases": self._some_leases(request, model)}
        self._maybe(request.said, 0.7, "error", ("boom", ""))
        self._maybe(request.said, 0.3, "exit_code", (1, -9))
        self._maybe(request.said, 0.3, "delay", SPANS)
        return request

    def _release(self, request: Request, model: Model) -> Request:
        request.said = {"leases": self._some_leases(request, model)}
        self._maybe(request.said, 0.4, "delay", SPANS)
        return request

    def _extend(self, request: Request, model: Model) -> Request:
        request.said = {"leases": self._some_leases(request, model)}
        self._maybe(request.said, 0.6, "lease_time", SPANS)
        return request

    def _move_job(self, request: Request, model: Model) -> Request:
        job_id, queue = self._pair(model)
        request.params = [job_id]
        request.said = {"from_queue": queue, "to_queue": self._chance.choice(QUEUES)}
        return request

    def _move_tagged_jobs(self, request: Request, model: Model) -> Request:
        request.params = [self._chance.choice(TAGS)]
        request.said = {"from_queue": self._chance.choice(QUEUES), "to_queue": self._chance.choice(QUEUES)}
        return request

    def _redrive(self, request: Request, model: Model) -> Request:
        request.said = {}
        self._maybe(request.said, 0.4, "queue", QUEUES)
        if self._chance.random() < 0.5:
            request.said["jobs"] = [self._job_id(model) for _ in range(self._chance.choice((1, 2, 4, 6)))]
        return request

    # -- settings ----------------------------------------------------------------------------------------------------

    def _backoff(self) -> dict[str, float] | None:
        if self._chance.random() < 0.3:
            return None
        factor = self._chance.choice((1.0, 2.0))
        return {"base": self._chance.choice((0.5, 4.0)), "factor": factor, "max": 10.0, "jitter": 0.5}

    def _limits(self, said: dict[str, Any]) -> dict[str, Any]:
        self._maybe(said, 0.5, "max_leased", (None, None, 1, 2))
        self._maybe(said, 0.5, "rate", (None, None, 0.125, 0.5, 1.0, 2.0, 2.5))
        self._maybe(said, 0.5, "paused", (False, False, False, True))
        return said

    def _configure(self, request: Request, model: Model) -> Request:
        said: dict[str, Any] = {}
        self._maybe(said, 0.2, "default_lease_time", SPANS)
        self._maybe(said, 0.4, "max_attempts", (None, None, 2, 3))
        self._maybe(said, 0.4, "crash_limit", (None, 1, 2))
        self._maybe(said, 0.3, "max_jobs", (None, None, None, 4))
        self._maybe(said, 0.3, "max_bytes", (None, None, 100, 6_000))
        self._maybe(said, 0.4, "keep_done", (*KEPT, {"seconds": 4.0}))  # less than until the next chores
        if self._chance.random() < 0.3:
            said["backoff"] = self._backoff()
        request.said = said
        return request

    def keep_done(self, realm: str) -> Request:
        """Have a realm keep results."""
        said = {"keep_done": self._chance.choice(KEPT)}
        return Request("configure", realm, [], said, msgspec.json.encode(said))

    def _configure_2013(self, request: Request, model: Model) -> Request:
        said: dict[str, Any] = {}
        self._maybe(said, 0.5, "default_lease_time", SPANS)
        said["queue_lease_time"] = [self._chance.choice(QUEUES), self._chance.choice(SPANS)]
        request.said = said
        return request

    def _configure_queue(self, request: Request, model: Model) -> Request:
        said: dict[str, Any] = {}
        self._maybe(said, 0.4, "lease_time", SPANS)
        self._maybe(said, 0.4, "max_attempts", (None, None, 1, 3))
        if self._chance.random() < 0.3:
            said["backoff"] = self._backoff()
        request.params = [self._chance.choice(QUEUES)]
        request.said = self._limits(said)
        return request

    def _configure_tag(self, request: Request, model: Model) -> Request:
        request.params = [self._chance.choice(TAGS)]
        request.said = self._limits({})
        if self._chance.random() < 0.3:
            request.said = {"max_leased": None, "rate": None, "paused": False}
        return request
