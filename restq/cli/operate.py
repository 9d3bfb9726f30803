"""`restq move`, `clear`, `redrive` and `cancel`: what somebody who looks after the queues does to many jobs at once."""

from __future__ import annotations

from typing import Any

import click

from restq.cli import DONE, output
from restq.cli.options import configured, joined, json_option, open_realm, realm_option, uri_option
from restq.cli.values import queue_id
from restq.errors import JobNotFound

what_argument = click.argument("what", type=click.Choice(["arg", "tag"]), metavar="arg|tag")
words_argument = click.argument("words", nargs=-1, required=True, metavar="X...")


@click.command("move")
@what_argument
@words_argument
@click.option("--from-queue", required=True, metavar="ID", help="The queue that they leave.")
@click.option("--to-queue", required=True, metavar="ID", help="The queue that they go to.")
@realm_option
@json_option
@uri_option
@click.pass_context
def move_(ctx: click.Context, what: str, words: tuple[str, ...], from_queue: str, to_queue: str, as_json: bool) -> int:
    """Move an argument, or all with a tag, to another queue.

    One that is leased out of the queue stays there. Several words after arg are one argument, joined by spaces, as
    in add. Exit code 3: it is not in that queue, or there is no such queue or tag.

    \b
    restq move arg pwd --from-queue=0 --to-queue=5
    restq move tag nightly --from-queue=0 --to-queue=late
    """
    name = joined(what, words)
    source, target = queue_id(from_queue), queue_id(to_queue)
    with open_realm(configured(ctx)) as realm:
        if what == "arg":
            realm.move_job(name, source, target)
            moved = {"moved": 1, "leased": 0}
        else:
            moved = realm.move_tagged_jobs(name, source, target)
    if as_json:
        output.write_json({**moved, what: name, "from_queue": source, "to_queue": target})
    elif what == "arg":
        output.write(f"moved argument {name} from queue {source} to queue {target}")
    else:
        output.write(f"moved {moved['moved']} jobs tagged with {name} from queue {source} to queue {target}")
        if moved["leased"]:
            output.write(f"{moved['leased']} are leased and stay in queue {source}")
    return DONE


@click.command("clear")
@click.argument("queue", metavar="QUEUE")
@realm_option
@json_option
@uri_option
@click.pass_context
def clear_(ctx: click.Context, queue: str, as_json: bool) -> int:
    """Empty a queue.

    What stands in it leaves it, leased or not, and what stands in no other queue is removed.
    Exit code 3: there is no such queue.

    \b
    restq clear 3
    """
    cleared = queue_id(queue)
    with open_realm(configured(ctx)) as realm:
        removed = realm.clear_queue(cleared)
    if as_json:
        output.write_json({"removed": removed, "queue": cleared})
    else:
        output.write(f"cleared queue {cleared}, removed {removed} jobs")
    return DONE


@click.command("redrive")
@click.argument("what", type=click.Choice(["arg", "tag", "queue"]), required=False, metavar="[arg|tag|queue]")
@click.argument("words", nargs=-1, metavar="[X...]")
@realm_option
@json_option
@uri_option
@click.pass_context
def redrive_(ctx: click.Context, what: str | None, words: tuple[str, ...], as_json: bool) -> int:
    """Make dead arguments ready again.

    One, those of a tag or of a queue, or all; they are as if they had never been handed out. Several words after arg
    are one argument, joined by spaces, as in add. Exit code 3: that argument is not dead, or there is no such queue or
    tag.

    \b
    restq redrive
    restq redrive queue 3
    restq redrive tag nightly
    restq redrive arg "ls -lah"
    """
    if what is not None and not words:
        raise click.UsageError(f"redrive {what} needs the {'argument' if what == 'arg' else what}")
    name = joined(what, words) if what is not None else ""
    named: dict[str, Any] = {what: name} if what is not None else {}
    with open_realm(configured(ctx)) as realm:
        if what == "tag":
            count = realm.redrive_tagged_jobs(name)
        elif what == "queue":
            named = {"queue": queue_id(name)}
            count = realm.redrive(**named)
        elif what == "arg":
            count = realm.redrive(jobs=[name])
            if not count:
                raise JobNotFound(f"no dead argument {name}")
        else:
            count = realm.redrive()
    if as_json:
        output.write_json({"redriven": count, **named})
    else:
        output.write(f"redriven {count} jobs")
    return DONE


@click.command("cancel")
@what_argument
@words_argument
@realm_option
@json_option
@uri_option
@click.pass_context
def cancel_(ctx: click.Context, what: str, words: tuple[str, ...], as_json: bool) -> int:
    """Cancel an argument, or all with a tag.

    It is removed, at once unless it is leased. The worker of one that is leased learns it when it next extends the
    lease, and may stop; whatever ends the lease removes the argument. `remove` takes it away at once, and lets the
    worker find out at its end. Exit code 3: there is none.

    \b
    restq cancel arg pwd
    restq cancel tag nightly
    """
    name = joined(what, words)
    with open_realm(configured(ctx)) as realm:
        if what == "arg":
            cancelled: dict[str, Any] = {"removed": 0, "leased": 0}
            cancelled[realm.cancel_job(name)] = 1
        else:
            cancelled = realm.cancel_tagged_jobs(name)
    if as_json:
        output.write_json({**cancelled, what: name})
    elif what == "arg":
        later = ", which is leased, and removed when its lease ends" if cancelled["leased"] else ""
        output.write(f"cancelled argument {name}{later}")
    else:
        output.write(f"removed {cancelled['removed']} jobs tagged with {name}")
        if cancelled["leased"]:
            output.write(f"{cancelled['leased']} are leased, and removed when their leases end")
    return DONE
