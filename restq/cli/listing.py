"""`restq list`: the realms of a server, or the jobs of a realm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

from restq.cli import DONE, output
from restq.cli.options import argument_text, configured, json_option, open_realm, open_realms, realm_option, uri_option
from restq.cli.values import queue_id
from restq.config import Config

STATES = ("ready", "leased", "delayed", "blocked", "dead", "done")
LIMIT_DEFAULT = 50

_ROW = "{:<7}  {:>8}  {:>7}  {:>9}  {}"


@click.command("list")
@click.option("--jobs", is_flag=True, help="List the jobs of the realm; so does each of the filters.")
@click.option("--state", type=click.Choice(STATES), help="Only jobs that are in this state in one of their queues.")
@click.option("--queue", metavar="ID", help="Only jobs that are in this queue.")
@click.option("--tag", metavar="TAG", help="Only jobs that carry this tag.")
@click.option("--prefix", metavar="TEXT", help="Only jobs whose argument begins so.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help=f"At most so many jobs: {LIMIT_DEFAULT}.")
@click.option("--all", "without_limit", is_flag=True, help="All of them.")
@click.option("--data", is_flag=True, help="With --json: the data of each job, too.")
@realm_option
@json_option
@uri_option
@click.pass_context
def list_(
    ctx: click.Context,
    jobs: bool,
    state: str | None,
    queue: str | None,
    tag: str | None,
    prefix: str | None,
    limit: int | None,
    without_limit: bool,
    data: bool,
    as_json: bool,
) -> int:
    """List the realms that live on the server, or the jobs of one realm.

    Jobs are listed in the order in which they were added, one line for each of their queues: the state, how often it
    was handed out, the exit code of the last failure, and the argument. `done` are the results that the realm keeps.
    An argument with a newline is shown quoted.

    \b
    restq list
    restq list --jobs
    restq list --state=dead --tag=nightly --all
    restq list --queue=0 --limit=10 --json
    """
    config = configured(ctx)
    filters = {"state": state, "queue": queue, "tag": tag, "prefix": prefix}
    if not (jobs or limit or without_limit or data or any(value is not None for value in filters.values())):
        return _list_realms(config, as_json)
    if limit is not None and without_limit:
        raise click.UsageError("--limit or --all, not both")
    if data and not as_json:
        raise click.UsageError("--data goes with --json: the text shows no data")
    with open_realm(config) as realm:
        found = realm.list_jobs(
            state,
            None if queue is None else queue_id(queue),
            None if tag is None else argument_text(tag),
            None if prefix is None else argument_text(prefix),
            data,
        )
        write = _write_json if as_json else _write_table
        has_more = write(found, None if without_limit else limit or LIMIT_DEFAULT)
    if has_more:
        output.flush()
        output.complain("there are more: --all lists them all, --limit more of them")
    return DONE


def _list_realms(config: Config, as_json: bool) -> int:
    with open_realms(config) as realms:
        found = list(realms)
    if as_json:
        output.write_json({"realms": found})
        return DONE
    output.write("Realms:")
    for name in found:
        output.write(f"  + {name}")
    return DONE


# Both print while they read, as there may be millions, and return whether there were more than the limit.
def _write_table(jobs: Iterator[dict[str, Any]], limit: int | None) -> bool:
    output.write(_ROW.format("state", "queue id", "attempt", "exit code", "argument"))
    for job in islice(jobs, limit):
        argument = job["job_id"] if job["job_id"].isprintable() else ascii(job["job_id"])
        for place in job.get("queues", [job]):  # a result has no queues but the one that it came out of
            exit_code = place.get("exit_code", "")
            output.write(_ROW.format(place["state"], place["queue_id"], place["attempt"], exit_code, argument))
    return next(jobs, None) is not None


def _write_json(jobs: Iterator[dict[str, Any]], limit: int | None) -> bool:
    start = '{"jobs": ['
    for job in islice(jobs, limit):
        output.write(start, "")
        output.write_json(job, "")
        start = ", "
    has_more = next(jobs, None) is not None
    output.write(f'{start if start != ", " else ""}], "more": {str(has_more).lower()}}}')
    return has_more
