"""The Python clients against a real server, and against broken ones that answer by a script.

What takes `twin` runs with both of them, and so does what takes `realm`; the rest is the sync client's own.
What came after 2013 is tested in `test_client_jobs.py` and `test_client_retries.py`.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Server, StartServer
from twins import Broken, Loop, Twin, twins

from restq import Realm, Realms, errors
from restq.client import peer
from restq.client.buffer import BYTES_MAX, JOBS_MAX
from restq.config import ConfigError, load

AWKWARD_IDS = [
    ".",
    "..",
    "...",
    "a/b",
    "/",
    "//",
    "../x",
    "a b",
    "a+b",
    "a%2Fb",
    "%",
    "?x=1",
    "#x",
    "ls -lah; echo \"$HOME\" 'q'",
    "zwei\nZeilen",
    "tab\tund\rCR",
    "\x01\x7f",
    "größe",
    "日本語",
    "🦀",
    "~",
    "job",
    "from_q",
    "x" * 8192,
]


class Recorder:
    """A requester of 2013: takes any keywords and answers all alike, and keeps what it was asked."""

    def __init__(self, reply: Any = None, status: int = 200) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.options: list[dict[str, Any]] = []
        self.reply = {} if reply is None else reply
        self.status_code = status

    def json(self) -> Any:
        return self.reply

    def _take(self, verb: str, url: str, **options: Any) -> Recorder:
        content = options.get("data")
        self.calls.append((verb, url, None if content is None else json.loads(content)))
        self.options.append(options)
        return self

    def get(self, url: str, *args: Any, **options: Any) -> Recorder:
        return self._take("GET", url, **options)

    def put(self, url: str, *args: Any, **options: Any) -> Recorder:
        return self._take("PUT", url, **options)

    def post(self, url: str, *args: Any, **options: Any) -> Recorder:
        return self._take("POST", url, **options)

    def delete(self, url: str, *args: Any, **options: Any) -> Recorder:
        return self._take("DELETE", url, **options)


def html(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>".encode()


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


@pytest.fixture
def realm(twin: Twin, server: Server, realm_name: str) -> Any:
    """Either client of a realm that no other test uses, on the shared server."""
    return twin.realm(realm_name, server.uri)


@pytest.fixture
def realms(server: Server) -> Iterator[Realms]:
    with Realms(server.uri) as client:
        yield client


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Without a server.
def test_import_of_package_loads_no_client() -> None:
    code = "import sys, restq; print('requests' in sys.modules, 'restq.client' in sys.modules, bool(restq.Realms))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False", "True"]


def test_make_clients_without_server_sends_nothing() -> None:
    recorder = Recorder()
    realms = Realms("http://nowhere.invalid", recorder)
    assert realms.test is realms["test"]
    assert realms.test.name == "test"
    assert repr(realms.test) == "<restq realm 'test'>"
    assert realms == realms
    assert realms != Realms("http://nowhere.invalid", recorder)
    assert realms in {realms}
    with realms, realms.test:
        pass
    assert recorder.calls == []


@pytest.mark.parametrize("name", ["", "a/b", "-x", ".x", "x" * 129, "job", "pull", "metrics", "a\nb"])
def test_make_realm_of_impossible_name_raises_realm_name_invalid(name: str) -> None:
    with pytest.raises(errors.RealmNameInvalid):
        Realms("http://nowhere.invalid")[name]
    with pytest.raises(ValueError, match="realm"):
        Realm(name)


@pytest.mark.parametrize("name", ["_repr_html_", "__wrapped__", "_x", "jobs", "metrics"])
def test_get_attribute_that_is_no_realm_raises_attribute_error(name: str) -> None:
    assert not hasattr(Realms("http://nowhere.invalid"), name)


def test_get_realm_with_the_name_of_a_method_needs_brackets() -> None:
    realms = Realms("http://nowhere.invalid")
    assert callable(realms.bulk_add)
    assert isinstance(realms["bulk_add"], Realm)
    assert isinstance(realms["_x"], Realm)


def test_use_without_uri_takes_configured_uri_count_and_timeout(twin: Twin) -> None:
    config = load({"client.uri": "http://there:1/q", "client.count": 9, "client.timeout_seconds": 3}, {"HOME": "/"}, [])
    recorder = Recorder({"jobs": []})
    assert twin.realms(requester=recorder, config=config).test.pull() == {}
    assert recorder.calls == [("POST", "http://there:1/q/test/pull", {"count": 9})]
    assert recorder.options[0]["timeout"] == 3


def test_use_with_broken_configuration_raises_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTQ_CLIENT_COUNT", "many")
    realms = Realms()
    with pytest.raises(ConfigError, match="RESTQ_CLIENT_COUNT"):
        len(realms)


def test_iterate_realm_is_refused() -> None:
    recorder = Recorder()
    with pytest.raises(TypeError):
        list(Realm("test", "http://x", recorder))  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        "a" in Realm("test", "http://x", recorder)  # type: ignore[operator]  # noqa: B015
    assert recorder.calls == []


def test_call_each_method_sends_the_documented_request(twin: Twin) -> None:
    recorder = Recorder({"jobs": [], "removed": 3, "shards": []})
    realm, base = twin.realm("my realm", "http://x", recorder), "http://x/my%20realm/"

    def sent() -> tuple[str, str, Any]:
        verb, url, body = recorder.calls.pop()
        return verb, url.removeprefix(base), body

    realm.add("a/b", "7", {"x": 1}, ("t",))
    assert sent() == ("PUT", "job/a%2Fb", {"queue_id": 7, "data": {"x": 1}, "tags": ["t"]})
    realm.add(2, 0)  # type: ignore[arg-type]
    assert sent() == ("PUT", "job/2", {"queue_id": 0})
    realm.add("..", 0)
    assert sent() == ("POST", "jobs", {"jobs": [{"job_id": "..", "queue_id": 0}]})
    realm.bulk_add({"first": {"job_id": "a", "queue_id": 0}, "second": {"job_id": "b", "queue_id": 1}})
    assert sent() == ("POST", "jobs", {"jobs": [{"job_id": "a", "queue_id": 0}, {"job_id": "b", "queue_id": 1}]})
    realm.bulk_remove(iter(["a", "b"]))
    assert sent() == ("DELETE", "jobs", {"jobs": ["a", "b"]})
    realm.pull(3, max_queue="1")
    assert sent() == ("POST", "pull", {"count": 3, "max_queue": 1})
    realm.get_job("a?b")
    assert sent() == ("GET", "job/a%3Fb", None)
    realm["a#b"]
    assert sent() == ("GET", "job/a%23b", None)
    realm.get_tag_status("t/t")
    assert sent() == ("GET", "tag/t%2Ft/status", None)
    realm.get_tagged_jobs("t")
    assert sent() == ("GET", "tag/t", None)
    realm.remove_job("a")
    assert sent() == ("DELETE", "job/a", None)
    realm.remove_job("..")
    assert sent() == ("DELETE", "jobs", {"jobs": [".."]})
    realm.remove_tagged_jobs("t")
    assert sent() == ("DELETE", "tag/t", None)
    realm.move_job("a", "0", "late")
    assert sent() == ("POST", "job/a/move", {"from_queue": 0, "to_queue": "late"})
    assert realm.clear_queue("a/b") == 3
    assert sent() == ("POST", "queues/a%2Fb/clear", {})
    realm.set_default_lease_time(5)
    assert sent() == ("POST", "config", {"default_lease_time": 5})
    realm.set_queue_lease_time("0", 1.5)
    assert sent() == ("POST", "config", {"queue_lease_time": [0, 1.5]})
    realm.pin(1)
    assert sent() == ("PUT", "shard", {"shard": 1})
    realm.unpin()
    assert sent() == ("DELETE", "shard", None)
    assert realm.status == recorder.reply
    assert sent() == ("GET", "status", None)
    assert realm.request("get", "tag", "x") == recorder.reply
    assert sent() == ("GET", "tag/x", None)


def test_get_requester_returns_the_one_that_was_given() -> None:
    recorder = Recorder()
    assert Realm("test", "http://x", recorder).requester is recorder
    assert Realms("http://x", recorder).requester is recorder


def test_call_each_method_over_realms_sends_the_documented_request(twin: Twin) -> None:
    recorder = Recorder({"jobs": [], "shards": [{"shard": 0}]})
    realms = twin.realms("http://x/", recorder)
    realms.pull(2, ["a", "b"])
    realms.bulk_add([{"realm_id": "a", "job_id": "j", "queue_id": 0, "tags": {"t"}}])
    realms.bulk_remove([("a", "j")])
    assert realms.shards() == [{"shard": 0}]
    assert recorder.calls == [
        ("POST", "http://x/pull", {"count": 2, "realms": ["a", "b"], "distinct": True}),
        ("POST", "http://x/jobs", {"jobs": [{"realm_id": "a", "job_id": "j", "queue_id": 0, "tags": ["t"]}]}),
        ("DELETE", "http://x/jobs", {"jobs": [["a", "j"]]}),
        ("GET", "http://x/performance/shards", None),
    ]


def test_remove_tag_of_dots_never_sends_a_path_that_a_proxy_could_shorten(twin: Twin) -> None:
    recorder = Recorder({"a": {}, "b": {}})
    twin.realm("test", "http://x", recorder).remove_tagged_jobs("..")
    assert recorder.calls[-1] == ("DELETE", "http://x/test/jobs", {"jobs": ["a", "b"]})
    assert [verb for verb, url, _ in recorder.calls if url.endswith("%2E%2E")] == ["GET"]


@pytest.mark.parametrize("data", [float("nan"), float("inf"), object(), {1, 2}, b"bytes"])
def test_add_of_data_that_json_cannot_hold_raises_before_anything_is_sent(twin: Twin, data: Any) -> None:
    recorder = Recorder()
    realm = twin.realm("test", "http://x", recorder)
    with pytest.raises((TypeError, ValueError)):
        realm.add("a", 0, data)
    with pytest.raises((TypeError, ValueError)):
        realm.bulk_add([{"job_id": "a", "queue_id": 0, "data": data}], buffer=True)
    realm.close()
    assert recorder.calls == []


@pytest.mark.parametrize(
    ("data", "where"),
    [(float("nan"), "data"), (b"x", "data"), ({"a": [0, b"x"]}, "data.a[1]"), ({(1, 2): 0}, "data")],
)
def test_add_of_data_that_json_cannot_hold_names_the_part(twin: Twin, data: Any, where: str) -> None:
    recorder = Recorder()
    realm, good = twin.realm("test", "http://x", recorder), {"job_id": "a", "queue_id": 0}
    bad = {**good, "data": data}
    for call, said in (
        (lambda: realm.add("a", 0, data), where),
        (lambda: realm.bulk_add([good, bad]), "jobs[1].data"),
        (lambda: realm.bulk_add([bad], buffer=True), where),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^{re.escape(said)} cannot be sent as JSON: "):
            call()
    assert recorder.calls == []


def test_set_lease_time_to_no_number_names_the_part(twin: Twin) -> None:
    with pytest.raises(ValueError, match=r"^default_lease_time cannot be sent as JSON: "):
        twin.realm("test", "http://x", Recorder()).set_default_lease_time(float("nan"))


@pytest.mark.parametrize("jobs", [["a"], {"job_id": "a", "queue_id": 0}, [None]])
def test_bulk_add_of_what_are_no_jobs_raises_type_error(twin: Twin, jobs: Any) -> None:
    with pytest.raises(TypeError, match="a job is a dict"):
        twin.realm("test", "http://x", Recorder()).bulk_add(jobs)


def test_bulk_remove_of_one_text_raises_and_removes_no_letters(twin: Twin) -> None:
    recorder = Recorder()
    with pytest.raises(TypeError, match=r"write \['abc'\]"):
        twin.realm("test", "http://x", recorder).bulk_remove("abc")
    assert recorder.calls == []


def test_give_one_text_for_a_list_raises_and_splits_it_into_no_letters(twin: Twin) -> None:
    recorder = Recorder({"jobs": []})
    realms = twin.realms("http://x", recorder)
    job = {"realm_id": "test", "job_id": "a", "queue_id": 0, "tags": "abc"}
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: realms.test.add("a", 0, tags="abc"), r"tags is a list of tags, not one: write \['abc'\]"),
        (lambda: realms.test.bulk_add([job]), r"tags is a list of tags"),
        (lambda: realms.test.bulk_add([job], buffer=True), r"tags is a list of tags"),
        (lambda: realms.bulk_add([job]), r"tags is a list of tags"),
        (lambda: realms.pull(realms="mail"), r"realms is a list of realm names, not one: write \['mail'\]"),
        (lambda: realms.test.bulk_remove(b"ab"), r"job_ids is a list of job ids"),  # type: ignore[arg-type]
        (lambda: realms.bulk_remove(["ab"]), r"a list of pairs .* and 'ab' is none"),  # type: ignore[list-item]
        (lambda: realms.bulk_remove("ab"), r"a list of pairs .* and 'a' is none"),  # type: ignore[arg-type]
        (lambda: realms.bulk_remove([("a", "b", "c")]), r"a list of pairs"),  # type: ignore[list-item]
    ]
    for call, said in wrong:
        with pytest.raises(TypeError, match=said):
            call()
    realms.close()
    assert recorder.calls == []


# The buffer.
def test_bulk_add_with_buffer_sends_at_flush_and_at_close(twin: Twin) -> None:
    recorder = Recorder()
    with twin.realms("http://x", recorder) as realms:
        data = {"n": 1}
        realms.test.bulk_add([{"job_id": "a", "queue_id": 0, "data": data}], buffer=True)
        data["n"] = 2  # too late: the job was added as it was
        assert recorder.calls == []
        realms.test.bulk_flush()
        realms.test.bulk_flush()
        assert [body for _, _, body in recorder.calls] == [{"jobs": [{"job_id": "a", "queue_id": 0, "data": {"n": 1}}]}]
        realms.test.bulk_add({"x": {"job_id": "b", "queue_id": 0}}, buffer=True)
    assert recorder.calls[1:] == [("POST", "http://x/test/jobs", {"jobs": [{"job_id": "b", "queue_id": 0}]})]


def test_bulk_add_with_buffer_sends_when_full(twin: Twin) -> None:
    recorder = Recorder()
    realm = twin.realm("test", "http://x", recorder)
    realm.bulk_add(({"job_id": str(n), "queue_id": 0} for n in range(2 * JOBS_MAX + 1)), buffer=True)
    assert [len(body["jobs"]) for _, _, body in recorder.calls] == [JOBS_MAX, JOBS_MAX]
    recorder.calls.clear()
    realm.bulk_add([{"job_id": "large", "queue_id": 0, "data": "x" * BYTES_MAX}], buffer=True)
    assert [[job["job_id"] for job in body["jobs"]] for _, _, body in recorder.calls] == [[str(2 * JOBS_MAX), "large"]]


def test_bulk_add_without_buffer_sends_its_own_jobs_whatever_is_buffered(twin: Twin) -> None:
    recorder = Recorder()
    realm = twin.realm("test", "http://x", recorder)
    realm.bulk_add([{"job_id": "a", "queue_id": 0}], buffer=True)
    realm.bulk_add([{"job_id": "b", "queue_id": 0}])
    assert [body["jobs"][0]["job_id"] for _, _, body in recorder.calls] == ["b"]
    realm.bulk_flush()
    assert [body["jobs"][0]["job_id"] for _, _, body in recorder.calls] == ["b", "a"]


def test_bulk_discard_gives_what_was_refused_and_forgets_it(twin: Twin) -> None:
    recorder = Recorder({"code": "data_differs", "message": "jobs[1]: job 'dup' .."}, status=409)
    with twin.realms("http://x", recorder) as realms:
        good, bad = {"job_id": "good", "queue_id": 0, "tags": ["t"]}, {"job_id": "dup", "queue_id": 0, "data": {"n": 2}}
        realms.test.bulk_add([good, bad], buffer=True)
        with pytest.raises(errors.DataDiffers):
            realms.test.bulk_flush()
        assert realms.test.bulk_discard() == [good, bad]
        assert realms.test.bulk_discard() == []
        realms.test.bulk_add([good], buffer=True)
        realms.other.bulk_add([], buffer=True)
        assert realms.bulk_discard() == {"test": [good]}
    assert len(recorder.calls) == 1


def test_bulk_flush_that_fails_keeps_the_jobs_and_sends_those_of_other_realms() -> None:
    recorder = Recorder({"code": "storage_full", "message": "no room"}, status=507)
    realms = Realms("http://x", recorder)
    realms.a.bulk_add([{"job_id": "a", "queue_id": 0}], buffer=True)
    realms.b.bulk_add([{"job_id": "b", "queue_id": 0}], buffer=True)
    with pytest.raises(errors.StorageFull):
        realms.close()
    assert len(recorder.calls) == 2
    recorder.status_code = 200
    realms.close()
    assert [body["jobs"][0]["job_id"] for _, _, body in recorder.calls] == ["a", "b", "a", "b"]


# Servers that fail.
@pytest.mark.parametrize("code", ["overloaded", "shard_starting"])
def test_request_that_the_server_did_not_do_is_repeated(twin: Twin, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder({"code": code, "message": "later"}, status=503)
    monkeypatch.setattr(peer.random, "uniform", lambda *_: setattr(recorder, "status_code", 200) or 0)
    twin.realm("test", "http://x", recorder).add("a", 0)
    assert len(recorder.calls) == 2


def test_request_without_key_of_which_nothing_is_known_is_not_repeated(twin: Twin) -> None:
    recorder = Recorder({"code": "shard_unavailable", "message": "gone"}, status=503)
    with pytest.raises(errors.ShardUnavailable):
        twin.realm("test", "http://x", recorder).add("a", 0)
    assert len(recorder.calls) == 1


def test_request_to_nobody_says_who_was_asked(twin: Twin, free_port: int) -> None:
    with twin.realms(f"http://127.0.0.1:{free_port}") as realms, pytest.raises(errors.ServerUnreachable) as caught:
        realms.pull()
    assert str(caught.value) == f"no restq server answers at http://127.0.0.1:{free_port}/: Connection refused"
    assert isinstance(caught.value, ConnectionError)


@pytest.mark.parametrize("requester", [None, requests])
@pytest.mark.parametrize("uri", ["nonsense", "localhost:8586", "ftp://h/", "http://[::1"])
def test_request_to_what_is_no_address_says_that_nothing_was_sent(uri: str, requester: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Realms(uri, requester).p.status  # noqa: B018
    assert str(caught.value) == f"{uri!r} is no address such as http://localhost:8586/: nothing was sent"


def test_dir_without_server_still_lists_methods(free_port: int) -> None:
    with Realms(f"http://127.0.0.1:{free_port}") as realms:
        assert {"pull", "bulk_add", "bulk_remove", "shards"} <= set(dir(realms))


def test_request_without_answer_in_time_says_that_it_may_have_been_done(twin: Twin) -> None:
    config = load({"client.timeout_seconds": 0.2}, {"HOME": "/"}, [])
    with Broken(None) as broken, twin.realm("test", broken.uri, config=config) as realm:
        with pytest.raises(errors.ServerUnreachable, match=r"within 0\.2 s: whether the request was done is not known"):
            realm.pull()
        assert len(broken.requests) == 1


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b"nonsense\r\n\r\n"])
def test_request_without_key_with_cut_answer_is_sent_once_and_says_that_it_may_have_been_done(
    twin: Twin, answer: bytes
) -> None:
    with Broken(answer) as broken, twin.realm("test", broken.uri) as realm:
        for act in (lambda: realm.add("a", 0), lambda: realm.remove_job("a"), lambda: realm.status):
            broken.requests.clear()
            with pytest.raises(errors.ServerUnreachable, match="whether the request was done is not known"):
                act()
            assert len(broken.requests) == 1


@pytest.mark.parametrize("status", ["200 OK", "502 Bad Gateway", "404 Not Found"])
def test_request_with_answer_that_is_not_json_says_so(twin: Twin, status: str) -> None:
    with Broken(html(status)) as broken, twin.realm("test", broken.uri) as realm:
        with pytest.raises(errors.RestqError, match=rf"status {status[:3]} and something that is not JSON"):
            realm.pull()
        assert len(broken.requests) == 1


def test_request_that_is_redirected_is_not_sent_again(twin: Twin) -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 2\r\n\r\n{}"
    with Broken(answer) as broken, twin.realm("test", broken.uri) as realm:
        with pytest.raises(errors.RestqError, match="status 302"):
            realm.pull()
        assert len(broken.requests) == 1


@pytest.mark.parametrize("requester", [None, requests])
def test_request_with_restq_error_raises_the_class_of_its_code(requester: Any) -> None:
    body = json.dumps(errors.DataDiffers("job 'a' already exists with other data").to_reply()).encode()
    answer = b"HTTP/1.1 409 Conflict\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    said = pytest.raises(errors.DataDiffers, match="already exists with other data")
    with Broken(answer) as broken, Realm("test", broken.uri, requester) as realm, said:
        realm.add("a", 0)


# The real server.
def test_add_then_pull_returns_jobs_by_queue_and_then_by_age(realm: Any) -> None:
    realm.add("late", 10)
    realm.add("second", 2, {"x": [1, None, "é"]})
    realm.add("third", "2")
    realm.add("text", "queue")
    pulled = realm.pull(9)
    assert list(pulled.items()) == [
        ("second", [2, {"x": [1, None, "é"]}]),
        ("third", [2, None]),
        ("late", [10, None]),
        ("text", ["queue", None]),
    ]
    assert realm.pull() == {}


def test_pull_without_count_takes_configured_five(realm: Any) -> None:
    realm.bulk_add([{"job_id": str(n), "queue_id": 0} for n in range(7)])
    assert list(realm.pull()) == ["0", "1", "2", "3", "4"]
    assert list(realm.pull()) == ["5", "6"]


def test_pull_with_max_queue_leaves_later_queues(realm: Any) -> None:
    realm.bulk_add({n: {"job_id": n, "queue_id": n} for n in ("0", "1", "2")})
    assert list(realm.pull(9, max_queue=1)) == ["0", "1"]


@pytest.mark.parametrize("job_id", AWKWARD_IDS)
def test_add_get_move_pull_and_remove_keep_awkward_job_id(realm: Any, job_id: str) -> None:
    realm.add(job_id, 0, data=[job_id], tags=["t"])
    realm.add("neighbour", 9, tags=["t"])
    assert realm.get_job(job_id)["data"] == [job_id]
    realm.move_job(job_id, 0, 1)
    assert realm.pull(1) == {job_id: [1, [job_id]]}
    assert set(realm.get_tagged_jobs("t")) == {job_id, "neighbour"}
    realm.remove_job(job_id)
    assert set(realm.get_tagged_jobs("t")) == {"neighbour"}


@pytest.mark.parametrize("tag", [".", "..", "a/b", "a b", "%2F", "?", "status", "größe"])
def test_ask_for_and_remove_awkward_tag_concerns_its_jobs_only(realm: Any, tag: str) -> None:
    realm.add("a", 0, tags=[tag])
    realm.add("b", 0, tags=["other"])
    assert realm.get_tag_status(tag) == {"count": 1}
    assert list(realm.get_tagged_jobs(tag)) == ["a"]
    realm.remove_tagged_jobs(tag)
    assert realm.status["total_jobs"] == 1
    with pytest.raises(errors.TagNotFound):
        realm.get_tag_status(tag)


@pytest.mark.parametrize("queue_id", [".", "..", "a/b", "0", "-3", "größe"])
def test_clear_awkward_queue_removes_its_jobs(realm: Any, queue_id: str) -> None:
    realm.add("a", queue_id)
    realm.add("b", 77)
    assert realm.clear_queue(queue_id) == 1
    assert realm.status["total_jobs"] == 1


def test_get_job_tells_tags_data_and_time_since_checkout(realm: Any) -> None:
    realm.add("a", 0, 5, ["t"])
    realm.add("a", 1)
    realm.pull(1)
    job = realm["a"]
    assert (job["tags"], job["data"]) == (["t"], 5)
    ages = dict(job["queues"])
    assert 0 < ages[0] < 60
    assert ages[1] == 0


def test_use_of_what_is_not_there_raises_as_in_2013(realm: Any) -> None:
    realm.add("a", 0)
    with pytest.raises(KeyError):
        realm.get_job("b")
    with pytest.raises(KeyError):
        realm.get_tag_status("none")
    with pytest.raises(ValueError, match="b"):
        realm.move_job("b", 0, 1)
    with pytest.raises(ValueError, match="7"):
        realm.move_job("a", 7, 1)
    with pytest.raises(ValueError, match="7"):
        realm.clear_queue(7)
    realm.remove_job("b")
    realm.bulk_remove(["b", "c"])
    realm.remove_tagged_jobs("none")


def test_add_with_other_data_raises_and_changes_nothing(realm: Any) -> None:
    realm.add("a", 0, "data")
    with pytest.raises(ValueError, match="already exists with other data") as caught:
        realm.add("a", 1, "other")
    assert isinstance(caught.value, errors.DataDiffers)
    realm.add("a", 2)
    assert [queue_id for queue_id, _ in realm["a"]["queues"]] == [0, 2]
    assert realm["a"]["data"] == "data"


def test_move_of_leased_job_raises_value_error(realm: Any) -> None:
    realm.add("a", 0)
    realm.pull()
    with pytest.raises(errors.JobLeased):
        realm.move_job("a", 0, 1)


def test_bulk_add_with_one_wrong_job_applies_none(realm: Any) -> None:
    with pytest.raises(ValueError, match="queue_id"):
        realm.bulk_add([{"job_id": "a", "queue_id": 0}, {"job_id": "b", "queue_id": "x" * 600}])
    with pytest.raises(KeyError, match="queue_id"):
        realm.bulk_add([{"job_id": "a", "queue_id": 0}, {"job_id": "b"}])
    assert realm.status["total_jobs"] == 0


def test_bulk_add_then_status_counts_what_bulk_remove_leaves(realm: Any) -> None:
    realm.bulk_add([{"job_id": str(n), "queue_id": n % 2, "tags": {"t"}} for n in range(10)])
    assert realm.status == {"total_jobs": 10, "total_tags": 1, "queues": {"0": 5, "1": 5}}
    realm.bulk_remove(str(n) for n in range(9))
    assert realm.status == {"total_jobs": 1, "total_tags": 1, "queues": {"0": 0, "1": 1}}


def test_set_lease_time_to_a_moment_hands_job_out_again(realm: Any) -> None:
    realm.set_default_lease_time(0.001)
    realm.add("a", 0)
    realm.set_queue_lease_time("other", 600)
    assert "other" in realm.status["queues"]
    for _ in range(3):
        while not realm.pull():
            pass


def test_read_of_unknown_realm_answers_as_empty_and_does_not_make_it(realms: Realms, realm_name: str) -> None:
    assert realms[realm_name].status == {"total_jobs": 0, "total_tags": 0, "queues": {}}
    assert realms[realm_name].pull() == {}
    assert realm_name not in realms


def test_realms_as_mapping_shows_live_realms(realms: Realms, realm_name: str) -> None:
    identifier = realm_name.replace("-", "_")
    before = len(realms)
    realms[identifier].add("a", 0)
    assert identifier in realms
    assert identifier in list(realms)
    assert identifier in dir(realms)
    assert identifier in str(realms)
    assert len(realms) == before + 1
    assert "pull" not in realms


def test_pull_over_realms_takes_lowest_queue_of_all(realms: Realms, realm_name: str) -> None:
    names = [f"{realm_name}-{n}" for n in range(4)]
    realms.bulk_add([{"realm_id": name, "job_id": f"j{n}", "queue_id": 9 - n} for n, name in enumerate(names)])
    assert list(realms.pull(2, names).items()) == [("j3", [names[3], 6, None]), ("j2", [names[2], 7, None])]
    realms.bulk_remove([(name, f"j{n}") for n, name in enumerate(names)])
    assert [realms[name].status["total_jobs"] for name in names] == [0, 0, 0, 0]


def test_pull_over_realms_with_one_id_twice_leases_the_first_alone(realms: Realms, realm_name: str) -> None:
    names = [f"{realm_name}-{n}" for n in range(4)]
    realms.bulk_add([{"realm_id": name, "job_id": "same", "queue_id": n} for n, name in enumerate(names)])
    for n, name in enumerate(names):
        assert realms.pull(9, names) == {"same": [name, n, None]}
    assert realms.pull(9, names) == {}


def test_pin_moves_realm_and_keeps_its_jobs(realms: Realms, realm_name: str) -> None:
    realm = realms[realm_name]
    realm.add("a", 0, "data")
    for shard in (0, 1, 0):
        realm.pin(shard)
        placed = [found for found in realms.shards() if realm_name in found["realms"]]
        assert [found["shard"] for found in placed] == [shard]
        assert placed[0]["realms"][realm_name] == {"jobs": 1, "pinned": True}
        assert realm["a"]["data"] == "data"
    realm.unpin()
    held = [found["realms"][realm_name] for found in realms.shards() if realm_name in found["realms"]]
    assert held == [{"jobs": 1, "pinned": False}]


def test_pin_to_shard_that_is_not_there_is_refused(realms: Realms, realm_name: str) -> None:
    realms[realm_name].add("a", 0)
    with pytest.raises(errors.RestqError, match="shard"):
        realms[realm_name].pin(7)


def test_use_through_requests_module_works_as_a_session(server: Server, realm_name: str) -> None:
    realm = Realms(server.uri, requests)[realm_name]
    realm.add("..", 0)
    assert realm.pull() == {"..": [0, None]}
    assert realm.requester is requests


def test_use_from_many_threads_loses_and_doubles_nothing(realm: Any) -> None:
    realm.bulk_add([{"job_id": str(n), "queue_id": 0} for n in range(200)])
    taken: list[str] = []

    def work() -> None:
        while pulled := realm.pull(7):
            taken.extend(pulled)
            realm.bulk_remove(pulled)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken, key=int) == [str(n) for n in range(200)]
    assert realm.status["total_jobs"] == 0


def test_use_after_server_was_restarted_needs_no_new_client(
    twin: Twin, start_server: StartServer, tmp_path: Path
) -> None:
    first = start_server(data_dir=tmp_path / "data")
    with twin.realm("test", first.uri) as realm:
        realm.set_default_lease_time(1234)
        realm.add("a", 0, {"kept": True}, ["t"])
        assert first.stop() == 0
        with pytest.raises(errors.ServerUnreachable, match="no restq server answers"):
            realm.add("b", 0)
        start_server(data_dir=tmp_path / "data", port=first.port)
        assert realm.pull() == {"a": [0, {"kept": True}]}
