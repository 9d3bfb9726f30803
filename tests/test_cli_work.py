"""`restq work`: what it runs, what it tells the server, and how it ends. Against a real server, with real commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cli_rig
import pytest
from cli_rig import COMMAND, Run, process
from conftest import Server, StartServer
from polling import eventually

from restq import Realm
from restq.cli import execution
from restq.cli.execution import Execution

cli, run = cli_rig.cli, cli_rig.run

SECONDS_MAX = 30


@pytest.fixture(autouse=True)
def _kept(realm: Realm) -> None:
    realm.configure(keep_done={"seconds": 600})


@contextmanager
def worker(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, which ends with the block."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, "work", *arguments], **pipes, **options) as child:  # type: ignore[call-overload]
        try:
            yield child
        finally:
            child.kill()


def done(realm: Realm) -> dict[str, dict[str, Any]]:
    """The results that are kept, by job."""
    return {job["job_id"]: job for job in realm.list_jobs("done")}


def place(realm: Realm, job_id: str) -> dict[str, Any]:
    """The job in its one queue."""
    found: dict[str, Any] = realm.explain(job_id)["queues"][0]
    return found


def alive(pid_file: Path) -> bool:
    """Whether the process runs whose id the file holds."""
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


# What it does with a job.
def test_work_runs_each_argument_and_acks_it_with_its_output(cli: Run, realm: Realm) -> None:
    for job_id in ("echo one", "echo two; echo aside >&2"):
        realm.add(job_id, 0)
    outcome = cli("work --wait=0")
    assert (outcome.code, outcome.out, outcome.err) == (0, "one\ntwo\n", "aside\n")
    assert [(job["output"], job["exit_code"]) for job in done(realm).values()] == [("one\n", 0), ("two\n", 0)]
    assert realm.status["total_jobs"] == 0


def test_work_takes_a_job_that_begins_with_a_dash_for_a_command(cli: Run, realm: Realm) -> None:
    realm.add("-e", 0)
    outcome = cli("work --wait=0")
    assert "not found" in outcome.err
    assert "exit code 127" in outcome.err


def test_work_nacks_what_fails_with_its_exit_code_and_error(cli: Run, realm: Realm) -> None:
    realm.add("echo out; echo why >&2; exit 3", 0)
    realm.add("echo only out; exit 4", 0)
    realm.add("kill -KILL $$", 0, max_attempts=1)
    outcome = cli("work --wait=0")
    assert outcome.code == 0
    assert "restq: 'echo out; echo why >&2; exit 3' ended with exit code 3 at attempt 1\n" in outcome.err
    assert "restq: 'kill -KILL $$' ended with exit code 137 at attempt 1, its last: it is dead\n" in outcome.err
    failed = [place(realm, job["job_id"]) for job in realm.list_jobs()]
    assert [(job["state"], job["exit_code"], job["error"]) for job in failed] == [
        ("delayed", 3, "why\n"),
        ("delayed", 4, "only out\n"),
        ("dead", 137, ""),
    ]


@pytest.mark.parametrize(
    ("flags", "backoff", "low", "high"),
    [("", None, 5, 10), ("--delay=1h", None, 3599, 3600), ("", {"base": 100, "jitter": 0}, 99, 100)],
)
def test_work_delays_what_failed_as_told_or_by_backoff_or_by_itself(
    cli: Run, realm: Realm, flags: str, backoff: dict[str, Any] | None, low: float, high: float
) -> None:
    realm.configure(backoff=backoff)
    realm.add("false", 0)
    cli(f"work --wait=0 {flags}")
    failed = place(realm, "false")
    assert low <= failed["ready_at"] - failed["failed_at"] <= high


def test_work_with_command_hands_it_the_argument(cli: Run, realm: Realm) -> None:
    realm.add("$(a) 'b", 0)
    assert cli("work", "--wait=0", "--", "printf", "<%s>").out == "<$(a) 'b>"


def test_work_with_command_that_is_not_there_takes_nothing(cli: Run, realm: Realm) -> None:
    realm.add("a", 0)
    outcome = cli("work --wait=0 -- no-such-command")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("restq: there is no command no-such-command ")
    assert place(realm, "a")["attempt"] == 0


def test_work_takes_only_what_its_filters_let_through(cli: Run, realm: Realm) -> None:
    for job_id, queue_id in (("echo a", 0), ("echo b", 1), ("echo c", 2)):
        realm.add(job_id, queue_id, tags=["x"])
    realm.add("echo d", 1, tags=["y"])
    assert cli("work --wait=0 --queues=1,2 --max-queue=1 --tags=x --worker=me --lease-time=5").lines == ["b"]
    assert done(realm)["echo b"]["worker"] == "me"


def test_work_writes_the_file_of_a_job_before_it_runs(cli: Run, realm: Realm, tmp_path: Path) -> None:
    (tmp_path / "hello.sh").write_text("echo hello")
    cli("add", "--file=hello.sh", "sh ./hello.sh; rm hello.sh")
    realm.add("cat up", 1, {"restq_file": {"path": "../up", "content": ""}})
    outcome = cli("work --wait=0")
    assert outcome.out == "hello\n"
    assert "'cat up' cannot be run: the file '../up' is not one below the current directory" in outcome.err
    assert place(realm, "cat up")["exit_code"] == 127


def test_work_lets_a_job_add_another_to_the_same_realm(cli: Run, realm: Realm) -> None:
    follow = f"{' '.join(COMMAND)} add --queue=5 'echo $RESTQ_QUEUE_ID $RESTQ_ATTEMPT'"
    realm.add(follow, 0)
    assert cli("work --wait=0").lines == ["5 1"]


def test_work_does_not_wait_for_what_a_job_left_behind(cli: Run, realm: Realm, tmp_path: Path) -> None:
    realm.add("sleep 99 & echo $! > pid; echo over", 0)
    try:
        assert cli("work --wait=0").lines == ["over"]
        assert alive(tmp_path / "pid")
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_work_as_json_says_of_each_what_became_of_it(cli: Run, realm: Realm) -> None:
    realm.add("echo a; echo b >&2", 0)
    realm.add("exit 9", "q", max_attempts=1)
    outcome = cli("work --wait=0 --json")
    first, second = (json.loads(line) for line in outcome.lines)
    assert outcome.err == ""
    lease = first.pop("lease_id")
    assert first == {
        "argument": "echo a; echo b >&2",
        "queue_id": 0,
        "attempt": 1,
        "became": "acked",
        "exit_code": 0,
        "output": "a\n",
        "error": "b\n",
    }
    assert lease != second["lease_id"]
    assert (second["became"], second["exit_code"], second["queue_id"]) == ("dead", 9, "q")


# Long work.
def test_work_extends_the_lease_while_a_job_runs(cli: Run, realm: Realm) -> None:
    realm.add("sleep 2.5", 0)
    with worker("--wait=0", "--lease-time=1") as child:
        eventually(lambda: place(realm, "sleep 2.5")["state"] == "leased")
        while child.poll() is None:
            assert realm.pull() == {}
            time.sleep(0.05)
        assert (child.returncode, list(done(realm))) == (0, ["sleep 2.5"])


def test_work_stops_a_job_that_is_cancelled(cli: Run, realm: Realm, tmp_path: Path) -> None:
    realm.add("echo $$ > pid; sleep 99", 0)
    with worker("--wait=0", "--lease-time=1", cwd=tmp_path) as child:
        eventually(lambda: (tmp_path / "pid").exists())
        realm.cancel_job("echo $$ > pid; sleep 99")
        _, err = child.communicate(timeout=SECONDS_MAX)
    assert err == b"restq: 'echo $$ > pid; sleep 99' was stopped: it was cancelled\n"
    assert not alive(tmp_path / "pid")
    assert realm.status["total_jobs"] == 0


def test_work_stops_a_job_whose_lease_is_lost(cli: Run, realm: Realm, tmp_path: Path) -> None:
    realm.add("echo $$ > pid; sleep 99", 0)
    with worker("--wait=0", "--lease-time=1", cwd=tmp_path) as child:
        eventually(lambda: (tmp_path / "pid").exists())
        realm.remove_job("echo $$ > pid; sleep 99")
        _, err = child.communicate(timeout=SECONDS_MAX)
    assert (child.returncode, b"its lease was lost, and it may be running somewhere else" in err) == (0, True)
    assert not alive(tmp_path / "pid")


def test_work_through_a_restart_of_the_server_tells_it_afterwards(
    run: Run, start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = start_server()
    monkeypatch.setenv("RESTQ_CLIENT_URI", server.uri)
    monkeypatch.setenv("RESTQ_CLIENT_TIMEOUT_SECONDS", "0.2")
    with Realm("default", server.uri) as realm:
        realm.configure(keep_done={"seconds": 60})
        realm.add("echo > started; until test -e go; do sleep 0.05; done; echo through", 0)
        with worker(cwd=tmp_path) as child:
            eventually(lambda: (tmp_path / "started").exists())
            assert server.stop() == 0
            (tmp_path / "go").touch()
            assert child.stderr is not None
            assert b"this is tried again" in child.stderr.readline()
            start_server(data_dir=server.data_dir, port=server.port)
            eventually(lambda: len(done(realm)) == 1)
            realm.add("echo again", 0)
            eventually(lambda: len(done(realm)) == 2)
            child.send_signal(signal.SIGTERM)
            assert child.communicate(timeout=SECONDS_MAX)[0] == b"through\nagain\n"


# How it ends.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_work_that_is_idle_ends_at_once_at_a_signal(cli: Run, realm: Realm, number: int, code: int) -> None:
    realm.add("echo first", 0)
    with worker() as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"first\n"
        eventually(lambda: realm.status["total_jobs"] == 0)
        child.send_signal(number)
        assert child.communicate(timeout=SECONDS_MAX) == (b"", b"")
    assert child.returncode == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_work_at_a_signal_finishes_its_job_and_takes_no_more(
    cli: Run, realm: Realm, tmp_path: Path, number: int, code: int
) -> None:
    realm.add("echo > started; until test -e go; do sleep 0.05; done; echo whole", 0)
    realm.add("echo next", 1)
    with worker(cwd=tmp_path) as child:
        eventually(lambda: (tmp_path / "started").exists())
        child.send_signal(number)
        assert child.stderr is not None
        assert child.stderr.readline() == b"restq: what runs is finished first; another signal stops it\n"
        (tmp_path / "go").touch()
        assert child.communicate(timeout=SECONDS_MAX)[0] == b"whole\n"
    assert child.returncode == code
    assert (len(done(realm)), place(realm, "echo next")["state"]) == (1, "ready")


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGHUP,)])
def test_work_at_the_second_signal_or_a_hangup_gives_its_job_back(
    cli: Run, realm: Realm, tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    job_id = "echo $$ > pid; sleep 99"
    realm.add(job_id, 0, max_attempts=1)
    with worker(cwd=tmp_path) as child:
        eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        for number in numbers:
            child.send_signal(number)
            time.sleep(0.2)  # two equal signals that are pending are one
        _, err = child.communicate(timeout=SECONDS_MAX)
    assert err.endswith(b"was stopped and is given back\n")
    assert not alive(tmp_path / "pid")
    assert place(realm, job_id)["state"] == "ready"


def test_work_under_nohup_goes_on_after_a_hangup(cli: Run, realm: Realm) -> None:
    with worker(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as child:
        assert child.stdout is not None
        realm.add("echo first", 0)
        assert child.stdout.readline() == b"first\n"
        child.send_signal(signal.SIGHUP)
        realm.add("echo second", 0)
        assert child.stdout.readline() == b"second\n"


def test_work_whose_output_nobody_reads_fails_no_job(cli: Run, realm: Realm, server: Server) -> None:
    realm.add("echo a", 0)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        subprocess.run([*COMMAND, "work", "--wait=0"], stdout=nobody, check=False, timeout=SECONDS_MAX)
    assert [job["output"] for job in done(realm).values()] == ["a\n"]


def test_work_without_server_exits_with_four() -> None:
    outcome = process("work", "--uri=http://127.0.0.1:1/")
    assert (outcome.returncode, outcome.stdout) == (4, b"")


# The execution by itself.
def test_execute_keeps_the_end_of_the_output() -> None:
    command = "head -c 100000 /dev/zero | tr '\\0' x; echo end; head -c 100000 /dev/zero | tr '\\0' y >&2"
    ran = Execution(["sh", "-c", command], os.environ)
    assert ran.wait(SECONDS_MAX) == 0
    assert (len(ran.output), ran.output[-5:]) == (execution.OUTPUT_BYTES_MAX, "xend\n")
    assert ran.error == "y" * execution.ERROR_BYTES_MAX


def test_stop_of_what_will_not_end_kills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "STOP_SECONDS", 0.2)
    ran = Execution(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], os.environ)
    eventually(lambda: ran.output == "ready\n")
    ran.stop()
    assert ran.wait(0) == 137
