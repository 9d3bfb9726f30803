"""What a wrong body is told: the class of the error, the field, and a sentence that names both."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

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
NOW = 1_000_000.0


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
        (bodies.Ack, b"{}", "leases"),
        (bodies.Nack, b'{"error":"x"}', "leases"),
        (bodies.Release, b"{}", "leases"),
        (bodies.Extend, b"{}", "leases"),
        (bodies.Exchange, b'{"nack":{}}', "nack.leases"),
        (bodies.Exchange, b'{"add":[{"queue_id":0}]}', "add[0].job_id"),
        (bodies.QueueSettings, b'{"backoff":{"factor":2}}', "backoff.base"),
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
        (bodies.JobBody, b'{"queue_id":0,"delay":"1"}', "delay", "must be a number or null, not a string"),
        (bodies.JobBody, b'{"queue_id":0,"max_attempts":1.5}', "max_attempts", "not a number"),
        (bodies.JobBody, b'{"queue_id":0,"after":"t"}', "after", "not a string"),
        (bodies.JobBody, b'{"queue_id":0,"on_conflict":true}', "on_conflict", "not a boolean"),
        (bodies.BulkAdd, b'{"jobs":[{"job_id":1,"queue_id":0,"run_at":[]}]}', "jobs[0].run_at", "not an array"),
        (bodies.Pull, b'{"wait":null}', "wait", "must be a number, not null"),
        (bodies.Pull, b'{"queues":[1,null]}', "queues[1]", "not null"),
        (bodies.Pull, b'{"tags":"t"}', "tags", "not a string"),
        (bodies.Pull, b'{"lease_time":"1"}', "lease_time", "not a string"),
        (bodies.Pull, b'{"worker":1}', "worker", "not an integer"),
        (bodies.Ack, b'{"leases":"x"}', "leases", "not a string"),
        (bodies.Ack, b'{"leases":["x",1]}', "leases[1]", "not an integer"),
        (bodies.Ack, b'{"leases":[],"exit_code":"1"}', "exit_code", "not a string"),
        (bodies.Nack, b'{"leases":[],"error":1}', "error", "not an integer"),
        (bodies.Nack, b'{"leases":[],"delay":true}', "delay", "not a boolean"),
        (bodies.Extend, b'{"leases":[],"lease_time":{}}', "lease_time", "not an object"),
        (bodies.Exchange, b'{"ack":[]}', "ack", "must be an object or null, not an array"),
        (bodies.Exchange, b'{"pull":{"count":null}}', "pull.count", "not null"),
        (bodies.Redrive, b'{"jobs":["a",null]}', "jobs[1]", "not null"),
        (bodies.LimitSettings, b'{"paused":null}', "paused", "must be a boolean, not null"),
        (bodies.LimitSettings, b'{"max_leased":1.5}', "max_leased", "must be an integer or null, not a number"),
        (bodies.QueueSettings, b'{"rate":"1"}', "rate", "must be a number or null, not a string"),
        (bodies.QueueSettings, b'{"backoff":{"base":null}}', "backoff.base", "not null"),
        (bodies.RealmSettings, b'{"max_jobs":"x"}', "max_jobs", "not a string"),
        (bodies.RealmSettings, b'{"keep_done":{"count":1.5}}', "keep_done.count", "not a number"),
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
        (bodies.Ack, b'{"leases":[],"cuont":5}'),
        (bodies.Nack, b'{"leases":[],"cuont":5}'),
        (bodies.Release, b'{"leases":[],"cuont":5}'),
        (bodies.Extend, b'{"leases":[],"cuont":5}'),
        (bodies.Exchange, b'{"cuont":5}'),
        (bodies.Redrive, b'{"cuont":5}'),
        (bodies.LimitSettings, b'{"cuont":5}'),
        (bodies.QueueSettings, b'{"paused":true,"cuont":5}'),
        (bodies.RealmSettings, b'{"cuont":5}'),
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


def test_reading_exchange_with_unknown_field_in_a_part_names_both() -> None:
    assert refusal(bodies.Exchange, b'{"pull":{"cuont":5}}').field == "pull.cuont"


@pytest.mark.parametrize(
    ("text", "result"), [(b"", b""), (b',"result":null', b"null"), (b',"result": {"a" : 1}', b'{"a" : 1}')]
)
def test_reading_ack_tells_no_result_from_null(text: bytes, result: bytes) -> None:
    assert bytes(bodies.reader(bodies.Ack)(b'{"leases":["x"]' + text + b"}").result) == result


def test_reading_settings_tells_what_is_not_named_from_null() -> None:
    read = bodies.reader(bodies.QueueSettings)(b'{"rate":null,"backoff":{"base":1},"max_leased":0}')
    assert (read.rate, read.max_leased, read.lease_time, read.paused) == (None, 0, UNSET, UNSET)
    assert read.backoff == bodies.Backoff(base=1, factor=2, max=3600, jitter=0.5)


@pytest.mark.parametrize(
    ("given", "expected"), [(None, 0), (0, 0), (300, 300), (0.5, 0.5), ("2.5", 2.5), ("0", 0), ("300", 300)]
)
def test_wait_within_limits_is_that_number(given: Any, expected: float) -> None:
    assert bodies.wait(given) == expected
    assert isinstance(bodies.wait(given), float)


@pytest.mark.parametrize("given", [-1, 300.5, 10**400, "-1", "301", "", "x", "nan", "inf", "1e2", "٣", "1" * 5000])
def test_wait_out_of_limits_is_refused(given: Any) -> None:
    with pytest.raises(FieldInvalid) as caught:
        bodies.wait(given)
    assert caught.value.field == "wait"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(("given", "expected"), [(None, 50), ("1", 1), ("1000", 1000)])
def test_limit_within_limits_is_that_number(given: str | None, expected: int) -> None:
    assert bodies.limit(given) == expected


@pytest.mark.parametrize("given", ["", "0", "-1", "1001", "x", "1.5", "٣", "9" * 5000])
def test_limit_out_of_limits_is_refused(given: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        bodies.limit(given)
    assert caught.value.field == "limit"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("given", "expected"), [(None, False), ("0", False), ("false", False), ("1", True), ("true", True)]
)
def test_flag_is_yes_or_no(given: str | None, expected: bool) -> None:
    assert bodies.flag(given, "data") is expected


@pytest.mark.parametrize("given", ["", "2", "yes", "True", "\n", "x" * 5000])
def test_flag_that_is_neither_is_refused(given: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        bodies.flag(given, "data")
    assert caught.value.field == "data"
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


def test_lease_time_and_worker_have_limits() -> None:
    assert [bodies.lease_time(seconds) for seconds in (None, 0, 0.5, 1e9)] == [None, 0, 0.5, 1e9]
    for seconds in (-0.1, 1e9 + 1, 10**400):
        with pytest.raises(FieldInvalid, match="lease_time: a lease time lies between 0 and 1,000,000,000 seconds"):
            bodies.lease_time(seconds)
    assert [bodies.worker(name) for name in (None, "", "host:1", "ü" * 256)] == ["", "", "host:1", "ü" * 256]
    for name in ("ü" * 257, "a\nb", "\x7f"):
        with pytest.raises(FieldInvalid, match="worker: has at most 512 bytes"):
            bodies.worker(name)


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
    return new_jobs(bodies.bulk_jobs(bodies.reader(bodies.BulkAdd)(body)), NOW)


def test_new_jobs_of_good_body_are_checked_and_sorted() -> None:
    body = (
        b'{"jobs":[{"job_id":2,"queue_id":"10","tags":["b","a","b"],"data": {"x" : 1} },{"job_id":"x","queue_id":"q"}]}'
    )
    assert jobs_of(body) == [("2", 10, b'{"x" : 1}', ("a", "b"), None), ("x", "q", None, (), None)]


@pytest.mark.parametrize("data", [b"null", b"  null "])
def test_new_job_with_null_says_nothing_about_data(data: bytes) -> None:
    body = bodies.reader(bodies.JobBody)(b'{"queue_id":0,"data":' + data + b"}")
    assert new_job("a", body, NOW) == ("a", 0, None, (), None)


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
        new_jobs(bodies.bulk_jobs(read), NOW, [4, 9])
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
        (bodies.Config, b'{"queue_lease_time":[0,9223372036854775808]}', "queue_lease_time[1]"),
        (bodies.JobBody, b'{"queue_id":0,"delay":-9223372036854775809}', "delay"),
        (bodies.QueueSettings, b'{"backoff":{"base":1' + b"0" * 400 + b"}}", "backoff.base"),
    ],
)
def test_reading_number_beyond_64_bits_says_so(shape: type[Any], body: bytes, field: str) -> None:
    error = refusal(shape, body)
    assert isinstance(error, FieldInvalid)
    assert error.field == field
    assert "64 bits" in error.message
