"""`restq list`: the realms of a server, or the jobs or the tags of a realm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import click

from restq.cli import DONE, NOTHING_FOUND, output
from restq.cli.options import argument_text, configured, json_option, open_realm, open_realms, realm_option, uri_option
from restq.cli.values import queue_id
from restq.config import Config
from restq.names import QueueId

STATES = ("ready", "leased", "delayed", "blocked", "dead", "done")
LIMIT_DEFAULT = 50

_ROW = "{:<7}  {:>8}  {:>7}  {:>9}  {}"
_TAG_ROW = "{:>7}  {:>7}  {:>7}  {:>7}  {:>7}  {:>7}  {}"


Found = dict[str, Any]


class Wanted(NamedTuple):
    """What is to be listed: as `Realm.list_jobs` takes it."""

    state: str | None
    queue: QueueId | None
    tag: str | None
    prefix: str | None

    def has(self, place: Mapping[str, Any]) -> bool:
        """Whether the place, one of a job that is listed, is in the state and the queue."""
        return self.state in (None, place["state"]) and self.queue in (None, place["queue_id"])


@click.command("list")
@click.option("--jobs", is_flag=True, help="List the jobs of the realm; so does each of the filters.")
@click.option("--tags", is_flag=True, help="List the tags of the realm.")
@click.option("--state", type=click.Choice(STATES), help="Only jobs that are in this state in one of their queues.")
@click.option("--queue", metavar="ID", help="Only jobs that are in this queue.")
@click.option("--tag", metavar="TAG", help="Only jobs that carry this tag.")
@click.option("--prefix", metavar="TEXT", help="Only jobs whose argument, or tags that, begin so.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help=f"At most so many: {LIMIT_DEFAULT}.")
@click.option("--all", "without_limit", is_flag=True, help="All of them.")
@click.option("--data", is_flag=True, help="With --json: the data of each job, too.")
@realm_option
@json_option
@uri_option
@click.pass_context
def list_(
    ctx: click.Context,
    jobs: bool,
    tags: bool,
    state: str | None,
    queue: str | None,
    tag: str | None,
    prefix: str | None,
    limit: int | None,
    without_limit: bool,
    data: bool,
    as_json: bool,
) -> int:
    """List the realms of the server, or the jobs or tags of one.

    Jobs are listed in the order in which they were added, one line for each queue: the state, how often it
    was handed out, the exit code of the last failure, and the argument. `done` are the results that the realm keeps.
    An argument with a newline is shown quoted. Tags are listed by name, with how many jobs carry each, and how many
    places those have in queues, by state. Exit code 3: there is no such job or tag.

    \b
    restq list
    restq list --jobs
    restq list --state=dead --tag=nightly --all
    restq list --queue=0 --limit=10 --json
    restq list --tags --prefix=night
    """
    config = configured(ctx)
    filters = (state, queue, tag)
    if not (jobs or tags or limit or without_limit or data or prefix or any(value is not None for value in filters)):
        return _list_realms(config, as_json)
    if limit is not None and without_limit:
        raise click.UsageError("--limit or --all, not both")
    if data and not as_json:
        raise click.UsageError("--data goes with --json: the text shows no data")
    if tags and (jobs or data or any(value is not None for value in filters)):
        raise click.UsageError("--tags goes with --prefix, --limit and --all alone: all else is about jobs")
    beginning = None if prefix is None else argument_text(prefix)
    with open_realm(config) as realm:
        if tags:
            return _list(realm.list_tags(beginning), "tags", _write_tags, limit, without_limit, as_json)
        wanted = Wanted(
            state,
            None if queue is None else queue_id(queue),
            None if tag is None else argument_text(tag),
            beginning,
        )
        found = realm.list_jobs(*wanted, data)
        return _list(found, "jobs", lambda shown: _write_jobs(shown, wanted), limit, without_limit, as_json)


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


def _list(
    found: Iterator[Found],
    what: str,
    write: Callable[[Iterator[Found]], int],
    limit: int | None,
    without_limit: bool,
    as_json: bool,
) -> int:
    """Print what was found, up to the limit, while it is read: there may be millions."""
    shown = islice(found, None if without_limit else limit or LIMIT_DEFAULT)
    if as_json:
        count = _write_json(shown, what)
        output.write(f'], "more": {"false" if next(found, None) is None else "true"}}}')
    else:
        count = write(shown)
        if next(found, None) is not None:
            output.flush()
            output.complain("there are more: --all lists them all, --limit more of them")
    return DONE if count else NOTHING_FOUND


# Each of these returns how many there were.
def _write_jobs(jobs: Iterator[Found], wanted: Wanted) -> int:
    count = 0
    for count, job in enumerate(jobs, 1):
        if count == 1:
            output.write(_ROW.format("state", "queue id", "attempt", "exit code", "argument"))
        argument = job["job_id"] if job["job_id"].isprintable() else ascii(job["job_id"])
        for place in job.get("queues", [job]):  # a result has no queues but the one that it came out of
            if wanted.has(place):
                exit_code = place.get("exit_code", "")
                output.write(_ROW.format(place["state"], place["queue_id"], place["attempt"], exit_code, argument))
    return count


def _write_tags(tags: Iterator[Found]) -> int:
    columns = ("count", *STATES[:-1], "tag")
    count = 0
    for count, tag in enumerate(tags, 1):
        if count == 1:
            output.write(_TAG_ROW.format("jobs", *columns[1:]))
        output.write(_TAG_ROW.format(*(tag[column] for column in columns)))
    return count


def _write_json(found: Iterator[Found], what: str) -> int:
    """The list, but for what closes it."""
    output.write(f'{{"{what}": [', "")
    count = 0
    for count, one in enumerate(found, 1):
        output.write(", " if count > 1 else "", "")
        output.write_json(one, "")
    return count
