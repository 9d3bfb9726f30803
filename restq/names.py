"""The rules for the names of realms, queues, tags and jobs: one function each, which returns the name to use.

Pure functions, the same in the front end, the client and the realm's door. What breaks a rule raises the
error of its kind with a sentence that says which rule.
"""

from __future__ import annotations

import json
import re
from typing import Any

from restq.errors import FieldInvalid, FieldTypeWrong, JobIdInvalid, QueueIdInvalid, RealmNameInvalid, TagInvalid

QueueId = int | str

REALM_CHARS_MAX = 128
TAG_BYTES_MAX = 512
QUEUE_ID_BYTES_MAX = 512
JOB_ID_BYTES_MAX = 8192
INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**63 - 1  # SQLite's largest integer

# First words of a path that mean something else than a realm.
RESERVED = frozenset("job jobs pull events metrics performance healthz readyz ui docs openapi.json".split())

_REALM = re.compile(r"[\w ][\w .-]*", re.UNICODE)
_DECIMAL = re.compile(r"-?[0-9]{1,40}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def realm_name(value: Any, field: str = "realm") -> str:
    """1-128 of letters, digits, `.`, `_`, `-` and space, not beginning with `-` or `.`, and no reserved word."""
    if not isinstance(value, str):
        raise FieldTypeWrong(f"{field}: a realm's name is a string, not {_kind(value)}", field)
    if value in RESERVED:
        raise RealmNameInvalid(f"{field}: {value!r} is a reserved word and cannot name a realm", field)
    if len(value) > REALM_CHARS_MAX or not _REALM.fullmatch(value):
        raise RealmNameInvalid(
            f"{field}: {_shown(value)} cannot name a realm: use 1-{REALM_CHARS_MAX} letters, digits, '.', '_', '-'"
            " and spaces, not beginning with '-' or '.'",
            field,
        )
    return value


def queue_id(value: Any, field: str = "queue_id") -> QueueId:
    """An integer of 64 bits, or a string of 1-512 bytes without control characters.

    A string that reads as a decimal integer is that integer: `"0"` and `0` are one queue.
    """
    if isinstance(value, str):
        if not _DECIMAL.fullmatch(value):
            _check_text(value, QUEUE_ID_BYTES_MAX, "a queue id", QueueIdInvalid, field)
            return value
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FieldTypeWrong(f"{field}: a queue id is an integer or a string, not {_kind(value)}", field)
    if not INTEGER_MIN <= value <= INTEGER_MAX:
        raise QueueIdInvalid(f"{field}: a queue id that is an integer must fit into 64 bits", field)
    return value


def queue_order(value: QueueId) -> tuple[int, QueueId]:
    """Sort key of queue ids: integers numerically, then strings by code point."""
    return (1, value) if isinstance(value, str) else (0, value)


def tag(value: Any, field: str = "tags") -> str:
    """1-512 bytes of UTF-8 without control characters."""
    if not isinstance(value, str):
        raise FieldTypeWrong(f"{field}: a tag is a string, not {_kind(value)}", field)
    _check_text(value, TAG_BYTES_MAX, "a tag", TagInvalid, field)
    return value


def job_id(value: Any, field: str = "job_id") -> str:
    """1-8,192 bytes of UTF-8 without NUL. A number is the string that JSON writes for it: `2` is `"2"`."""
    if isinstance(value, str) and value.isascii() and 0 < len(value) <= JOB_ID_BYTES_MAX and "\0" not in value:
        return value  # nearly every id
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, int) and not INTEGER_MIN <= value < 2**64:
            raise JobIdInvalid(f"{field}: a job id that is an integer must fit into 64 bits", field)
        return json.dumps(value)
    if not isinstance(value, str):
        raise FieldTypeWrong(f"{field}: a job id is a string or a number, not {_kind(value)}", field)
    size = _size(value, "a job id", JobIdInvalid, field)
    if not 1 <= size <= JOB_ID_BYTES_MAX:
        raise JobIdInvalid(f"{field}: a job id has 1-{JOB_ID_BYTES_MAX} bytes, this one has {size}", field)
    if "\0" in value:
        raise JobIdInvalid(f"{field}: a job id holds no NUL character", field)
    return value


def _check_text(value: str, bytes_max: int, what: str, error: type[FieldInvalid], field: str) -> None:
    size = _size(value, what, error, field)
    if not 1 <= size <= bytes_max:
        raise error(f"{field}: {what} has 1-{bytes_max} bytes, this one has {size}", field)
    if _CONTROL.search(value):
        raise error(f"{field}: {what} holds no control characters: {_shown(value)}", field)


def _size(value: str, what: str, error: type[FieldInvalid], field: str) -> int:
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise error(f"{field}: {what} holds a lone surrogate, which is no character", field) from None


def _kind(value: Any) -> str:
    """What JSON calls the value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, (list, tuple)) else "an object"


def _shown(value: str) -> str:
    """The value as an error message may show it: quoted, and not longer than a line."""
    return ascii(value if len(value) <= 60 else value[:57] + "...")
