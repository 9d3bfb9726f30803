"""Measures what restq is to reach, where that needs no other queue, and says by row whether it is reached.

Each figure is of one run on this machine: a ratio of two that were measured by turns, or a bound. With --repeat all
rows are measured so many times over, and the median is what counts.

Starts servers of its own, on free ports and new data directories, and stops them. At its full size it takes ten
minutes, 7 GB of memory and as much of the disk; --big 1000000 spares most of that.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, NamedTuple

import click

from bench import machine, report
from bench.connection import LoadError
from bench.life import allow_files
from bench.load import COUNT, FILE, FOLDER, WIDTH
from bench.target_rows import ROWS, Sizes


class Target(NamedTuple):
    """What a figure is to reach, and what it tells, with the sizes by name."""

    row: str
    figure: str
    label: str
    bound: float
    is_least: bool = False

    def is_reached(self, value: float) -> bool:
        """Whether this is good enough."""
        return value >= self.bound if self.is_least else value <= self.bound

    @property
    def words(self) -> str:
        """The bound in words."""
        return f"at {'least' if self.is_least else 'most'} {self.bound:g}"


TARGETS = (
    Target("leased", "pull_p99_ratio", "pull of one job, p99: {jobs} leased against {few}", 1.5),
    Target("leased", "empty_pull_p99_ratio", "pull that finds nothing, p99: {jobs} leased against {few}", 1.5),
    Target("held", "pull_p99_ratio", "pull of one job, p99: {jobs} held against {few}", 1.5),
    Target("held", "empty_pull_p99_ratio", "pull that finds nothing, p99: {jobs} held against {few}", 1.5),
    Target("size", "seconds_ratio", "time a job, in bulk: {big} in the realm against {small}", 1.5),
    Target("size", "cpu_seconds_ratio", "CPU a job, in bulk: {big} in the realm against {small}", 1.5),
    Target("shards", "jobs_per_s_ratio", "jobs a second, in bulk: two shards against one", 1.6, is_least=True),
    Target("memory", "bytes_a_ready_job", "memory of a ready job beyond id and data, of {jobs}: bytes", 400),
    Target("memory", "bytes_a_leased_job", "memory of a leased job beyond id and data, of {jobs}: bytes", 400),
    Target("large data", "bytes_a_job_with_large_data", "memory of a job with 8 KiB of data beyond its id: bytes", 400),
    Target("memory", "start_seconds_after_kill", "start with {jobs} after kill -9: seconds", 3),
    Target("memory", "start_seconds_after_stop", "start with {jobs} after SIGTERM: seconds", 3),
    Target("spread", "start_seconds_after_kill", "start of two shards with {jobs} after kill -9: seconds", 3),
    Target("clear", "p99_ms", "request to one realm while another clears {jobs}, p99: ms", 50),
    Target("waiters", "memory_KiB_each", "memory of each of {waiters} idle long polls: KiB", 8),
    Target("waiters", "cpu_percent", "CPU of {waiters} idle long polls: percent of a core", 0.1),
    Target("stream waiters", "memory_KiB_each", "memory of each of {waiters} that wait over streams: KiB", 8),
    Target("stream waiters", "cpu_percent", "CPU of {waiters} that wait over streams: percent of a core", 0.1),
)

Verdict = dict[str, Any]


def verdicts(result: report.Spread, sizes: Sizes) -> list[Verdict]:
    """Of each target that was measured."""
    named = {size.name: getattr(sizes, size.name) for size in fields(Sizes)}
    counts = {name: f"{value:,}" for name, value in named.items() if isinstance(value, int)}
    found = []
    for target in TARGETS:
        if target.row in result:
            low, median, high = result[target.row][target.figure]
            measured = {"median": median, "lowest": low, "highest": high}
            said = {"row": target.label.format(**counts), "bound": target.words}
            found.append({**said, **measured, "reached": target.is_reached(median)})
    return found


def table(judged: list[Verdict]) -> str:
    """The verdicts for people."""
    rows = [["row", "bound", "median", "lowest", "highest", "reached"]]
    for verdict in judged:
        measured = [report.number(verdict[name]) for name in ("median", "lowest", "highest")]
        rows.append([verdict["row"], verdict["bound"], *measured, "yes" if verdict["reached"] else "no"])
    return report.table(rows)


def others(result: report.Spread) -> report.Spread:
    """What was measured beside the targets."""
    judged = {(target.row, target.figure) for target in TARGETS}
    return {
        row: {name: values for name, values in figures.items() if (row, name) not in judged}
        for row, figures in result.items()
    }


@click.command(help=__doc__, context_settings=WIDTH)
@click.option("--rows", default=",".join(ROWS), help="Which to measure.")
@click.option("--jobs", type=COUNT, default=Sizes.jobs, help="Jobs that are leased, held, cleared, or in memory.")
@click.option("--few", type=COUNT, default=Sizes.few, help="What leased and held ones are compared with.")
@click.option("--big", type=COUNT, default=Sizes.big, help="Jobs in the realm of the row of size.")
@click.option("--small", type=COUNT, default=Sizes.small, help="What these are compared with.")
@click.option("--pulls", type=COUNT, default=Sizes.pulls, help="Pulls of each kind.")
@click.option("--batches", type=COUNT, default=Sizes.batches, help="Bulk requests of each kind to a server, of 1,000.")
@click.option("--large-jobs", type=COUNT, default=Sizes.large_jobs, help="Jobs with 8 KiB of data.")
@click.option("--waiters", type=COUNT, default=Sizes.waiters, help="Long polls that wait at once.")
@click.option("--idle-seconds", type=float, default=Sizes.idle_seconds, help="For how long they wait.")
@click.option("--data-root", type=FOLDER, help="Where data directories are made.")
@click.option("--repeat", type=COUNT, default=1, help="How many times over all rows are measured.")
@click.option("--json", "json_file", type=FILE, help="Write all figures to this file as well.")
def main(**options: Any) -> None:
    names = options["rows"].split(",")
    if unknown := set(names) - set(ROWS):
        raise click.UsageError(f"no row {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    sizes = Sizes(**{size.name: options[size.name] for size in fields(Sizes)})
    allow_files()
    facts, runs = machine.facts(sizes.data_root), []
    try:
        for number in range(options["repeat"]):
            runs.append({name: _measured(name, sizes, number) for name in names})
    except (LoadError, OSError) as error:
        raise click.ClickException(str(error)) from error
    settings = {name.replace("_", " "): str(value) for name, value in options.items() if value is not None}
    result = report.spread(runs)
    judged = verdicts(result, sizes)
    click.echo(report.shown(facts, settings, others(result), len(runs)))
    click.echo(f"\n{table(judged)}")
    if options["json_file"] is not None:
        text = json.dumps({"machine": facts, "settings": settings, "runs": runs, "targets": judged}, indent=1)
        options["json_file"].write_text(text + "\n", encoding="utf-8")


def _measured(name: str, sizes: Sizes, number: int) -> report.Figures:
    click.echo(f"run {number + 1}: {name} ..", err=True)
    return ROWS[name](sizes)


if __name__ == "__main__":
    main()
