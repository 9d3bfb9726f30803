"""What was measured, for people: a table for each case, its median and its spread, and what to know of each line."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.peers.measure import Case, Lines
from bench.peers.peer import Peer
from bench.report import Figures, number, table

SATURATED = 0.8  # of a core, by one process of clients: beyond it they may be what is measured

COLUMNS = {
    "jobs_per_s": "jobs/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "p99.9_ms": "p99.9 ms",
    "server_cpu_us_per_job": "server CPU us/job",
    "generator_cpu_us_per_job": "clients CPU us/job",
    "generator_part_of_a_core": "busiest client",
    "memory_bytes_per_job": "memory B/job",
}

Runs = list[tuple[str, Lines]]  # the peer's name, and what it did: in the order in which they ran


def peers_table(peers: Sequence[Peer], missing: dict[str, list[str]]) -> str:
    """Who took part, with what, and what each promises; and who could not."""
    rows = [["peer", "client", "when a call returns, a job is", "versions"]]
    rows += [[peer.name, peer.client, peer.promise, peer.version()] for peer in peers]
    gone = [f"MISSING: {name} needs {', '.join(needs)}" for name, needs in missing.items()]
    return "\n".join([table(rows, left=4), *gone])


def case_table(case: Case, runs: Runs) -> str:
    """One row for each work and peer: medians, and of the rate the lowest and the highest."""
    works = list(dict.fromkeys(work for _, lines in runs for work in lines))
    names = list(dict.fromkeys(name for name, _ in runs))
    used = [key for key in COLUMNS if any(key in found for work in works for found in _all(runs, work))]
    rows = [["work", "peer", *(COLUMNS[key] for key in used), "lowest", "highest"]]
    notes: dict[str, list[str]] = {}  # who it is said of
    for work in works:
        for name in names:
            every = [lines[work] for of, lines in runs if of == name and work in lines]
            found = [line.figures for line in every if line.figures]
            if found:
                rows.append([work, name, *_cells(found, used)])
            for note in dict.fromkeys(note for line in every for note in line.notes):
                notes.setdefault(f"{work}: {note}" if found else f"no {work}: {note}", []).append(name)
    said = [f"  {note} ({', '.join(who)})" for note, who in notes.items()]
    return "\n".join([case.title, table(rows, left=2), *said])


def _all(runs: Runs, work: str) -> list[Figures]:
    return [lines[work].figures for _, lines in runs if work in lines]


def _cells(found: Sequence[Figures], used: Sequence[str]) -> list[str]:
    cells = []
    for key in used:
        values = sorted(figures[key] for figures in found if key in figures)
        if not values:
            cells.append("-")
            continue
        star = "*" if key == "generator_part_of_a_core" and median(values) > SATURATED else ""
        cells.append(number(median(values)) + star)
    rates = [figures["jobs_per_s"] for figures in found]
    return [*cells, *((number(min(rates)), number(max(rates))) if rates else ("-", "-"))]
