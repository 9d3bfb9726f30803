"""Processes that stand still: a shard, a front end, the supervisor, all of them; and two servers on the same directory.

What stands still for long is killed and started again, as if it had died. At no instant may two processes write the
same file, and who asks for what other processes serve does not notice. RESTQ_TEST_LONG=1 has shards of a server as
users run it stand still for up to 30 s; otherwise a server is given a second before it is taken for dead.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RESTQ, START_SECONDS, Server, StartServer
from load import Account, check_refusals, load, progress, verify, verify_order
from longrun import LONG, seeds
from polling import eventually
from processes import children, frontend_pids, is_running, shard_pids
from wire import ask, connect, names_on, raw_request, received

from restq.data_dir import shard_path
from restq.shards import sqlite_store
from restq.shards.sqlite_store import SqliteStore
from restq.shards.store import StoreRefused

HASTY = """
import sys
from restq import child, cli
from restq.shards import sqlite_store
child.ASK_SECONDS = 0.1
child.STUCK_COUNT = 7
sqlite_store.LOCK_WAIT_SECONDS = 0.5
sys.exit(cli.main())
"""
HASTILY = (sys.executable, "-c", HASTY)
STUCK_SECONDS = 0.7  # until such a server kills what stands still
RACES = seeds(2, 100)


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """These processes stand still meanwhile. What is killed meanwhile is not continued."""
    assert all(map(is_running, pids))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            if is_running(pid):
                os.kill(pid, signal.SIGCONT)


def nobody_else_writes(server: Server, shard: int, holder: int, patch: pytest.MonkeyPatch) -> None:
    """The file of this shard can't be opened by a second process, as long as the one that holds it is there."""
    with patch.context() as hasty:
        hasty.setattr(sqlite_store, "LOCK_WAIT_SECONDS", 0.0)
        try:
            SqliteStore(shard_path(server.data_dir, shard)).close()
        except StoreRefused as refused:
            assert "held by another process" in str(refused)  # noqa: PT017
        else:
            assert not is_running(holder), "two processes have the same file"


def check(server: Server, accounts: list[Account]) -> None:
    for account in accounts:
        check_refusals(account)
        verify(lambda path: ask(server, "GET", path), account)
        verify_order(lambda path: ask(server, "GET", path), account)


def is_ready(server: Server) -> bool:
    return ask(server, "GET", "/readyz").status == 200


# -- shards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(2, 100))
def test_stop_shard_for_a_while_has_one_writer_and_disturbs_no_other(
    start_server: StartServer, realm_name: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    own = start_server(program=RESTQ if LONG else HASTILY)
    seconds = random.Random(seed).uniform(0.0, 30.0 if LONG else 2.5 * STUCK_SECONDS)
    hit, spared = (next(names_on(shard, realm_name)) for shard in (0, 1))
    with load(own.port, [hit, spared]) as accounts:
        first = shard_pids(own)
        until = time.monotonic() + seconds
        with stopped(first[0]):
            while time.monotonic() < until:
                progress(accounts[1:])  # they are served meanwhile
                nobody_else_writes(own, 0, first[0], monkeypatch)
        progress(accounts)
        eventually(lambda: is_ready(own))
        last = shard_pids(own)
        nobody_else_writes(own, 0, last[0], monkeypatch)
    assert accounts[1].problems() == [], "the other shard's realm met errors"
    assert last[1] == first[1]
    assert is_running(first[0]) == (last[0] == first[0]), "the one that was replaced is gone"
    check(own, accounts)
    print(f"seed {seed}: shard stopped for {seconds:.1f} s, {'replaced' if last[0] != first[0] else 'went on'}")


def test_stop_shard_for_long_answers_503_for_its_realms(start_server: StartServer, realm_name: str) -> None:
    own = start_server(program=HASTILY)
    hit, spared = (next(names_on(shard, realm_name)) for shard in (0, 1))
    [shard, _] = shard_pids(own)
    with connect(own) as connection, stopped(shard):
        connection.sendall(raw_request("PUT", f"/{hit}/job/j", b'{"queue_id": 0}'))
        ask(own, "PUT", f"/{spared}/job/j", {"queue_id": 0}).ok()
        answer = received(connection)
        answer.refused(503, "ConnectionError", "shard_unavailable")
        assert "not known" in answer.json["message"]
        assert int(answer.headers["retry-after"]) >= 1
        eventually(lambda: is_ready(own))
        assert ask(own, "PUT", f"/{hit}/job/j", {"queue_id": 0}).ok() == {}
    assert "shard 0 stood still" in own.log.read_text()


def test_start_server_beside_a_shard_that_stands_still_refuses_until_it_let_go(
    start_server: StartServer, realm_name: str
) -> None:
    own = start_server(program=HASTILY)
    realms = [next(names_on(shard, realm_name)) for shard in (0, 1)]
    pids = children(own.pid)
    [shard, _] = shard_pids(own)
    with load(own.port, realms) as accounts:
        os.kill(shard, signal.SIGSTOP)
        progress(accounts[1:])
        for pid in (own.pid, *pids - {shard}):
            os.kill(pid, signal.SIGKILL)
        own.process.wait()
    eventually(lambda: {pid for pid in pids if is_running(pid)} == {shard})
    command = [*HASTILY, "web", "127.0.0.1:0", f"--data-dir={own.data_dir}", "--shards=2"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    assert refused.returncode == 1, refused
    assert "held by another process" in refused.stderr
    os.kill(shard, signal.SIGCONT)  # it may keep what it was asked for before, and then ends
    eventually(lambda: not is_running(shard))
    again = start_server(own.data_dir)
    check(again, accounts)


# -- front ends, the supervisor, everything ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds(1, 40))
def test_stop_frontend_for_long_starts_another_at_the_same_port(
    start_server: StartServer, realm_name: str, seed: int
) -> None:
    own = start_server(program=HASTILY, frontends=1 + seed % 2)
    chance = random.Random(seed)
    with load(own.port, [realm_name], clients_count=6) as accounts:
        pids = frontend_pids(own)
        hit = chance.choice(sorted(pids))
        time.sleep(chance.uniform(0, 0.05))
        with stopped(hit):
            eventually(lambda: not is_running(hit))
            eventually(lambda: len(frontend_pids(own)) == len(pids))
        progress(accounts, 50)
    assert accounts[0].cut or len(pids) > 1, "who was served by the one that stood still is cut off"
    check(own, accounts)


@pytest.mark.parametrize("seed", seeds(1, 20))
def test_stop_supervisor_serves_on_and_starts_what_died_once_it_goes_on(
    start_server: StartServer, realm_name: str, seed: int
) -> None:
    own = start_server(program=HASTILY)
    hit, spared = (next(names_on(shard, realm_name)) for shard in (0, 1))
    kills = bool(random.Random(seed).randrange(2)) or not LONG
    pids = children(own.pid)
    with load(own.port, [hit, spared]) as accounts:
        [shard, _] = shard_pids(own)
        with stopped(own.pid):
            until = time.monotonic() + 1.5 * STUCK_SECONDS
            if kills:
                os.kill(shard, signal.SIGKILL)
                answer = eventually(lambda: (found := ask(own, "GET", f"/{hit}/status")).status == 503 and found)
                assert int(answer.headers["retry-after"]) >= 1
            while time.monotonic() < until:
                progress(accounts[1:])
        progress(accounts)
        eventually(lambda: is_ready(own))
        time.sleep(1.5 * STUCK_SECONDS)  # by then it would have killed whom it took for dead
    assert children(own.pid) - pids == ({shard_pids(own)[0]} if kills else set())
    assert len(children(own.pid)) == len(pids)
    assert accounts[1].problems() == []
    check(own, accounts)


def test_stop_whole_server_for_long_kills_nobody_when_it_goes_on(start_server: StartServer, realm_name: str) -> None:
    own = start_server(program=HASTILY)
    pids = children(own.pid)
    with load(own.port, [realm_name]) as accounts:
        with stopped(own.pid, *pids):
            time.sleep(1.5 * STUCK_SECONDS)
        time.sleep(1.5 * STUCK_SECONDS)
        progress(accounts)
    assert children(own.pid) == pids
    assert accounts[0].problems() == []
    check(own, accounts)


# -- two servers on one directory ----------------------------------------------------------------------------------


def started(data_dir: Path) -> subprocess.Popen[str]:
    command = [*RESTQ, "web", "127.0.0.1:0", f"--data-dir={data_dir}", "--shards=2", "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_start_servers_on_the_same_directory_at_once_lets_one_serve(tmp_path: Path, realm_name: str) -> None:
    for count, trial in enumerate(RACES, 1):
        chance = random.Random(trial)
        servers = [started(tmp_path / "data") for _ in range(chance.choice([2, 3]))]
        try:
            winner = only_one_serves(servers, tmp_path)
            ask(winner, "PUT", f"/{realm_name}/job/{trial}", {"queue_id": 0}).ok()
            assert ask(winner, "GET", f"/{realm_name}/status").ok()["total_jobs"] == count
        finally:
            for process in servers:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, chance.choice([signal.SIGKILL, signal.SIGTERM]))
                process.communicate(timeout=START_SECONDS)


def only_one_serves(servers: list[subprocess.Popen[str]], folder: Path) -> Server:
    """The one that serves; the others say in a sentence that they can't."""
    serving = []
    for process in servers:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
            serving.append(Server(process, port, folder / "data", folder / "log"))
        else:
            _, stderr = process.communicate(timeout=START_SECONDS)
            assert process.returncode == 1
            assert "is in use by" in stderr
    [one] = serving
    return one
