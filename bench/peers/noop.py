"""The job that workers of task queues run: it does nothing but note that it ran."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from itertools import pairwise

from bench.peers.peer import NUMBER_DIGITS, Record


class Runs:
    """What this process's worker ran, and how it is ended. There is one, as the worker finds its job by its name."""

    def __init__(self) -> None:
        self.count_max = 0
        self._stop: Callable[[], object] = list
        self._ends_at = 0.0
        self._cpu = (0.0, 0.0)
        self._numbers: array[int] = array("q")
        self._times: array[float] = array("d")

    def begin(self, count_max: int, ends_at: float, stop: Callable[[], object]) -> None:
        """From now on; `stop` ends the worker, once so many ran or the time is up."""
        self.count_max, self._stop, self._ends_at = count_max, stop, ends_at
        self._numbers, self._times = array("q"), array("d")

    def note(self, data: str) -> None:
        """A job ran."""
        if not self._times:
            self._cpu = (time.process_time(), 0.0)
        self._numbers.append(int(data[:NUMBER_DIGITS]))
        self._times.append(time.perf_counter())
        if len(self._times) >= self.count_max or self._times[-1] > self._ends_at:
            self._cpu = (self._cpu[0], time.process_time())
            self._stop()

    def tell(self, record: Record) -> None:
        """What ran, from the first job to the last: the worker's start is no part of it.

        Between n jobs are n - 1 intervals, so that the time of one more is added: else each would take 1/n less.
        """
        times = self._times
        whole = len(times) / max(len(times) - 1, 1)
        record.jobs = len(times)
        record.seen.extend(self._numbers)
        record.latencies.extend(after - before for before, after in pairwise(times))
        record.own_seconds = (times[-1] - times[0]) * whole if times else 0.0
        record.own_cpu_seconds = (self._cpu[1] - self._cpu[0]) * whole
        record.cut = len(times) < self.count_max


RUNS = Runs()


def noop(data: str) -> None:
    """The job."""
    RUNS.note(data)
