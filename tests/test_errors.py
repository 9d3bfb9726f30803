"""The error tree: every class has a code, a status and a builtin of its own kind, and comes back out of its reply."""

from __future__ import annotations

import builtins
import pickle
from collections.abc import Iterator

import pytest

from restq import errors


def classes(root: type[errors.RestqError] = errors.RestqError) -> Iterator[type[errors.RestqError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from classes(child)


each_class = pytest.mark.parametrize("kind", list(classes()), ids=lambda kind: kind.__name__)


@each_class
def test_make_error_gives_the_builtin_that_old_clients_catch(kind: type[errors.RestqError]) -> None:
    assert getattr(builtins, kind.builtin.__name__) is kind.builtin
    assert issubclass(kind, kind.builtin) or kind is errors.RestqError
    assert kind.__doc__


def test_look_at_codes_finds_each_of_one_class_alone() -> None:
    codes = [kind.code for kind in classes() if kind is not errors.InternalError]
    assert len(codes) == len(set(codes))


@each_class
def test_read_reply_of_error_raises_its_class_again(kind: type[errors.RestqError]) -> None:
    error = kind("a sentence", "field") if kind is not errors.MethodNotAllowed else kind("a sentence")
    again = errors.from_reply(kind.status, error.to_reply())
    expected = errors.InternalError if kind is errors.RestqError else kind
    assert type(again) is expected
    assert str(again) == "a sentence"
    assert type(pickle.loads(pickle.dumps(error))) is kind


@pytest.mark.parametrize(
    ("kind", "code", "status", "builtin"),
    [
        (errors.LeaseStale, "lease_stale", 409, ValueError),
        (errors.JobExists, "job_exists", 409, ValueError),
        (errors.IdempotencyKeyReused, "idempotency_key_reused", 422, ValueError),
        (errors.QueueFull, "queue_full", 429, ConnectionError),
    ],
)
def test_write_error_says_code_status_and_builtin(
    kind: type[errors.RestqError], code: str, status: int, builtin: type[Exception]
) -> None:
    assert kind("a sentence", "leases").to_reply() == {
        "error": status,
        "exception": builtin.__name__,
        "message": "a sentence",
        "code": code,
        "field": "leases",
    }


@pytest.mark.parametrize("reply", [None, [], "x", {}, {"code": "unheard_of"}, {"exception": "NoSuchError"}])
def test_read_reply_of_something_else_raises_restq_error_with_the_status(reply: object) -> None:
    error = errors.from_reply(418, reply)
    assert type(error) is errors.RestqError
    assert str(error) == "the server answered with status 418"


def test_read_reply_with_builtin_alone_raises_that() -> None:
    assert type(errors.from_reply(500, {"exception": "KeyError", "message": "x"})) is KeyError
    assert type(errors.from_reply(500, {"exception": "exit", "message": "x"})) is errors.RestqError
