"""A command that runs for a job: its output is passed on as it comes, its end is kept, and it can be stopped.

Nothing here knows of queues or leases.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

OUTPUT_BYTES_MAX = 65536  # what the server keeps of an output, and of an error
ERROR_BYTES_MAX = 4096
READ_BYTES = 65536
STOP_SECONDS = 10  # from asking a command to end to killing it
LAST_WORDS_SECONDS = 1  # for output that is still on its way; a daemon that the command left may hold it open for ever

NOT_STARTED = 127  # as a shell says it


class Execution:
    """A command from its start to its end, in a process group of its own: a Ctrl-C is not for it to see."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        out: IO[bytes] | None = None,
        err: IO[bytes] | None = None,
    ) -> None:
        """Start it, with nothing to read. What it prints goes on to `out` and `err`. OSError where it cannot start."""
        self._process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._output = _Tail(self._process.stdout, out, OUTPUT_BYTES_MAX)
        self._error = _Tail(self._process.stderr, err, ERROR_BYTES_MAX)

    def wait(self, seconds: float) -> int | None:
        """Its exit code, 128 and the number for one that a signal ended, as a shell says it; None if it still runs."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        until = time.monotonic() + LAST_WORDS_SECONDS
        for tail in (self._output, self._error):
            tail.join(max(until - time.monotonic(), 0))
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """Ask it and what it started to end, and kill them if they do not."""
        self._signal(signal.SIGTERM)
        if self.wait(STOP_SECONDS) is None:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    @property
    def output(self) -> str:
        """The end of what it printed."""
        return self._output.text()

    @property
    def error(self) -> str:
        """The end of what it printed on standard error."""
        return self._error.text()


class _Tail(threading.Thread):
    """Reads a stream to its end, passes it on, and keeps the last bytes of it."""

    def __init__(self, stream: IO[bytes], onward: IO[bytes] | None, bytes_max: int) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._onward = onward
        self._bytes_max = bytes_max
        self._kept = b""
        self.start()

    def run(self) -> None:
        """Until the stream ends. That nobody reads what is passed on is no reason for the command to fail."""
        with self._stream:
            while chunk := os.read(self._stream.fileno(), READ_BYTES):
                self._kept = (self._kept + chunk)[-self._bytes_max :]
                if self._onward is not None:
                    with contextlib.suppress(OSError, ValueError):
                        self._onward.write(chunk)
                        self._onward.flush()

    def text(self) -> str:
        """What was kept. It may have been cut, and need not have been UTF-8."""
        return self._kept.decode(errors="replace")
