"""The JSON bodies that operations take: their shapes, how they are read, and what a wrong one is told.

Pure, and the same in the front end and the shard. Bodies of 2013 ignore fields that they do not know, as 2013 did;
those that came later refuse them, so that a slip is noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from restq import names
from restq.errors import BodyMalformed, FieldInvalid, FieldMissing, FieldTypeWrong, RestqError
from restq.names import QueueId

COUNT_MAX = 100_000  # jobs in one pull or one bulk body
DEPTH_MAX = 64  # levels of arrays and objects in a job's data

Body = TypeVar("Body")


class JobBody(msgspec.Struct):
    """Body of an add."""

    queue_id: int | str
    data: msgspec.Raw = msgspec.Raw(b"null")
    tags: tuple[str, ...] | None = None


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

    default_lease_time: int | float | None = None
    queue_lease_time: tuple[int | str, int | float] | None = None


class Pull(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /{realm}/pull."""

    count: int = 1
    max_queue: int | str | None = None


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


def count(value: int | str | None) -> int:
    """The number of jobs to pull: 1 unless given; 0 to COUNT_MAX."""
    if value is None:
        return 1
    if isinstance(value, str) and not _WHOLE.fullmatch(value):
        raise FieldInvalid(f"count: {ascii(value)[:60]} is not a whole number", "count")
    number = int(value)
    if not 0 <= number <= COUNT_MAX:
        raise FieldInvalid(f"count: must lie between 0 and {COUNT_MAX}, not {number}", "count")
    return number


def max_queue(value: int | str | None, field: str = "max_queue") -> QueueId | None:
    """The last queue to pull from, or None for all."""
    return None if value is None else names.queue_id(value, field)


def shard(body: bytes, shard_count: int) -> int:
    """The shard that a pin names."""
    number = _read_pin(body).shard
    if not 0 <= number < shard_count:
        raise FieldInvalid(f"shard: there are shards 0 to {shard_count - 1}, not {number}", "shard")
    return number


_LENGTH = re.compile(r"Expected `array` of length ([0-9]+).*", re.DOTALL)
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
    if problem in ("Integer value out of range", "Number out of range"):
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
