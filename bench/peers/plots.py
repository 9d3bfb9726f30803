"""Plots of what `bench.peers --json` wrote: `python -m bench.peers.plots FIGURES.json DIR`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench.load import FILE, FOLDER

WIDTH_INCHES, DOTS_PER_INCH = 8.0, 120
OURS, OTHERS = "#b3361b", "#5f6b7a"
MARKERS = "osD^vP*X"
BULK_WORKS = ("bulk add", "bulk pull", "bulk ack")

Points = dict[str, dict[int, float]]  # by peer: a median at each size


def draw(written: dict[str, Any], folder: Path) -> list[Path]:
    """Write every plot for which there are figures; their files."""
    cases = written["cases"]
    drawn = [
        (folder / "throughput.png", _throughput(cases)),
        (folder / "leased.png", _lines(_points(cases, "bulk", "bulk cycle", "jobs_per_s", "leased"), *LEASED_LABELS)),
        (folder / "waiting.png", _lines(_points(cases, "cycle", "cycle", "p99_ms", "waiting"), *WAITING_LABELS)),
    ]
    for file, figure in drawn:
        if figure is not None:
            figure.savefig(file, dpi=DOTS_PER_INCH)
    return [file for file, figure in drawn if figure is not None]


LEASED_LABELS = ("Cycles in batches of 1,000 while jobs are leased", "jobs leased", "jobs/s")
WAITING_LABELS = ("Add, take and finish one job while others wait", "jobs waiting", "99th percentile, ms")


def _points(cases: list[Any], group: str, work: str, figure: str, size: str) -> Points:
    """Medians of a figure over one size, where the other sizes are as small as they get."""
    others = [name for name in ("waiting", "leased") if name != size]
    fitting = [case for case in cases if case["case"]["group"] == group]
    fitting = [case for case in fitting if not any(case["case"][name] for name in others)]
    least = min((case["case"]["data_bytes"] for case in fitting), default=0)
    points: Points = {}
    for case in fitting:
        if case["case"]["data_bytes"] == least:
            for name, middle in _medians(case, work, figure).items():
                points.setdefault(name, {})[case["case"][size]] = middle
    return points


def _medians(case: Any, work: str, figure: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in case["runs"]:
        figures = run["works"].get(work, {}).get("figures", {})
        if figure in figures:
            found.setdefault(run["peer"], []).append(figures[figure])
    return {name: median(values) for name, values in found.items()}


def _throughput(cases: list[Any]) -> Figure | None:
    """Bars of single adds at the most connections, and of batches, with the least data."""
    singles = [case for case in cases if case["case"]["group"] in ("add", "single")]
    bulks = [case for case in cases if case["case"]["group"] == "bulk" and not case["case"]["leased"]]
    if not singles or not bulks:
        return None
    least = min(case["case"]["data_bytes"] for case in singles)
    single = max(
        (case for case in singles if case["case"]["data_bytes"] == least), key=lambda case: case["case"]["connections"]
    )
    bulk = next(case for case in bulks if case["case"]["data_bytes"] == least)
    figure = Figure(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    clients = f"{single['case']['connections']} clients, {least} bytes"
    _bars(left, [(f"single add, {clients}", _medians(single, "add", "jobs_per_s"))])
    _bars(right, [(work, _medians(bulk, work, "jobs_per_s")) for work in BULK_WORKS])
    return figure


def _bars(axes: Axes, groups: list[tuple[str, dict[str, float]]]) -> None:
    """One bar for each group beside a name, the quickest name on top."""
    most = {name: max(rates.get(name, 0.0) for _, rates in groups) for _, rates in groups for name in rates}
    names = sorted(most, key=lambda name: most[name])
    height = 0.8 / len(groups)
    for place, (label, rates) in enumerate(groups):
        for row, name in enumerate(names):
            at = row + (len(groups) - 1) * height / 2 - place * height
            axes.barh(
                at,
                rates.get(name, 0.0),
                height * 0.9,
                color=OURS if name.startswith("restq") else OTHERS,
                alpha=1.0 - 0.3 * place,
                label=label if row == 0 else None,
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_title(groups[0][0] if len(groups) == 1 else "batches: add, pull and ack, from the top", fontsize=10)
    axes.set_xlabel("jobs/s")
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    _quiet(axes)


def _lines(points: Points, title: str, across: str, up: str) -> Figure | None:
    """A line for each peer over sizes that go up by powers of ten; its name stands at its end."""
    if not any(len(line) > 1 for line in points.values()):
        return None
    figure = Figure(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes = sorted({size for line in points.values() for size in line})
    for place, (name, line) in enumerate(points.items()):
        ours = name.startswith("restq")
        axes.plot(
            [sizes.index(size) for size in sorted(line)],
            [line[size] for size in sorted(line)],
            color=OURS if ours else OTHERS,
            linewidth=2.0 if ours else 1.2,
            marker=MARKERS[place % len(MARKERS)],
            markersize=5,
            label=name,
        )
    axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    _quiet(axes)
    return figure


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if axes.get_xlabel() == "jobs/s" else "y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _thousands(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 1 or value == 0 else f"{value:g}"


@click.command(help=__doc__)
@click.argument("figures", type=FILE)
@click.argument("folder", type=FOLDER)
def main(figures: Path, folder: Path) -> None:
    for file in draw(json.loads(figures.read_text(encoding="utf-8")), folder):
        click.echo(file)


if __name__ == "__main__":
    main(prog_name="python -m bench.peers.plots")
