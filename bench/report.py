"""Figures, and how they are shown. A figure's name ends in its unit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Figures = dict[str, float]
Run = dict[str, Figures]  # by phase, in the order in which they were measured
Spread = dict[str, dict[str, tuple[float, float, float]]]  # phase, figure: lowest, median, highest

PERCENTILES = {"p50_ms": 50.0, "p99_ms": 99.0, "p99.9_ms": 99.9, "max_ms": 100.0}
TIMED = ("jobs_per_s", "requests", "seconds", *PERCENTILES, "generator_cpu_s", "server_cpu_s")


def percentiles(latencies: Sequence[float]) -> Figures:
    """Of latencies in seconds, in ms: each is one that was measured (nearest rank), none is interpolated."""
    ordered = sorted(latencies)
    return {
        name: ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] * 1e3
        for name, percent in PERCENTILES.items()
    }


def spread(runs: Sequence[Run]) -> Spread:
    """Lowest, median and highest of each figure over the runs; the median of an even number is between two."""
    result: Spread = {}
    for phase, figures in runs[0].items():
        result[phase] = {}
        for name in figures:
            values = [run[phase][name] for run in runs]
            result[phase][name] = (min(values), statistics.median(values), max(values))
    return result


def shown(facts: dict[str, str], settings: dict[str, str], result: Spread, runs: int) -> str:
    """The whole report as text for people."""
    parts = [_pairs(facts), _pairs(settings)]
    timed = {phase: figures for phase, figures in result.items() if "p50_ms" in figures}
    rest = {phase: figures for phase, figures in result.items() if phase not in timed}
    if timed:
        parts.append(_timed_table(timed, runs))
    if rest:
        parts.append(_rest_table(rest, runs))
    return "\n\n".join(parts)


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of equal length, so many columns flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _pairs(pairs: dict[str, str]) -> str:
    width = max(map(len, pairs))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs.items())


def _timed_table(result: Spread, runs: int) -> str:
    """One row a phase; with several runs, the lowest and the highest of each figure below it."""
    rows = [["phase", *(_heading(name) for name in TIMED)]]
    for phase, figures in result.items():
        for index, label in ((1, phase), (0, "  lowest"), (2, "  highest")):
            if index == 1 or runs > 1:
                rows.append([label, *(number(figures[name][index]) if name in figures else "-" for name in TIMED)])
    return table(rows)


def _rest_table(result: Spread, runs: int) -> str:
    rows = [["figure", "median" if runs > 1 else "", *(["lowest", "highest"] if runs > 1 else [])]]
    for phase, figures in result.items():
        for name, (low, middle, high) in figures.items():
            numbers = [middle, low, high] if runs > 1 else [middle]
            rows.append([f"{phase}: {_heading(name)}", *(number(value) for value in numbers)])
    return table(rows)


def _heading(name: str) -> str:
    return name.replace("_per_s", "/s").replace("_", " ")


def number(value: float) -> str:
    """Three digits that count, thousands apart."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
