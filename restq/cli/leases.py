"""`restq ack`, `nack`, `release` and `extend`: what a worker says of the leases that `pull --lease` printed.

They are silent where all went well: a loop's output is that of its jobs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from restq.cli import DONE, NOTHING_FOUND, output
from restq.cli.options import configured, json_option, open_realm, realm_option, uri_option
from restq.cli.values import seconds
from restq.errors import LeaseStale, RestqError

OUTPUT_BYTES_MAX = 65536  # what the server keeps of an output, and of an error: its end
ERROR_BYTES_MAX = 4096
READ_BYTES = 1024 * 1024

leases_argument = click.argument("leases", nargs=-1, required=True, metavar="LEASE...")


@click.command("ack")
@leases_argument
@click.option("--result", metavar="JSON", help="What came out of it: any JSON value.")
@click.option("--exit-code", type=int, metavar="N", help="What the work exited with.")
@click.option("--output", "text", metavar="TEXT", help="What the work printed; its last 64 KiB are kept.")
@click.option("--output-file", "path", metavar="PATH", help="The same out of a file; - is standard input.")
@realm_option
@json_option
@uri_option
@click.pass_context
def ack_(
    ctx: click.Context,
    leases: tuple[str, ...],
    result: str | None,
    exit_code: int | None,
    text: str | None,
    path: str | None,
    as_json: bool,
) -> int:
    """Say that work is done: its job is gone.

    Unlike `remove`, it says so for this one lease: nothing happens where it is stale, which is when the job was
    handed out again, removed or finished since. Exit code 3: one of the leases is stale; all others were acked.
    Result, exit code and output are kept where the realm keeps what is done (see configure, keep_done).

    \b
    restq ack 12-3
    restq ack --exit-code=0 --output-file=log 12-3
    """
    value = None if result is None else _json(result)
    printed = _tail(text, path, "output", OUTPUT_BYTES_MAX)
    with open_realm(configured(ctx)) as realm:
        reply = _ended("acked", leases, lambda: realm.ack(leases, value, exit_code, printed))
    return _told(reply, as_json)


@click.command("nack")
@leases_argument
@click.option("--error", "text", metavar="TEXT", help="Why; its last 4 KiB are kept.")
@click.option("--error-file", "path", metavar="PATH", help="The same out of a file; - is standard input.")
@click.option("--exit-code", type=int, metavar="N", help="What the work exited with.")
@click.option("--delay", type=seconds, metavar="SECONDS", help="Hand it out again after this time, not the backoff.")
@realm_option
@json_option
@uri_option
@click.pass_context
def nack_(
    ctx: click.Context,
    leases: tuple[str, ...],
    text: str | None,
    path: str | None,
    exit_code: int | None,
    delay: float | None,
    as_json: bool,
) -> int:
    """Say that work failed.

    Its job is handed out again, or is dead if that was its last attempt. Without --delay a job is ready again after
    its queue's backoff, which is at once where there is none. The ones that are dead now are named on standard
    output. Exit code 3: one of the leases is stale.

    \b
    restq nack --exit-code=2 --error-file=log 12-3
    restq nack --error="no such page" --delay=10m 12-3
    """
    error = _tail(text, path, "error", ERROR_BYTES_MAX)
    with open_realm(configured(ctx)) as realm:
        reply = _ended("nacked", leases, lambda: realm.nack(leases, error, exit_code, delay))
    for lease in () if as_json else reply.get("dead", ()):
        output.write(f"the job of lease {lease} is dead: that was its last attempt")
    return _told(reply, as_json)


@click.command("release")
@leases_argument
@click.option("--delay", type=seconds, metavar="SECONDS", help="Hand it out again after this time, not at once.")
@realm_option
@json_option
@uri_option
@click.pass_context
def release_(ctx: click.Context, leases: tuple[str, ...], delay: float | None, as_json: bool) -> int:
    """Give jobs back without an attempt being counted.

    Exit code 3: one of the leases is stale.

    \b
    restq release 12-3
    restq release --delay=5m 12-3 14-3
    """
    with open_realm(configured(ctx)) as realm:
        reply = _ended("released", leases, lambda: realm.release(leases, delay))
    return _told(reply, as_json)


@click.command("extend")
@leases_argument
@click.option("--lease-time", type=seconds, metavar="SECONDS", help="How long from now, in place of the queue's time.")
@realm_option
@json_option
@uri_option
@click.pass_context
def extend_(ctx: click.Context, leases: tuple[str, ...], lease_time: float | None, as_json: bool) -> int:
    """Begin leases anew, for work that takes longer.

    Exit code 3: one of them is stale, or its job was cancelled: then its work is not wanted any more.

    \b
    restq extend 12-3
    restq extend --lease-time=1h 12-3
    while sleep 60; do restq extend "$lease"; [ $? = 3 ] && kill "$work"; done &
    """
    with open_realm(configured(ctx)) as realm:
        reply = _ended("extended", leases, lambda: realm.extend(leases, lease_time))
    return _told(reply, as_json)


def _ended(done: str, leases: Sequence[str], send: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The reply, also where the server refuses because all of the leases are stale."""
    try:
        return send()
    except LeaseStale:
        return {done: [], "stale": list(leases)}


def _told(reply: dict[str, Any], as_json: bool) -> int:
    """Print the reply, complain of what could not be done, and return the exit code."""
    if as_json:
        output.write_json(reply)
    stale, cancelled = reply["stale"], reply.get("cancelled", ())
    if stale:
        output.complain(f"{_named(stale)} stale: handed out again, removed or finished since; nothing was done")
    if cancelled:
        output.complain(f"{_named(cancelled)} of cancelled work: nobody wants it any more")
    return NOTHING_FOUND if stale or cancelled else DONE


def _named(leases: Sequence[str]) -> str:
    return f"lease {leases[0]} is" if len(leases) == 1 else f"leases {', '.join(leases)} are"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--result is not JSON: {error}") from error


def _tail(text: str | None, path: str | None, what: str, bytes_max: int) -> str | None:
    """The end of the text, or of what the file holds. It may have been cut, and need not have been UTF-8."""
    if text is not None and path is not None:
        raise click.UsageError(f"--{what} or --{what}-file, not both")
    if text is not None:
        return os.fsencode(text).decode(errors="replace")
    if path is None:
        return None
    if path == "-":
        if sys.stdin is None:
            raise RestqError("standard input is closed")
        return _end_of(sys.stdin.buffer, bytes_max)
    with open(path, "rb") as file:
        return _end_of(file, bytes_max)


def _end_of(stream: Any, bytes_max: int) -> str:
    end = b""
    while chunk := stream.read(READ_BYTES):
        end = (end + chunk)[-bytes_max:]
    return end.decode(errors="replace")
