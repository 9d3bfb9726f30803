"""A job's data: when two texts say the same, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restq.bodies import DEPTH_MAX
from restq.errors import BodyMalformed
from restq.shards.data import INLINE_BYTES_MAX, Large, check, large, same

SAME = [
    (b'{"a":1,"b":2}', b'{"b":2,"a":1}'),
    (b'{"a":{"c":1,"d":[1,2]}}', b' { "a" : { "d" : [ 1 , 2 ] , "c" : 1 } } \n'),
    (b"1", b"1.0"),
    (b"1", b"1e0"),
    (b"100", b"1E+2"),
    (b"-5", b"-5.0"),
    (b"0", b"-0.0"),
    (b"0", b"-0"),
    (b"0.1", b"1e-1"),
    (b"1e22", b"10000000000000000000000.0"),
    (b"1.5e300", b"15E+299"),
    (b"9007199254740992", b"9007199254740992.0"),
    (b"[1, 2.50]", b"[1.0,2.5]"),
    (b'"a"', b'"\\u0061"'),
    ('"é€😀"'.encode(), b'"\\u00e9\\u20ac\\ud83d\\ude00"'),
    (b'"\\/"', b'"/"'),
    (b'{"\\u0061":null}', b'{"a": null}'),
    (b"[]", b"[ ]"),
]
DIFFERENT = [
    (b"1", b"true"),
    (b"0", b"false"),
    (b"1.0", b"true"),
    (b"1", b'"1"'),
    (b"1", b"2"),
    (b"1", b"1.0000001"),
    (b"0.1", b"0.2"),
    (b"[1,2]", b"[2,1]"),
    (b"[]", b"{}"),
    (b"[[]]", b"[]"),
    (b"{}", b'{"a":null}'),
    (b'{"a":1}', b'{"A":1}'),
    (b'{"a":1}', b'{"a":true}'),
    (b'"a"', b'"a "'),
    ('"é"'.encode(), '"e\u0301"'.encode()),  # what looks the same to a reader is other characters
    (b"9007199254740993", b"9007199254740992"),
    (b"18446744073709551615", b"18446744073709551614"),
    (b"false", b"null"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_same_of_one_value_written_in_two_ways_is_true(one: bytes, other: bytes) -> None:
    assert same(one, other)
    assert same(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_same_of_two_values_is_false(one: bytes, other: bytes) -> None:
    assert not same(one, other)
    assert not same(other, one)


@pytest.mark.parametrize("text", [b"0", b"false", b'""', b"[]", b"{}"])
def test_same_of_no_data_and_some_data_is_false(text: bytes) -> None:
    assert not same(None, text)


def test_same_of_large_data_compares_values() -> None:
    value = {"b": ["x" * INLINE_BYTES_MAX, 1, "é"], "a": 2}
    kept = large(json.dumps(value).encode())
    assert same(kept, json.dumps(value, indent=3, ensure_ascii=False, sort_keys=True).encode())
    assert same(kept, json.dumps({"a": 2.0, "b": ["x" * INLINE_BYTES_MAX, 1.0, "é"]}).encode())
    assert not same(kept, json.dumps({**value, "a": 3}).encode())
    assert not same(kept, json.dumps({**value, "a": True}).encode())


def test_same_of_small_data_and_same_value_blown_up_by_white_space_is_true() -> None:
    blown_up = b'{"a":' + b" " * INLINE_BYTES_MAX + b"1}"
    assert same(b'{"a":1}', blown_up)
    assert same(large(blown_up), b'{"a":1}')


def test_large_of_text_knows_its_size_in_bytes() -> None:
    text = json.dumps("é" * 5000, ensure_ascii=False).encode()
    kept = large(text)
    assert isinstance(kept, Large)
    assert kept.size == len(text) == 10_002


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


def shuffled(value: Any) -> Any:
    """The same value, every object's keys in the opposite order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(json_values)
def test_same_of_any_value_written_otherwise_is_true(value: Any) -> None:
    plain = json.dumps(value).encode()
    otherwise = json.dumps(shuffled(value), indent=1, ensure_ascii=False).encode()
    check(plain, "data")
    check(otherwise, "data")
    assert same(plain, otherwise)
    assert same(large(plain), otherwise)


def meaning(value: Any) -> Any:
    """What can be compared: `true` apart from 1, 1 and 1.0 as one."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list):
        return [meaning(item) for item in value]
    return {key: meaning(item) for key, item in value.items()} if isinstance(value, dict) else value


small_values = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, 0.0, -0.0, 2, "", "1", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)


@given(small_values, small_values)
def test_same_of_any_two_values_says_whether_they_are_equal(one: Any, other: Any) -> None:
    expected = meaning(one) == meaning(other)
    texts = json.dumps(one).encode(), json.dumps(other).encode()
    assert same(*texts) == expected
    assert same(large(texts[0]), texts[1]) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"9223372036854775807",
        b"-9223372036854775808",
        b'{"a":[18446744073709551615]}',
        b"1.7976931348623157e308",
        b"1e300",
        b'"\\ud83d\\ude00"',
        '{"\U0001f600": "\x7f"}'.encode(),
        b'"\\u0000"',
        b"false",
        b'""',
        b"[" * DEPTH_MAX + b"]" * DEPTH_MAX,
        b'{"a":' * DEPTH_MAX + b"1" + b"}" * DEPTH_MAX,
        json.dumps([[]] * 1000).encode(),
        json.dumps("[{" * 1000).encode(),
    ],
)
def test_check_of_what_json_can_say_is_fine(text: bytes) -> None:
    check(text, "data")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"18446744073709551616", "64 bits"),
        (b"-9223372036854775809", "64 bits"),
        (b'{"a":[18446744073709551616]}', "64 bits"),
        (b"1" * 5000, "out of range"),
        (b'{"a":' + b"1" * 5000 + b"}", "out of range"),
        (b"1e999", "out of range"),
        (b"[-1e999]", "out of range"),
        (b"[" * 65 + b"]" * 65, "deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64"),
        (b'[{"a":' * 33 + b"1" + b"}]" * 33, "deeper than 64"),
        (b"[" * 300_000 + b"]" * 300_000, "deeper than 64"),
        (b'"\\ud800"', "no character"),
        (b'["\\udc00\\ud800"]', "no character"),
        (b'{"\\ud800":1}', "no character"),
        (b'"\xff"', "no character"),
        (b'["\xed\xa0\x80"]', "no character"),
        (b'"\xc0\x80"', "no character"),
        (b'{"\xff":1}', "no character"),
        (b"NaN", "not valid JSON"),
        (b"[Infinity]", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'"\x01"', "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_check_of_what_restq_does_not_carry_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(BodyMalformed) as caught:
        check(text, "data")
    assert caught.value.field == "data"
    assert caught.value.message.startswith("data: ")
    assert why.lower() in caught.value.message.lower()
