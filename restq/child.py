"""The contract between the supervisor and the processes it runs: both ends of it.

A process gets its settings as one line of JSON on standard input, and says "ready" on standard output once it serves.
Standard input stays open as long as the supervisor wants the process to run: when it ends, because the supervisor
closed it or is gone in whatever way, the process ends in order. Signals that a terminal or an init system sends to all
processes at once it leaves to the supervisor. One that dies is started again, at once the first time and with a growing
delay while it keeps dying, unless its exit status says that starting again would not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

RESTART_SECONDS_MAX = 5.0
HEALTHY_SECONDS = 10.0  # a process that ran so long starts again without delay

EXIT_FAILED = 1
EXIT_REFUSED = 3  # starting again would not help

READY = b"ready\n"

log = logging.getLogger("restq")


# -- the supervisor's end ------------------------------------------------------------------------------------------


class Child:
    """A process that is to run: started, watched and started again until it is stopped.

    `refused`: it could not even start the first time, and said that starting again would not help.
    """

    def __init__(self, module: str, label: str, settings: dict[str, Any], inherited: tuple[int, ...] = ()) -> None:
        self._module = module
        self._label = label
        self._settings = settings
        self._inherited = inherited
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self.ready = asyncio.Event()
        self.refused = False

    async def keep(self) -> None:
        """Run it until `stop`, or until it says that starting again would not help."""
        delay = 0.0
        while True:
            started_at = time.monotonic()
            try:
                status = await self._run()
            except OSError as error:
                log.warning("%s can't be started: %s", self._label, error)
                status = EXIT_FAILED
            if self._stopping.is_set():
                return
            if status == EXIT_REFUSED and not self.ready.is_set():
                self.refused = True
                return
            delay = 0.0 if time.monotonic() - started_at > HEALTHY_SECONDS else delay
            log.warning("%s ended with status %d; it starts again%s", self._label, status, _in(delay))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
                return
            delay = min(RESTART_SECONDS_MAX, delay * 2 or 0.1)

    async def _run(self) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", self._module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._inherited,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert process.stdin is not None, "standard input is a pipe"
        assert process.stdout is not None, "standard output is a pipe"
        self._process = process
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(self._settings).encode() + b"\n")
            await process.stdin.drain()
        if self._stopping.is_set():
            process.stdin.close()
        if await process.stdout.readline() == READY:
            self.ready.set()
        return await process.wait()

    async def stop(self, seconds: float) -> None:
        """Close its standard input, which asks it to end in order; kill it after so many seconds."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(seconds):
                await process.wait()
        except TimeoutError:
            log.warning("%s did not end within %.0f s and is killed", self._label, seconds)
            process.kill()
            await process.wait()


def _in(delay: float) -> str:
    return f" in {delay:.1f} s" if delay else ""


# -- the process's end ---------------------------------------------------------------------------------------------


def begin() -> dict[str, Any]:
    """At the start of a process: leave signals to the supervisor, log as it does; returns the settings."""
    logging.basicConfig(format="restq: %(message)s", level=logging.INFO)
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    settings: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    logging.getLogger().setLevel(settings["log_level"])
    return settings


async def on_end(end: Callable[[], None]) -> None:
    """Have `end` called once the supervisor wants this process to end, or is gone."""
    await asyncio.get_running_loop().connect_read_pipe(lambda: _Lifeline(end), sys.stdin)


def say_ready() -> None:
    """Tell the supervisor that this process serves."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()


class _Lifeline(asyncio.Protocol):
    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
