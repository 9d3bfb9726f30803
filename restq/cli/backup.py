"""`restq backup`: copy the data directory, while its server runs or while none does."""

from __future__ import annotations

from pathlib import Path

import click

from restq.cli import DONE, output
from restq.cli.options import configured, json_option, setting


@click.command("backup")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@setting("realms.realms_config_root", "--data-dir", metavar="DIR")
@json_option
@click.pass_context
def backup_(ctx: click.Context, target: Path, as_json: bool) -> int:
    """Copy the data directory to DIR, which must be new or empty.

    A running server goes on meanwhile. On the machine where the data is, by a user who may read it. What is copied
    holds what was answered before the copying began; `restq check` looks at it, `restq web --data-dir` serves it.

    \b
    restq backup /backup/restq-monday
    restq backup /backup/restq-monday --data-dir=/var/lib/restq
    """
    data_dir = Path(configured(ctx).realms.realms_config_root).expanduser().absolute()
    from restq import backup  # which brings the server's side along

    copied = backup.back_up(data_dir, target)
    if as_json:
        output.write_json({"directory": str(target.absolute()), **copied._asdict()})
    else:
        output.write(f"{copied.shards} shards, {copied.bytes:,} bytes: {target}")
    return DONE
