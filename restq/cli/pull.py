"""`restq pull`: arguments out of the queues, for a shell to run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from restq.cli import DONE, FAILED, NOTHING_FOUND, carried_file, output
from restq.cli.options import (
    argument_text,
    configured,
    json_option,
    null_option,
    open_realm,
    realm_option,
    setting,
    uri_option,
)
from restq.cli.values import listed, seconds
from restq.client.consuming import idle_seconds, poll_seconds
from restq.errors import RestqError

if TYPE_CHECKING:
    from restq.client import Job, Realm


@click.command("pull")
@realm_option
@setting("client.count", "--count", metavar="N")
@click.option("--wait", type=seconds, default="0", metavar="SECONDS", help="Wait so long for the first one.")
@click.option("--max-queue", metavar="ID", help="Only from queues up to and with this one.")
@click.option("--queues", type=listed, metavar="A,B", help="Only from these queues.")
@click.option("--tags", type=listed, metavar="A,B", help="Only what carries one of these tags.")
@click.option("--lease-time", type=seconds, metavar="SECONDS", help="Lease for so long, in place of the queue's time.")
@click.option("--worker", metavar="NAME", help="Who takes them, for those who ask: this machine's name.")
@click.option("--lease", "with_lease", is_flag=True, help="Print the lease's id and a space before each argument.")
@click.option("--files-anywhere", is_flag=True, help="Write a job's file wherever the job says. Only if you trust it.")
@null_option
@json_option
@uri_option
@click.pass_context
def pull_(
    ctx: click.Context,
    wait: float,
    max_queue: str | None,
    queues: Sequence[str] | None,
    tags: Sequence[str] | None,
    lease_time: float | None,
    worker: str | None,
    with_lease: bool,
    files_anywhere: bool,
    null: bool,
    as_json: bool,
) -> int:
    """Take arguments, lowest queue first, and print them, one a line.

    Each is leased: it is handed out again if it is neither acked nor removed within its queue's lease time. A file
    that a job carries is written before its argument is printed, below the current directory only. An argument that
    cannot be printed, because its file cannot be written or because it holds a newline (see -0), is named on
    standard error, and the exit code is 1; all others are printed. Exit code 3: there was nothing to take.

    \b
    restq pull --count=2
    restq pull -0 | xargs -0 -n 1 sh -c --
    while arg=$(restq pull --count=1); do eval "$arg" && restq remove arg -- "$arg"; done

    \b
    The same with leases, where a failure is told at once:
      while job=$(restq pull --count=1 --wait=20 --lease); do
        lease=${job%% *}
        if sh -c -- "${job#* }"; then restq ack "$lease"; else restq nack --exit-code=$? "$lease"; fi
      done
    """
    output.check()
    filters = {
        "max_queue": max_queue,
        "queues": queues,
        "tags": None if tags is None else [argument_text(tag) for tag in tags],
        "lease_time": lease_time,
        "worker": worker_name(worker),
    }
    with open_realm(configured(ctx)) as realm:
        jobs = next_jobs(realm, wait, filters)
    shown, failed = _write(jobs, files_anywhere, with_lease, null, as_json)
    if as_json:
        output.write_json({"jobs": shown, "failed": failed})
    output.flush()
    return FAILED if failed else DONE if jobs else NOTHING_FOUND


def next_jobs(realm: Realm, wait: float | None, pull: Mapping[str, Any]) -> list[Job]:
    """Pull: none where none came for `wait` seconds; None is for ever. In long polls, each as long as proxies bear."""
    until = None if wait is None else time.monotonic() + wait
    while True:
        asked_at = time.monotonic()
        jobs = realm.pull_jobs(wait=poll_seconds(until, asked_at), **pull)
        now = time.monotonic()
        if jobs or (until is not None and now >= until):
            return jobs
        time.sleep(min(idle_seconds(asked_at, now), poll_seconds(until, now)))


def worker_name(given: str | None) -> str | None:
    """The name that a worker gives itself: that of its machine if no other."""
    return argument_text(given) if given is not None else os.uname().nodename or None


def write_file(data: Any, anywhere: bool, written: dict[str, Any]) -> str | None:
    """Write the file that the job carries, and return its path; None where it carries none.

    Two jobs of one pull with different files of one path cannot both be run: the second is refused.
    """
    if not isinstance(data, dict) or carried_file.KEY not in data:
        return None
    file = carried_file.unpack(data)
    if written.setdefault(file.path, file) != file:
        raise RestqError(f"another job of this pull carries a different file {file.path!r}: pull with --count=1")
    file.write(anywhere)
    return file.path


def _write(
    jobs: Sequence[Job], files_anywhere: bool, with_lease: bool, null: bool, as_json: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write the files and, if not for JSON, print the arguments: what can be shown, and what cannot and why."""
    shown: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    written: dict[str, Any] = {}
    for job in jobs:
        facts = {"argument": job.job_id, "lease_id": job.lease_id}
        try:
            path = write_file(job.data, files_anywhere, written)
            if "\n" in job.job_id and not null and not as_json:
                raise RestqError("it holds a newline and can only be read with pull -0")
        except RestqError as error:
            failed.append({**facts, "error": error.message})
            output.complain(f"{job.job_id!a} is not printed and stays leased: {error.message}")
            continue
        shown.append(
            {
                **facts,
                "queue_id": job.queue_id,
                "data": job.data if path is None else None,
                "file": path,
                "tags": job.tags,
                "attempt": job.attempt,
                "lease_expires_at": job.lease_expires_at,
            }
        )
        if not as_json:
            lease = f"{job.lease_id} " if with_lease else ""
            output.write(lease + job.job_id, "\0" if null else "\n")
    return shown, failed
