"""`restq explain` and `wait`: why a job is where it is, and when a batch is done."""

from __future__ import annotations

import time
from typing import Any

import click

from restq.cli import DONE, NOTHING_FOUND, output
from restq.cli.options import argument_text, configured, json_option, open_realm, realm_option, uri_option
from restq.cli.values import seconds


@click.command("explain")
@click.argument("arg", nargs=-1, required=True)
@realm_option
@json_option
@uri_option
@click.pass_context
def explain_(ctx: click.Context, arg: tuple[str, ...], as_json: bool) -> int:
    """Say why an argument is where it is.

    Of each of its queues: where it stands in it, why it is not handed out, and how it last failed. Several ARGs are
    one argument, joined by spaces, as in add. Exit code 3: there is no such argument.

    \b
    restq explain pwd
    """
    argument = argument_text(" ".join(arg))
    with open_realm(configured(ctx)) as realm:
        explained = realm.explain(argument)
    if as_json:
        output.write_json({"argument": argument, **explained})
        return DONE
    for place in explained["queues"]:
        output.write(f"queue {place['queue_id']}: {place['explanation']}")
        _write_failure(place)
    return DONE


@click.command("wait")
@click.option("--tag", required=True, metavar="TAG", help="The tag to wait for.")
@click.option("--timeout", type=seconds, metavar="SECONDS", help="Wait no longer than this. For ever, if not given.")
@realm_option
@json_option
@uri_option
@click.pass_context
def wait_(ctx: click.Context, tag: str, timeout: float | None, as_json: bool) -> int:
    """Wait until no job carries a tag.

    That is when all of a batch is acked or removed. A dead job still carries its tags. Exit code 3: the time is up,
    and there are some.

    \b
    restq wait --tag=nightly
    restq wait --tag=nightly --timeout=2h
    """
    name = argument_text(tag)
    with open_realm(configured(ctx)) as realm:
        is_over = realm.wait_for_tag(name, timeout)
        found = {} if is_over and not as_json else realm.get_tag(name)
    if as_json:
        output.write_json({**found, "tag": name, "count": 0 if is_over else found["count"]})
    elif not is_over:
        dead = f", {found['dead']} of them dead" if found["dead"] else ""
        output.complain(f"the time is up, and {found['count']} jobs are tagged with {name}{dead}")
    return DONE if is_over else NOTHING_FOUND


def _write_failure(place: dict[str, Any]) -> None:
    """Print when and how the job last failed in the queue, if it did."""
    if "failed_at" not in place:
        return
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(place["failed_at"]))
    code = f" with exit code {place['exit_code']}" if "exit_code" in place else ""
    error = place.get("error", "")
    output.write(f"  it last failed at {at}{code}{':' if error else ''}")
    for line in error.splitlines():
        output.write(f"    {line}")
