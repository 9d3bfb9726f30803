"""How a server starts, refuses to start, lives through the loss of its processes, and ends."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import Server, StartServer
from load import load, progress, verify
from polling import eventually
from processes import children, frontend_pids, is_running, run_web, shard_pids
from wire import Wire, ask, connect, raw_request, received

from restq import supervisor

STOP_SECONDS = 10


def add(server: Server, realm: str, job_id: str = "j") -> None:
    ask(server, "PUT", f"/{realm}/job/{job_id}", {"queue_id": 0}).ok()


def total(server: Server, realm: str) -> int:
    return int(ask(server, "GET", f"/{realm}/status").ok()["total_jobs"])


def taken_in(server: Server) -> None:
    """Once this returns, the front end has read what was sent on other connections before."""
    for _ in range(3):
        ask(server, "GET", "/healthz").ok()


def everyone(server: Server) -> set[int]:
    return {server.pid, *children(server.pid)}


def ended(pids: set[int]) -> bool:
    return not any(map(is_running, pids))


def sentence(run: subprocess.CompletedProcess[str]) -> str:
    """What a refused start says: exit code 1, and one sentence."""
    assert run.returncode == 1, run
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    return run.stderr


def sockets_in(data_dir: Path) -> list[Path]:
    return [path for path in data_dir.iterdir() if path.is_socket()]


# -- refusals ------------------------------------------------------------------------------------------------------


def test_start_second_server_on_same_directory_refuses_and_names_the_first(
    start_server: StartServer, realm_name: str
) -> None:
    own = start_server()
    add(own, realm_name)
    said = sentence(run_web("127.0.0.1:0", f"--data-dir={own.data_dir}"))
    assert str(own.data_dir) in said
    assert str(own.pid) in said
    assert own.uri in said
    add(own, realm_name, "k")
    assert total(own, realm_name) == 2
    assert len(shard_pids(own)) == 2


def test_start_second_server_through_a_symbolic_link_refuses_too(start_server: StartServer, tmp_path: Path) -> None:
    own = start_server()
    link = tmp_path / "link"
    link.symlink_to(own.data_dir)
    assert str(own.pid) in sentence(run_web("127.0.0.1:0", f"--data-dir={link}"))


@pytest.mark.parametrize("frontends", [1, 2])
def test_start_on_port_in_use_refuses_and_makes_no_directory(server: Server, tmp_path: Path, frontends: int) -> None:
    address = f"127.0.0.1:{server.port}"
    said = sentence(run_web(address, f"--data-dir={tmp_path / 'data'}", f"--frontends={frontends}"))
    assert str(server.port) in said
    assert "in use" in said
    assert not (tmp_path / "data").exists()
    assert ask(server, "GET", "/healthz").ok() == {}


def test_start_on_port_shared_by_frontends_refuses(start_server: StartServer, tmp_path: Path) -> None:
    own = start_server(frontends=2)
    said = sentence(run_web(f"127.0.0.1:{own.port}", f"--data-dir={tmp_path / 'data'}", "--frontends=2"))
    assert "in use" in said


def test_listen_waits_for_a_port_that_is_free_in_a_moment() -> None:
    """As where processes of a supervisor that was killed while it started hold it until they notice."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        threading.Timer(0.3, held.close).start()
        (listening,) = supervisor.listen("127.0.0.1", held.getsockname()[1], 1)
    listening.close()


def test_start_on_an_address_that_is_none_refuses(tmp_path: Path) -> None:
    assert "999.1.1.1" in sentence(run_web("999.1.1.1:0", f"--data-dir={tmp_path}"))


def test_start_with_data_directory_that_is_a_file_refuses(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    assert str(path) in sentence(run_web("127.0.0.1:0", f"--data-dir={path}"))
    assert str(path) in sentence(run_web("127.0.0.1:0", f"--data-dir={path / 'below'}"))
    assert path.read_text() == "mine"


def test_start_with_data_directory_that_cannot_be_written_refuses(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        place = Path("/proc/restq")  # not even root can write there
    else:
        place = tmp_path / "closed"
        place.mkdir(mode=0o500)
    assert str(place) in sentence(run_web("127.0.0.1:0", f"--data-dir={place}"))


def test_start_with_data_directory_whose_path_is_too_long_refuses(tmp_path: Path) -> None:
    place = tmp_path / ("x" * 100)
    assert "too long" in sentence(run_web("127.0.0.1:0", f"--data-dir={place}"))
    assert not place.exists()


def test_start_with_a_shard_file_that_is_no_database_refuses(start_server: StartServer, realm_name: str) -> None:
    first = start_server()
    add(first, realm_name)
    assert first.stop() == 0
    damaged = first.data_dir / "shard-0001.sqlite"
    kept = damaged.read_bytes()
    damaged.write_bytes(b"not a database, certainly not" * 1000)
    assert str(damaged) in sentence(run_web("127.0.0.1:0", f"--data-dir={first.data_dir}", "--shards=2"))
    damaged.write_bytes(kept)
    assert total(start_server(first.data_dir), realm_name) == 1


# -- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_stop_under_load_ends_all_and_keeps_what_was_answered(
    start_server: StartServer, realm_name: str, signal_number: signal.Signals
) -> None:
    own = start_server()
    pids = everyone(own)
    with load(own.port, [realm_name], clients_count=4) as accounts:
        own.process.send_signal(signal_number)
        started_at = time.monotonic()
        assert own.process.wait(STOP_SECONDS + 5) == 0
        took = time.monotonic() - started_at
    assert ended(pids)
    assert took < STOP_SECONDS
    assert accounts[0].refused == []
    assert "killed" not in own.log.read_text()
    assert sockets_in(own.data_dir) == []
    again = start_server(own.data_dir)
    verify(lambda path: ask(again, "GET", path), accounts[0])


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_stop_with_requests_under_way_answers_them_all(
    start_server: StartServer, realm_name: str, signal_number: signal.Signals
) -> None:
    own = start_server()
    shards = shard_pids(own)
    idle = Wire(own.port)
    idle.ask("GET", "/healthz").ok()
    connections = [connect(own) for _ in range(20)]
    for pid in shards:
        os.kill(pid, signal.SIGSTOP)
    for number, connection in enumerate(connections):
        connection.sendall(raw_request("PUT", f"/{realm_name}-{number}/job/j", b'{"queue_id": 0}'))
    taken_in(own)
    own.process.send_signal(signal_number)
    for pid in shards:
        os.kill(pid, signal.SIGCONT)
    for connection in connections:
        assert received(connection).ok() == {}
        connection.close()
    assert own.process.wait(STOP_SECONDS) == 0
    idle.close()
    again = start_server(own.data_dir)
    assert [total(again, f"{realm_name}-{number}") for number in range(20)] == [1] * 20


def test_stop_with_connections_not_yet_accepted_answers_them(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    [frontend] = frontend_pids(own)
    os.kill(frontend, signal.SIGSTOP)
    with connect(own) as connection:
        connection.sendall(raw_request("PUT", f"/{realm_name}/job/j", b'{"queue_id": 0}'))
        own.process.send_signal(signal.SIGTERM)
        os.kill(frontend, signal.SIGCONT)
        assert received(connection).ok() == {}
    assert own.process.wait(STOP_SECONDS) == 0


def test_stop_tells_clients_in_its_replies_that_connections_end(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    [shard, _] = shard_pids(own)
    os.kill(shard, signal.SIGSTOP)
    with connect(own) as waiting, connect(own) as other:
        other.sendall(raw_request("GET", "/healthz"))
        assert received(other).status == 200
        waiting.sendall(raw_request("GET", "/"))
        taken_in(own)
        own.process.send_signal(signal.SIGTERM)
        eventually(lambda: not listens(own))
        os.kill(shard, signal.SIGCONT)
        reply = received(waiting)
        assert reply.ok() == {}
        assert reply.headers["connection"] == "close"
    assert own.process.wait(STOP_SECONDS) == 0


def test_stop_while_a_large_reply_is_on_its_way_sends_all_of_it(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    data = "x" * 20_000_000
    ask(own, "PUT", f"/{realm_name}/job/j", {"queue_id": 0, "data": data}).ok()
    with connect(own) as connection:
        connection.sendall(raw_request("GET", f"/{realm_name}/job/j"))
        head = connection.recv(1)  # the reply has begun, and the rest is more than any buffer on the way holds
        own.process.send_signal(signal.SIGTERM)
        eventually(lambda: not listens(own))
        reply = head + b"".join(iter(lambda: connection.recv(1 << 20), b""))
    assert reply.endswith(b'"queues":[[0,0]]}')
    assert len(reply) > len(data)
    assert own.process.wait(STOP_SECONDS) == 0


def listens(server: Server) -> bool:
    """Whether somebody takes a new connection: one that nobody takes gets no answer in a tenth of a second."""
    try:
        with connect(server) as connection:
            connection.settimeout(0.1)
            connection.sendall(raw_request("GET", "/healthz"))
            return bool(connection.recv(1))
    except OSError:
        return False


def test_signal_whole_process_group_ends_in_order(start_server: StartServer, realm_name: str) -> None:
    data_dir = start_server().data_dir.parent / "group"
    command = [sys.executable, "-m", "restq", "web", "127.0.0.1:0", f"--data-dir={data_dir}", "--shards=2"]
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("restq serves http://127.0.0.1:"), line
            pids = {process.pid, *children(process.pid)}
            assert len(pids) == 4
            os.killpg(process.pid, signal_number)
            _, stderr = process.communicate(timeout=STOP_SECONDS)
        finally:
            process.kill()
        assert process.returncode == 0
        assert ended(pids)
        assert "Traceback" not in stderr
        assert sockets_in(data_dir) == []


def test_stop_twice_by_signals_ends_once_with_0(start_server: StartServer) -> None:
    own = start_server()
    for _ in range(3):
        own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(STOP_SECONDS) == 0
    assert "Traceback" not in own.log.read_text()


def test_stop_while_a_killed_shard_starts_again_ends_in_time(start_server: StartServer) -> None:
    own = start_server()
    for _ in range(3):
        os.kill(eventually(lambda: shards_if_there(own))[0], signal.SIGKILL)
    pids = everyone(own)
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(STOP_SECONDS) == 0
    assert ended(pids)
    assert children(own.pid) == set()


def shards_if_there(server: Server) -> list[int]:
    answer = ask(server, "GET", "/performance/shards")
    return [shard["pid"] for shard in answer.json["shards"]] if answer.status == 200 else []


def test_stop_with_a_process_that_hangs_ends_all_the_same(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    add(own, realm_name)
    pids = everyone(own)
    os.kill(shard_pids(own)[0], signal.SIGSTOP)
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(STOP_SECONDS) == 0
    assert ended(pids)
    assert total(start_server(own.data_dir), realm_name) == 1


# -- lost processes ------------------------------------------------------------------------------------------------


def test_kill_supervisor_ends_its_children_who_let_go_of_the_files(start_server: StartServer, realm_name: str) -> None:
    own = start_server(frontends=2)
    add(own, realm_name)
    pids = children(own.pid)
    assert len(pids) == 4
    own.process.kill()
    own.process.wait()
    again = start_server(own.data_dir)  # waits for the files
    assert total(again, realm_name) == 1
    eventually(lambda: ended(pids))
    assert "killed" not in again.log.read_text()


def test_start_with_sockets_left_by_a_kill_serves_and_removes_them(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    add(own, realm_name)
    pids = everyone(own)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    own.process.wait()
    eventually(lambda: ended(pids))
    assert len(sockets_in(own.data_dir)) == 2
    again = start_server(own.data_dir, port=own.port)
    assert total(again, realm_name) == 1
    assert again.stop() == 0
    assert sockets_in(own.data_dir) == []


def test_kill_frontend_starts_it_again_at_the_same_address(start_server: StartServer, realm_name: str) -> None:
    own = start_server()
    add(own, realm_name)
    [killed] = frontend_pids(own)
    os.kill(killed, signal.SIGKILL)
    # The supervisor holds the socket: a connection that comes meanwhile waits for the next front end.
    assert eventually(lambda: status_or_none(own, realm_name)) == 1
    [replacement] = frontend_pids(own)
    assert replacement != killed
    assert own.process.poll() is None


def status_or_none(server: Server, realm: str) -> int | None:
    try:
        return total(server, realm)
    except (OSError, http.client.HTTPException):
        return None


def test_run_two_frontends_share_the_port_and_see_the_same(start_server: StartServer, realm_name: str) -> None:
    own = start_server(frontends=2)
    pids = frontend_pids(own)
    assert len(pids) == 2
    idle = {pid: open_files(pid) for pid in pids}
    wires = [Wire(own.port) for _ in range(64)]
    for number, wire in enumerate(wires):
        wire.ask("PUT", f"/{realm_name}/job/{number}", {"queue_id": 0}).ok()
        assert wire.ask("GET", f"/{realm_name}/status").ok()["total_jobs"] == number + 1
    taken = {pid: open_files(pid) - idle[pid] for pid in pids}
    for wire in wires:
        wire.close()
    assert sum(taken.values()) == 64
    assert min(taken.values()) > 0, "one of them gets no connections"
    with load(own.port, [f"{realm_name}-load"], clients_count=8) as accounts:
        progress(accounts, 50)
    assert accounts[0].problems() == []
    verify(lambda path: ask(own, "GET", path), accounts[0])


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_kill_one_of_two_frontends_leaves_the_other_serving(start_server: StartServer, realm_name: str) -> None:
    own = start_server(frontends=2)
    killed = min(frontend_pids(own))
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: killed not in (now := frontend_pids(own)) and len(now) == 2)
    answered = []

    def call() -> None:
        answered.append(ask(own, "GET", "/readyz").status)

    threads = [threading.Thread(target=call) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answered == [200] * 32


# -- the directory, the address ------------------------------------------------------------------------------------


def test_start_makes_data_directory_for_its_owner_alone(start_server: StartServer, tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    own = start_server(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert own.stop() == 0


def test_start_on_ipv6_serves_there(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    command = [sys.executable, "-m", "restq", "web", "[::1]:0", f"--data-dir={tmp_path / 'data'}", "--shards=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://[::1]:" in line, line
        port = int(line.partition("[::1]:")[2].partition("/")[0])
        wire = Wire(port, "::1")
        assert wire.ask("GET", "/readyz").ok() == {}
        wire.close()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_SECONDS)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
