"""The processes of a server, as the system sees them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from conftest import START_SECONDS, Server
from polling import eventually
from wire import ask


def parent(pid: int) -> int:
    """The parent of a process; 0 where it has ended (also if nobody has asked yet with what status)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    state, parent_pid = text.rpartition(")")[2].split()[:2]
    return 0 if state in "ZX" else int(parent_pid)


def is_running(pid: int) -> bool:
    """Whether the process has not ended."""
    return parent(pid) != 0


def children(pid: int) -> set[int]:
    """The processes that this one started and that have not ended."""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    return {child for child in pids if parent(child) == pid}


def kill_at_once(server: Server) -> None:
    """All processes of a server: what only memory held is gone, and no shard whose supervisor died closes its file."""
    pids = [server.pid, *children(server.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    server.process.wait()
    eventually(lambda: not any(map(is_running, pids)))


def shard_pids(server: Server) -> list[int]:
    """The process of each shard, in their order."""
    return [shard["pid"] for shard in ask(server, "GET", "/performance/shards").ok()["shards"]]


def frontend_pids(server: Server) -> set[int]:
    """The processes that speak HTTP."""
    return {pid for pid in children(server.pid) if b"restq.web" in _command(pid)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def run_web(*arguments: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    """Run `restq web` to its end: for a start that is to be refused."""
    command = [sys.executable, "-m", "restq", "web", *(os.fspath(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
