"""Copies of a data directory: while its server runs, while realms move about in it, and while none runs."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from cli_rig import COMMAND
from conftest import START_SECONDS, Server, StartServer
from load import load, progress
from processes import kill_at_once
from wire import ask, names_on


def run_restq(*arguments: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [*COMMAND, *map(os.fspath, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)


def job_ids(server: Server, realm: str) -> set[str]:
    """The jobs of a realm."""
    return {job["job_id"] for job in ask(server, "GET", f"/{realm}/jobs?limit=1000").ok()["jobs"]}


def fill(server: Server, realms: list[str]) -> None:
    """A bit of everything in each: jobs, tags, a lease, large data, a limit."""
    for realm in realms:
        jobs = [{"job_id": f"{number} of {realm}", "queue_id": 0, "tags": ["t"]} for number in range(50)]
        ask(
            server, "POST", f"/{realm}/jobs", {"jobs": [*jobs, {"job_id": "large", "queue_id": 1, "data": "x" * 9_000}]}
        ).ok()
        ask(server, "POST", f"/{realm}/pull", {"lease_time": 3600, "worker": "w"}).ok()
        ask(server, "PUT", f"/{realm}/tags/t", {"max_leased": 7}).ok()


def seen(server: Server, realm: str) -> list[object]:
    """All that a realm says of itself."""
    return [
        ask(server, "GET", f"/{realm}/{path}").ok()
        for path in ("jobs?limit=1000&data=1", "queues/0", "tags/t", "config", "job/large")
    ]


def test_back_up_running_server_gives_a_directory_that_serves_the_same(
    start_server: StartServer, realm_name: str, tmp_path: Path
) -> None:
    own = start_server()
    realms = [next(names_on(shard, realm_name)) for shard in (0, 1)]
    fill(own, realms)
    done = run_restq("backup", tmp_path / "copy", f"--data-dir={own.data_dir}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 shards, ")
    expected = ["server.shards", "shard-0000.sqlite", "shard-0001.sqlite"]
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == expected
    copy = start_server(tmp_path / "copy")
    for realm in realms:
        assert seen(copy, realm)[:1] == seen(own, realm)[:1]
        ask(copy, "DELETE", f"/{realm}/job/large").ok()
        assert "large" in job_ids(own, realm), "the copy is on its own"


def test_back_up_stopped_server_gives_a_directory_that_serves_the_same(
    start_server: StartServer, realm_name: str, tmp_path: Path
) -> None:
    own = start_server(shards=3)
    fill(own, [realm_name])
    before = seen(own, realm_name)
    own.stop()
    done = run_restq("backup", "--json", tmp_path / "copy", f"--data-dir={own.data_dir}")
    assert done.returncode == 0, done.stderr
    assert seen(start_server(tmp_path / "copy", shards=3), realm_name)[0] == before[0]


def test_back_up_under_load_and_moves_holds_what_was_answered_before(
    start_server: StartServer, realm_name: str, tmp_path: Path
) -> None:
    own = start_server()
    realms = [next(names_on(shard, realm_name)) for shard in (0, 1)]
    fill(own, realms)
    kept = {realm: job_ids(own, realm) for realm in realms}  # which the load never pulls: it acks only what is its own
    stop = threading.Event()

    def move() -> None:
        number = 0
        while not stop.wait(0.3):
            ask(own, "PUT", f"/{realms[number % 2]}/shard", {"shard": number // 2 % 2})
            number += 1

    mover = threading.Thread(target=move)
    loaded = [f"{realm}-loaded" for realm in realms]
    with load(own.port, loaded) as accounts:
        mover.start()
        try:
            progress(accounts)
            added = [set(account.added) for account in accounts]
            done = run_restq("backup", tmp_path / "copy", f"--data-dir={own.data_dir}")
            assert done.returncode == 0 or "changed their shards" in done.stderr, done.stderr
        finally:
            stop.set()
            mover.join()
        if done.returncode:
            done = run_restq("backup", tmp_path / "copy", f"--data-dir={own.data_dir}")
        assert done.returncode == 0, done.stderr
    copy = start_server(tmp_path / "copy")
    for realm in realms:
        assert job_ids(copy, realm) == kept[realm]
    for realm, account, before in zip(loaded, accounts, added, strict=True):
        there = set(ask(copy, "GET", f"/{realm}/tag/batch").ok())
        assert before - account.to_remove <= there <= account.asked


def test_back_up_of_server_with_fewer_shards_than_before_copies_those(
    start_server: StartServer, realm_name: str, tmp_path: Path
) -> None:
    own = start_server(shards=3)
    realms = [next(names_on(shard, realm_name, 3)) for shard in range(3)]
    fill(own, realms)
    own.stop()
    own = start_server(own.data_dir, shards=1)
    done = run_restq("backup", tmp_path / "copy", f"--data-dir={own.data_dir}")
    assert (done.returncode, done.stderr) == (0, "")
    copy = start_server(tmp_path / "copy", shards=1)
    assert [job_ids(copy, realm) for realm in realms] == [job_ids(own, realm) for realm in realms]


def test_back_up_of_data_that_were_cut_short_is_refused(start_server: StartServer, tmp_path: Path) -> None:
    own = start_server(shards=1)
    for number in range(20):
        ask(own, "PUT", f"/r/job/{number}", {"queue_id": 0}).ok()
    kill_at_once(own)
    log = own.data_dir / "shard-0000.sqlite-wal"
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size // 2)
    done = run_restq("backup", tmp_path / "copy", f"--data-dir={own.data_dir}")
    assert done.returncode == 1
    assert "it was cut short or replaced" in done.stderr
    assert os.listdir(tmp_path / "copy") == []


@pytest.mark.parametrize("what", ["not empty", "a file", "no data", "not writable", "inside"])
def test_back_up_that_can_not_be_made_says_why_and_leaves_nothing(
    what: str, start_server: StartServer, tmp_path: Path
) -> None:
    data_dir, target = tmp_path / "data", tmp_path / "copy"
    if what == "no data":
        data_dir.mkdir()
    else:
        start_server(data_dir).stop()
    if what == "not empty":
        target.mkdir()
        (target / "mine").write_text("mine")
    elif what == "a file":
        target.write_text("mine")
    elif what == "inside":
        target = tmp_path / "link" / "copy"
        (tmp_path / "link").symlink_to(data_dir)
    elif what == "not writable":
        target = Path("/proc/restq-copy")
    done = run_restq("backup", target, f"--data-dir={data_dir}")
    assert done.returncode == 1
    says = {
        "not empty": f"{target} is not empty",
        "inside": f"{target} lies in the data directory, where a copy does not belong",
        "a file": f"{target} can't be used: File exists",
        "no data": f"there is no data of restq in {data_dir}",
        "not writable": f"{target} can't be used: No such file or directory",
    }
    assert done.stderr.strip().endswith(says[what])
    assert "Traceback" not in done.stderr
    assert target.is_file() or not target.exists() or os.listdir(target) == ["mine"]
