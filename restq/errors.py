"""The one error tree: what can go wrong, its stable code, its HTTP status.

The realm raises these, the front end writes them, the client raises the very same class again. Each is
also a subclass of the Python builtin that the restq of 2013 named on the wire, so that `except KeyError`
written then still catches. This module imports nothing of restq.
"""

from __future__ import annotations

import builtins
from typing import Any, ClassVar


class RestqError(Exception):
    """Root of all errors of restq. `code` is stable and machine-readable; `field` names what was at fault."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    builtin: ClassVar[type[Exception]] = RuntimeError

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def __str__(self) -> str:
        # KeyError would print the repr of its argument; a sentence is for people.
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.field))

    def to_reply(self) -> dict[str, Any]:
        """The body of the HTTP reply: the shape of 2013, plus `code` and, where there is one, `field`."""
        reply: dict[str, Any] = {
            "error": self.status,
            "exception": self.builtin.__name__,
            "message": self.message,
            "code": self.code,
        }
        if self.field is not None:
            reply["field"] = self.field
        return reply


class InternalError(RestqError, RuntimeError):
    """A defect of restq. Its message says whether anything was done."""


# 400: the request itself is wrong.
class BodyMalformed(RestqError, ValueError):
    """The body is not JSON (or msgpack), or holds a value that restq does not carry, such as NaN."""

    code = "body_malformed"
    status = 400
    builtin = ValueError


class FieldMissing(RestqError, KeyError):
    """A required field is not there."""

    code = "field_missing"
    status = 400
    builtin = KeyError


class FieldTypeWrong(RestqError, TypeError):
    """A field has a value of the wrong type."""

    code = "field_type_wrong"
    status = 400
    builtin = TypeError


class FieldInvalid(RestqError, ValueError):
    """A field has the right type and a value outside of its limits."""

    code = "field_invalid"
    status = 400
    builtin = ValueError


class RealmNameInvalid(FieldInvalid):
    """The name cannot be a realm's."""

    code = "realm_name_invalid"


class QueueIdInvalid(FieldInvalid):
    """The value cannot be a queue's id."""

    code = "queue_id_invalid"


class TagInvalid(FieldInvalid):
    """The value cannot be a tag."""

    code = "tag_invalid"


class JobIdInvalid(FieldInvalid):
    """The value cannot be a job's id."""

    code = "job_id_invalid"


class OriginForbidden(RestqError, PermissionError):
    """A page of another site opens a stream, which would let it read what browsers keep from it over HTTP."""

    code = "origin_forbidden"
    status = 403
    builtin = PermissionError


# 404: what was named is not there.
class JobNotFound(RestqError, KeyError):
    """No job of this id is in the realm."""

    code = "job_not_found"
    status = 404
    builtin = KeyError


class TagNotFound(RestqError, KeyError):
    """No job of the realm carries the tag."""

    code = "tag_not_found"
    status = 404
    builtin = KeyError


class RealmNotFound(RestqError, KeyError):
    """Nothing was written to the realm, or it was deleted since."""

    code = "realm_not_found"
    status = 404
    builtin = KeyError


class RouteNotFound(RestqError, KeyError):
    """No route has this path."""

    code = "route_not_found"
    status = 404
    builtin = KeyError


class QueueNotFound(RestqError, ValueError):
    """The realm has no queue of this id. A ValueError, as in 2013."""

    code = "queue_not_found"
    status = 404
    builtin = ValueError


class JobNotInQueue(RestqError, ValueError):
    """The job is not in the queue it was to be moved from, or is not there at all."""

    code = "job_not_in_queue"
    status = 404
    builtin = ValueError


# Other 4xx.
class MethodNotAllowed(RestqError, ValueError):
    """The route exists, but not with this method."""

    code = "method_not_allowed"
    status = 405
    builtin = ValueError

    def __init__(self, message: str, allowed: str | None = None) -> None:
        super().__init__(message)
        self.allowed = allowed or ""


class DataDiffers(RestqError, ValueError):
    """The job exists with other data; nothing was changed."""

    code = "data_differs"
    status = 409
    builtin = ValueError


class JobLeased(RestqError, ValueError):
    """The job is leased out of the queue and stays there until it is removed or the lease ends."""

    code = "job_leased"
    status = 409
    builtin = ValueError


class LeaseStale(RestqError, ValueError):
    """The lease is void: its job was handed out again, removed, moved or finished since. Nothing was done."""

    code = "lease_stale"
    status = 409
    builtin = ValueError


class JobExists(RestqError, ValueError):
    """A job of this id is there, and the add said `on_conflict: error`; nothing was changed."""

    code = "job_exists"
    status = 409
    builtin = ValueError


class BodyTooLarge(RestqError, ValueError):
    """The body is larger than the server takes."""

    code = "body_too_large"
    status = 413
    builtin = ValueError


class ReplyTooLarge(RestqError, ValueError):
    """The reply would be larger than the server sends at once."""

    code = "reply_too_large"
    status = 413
    builtin = ValueError


class ContentTypeUnsupported(RestqError, TypeError):
    """The body's Content-Type is neither JSON nor msgpack."""

    code = "content_type_unsupported"
    status = 415
    builtin = TypeError


class IdempotencyKeyReused(RestqError, ValueError):
    """The idempotency key was sent before, with another path or body. Nothing was done."""

    code = "idempotency_key_reused"
    status = 422
    builtin = ValueError


class QueueFull(RestqError, ConnectionError):
    """The limits of the realm or of its shard leave no room for it. Nothing was done; try again after `Retry-After`."""

    code = "queue_full"
    status = 429
    builtin = ConnectionError


class UpgradeRequired(RestqError, ValueError):
    """Here a WebSocket is spoken, and the request does not ask for one."""

    code = "upgrade_required"
    status = 426
    builtin = ValueError


# 5xx: not the caller's fault; worth trying again.
class Overloaded(RestqError, ConnectionError):
    """More is waiting than restq holds in memory. Nothing was done; try again after `Retry-After`."""

    code = "overloaded"
    status = 503
    builtin = ConnectionError


# A stream that ends with this reason says so of all that has no reply: a promise, after which it may be sent again.
UNANSWERED_IS_UNDONE = "what has no reply was not done"


class ShardUnavailable(RestqError, ConnectionError):
    """The realm's shard went away. Whether the request was done is not known."""

    code = "shard_unavailable"
    status = 503
    builtin = ConnectionError


class ShardStarting(ShardUnavailable):
    """The realm's shard, or the one it is to move to, does not run now. Nothing was done; try again."""

    code = "shard_starting"


class StorageFull(RestqError, OSError):
    """The disk has no room for it. Nothing was done, unless the message says so."""

    code = "storage_full"
    status = 507
    builtin = OSError


class RowDamaged(RestqError, OSError):
    """What the file holds of this is not what was written, or is missing. All else in it is served on."""

    code = "row_damaged"
    status = 500
    builtin = OSError


# What only a client sees.
class ServerUnreachable(RestqError, ConnectionError):
    """No restq server answered at the address."""

    code = "server_unreachable"
    status = 503
    builtin = ConnectionError


class StreamUnopened(ServerUnreachable):
    """The way to a stream failed before anything could be asked over it. Nothing was done; try again."""

    code = "stream_unopened"


def _by_code(root: type[RestqError]) -> dict[str, type[RestqError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_by_code(child))
    return found


_CODES = _by_code(RestqError)
_CODES[InternalError.code] = InternalError


def from_reply(status: int, reply: Any) -> Exception:
    """The exception that an error reply stands for: by its code, else by its builtin's name, else RestqError.

    `reply` is the decoded body, of any shape: a proxy on the way may have answered instead of restq.
    """
    if not isinstance(reply, dict):
        return RestqError(f"the server answered with status {status}")
    message = str(reply.get("message") or f"the server answered with status {status}")
    known = _CODES.get(str(reply.get("code")))
    if known is not None:
        return known(message, reply.get("field"))
    named = getattr(builtins, str(reply.get("exception")), None)
    if isinstance(named, type) and issubclass(named, Exception):
        return named(message)
    return RestqError(message)
