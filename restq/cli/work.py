"""`restq work`: a whole worker. What runs the command is in `execution.py`."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import click

from restq.cli import DONE, INTERRUPTED, output
from restq.cli.execution import NOT_STARTED, Execution
from restq.cli.options import argument_text, configured, json_option, open_realm, realm_option, uri_option
from restq.cli.pull import next_jobs, worker_name, write_file
from restq.cli.values import listed, seconds
from restq.client import Job, Realm
from restq.client.peer import OUTAGES
from restq.errors import LeaseStale, RestqError

LOOK_SECONDS = 1.0  # how soon it is seen that a job was cancelled, after the extension that told of it
OUTAGE_SECONDS_MAX = 5.0
# What failed waits so long where neither its queue nor the realm has a backoff: else it would come at once, for ever.
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 10.0, 3600.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOWN_CHARS_MAX = 60


@click.command("work")
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
@click.option("--wait", type=seconds, metavar="SECONDS", help="End when nothing came for so long; 0: when it is empty.")
@click.option("--max-queue", metavar="ID", help="Only from queues up to and with this one.")
@click.option("--queues", type=listed, metavar="A,B", help="Only from these queues.")
@click.option("--tags", type=listed, metavar="A,B", help="Only what carries one of these tags.")
@click.option("--lease-time", type=seconds, metavar="SECONDS", help="Lease for so long, in place of the queue's time.")
@click.option("--delay", type=seconds, metavar="SECONDS", help="Hand out again what failed after this time.")
@click.option("--worker", metavar="NAME", help="Who works, for those who ask: this machine's name.")
@click.option("--files-anywhere", is_flag=True, help="Write a job's file wherever the job says. Only if you trust it.")
@realm_option
@json_option
@uri_option
@click.pass_context
def work_(
    ctx: click.Context,
    /,
    command: tuple[str, ...],
    wait: float | None,
    delay: float | None,
    files_anywhere: bool,
    as_json: bool,
    **filters: Any,  # those of the pull, as the client names them
) -> int:
    """Take arguments one after the other and run each as a shell command, or as the last argument of COMMAND.

    While one runs its lease is extended. One that exits with 0 is acked, with the end of its output; another is
    nacked, with its exit code and the end of its standard error, and handed out again: after --delay, else after the
    backoff of its queue or realm, else after 10 seconds, 20, 40 and so on. One that is cancelled is stopped. It finds
    RESTQ_LEASE_ID, RESTQ_QUEUE_ID and RESTQ_ATTEMPT in its environment, and its own restq speaks to the same realm.

    Ctrl-C or SIGTERM: the one that runs is finished first. The second time it is stopped and given back. While the
    server is away, work waits for it. With --json each argument that is over is one line, and its output is in that.

    \b
    restq work
    restq work --wait=0 --queues=0,1
    restq work --tags=pictures -- convert -resize 50% -path small
    """
    output.check()
    if command and shutil.which(command[0]) is None:
        raise click.UsageError(f"there is no command {command[0]}")
    config = configured(ctx)
    filters["worker"] = worker_name(filters["worker"])
    if filters["tags"] is not None:
        filters["tags"] = [argument_text(tag) for tag in filters["tags"]]
    with open_realm(config) as realm:
        environ = {**os.environ, "RESTQ_CLIENT_URI": config.client.uri, "RESTQ_CLI_REALM": realm.name}
        worker = Worker(realm, command or ("sh", "-c"), environ, delay, files_anywhere, as_json)
        with worker.stopped_by_signals():
            worker.work(wait, {"count": 1, **filters})
    return worker.exit_code


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
    def stopped_by_signals(self) -> Iterator[None]:
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
            output.complain("what runs is finished first; the next signal stops it")

    def work(self, wait: float | None, pull: Mapping[str, Any]) -> None:
        """Work until a signal comes, or until no job came for `wait` seconds. Raises where no server ever answered."""
        has_answered = False
        while not self._is_ending:
            try:
                self._is_idle = True
                jobs = next_jobs(self._realm, wait, pull)
                self._is_idle = False
            except KeyboardInterrupt:
                return
            except OUTAGES as error:
                if not has_answered:
                    raise
                self._sit_out(error)
                continue
            has_answered = True
            if not jobs:
                return
            for job in jobs:
                self._do(job)

    def _do(self, job: Job) -> None:
        """Run the job and tell the server what came of it. A defect of ours nacks it; see `Job`."""
        with job:
            try:
                write_file(job.data, self._files_anywhere, {})
                execution = Execution([*self._command, job.job_id], self._environ_of(job), *self._onward())
            except (RestqError, OSError, ValueError) as error:
                became = self._tell(lambda: self._nack(job, NOT_STARTED, str(error)))
                self._report(job, became, NOT_STARTED, "", str(error))
                return
            exit_code = self._run(job, execution)
            if job.lost:
                became = "stale"
            elif exit_code is None:
                became = self._tell(lambda: self._release(job))
            elif exit_code == 0:
                became = self._tell(lambda: self._ack(job, execution.output))
            else:
                became = self._tell(lambda: self._nack(job, exit_code, execution.error))
        self._report(job, became, exit_code, execution.output, execution.error)

    def _run(self, job: Job, execution: Execution) -> int | None:
        """The exit code, or None where it was stopped: it was cancelled, its lease was lost, or we are to end."""
        while not (self._is_stopping or job.cancelled or job.lost):
            exit_code = execution.wait(LOOK_SECONDS)
            if exit_code is not None:
                return exit_code
        execution.stop()
        return None

    # What became of the job, in the server's words.
    def _ack(self, job: Job, printed: str) -> str:
        self._realm.ack(job, exit_code=0, output=printed)
        return "acked"

    def _nack(self, job: Job, exit_code: int, error: str) -> str:
        reply = self._realm.nack(job, error, exit_code, self._delay_of(job))
        return "dead" if reply["dead"] else "nacked"

    def _release(self, job: Job) -> str:
        self._realm.release(job)
        return "cancelled" if job.cancelled else "released"

    def _tell(self, send: Callable[[], str]) -> str:
        """What became of the job: told again while the server is away, as the work must not be done twice."""
        while True:
            try:
                return send()
            except LeaseStale:
                return "stale"
            except OUTAGES as error:
                if self._is_stopping:
                    raise
                self._sit_out(error)

    def _delay_of(self, job: Job) -> float | None:
        """How long a job that failed waits; None where the server knows."""
        if self._delay is not None:
            return self._delay
        settings = self._realm.get_queue(job.queue_id)["settings"]
        if settings.get("backoff") or self._realm.get_config()["backoff"]:
            return None
        longest = min(BACKOFF_SECONDS * 2.0 ** min(job.attempt - 1, 20), BACKOFF_SECONDS_MAX)
        return longest * random.uniform(0.5, 1)

    def _sit_out(self, error: RestqError) -> None:
        output.complain(f"{error}; this is tried again")
        time.sleep(random.uniform(0, OUTAGE_SECONDS_MAX))

    def _environ_of(self, job: Job) -> dict[str, str]:
        facts = {"RESTQ_LEASE_ID": job.lease_id, "RESTQ_QUEUE_ID": str(job.queue_id), "RESTQ_ATTEMPT": str(job.attempt)}
        return {**self._environ, **facts}

    def _onward(self) -> tuple[IO[bytes] | None, IO[bytes] | None]:
        if self._as_json:
            return None, None
        return sys.stdout.buffer, sys.stderr.buffer if sys.stderr is not None else None

    def _report(self, job: Job, became: str, exit_code: int | None, printed: str, error: str) -> None:
        """Say what became of the job: as JSON always, in words where it did not end well."""
        if self._as_json:
            facts = {"argument": job.job_id, "queue_id": job.queue_id, "lease_id": job.lease_id, "attempt": job.attempt}
            output.write_json({**facts, "became": became, "exit_code": exit_code, "output": printed, "error": error})
            output.flush()
            return
        ended = "it was stopped" if exit_code is None else f"exit code {exit_code}"
        if exit_code == NOT_STARTED and not printed:
            ended = error.strip() or ended
        sentence = {
            "acked": "",
            "nacked": f"{ended} at attempt {job.attempt}",
            "dead": f"{ended} at attempt {job.attempt}, its last: it is dead",
            "released": f"{ended} and is given back",
            "cancelled": f"{ended}, as it was cancelled",
            "stale": f"{ended}, but its lease was lost: it may be running somewhere else",
        }[became]
        if sentence:
            output.complain(f"{job.job_id[:SHOWN_CHARS_MAX]!a}: {sentence}")
