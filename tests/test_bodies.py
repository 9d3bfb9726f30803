"""What a wrong body is told: the class of the error, the field, and a sentence that names both."""

from __future__ import annotations

from typing import Any

import pytest

from restq import bodies
from restq.errors import (
    BodyMalformed,
    FieldInvalid,
    FieldMissing,
    FieldTypeWrong,
    JobIdInvalid,
    QueueIdInvalid,
    RestqError,
    TagInvalid,
)
from restq.shards.new_jobs import new_job, new_jobs

BIG = b"1" * 5000


def refusal(shape: type[Any], body: bytes) -> RestqError:
    with pytest.raises(RestqError) as caught:
        bodies.reader(shape)(body)
    error = caught.value
    assert error.message.isprintable()
    assert "\n" not in error.message
    if error.field is not None:
        assert error.message.startswith(f"{error.field}: ")
    return error


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "empty"),
        (b"{", "line 1 column 2"),
        (b'{"queue_id":1,}', "not valid JSON"),
        (b'{"queue_id":1} {}', "Extra data"),
        (b'{"queue_id":01}', "not valid JSON"),
        (b"{'queue_id':1}", "not valid JSON"),
        (b"queue_id=1", "not valid JSON"),
        (b'{"queue_id":1,"data":NaN}', "NaN is no JSON value"),
        (b'{"queue_id":1,"data":[-Infinity]}', "-Infinity is no JSON value"),
        (b'{"queue_id":"\\ud800"}', "lone surrogate"),
        (b'{"queue_id":1,"data":"\\ud800"}', "lone surrogate"),
        (b'{"queue_id":1,"tags":["\\udc00"]}', "lone surrogate"),
        (b"\xff\xfe{", "UTF-8 at byte 0"),
        (b'{"queue_id":1,"tags":["\xff"]}', "UTF-8 at byte 23"),
        (b'{"queue_id":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper than 64"),
        (b'\xef\xbb\xbf{"queue_id":1}', "BOM"),
    ],
)
def test_reading_what_is_not_json_says_why(body: bytes, why: str) -> None:
    error = refusal(bodies.JobBody, body)
    assert type(error) is BodyMalformed
    assert error.status == 400
    assert why in error.message


@pytest.mark.parametrize(
    ("shape", "body", "field"),
    [
        (bodies.JobBody, b"{}", "queue_id"),
        (bodies.JobBody, b'{"data":1,"tags":[]}', "queue_id"),
        (bodies.BulkAdd, b"{}", "jobs"),
        (bodies.BulkAdd, b'{"jobs":[{"job_id":1,"queue_id":0},{"job_id":1}]}', "jobs[1].queue_id"),
        (bodies.BulkAdd, b'{"jobs":[{"queue_id":0}]}', "jobs[0].job_id"),
        (bodies.BulkRemove, b"{}", "jobs"),
        (bodies.BulkRemovePairs, b"{}", "jobs"),
        (bodies.Move, b'{"from_queue":1}', "to_queue"),
        (bodies.Pin, b"{}", "shard"),
    ],
)
def test_reading_body_without_required_field_names_it(shape: type[Any], body: bytes, field: str) -> None:
    error = refusal(shape, body)
    assert type(error) is FieldMissing
    assert isinstance(error, KeyError)
    assert error.field == field
    assert "required" in error.message


@pytest.mark.parametrize(
    ("shape", "body", "field", "why"),
    [
        (bodies.JobBody, b"[1]", None, "must be an object, not an array"),
        (bodies.JobBody, b"null", None, "not null"),
        (bodies.JobBody, b'"x"', None, "not a string"),
        (bodies.JobBody, b'{"queue_id":null}', "queue_id", "not null"),
        (bodies.JobBody, b'{"queue_id":1.5}', "queue_id", "not a number"),
        (bodies.JobBody, b'{"queue_id":true}', "queue_id", "not a boolean"),
        (bodies.JobBody, b'{"queue_id":[1]}', "queue_id", "not an array"),
        (bodies.JobBody, b'{"queue_id":0,"tags":"x"}', "tags", "not a string"),
        (bodies.JobBody, b'{"queue_id":0,"tags":["a",1]}', "tags[1]", "not an integer"),
        (bodies.JobBody, b'{"queue_id":0,"tags":{}}', "tags", "not an object"),
        (bodies.BulkAdd, b'{"jobs":1}', "jobs", "not an integer"),
        (bodies.BulkAdd, b'{"jobs":[1]}', "jobs[0]", "not an integer"),
        (bodies.BulkAdd, b'{"jobs":[{"job_id":null,"queue_id":0}]}', "jobs[0].job_id", "not null"),
        (bodies.BulkAdd, b'{"jobs":[{"job_id":true,"queue_id":0}]}', "jobs[0].job_id", "not a boolean"),
        (bodies.BulkRemove, b'{"jobs":["a",[]]}', "jobs[1]", "array of 2 values"),
        (bodies.BulkRemove, b'{"jobs":"a"}', "jobs", "not a string"),
        (bodies.BulkRemovePairs, b'{"jobs":[["a"]]}', "jobs[0]", "array of 2 values"),
        (bodies.BulkRemovePairs, b'{"jobs":[["a",1],[1,1]]}', "jobs[1][0]", "not an integer"),
        (bodies.Config, b'{"default_lease_time":"1"}', "default_lease_time", "not a string"),
        (bodies.Config, b'{"queue_lease_time":[1]}', "queue_lease_time", "array of 2 values"),
        (bodies.Config, b'{"queue_lease_time":[1,null]}', "queue_lease_time[1]", "not null"),
        (bodies.Pull, b'{"count":"1"}', "count", "not a string"),
        (bodies.Pull, b'{"count":1.5}', "count", "not a number"),
        (bodies.Move, b'{"from_queue":1,"to_queue":[]}', "to_queue", "not an array"),
    ],
)
def test_reading_field_of_wrong_type_names_it(shape: type[Any], body: bytes, field: str | None, why: str) -> None:
    error = refusal(shape, body)
    assert type(error) is FieldTypeWrong
    assert isinstance(error, TypeError)
    assert error.field == field
    assert why in error.message


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        (bodies.Pull, b'{"cuont":5}'),
        (bodies.Move, b'{"from_queue":0,"to_queue":1,"cuont":5}'),
        (bodies.Pin, b'{"shard":0,"cuont":5}'),
    ],
)
def test_reading_unknown_field_of_new_body_is_refused(shape: type[Any], body: bytes) -> None:
    error = refusal(shape, body)
    assert type(error) is FieldInvalid
    assert error.field == "cuont"


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        (bodies.JobBody, b'{"queue_id":0,"cuont":5}'),
        (bodies.BulkAdd, b'{"jobs":[{"queue_id":0,"job_id":1,"cuont":5}],"x":1}'),
        (bodies.BulkRemove, b'{"jobs":[],"x":1}'),
        (bodies.Config, b'{"x":1}'),
    ],
)
def test_reading_unknown_field_of_body_of_2013_ignores_it(shape: type[Any], body: bytes) -> None:
    bodies.reader(shape)(body)


def test_reading_jobs_in_object_gives_its_values_in_order() -> None:
    job = b'{"job_id":"%d","queue_id":0}'
    body = bodies.reader(bodies.BulkAdd)(b'{"jobs":{"x":' + job % 2 + b',"y":' + job % 1 + b"}}")
    assert [job.job_id for job in bodies.bulk_jobs(body)] == ["2", "1"]


@pytest.mark.parametrize(("given", "expected"), [(None, 1), (0, 0), (7, 7), ("7", 7), ("0", 0), (100_000, 100_000)])
def test_count_within_limits_is_that_number(given: Any, expected: int) -> None:
    assert bodies.count(given) == expected


@pytest.mark.parametrize("given", ["", "x", "1.5", "١x", -1, "-1", 100_001, "9" * 5000, "1e3", "\ud800"])
def test_count_out_of_limits_is_refused(given: Any) -> None:
    with pytest.raises(FieldInvalid) as caught:
        bodies.count(given)
    assert caught.value.field == "count"
    assert len(caught.value.message) < 6000
    caught.value.message.encode()


def test_shard_that_is_not_there_is_refused() -> None:
    assert bodies.shard(b'{"shard":1}', 2) == 1
    for number in (b"2", b"-1"):
        with pytest.raises(FieldInvalid, match="shards 0 to 1"):
            bodies.shard(b'{"shard":' + number + b"}", 2)


def jobs_of(body: bytes) -> list[Any]:
    return new_jobs(bodies.bulk_jobs(bodies.reader(bodies.BulkAdd)(body)))


def test_new_jobs_of_good_body_are_checked_and_sorted() -> None:
    body = (
        b'{"jobs":[{"job_id":2,"queue_id":"10","tags":["b","a","b"],"data": {"x" : 1} },{"job_id":"x","queue_id":"q"}]}'
    )
    assert jobs_of(body) == [("2", 10, b'{"x" : 1}', ("a", "b")), ("x", "q", None, ())]


@pytest.mark.parametrize("data", [b"null", b"  null "])
def test_new_job_with_null_says_nothing_about_data(data: bytes) -> None:
    body = bodies.reader(bodies.JobBody)(b'{"queue_id":0,"data":' + data + b"}")
    assert new_job("a", body) == ("a", 0, None, ())


@pytest.mark.parametrize(
    ("wrong", "error", "field"),
    [
        (b'{"job_id":"","queue_id":0}', JobIdInvalid, "jobs[1].job_id"),
        (b'{"job_id":"a\\u0000","queue_id":0}', JobIdInvalid, "jobs[1].job_id"),
        (b'{"job_id":"a","queue_id":""}', QueueIdInvalid, "jobs[1].queue_id"),
        (b'{"job_id":"a","queue_id":9223372036854775808}', QueueIdInvalid, "jobs[1].queue_id"),
        (b'{"job_id":"a","queue_id":0,"tags":["ok",""]}', TagInvalid, "jobs[1].tags"),
        (b'{"job_id":"a","queue_id":0,"data":18446744073709551616}', BodyMalformed, "jobs[1].data"),
        (b'{"job_id":"a","queue_id":0,"data":1e999}', BodyMalformed, "jobs[1].data"),
        (b'{"job_id":"a","queue_id":0,"data":' + b"[" * 65 + b"]" * 65 + b"}", BodyMalformed, "jobs[1].data"),
        (b'{"job_id":"a","queue_id":0,"data":"\xff"}', BodyMalformed, "jobs[1].data"),
    ],
)
def test_new_jobs_with_bad_one_are_refused_with_its_index(wrong: bytes, error: type[RestqError], field: str) -> None:
    body = b'{"jobs":[{"job_id":"fine","queue_id":0},' + wrong + b',{"job_id":"","queue_id":0}]}'
    with pytest.raises(error) as caught:
        jobs_of(body)
    assert caught.value.field == field
    assert caught.value.message.startswith(f"{field}: ")


def test_new_jobs_with_indexes_name_the_bad_one_by_them() -> None:
    read = bodies.reader(bodies.BulkAdd)(b'{"jobs":[{"job_id":"a","queue_id":0},{"job_id":"","queue_id":0}]}')
    with pytest.raises(JobIdInvalid) as caught:
        new_jobs(bodies.bulk_jobs(read), [4, 9])
    assert caught.value.field == "jobs[9].job_id"


def test_new_jobs_over_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "COUNT_MAX", 2)
    job = b'{"job_id":"a","queue_id":0}'
    assert len(jobs_of(b'{"jobs":[' + b",".join([job] * 2) + b"]}")) == 2
    with pytest.raises(FieldInvalid, match="more than the 2"):
        jobs_of(b'{"jobs":[' + b",".join([job] * 3) + b"]}")


def test_job_ids_with_bad_one_name_its_index() -> None:
    assert bodies.job_ids(["a", 2, ("here", 3)], "here") == ["a", "2", "3"]
    for wrong in ("", ("here", "")):
        with pytest.raises(JobIdInvalid) as caught:
            bodies.job_ids(["a", wrong], "here")
        assert caught.value.field == "jobs[1]"


def test_job_ids_of_another_realm_are_refused() -> None:
    with pytest.raises(FieldInvalid, match=r"jobs\[1\]: is in realm 'there', not in 'here'"):
        bodies.job_ids([("here", 1), ("there", 1)], "here")


@pytest.mark.parametrize(
    ("shape", "body", "field"),
    [
        (bodies.JobBody, b'{"queue_id":' + BIG + b"}", "queue_id"),
        (bodies.BulkAdd, b'{"jobs":[{"job_id":' + BIG + b',"queue_id":0}]}', "jobs[0].job_id"),
        (bodies.BulkAdd, b'{"jobs":[{"job_id":1e999,"queue_id":0}]}', "jobs[0].job_id"),
        (bodies.Config, b'{"default_lease_time":1e999}', "default_lease_time"),
    ],
)
def test_reading_number_beyond_64_bits_says_so(shape: type[Any], body: bytes, field: str) -> None:
    error = refusal(shape, body)
    assert isinstance(error, FieldInvalid)
    assert error.field == field
    assert "64 bits" in error.message
