"""The JSON bodies that operations take: their shapes, how they are read, and what a wrong one is told.

Pure, and the same in the front end and the shard. Bodies of 2013 ignore fields that they do not know, as 2013 did;
those that came later refuse them, so that a slip is noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from restq import names
from restq.errors import BodyMalformed, FieldInvalid, FieldMissing, FieldTypeWrong, RestqError
from restq.names import QueueId

COUNT_MAX = 100_000  # jobs in one pull or one bulk body
DEPTH_MAX = 64  # levels of arrays and objects in a job's data
LEASE_SECONDS_MAX = 1e9
WAIT_SECONDS_MAX = 300
PULL_TAGS_MAX = 256  # tags that one pull asks for, and queues
EXCHANGE_COUNT_MAX = 1_000  # leases to ack, to nack, jobs to add or to pull in one exchange
WORKER_BYTES_MAX = 512
LIMIT_MAX = 1000  # entries on one page of a list
LIMIT_DEFAULT = 50

Seconds = Annotated[int, msgspec.Meta(ge=names.INTEGER_MIN, le=names.INTEGER_MAX)] | float

Body = TypeVar("Body")


class JobBody(msgspec.Struct):
    """Body of an add."""

    queue_id: int | str
    data: msgspec.Raw = msgspec.Raw(b"null")
    tags: tuple[str, ...] | None = None
    delay: Seconds | None = None
    run_at: Seconds | None = None
    expires_in: Seconds | None = None
    max_attempts: int | None = None
    after: tuple[str, ...] | None = None
    on_conflict: str | None = None


class BulkJob(JobBody, kw_only=True):
    """A job of a bulk add; `realm_id` counts only where the route names no realm."""

    job_id: str | int | float
    realm_id: str | None = None


class BulkAdd(msgspec.Struct):
    """2013's client sends an object whose values are the jobs where it was given a dict."""

    jobs: list[BulkJob] | dict[str, BulkJob]


class BulkRemove(msgspec.Struct):
    """Body of a bulk remove in one realm. The realm client of 2013 sends pairs, with the realm's own name."""

    jobs: list[str | int | float | tuple[str, str | int | float]]


class BulkRemovePairs(msgspec.Struct):
    """Body of a bulk remove over several realms: pairs of realm and job id."""

    jobs: list[tuple[str, str | int | float]]


class Config(msgspec.Struct):
    """Body of POST /{realm}/config."""

    default_lease_time: Seconds | None = None
    queue_lease_time: tuple[int | str, Seconds] | None = None


class Pull(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /{realm}/pull."""

    count: int = 1
    max_queue: int | str | None = None
    wait: Seconds = 0
    queues: list[int | str] | None = None
    tags: list[str] | None = None
    lease_time: Seconds | None = None
    worker: str | None = None


class Ack(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /{realm}/ack. An empty `result` was not given."""

    leases: list[str]
    result: msgspec.Raw = msgspec.Raw()
    exit_code: int | None = None
    output: str | None = None


class Nack(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /{realm}/nack."""

    leases: list[str]
    error: str | None = None
    exit_code: int | None = None
    delay: Seconds | None = None


class Release(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /{realm}/release."""

    leases: list[str]
    delay: Seconds | None = None


class Extend(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /{realm}/extend."""

    leases: list[str]
    lease_time: Seconds | None = None


class Exchange(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /{realm}/exchange: what is finished, what follows from it, and what to take next."""

    ack: Ack | None = None
    nack: Nack | None = None
    add: list[BulkJob] | None = None
    pull: Pull | None = None


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a request whose path says it all."""


class Redrive(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /{realm}/redrive."""

    queue: int | str | None = None
    jobs: list[str | int | float] | None = None


class Backoff(msgspec.Struct, forbid_unknown_fields=True):
    """How long a job waits after its n-th failure: min(max, base * factor^(n-1)), less a random share of it."""

    base: Seconds
    factor: Seconds = 2
    max: Seconds = 3600
    jitter: Seconds = 0.5  # the largest share taken off, 0 to 1


class KeepDone(msgspec.Struct, forbid_unknown_fields=True):
    """For how long results are kept, and how many."""

    seconds: Seconds | None = None
    count: int | None = None


# In settings, what is not named stays, and null takes it away.
class LimitSettings(msgspec.Struct, forbid_unknown_fields=True):
    """Body of PUT /{realm}/tags/{tag}."""

    max_leased: int | UnsetType | None = UNSET
    rate: Seconds | UnsetType | None = UNSET
    paused: bool | UnsetType = UNSET


class QueueSettings(LimitSettings, forbid_unknown_fields=True):
    """Body of PUT /{realm}/queues/{queue_id}."""

    lease_time: Seconds | UnsetType | None = UNSET
    max_attempts: int | UnsetType | None = UNSET
    backoff: Backoff | UnsetType | None = UNSET


class RealmSettings(msgspec.Struct, forbid_unknown_fields=True):
    """Body of PUT /{realm}/config."""

    default_lease_time: Seconds | UnsetType | None = UNSET
    max_attempts: int | UnsetType | None = UNSET
    crash_limit: int | UnsetType | None = UNSET
    max_jobs: int | UnsetType | None = UNSET
    max_bytes: int | UnsetType | None = UNSET
    backoff: Backoff | UnsetType | None = UNSET
    keep_done: KeepDone | UnsetType | None = UNSET


class Move(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /{realm}/job/{job_id}/move."""

    from_queue: int | str
    to_queue: int | str


class Pin(msgspec.Struct, forbid_unknown_fields=True):
    """Body of PUT /{realm}/shard."""

    shard: int


def reader(shape: type[Body]) -> Callable[[bytes], Body]:
    """A function that reads a JSON body of this shape, or raises what is wrong with it, and where."""
    decode = msgspec.json.Decoder(shape).decode

    def read(body: bytes) -> Body:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            raise _wrong_field(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BodyMalformed(_why_malformed(body)) from None

    return read


_read_nothing = reader(Nothing)


def check_nothing(body: bytes) -> None:
    """Refuse the body of a request whose path says it all, unless it is empty or says nothing."""
    if body:
        _read_nothing(body)


def bulk_jobs(body: BulkAdd) -> Sequence[BulkJob]:
    """The jobs in order, from either shape."""
    return body.jobs if isinstance(body.jobs, list) else list(body.jobs.values())


def job_ids(jobs: Sequence[str | int | float | tuple[str, str | int | float]], realm: str) -> list[str]:
    """The ids of a bulk remove in this realm, checked."""
    checked = []
    for index, job_id in enumerate(jobs):
        field = f"jobs[{index}]"
        if isinstance(job_id, tuple):
            if job_id[0] != realm:
                raise FieldInvalid(f"{field}: is in realm {ascii(job_id[0])[:60]}, not in {realm!r}", field)
            job_id = job_id[1]
        checked.append(names.job_id(job_id, field))
    return checked


def count(value: int | str | None, field: str = "count") -> int:
    """The number of jobs to pull: 1 unless given; 0 to COUNT_MAX."""
    if value is None:
        return 1
    if isinstance(value, str) and not _WHOLE.fullmatch(value):
        raise FieldInvalid(f"{field}: {ascii(value)[:60]} is not a whole number", field)
    number = int(value)
    if not 0 <= number <= COUNT_MAX:
        raise FieldInvalid(f"{field}: must lie between 0 and {COUNT_MAX}, not {number}", field)
    return number


def check_count(count: int, field: str, most: int | None = None) -> None:
    """Refuse a body with more parts than one request takes: COUNT_MAX, or fewer."""
    most = COUNT_MAX if most is None else most
    if count > most:
        raise FieldInvalid(f"{field}: {count} are more than the {most} that one request takes", field)


def max_queue(value: int | str | None, field: str = "max_queue") -> QueueId | None:
    """The last queue to pull from, or None for all."""
    return None if value is None else names.queue_id(value, field)


def wait(value: Seconds | str | None) -> float:
    """For how many seconds to wait: 0 unless given, at most WAIT_SECONDS_MAX."""
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        raise FieldInvalid(f"wait: {ascii(value)[:60]} is not a number of seconds", "wait")
    seconds = float(value) if isinstance(value, str) else value or 0
    if not 0 <= seconds <= WAIT_SECONDS_MAX:
        raise FieldInvalid(f"wait: must lie between 0 and {WAIT_SECONDS_MAX} seconds, not {str(seconds)[:60]}", "wait")
    return float(seconds)


def lease_time(value: Seconds | None, field: str = "lease_time") -> Seconds | None:
    """The seconds that a lease is to last, or None for what was configured."""
    if value is not None and not 0 <= value <= LEASE_SECONDS_MAX:
        raise FieldInvalid(f"{field}: a lease time lies between 0 and {LEASE_SECONDS_MAX:,.0f} seconds", field)
    return value


def worker(value: str | None, field: str = "worker") -> str:
    """The name that a worker gives itself: "" if none."""
    if value is not None and (len(value.encode()) > WORKER_BYTES_MAX or not value.isprintable()):
        raise FieldInvalid(f"{field}: has at most {WORKER_BYTES_MAX} bytes and no control characters", field)
    return value or ""


def limit(text: str | None) -> int:
    """The largest number of entries on a page: LIMIT_DEFAULT unless given; 1 to LIMIT_MAX."""
    if text is None:
        return LIMIT_DEFAULT
    if not _WHOLE.fullmatch(text):
        raise FieldInvalid(f"limit: {ascii(text)[:60]} is not a whole number", "limit")
    number = int(text)
    if not 1 <= number <= LIMIT_MAX:
        raise FieldInvalid(f"limit: must lie between 1 and {LIMIT_MAX}, not {number}", "limit")
    return number


def flag(text: str | None, field: str) -> bool:
    """Whether a query asks for something: 1 or true, 0 or false; no unless given."""
    if text not in _FLAGS:
        raise FieldInvalid(f"{field}: must be 1 or 0, not {ascii(text)[:60]}", field)
    return _FLAGS[text]


def shard(body: bytes, shard_count: int) -> int:
    """The shard that a pin names."""
    number = _read_pin(body).shard
    if not 0 <= number < shard_count:
        raise FieldInvalid(f"shard: there are shards 0 to {shard_count - 1}, not {number}", "shard")
    return number


_BOUNDS = re.compile(r"Expected `int` [<>]= -?[0-9]+")
_LENGTH = re.compile(r"Expected `array` of length ([0-9]+).*", re.DOTALL)
_DECIMAL = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")
_FLAGS = {None: False, "0": False, "false": False, "1": True, "true": True}
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_AT = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_TYPES = re.compile(r"Expected `(.*)`, got `(.*)`")
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
}
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def _wrong_field(problem: str) -> RestqError:
    """The error for what msgspec found: it says `problem - at `$.jobs[3].queue_id``."""
    located = _AT.fullmatch(problem)
    problem, where = located.groups() if located else (problem, "")
    if missing := _MISSING.fullmatch(problem):
        field = f"{where}.{missing[1]}".lstrip(".")
        return FieldMissing(f"{field}: this field is required", field)
    if unknown := _UNKNOWN.fullmatch(problem):
        field = f"{where}.{unknown[1]}".lstrip(".")
        field = field if field.isprintable() else ascii(field)
        return FieldInvalid(f"{field}: there is no such field here", field)
    if problem in ("Integer value out of range", "Number out of range") or _BOUNDS.fullmatch(problem):
        return FieldInvalid(f"{where or 'the body'}: must fit into 64 bits", where or None)
    if length := _LENGTH.fullmatch(problem):
        problem = f"must be an array of {length[1]} values"
    if types := _TYPES.fullmatch(problem):
        problem = f"must be {_in_words(types[1])}, not {_in_words(types[2])}"
    return FieldTypeWrong(f"{where or 'the body'}: {problem}", where or None)


def _in_words(types: str) -> str:
    """What JSON calls these types: `int | float | null` is "a number or null"."""
    kinds = types.split(" | ")
    if "float" in kinds and "int" in kinds:
        kinds.remove("int")
    return " or ".join(_WORDS.get(name, name) for name in kinds)


def _why_malformed(body: bytes) -> str:
    """What is wrong with the body, in a sentence: asks a second decoder, which tells more."""
    if not body:
        return "the body is empty, and this request needs one: a JSON object"
    try:
        json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return f"the body is not valid UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        return f"the body is not valid JSON: {error}"
    except RecursionError:
        return f"the body is nested deeper than {DEPTH_MAX} levels"
    except ValueError as error:
        return f"the body is not valid JSON: {error}"
    return "the body is not valid JSON: a string in it holds a lone surrogate, which is no character"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


_read_pin = reader(Pin)
