"""Peers by turns: a case for one after the other, then for all again, so that what else the machine does hits all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bench import machine
from bench.connection import LoadError
from bench.peers.measure import GROUPS, Case, Line, measure
from bench.peers.peer import Peer
from bench.peers.table import Runs, peers_table

FAILED = "FAILED:"


def begin(peers: Sequence[Peer], missing: dict[str, list[str]], data_root: Path | None) -> dict[str, Any]:
    """Show the machine, and who takes part and who cannot; the same for JSON."""
    facts = machine.facts(data_root)
    click.echo("\n".join(f"{name:15} {value}" for name, value in facts.items()))
    click.echo("\n" + peers_table(peers, missing) + "\n")
    return {
        "command": sys.argv[1:],
        "machine": facts,
        "peers": {peer.name: {"version": peer.version(), "promise": peer.promise} for peer in peers},
        "missing": missing,
    }


def interleaved(peers: Sequence[Peer], case: Case, options: dict[str, Any]) -> Runs:
    """The case for one peer after the other, then for all of them again. What fails is a note, and the others go on."""
    runs = []
    for turn in range(options["repeat"]):
        for peer in peers:
            click.echo(f"{case.title}: {peer.name}, {turn + 1} of {options['repeat']} ..", err=True)
            try:
                lines = measure(peer, case, options["seconds"], options["data_root"])
            except (LoadError, OSError) as error:
                lines = {work: Line(notes=[f"{FAILED} {error}"]) for work in GROUPS[case.group]}
            runs.append((peer.name, lines))
    return runs


def failed(runs: Runs) -> bool:
    """Whether a run failed."""
    return any(note.startswith(FAILED) for _, lines in runs for line in lines.values() for note in line.notes)


def as_json(case: Case, runs: Runs) -> dict[str, Any]:
    """The case and every run of it."""
    return {
        "case": vars(case),
        "runs": [{"peer": name, "works": {work: vars(line) for work, line in lines.items()}} for name, lines in runs],
    }
