"""`restq remove`: say that work is done, or not wanted."""

from __future__ import annotations

import click

from restq.cli import DONE, output
from restq.cli.options import configured, joined, json_option, open_realm, realm_option, uri_option


@click.command("remove")
@click.argument("what", type=click.Choice(["arg", "tag"]), metavar="arg|tag")
@click.argument("words", nargs=-1, required=True, metavar="X...")
@realm_option
@json_option
@uri_option
@click.pass_context
def remove_(ctx: click.Context, what: str, words: tuple[str, ...], as_json: bool) -> int:
    """Remove an argument, or every argument with a tag, from all queues.

    Several words after arg are one argument, joined by spaces, as in add. Exit code 3: there was none.

    \b
    restq remove arg pwd
    restq remove tag work
    """
    name = joined(what, words)
    with open_realm(configured(ctx)) as realm:
        # The removal itself is never an error; whoever mistyped wants to know.
        if what == "arg":
            realm.get_job(name)
            realm.remove_job(name)
            text, count = f"removed argument {name}", 1
        else:
            count = realm.get_tag_status(name)["count"]
            realm.remove_tagged_jobs(name)
            text = f"removed {count} jobs tagged with {name}"
    if as_json:
        output.write_json({"removed": count, what: name})
    else:
        output.write(text)
    return DONE
