"""The operations on leases: pull, and what its holder does with one: ack, nack, release, extend, exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from restq import bodies, names
from restq.errors import FieldInvalid, RowDamaged
from restq.shards import adding, data, endings, finishing, leasing, sweeps
from restq.shards.commands.batches import SLICE_COUNT, in_slices
from restq.shards.commands.call import NOTHING, Call, Done, Outcome, Wait, Work, encode
from restq.shards.finishing import lease_id
from restq.shards.job import Place
from restq.shards.leasing import Wanted
from restq.shards.new_jobs import new_jobs, seconds, sorted_tags
from restq.shards.realm import Realm

ERROR_BYTES_MAX = 4 << 10  # of an error's text its last so many bytes are kept
OUTPUT_BYTES_MAX = 64 << 10  # and of an output's
RESULT_BYTES_MAX = 64 << 10  # a result is kept whole, or refused
EXIT_CODE_MAX = 2**32 - 1
RESULTS_BYTES_MAX = 64 << 20  # of what one ack leaves to be kept

_read_pull = bodies.reader(bodies.Pull)
_read_ack = bodies.reader(bodies.Ack)
_read_nack = bodies.reader(bodies.Nack)
_read_release = bodies.reader(bodies.Release)
_read_extend = bodies.reader(bodies.Extend)
_read_exchange = bodies.reader(bodies.Exchange)


class LeasedJob(msgspec.Struct, omit_defaults=True):
    """A job as a pull by POST gives it."""

    job_id: str
    queue_id: names.QueueId
    data: msgspec.Raw
    tags: tuple[str, ...]
    attempt: int
    lease_id: str
    lease_expires_at: float
    realm: str | None = None


def leased_job(realm: Realm, place: Place, call: Call, with_realm: bool = False) -> LeasedJob:
    """What a pull by POST says of a job it leased."""
    queue, job, history = place.queue, place.job, place.history
    proof = lease_id(realm, place)
    realm_name = realm.name if with_realm else None
    return LeasedJob(job.job_id, queue.queue_id, call.data(job), job.tags, history.attempt, proof, place.at, realm_name)


def with_data(realm: Realm, call: Call, places: list[Place]) -> list[Place]:
    """Those of a pull whose data can be read. The others are dead: nobody could ever be given them, again and again."""
    found = []
    for place in places:
        try:
            if isinstance(place.job.data, data.Large):
                call.data(place.job)
            found.append(place)
        except RowDamaged as damaged:
            endings.note_failure(realm, place, damaged.message, None)
            endings.die(realm, place, 1)
            realm.tell("dead", place, attempt=place.history.attempt, error=damaged.message)
    return found


def pull_2013(realm: Realm, call: Call) -> Outcome:
    """GET /{realm}/job: an object of job ids."""
    wanted = Wanted(bodies.count(call.params[0]), bodies.max_queue(call.params[1], "max-queue"))
    realm.advance(call.now)
    return Pulling(realm, call, wanted, _as_in_2013).begin()


def _as_in_2013(realm: Realm, call: Call, places: list[Place]) -> bytes:
    return encode({place.job.job_id: (place.queue.queue_id, call.data(place.job)) for place in places})[1:-1]


def pull(realm: Realm, call: Call) -> Outcome:
    """POST /{realm}/pull."""
    said = _read_pull(call.body or NOTHING)
    wanted, wait = read_wanted(said), bodies.wait(said.wait)
    realm.advance(call.now)
    outcome = Pulling(realm, call, wanted).begin()
    if isinstance(outcome, Work) or outcome.lease or not wait or not wanted.limit:
        return outcome
    nothing = outcome
    group = wanted._replace(limit=1, lease_time=None, worker="")  # what makes no difference to being in vain
    return Wait(wait, group, lambda realm, call: _pulled(realm, call, wanted), lambda realm, call: nothing)


def _pulled(realm: Realm, call: Call, wanted: Wanted) -> Done | None:
    places = with_data(
        realm, call, leasing.pull(realm, wanted._replace(limit=min(wanted.limit, SLICE_COUNT)), call.now)
    )
    return leased({"jobs": [leased_job(realm, place, call) for place in places]}, places) if places else None


def _listed(realm: Realm, call: Call, places: list[Place]) -> bytes:
    return encode([leased_job(realm, place, call) for place in places])[1:-1]


class Pulling:
    """A pull of many jobs, slice by slice; `shown` writes the jobs of one."""

    def __init__(
        self,
        realm: Realm,
        call: Call,
        wanted: Wanted,
        shown: Callable[[Realm, Call, list[Place]], bytes] = _listed,
    ) -> None:
        self._realm = realm
        self._call = call
        self._wanted = wanted
        self._shown = shown
        self._pull: leasing.Pull | None = None
        self._slices: list[bytes] = []
        self._held_until = 0.0

    def begin(self) -> Done | Work:
        """The first slice, which nearly always is all."""
        if not leasing.has_ready(self._realm, self._wanted) or self.step(SLICE_COUNT):
            return self.done()
        return Work(self, self.done)

    def step(self, count: int) -> bool:
        """Lease one more slice; True once there are no more."""
        self._pull = self._pull or leasing.Pull(self._realm, self._wanted)
        taken = self._pull.take(SLICE_COUNT)
        places = with_data(self._realm, self._call, taken)
        if places:
            self._slices.append(self._shown(self._realm, self._call, places))
            self._held_until = max(self._held_until, max(place.at for place in places))
        is_over = len(taken) < SLICE_COUNT or self._pull.is_over
        if not is_over and self._realm.task is None:  # nobody is given what was leased, should the shard end here
            sweeps.note_pull(self._realm, self._pull.number)
        elif is_over and self._realm.task is not None:
            self._realm.set_task(None)
        return is_over

    def done(self) -> Done:
        """The reply to all of it."""
        jobs = b",".join(self._slices)
        body = b'{"jobs":[' + jobs + b"]}" if self._shown is _listed else b"{" + jobs + b"}"
        return Done(body, self._pull.number if self._slices and self._pull is not None else 0, self._held_until)


def leased(reply: Any, places: list[Place]) -> Done:
    """The reply of a pull that leased these."""
    if not places:
        return Done(encode(reply))
    return Done(encode(reply), places[0].history.lease, max(place.at for place in places))


def read_wanted(said: bodies.Pull, where: str = "") -> Wanted:
    """What a pull asks for, checked."""
    bodies.check_count(len(said.queues or ()), f"{where}queues", bodies.PULL_TAGS_MAX)
    bodies.check_count(len(said.tags or ()), f"{where}tags", bodies.PULL_TAGS_MAX)
    queues = (
        None if said.queues is None else frozenset(names.queue_id(queue, f"{where}queues") for queue in said.queues)
    )
    return Wanted(
        bodies.count(said.count, f"{where}count"),
        bodies.max_queue(said.max_queue, f"{where}max_queue"),
        queues,
        None if said.tags is None else sorted_tags(said.tags, f"{where}tags"),
        bodies.lease_time(said.lease_time, f"{where}lease_time"),
        bodies.worker(said.worker, f"{where}worker"),
    )


def undo_pull(realm: Realm, call: Call) -> Done:
    """From the front end: the client was gone before the jobs of this pull reached it."""
    lease, pairs, *_ = call.params
    leasing.undo_pull(realm, lease, ((job_id, queue_id) for job_id, queue_id in pairs), call.now)
    return Done(NOTHING)


def ack(realm: Realm, call: Call) -> Outcome:
    """POST /{realm}/ack."""
    said = _read_ack(call.body)
    leases, outcome = read_leases(said.leases), _outcome(said)
    if not call.is_resumed:
        finishing.check_ack(realm, leases, call.now)
    return in_slices(realm, call, "ack", leases, lambda some: finishing.ack(realm, some, outcome, call.now))


def _outcome(said: bodies.Ack, where: str = "") -> finishing.Outcome:
    result = bytes(said.result)
    if result:
        data.check(result, f"{where}result")
    if len(result) > RESULT_BYTES_MAX:
        raise FieldInvalid(f"{where}result: has {len(result)} bytes, more than {RESULT_BYTES_MAX}", f"{where}result")
    exit_code = _exit_code(said.exit_code, f"{where}exit_code")
    output = None if said.output is None else tail(said.output, OUTPUT_BYTES_MAX)
    if (len(result) + len(output or "")) * len(said.leases) > RESULTS_BYTES_MAX:
        raise FieldInvalid(f"{where}leases: too many for results of this size: ack them in parts", f"{where}leases")
    return finishing.Outcome(msgspec.Raw(result) if result else None, exit_code, output)


def nack(realm: Realm, call: Call) -> Outcome:
    """POST /{realm}/nack."""
    said = _read_nack(call.body)
    read_leases(said.leases)
    do = _nacking(realm, said, call.now)
    return in_slices(realm, call, "nack", said.leases, do)


def _nacking(realm: Realm, said: bodies.Nack, now: float, where: str = "") -> Callable[[list[str]], dict[str, Any]]:
    delay, error = seconds(said.delay, f"{where}delay"), tail(said.error or "", ERROR_BYTES_MAX)
    exit_code = _exit_code(said.exit_code, f"{where}exit_code")
    return lambda leases: finishing.nack(realm, leases, error, exit_code, delay, now)


def release(realm: Realm, call: Call) -> Outcome:
    """POST /{realm}/release."""
    said = _read_release(call.body)
    leases, delay = read_leases(said.leases), seconds(said.delay, "delay") or 0.0
    return in_slices(realm, call, "release", leases, lambda some: finishing.release(realm, some, delay, call.now))


def extend(realm: Realm, call: Call) -> Outcome:
    """POST /{realm}/extend."""
    said = _read_extend(call.body)
    leases, lease_time = read_leases(said.leases), bodies.lease_time(said.lease_time)
    return in_slices(realm, call, "extend", leases, lambda some: finishing.extend(realm, some, lease_time, call.now))


def exchange(realm: Realm, call: Call) -> Done:
    """POST /{realm}/exchange: everything is checked before anything is done."""
    said = _read_exchange(call.body)
    realm.advance(call.now)
    if said.pull is not None and bodies.wait(said.pull.wait):
        raise FieldInvalid("pull.wait: an exchange does not wait; pull without it, then pull again", "pull.wait")
    _check_exchange(said)
    wanted = None if said.pull is None else read_wanted(said.pull, "pull.")
    jobs = new_jobs(said.add or [], call.now, where="add")
    outcome = None if said.ack is None else _outcome(said.ack, "ack.")
    nacking = None
    if said.nack is not None:
        read_leases(said.nack.leases, "nack.")
        nacking = _nacking(realm, said.nack, call.now, "nack.")
    if said.ack is not None:
        finishing.check_ack(realm, read_leases(said.ack.leases, "ack."), call.now)
    gone = finishing.gone_after(realm, said.ack.leases if said.ack else (), said.nack.leases if said.nack else ())
    adding.check_add(realm, jobs, where="add", gone=gone)
    reply: dict[str, Any] = {}
    if said.ack is not None and outcome is not None:
        reply["ack"] = finishing.ack(realm, said.ack.leases, outcome, call.now)
    if said.nack is not None and nacking is not None:
        reply["nack"] = nacking(said.nack.leases)
    if jobs:
        realm.write()
        adding.put(realm, jobs)
    if wanted is None:
        return Done(encode(reply))
    places = with_data(realm, call, leasing.pull(realm, wanted, call.now))
    return leased({**reply, "pull": {"jobs": [leased_job(realm, place, call) for place in places]}}, places)


def _check_exchange(said: bodies.Exchange) -> None:
    """An exchange is done in one go: it must not be long."""
    counts = {
        "ack.leases": len(said.ack.leases) if said.ack else 0,
        "nack.leases": len(said.nack.leases) if said.nack else 0,
        "add": len(said.add or ()),
        "pull.count": said.pull.count if said.pull else 0,
    }
    for field, count in counts.items():
        bodies.check_count(count, field, bodies.EXCHANGE_COUNT_MAX)


def read_leases(leases: list[str], where: str = "") -> list[str]:
    """The lease ids of a body, no more than one request takes."""
    bodies.check_count(len(leases), f"{where}leases")
    return leases


def _exit_code(value: int | None, field: str) -> int | None:
    """An exit code, as far as any system knows one."""
    if value is not None and not -EXIT_CODE_MAX <= value <= EXIT_CODE_MAX:
        raise FieldInvalid(f"{field}: must lie between -{EXIT_CODE_MAX} and {EXIT_CODE_MAX}", field)
    return value


def tail(text: str, bytes_max: int) -> str:
    """The end of a text, in UTF-8 no longer than this."""
    encoded = text.encode()
    return text if len(encoded) <= bytes_max else encoded[-bytes_max:].decode(errors="ignore")
