"""Checksums of rows: each row of the database carries one, so that a bit that flips is found and not believed.

It is the CRC-32 of the row's values, as msgpack in the order of the columns. SQLite itself has none: it notices what
breaks the shape of a page, and believes what stands in it. That a row is missing is for its `integrity_check` to find.

The values are those that are read back: what stands in a REAL column is a float, however it was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from operator import add, itemgetter
from typing import Any
from zlib import crc32

import msgspec

Row = tuple[Any, ...]

# By table, what stands in REAL columns.
_REALS = {"realms": (2,), "queues": (3, 5), "tags": (4,), "failures": (4,), "results": (3,), "replies": (4,)}
_PLACE_REALS = (3, 4)
_WHOLE_MAX = 2**53
_UPPER = 0x7FFFFFFF  # SQLite's integers have a sign

_encode = msgspec.msgpack.Encoder().encode
# Of a place with its job, as they are loaded: the columns of the place, those of the job, both, and the checksums.
_place_of = itemgetter(0, 9, 1, 2, 3, 4, 5, 6, 7, 8)
_job_of = itemgetter(slice(9, 17))
_both_of = itemgetter(slice(0, 17))
_place_sum_of, _job_sum_of = itemgetter(17), itemgetter(18)


def checksum(row: Sequence[Any]) -> int:
    """Of the values of a row."""
    return crc32(_encode(tuple(row)))


def with_checksums(table: str, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows as they are kept. Those of jobs and places come in millions, and no step here is one of Python's own."""
    if table == "payloads":
        return ((key, data, payload_checksum(key, data)) for key, data in rows)
    if table == "replies":
        return ((*row, _reply_checksum(row)) for row in rows)
    if table in _REALS:
        return ((*row, checksum(_read_back(row, _REALS[table]))) for row in rows)
    rows = list(rows)
    return map(add, rows, zip(map(crc32, map(_encode, rows)), strict=False))


def fits(table: str, row: Sequence[Any], found: int) -> bool:
    """Whether a row, as it is read, is what was written with this checksum. Its values may be of any type by now."""
    try:
        if table == "replies":
            return reply_fits((*row[:5], len(row[5])), row[5], found)
        if table == "payloads":
            return payload_checksum(row[0], row[1]) == found
        if table == "places":
            return _place_fits(tuple(row), found)
        return checksum(row) == found
    except TypeError:
        return False


def _read_back(row: Row, reals: Iterable[int]) -> list[Any]:
    values = list(row)
    for place in reals:
        values[place] = float(values[place])
    return values


def payload_checksum(key: int, data: bytes) -> int:
    """Of large data, which may be many MiB."""
    return crc32(data, crc32(_encode(key)))


def _reply_checksum(row: Row) -> int:
    """The upper half is over all but the body, of which it has the length; the lower half is over the body."""
    note = (*row[:4], float(row[4]), len(row[5]))
    return (checksum(note) & _UPPER) << 32 | crc32(row[5])


def reply_fits(note: Sequence[Any], body: bytes | None, found: int) -> bool:
    """Whether a reply, of which nobody need have read the body, is what was written with this checksum."""
    if not isinstance(found, int) or (body is not None and crc32(body) != found & 0xFFFFFFFF):
        return False
    return checksum(note) & _UPPER == found >> 32


def split_places(batch: list[Row], checked_from: int) -> tuple[list[Row], tuple[str, int] | None]:
    """Places with their jobs, without the two checksums of each; and the first row that does not fit its own.

    That row is told by its table and key. Rows below `checked_from` may have none.
    """
    rows = list(map(_both_of, batch))
    places, jobs = map(crc32, map(_encode, map(_place_of, rows))), map(crc32, map(_encode, map(_job_of, rows)))
    try:
        # All at once; one by one only if that fails, or where there are rows without.
        if sum(places) + sum(jobs) == sum(map(_place_sum_of, batch)) + sum(map(_job_sum_of, batch)):
            return rows, None
    except TypeError:
        pass
    return rows, next((odd for row in batch if (odd := _odd(row, checked_from)) is not None), None)


def _odd(row: Row, checked_from: int) -> tuple[str, int] | None:
    job_sum, place_sum = row[18], row[17]
    if row[9] < checked_from if job_sum is None else checksum(_job_of(row)) == job_sum:
        if row[0] < checked_from if place_sum is None else _place_fits(_place_of(row), place_sum):
            return None
        return "places", row[0]
    return "jobs", row[9]


def _place_fits(place: Row, found: int) -> bool:
    # Whoever put a whole number of seconds may not have put a float.
    whole = [index for index in _PLACE_REALS if isinstance(place[index], float) and place[index] % 1 == 0]
    whole = [index for index in whole if abs(place[index]) < _WHOLE_MAX]
    for count in range(len(whole) + 1):
        for chosen in combinations(whole, count):
            if checksum([int(value) if index in chosen else value for index, value in enumerate(place)]) == found:
                return True
    return False
