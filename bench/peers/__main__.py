"""The same work for restq and its peers: each is started here, measured with its own client, and stopped.

Every case runs on a new server of each peer in turn, and all of that `--repeat` times: what is shown are medians,
and the lowest and the highest rate. At the end of each run the jobs are counted, and each that was taken came once.

\b
The groups of works:
  add     add one by one over so many connections (--connections, --data)
  single  add one by one over so many connections, then take and finish one by one (--connections, --data)
  worker  one worker that takes and finishes one by one in the way of the peer's users (--data)
  bulk    add, pull and ack in batches, with so many jobs leased (--data, --leased)
  cycle   add a job, take the next, finish it, with so many waiting or leased (--waiting, --leased)
  fill    add in bulk, and what memory of the server a job takes (--fill)

CPU of the server is that of all its processes; a star marks clients that took more than 0.8 of a core by one
process, so that they may be what was measured.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from bench.load import COUNT, FILE, FOLDER, WIDTH
from bench.peers.measure import GROUPS, Case
from bench.peers.roster import ROSTER, present
from bench.peers.table import case_table
from bench.peers.turns import as_json, begin, failed, interleaved

DEFAULT_WORKS = ("single", "worker", "bulk", "cycle", "fill")
BULK_BYTES_MAX = 64 << 20  # of the jobs of one bulk: they are made ready in memory


def numbers(_: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Whole numbers with commas between them; of jobs that wait or are leased there may be none."""
    least = 0 if parameter.name in ("waiting", "leased") else 1
    try:
        found = [int(word) for word in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form 1,8,64") from None
    if min(found) < least:
        raise click.BadParameter(f"{min(found)} is less than {least}")
    return found


def names_of(known: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Names with commas between them, of those that there are."""

    def names(_: click.Context, __: click.Parameter, value: str) -> list[str]:
        if unknown := set(value.split(",")) - set(known):
            raise click.BadParameter(f"no {', '.join(sorted(unknown))}: there are {', '.join(known)}")
        return value.split(",")

    return names


@click.command(help=__doc__, context_settings=WIDTH)
@click.option("--peers", callback=names_of(ROSTER), default=",".join(ROSTER), help="Who takes part.")
@click.option("--works", callback=names_of(GROUPS), default=",".join(DEFAULT_WORKS), help="Which groups of works.")
@click.option("--jobs", type=COUNT, default=10_000, help="Jobs of single, worker and cycle.")
@click.option("--bulk-jobs", type=COUNT, default=100_000, help="Jobs of bulk; fewer where their data are large.")
@click.option("--batch", type=COUNT, default=1_000, help="Jobs in one batch of bulk.")
@click.option("--fill", type=COUNT, default=200_000, help="Jobs of fill.")
@click.option("--data", callback=numbers, default="100,10000", help="Bytes of data of a job.")
@click.option("--connections", callback=numbers, default="1,8,32,64", help="Clients of single.")
@click.option("--bulk-connections", type=COUNT, default=2, help="Clients of bulk and fill.")
@click.option("--cycle-connections", type=COUNT, default=8, help="Clients of cycle, which hold what is leased.")
@click.option("--waiting", callback=numbers, default="0,10000,100000,1000000", help="Jobs that wait, of cycle.")
@click.option("--leased", callback=numbers, default="0,10000,100000,1000000", help="Jobs leased, of bulk and cycle.")
@click.option("--repeat", type=COUNT, default=3, help="Runs of every case for every peer, by turns.")
@click.option("--seconds", type=COUNT, default=60, help="At most, for each work and each part of what comes before.")
@click.option("--data-root", type=FOLDER, help="Where the servers keep their data.")
@click.option("--json", "json_file", type=FILE, help="Write all figures to this file as well, case by case.")
@click.option("--plots", type=FOLDER, help="Draw plots into this directory: needs matplotlib.")
def main(**options: Any) -> None:
    if options["plots"] is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plots needs matplotlib: pip install matplotlib")
    peers, missing = present(options["peers"])
    written: dict[str, Any] = {**begin(peers, missing, options["data_root"]), "cases": []}
    any_failed = False
    for case in cases(options):
        runs = interleaved(peers, case, options)
        any_failed = any_failed or failed(runs)
        click.echo(case_table(case, runs) + "\n")
        written["cases"].append(as_json(case, runs))
        if options["json_file"] is not None:
            options["json_file"].write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    if options["plots"] is not None:
        from bench.peers.plots import draw

        for file in draw(written, options["plots"]):
            click.echo(file)
    sys.exit(any_failed)


def cases(options: dict[str, Any]) -> Iterator[Case]:
    """All that the options ask for, in the order of the groups."""
    jobs, bulk, works = options["jobs"], options["bulk_connections"], options["works"]
    for data in options["data"]:
        for group in [group for group in ("add", "single") if group in works]:
            for connections in options["connections"]:
                yield Case(group, jobs, data, connections)
        if "worker" in works:
            yield Case("worker", jobs, data)
        if "bulk" in works:
            count = max(options["batch"] * bulk, min(options["bulk_jobs"], BULK_BYTES_MAX // data))
            yield Case("bulk", count, data, bulk, batch=options["batch"])
    least = min(options["data"])
    if "bulk" in works:
        for leased in filter(None, options["leased"]):
            yield Case("bulk", options["bulk_jobs"], least, bulk, leased=leased, batch=options["batch"])
    if "cycle" in works:
        states = [(waiting, 0) for waiting in options["waiting"]] + [(0, leased) for leased in options["leased"]]
        for waiting, leased in dict.fromkeys(states):
            yield Case("cycle", jobs, least, options["cycle_connections"], waiting, leased)
    if "fill" in works:
        yield Case("fill", options["fill"], least, bulk)


if __name__ == "__main__":
    main(prog_name="python -m bench.peers")
