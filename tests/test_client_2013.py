"""A client of 2013, in the very shapes that it sent and read: it must work against this server unchanged."""

from __future__ import annotations

import base64
import builtins
import json
from typing import Any
from urllib.parse import quote

import pytest
import requests
from conftest import Server


class Client2013:
    """The calls of that client. Whatever was no success it raised: the class by the name in the reply."""

    def __init__(self, server: Server, realm: str, requester: Any = requests) -> None:
        self.root = server.uri.rstrip("/")
        self.realm_uri = f"{self.root}/{realm}"
        self.realm = realm
        self.requester = requester

    def request(self, verb: str, uri: str, data: Any = None, **options: Any) -> Any:
        if data is not None:
            options["data"] = json.dumps(data)
        response = getattr(self.requester, verb)(uri, **options)
        if response.status_code == 200:
            return response.json()
        if response.headers["content-type"] == "application/json":
            error = json.loads(response.content)
            raise getattr(builtins, error["exception"])(error["message"])
        raise AssertionError(f"no error that the client knows: {response.status_code} {response.text}")

    def job_uri(self, job_id: str) -> str:
        return f"{self.realm_uri}/job/{quote(job_id, safe='')}"

    def add(self, job_id: str, queue_id: Any, data: Any = None, tags: list[str] | None = None) -> None:
        body: dict[str, Any] = {"queue_id": queue_id}
        if data is not None:
            body["data"] = data
        if tags is not None:
            body["tags"] = tags
        self.request("put", self.job_uri(job_id), body)


@pytest.fixture
def client(server: Server, realm_name: str) -> Client2013:
    """Its realm is used by no other test."""
    return Client2013(server, realm_name)


def cli_id(argument: str) -> str:
    """The id under which the command line of 2013 kept an argument: base64, with the newline at its end."""
    return base64.encodebytes(argument.encode()).decode()


def test_get_base_uri_without_trailing_slash_lists_realms(client: Client2013) -> None:
    client.add("j", 0)
    response = requests.get(client.root)
    assert response.headers["content-type"] == "application/json"
    assert response.json()[client.realm] == {"total_jobs": 1, "total_tags": 0, "queues": {"0": 1}}


@pytest.mark.parametrize("argument", ["ls -lah", "pwd", "find / -name '?'", "x" * 300, "größe"])
def test_use_base64_ids_with_newlines_work_through_all_calls(client: Client2013, argument: str) -> None:
    job_id = cli_id(argument)
    assert job_id.endswith("\n")
    client.add(job_id, "0", argument, ["work", "fun"])
    job = client.request("get", client.job_uri(job_id))
    assert (sorted(job["tags"]), job["data"], job["queues"]) == (["fun", "work"], argument, [[0, 0]])
    pulled = client.request("get", f"{client.realm_uri}/job", params={"count": 5})
    assert pulled == {job_id: [0, argument]}
    [[queue_id, seconds]] = client.request("get", client.job_uri(job_id))["queues"]
    assert queue_id == 0
    assert 0 < seconds < 60
    client.request("delete", client.job_uri(job_id))
    assert client.request("get", f"{client.realm_uri}/status") == {
        "total_jobs": 0,
        "total_tags": 0,
        "queues": {"0": 0},
    }


def test_put_with_a_session_that_names_the_content_type_works_too(server: Server, realm_name: str) -> None:
    with requests.Session() as session:
        session.headers.update({"content-type": "application/json"})
        client = Client2013(server, realm_name, session)
        client.add("j", 0, {"a": 1}, ["t"])
        assert client.request("get", f"{client.realm_uri}/job") == {"j": [0, {"a": 1}]}


def test_pull_with_max_queue_uses_its_hyphen(client: Client2013) -> None:
    client.add("a", 0)
    client.add("b", 1)
    params = {"count": 5, "max-queue": 0}
    assert client.request("get", f"{client.realm_uri}/job", params=params) == {"a": [0, None]}


def test_bulk_add_in_one_realm_takes_a_list_or_an_object(client: Client2013) -> None:
    jobs = [{"job_id": 1, "queue_id": 0, "data": "x", "tags": ["t"]}, {"job_id": 2, "queue_id": 0}]
    client.request("post", f"{client.realm_uri}/jobs", {"jobs": jobs})
    client.request("post", f"{client.realm_uri}/jobs", {"jobs": {3: {"job_id": 3, "queue_id": 1, "tags": ["t"]}}})
    assert client.request("get", f"{client.realm_uri}/tag/t/status") == {"count": 2}
    assert sorted(client.request("get", f"{client.realm_uri}/tag/t")) == ["1", "3"]
    client.request("delete", f"{client.realm_uri}/jobs", {"jobs": [1, "2", 99]})
    assert client.request("get", f"{client.realm_uri}/status")["total_jobs"] == 1


def test_bulk_add_over_realms_names_the_realm_in_each_job(client: Client2013) -> None:
    realms = [f"{client.realm}-{number}" for number in range(6)]
    jobs = [{"realm_id": realm, "job_id": f"j{n}", "queue_id": n, "data": n} for n, realm in enumerate(realms)]
    client.request("post", f"{client.root}/jobs", {"jobs": jobs})
    params = {"count": 2, "realms": ",".join(realms)}
    assert client.request("get", f"{client.root}/job", params=params) == {
        "j0": [realms[0], 0, 0],
        "j1": [realms[1], 1, 1],
    }
    client.request("delete", f"{client.root}/jobs", {"jobs": [[realm, f"j{n}"] for n, realm in enumerate(realms)]})
    statuses = client.request("get", client.root)
    assert [statuses[realm]["total_jobs"] for realm in realms] == [0] * 6


def test_move_and_clear_by_get_change_queues(client: Client2013) -> None:
    client.add("j", 0)
    client.request("get", f"{client.job_uri('j')}/from_q/0/to_q/5")
    assert client.request("get", client.job_uri("j"))["queues"] == [[5, 0]]
    client.request("get", f"{client.realm_uri}/queues/5/clear")
    assert client.request("get", f"{client.realm_uri}/status")["total_jobs"] == 0


def test_configure_lease_times_and_delete_realm_work(client: Client2013) -> None:
    client.request("post", f"{client.realm_uri}/config", {"default_lease_time": 0})
    client.request("post", f"{client.realm_uri}/config", {"queue_lease_time": ["1", 600]})
    client.add("again", 0)
    client.add("once", 1)
    pulls = [client.request("get", f"{client.realm_uri}/job", params={"count": 2}) for _ in range(2)]
    assert pulls == [{"again": [0, None], "once": [1, None]}, {"again": [0, None]}]
    client.request("delete", f"{client.realm_uri}/")
    assert client.realm not in client.request("get", client.root)


def test_remove_tagged_jobs_removes_them(client: Client2013) -> None:
    client.add("a", 0, tags=["t"])
    client.add("b", 0)
    client.request("delete", f"{client.realm_uri}/tag/t")
    assert client.request("get", f"{client.realm_uri}/status") == {
        "total_jobs": 1,
        "total_tags": 0,
        "queues": {"0": 1},
    }


ERRORS: list[tuple[str, str, Any, type[Exception], str]] = [
    ("get", "job/none", None, KeyError, "none"),
    ("get", "tag/none/status", None, KeyError, "none"),
    ("get", "tag/none", None, KeyError, "none"),
    ("get", "queues/9/clear", None, ValueError, "9"),
    ("get", "job/none/from_q/0/to_q/1", None, ValueError, "none"),
    ("get", "job/j/from_q/9/to_q/1", None, ValueError, "9"),
    ("put", "job/j", {"queue_id": 0, "data": "other"}, ValueError, "already exists with other data"),
    ("put", "job/k", {"data": 1}, KeyError, "queue_id"),
    ("put", "job/k", {"queue_id": [0]}, TypeError, "queue_id"),
    ("post", "jobs", {"jobs": [{"job_id": "k"}]}, KeyError, "queue_id"),
    ("post", "config", {"default_lease_time": "soon"}, TypeError, "default_lease_time"),
    ("get", "job?count=some", None, ValueError, "count"),
    ("get", "nonsense", None, KeyError, "nothing at"),
]


@pytest.mark.parametrize(("verb", "path", "body", "raised", "word"), ERRORS)
def test_meet_an_error_raises_the_builtin_that_the_reply_names(
    client: Client2013, verb: str, path: str, body: Any, raised: type[Exception], word: str
) -> None:
    client.add("j", 0, "data")
    with pytest.raises(raised, match=word) as caught:
        client.request(verb, f"{client.realm_uri}/{path}", body)
    assert type(caught.value) is raised
    assert client.request("get", f"{client.realm_uri}/status")["total_jobs"] == 1
