"""The commands of a worker in a shell: pull with leases, ack, nack, release, extend. Against a real server."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import cli_rig
import click
import pytest
from cli_rig import COMMAND, Outcome, Run, process

from restq import Realm
from restq.cli import values
from restq.cli.requester import QuickRequester

cli, run = cli_rig.cli, cli_rig.run


def place(realm: Realm, job_id: str) -> dict[str, Any]:
    """The job in its one queue, as lists show it."""
    found: dict[str, Any] = realm.explain(job_id)["queues"][0]
    return found


def pulled(cli: Run) -> str:
    """The lease of one job, pulled by the command."""
    return cli("pull --count=1 --lease").out.split(" ")[0]


# add
def test_add_with_terms_gives_them_to_the_job(cli: Run, realm: Realm) -> None:
    now = time.time()
    assert cli("add --delay=10m --expires-in=1h --max-attempts=3 --after=t,u a") == Outcome(0, "", "")
    assert cli("add --run-at=2031-05-01T06:30+00:00 b").code == 0
    assert cli("add", f"--run-at={now + 50}", "c").code == 0
    a, b, c = realm.list_jobs()
    assert (sorted(a["after"]), a["max_attempts"]) == (["t", "u"], 3)
    assert now + 3600 <= a["expires_at"] <= time.time() + 3600
    assert now + 600 <= a["queues"][0]["ready_at"] <= time.time() + 600
    assert b["queues"][0]["ready_at"] == 1935383400
    assert c["queues"][0]["ready_at"] == pytest.approx(now + 50)


def test_add_on_conflict_does_what_it_says(cli: Run, realm: Realm) -> None:
    assert cli("add --tags=old a").code == 0
    assert cli("add --tags=new --on-conflict=ignore a").code == 0
    assert realm["a"]["tags"] == ["old"]
    outcome = cli("add --tags=new --on-conflict=error a")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert cli("add --tags=new --on-conflict=replace a").code == 0
    assert realm["a"]["tags"] == ["new"]


def test_add_from_stdin_with_terms_gives_them_to_each(cli: Run, realm: Realm) -> None:
    outcome = process("add", "--delay=1h", "--after=t", "--json", "-", stdin=b"a\n\nb\n")
    assert json.loads(outcome.stdout) == {"added": 2, "queue_id": 0}
    assert [(job["after"], job["queues"][0]["state"]) for job in realm.list_jobs()] == [(["t"], "delayed")] * 2


@pytest.mark.parametrize(
    "flag",
    ["--delay=soon", "--delay=-1", "--run-at=x", "--run-at=nan", "--after=,", "--on-conflict=x", "--max-attempts=x"],
)
def test_add_with_impossible_term_is_wrong_usage_and_adds_nothing(cli: Run, realm: Realm, flag: str) -> None:
    outcome = cli("add", flag, "a")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert flag.split("=")[0] in outcome.err
    assert list(realm.list_jobs()) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("20", 20), ("1.5", 1.5), (".5", 0.5), ("30s", 30), ("5m", 300), ("2h", 7200), ("0.5d", 43200)],
)
def test_read_seconds_with_unit_gives_them(text: str, seconds: float) -> None:
    assert values.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "1w", "-1", "1 m", "inf", "nan", "1e3", "1m30s"])
def test_read_seconds_that_are_none_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time such as"):
        values.seconds(text)


# pull
def test_pull_with_lease_prints_its_id_before_the_argument(cli: Run, realm: Realm) -> None:
    for job_id in ("echo  two ", "b"):
        realm.add(job_id, 0)
    (first, second) = cli("pull --lease").lines
    lease, _, argument = first.partition(" ")
    assert (argument, second.split(" ")[1:]) == ("echo  two ", ["b"])
    assert realm.ack([lease, second.split(" ")[0]])["stale"] == []
    assert realm.status["total_jobs"] == 0


def test_pull_with_lease_and_null_ends_each_with_nul(cli: Run, realm: Realm) -> None:
    realm.add("a\nb", 0)
    lease, _, argument = cli("pull -0 --lease").out.partition(" ")
    assert argument == "a\nb\0"
    assert realm.ack(lease)["acked"] == [lease]


def test_pull_of_queues_and_tags_takes_nothing_else(cli: Run, realm: Realm) -> None:
    for queue_id, tag in ((0, "x"), (1, "x"), (1, "y"), ("late", "z")):
        realm.add(f"{queue_id}{tag}", queue_id, tags=[tag])
    assert cli("pull --queues=1,late --tags=x,z").lines == ["1x", "latez"]
    assert cli("pull --queues=late").code == 3
    assert cli("pull --tags=nope").code == 3
    assert cli("pull --queues=1").lines == ["1y"]


def test_pull_ignores_tags_that_are_configured_for_add(cli: Run, realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTQ_CLI_TAGS", "mine")
    realm.add("a", 0)
    assert cli("pull").lines == ["a"]


def test_pull_gives_lease_time_and_worker(cli: Run, realm: Realm) -> None:
    for job_id in ("a", "b"):
        realm.add(job_id, 0)
    assert cli("pull --count=1 --lease-time=1h --worker=me").lines == ["a"]
    leased = place(realm, "a")
    assert leased["worker"] == "me"
    assert leased["lease_expires_at"] - leased["leased_at"] == pytest.approx(3600)
    assert cli("pull").lines == ["b"]
    assert place(realm, "b")["worker"] == os.uname().nodename


def test_pull_that_waits_prints_the_job_that_comes(cli: Run, realm: Realm) -> None:
    with subprocess.Popen([*COMMAND, "pull", "--wait=60"], stdout=subprocess.PIPE) as waiting:
        time.sleep(0.5)  # so that it most probably waits already: either way it must print the job
        realm.add("a", 0)
        assert waiting.communicate(timeout=30)[0] == b"a\n"
    assert waiting.returncode == 0


def test_pull_that_waits_in_vain_exits_with_three(cli: Run) -> None:
    began_at = time.monotonic()
    assert cli("pull --wait=0.3") == Outcome(3, "", "")
    assert time.monotonic() - began_at >= 0.3


# ack, nack, release, extend
def test_ack_ends_the_lease_silently_and_keeps_what_it_is_told(cli: Run, realm: Realm, tmp_path: Path) -> None:
    realm.configure(keep_done={"seconds": 60})
    (tmp_path / "log").write_bytes(b"x" * 70000 + "grüße\xff".encode("latin-1"))
    for job_id, flags in (
        ("a", ["--result", '{"n": [1]}', "--exit-code=0", "--output=done"]),
        ("b", ["--output-file=log"]),
        ("c", []),
    ):
        realm.add(job_id, 0)
        assert cli("ack", *flags, pulled(cli)) == Outcome(0, "", "")
    a, b, c = realm.list_jobs("done")
    assert (a["result"], a["exit_code"], a["output"]) == ({"n": [1]}, 0, "done")
    assert (len(b["output"]) > 60000, b["output"][-6:]) == (True, "gr\ufffd\ufffde\ufffd")
    assert not {"result", "exit_code"} & set(c)


def test_ack_reads_output_from_stdin(cli: Run, realm: Realm) -> None:
    realm.configure(keep_done={"seconds": 60})
    realm.add("a", 0)
    assert process("ack", "--output-file=-", pulled(cli), stdin=b"from a pipe").returncode == 0
    assert [job["output"] for job in realm.list_jobs("done")] == ["from a pipe"]


@pytest.mark.parametrize("command", ["ack", "nack", "release", "extend"])
def test_say_something_of_stale_leases_exits_with_three_and_names_them(cli: Run, realm: Realm, command: str) -> None:
    for job_id in ("a", "b"):
        realm.add(job_id, 0)
    stale, good = pulled(cli), pulled(cli)
    realm.remove_job("a")
    outcome = cli(command, stale)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith(f"restq: lease {stale} is stale: ")
    outcome = cli(command, "--json", stale, good)
    reply = json.loads(outcome.out)
    assert (outcome.code, reply["stale"]) == (3, [stale])
    assert good in next(iter(reply.values()))
    assert json.loads(cli(command, "--json", stale, "nonsense").out)["stale"] == [stale, "nonsense"]


def test_nack_keeps_the_error_and_waits_for_the_delay(cli: Run, realm: Realm, tmp_path: Path) -> None:
    realm.add("a", 0)
    now = time.time()
    assert cli("nack", "--error=boom", "--exit-code=7", "--delay=1h", pulled(cli)) == Outcome(0, "", "")
    failed = place(realm, "a")
    assert (failed["state"], failed["attempt"], failed["error"], failed["exit_code"]) == ("delayed", 1, "boom", 7)
    assert failed["ready_at"] >= now + 3600
    realm.add("b", 0)
    (tmp_path / "err").write_text("y" * 5000 + "the end")
    assert cli("nack", "--error-file=err", pulled(cli)).code == 0
    assert place(realm, "b")["error"].endswith("ythe end")


def test_nack_of_last_attempt_says_that_the_job_is_dead(cli: Run, realm: Realm) -> None:
    realm.add("a", 0, max_attempts=1)
    lease = pulled(cli)
    outcome = cli("nack", lease)
    assert outcome == Outcome(0, f"the job of lease {lease} is dead: that was its last attempt\n", "")
    assert place(realm, "a")["state"] == "dead"


def test_release_counts_no_attempt(cli: Run, realm: Realm) -> None:
    realm.add("a", 0, max_attempts=1)
    assert cli("release", pulled(cli)) == Outcome(0, "", "")
    assert place(realm, "a")["state"] == "ready"
    assert cli("release", "--delay=1h", pulled(cli)) == Outcome(0, "", "")
    assert place(realm, "a")["state"] == "delayed"


def test_extend_begins_the_lease_anew(cli: Run, realm: Realm) -> None:
    realm.add("a", 0)
    lease = pulled(cli)
    assert cli("extend", "--lease-time=2h", lease) == Outcome(0, "", "")
    assert place(realm, "a")["lease_expires_at"] > time.time() + 7000
    extended = json.loads(cli("extend", "--json", lease).out)["extended"]
    assert extended[lease] == place(realm, "a")["lease_expires_at"] < time.time() + 700


def test_extend_of_cancelled_job_exits_with_three_and_says_so(cli: Run, realm: Realm) -> None:
    realm.add("a", 0)
    lease = pulled(cli)
    assert cli("cancel arg a").code == 0
    outcome = cli("extend", lease)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == f"restq: lease {lease} is of cancelled work: nobody wants it any more\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ack"], 2),
        (["ack", "--result={", "1-1"], 2),
        (["ack", "--output=a", "--output-file=b", "1-1"], 2),
        (["ack", "--exit-code=x", "1-1"], 2),
        (["nack", "--error=a", "--error-file=b", "1-1"], 2),
        (["nack", "--error-file=missing", "1-1"], 1),
        (["release", "--delay=x", "1-1"], 2),
        (["extend", "--lease-time=-1", "1-1"], 2),
    ],
)
def test_say_something_of_leases_in_a_wrong_way_fails_in_one_sentence(
    cli: Run, arguments: list[str], code: int
) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1)


def test_loop_with_leases_acks_what_succeeds_and_nacks_what_fails(cli: Run, realm: Realm, tmp_path: Path) -> None:
    realm.configure(keep_done={"seconds": 60})
    realm.add("echo fine", 0)
    realm.add("echo broken >&2; exit 3", 0, max_attempts=1)
    loop = (
        f'restq() {{ {shlex.join(COMMAND)} "$@"; }}; while job=$(restq pull --count=1 --lease); do'
        ' lease=${job%% *}; if sh -c "${job#* }" 2>err; then restq ack "$lease";'
        ' else restq nack --exit-code=$? --error-file=err "$lease"; fi; done'
    )
    outcome = subprocess.run(["sh", "-c", loop], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert outcome.stdout.startswith("fine\nthe job of lease ")
    assert [job["job_id"] for job in realm.list_jobs("done")] == ["echo fine"]
    dead = place(realm, "echo broken >&2; exit 3")
    assert (dead["state"], dead["exit_code"], dead["error"]) == ("dead", 3, "broken\n")


# The requester
def answer_with(reply: bytes) -> tuple[str, threading.Thread, list[bytes]]:
    """A server of one request, which it keeps: its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            asked.append(connection.recv(65536))
            connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", thread, asked


def test_request_sends_path_query_headers_and_body() -> None:
    address, thread, asked = answer_with(b"HTTP/1.1 409 Conflict\r\nX: y\r\ncontent-length: 2\r\n\r\n{}ignored")
    reply = QuickRequester().post(f"{address}/a/b%2Fc?x=1&y=%20", headers={"Accept": "z"}, timeout=9, data=b"body")
    thread.join()
    assert (reply.status_code, reply.json()) == (409, {})
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /a/b%2Fc?x=1&y=%20 HTTP/1.0",
        f"Host: {address[7:]}".encode(),
        b"Accept: z",
        b"Content-Length: 4",
    ]
    assert body == b"body"


def test_request_reads_reply_without_length_to_its_end() -> None:
    address, thread, _ = answer_with(b'HTTP/1.0 200 OK\r\n\r\n{"a": 1}')
    assert QuickRequester().get(address + "/", headers={}, timeout=9).json() == {"a": 1}
    thread.join()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 huh\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
    ],
)
def test_request_with_reply_that_is_none_or_cut_off_raises(reply: bytes) -> None:
    address, thread, _ = answer_with(reply)
    with pytest.raises(ConnectionError, match=r"no proper reply|cut off"):
        QuickRequester().get(address + "/", headers={}, timeout=9)
    thread.join()
