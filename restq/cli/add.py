"""`restq add`: arguments into a queue."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import click

from restq import names
from restq.cli import DONE, carried_file, output
from restq.cli.options import (
    argument_text,
    configured,
    json_option,
    null_option,
    open_realm,
    realm_option,
    setting,
    uri_option,
)
from restq.cli.values import instant, listed, seconds
from restq.config import Config
from restq.errors import FieldInvalid, RestqError

READ_BYTES = 1024 * 1024
CONFLICTS = ("merge", "ignore", "replace", "error")


@click.command("add")
@click.argument("arg", nargs=-1, required=True)
@realm_option
@setting("cli.queue_id", "--queue", metavar="ID")
@setting("cli.tags", "--tags", metavar="A,B")
@click.option("--file", "file", metavar="PATH", help="Carry this file in the job; `pull` writes it to the same path.")
@click.option(
    "--files-anywhere", is_flag=True, help="Allow a --file outside of the current directory. `pull` needs it as well."
)
@click.option("--delay", type=seconds, metavar="SECONDS", help="Not to be handed out before this time is over.")
@click.option("--run-at", type=instant, metavar="TIME", help="The same as a time, such as 2031-05-01T06:30.")
@click.option(
    "--expires-in", type=seconds, metavar="SECONDS", help="Gone after this time, unless it was taken by then."
)
@click.option("--max-attempts", type=int, metavar="N", help="Dead after so many failures, for this argument alone.")
@click.option("--after", type=listed, metavar="A,B", help="Not to be handed out while others carry one of these tags.")
@click.option("--on-conflict", type=click.Choice(CONFLICTS), help="What to do if it exists: merge, if not given.")
@null_option
@json_option
@uri_option
@click.pass_context
def add_(
    ctx: click.Context,
    /,
    arg: tuple[str, ...],
    file: str | None,
    files_anywhere: bool,
    null: bool,
    as_json: bool,
    after: Sequence[str] | None,
    **fields: Any,  # those of the job, as the client names them
) -> int:
    """Add an argument to a queue. Several ARGs are one argument, joined by spaces.

    The argument itself is the job: adding it again adds the queue and the tags to it, unless --on-conflict says to
    ignore the new one, to replace the old one, or to fail with an error. As `pull` prints one argument a line, one with
    a newline is refused, unless -0 says that `pull -0` will read it. Times may be 30s, 5m, 2h or 7d.

    With - in place of ARG the arguments are read from standard input, one a line (-0: each ended by NUL),
    and added in bulk; empty ones are skipped.

    \b
    restq add --tags=work "ls -lah"
    restq add --queue=1 --tags=work,fun pwd
    restq add --file=work.sh "chmod +x work.sh; ./work.sh"
    restq add --delay=10m --max-attempts=3 "curl -sf http://example.com/"
    restq add --after=work "echo all of work is done"
    find . -name '*.wav' -print0 | restq add -0 --tags=sounds -
    """
    config = configured(ctx)
    if after is not None:
        fields["after"] = [argument_text(tag) for tag in after]
    if config.cli.tags:
        fields["tags"] = config.cli.tags
    if arg == ("-",):
        if file is not None:
            raise click.UsageError("--file goes with one argument, not with those from standard input")
        count = _add_all(config, null, {name: value for name, value in fields.items() if value is not None})
    else:
        argument = argument_text(" ".join(arg))
        if "\n" in argument and not null:
            raise click.UsageError("the argument holds a newline, and pull prints one a line: add and pull it with -0")
        data = None
        if file is not None:
            data = carried_file.pack(argument_text(file), files_anywhere, config.webapp.body_bytes_max * 3 // 4)
        with open_realm(config) as realm:
            realm.add(argument, config.cli.queue_id, data, **fields)
        count = 1
    if as_json:
        output.write_json({"added": count, "queue_id": config.cli.queue_id})
    return DONE


def _add_all(config: Config, null: bool, fields: Mapping[str, Any]) -> int:
    """Add the arguments that stand on standard input, and return how many they were."""
    if sys.stdin is None:
        raise RestqError("standard input is closed")
    count = 0
    with open_realm(config) as realm:
        for argument in _read(sys.stdin.buffer, null):
            realm.bulk_add([{"job_id": argument, "queue_id": config.cli.queue_id, **fields}], buffer=True)
            count += 1
    return count


def _read(stream: BinaryIO, null: bool) -> Iterator[str]:
    """The arguments in the stream, checked. FieldInvalid names the first bad one; those before it were given out."""
    for number, raw in enumerate(_split(stream, b"\0" if null else b"\n"), 1):
        if not raw:
            continue
        try:
            yield names.job_id(raw.decode())
        except ValueError as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
            raise FieldInvalid(f"argument {number} of standard input: {reason}; those before it were added") from error


def _split(stream: BinaryIO, end: bytes) -> Iterator[bytes]:
    """The pieces of the stream between the ends. One that is far too long comes early, for its reader to refuse."""
    rest = b""
    while chunk := stream.read1(READ_BYTES):  # type: ignore[attr-defined]
        *pieces, rest = (rest + chunk).split(end)
        yield from pieces
        if len(rest) > READ_BYTES:
            break
    yield rest
