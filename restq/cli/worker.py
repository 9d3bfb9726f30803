"""The worker of `restq work`: pull, run, tell, until a signal comes. What runs the command is in `execution.py`."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from restq.cli import DONE, INTERRUPTED, output
from restq.cli.execution import NOT_STARTED, Execution
from restq.cli.pull import next_jobs, write_file
from restq.client import Job, Realm
from restq.client.peer import OUTAGES
from restq.errors import LeaseStale, RestqError

LOOK_SECONDS = 0.2  # how soon it is seen that a job was cancelled, after the extension that told of it
OUTAGE_SECONDS_MAX = 5.0
# What failed waits so long where neither its queue nor the realm has a backoff: else it would come at once, for ever.
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 10.0, 3600.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOWN_CHARS_MAX = 60


class Ending(NamedTuple):
    """How a command ended. Without an exit code it was stopped."""

    exit_code: int | None = None
    output: str = ""
    error: str = ""


class Worker:
    """Takes jobs of a realm and runs them, one after the other."""

    def __init__(
        self,
        realm: Realm,
        command: Sequence[str],
        environ: Mapping[str, str],
        delay: float | None,
        files_anywhere: bool,
        as_json: bool,
    ) -> None:
        """`command` gets the job's argument as its last, and `environ` with what the job adds to it."""
        self.exit_code = DONE
        self._realm = realm
        self._command = command
        self._environ = environ
        self._delay = delay
        self._files_anywhere = files_anywhere
        self._as_json = as_json
        self._is_idle = False
        self._is_ending = False  # takes no more
        self._is_stopping = False  # nor finishes what runs

    @contextlib.contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """Within it, signals end the work in order. One that the caller ignores, as nohup does, stays ignored."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            self.exit_code = INTERRUPTED
        # Who hangs up will not be there to ask a second time.
        self._is_stopping = self._is_ending or number == signal.SIGHUP
        self._is_ending = True
        if self._is_idle:
            raise KeyboardInterrupt
        if not self._is_stopping:
            with contextlib.suppress(OSError):  # past Python's own buffers, in the middle of which we may be
                os.write(2, b"restq: what runs is finished first; another signal stops it\n")

    def work(self, wait: float | None, pull: Mapping[str, Any]) -> None:
        """Work until a signal comes, or until no job came for `wait` seconds. Raises where no server ever answered."""
        has_answered = False
        with contextlib.suppress(KeyboardInterrupt):
            while not self._is_ending:
                self._is_idle = True
                try:
                    jobs = next_jobs(self._realm, wait, pull)
                except OUTAGES as error:
                    if not has_answered:
                        raise
                    _sit_out(error)
                    continue
                self._is_idle, has_answered = False, True
                if not jobs:
                    return
                for job in jobs:
                    self._do(job)

    def _do(self, job: Job) -> None:
        """Run the job and tell the server how it ended."""
        ending = Ending()
        try:
            with job:
                ending = self._run(job)
                became = self._tell(job, ending)
        except LeaseStale:
            became = "cancelled" if job.cancelled else "stale"
        self._report(job, became, ending)

    def _run(self, job: Job) -> Ending:
        """Run the job until it ends, is cancelled, has lost its lease, or we are to stop."""
        onward = (None, None) if self._as_json else (sys.stdout.buffer, getattr(sys.stderr, "buffer", None))
        try:
            write_file(job.data, self._files_anywhere, {})
            execution = Execution([*self._command, job.job_id], self._environ_of(job), *onward)
        except (RestqError, OSError) as error:
            output.complain(f"{_shown(job)} cannot be run: {error}")
            return Ending(NOT_STARTED, "", str(error))
        exit_code = None
        while exit_code is None and not (self._is_stopping or job.cancelled or job.lost):
            exit_code = execution.wait(LOOK_SECONDS)
        if exit_code is None:
            execution.stop()
        return Ending(exit_code, execution.output, execution.error)

    def _tell(self, job: Job, ending: Ending) -> str:
        """What became of the job. It is told again while the server is away: the work must not be done twice."""
        while True:
            try:
                became = self._tell_once(job, ending)
            except OUTAGES as error:
                if self._is_stopping:
                    raise
                _sit_out(error)
                continue
            if job.lost:
                raise LeaseStale("its lease was lost")
            return became

    def _tell_once(self, job: Job, ending: Ending) -> str:
        if job.lost:
            return ""
        if ending.exit_code is None:
            self._realm.release(job)
            return "cancelled" if job.cancelled else "released"
        if ending.exit_code == 0:
            self._realm.ack(job, exit_code=0, output=ending.output)
            return "acked"
        # Many a command says on standard output what went wrong.
        reply = self._realm.nack(job, ending.error or ending.output, ending.exit_code, self._delay_of(job))
        return "dead" if reply["dead"] else "nacked"

    def _delay_of(self, job: Job) -> float | None:
        """How long a job that failed waits; None where the server knows."""
        if self._delay is not None:
            return self._delay
        settings = self._realm.get_queue(job.queue_id)["settings"]
        if settings.get("backoff") or self._realm.get_config()["backoff"]:
            return None
        longest = min(BACKOFF_SECONDS * 2.0 ** min(job.attempt - 1, 20), BACKOFF_SECONDS_MAX)
        return longest * random.uniform(0.5, 1)

    def _environ_of(self, job: Job) -> dict[str, str]:
        facts = {"RESTQ_LEASE_ID": job.lease_id, "RESTQ_QUEUE_ID": str(job.queue_id), "RESTQ_ATTEMPT": str(job.attempt)}
        return {**self._environ, **facts}

    def _report(self, job: Job, became: str, ending: Ending) -> None:
        """Say what became of the job: as JSON always, in words where it did not end well."""
        if self._as_json:
            facts = {"argument": job.job_id, "queue_id": job.queue_id, "lease_id": job.lease_id, "attempt": job.attempt}
            output.write_json({**facts, "became": became, **ending._asdict()})
            output.flush()
        elif became != "acked":
            output.complain(f"{_shown(job)} {_sentence(job, became, ending)}")


def _shown(job: Job) -> str:
    return ascii(job.job_id[:SHOWN_CHARS_MAX])


def _sentence(job: Job, became: str, ending: Ending) -> str:
    ended = "was stopped" if ending.exit_code is None else f"ended with exit code {ending.exit_code}"
    return {
        "nacked": f"{ended} at attempt {job.attempt}",
        "dead": f"{ended} at attempt {job.attempt}, its last: it is dead",
        "released": f"{ended} and is given back",
        "cancelled": f"{ended}: it was cancelled",
        "stale": f"{ended}: its lease was lost, and it may be running somewhere else",
    }[became]


def _sit_out(error: RestqError) -> None:
    output.complain(f"{error}; this is tried again")
    time.sleep(random.uniform(0, OUTAGE_SECONDS_MAX))
