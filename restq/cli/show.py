"""`restq status` and `get`: what is there. Nothing here changes anything.

The texts are those of 2013, which scripts read: one job is "1 jobs", too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from restq import names
from restq.cli import DONE, FAILED, output
from restq.cli.options import (
    argument_text,
    configured,
    joined,
    json_option,
    null_option,
    open_realm,
    realm_option,
    uri_option,
)
from restq.client import Realm
from restq.errors import TagNotFound

STATES = ("ready", "leased", "delayed", "blocked", "dead")


@click.command("status")
@click.argument("what", type=click.Choice(["arg", "tag"]), required=False, metavar="[arg|tag]")
@click.argument("words", nargs=-1, metavar="[X...]")
@click.option("--states", is_flag=True, help="Show the states as well: ready, leased, delayed, blocked, dead.")
@realm_option
@json_option
@uri_option
@click.pass_context
def status_(ctx: click.Context, what: str | None, words: tuple[str, ...], states: bool, as_json: bool) -> int:
    """Show what a realm holds, or where an argument stands, or how many carry a tag.

    The time at each queue of an argument counts from its last check-out; 0.00 is none. Several words after arg are
    one argument, joined by spaces, as in add. Exit code 3: there is no such argument or tag.

    \b
    restq status
    restq status --states
    restq status arg pwd
    restq status tag work
    """
    if what is not None and not words:
        raise click.UsageError(f"status {what} needs the {'argument' if what == 'arg' else 'tag'}")
    with open_realm(configured(ctx)) as realm:
        if what is None:
            _realm_status(realm, states, as_json)
        elif what == "arg":
            _argument_status(realm, joined(what, words), states, as_json)
        else:
            _tag_status(realm, joined(what, words), states, as_json)
    return DONE


@click.command("get")
@click.argument("tag", metavar="TAG")
@realm_option
@null_option
@json_option
@uri_option
@click.pass_context
def get_(ctx: click.Context, tag: str, null: bool, as_json: bool) -> int:
    """Print every argument that carries a tag, one a line, without taking it.

    Exit code 3: none does. An argument with a newline is printed with -0 only; without it, it is named on standard
    error, and the exit code is 1.

    \b
    restq get work
    """
    tag = argument_text(tag)
    with open_realm(configured(ctx)) as realm:
        found = realm.get_tagged_jobs(tag)
    if not found:
        raise TagNotFound(f"no argument is tagged with {tag}")
    if as_json:
        output.write_json({"tag": tag, "arguments": list(found)})
        return DONE
    broken = [] if null else [argument for argument in found if "\n" in argument]
    for argument in found:
        if null or "\n" not in argument:
            output.write(argument, "\0" if null else "\n")
    for argument in broken:
        output.complain(f"{argument!a} is not printed: it holds a newline and can only be read with get -0")
    return FAILED if broken else DONE


def _realm_status(realm: Realm, states: bool, as_json: bool) -> None:
    status = realm.status
    counted = realm.list_queues() if states or as_json else []
    if as_json:
        output.write_json({"realm": realm.name, **status, "states": counted})
        return
    queues = sorted((names.queue_id(queue_id) for queue_id in status["queues"]), key=names.queue_order)
    output.write(f"Status of realm {realm.name}:")
    output.write(f"Contains {status['total_tags']} tags with {status['total_jobs']} jobs")
    output.write(f"Defined queues: {_listed(queues)}")
    if states:
        rows = [[queue["queue_id"], *_counts(queue), _age(queue["oldest_ready_seconds"])] for queue in counted]
        output.write_table(("queue id", *STATES, "(s) since ready"), rows)


def _argument_status(realm: Realm, argument: str, states: bool, as_json: bool) -> None:
    job = realm.get_job(argument)
    queues = sorted(
        ((names.queue_id(queue_id), seconds) for queue_id, seconds in job["queues"]),
        key=lambda place: names.queue_order(place[0]),
    )
    placed = {place["queue_id"]: place for place in realm.explain(argument)["queues"]} if states or as_json else {}
    if as_json:
        places = [
            {**placed.get(queue_id, {}), "queue_id": queue_id, "seconds_since_dequeue": seconds}
            for queue_id, seconds in queues
        ]
        output.write_json({"argument": argument, "tags": sorted(job["tags"]), "queues": places, "data": job["data"]})
        return
    output.write(f"Status of argument {argument}:")
    output.write(f"Tagged with: {_listed(sorted(job['tags']))}")
    output.write(f"queue id | (s) since dequeue{' | state' if states else ''}")
    for queue_id, seconds in queues:
        row = f"{queue_id!s:>8} | {seconds:0.2f}"
        output.write(f"{row:<28} | {placed[queue_id]['state']}" if queue_id in placed else row)


def _tag_status(realm: Realm, tag: str, states: bool, as_json: bool) -> None:
    count = realm.get_tag_status(tag)["count"]
    found = realm.get_tag(tag) if states or as_json else {}
    if as_json:
        output.write_json({**found, "tag": tag, "count": count})
        return
    output.write(f"{count} jobs tagged with {tag}")
    if states:
        output.write_table(STATES, [_counts(found)])


def _counts(found: Mapping[str, Any]) -> list[Any]:
    return [found[state] for state in STATES]


def _age(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:0.2f}"


def _listed(values: list[str] | list[int | str]) -> str:
    return ", ".join(str(value) for value in values) or "(none)"
