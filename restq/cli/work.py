"""`restq work`: a whole worker, its options and its help. What it does is in `worker.py`."""

from __future__ import annotations

import os
import shutil
from typing import Any

import click

from restq.cli import output
from restq.cli.options import argument_text, configured, json_option, open_realm, realm_option, uri_option
from restq.cli.pull import worker_name
from restq.cli.values import listed, seconds
from restq.cli.worker import Worker


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
    """Pull arguments and run them, one after the other.

    Each is run as a shell command, or is the last argument of COMMAND. While one runs its lease is extended. One
    that exits with 0 is acked, with the end of its output; another is nacked, with its exit code and the end of its
    standard error, and handed out again: after --delay, else after the backoff of its queue or realm, else after 10
    seconds, 20, 40 and so on, of which chance takes away up to half. One that is cancelled is stopped. It finds
    RESTQ_LEASE_ID, RESTQ_QUEUE_ID and RESTQ_ATTEMPT in its environment, and its own restq speaks to the same realm.

    Ctrl-C or SIGTERM: the one that runs is finished first. The second time it is stopped and given back. While the
    server is away, work waits for it. With --json each argument that is over is one line, and its output is in
    that.

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
        worker = Worker(realm, command or ("sh", "-c", "--"), environ, delay, files_anywhere, as_json)
        with worker.ended_by_signals():
            worker.work(wait, {"count": 1, **filters})
    return worker.exit_code
