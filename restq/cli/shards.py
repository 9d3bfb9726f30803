"""`restq shards`: which realm is where, how busy each shard is, and moving realms between them."""

from __future__ import annotations

import click

from restq.cli import DONE, output
from restq.cli.options import argument_text, configured, json_option, open_realms, uri_option


@click.group("shards", invoke_without_command=True)
@json_option
@uri_option
@click.pass_context
def shards_(ctx: click.Context, as_json: bool) -> int:
    """Show how busy each shard is and which realms it holds.

    A shard is a process, so two realms that are busy at once are best kept on two of them: `pin` moves one
    while the server runs.

    \b
    restq shards
    restq shards pin nightly 1
    restq shards unpin nightly
    """
    if ctx.invoked_subcommand is not None:
        return DONE
    with open_realms(configured(ctx)) as realms:
        shards = realms.shards()
    if as_json:
        output.write_json({"shards": shards})
        return DONE
    output.write_table(
        ("shard", "pid", "busy", "requests", "jobs", "realms"),
        [(s["shard"], s["pid"], f"{s['busy']:.0%}", s["requests"], s["jobs"], len(s["realms"])) for s in shards],
    )
    placed = sorted((name, shard["shard"], held) for shard in shards for name, held in shard["realms"].items())
    if placed:
        output.write("")
        rows = [(shard, held["jobs"], "pinned" if held["pinned"] else "", name) for name, shard, held in placed]
        output.write_table(("shard", "jobs", "", "realm"), rows)
    return DONE


@shards_.command("pin")
@click.argument("realm")
@click.argument("shard", type=click.IntRange(min=0))
@uri_option
@click.pass_context
def pin(ctx: click.Context, realm: str, shard: int) -> int:
    """Move REALM to SHARD, while the server runs, and keep it there.

    \b
    restq shards pin nightly 1
    """
    with open_realms(configured(ctx)) as realms:
        realms[argument_text(realm)].pin(shard)
    return DONE


@shards_.command("unpin")
@click.argument("realm")
@uri_option
@click.pass_context
def unpin(ctx: click.Context, realm: str) -> int:
    """Let the server choose the shard of REALM again.

    \b
    restq shards unpin nightly
    """
    with open_realms(configured(ctx)) as realms:
        realms[argument_text(realm)].unpin()
    return DONE
