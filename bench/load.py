"""The load generator: bulk and single jobs over HTTP, empty pulls, restarts, memory.

It starts a server of its own, on a free port and a new data directory, measures it, and stops it. All
requests are made before a clock starts, and replies are parsed after it has stopped; the CPU time that the
generator itself used stands beside the server's.

\b
The scenarios:
  bulk     add, pull and remove all jobs in batches
  empty    with all jobs leased, pulls that find nothing
  memory   what a job takes in the shards beyond its id and data
  restart  kill -9 and SIGTERM of the first process, and the start with all jobs leased
  single   one job a request over many connections
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from bench import machine, report
from bench.connection import Address, LoadError
from bench.scenarios import NAMES, Plan, Session
from bench.server import running
from bench.workload import DATA_BYTES_MIN, Workload

COUNT = click.IntRange(min=1)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
WIDTH = {"max_content_width": 110, "show_default": True}


@click.command(help=__doc__, context_settings=WIDTH)
@click.option("--scenarios", default=",".join(NAMES), help="Which to run; all but single add and pull all jobs first.")
@click.option("--jobs", type=COUNT, default=1_000_000, help="Jobs of all scenarios but single.")
@click.option("--batch", type=COUNT, default=1_000, help="Jobs in one bulk request.")
@click.option("--connections", type=COUNT, default=2, help="Keep-alive connections of the bulk requests.")
@click.option("--data-bytes", type=click.IntRange(min=DATA_BYTES_MIN), default=100, help="A job's data, in JSON.")
@click.option("--tags", type=click.IntRange(min=0), default=1, help="Tags on each job.")
@click.option("--realms", type=COUNT, default=1, help="Realms over which the batches are dealt in turn.")
@click.option("--ids", type=click.Choice(["hashed", "ordered"]), default="hashed", help="How the ids of jobs follow.")
@click.option("--empty-pulls", type=COUNT, default=2_000, help="Pulls of the scenario empty.")
@click.option("--single-jobs", type=COUNT, default=20_000, help="Jobs of the scenario single.")
@click.option("--single-connections", type=COUNT, default=32, help="Keep-alive connections of the scenario single.")
@click.option("--shards", type=COUNT, default=1, help="Shards of the server.")
@click.option("--frontends", type=COUNT, help="Front ends of the server.  [default: as the server chooses]")
@click.option(
    "--data-root", type=FOLDER, help="Where the data directory is made.  [default: where temporary files are]"
)
@click.option("--uri", help="Measure this running server; no restart, nothing of its memory and CPU time.")
@click.option("--repeat", type=COUNT, default=1, help="Runs, each on a new server; shows the median and the extremes.")
@click.option("--json", "json_file", type=FILE, help="Write all figures to this file as well.")
def main(**options: Any) -> None:
    scenarios = tuple(options["scenarios"].split(","))
    unknown = set(scenarios) - set(NAMES)
    if unknown:
        raise click.UsageError(f"no scenario {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    sizes = ("connections", "empty_pulls", "single_jobs", "single_connections")
    plan = Plan(scenarios, **{name: options[name] for name in sizes})
    shape = ("jobs", "batch", "data_bytes", "tags", "realms")
    workload = Workload(**{name: options[name] for name in shape}, hashed_ids=options["ids"] == "hashed")
    try:
        facts = machine.facts(options["data_root"])
        runs = [one_run(plan, workload, options, number) for number in range(options["repeat"])]
    except (LoadError, OSError) as error:
        raise click.ClickException(str(error)) from error
    settings = {name.replace("_", " "): str(value) for name, value in options.items() if value is not None}
    click.echo(report.shown(facts, settings, report.spread(runs), len(runs)))
    if options["json_file"] is not None:
        text = json.dumps({"machine": facts, "settings": settings, "runs": runs}, indent=1)
        options["json_file"].write_text(text + "\n", encoding="utf-8")


def one_run(plan: Plan, workload: Workload, options: dict[str, Any], number: int) -> report.Run:
    """One run over the server at --uri, or over one that is started for it and leaves nothing behind."""
    click.echo(f"run {number + 1} of {options['repeat']} ..", err=True)
    if options["uri"] is not None:
        return Session(address_of(options["uri"]), workload, plan).measure()
    with running(options["data_root"], *server_options(options)) as server:
        return Session(server.address, workload, plan, server).measure()


def server_options(options: dict[str, Any]) -> list[str]:
    chosen = ["--shards", str(options["shards"])]
    if options["frontends"] is not None:
        chosen += ["--frontends", str(options["frontends"])]
    return chosen


def address_of(uri: str) -> Address:
    parts = urlsplit(uri if "//" in uri else f"//{uri}")
    if parts.scheme not in ("", "http") or not parts.hostname:
        raise click.UsageError(f"--uri: {uri!r} is not of the form http://HOST:PORT")
    return parts.hostname, parts.port or 80


if __name__ == "__main__":
    main()
