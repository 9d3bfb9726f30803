"""What came after 2013, by both clients, against the real server: every method, and what a worker relies on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Server, StartServer
from twins import QUADRUPLETS, Loop, Twin, twins

from restq import errors

WAIT_SECONDS = 20


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


@pytest.fixture(**twins(QUADRUPLETS))
def twin(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Twin]:
    """Each of the two clients, over HTTP and over streams."""
    with contextlib.ExitStack() as stack:
        yield Twin(request.param, loop, stack)


@pytest.fixture
def realm(twin: Twin, server: Server, realm_name: str) -> Any:
    """Either client of a realm that no other test uses, on the shared server."""
    return twin.realm(realm_name, server.uri)


def until(condition: Callable[[], Any]) -> None:
    """Wait for what happens in the background."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def states(realm: Any, **filters: Any) -> dict[str, str]:
    """The state of each job in its first queue."""
    return {job["job_id"]: job["queues"][0]["state"] for job in realm.list_jobs(**filters)}


# Pulling and what ends a lease.
def test_pull_jobs_gives_all_that_is_known_of_them(realm: Any) -> None:
    realm.add("a", 3, {"x": [1]}, ["t"])
    [job] = realm.pull_jobs(lease_time=50, worker="me")
    assert (job.job_id, job.queue_id, job.data, job.tags, job.attempt) == ("a", 3, {"x": [1]}, ["t"], 1)
    assert job.realm == realm.name
    assert 40 < job.lease_expires_at - time.time() < 60
    [listed] = realm.list_jobs(state="leased")
    assert listed["queues"][0]["worker"] == "me"
    assert realm.pull_jobs() == []


def test_pull_jobs_takes_only_the_queues_and_tags_it_names(realm: Any) -> None:
    realm.bulk_add([{"job_id": f"{queue}{tag}", "queue_id": queue, "tags": [tag]} for queue in (0, 1) for tag in "xy"])
    assert [job.job_id for job in realm.pull_jobs(9, queues=["1"], tags=["y"])] == ["1y"]
    assert [job.job_id for job in realm.pull_jobs(9, 0)] == ["0x", "0y"]
    assert [job.job_id for job in realm.pull_jobs(9)] == ["1x"]


def test_pull_jobs_that_waits_gets_what_is_added_meanwhile(realm: Any) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(realm.pull_jobs(1, wait=WAIT_SECONDS)))
    thread.start()
    time.sleep(0.1)
    realm.add("late", 0)
    thread.join(WAIT_SECONDS)
    assert [job.job_id for job in found] == ["late"]


def test_ack_removes_and_a_second_one_is_stale(realm: Any) -> None:
    realm.bulk_add([{"job_id": name, "queue_id": 0} for name in "abc"])
    a, b, c = realm.pull_jobs(3)
    assert realm.ack([a, b.lease_id]) == {"acked": [a.lease_id, b.lease_id], "stale": []}
    assert a.ended
    assert realm.ack([c, b.lease_id]) == {"acked": [c.lease_id], "stale": [b.lease_id]}
    with pytest.raises(errors.LeaseStale) as caught:
        realm.ack(c)
    assert caught.value.code == "lease_stale"
    assert realm.status["total_jobs"] == 0


def test_ack_with_result_is_kept_where_the_realm_does(realm: Any) -> None:
    realm.configure(keep_done={"seconds": 100, "count": 10})
    for name in "ab":
        realm.add(name, 0, tags=["t"])
        [job] = realm.pull_jobs(1, worker="me")
        job.ack({"made": name}, exit_code=0, output="done\n")
    done = list(realm.list_jobs("done"))
    assert [(job["job_id"], job["result"], job["exit_code"], job["output"]) for job in done] == [
        ("a", {"made": "a"}, 0, "done\n"),
        ("b", {"made": "b"}, 0, "done\n"),
    ]
    assert done[0]["worker"] == "me"


def test_nack_counts_attempts_until_the_job_is_dead_and_redrive_brings_it_back(realm: Any) -> None:
    realm.configure_queue(0, max_attempts=2)
    realm.add("a", 0, tags=["t"])
    [first] = realm.pull_jobs(1)
    assert realm.nack(first, "why", 3)["nacked"] == [first.lease_id]
    [second] = realm.pull_jobs(1, wait=WAIT_SECONDS)
    assert second.attempt == 2
    second.nack("again")
    assert realm.pull_jobs(1) == []
    [dead] = realm.list_jobs("dead")
    assert dead["queues"][0]["error"] == "again"
    assert realm.redrive_tagged_jobs("t") == 1
    [third] = realm.pull_jobs(1)
    assert third.attempt == 1
    third.nack()
    realm.pull_jobs(1, wait=WAIT_SECONDS)[0].nack()
    with pytest.raises(errors.QueueNotFound):
        realm.redrive(queue=1)
    assert realm.redrive(queue=0, jobs=["none"]) == 0
    assert realm.redrive(jobs=["a", "none"]) == 1
    assert states(realm) == {"a": "ready"}


def test_nack_and_release_with_delay_keep_the_job_back(realm: Any) -> None:
    realm.bulk_add([{"job_id": name, "queue_id": 0} for name in "ab"])
    a, b = realm.pull_jobs(2)
    a.nack(delay=600)
    b.release(600)
    assert states(realm) == {"a": "delayed", "b": "delayed"}
    assert [job["queues"][0]["ready_at"] > time.time() + 500 for job in realm.list_jobs()] == [True, True]


def test_release_counts_no_attempt(realm: Any) -> None:
    realm.add("a", 0)
    for _ in range(3):
        [job] = realm.pull_jobs(1)
        assert job.attempt == 1
        job.release()


def test_extend_prolongs_and_void_lease_is_lost(realm: Any) -> None:
    realm.add("a", 0)
    [job] = realm.pull_jobs(1, lease_time=60)
    assert job.extend(1000) is True
    assert 900 < job.lease_expires_at - time.time() < 1100
    realm.remove_job("a")
    with pytest.raises(errors.LeaseStale):
        job.extend()
    assert job.lost
    with pytest.raises(errors.LeaseStale):
        job.nack()


def test_exchange_finishes_adds_and_takes_in_one_step(realm: Any) -> None:
    realm.bulk_add([{"job_id": name, "queue_id": 0} for name in "ab"])
    a, b = realm.pull_jobs(2)
    found = realm.exchange(
        ack={"leases": a, "result": 1}, nack=[b], add=[{"job_id": "c", "queue_id": 1}], pull={"count": 9, "queues": [1]}
    )
    assert found["ack"] == {"acked": [a.lease_id], "stale": []}
    assert found["nack"]["nacked"] == [b.lease_id]
    [c] = found["pull"]["jobs"]
    assert c.job_id == "c"
    with c:
        pass
    with pytest.raises(errors.LeaseStale):
        realm.exchange(ack=a, add=[{"job_id": "d", "queue_id": 1}])
    assert set(states(realm)) == {"b"}


# Blocks and loops.
def test_work_in_a_loop_acks_nacks_and_goes_on(realm: Any) -> None:
    realm.configure_queue(0, max_attempts=1)
    realm.bulk_add([{"job_id": name, "queue_id": 0} for name in "abc"])
    seen = []
    for job in realm.consume(wait=0, stop_when_empty=True, keep_going=True, worker="w"):
        with job:
            seen.append(job.job_id)
            if job.job_id == "b":
                raise ValueError("b is bad")
    assert seen == ["a", "b", "c"]
    [dead] = realm.list_jobs("dead")
    assert dead["job_id"] == "b"
    assert dead["queues"][0]["error"].endswith("ValueError: b is bad\n")
    assert realm.status["total_jobs"] == 1


def test_work_longer_than_the_lease_keeps_it(realm: Any) -> None:
    realm.add("a", 0)
    [job] = realm.pull_jobs(1, lease_time=1.2)
    first_end = job.lease_expires_at
    with job:
        until(lambda: time.time() > first_end + 0.3)
        assert realm.pull_jobs(1) == []
        assert not job.lost
    assert realm.status["total_jobs"] == 0


def test_cancel_leased_job_is_seen_by_its_worker_and_removes_it(realm: Any) -> None:
    realm.add("a", 0)
    [job] = realm.pull_jobs(1, lease_time=1.2)
    with job:
        assert realm.cancel_job("a") == "leased"
        until(lambda: job.cancelled)
    assert realm.status["total_jobs"] == 0
    with pytest.raises(errors.JobNotFound):
        realm.cancel_job("a")


def test_lose_lease_while_working_is_told(realm: Any) -> None:
    realm.add("a", 0)
    [job] = realm.pull_jobs(1, lease_time=0.3)

    def work() -> None:
        with job:
            realm.remove_job("a")
            until(lambda: job.lost)

    with pytest.raises(errors.LeaseStale):
        work()


def test_consume_many_at_a_time_releases_what_it_did_not_begin(realm: Any) -> None:
    realm.bulk_add([{"job_id": name, "queue_id": 0} for name in "abc"])
    jobs = realm.consume(count=3)
    with next(jobs):
        jobs.close()
    assert states(realm) == {"b": "ready", "c": "ready"}
    assert {job["queues"][0]["attempt"] for job in realm.list_jobs()} <= {0, 1}
    assert [job.attempt for job in realm.pull_jobs(2)] == [1, 1]


def test_pull_jobs_over_realms_acks_in_each(twin: Twin, server: Server, realm_name: str) -> None:
    realms = twin.realms(server.uri)
    names = [f"{realm_name}-{n}" for n in range(3)]
    realms.bulk_add([{"realm_id": name, "job_id": "same", "queue_id": 0, "tags": ["t"]} for name in names])
    for _ in names:
        [job] = realms.pull_jobs(1, realms=names, wait=1)
        assert realms[job.realm].get_tag("t")["leased"] == 1
        with job:
            pass
        assert realms[job.realm].status["total_jobs"] == 0


# Adding.
def test_add_with_delay_or_instant_waits(realm: Any) -> None:
    realm.add("a", 0, delay=600)
    realm.add("b", 0, run_at=time.time() + 600)
    realm.add("c", 0, delay=1)
    assert states(realm) == {"a": "delayed", "b": "delayed", "c": "delayed"}
    assert [job.job_id for job in realm.pull_jobs(3, wait=WAIT_SECONDS)] == ["c"]


def test_add_after_tags_is_blocked_until_they_are_gone(realm: Any) -> None:
    realm.add("first", 0, tags=["stage 1"])
    realm.add("second", 0, after=["stage 1"])
    assert states(realm) == {"first": "ready", "second": "blocked"}
    explained = realm.explain("second")
    assert explained["job_id"] == "second"
    assert explained["queues"][0]["after"] == {"stage 1": 1}
    assert "stage 1" in explained["explanation"]
    for job in realm.consume(0, stop_when_empty=True):
        with job:
            pass
    assert realm.status["total_jobs"] == 0
    with pytest.raises(errors.JobNotFound):
        realm.explain("second")


def test_add_on_conflict_does_as_it_says(realm: Any) -> None:
    realm.add("a", 0, "old")
    with pytest.raises(errors.JobExists):
        realm.add("a", 0, "new", on_conflict="error")
    realm.add("a", 0, "new", on_conflict="ignore")
    assert realm["a"]["data"] == "old"
    [job] = realm.pull_jobs(1)
    realm.add("a", 0, "new", on_conflict="replace")
    assert realm["a"]["data"] == "new"
    with pytest.raises(errors.LeaseStale):
        job.ack()


def test_add_with_limits_of_the_job(realm: Any) -> None:
    realm.add("short", 0, expires_in=0.2)
    realm.add("once", 1, max_attempts=1)
    realm.pull_jobs(1, queues=[1])[0].nack()
    assert states(realm, queue=1) == {"once": "dead"}
    until(lambda: realm.status["total_jobs"] == 1)


def test_add_beyond_the_limits_of_the_realm_raises_queue_full(realm: Any) -> None:
    realm.configure(max_jobs=1)
    realm.add("a", 0)
    for add in (lambda: realm.add("b", 0), lambda: realm.bulk_add([{"job_id": "b", "queue_id": 0}])):
        with pytest.raises(errors.QueueFull) as caught:
            add()
        assert isinstance(caught.value, ConnectionError)


# Queues, tags, settings, lists.
def test_configure_queue_keeps_what_is_not_named_and_takes_away_none(realm: Any) -> None:
    assert realm.configure_queue("1", lease_time=5, rate=10, max_leased=2)["rate"] == 10
    settings = realm.configure_queue(1, rate=None, backoff={"base": 2})
    assert (settings["lease_time"], settings["max_leased"], settings["backoff"]["base"]) == (5, 2, 2)
    assert "rate" not in settings
    assert realm.get_queue(1)["settings"] == settings
    with pytest.raises(errors.QueueNotFound):
        realm.get_queue(7)


def test_pause_queue_hands_out_nothing(realm: Any) -> None:
    realm.add("a", 0)
    realm.configure_queue(0, paused=True)
    assert realm.pull_jobs(1) == []
    assert "paused" in realm.explain("a")["explanation"]
    realm.configure_queue(0, paused=False)
    assert len(realm.pull_jobs(1)) == 1


def test_list_queues_counts_by_state_in_order_of_service(realm: Any) -> None:
    realm.add("a", 10)
    realm.add("b", 2, delay=600)
    realm.add("c", "q")
    queues = realm.list_queues()
    assert [queue["queue_id"] for queue in queues] == [2, 10, "q"]
    assert [(queue["ready"], queue["delayed"], queue["count"]) for queue in queues] == [
        (1 - n, n, 1) for n in (1, 0, 0)
    ]


def test_configure_tag_limits_over_all_queues(realm: Any) -> None:
    realm.bulk_add([{"job_id": str(n), "queue_id": n, "tags": ["t"]} for n in range(3)])
    assert realm.configure_tag("t", max_leased=2)["max_leased"] == 2
    jobs = realm.pull_jobs(9)
    assert len(jobs) == 2
    tag = realm.get_tag("t")
    assert (tag["count"], tag["ready"], tag["leased"], tag["settings"]["max_leased"]) == (3, 1, 2, 2)
    jobs[0].ack()
    assert len(realm.pull_jobs(9)) == 1
    assert realm.get_tag("none")["count"] == 0


def test_list_tags_by_prefix_in_order(realm: Any) -> None:
    realm.add("a", 0, tags=["x2", "x1", "y"])
    assert [tag["tag"] for tag in realm.list_tags()] == ["x1", "x2", "y"]
    assert [tag["tag"] for tag in realm.list_tags("x")] == ["x1", "x2"]


def test_move_and_cancel_tagged_jobs_leave_what_is_leased(realm: Any) -> None:
    realm.bulk_add([{"job_id": name, "queue_id": 0, "tags": ["t"]} for name in "abc"])
    [job] = realm.pull_jobs(1)
    assert realm.move_tagged_jobs("t", 0, 5) == {"moved": 2, "leased": 1}
    assert set(states(realm, queue=5)) == {"b", "c"}
    assert realm.cancel_tagged_jobs("t") == {"removed": 2, "leased": 1}
    assert job.extend() is False
    job.ack()
    for call in (realm.cancel_tagged_jobs, realm.redrive_tagged_jobs, lambda tag: realm.move_tagged_jobs(tag, 0, 1)):
        with pytest.raises(errors.TagNotFound):
            call("t")


def test_configure_realm_keeps_what_is_not_named(realm: Any) -> None:
    before = realm.get_config()
    assert (before["max_jobs"], before["keep_done"]) == (None, None)
    assert realm.configure(max_jobs=5, default_lease_time=7)["max_jobs"] == 5
    after = realm.configure(max_jobs=None)
    assert after == {**before, "default_lease_time": 7}
    assert realm.get_config() == after


def test_configure_what_is_not_there_is_refused(realm: Any) -> None:
    for call in (lambda: realm.configure(max_job=5), lambda: realm.configure_queue(0, speed=1)):
        with pytest.raises(errors.FieldInvalid):
            call()


def test_list_jobs_of_many_pages_gives_all_in_order_of_adding(realm: Any) -> None:
    realm.bulk_add(
        [{"job_id": f"{n % 2}-{n}", "queue_id": n % 3, "data": n, "tags": [f"t{n % 2}"]} for n in range(1200)]
    )
    assert [job["job_id"] for job in realm.list_jobs()] == [f"{n % 2}-{n}" for n in range(1200)]
    assert [job["data"] for job in realm.list_jobs(tag="t1", queue="0", data=True)] == list(range(3, 1200, 6))
    assert len(list(realm.list_jobs("ready", prefix="1-"))) == 600
    assert list(realm.list_jobs("dead")) == []


@pytest.mark.parametrize("name", [".", "..", "a/b", "a?b&c", "größe", "x y+z"])
def test_use_awkward_names_through_the_new_calls(realm: Any, name: str) -> None:
    realm.add(name, name, tags=[name], max_attempts=1)
    realm.configure_tag(name, max_leased=3)
    realm.configure_queue(name, lease_time=9)
    assert realm.get_queue(name)["count"] == realm.get_tag(name)["count"] == 1
    assert [tag["tag"] for tag in realm.list_tags(name)] == [name]
    assert set(states(realm, tag=name, queue=name, prefix=name)) == {name}
    realm.pull_jobs(1, queues=[name], tags=[name])[0].nack()
    assert realm.redrive_tagged_jobs(name) == 1
    assert realm.explain(name)["job_id"] == name
    assert realm.move_tagged_jobs(name, name, 0) == {"moved": 1, "leased": 0}
    assert realm.cancel_job(name) == "removed"


def test_wait_for_tag_returns_once_its_last_job_is_gone(realm: Any) -> None:
    realm.add("a", 0, tags=["t"])
    assert realm.wait_for_tag("t", timeout=0.05) is False
    assert realm.wait_for_tag("none") is True
    timer = threading.Timer(0.2, lambda: realm.remove_job("a"))
    timer.start()
    began = time.monotonic()
    assert realm.wait_for_tag("t", timeout=WAIT_SECONDS) is True
    assert time.monotonic() - began < WAIT_SECONDS / 2
    timer.join()


def test_repeat_of_a_pull_with_its_key_leases_once(realm: Any, twin: Twin, server: Server, realm_name: str) -> None:
    """The reply is lost on its way: the repetition brings the same lease, and no second one."""
    import requests

    lost: list[Any] = []

    class LosesFirst:
        def __getattr__(self, verb: str) -> Any:
            def send(url: str, **options: Any) -> Any:
                reply = getattr(requests, verb)(url, **options)
                if not lost:
                    lost.append(reply.json())
                    raise ConnectionResetError("cut")
                return reply

            return send

    realm.bulk_add([{"job_id": name, "queue_id": 0} for name in "ab"])
    [job] = twin.realm(realm_name, server.uri, LosesFirst()).pull_jobs(1)
    assert job.lease_id == lost[0]["jobs"][0]["lease_id"]
    assert states(realm) == {"a": "leased", "b": "ready"}


def test_work_through_a_restart_of_the_server_loses_nothing(twin: Twin, start_server: StartServer) -> None:
    first = start_server()
    realm = twin.realm("test", first.uri)
    realm.bulk_add([{"job_id": str(n), "queue_id": 0} for n in range(40)])
    seen: list[str] = []
    restarted = threading.Event()

    def restart() -> None:
        first.stop()
        start_server(first.data_dir, first.port)
        restarted.set()

    thread = threading.Thread(target=restart)
    for job in realm.consume(0, stop_when_empty=True, keep_going=True):
        with job:
            seen.append(job.job_id)
            if len(seen) == 10:
                thread.start()
            if len(seen) == 30:
                assert restarted.wait(WAIT_SECONDS)
            time.sleep(0.02)
    thread.join()
    assert sorted(seen, key=int) == [str(n) for n in range(40)]
    assert realm.status["total_jobs"] == 0
