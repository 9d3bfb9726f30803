"""Counts the instructions of the hot paths, and compares them with those of before, which stand in `regress.json`.

So what a change costs is seen on a busy machine, too. A path that takes more than the margin above what it took is a
failure. Instructions are those of one build of Python and of one version of each library: where yours are others
than those of the baseline, nothing is compared.

\b
Exit status:
  0  no path takes much more than it did, or nothing was compared
  1  a path does, or nothing could be counted, as where valgrind is missing
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bench import callgrind, machine, report

BASELINE = Path(__file__).with_name("regress.json")
MARGIN_PERCENT = 2.0  # a checkout's counts are the same each time; those of another one were up to 0.6 % off
FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Baseline:
    """What was counted, and with which versions."""

    versions: dict[str, str]
    counts: dict[str, float]

    @classmethod
    def read(cls, file: Path) -> Baseline:
        """What the file says; nothing where there is none."""
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else cls({}, {})

    def write(self, file: Path) -> None:
        """Be what the file says from now on."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """All that a count depends on, beside restq."""
    return {
        "python": " ".join(sys.version.split()),
        "libc": os.confstr("CS_GNU_LIBC_VERSION") or "unknown",
        "machine": platform.machine(),
        "valgrind": callgrind.version(),
        "sqlite": sqlite3.sqlite_version,
        **{library: machine.version(library) for library in machine.LIBRARIES},
    }


def changes(counts: dict[str, float], before: Baseline) -> dict[str, float]:
    """By how many percent each case changed that was counted before."""
    return {name: (count / before.counts[name] - 1) * 100 for name, count in counts.items() if name in before.counts}


def shown(counts: dict[str, float], before: Baseline, changed: dict[str, float]) -> str:
    """Case by case: what was counted, what it was, and by how many percent it changed."""
    rows = [["case", "instructions", "baseline", "change"]]
    for name, count in counts.items():
        was = f"{before.counts[name]:,.0f}" if name in before.counts else "-"
        rows.append([name, f"{count:,.0f}", was, f"{changed[name]:+.1f} %" if name in changed else "-"])
    return report.table(rows)


@click.command(help=__doc__, context_settings={"max_content_width": 110, "show_default": True})
@click.option("--accept", is_flag=True, help="Let what is counted now be the baseline.")
@click.option("--margin", type=click.FloatRange(min=0), default=MARGIN_PERCENT, help="How many percent more may be.")
@click.option("--baseline", "file", type=FILE, default=BASELINE, help="Where the baseline stands.")
@click.option("--cases", default="bench.hot_paths", help="The module of the cases.")
def main(accept: bool, margin: float, file: Path, cases: str) -> None:
    before = Baseline.read(file)
    try:
        now = versions()
        counts = callgrind.count(cases)
    except callgrind.CountingFailed as failed:
        raise click.ClickException(str(failed)) from failed
    others = [f"{name}: {before.versions.get(name)} then, {found} now" for name, found in now.items()]
    others = [text for text, name in zip(others, now, strict=True) if before.versions.get(name) != now[name]]
    changed = {} if others else changes(counts, before)
    click.echo(shown(counts, before, changed))
    if accept:
        Baseline(now, {name: round(count, 1) for name, count in counts.items()}).write(file)
        click.echo(f"this is the baseline from now on: {file}")
        return
    if others:
        click.echo("\n".join(["nothing is compared, as the baseline was counted with other versions:", *others]))
        return
    _judge(counts, before, changed, margin)


def _judge(counts: dict[str, float], before: Baseline, changed: dict[str, float], margin: float) -> None:
    """Say what is to be accepted; exit with 1 where a path takes more than the margin allows."""
    accept = "python -m bench.regress --accept"
    if counts.keys() != before.counts.keys():
        click.echo(f"the baseline has other cases; to have one with these: {accept}")
    if any(percent < -margin for percent in changed.values()):
        click.echo(f"some take less by more than {margin:g} %; to hold on to that: {accept}")
    if worse := {name: percent for name, percent in changed.items() if percent > margin}:
        for name, percent in worse.items():
            click.echo(f"{name}: {percent:.1f} % more instructions than the baseline, and {margin:g} % may be")
        click.echo(f"if that is worth it: {accept}, and say in the commit what it buys")
        sys.exit(1)


if __name__ == "__main__":
    main()
