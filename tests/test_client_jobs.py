"""Jobs in the hands of a worker, in both clients, against a stand-in that answers as the server does."""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twins import Answer, Loop, Script, Twin, twins

import restq
from restq import aio, errors
from restq.client.leased import ERROR_BYTES_MAX, EXTENSION_SECONDS_MAX, Leased, traceback_tail

WAIT_SECONDS = 20
STALE = Answer({"code": "lease_stale", "message": "all leases are void"}, 409)


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


@pytest.fixture(**twins())
def twin(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Twin]:
    """Each of the two clients."""
    with contextlib.ExitStack() as stack:
        yield Twin(request.param, loop, stack)


class StandIn(Script):
    """Answers pulls with the jobs that it was given, in batches, and every call about leases as if they held."""

    def __init__(self, *batches: list[str], **other: Any) -> None:
        super().__init__(self._answer)
        self.batches = list(batches)
        self.other = other  # verb -> an answer in place of the usual one

    def verbs(self, *left_out: str) -> list[str]:
        """The last word of each request."""
        words = [url.rpartition("/")[2] for _, url, _ in self.calls]
        return [word for word in words if word not in left_out]

    def bodies(self, verb: str) -> list[Any]:
        return [body for _, url, body in self.calls if url.endswith("/" + verb)]

    def _answer(self, method: str, url: str, body: Any) -> Any:
        verb = url.rpartition("/")[2]
        other = self.other.get(verb)
        if isinstance(other, list):
            other = other.pop(0) if other else None
        if isinstance(other, Exception):
            raise other
        return other or getattr(self, "_" + verb)(body)

    def _pull(self, body: Any) -> Any:
        batch = self.batches.pop(0) if self.batches else []
        return {"jobs": [reply(job_id) for job_id in batch]}

    def _ack(self, body: Any) -> Any:
        return {"acked": body["leases"], "stale": []}

    def _nack(self, body: Any) -> Any:
        return {"nacked": body["leases"], "dead": [], "stale": []}

    def _release(self, body: Any) -> Any:
        return {"released": body["leases"], "stale": []}

    def _extend(self, body: Any) -> Any:
        return {"extended": {lease: time.time() + 600 for lease in body["leases"]}, "stale": [], "cancelled": []}

    def _exchange(self, body: Any) -> Any:
        found = {name: getattr(self, "_" + name)(body[name]) for name in ("ack", "nack", "pull") if name in body}
        return found


def reply(job_id: str) -> dict[str, Any]:
    """A job of a pull."""
    return {
        "job_id": job_id,
        "queue_id": 0,
        "data": {"of": job_id},
        "tags": ["t"],
        "attempt": 1,
        "lease_id": f"lease-{job_id}",
        "lease_expires_at": time.time() + 600,
    }


def pulled(twin: Twin, stand_in: StandIn, **options: Any) -> Any:
    """A job that the stand-in hands out."""
    stand_in.batches.insert(0, ["a"])
    [job] = twin.realm("test", "http://x", stand_in).pull_jobs(1, **options)
    stand_in.calls.clear()
    return job


def until(condition: Callable[[], Any]) -> None:
    """Wait for what happens in the background."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


# What is sent.
def test_call_each_method_of_leases_sends_the_documented_request(twin: Twin) -> None:
    stand_in = StandIn()
    realm = twin.realm("test", "http://x", stand_in)

    def sent() -> tuple[str, Any]:
        verb, url, body = stand_in.calls.pop()
        assert verb == "POST"
        return url.removeprefix("http://x/test/"), body

    assert realm.pull_jobs() == []
    assert sent() == ("pull", {"count": 5})
    realm.pull_jobs(3, "7", queues=["1", "q"], tags={"t"}, wait=2.5, lease_time=60, worker="me")
    assert sent() == (
        "pull",
        {"count": 3, "max_queue": 7, "queues": [1, "q"], "tags": ["t"], "wait": 2.5, "lease_time": 60, "worker": "me"},
    )
    assert realm.ack("x") == {"acked": ["x"], "stale": []}
    assert sent() == ("ack", {"leases": ["x"]})
    realm.ack(["x", "y"], {"r": 1}, 0, "out")
    assert sent() == ("ack", {"leases": ["x", "y"], "result": {"r": 1}, "exit_code": 0, "output": "out"})
    assert realm.nack(["x"], "broke", 2, delay=9) == {"nacked": ["x"], "dead": [], "stale": []}
    assert sent() == ("nack", {"leases": ["x"], "error": "broke", "exit_code": 2, "delay": 9})
    assert realm.release(["x"], 0) == {"released": ["x"], "stale": []}
    assert sent() == ("release", {"leases": ["x"], "delay": 0})
    assert list(realm.extend("x", 30)["extended"]) == ["x"]
    assert sent() == ("extend", {"leases": ["x"], "lease_time": 30})
    assert realm.exchange() == {}
    assert sent() == ("exchange", {})
    job = {"job_id": "next", "queue_id": 0, "after": {"t"}}
    found = realm.exchange({"leases": "x", "result": 1}, ["y"], [job], {"count": 2, "queues": ["3"]})
    assert found == {
        "ack": {"acked": ["x"], "stale": []},
        "nack": {"nacked": ["y"], "dead": [], "stale": []},
        "pull": {"jobs": []},
    }
    assert sent() == (
        "exchange",
        {
            "ack": {"leases": ["x"], "result": 1},
            "nack": {"leases": ["y"]},
            "add": [{"job_id": "next", "queue_id": 0, "after": ["t"]}],
            "pull": {"count": 2, "queues": [3]},
        },
    )


def test_call_each_new_method_sends_the_documented_request(twin: Twin) -> None:
    script = Script({"cancelled": "removed", "redriven": 2, "queues": [], "count": 0})
    realm = twin.realm("test", "http://x", script)

    def sent() -> tuple[str, str, Any]:
        verb, url, body = script.calls.pop()
        return verb, url.removeprefix("http://x/test/"), body

    realm.add("a", 0, delay=1, run_at=2.5, expires_in=3, max_attempts=4, after={"t"}, on_conflict="replace", tags=["u"])
    assert sent() == (
        "PUT",
        "job/a",
        {
            "queue_id": 0,
            "delay": 1,
            "run_at": 2.5,
            "expires_in": 3,
            "max_attempts": 4,
            "tags": ["u"],
            "after": ["t"],
            "on_conflict": "replace",
        },
    )
    realm.add("..", 0, delay=1)
    assert sent() == ("POST", "jobs", {"jobs": [{"job_id": "..", "queue_id": 0, "delay": 1}]})
    realm.explain("a/b")
    assert sent() == ("GET", "job/a%2Fb/explain", None)
    assert realm.cancel_job("a") == "removed"
    assert sent() == ("POST", "job/a/cancel", None)
    realm.cancel_tagged_jobs("t")
    assert sent() == ("POST", "tags/t/cancel", {})
    realm.move_tagged_jobs("t", "1", "late")
    assert sent() == ("POST", "tags/t/move", {"from_queue": 1, "to_queue": "late"})
    assert realm.redrive() == 2
    assert sent() == ("POST", "redrive", {})
    realm.redrive("3", ["a"])
    assert sent() == ("POST", "redrive", {"queue": 3, "jobs": ["a"]})
    assert realm.redrive_tagged_jobs("t") == 2
    assert sent() == ("POST", "tags/t/redrive", {})
    assert realm.list_queues() == []
    assert sent() == ("GET", "queues", None)
    realm.get_queue("a/b")
    assert sent() == ("GET", "queues/a%2Fb", None)
    realm.configure_queue("1", lease_time=5, rate=None, backoff={"base": 1})
    assert sent() == ("PUT", "queues/1", {"lease_time": 5, "rate": None, "backoff": {"base": 1}})
    realm.get_tag("t")
    assert sent() == ("GET", "tags/t", None)
    realm.get_tag("t", wait=2)
    assert sent() == ("GET", "tags/t?wait=2", None)
    realm.configure_tag("t", paused=True)
    assert sent() == ("PUT", "tags/t", {"paused": True})
    realm.get_config()
    assert sent() == ("GET", "config", None)
    realm.configure(max_jobs=None)
    assert sent() == ("PUT", "config", {"max_jobs": None})
    assert realm.wait_for_tag("t", timeout=5) is True
    verb, path, _ = sent()
    assert verb == "GET"
    assert 4.5 < float(path.removeprefix("tags/t?wait=")) <= 5


def test_list_jobs_and_tags_ask_for_page_after_page(twin: Twin) -> None:
    pages = [{"jobs": [{"job_id": "a"}], "cursor": "c1"}, {"jobs": [], "cursor": "c&2"}]
    script = Script(*pages, {"jobs": [{"job_id": "b"}], "cursor": None})
    realm = twin.realm("test", "http://x", script)
    assert [job["job_id"] for job in realm.list_jobs("ready", "0", "t t", "x/", data=True)] == ["a", "b"]
    query = "state=ready&queue=0&tag=t%20t&prefix=x%2F&limit=50"
    assert [url.partition("?")[2] for _, url, _ in script.calls] == [
        f"{query}&data=1",
        f"{query}&cursor=c1&data=1",
        f"{query}&cursor=c%262&data=1",
    ]
    script = Script({"tags": [{"tag": "a"}], "cursor": "n"}, {"tags": [{"tag": "b"}], "cursor": None})
    realm = twin.realm("test", "http://x", script)
    assert [tag["tag"] for tag in realm.list_tags("p")] == ["a", "b"]
    assert [url for _, url, _ in script.calls] == [
        "http://x/test/tags?prefix=p&limit=500",
        "http://x/test/tags?prefix=p&limit=500&cursor=n",
    ]


def test_redrive_tag_of_dots_never_sends_a_path_that_a_proxy_could_shorten(twin: Twin) -> None:
    script = Script({"jobs": [{"job_id": "a"}], "cursor": None}, {"redriven": 1})
    assert twin.realm("test", "http://x", script).redrive_tagged_jobs("..") == 1
    assert script.calls[-1] == ("POST", "http://x/test/redrive", {"jobs": ["a"]})


def test_wait_for_tag_that_stays_is_false_after_the_time(twin: Twin) -> None:
    script = Script({"tag": "t", "count": 1})
    assert twin.realm("test", "http://x", script).wait_for_tag("t", timeout=0) is False
    began = time.monotonic()
    assert twin.realm("test", "http://x", script).wait_for_tag("t", timeout=0.05) is False
    assert time.monotonic() - began < 5


def test_pull_jobs_over_realms_gives_jobs_of_their_realms(twin: Twin) -> None:
    stand_in = StandIn()
    stand_in.other["pull"] = [{"jobs": [{**reply("a"), "realm": "one"}, {**reply("b"), "realm": "two"}]}]
    realms = twin.realms("http://x", stand_in)
    jobs = realms.pull_jobs(2, realms=["one", "two"], wait=1)
    assert [job.realm for job in jobs] == ["one", "two"]
    assert stand_in.calls == [("POST", "http://x/pull", {"count": 2, "wait": 1, "realms": ["one", "two"]})]
    for job in jobs:
        job.ack()
    assert [url for _, url, _ in stand_in.calls[1:]] == ["http://x/one/ack", "http://x/two/ack"]


def test_give_what_are_no_leases_raises_before_anything_is_sent(twin: Twin) -> None:
    stand_in = StandIn()
    realm = twin.realm("test", "http://x", stand_in)
    for call in (lambda: realm.ack([1]), lambda: realm.extend([b"x"]), lambda: realm.exchange(ack=[None])):
        with pytest.raises(TypeError, match="leases are lease ids or jobs"):
            call()
    with pytest.raises(TypeError, match=r"queues is a list of queue ids, not one"):
        realm.pull_jobs(queues="ab")
    with pytest.raises(TypeError, match=r"after is a list of tags, not one"):
        realm.add("a", 0, after="ab")
    assert stand_in.calls == []


@pytest.mark.parametrize("kind", [restq.Realm, aio.Realm])
def test_ask_for_help_shows_arguments_and_what_is_returned(kind: Any) -> None:
    assert str(inspect.signature(kind.pull_jobs)).endswith("worker: 'str | None' = None) -> 'list[J]'")
    assert str(inspect.signature(kind.redrive)).endswith("-> 'int'")
    assert "Lease up to" in kind.pull_jobs.__doc__
    assert kind.pull_jobs.__qualname__ == "pull_jobs"


# One job.
def test_pull_jobs_returns_jobs_with_what_the_server_said(twin: Twin) -> None:
    job = pulled(twin, StandIn())
    assert (job.job_id, job.queue_id, job.data, job.tags) == ("a", 0, {"of": "a"}, ["t"])
    assert (job.attempt, job.lease_id, job.realm) == (1, "lease-a", "test")
    assert 500 < job.lease_expires_at - time.time() <= 600
    assert (job.cancelled, job.lost, job.ended) == (False, False, False)


def test_call_each_method_of_job_sends_its_lease(twin: Twin) -> None:
    stand_in = StandIn()
    job = pulled(twin, stand_in, lease_time=60)
    before = job.lease_expires_at
    assert job.extend() is True
    assert job.lease_expires_at > before
    job.extend(5)
    job.release(3)
    job.nack("why", 2, delay=1)
    job.ack({"r": 1}, 0, "out")
    assert [(url.rpartition("/")[2], body) for _, url, body in stand_in.calls] == [
        ("extend", {"leases": ["lease-a"], "lease_time": 60}),
        ("extend", {"leases": ["lease-a"], "lease_time": 5}),
        ("release", {"leases": ["lease-a"], "delay": 3}),
        ("nack", {"leases": ["lease-a"], "error": "why", "exit_code": 2, "delay": 1}),
        ("ack", {"leases": ["lease-a"], "result": {"r": 1}, "exit_code": 0, "output": "out"}),
    ]
    assert job.ended


@pytest.mark.parametrize("verb", ["ack", "nack", "release", "extend"])
@pytest.mark.parametrize("answer", [STALE, {"stale": ["lease-a"]}], ids=["refused", "listed"])
def test_call_with_void_lease_raises_lease_stale_and_job_is_lost(twin: Twin, verb: str, answer: Any) -> None:
    stand_in = StandIn(**{verb: answer})
    job = pulled(twin, stand_in)
    with pytest.raises(errors.LeaseStale):
        getattr(job, verb)()
    assert job.lost
    assert not job.ended


def test_extend_cancelled_job_returns_false_and_job_says_so(twin: Twin) -> None:
    job = pulled(twin, StandIn(extend={"extended": {}, "stale": [], "cancelled": ["lease-a"]}))
    assert job.extend() is False
    assert job.cancelled
    job.ack()
    assert job.ended


# In a `with` block.
def test_leave_block_acks_once(twin: Twin) -> None:
    stand_in = StandIn()
    with pulled(twin, stand_in) as job:
        assert job.data == {"of": "a"}
    assert stand_in.verbs() == ["ack"]
    assert job.ended


def test_leave_block_by_exception_nacks_with_traceback_and_raises_it(twin: Twin) -> None:
    stand_in = StandIn()
    with pytest.raises(ZeroDivisionError), pulled(twin, stand_in):
        1 / 0  # noqa: B018
    [body] = stand_in.bodies("nack")
    assert stand_in.verbs() == ["nack"]
    assert body["error"].endswith("ZeroDivisionError: division by zero\n")
    assert "test_leave_block_by_exception" in body["error"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_leave_block_by_interrupt_releases_and_raises_it(twin: Twin, kind: type[BaseException]) -> None:
    stand_in = StandIn()
    with pytest.raises(kind), pulled(twin, stand_in):
        raise kind
    assert stand_in.verbs() == ["release"]


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(
    "end",
    [
        lambda realm, job: job.ack(),
        lambda realm, job: job.nack(),
        lambda realm, job: job.release(),
        lambda realm, job: realm.ack([job, "other"]),
        lambda realm, job: realm.nack(job),
        lambda realm, job: realm.exchange(ack=job),
        lambda realm, job: realm.exchange(nack={"leases": [job], "error": "x"}),
    ],
)
def test_leave_block_that_ended_the_lease_sends_nothing_more(twin: Twin, end: Any, raises: bool) -> None:
    stand_in = StandIn(["a"])
    realm = twin.realm("test", "http://x", stand_in)
    [job] = realm.pull_jobs(1)
    with contextlib.suppress(ZeroDivisionError), job:
        end(realm, job)
        if raises:
            1 / 0  # noqa: B018
    assert len(stand_in.calls) == 2


def test_exchange_with_stale_ack_says_nothing_of_what_was_to_be_nacked(twin: Twin) -> None:
    stand_in = StandIn(["a", "b"], exchange=STALE)
    realm = twin.realm("test", "http://x", stand_in)
    a, b = realm.pull_jobs(2)
    with pytest.raises(errors.LeaseStale):
        realm.exchange(ack=a, nack=b)
    assert (a.lost, b.lost, b.ended) == (True, False, False)


def test_exchange_gives_next_jobs_as_jobs(twin: Twin) -> None:
    stand_in = StandIn(["a"], ["b"])
    realm = twin.realm("test", "http://x", stand_in)
    [job] = realm.pull_jobs(1)
    [following] = realm.exchange(ack=job, pull={"count": 1, "lease_time": 9})["pull"]["jobs"]
    assert following.job_id == "b"
    assert following.lease_time == 9
    with following:
        pass
    assert stand_in.verbs() == ["pull", "exchange", "ack"]


def test_leave_block_with_lost_lease_raises_lease_stale_only_where_nothing_else_did(twin: Twin) -> None:
    stand_in = StandIn(ack=STALE, extend=STALE)
    with pytest.raises(errors.LeaseStale), pulled(twin, stand_in):
        pass
    job = pulled(twin, stand_in)
    with pytest.raises(errors.LeaseStale):
        job.extend()
    with pytest.raises(ZeroDivisionError), job:
        1 / 0  # noqa: B018
    assert stand_in.verbs() == ["extend"]


def test_leave_block_by_exception_that_cannot_be_told_raises_it_with_a_note(twin: Twin) -> None:
    stand_in = StandIn(nack=Answer({"code": "storage_full", "message": "no room"}, 507))
    with pytest.raises(ZeroDivisionError) as caught, pulled(twin, stand_in):
        1 / 0  # noqa: B018
    assert caught.value.__notes__ == ["restq could not say so to the server: no room"]


def test_take_tail_of_traceback_keeps_whole_characters_of_its_end() -> None:
    for text in ("ö" * 9000, "x" + "ö" * 9000, "lone \ud800"):
        try:
            raise ValueError(text)
        except ValueError as error:
            tail = traceback_tail(error)
        size = len(tail.encode())
        assert size <= ERROR_BYTES_MAX
        assert size >= ERROR_BYTES_MAX - 3 or "\\ud800" in tail
        assert tail.endswith("\n")


# The background.
def test_compute_time_of_extension_is_a_third_within_bounds() -> None:
    def seconds(left: float, lease_time: float | None) -> float:
        return Leased({**reply("a"), "lease_expires_at": 1000 + left}, "test", lease_time).extension_seconds(1000)

    assert seconds(600, None) == 200
    assert seconds(30, None) == 10
    assert seconds(30, 9) == 3  # what was asked for, whatever the clocks say
    assert seconds(-500, None) == 1  # this machine's clock is ahead
    assert seconds(90_000, None) == EXTENSION_SECONDS_MAX  # or behind, or the lease is long
    assert seconds(600, 0.3) == pytest.approx(0.1)


def test_run_long_in_block_extends_at_each_third(twin: Twin) -> None:
    stand_in = StandIn()
    with pulled(twin, stand_in, lease_time=0.15) as job:
        until(lambda: len(stand_in.calls) >= 3)
        assert job.lease_expires_at > time.time() + 500
    sent = stand_in.verbs()
    assert sent == ["extend"] * (len(sent) - 1) + ["ack"]
    assert stand_in.calls[0][2] == {"leases": ["lease-a"], "lease_time": 0.15}
    time.sleep(0.2)
    assert len(stand_in.calls) == len(sent), "extended after its end"


def test_fail_in_background_is_tried_again_and_breaks_nothing(twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    broken = [Answer({"code": "storage_full", "message": "no room"}, 507), Answer([], 200), ValueError("odd")]
    stand_in = StandIn(extend=broken)
    with caplog.at_level(logging.WARNING, "restq.client"), pulled(twin, stand_in, lease_time=0.15) as job:
        until(lambda: len(stand_in.calls) >= 5)
        assert not job.lost
    assert stand_in.verbs()[-1] == "ack"
    assert len(caplog.records) == 3
    assert "could not be extended, which is tried again: no room" in caplog.text


def test_lose_lease_in_background_shows_and_is_not_extended_again(twin: Twin) -> None:
    stand_in = StandIn(extend=STALE, ack=STALE)
    job = pulled(twin, stand_in, lease_time=0.06)

    def work() -> None:
        with job:
            until(lambda: job.lost)
            time.sleep(0.1)

    with pytest.raises(errors.LeaseStale):
        work()
    assert stand_in.verbs() == ["extend", "ack"]


def test_be_cancelled_in_background_shows_and_is_not_extended_again(twin: Twin) -> None:
    stand_in = StandIn(extend={"extended": {}, "stale": [], "cancelled": ["lease-a"]})
    with pulled(twin, stand_in, lease_time=0.06) as job:
        until(lambda: job.cancelled)
        time.sleep(0.1)
    assert stand_in.verbs() == ["extend", "ack"]


def test_end_lease_early_in_block_is_not_extended_after_it(twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    stand_in = StandIn(extend=STALE)
    with pulled(twin, stand_in, lease_time=0.9) as job:
        job.ack()
        time.sleep(0.4)
    assert stand_in.verbs() == ["ack"]
    assert caplog.records == []


def test_extend_job_that_just_ended_does_not_make_it_lost(twin: Twin) -> None:
    job = pulled(twin, StandIn(extend=STALE))
    job.ack()
    with pytest.raises(errors.LeaseStale):
        job.extend()
    assert not job.lost


def extenders() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "restq-extender"}


def test_run_many_short_jobs_start_one_thread_which_ends_by_itself() -> None:
    before = extenders()
    stand_in = StandIn([str(n) for n in range(50)])
    realm = restq.Realm("test", "http://x", stand_in)
    seen = set()
    for job in realm.pull_jobs(50, lease_time=60):
        with job:
            seen.update(extenders() - before)
    assert len(seen) == 1
    assert set(stand_in.verbs()) == {"pull", "ack"}


def test_hold_no_job_any_more_ends_the_thread_until_the_next_long_one() -> None:
    before = extenders()
    stand_in = StandIn(["short"], ["long"])
    realm = restq.Realm("test", "http://x", stand_in)
    with realm.pull_jobs(1, lease_time=0.09)[0]:
        [thread] = extenders() - before
    until(lambda: not thread.is_alive())
    with realm.pull_jobs(1, lease_time=0.06)[0]:
        until(lambda: {"leases": ["lease-long"], "lease_time": 0.06} in stand_in.bodies("extend"))


def test_close_ends_the_thread_of_extensions() -> None:
    before = extenders()
    with restq.Realm("test", "http://x", StandIn(["a"])) as realm:
        [job] = realm.pull_jobs(1)
        with job:
            assert len(extenders() - before) == 1
    until(lambda: not extenders() - before)


def test_run_jobs_in_many_threads_extends_each_of_them() -> None:
    stand_in = StandIn([str(n) for n in range(20)])
    jobs = restq.Realm("test", "http://x", stand_in).pull_jobs(20, lease_time=0.3)

    def work(job: restq.Job) -> None:
        with job:
            until(lambda: {"leases": [job.lease_id], "lease_time": 0.3} in stand_in.bodies("extend"))

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(body["leases"][0] for body in stand_in.bodies("ack")) == sorted(job.lease_id for job in jobs)


# A worker's loop.
def work_off(jobs: Any, failure: type[BaseException]) -> None:
    for job in jobs:
        with job:
            raise failure


def test_consume_yields_jobs_until_it_is_empty(twin: Twin) -> None:
    stand_in = StandIn(["a"], ["b"])
    seen = []
    for job in twin.realm("test", "http://x", stand_in).consume(3, stop_when_empty=True, worker="w", queues=[1]):
        with job:
            seen.append(job.job_id)
    assert seen == ["a", "b"]
    assert stand_in.verbs() == ["pull", "ack", "pull", "ack", "pull"]
    assert stand_in.bodies("pull")[0] == {"count": 1, "queues": [1], "wait": 3, "worker": "w"}


def test_consume_goes_on_after_an_empty_pull(twin: Twin) -> None:
    stand_in = StandIn([], ["a"])
    for job in twin.realm("test", "http://x", stand_in).consume(0):
        assert job.job_id == "a"
        break
    assert stand_in.verbs() == ["pull", "pull"]


def test_fail_in_consume_raises(twin: Twin) -> None:
    stand_in = StandIn(["a"], ["b"])
    with pytest.raises(ZeroDivisionError):
        work_off(twin.realm("test", "http://x", stand_in).consume(), ZeroDivisionError)
    assert stand_in.verbs() == ["pull", "nack"]


def test_fail_in_consume_that_keeps_going_is_nacked_and_logged(twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    stand_in = StandIn(["a"], ["b"], ack=STALE)
    seen = []
    for job in twin.realm("test", "http://x", stand_in).consume(stop_when_empty=True, keep_going=True):
        with job:
            seen.append(job.job_id)
            if job.job_id == "a":
                1 / 0  # noqa: B018
    assert seen == ["a", "b"]
    assert stand_in.verbs() == ["pull", "nack", "pull", "ack", "pull"]
    failed, unsaid = caplog.records
    assert failed.getMessage() == "<restq job 'a' of realm 'test', attempt 1> failed"
    assert failed.exc_info is not None
    assert failed.exc_info[0] is ZeroDivisionError
    assert "all leases are void" in unsaid.getMessage()


def test_interrupt_in_consume_that_keeps_going_ends_it(twin: Twin) -> None:
    stand_in = StandIn(["a"], ["b"])
    with pytest.raises(KeyboardInterrupt):
        work_off(twin.realm("test", "http://x", stand_in).consume(keep_going=True), KeyboardInterrupt)
    assert stand_in.verbs() == ["pull", "release"]


def test_leave_consume_releases_the_jobs_that_wait_for_their_turn(twin: Twin) -> None:
    stand_in = StandIn(["a", "b", "c"])
    jobs = twin.realm("test", "http://x", stand_in).consume(count=3)
    for job in jobs:
        with job:
            break
    jobs.close()
    assert stand_in.verbs() == ["pull", "ack", "release"]
    assert stand_in.bodies("release") == [{"leases": ["lease-b", "lease-c"]}]


def test_wait_for_turn_in_consume_extends_and_skips_what_was_lost_or_cancelled(twin: Twin) -> None:
    stand_in = StandIn(["a", "lost", "cancelled", "d"])

    def extend(body: Any) -> Any:
        [lease] = body["leases"]
        lists = {"extended": {}, "stale": [], "cancelled": []}
        if lease in ("lease-lost", "lease-cancelled"):
            lists["stale" if lease == "lease-lost" else "cancelled"] = [lease]
        else:
            lists["extended"] = {lease: time.time() + 600}
        return lists

    stand_in._extend = extend  # type: ignore[method-assign]
    seen = []
    for job in twin.realm("test", "http://x", stand_in).consume(count=4, lease_time=0.3, stop_when_empty=True):
        if job.job_id == "a":
            until(lambda: len(stand_in.bodies("extend")) >= 3)
            time.sleep(0.05)
        with job:
            seen.append(job.job_id)
    assert seen == ["a", "d"]
    assert stand_in.bodies("release") == [{"leases": ["lease-cancelled"]}]
