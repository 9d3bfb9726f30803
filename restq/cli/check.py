"""`restq check`: look at a data directory while no server uses it."""

from __future__ import annotations

from pathlib import Path

import click

from restq.cli import DONE, FAILED, output
from restq.cli.options import configured, json_option, setting


@click.command("check")
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@setting("realms.realms_config_root", "--data-dir", metavar="DIR")
@json_option
@click.pass_context
def check_(ctx: click.Context, directory: Path | None, as_json: bool) -> int:
    """Say what is wrong with the files of a data directory, if anything is. Changes nothing.

    DIR is one that no server uses, such as what `restq backup` made; without it, the configured one. Compares the log,
    every row with its checksum, what refers to what, and has SQLite look at its own structures. A file that a server
    did not close is copied to the directory for temporary files first. Exit code 1 if something is wrong.

    \b
    restq check
    restq check /backup/restq-monday --json
    """
    data_dir = (directory or Path(configured(ctx).realms.realms_config_root)).expanduser().absolute()
    from restq import check  # which brings the server's side along

    report = check.check(data_dir)
    if as_json:
        shards = [shard._asdict() for shard in report.shards]
        output.write_json({**report._asdict(), "directory": str(data_dir), "shards": shards})
        return FAILED if report.problems else DONE
    for shard in report.shards:
        counts = ", ".join(f"{count:,} {table}" for table, count in sorted(shard.counts.items()) if count)
        output.write(f"{shard.file}: commit {shard.last_commit:,}; {counts or 'nothing in it'}")
        if shard.unchecked_count:
            output.write(f"{shard.file}: {shard.unchecked_count:,} rows of an earlier format have no checksums")
    for note in report.notes:
        output.write(note)
    for problem in report.problems:
        output.write(f"wrong: {problem}")
    output.write(f"{len(report.problems)} things are wrong" if report.problems else "nothing is wrong")
    return FAILED if report.problems else DONE
