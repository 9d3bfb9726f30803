"""What a msgpack body may hold: it takes memory in proportion, and a bulk body as large as they come passes."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgpack
import pytest

from restq.bodies import COUNT_MAX
from restq.errors import BodyMalformed
from restq.web.encodings import MSGPACK_TYPE, VALUES_MAX, json_of

BYTES_MAX = 300 << 20  # a million arrays, and those around them; all eight would take 570 MiB and more
MANY_EMPTY = b"\xdd" + (1 << 20).to_bytes(4, "big") + b"\x90" * (1 << 20)

BODIES = {
    "one array of empty ones": b"\xdd" + (8 << 20).to_bytes(4, "big") + b"\x90" * (8 << 20),
    "arrays of empty ones": b"\x98" + MANY_EMPTY * 8,
    "maps of one field": b"\x98" + (MANY_EMPTY[:5] + b"\x81\xa0\xc0" * (1 << 20)) * 8,
    "an array of arrays, each in the one before": (MANY_EMPTY[:5] + b"\x90" * ((1 << 20) - 1)) * 8 + b"\xc0",
}


@pytest.mark.parametrize("kind", BODIES)
def test_read_body_that_would_take_many_times_its_size_stops_early(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BodyMalformed, match=r"more than 2,000,000 arrays, maps and values|exceeds max_array_len"):
            json_of(BODIES[kind], MSGPACK_TYPE)
        assert tracemalloc.get_traced_memory()[1] < BYTES_MAX
    finally:
        tracemalloc.stop()


def test_read_body_of_as_many_jobs_as_there_may_be_gives_them_all() -> None:
    job: dict[str, Any] = {"job_id": "j", "queue_id": 0, "data": {"a": 1, "b": [1, 2]}, "tags": ["t"], "after": ["u"]}
    body = {"jobs": [job] * COUNT_MAX}
    assert json.loads(json_of(msgpack.packb(body), MSGPACK_TYPE)) == body


def test_read_large_body_counts_each_array_and_what_is_in_it() -> None:
    pairs = (VALUES_MAX - 1) // 4  # two values, their array, and that as a value of the one around it
    assert json_of(msgpack.packb([[1, 2]] * pairs), MSGPACK_TYPE)
    with pytest.raises(BodyMalformed, match="more than 2,000,000"):
        json_of(msgpack.packb([[1, 2]] * (pairs + 1)), MSGPACK_TYPE)
