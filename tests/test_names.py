"""The rules for the names of realms, queues, tags and jobs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from restq import names
from restq.errors import (
    FieldTypeWrong,
    JobIdInvalid,
    QueueIdInvalid,
    RealmNameInvalid,
    RestqError,
    TagInvalid,
)


def refused(rule: Callable[[Any, str], Any], value: Any) -> RestqError:
    """The error, which must name the field in one line that is not too long to read."""
    with pytest.raises(RestqError) as caught:
        rule(value, "some.field")
    error = caught.value
    assert error.field == "some.field"
    assert error.message.startswith("some.field: ")
    assert error.message.isprintable()
    assert len(error.message) < 250
    return error


@pytest.mark.parametrize(
    "name",
    ["a", "default", "with space", " ", "_x", "0", "2013-01.log", "größe", "東京", "a" * 128, "é" * 128, "Job", "a."],
)
def test_realm_name_of_good_form_is_itself(name: str) -> None:
    assert names.realm_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "a" * 129, "-a", ".a", "..", "a/b", "a?b", "a%2f", "a\nb", "a\n", "a\0", "a,b", "😀", "\ud800", "a:b", "*"],
)
def test_realm_name_of_bad_form_is_refused(name: str) -> None:
    assert isinstance(refused(names.realm_name, name), RealmNameInvalid)


@pytest.mark.parametrize("name", sorted(names.RESERVED))
def test_realm_name_that_is_reserved_is_refused(name: str) -> None:
    error = refused(names.realm_name, name)
    assert isinstance(error, RealmNameInvalid)
    assert "reserved" in error.message


@pytest.mark.parametrize("name", [None, 1, 1.5, True, [], {}, b"a"])
def test_realm_name_of_other_type_is_refused(name: Any) -> None:
    assert isinstance(refused(names.realm_name, name), FieldTypeWrong)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, 0),
        ("0", 0),
        ("10", 10),
        ("-7", -7),
        ("007", 7),
        ("-0", 0),
        (2**63 - 1, 2**63 - 1),
        (str(-(2**63)), -(2**63)),
        ("a", "a"),
        ("1.0", "1.0"),
        ("+1", "+1"),
        ("1a", "1a"),
        ("0x10", "0x10"),
        (" 1", " 1"),
        ("١", "١"),  # a digit elsewhere, but no decimal integer of JSON
        ("a/b?c", "a/b?c"),
        ("é" * 256, "é" * 256),
    ],
)
def test_queue_id_of_good_form_is_integer_where_it_reads_as_one(given: Any, expected: Any) -> None:
    assert names.queue_id(given) == expected
    assert type(names.queue_id(given)) is type(expected)


@pytest.mark.parametrize(
    "value", ["", "a" * 513, "é" * 257, "a\nb", "1\n", "\0", "\x7f", "\x85", "\ud800", 2**63, -(2**63) - 1, "9" * 40]
)
def test_queue_id_of_bad_form_is_refused(value: Any) -> None:
    assert isinstance(refused(names.queue_id, value), QueueIdInvalid)


@pytest.mark.parametrize("value", [None, True, False, 1.0, [], {}, b"a"])
def test_queue_id_of_other_type_is_refused(value: Any) -> None:
    assert isinstance(refused(names.queue_id, value), FieldTypeWrong)


def test_queue_order_puts_integers_by_value_before_strings_by_code_point() -> None:
    expected = [-(2**63), -1, 0, 2, 10, 2**63 - 1, "", "+1", "A", "Z", "a", "aa", "é", "東", "😀"]
    mixed = random.Random(3).sample(expected, len(expected))
    assert sorted(mixed, key=names.queue_order) == expected


@pytest.mark.parametrize("value", ["a", "with space", "a/b,c", "é", "😀", "0", "a" * 512, "é" * 256])
def test_tag_of_good_form_is_itself(value: str) -> None:
    assert names.tag(value) == value


@pytest.mark.parametrize("value", ["", "a" * 513, "é" * 257, "a\nb", "\0", "\x1f", "\x9f", "\ud800"])
def test_tag_of_bad_form_is_refused(value: str) -> None:
    assert isinstance(refused(names.tag, value), TagInvalid)


@pytest.mark.parametrize("value", [None, 1, True, ["a"], {}])
def test_tag_of_other_type_is_refused(value: Any) -> None:
    assert isinstance(refused(names.tag, value), FieldTypeWrong)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", "a"),
        ("ls -lah\n\t/", "ls -lah\n\t/"),
        ("é😀", "é😀"),
        (" ", " "),
        ("a" * 8192, "a" * 8192),
        ("é" * 4096, "é" * 4096),
        (2, "2"),
        (-1, "-1"),
        (1.5, "1.5"),
        (1.0, "1.0"),
        (1e300, "1e+300"),
        (2**64 - 1, str(2**64 - 1)),
    ],
)
def test_job_id_of_good_form_is_the_text_that_json_writes(given: Any, expected: str) -> None:
    assert names.job_id(given) == expected


@pytest.mark.parametrize("value", ["", "a" * 8193, "é" * 4097, "a\0", "é\0", "\ud800", "a\udfffb"])
def test_job_id_of_bad_form_is_refused(value: str) -> None:
    assert isinstance(refused(names.job_id, value), JobIdInvalid)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 2**70])
def test_job_id_that_is_integer_beyond_64_bits_is_refused(value: int) -> None:
    assert isinstance(refused(names.job_id, value), JobIdInvalid)


@pytest.mark.parametrize("value", [None, True, False, [], {}, b"a"])
def test_job_id_of_other_type_is_refused(value: Any) -> None:
    assert isinstance(refused(names.job_id, value), FieldTypeWrong)


@pytest.mark.parametrize("rule", [names.realm_name, names.queue_id, names.tag])
def test_refusal_of_long_name_shows_its_beginning_only(rule: Callable[[Any, str], Any]) -> None:
    refused(rule, "x\n" * 5000)
