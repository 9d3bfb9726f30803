"""The contract between the supervisor and the processes it runs: both ends of it.

A process gets its settings as one line of JSON on standard input, and says "ready" on standard output once it serves.
Standard input stays open as long as the supervisor wants the process to run: when it ends, because the supervisor
closed it or is gone in whatever way, the process ends in order. Meanwhile it is asked there once a second whether it
is alive, and answers from its loop: one that stands still for long is killed. Signals that a terminal or an init
system sends to all processes at once it leaves to the supervisor. One that dies is started again, at once the first
time and with a growing delay while it keeps dying, unless its exit status says that starting again would not help.
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

RESTART_SECONDS_MAX = 0.5  # who is killed again and again is there again within 2 s, start and all
HEALTHY_SECONDS = 10.0  # a process that ran so long starts again without delay
ASK_SECONDS = 1.0  # between two times a process is asked whether it is alive
STUCK_COUNT = 20  # so many such times in a row without an answer, and it is killed

# In bytes. By itself glibc raises both thresholds to the largest block that was freed so far, so that after bodies of
# many MiB it keeps freed blocks of that size, in each process, and gives none back. What is set it leaves alone.
MEMORY_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(2 << 20)}

EXIT_FAILED = 1
EXIT_REFUSED = 3  # starting again would not help

READY = b"ready\n"
ASK = b"?"  # on standard input
ALIVE = b"alive\n"

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
            env={
                **MEMORY_SETTINGS,
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
        )
        assert process.stdin is not None, "standard input is a pipe"
        assert process.stdout is not None, "standard output is a pipe"
        self._process = process
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(self._settings).encode() + b"\n")
            await process.stdin.drain()
        if self._stopping.is_set():
            process.stdin.close()
        if await process.stdout.readline() != READY:
            return await process.wait()
        self.ready.set()
        watching = asyncio.create_task(self._watch(process, process.stdin, process.stdout))
        try:
            return await process.wait()
        finally:
            watching.cancel()

    async def _watch(
        self, process: asyncio.subprocess.Process, stdin: asyncio.StreamWriter, stdout: asyncio.StreamReader
    ) -> None:
        """Kill the process once it does not answer: who stands still holds a file, or a port, that another could serve.

        What counts is how often this loop came by and found no answer, not the time: after a stop of the whole machine,
        or of this process alone, the answer gets its time anew.
        """
        while not self._stopping.is_set():
            stdin.write(ASK)
            answer = asyncio.create_task(stdout.readline())
            try:
                for _ in range(STUCK_COUNT):
                    await asyncio.sleep(ASK_SECONDS)
                    if answer.done():
                        break
                else:
                    log.warning("%s stood still for %.0f s and is killed", self._label, STUCK_COUNT * ASK_SECONDS)
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                if not await answer:
                    return  # it ended
            finally:
                answer.cancel()

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
    with contextlib.suppress(BrokenPipeError):  # it is gone: `on_end` says so
        os.write(sys.stdout.fileno(), READY)


class _Lifeline(asyncio.Protocol):
    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def data_received(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone: its end is what is read next
            os.write(sys.stdout.fileno(), ALIVE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
