"""What one call sends and how its reply is read, as a value: no input or output, no clock.

Both clients, `restq.client` and `restq.aio`, send these; what the operations are stands in `realm_calls.py`,
`lease_calls.py` and `realms_calls.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from restq.client.leased import Leased

T = TypeVar("T")
U = TypeVar("U")

_CULPRIT_LEVELS_MAX = 3  # as in jobs[7].data


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request: `path` is encoded and has no leading slash, `content` is the encoded body."""

    verb: str
    path: str
    read: Callable[[Any], T]  # from what the reply holds to what the caller gets
    content: bytes | None = None
    wait_seconds: float = 0  # how long the server may take by design, beyond the time limit
    jobs: tuple[Leased, ...] = ()  # those whose leases it speaks of: they learn what became of them
    only_reads: bool = False  # asked again after a cut connection, though it carries no key

    @property
    def has_key(self) -> bool:
        """Whether it carries an idempotency key, and so may be sent again when no reply came."""
        return self.verb == "post"

    def then(self, follow: Callable[[T], U]) -> Call[U]:
        """The same request, with a step more after its reading."""
        read = self.read
        return replace(self, read=lambda reply: follow(read(reply)))  # type: ignore[arg-type,return-value]


def as_is(reply: Any) -> Any:
    """What the reply holds, unchanged."""
    return reply


def nothing(reply: Any) -> None:
    """The reading of a reply that says nothing but that it was done."""


def part(name: str) -> Callable[[Any], Any]:
    """The reading of the one field that the reply is sent for."""
    return lambda reply: reply[name]


def encoded(body: Any) -> bytes:
    """The body as JSON. TypeError or ValueError, with the name of the part that JSON cannot carry."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        where = _culprit(body, _CULPRIT_LEVELS_MAX).removeprefix(".") or "the body"
        raise kind(f"{where} cannot be sent as JSON: {error}") from error


def _culprit(value: Any, levels: int) -> str:
    """The path to the first part that JSON cannot carry, no more than `levels` deep: `.jobs[7].data`."""
    if levels and isinstance(value, dict):
        parts = [(f".{name}", part) for name, part in value.items()]
    elif levels and isinstance(value, (list, tuple)):
        parts = [(f"[{index}]", part) for index, part in enumerate(value)]
    else:
        return ""
    for name, inner in parts:
        try:
            json.dumps(inner, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            return name + _culprit(inner, levels - 1)
    return ""


def path(*parts: str | int) -> str:
    """The parts as one path, each encoded whole: a slash in a job's id stays in it."""
    return "/".join(_encoded(str(part)) for part in parts)


def query(values: Mapping[str, Any]) -> str:
    """The values that were given, as a query with its question mark; empty text where none was."""
    given = {name: value for name, value in values.items() if value is not None}
    return "?" + urlencode(given, quote_via=quote) if given else ""


def is_dots(part: str) -> bool:
    """Whether a part of a path would mean "here" or "up".

    Our server takes it as an id, but many a proxy resolves it, even encoded, and then deleting the job `..` of
    a realm would delete the realm. What removes or overwrites uses routes that carry such an id in the body.
    """
    return part in (".", "..")


def _encoded(part: str) -> str:
    # urllib3 would drop a bare dot segment; requests makes dots of %2E only after that, and sends them.
    return part.replace(".", "%2E") if is_dots(part) else quote(part, safe="")


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None: what was not given is not sent."""
    return {name: value for name, value in fields.items() if value is not None}


def several(values: Any, what: str) -> Any:
    """The values as they are; TypeError for one text, of which Python would make a list of its letters."""
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{what}, not one: write [{values[:60]!r}]")
    return values
