"""The frames between front ends and shards."""

from __future__ import annotations

from typing import Any

import pytest

from restq.protocol import Frames, Reply, Request, pack

RECORDS: list[Request | Reply] = [
    Request(1, "add_job", "größe", ["a\0b", None, 10, -(2**63), 2**64 - 1, 1.5, ["x", 0]], b'{"queue_id":0}', []),
    Request(2, "pull", "", [], b"", ["key", "0f" * 16]),
    Reply(1, 200, b"{}"),
    Reply(2**40, 507, b"\xff\x00" * 40, 2**50),
    Request(3, "arrive_rows", "", ["r", [[[1, 2, "j", "[]", "é"], b"\x00" * 300]]], b"x" * 70_000, []),
]
STREAM = b"".join(pack(record) for record in RECORDS)


def plain(record: Request | Reply) -> list[Any]:
    return list(record)


def test_feed_of_whole_stream_gives_every_record_in_order() -> None:
    assert list(Frames().feed(STREAM)) == [plain(record) for record in RECORDS]


def test_feed_of_stream_split_at_any_byte_gives_every_record_once() -> None:
    short = b"".join(pack(record) for record in RECORDS[:4])
    for split in range(len(short) + 1):
        frames = Frames()
        found = [*frames.feed(short[:split]), *frames.feed(short[split:])]
        assert found == [plain(record) for record in RECORDS[:4]]


def test_feed_of_stream_byte_by_byte_gives_each_record_with_its_last_byte() -> None:
    frames = Frames()
    ends = []
    end = 0
    for record in RECORDS[:4]:
        end += len(pack(record))
        ends.append(end)
    for position in range(1, end + 1):
        found = list(frames.feed(STREAM[position - 1 : position]))
        assert len(found) == (position in ends)


def test_feed_of_nothing_gives_nothing() -> None:
    assert list(Frames().feed(b"")) == []


def test_feed_that_is_read_late_loses_no_record() -> None:
    frames = Frames()
    first = frames.feed(pack(RECORDS[0]) + pack(RECORDS[1])[:5])
    assert [record[0] for record in first] == [1]
    assert [record[0] for record in frames.feed(pack(RECORDS[1])[5:])] == [2]


@pytest.mark.parametrize("record", RECORDS)
def test_pack_of_record_is_read_back_as_the_same_record(record: Request | Reply) -> None:
    (fields,) = Frames().feed(pack(record))
    assert type(record)(*fields) == record


def test_pack_of_reply_without_extra_says_zero() -> None:
    (fields,) = Frames().feed(pack(Reply(7, 404, b"{}")))
    assert Reply(*fields).extra == 0


def test_pack_of_request_without_key_says_none() -> None:
    (fields,) = Frames().feed(pack(Request(7, "get_status", "r", [], b"")))
    assert Request(*fields).once == []


def test_two_streams_at_once_do_not_mix() -> None:
    one, other = Frames(), Frames()
    frame = pack(RECORDS[0])
    assert list(one.feed(frame[:10])) == []
    assert list(other.feed(frame)) == [plain(RECORDS[0])]
    assert list(one.feed(frame[10:])) == [plain(RECORDS[0])]
