"""A peer's server process: started on a free port of this machine, and ended by its id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bench.connection import LoadError
from bench.server import END_SECONDS_MAX, START_SECONDS_MAX, Process, tree, wait_until

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody answers there."""
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
        return True
    return False


class Daemon:
    """One command that runs until it is stopped; its output goes to a file in the folder."""

    def __init__(
        self, command: Sequence[str], folder: Path, is_ready: Callable[[], bool], python_path: Path | None = None
    ) -> None:
        """Start it and wait until it is ready. A Python in it finds modules in `python_path`."""
        environment = {**os.environ, "PYTHONPATH": str(python_path)} if python_path else None
        self._output = folder / f"{Path(command[0]).name}.output"
        self._is_ready = is_ready
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(self._has_started, START_SECONDS_MAX, f"the start of {command[0]}")
        except LoadError:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, and what it started. Nothing happens if it has ended."""
        family = self.processes()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS_MAX)
        for process in family:
            if process.lives:
                os.kill(process.pid, signal.SIGKILL)
        self._process.wait()

    def processes(self) -> list[Process]:
        """Of the family of the command, those that live."""
        return tree(self._process.pid) if self._process.poll() is None else []

    def _has_started(self) -> bool:
        if self._process.poll() is not None:
            said = self._output.read_text(errors="replace")[-2000:].strip()
            raise LoadError(f"{self._process.args!r} ended with {self._process.returncode} and said: {said}")
        return self._is_ready()
