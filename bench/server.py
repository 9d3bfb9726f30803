"""A restq server started for a measurement: its address, its end, and what /proc tells of its processes.

Only processes that this module started, and their children, are ever signalled: by id, and only while the id
is still the process it was.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.connection import Address, LoadError, call

START_SECONDS_MAX = 120.0
END_SECONDS_MAX = 20.0
POLL_SECONDS = 0.002

_ADDRESS = re.compile(r"http://(127\.0\.0\.1):(\d+)")
_PROC = Path("/proc")


class Process:
    """A process by its id and its start time, so that an id that was given out again is not mistaken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._started = self.stat()[19]

    def stat(self) -> list[str]:
        """The fields of /proc/PID/stat from the state on; empty when there is no such process."""
        try:
            return (_PROC / str(self.pid) / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return []

    @property
    def lives(self) -> bool:
        stat = self.stat()
        return bool(stat) and stat[0] != "Z" and stat[19] == self._started

    @property
    def cpu_seconds(self) -> float:
        """Used by itself, and by the children it has waited for."""
        stat = self.stat()
        return sum(int(ticks) for ticks in stat[11:15]) / os.sysconf("SC_CLK_TCK") if stat else 0.0

    def open_files(self) -> list[str]:
        found = []
        for link in (_PROC / str(self.pid) / "fd").iterdir():
            try:
                found.append(os.readlink(link))
            except FileNotFoundError:
                continue
        return found

    def memory_bytes(self, kind: str) -> int:
        """Resident memory: `Rss`, or `Pss`, where pages shared with other processes count in part."""
        text = (_PROC / str(self.pid) / "smaps_rollup").read_text()
        found = re.search(rf"^{kind}: +(\d+) kB$", text, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0


def tree(root: int) -> list[Process]:
    """The process `root` and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        try:
            found.append(Process(pid))
        except IndexError:  # it ended meanwhile
            continue
    return found


def _environment() -> dict[str, str]:
    """This process's, without what would configure the server, and with its output unbuffered."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RESTQ_")}
    return {**kept, "PYTHONUNBUFFERED": "1"}


def wait_until(true: Callable[[], bool], seconds_max: float, what: str) -> None:
    deadline = time.perf_counter() + seconds_max
    while not true():
        if time.perf_counter() > deadline:
            raise LoadError(f"{what} took more than {seconds_max:.0f} s")
        time.sleep(POLL_SECONDS)


class Server:
    """`restq web` on a free port of this machine, with a data directory that outlives its stops."""

    def __init__(self, data_dir: Path, options: Sequence[str]) -> None:
        self.data_dir = data_dir
        self.address: Address = ("", 0)
        self._options = list(options)
        self._output = data_dir.with_name(data_dir.name + ".output")
        self._process: subprocess.Popen[bytes] | None = None
        self._family: list[Process] = []

    def start(self) -> float:
        """Start it and wait until it is ready; the seconds from the start to the first 200 of /readyz."""
        command = [sys.executable, "-m", "restq", "web", "127.0.0.1:0", "--data-dir", str(self.data_dir)]
        started = time.perf_counter()
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
        self._family = [Process(self._process.pid)]
        wait_until(self._address_is_known, START_SECONDS_MAX, "the server's start")
        wait_until(self._is_ready, START_SECONDS_MAX, "the server's readiness")
        took = time.perf_counter() - started
        self._family = tree(self._process.pid)
        return took

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Signal the first process, and it alone; the seconds until all of its family have ended."""
        if self._process is None:
            return 0.0
        self._family = tree(self._process.pid) if self._process.poll() is None else self._family
        started = time.perf_counter()
        self._process.send_signal(number)
        try:
            wait_until(self._has_ended, END_SECONDS_MAX, "the server's end")
        finally:
            self._end_all()
        return time.perf_counter() - started

    def memory_bytes(self, kind: str) -> int:
        """Of all of its processes together: `Rss` or `Pss`."""
        return sum(process.memory_bytes(kind) for process in self._family)

    def cpu_seconds(self) -> float:
        """Used so far by all of its processes."""
        return sum(process.cpu_seconds for process in self._family)

    def processes(self) -> list[Process]:
        """All of them, as they were at the last start."""
        return list(self._family)

    def shards(self) -> list[Process]:
        """The processes that hold a database of the data directory open."""
        inside = str(self.data_dir.resolve()) + os.sep
        return [
            process
            for process in self._family
            if any(name.startswith(inside) and name.endswith("-wal") for name in process.open_files())
        ]

    def _address_is_known(self) -> bool:
        assert self._process is not None, "started first"
        text = self._output.read_text(errors="replace")
        found = _ADDRESS.search(text)
        if found is not None:
            self.address = (found[1], int(found[2]))
        elif self._process.poll() is not None:
            raise LoadError(f"the server ended with {self._process.returncode} and said: {text[-2000:].strip()}")
        return found is not None

    def _is_ready(self) -> bool:
        try:
            call(self.address, "GET", "/readyz")
        except (OSError, LoadError):
            return False
        return True

    def _has_ended(self) -> bool:
        assert self._process is not None, "started first"
        return self._process.poll() is not None and not any(process.lives for process in self._family)

    def _end_all(self) -> None:
        for process in self._family:
            if process.lives:
                os.kill(process.pid, signal.SIGKILL)
        assert self._process is not None, "started first"
        self._process.wait()
        self._process = None


@contextmanager
def running(data_root: Path | None, *options: str) -> Iterator[Server]:
    """A server with these options on a new data directory, of which nothing is left at the end."""
    with tempfile.TemporaryDirectory(prefix="restq-bench-", dir=data_root) as folder:
        server = Server(Path(folder) / "data", options)
        try:
            server.start()
            yield server
        finally:
            server.stop()
