"""`restq pull`: arguments out of the queues, for a shell to run."""

from __future__ import annotations

from typing import Any

import click

from restq.cli import DONE, FAILED, NOTHING_FOUND, carried_file, output
from restq.cli.options import (
    configured,
    json_option,
    null_option,
    open_realm,
    realm_option,
    setting,
    uri_option,
)
from restq.errors import RestqError


@click.command("pull")
@realm_option
@setting("client.count", "--count", metavar="N")
@click.option("--max-queue", metavar="ID", help="Only from queues up to and with this one.")
@click.option("--files-anywhere", is_flag=True, help="Write a job's file wherever the job says. Only if you trust it.")
@null_option
@json_option
@uri_option
@click.pass_context
def pull_(ctx: click.Context, max_queue: str | None, files_anywhere: bool, null: bool, as_json: bool) -> int:
    """Take arguments, lowest queue first, and print them, one a line.

    Each is leased: it is handed out again if it is not removed within its queue's lease time. A file that a
    job carries is written before its argument is printed, below the current directory only. An argument that
    cannot be printed, because its file cannot be written or because it holds a newline (see -0), is named on
    standard error, and the exit code is 1; all others are printed. Exit code 3: there was nothing to take.

    \b
    restq pull --count=2
    restq pull -0 | xargs -0 -n 1 sh -c
    while arg=$(restq pull --count=1); do eval "$arg" && restq remove arg -- "$arg"; done
    """
    output.check()
    with open_realm(configured(ctx)) as realm:
        pulled = realm.pull(max_queue=max_queue)
    if not pulled and not as_json:
        return NOTHING_FOUND
    shown: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    written: dict[str, Any] = {}
    for argument, (queue_id, data) in pulled.items():
        try:
            path = _write_file(data, files_anywhere, written)
            if "\n" in argument and not null and not as_json:
                raise RestqError("it holds a newline and can only be read with pull -0")
        except RestqError as error:
            failed.append({"argument": argument, "error": error.message})
            output.complain(f"{argument!a} is not printed and stays leased: {error.message}")
            continue
        shown.append({"argument": argument, "queue_id": queue_id, "data": data if path is None else None, "file": path})
        if not as_json:
            output.write(argument, "\0" if null else "\n")
    if as_json:
        output.write_json({"jobs": shown, "failed": failed})
    output.flush()
    return FAILED if failed else DONE if pulled else NOTHING_FOUND


def _write_file(data: Any, anywhere: bool, written: dict[str, Any]) -> str | None:
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
