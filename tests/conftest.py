"""What tests of several files share: a home of their own, and real servers.

A server is a process, started as a user starts it and stopped as a service manager stops it. Tests keep
out of each other's way by realms: each asks for a name that no other has.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from shard_rig import Rig

from restq import Realm
from restq.shards import tasks

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30
STOP_SECONDS = 15
RESTQ = (sys.executable, "-m", "restq")
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass
class Server:
    """A restq server that runs. `log` is the file that its standard error goes to."""

    process: subprocess.Popen[str]
    port: int
    data_dir: Path
    log: Path

    @property
    def uri(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """The process that was started: the supervisor."""
        return self.process.pid

    def stop(self) -> int:
        """Stop it as a service manager does, and return its exit code. Once stopped, only the code is returned."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server did not stop within {STOP_SECONDS} s:\n{self.log.read_text()}")


StartServer = Callable[..., Server]


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty home directory, no variable that configures restq or its way, and this very restq for children."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("RESTQ_") or name.lower().endswith("_proxy"):
                patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@contextlib.contextmanager
def _servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """A function that starts servers; those that still run at the end are stopped, and must exit with 0."""
    started: list[Server] = []

    def start(
        data_dir: Path | None = None,
        port: int = 0,
        program: Sequence[str] = RESTQ,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Server:
        home = tmp_path_factory.mktemp("server")
        data_dir = data_dir or home / "data"
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in {"shards": 2, **options}.items()]
        command = [*program, "web", f"127.0.0.1:{port}", f"--data-dir={data_dir}", *flags]
        log = home / "stderr"
        with log.open("w") as stderr:
            own = {**os.environ, **(environment or {})}
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=own)
        try:
            server = Server(process, _port(process, log), data_dir, log)
        except BaseException:
            process.kill()
            process.wait()
            raise
        started.append(server)
        return server

    yield start
    running = [server for server in started if server.process.poll() is None]
    codes = [server.stop() for server in running]
    assert codes == [0] * len(running), "\n".join(server.log.read_text() for server in running)


def _port(process: subprocess.Popen[str], log: Path) -> int:
    """The port out of the line that a server prints when it is ready. What it prints later is read and dropped."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    assert process.stdout is not None
    threading.Thread(target=_drain, args=(process.stdout, lines), daemon=True).start()
    try:
        while line := lines.get(timeout=START_SECONDS):
            if found := _ADDRESS.search(line):
                return int(found[1])
    except queue.Empty:
        pytest.fail(f"the server was not ready within {START_SECONDS} s:\n{log.read_text()}")
    pytest.fail(f"the server ended with exit code {process.wait(STOP_SECONDS)} before it was ready:\n{log.read_text()}")


def _drain(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two shards that all tests share. It must survive them all and then stop with exit code 0."""
    with _servers(tmp_path_factory) as start:
        running = start()
        yield running
        assert running.process.poll() is None, f"the server ended by itself:\n{running.log.read_text()}"


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """A function that starts servers of the test's own: `start_server(data_dir=.., port=.., shards=.., ..)`.

    `program` is what runs in place of `python -m restq`, `environment` what it has beside the test's own.
    """
    with _servers(tmp_path_factory) as start:
        yield start


@pytest.fixture
def realm_name() -> str:
    """The name of a realm that no other test uses."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def realm(server: Server, realm_name: str) -> Iterator[Realm]:
    """The client of a realm that no other test uses, on the shared server."""
    with Realm(realm_name, server.uri) as client:
        yield client


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "STEP_COUNT", 10)
