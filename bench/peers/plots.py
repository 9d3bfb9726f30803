"""Plots of what `bench.peers --json` wrote, in one file or several: `python -m bench.peers.plots FIGURES.. DIR`."""

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
from bench.peers.restq_server import PROMISE

WIDTH_INCHES, DOTS_PER_INCH = 8.0, 120
OURS = "#b3361b"
OTHERS = {"beanstalkd": "#5f6b7a", "greenstalk": "#9aa5b1", "nats": "#2f7f86", "huey": "#8a7a3d"}
OTHER = "#7d6b8a"
STAR, STARRED = "*", "    * not synced before the answer"
MARKERS = "osD^vP*X"
BULK_WORKS = ("bulk add", "bulk pull", "bulk ack")

Points = dict[str, dict[int, float]]  # by peer: a median at each size


def draw(written: dict[str, Any], folder: Path) -> list[Path]:
    """Write every plot for which there are figures; their files."""
    cases = [_labelled(case, written["peers"]) for case in written["cases"]]
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


def _labelled(case: Any, peers: dict[str, Any]) -> Any:
    """The case with a star at the name of each peer that promises less than restq does."""
    labels = {name: name if said["promise"] == PROMISE else name + STAR for name, said in peers.items()}
    return {**case, "runs": [{**run, "peer": labels[run["peer"]]} for run in case["runs"]]}


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
    figure.supxlabel(STARRED.strip(), fontsize=9)
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
                color=_colour(name),
                alpha=1.0 - 0.3 * place,
                label=label if row == 0 else None,
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_title(groups[0][0] if len(groups) == 1 else "batches of 1,000: add, pull, ack", fontsize=10)
    axes.set_xlabel("thousands of jobs/s")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}"))
    axes.tick_params(labelsize=9)
    _quiet(axes, "x")


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
            color=_colour(name),
            linewidth=2.0 if ours else 1.2,
            marker=MARKERS[place % len(MARKERS)],
            markersize=5,
            label=name,
        )
    axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across + (STARRED if any(name.endswith(STAR) for name in points) else ""))
    axes.set_ylabel(up)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    _quiet(axes, "y")
    return figure


def _colour(name: str) -> str:
    if name.startswith("restq"):
        return OURS
    return next((colour for start, colour in OTHERS.items() if name.startswith(start)), OTHER)


def _quiet(axes: Axes, along: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=along, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _thousands(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 1 or value == 0 else f"{value:g}"


@click.command(help=__doc__)
@click.argument("figures", type=FILE, nargs=-1, required=True)
@click.argument("folder", type=FOLDER)
def main(figures: tuple[Path, ...], folder: Path) -> None:
    written: dict[str, Any] = {"peers": {}, "cases": []}
    for file in figures:
        found = json.loads(file.read_text(encoding="utf-8"))
        written["peers"].update(found["peers"])
        written["cases"] += found["cases"]
    for drawn in draw(written, folder):
        click.echo(drawn)


if __name__ == "__main__":
    main(prog_name="python -m bench.peers.plots")
