"""What restq has to reach beside its peers: each row is a ratio of two rates of one run, on one machine.

All who have a part in a row run by turns, all of that `--repeat` times; a ratio is of two runs of the same turn. Where
a row names several peers, restq is compared with the one that was best in that turn.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from statistics import median
from typing import Any

import click

from bench.load import COUNT, FILE, FOLDER, WIDTH
from bench.peers.measure import Case
from bench.peers.peer import Peer
from bench.peers.restq_server import UNDER_WAY
from bench.peers.roster import ROSTER, present
from bench.peers.table import Runs, case_table
from bench.peers.turns import begin, failed, interleaved
from bench.report import number, table

BULK_PEERS = ("beanstalkd-f0", "rq", "nats")  # those with a bulk way, and durable
CONNECTIONS = 32
HELD_CONNECTIONS = 2  # which hold what is leased, half of it each


@dataclass(frozen=True)
class Target:
    """A row: restq's rate over its peer's in one work of a case must be at least so much."""

    row: str
    at_least: float
    case: Case
    work: str
    ours: str
    theirs: tuple[str, ...]


def targets(jobs: int, bulk_jobs: int, leased: int) -> list[Target]:
    """All rows, in sizes that are given."""
    adds = Case("add", jobs, connections=CONNECTIONS)
    alone = Case("add", jobs)
    bulk = Case("bulk", bulk_jobs, connections=2)
    held = Case("bulk", bulk_jobs, connections=HELD_CONNECTIONS, leased=leased)
    held_singly = Case("cycle", jobs, connections=HELD_CONNECTIONS, leased=leased)
    leases = f"{leased:,} jobs leased"
    return [
        Target("single add, 32 connections, against bare Tornado", 0.6, adds, "add", "restq", ("tornado",)),
        Target("single add, 32 connections, synced", 1.5, adds, "add", "restq-stream", ("beanstalkd-f0",)),
        Target("the same over HTTP", 1.5, adds, "add", "restq", ("beanstalkd-f0",)),
        Target("bulk add in 1,000s", 3, bulk, "bulk add", "restq", BULK_PEERS),
        Target("bulk pull in 1,000s, which restq alone syncs", 3, bulk, "bulk pull", "restq", BULK_PEERS),
        Target("bulk ack in 1,000s", 3, bulk, "bulk ack", "restq", BULK_PEERS),
        Target("the three together", 3, bulk, "bulk cycle", "restq", BULK_PEERS),
        Target(f"full cycle in 1,000s, {leases}", 20, held, "bulk cycle", "restq", ("beanstalkd-f0",)),
        Target(f"full cycle one by one, {leases}", 20, held_singly, "cycle", "restq", ("beanstalkd-f0",)),
        Target("one worker, one job after the other", 5, Case("worker", jobs), "work", "restq", ("rq",)),
        Target("Python client, one add after the other", 1, alone, "add", "restq-python", ("rq",)),
        Target("the same over the stream", 3, alone, "add", "restq-python-stream", ("rq",)),
        Target(f"the same in a pipeline, {UNDER_WAY} under way", 3, alone, "add", "restq-pipeline", ("rq",)),
    ]


@dataclass(frozen=True)
class Reached:
    """What was measured of a row, turn by turn."""

    ratios: list[float]
    ours: list[float]
    best: dict[str, list[float]]  # of the turns in which a peer was the best, its rate


def reached(target: Target, runs: Runs) -> Reached | None:
    """The ratios of a row; None where restq or all of its peers have no figure."""
    rates: dict[str, list[float]] = {}  # 0 in a turn without a figure
    for name, lines in runs:
        line = lines.get(target.work)
        rates.setdefault(name, []).append(line.figures.get("jobs_per_s", 0.0) if line else 0.0)
    found = Reached([], [], {})
    for turn, ours in enumerate(rates.get(target.ours, [])):
        theirs = {name: rates[name][turn] for name in target.theirs if name in rates}
        best = max(theirs, key=theirs.__getitem__, default=None)
        if best is not None and ours and theirs[best]:
            found.ratios.append(ours / theirs[best])
            found.ours.append(ours)
            found.best.setdefault(best, []).append(theirs[best])
    return found if found.ratios else None


def shown(rows: list[tuple[Target, Reached | None]], missing: dict[str, list[str]]) -> str:
    """The table of all rows that were measured, and why the others were not."""
    cells = [["row", "peer", "at least", "measured", "lowest", "highest", "restq jobs/s", "peer jobs/s"]]
    unmeasured = []
    for target, found in rows:
        if found is None:
            absent = [name for name in (target.ours, *target.theirs) if name in missing]
            why = "; ".join(f"{name} needs {', '.join(missing[name])}" for name in absent) or "there is no figure"
            unmeasured.append(f"NOT MEASURED: {target.row}: {why}")
            continue
        ratios, names = found.ratios, sorted(found.best, key=lambda name: -len(found.best[name]))
        rates = [rate for every in found.best.values() for rate in every]
        cells.append(
            [
                target.row,
                ", ".join(names),
                f"{target.at_least:g}",
                *(f"{ratio:.2f}" for ratio in (median(ratios), min(ratios), max(ratios))),
                number(median(found.ours)),
                number(median(rates)),
            ]
        )
    return "\n".join([table(cells, left=2), *unmeasured])


@click.command(help=__doc__, context_settings=WIDTH)
@click.option("--jobs", type=COUNT, default=10_000, help="Jobs of what goes one by one.")
@click.option("--bulk-jobs", type=COUNT, default=20_000, help="Jobs of what goes in batches of 1,000.")
@click.option("--leased", type=COUNT, default=100_000, help="Jobs that are leased in the rows that say so.")
@click.option("--repeat", type=COUNT, default=5, help="Runs of every case for all who have a part in it, by turns.")
@click.option("--seconds", type=COUNT, default=60, help="At most, for each work and each part of what comes before.")
@click.option("--data-root", type=FOLDER, help="Where the servers keep their data.")
@click.option("--json", "json_file", type=FILE, help="Write all figures to this file as well.")
def main(**options: Any) -> None:
    every = targets(options["jobs"], options["bulk_jobs"], options["leased"])
    named = dict.fromkeys(name for target in every for name in (target.ours, *target.theirs))
    peers, missing = present([name for name in named if name in ROSTER])
    missing |= {name: ["a row in the roster"] for name in named if name not in ROSTER}
    written = begin(peers, missing, options["data_root"])
    runs = {case: _runs(case, every, peers, options) for case in dict.fromkeys(target.case for target in every)}
    rows = [(target, reached(target, runs[target.case])) for target in every]
    click.echo(shown(rows, missing))
    if options["json_file"] is not None:
        written["rows"] = [
            {"row": target.row, "at_least": target.at_least, **(vars(found) if found else {})} for target, found in rows
        ]
        options["json_file"].write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    for case, turns in runs.items():
        if failed(turns):
            click.echo(f"\n{case_table(case, turns)}")
    sys.exit(any(map(failed, runs.values())))


def _runs(case: Case, every: list[Target], peers: list[Peer], options: dict[str, Any]) -> Runs:
    named = {name for target in every if target.case == case for name in (target.ours, *target.theirs)}
    return interleaved([peer for peer in peers if peer.name in named], case, options)


if __name__ == "__main__":
    main(prog_name="python -m bench.peers.targets")
