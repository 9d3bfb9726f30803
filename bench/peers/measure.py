"""One case for one peer: start it, bring it to the state that is asked for, measure, count the jobs, stop it."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from bench.connection import LoadError
from bench.peers.crew import Crew, Outcome
from bench.peers.peer import NotOffered, Peer
from bench.report import Figures, percentiles

HELD_BATCH = 1_000


@dataclass(frozen=True)
class Case:
    """What is measured: the works of a group, one after the other, over one state of the server."""

    group: str  # a key of GROUPS
    jobs: int
    data_bytes: int = 100
    connections: int = 1
    waiting: int = 0
    leased: int = 0
    batch: int = 1_000

    @property
    def title(self) -> str:
        """As it stands over its table."""
        parts = [self.group, f"{self.data_bytes:,} B", f"{self.connections} connections"]
        parts += [f"{self.waiting:,} waiting"] if self.waiting else []
        parts += [f"{self.leased:,} leased"] if self.leased else []
        return ", ".join(parts)


@dataclass
class Line:
    """What one peer did in one work of a case; no figures where it has no such work."""

    figures: Figures = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


Lines = dict[str, Line]  # by work

# What each group measures, in this order: first what adds the jobs.
GROUPS: dict[str, tuple[str, ...]] = {
    "add": ("add",),
    "single": ("add", "take"),
    "worker": ("add", "work"),
    "bulk": ("bulk add", "bulk pull", "bulk ack"),
    "cycle": ("cycle",),
    "fill": ("fill",),
}
ONE_BY_ONE = ("single", "add", "worker", "cycle")
BULK_PROCESSES_MAX = 8
ADDING = ("add", "bulk add", "fill", "cycle")
FINISHING = ("take", "work", "bulk ack", "cycle")


def measure(peer: Peer, case: Case, seconds_max: float, data_root: Path | None = None) -> Lines:
    """One run of the case on a peer that is started for it and leaves nothing behind.

    `seconds_max` is for each work, and for each part of what is made ready before.
    """
    with tempfile.TemporaryDirectory(prefix="restq-bench-", dir=data_root) as folder:
        try:
            peer.start(Path(folder))
            return Trial(peer, case, seconds_max).measure()
        finally:
            peer.stop()


@dataclass
class Trial:
    """A peer that runs, and the case that it goes through."""

    peer: Peer
    case: Case
    seconds_max: float
    lines: Lines = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    added: int = 0
    finished: int = 0
    next_number: int = 0

    def measure(self) -> Lines:
        """Go through the case. At the end the server holds what it must, and no job came twice."""
        empty_bytes = self._memory_bytes()
        with self._crew(self.case.connections) as crew:
            self._go_through(crew)
            if any(line.figures for line in self.lines.values()):
                self._check_left()
                self._note_memory(empty_bytes)
        if self.case.group == "bulk":
            self._note_cycle()
        return self.lines

    def _go_through(self, crew: Crew) -> None:
        """Measure one work after the other; if one is not offered, neither are those that follow from it."""
        works = list(GROUPS[self.case.group])
        try:
            self._prepare(crew)
            while works:
                self._step(crew, works[0])
                del works[0]
        except NotOffered as reason:
            self.lines.update({work: Line(notes=[str(reason)]) for work in works})

    def _prepare(self, crew: Crew) -> None:
        """Have so many jobs leased, by the clients that are measured, then so many waiting; as many as time allows."""
        case = self.case
        if case.leased:
            self._made_ready(crew, "lease", self._made_ready(crew, "bulk add", case.leased))
        if case.waiting:
            self._made_ready(crew, "bulk add", case.waiting)

    def _made_ready(self, crew: Crew, work: str, count: int) -> int:
        made = self._run(crew, work, count, HELD_BATCH).jobs
        if made < count:
            self.notes.append(
                f"before it, {work} of {count:,} was cut off after {self.seconds_max} s and {made:,} jobs"
            )
        return made

    def _step(self, crew: Crew, work: str) -> None:
        """Measure one work."""
        if work == "fill" and self.peer.left() is None:
            raise NotOffered("it keeps no jobs")
        jobs = self.case.jobs if work in ADDING else min(self.case.jobs, self.added - self.finished)
        before = self._cpu_seconds()
        if work in ("take", "work") and self.peer.workers_max:
            with self._workers() as workers:
                outcome = self._run(workers, "work", jobs, self.case.batch)
        else:
            outcome = self._run(crew, work, jobs, self.case.batch)
        line = self.lines[work] = Line(figures(outcome), list(self.notes))
        if self.peer.processes():
            line.figures["server_cpu_us_per_job"] = (self._cpu_seconds() - before) / outcome.jobs * 1e6
        if outcome.cut:
            line.notes.append(f"cut off after {self.seconds_max} s and {outcome.jobs:,} jobs")

    def _run(self, crew: Crew, work: str, count: int, batch: int) -> Outcome:
        """Have the crew do it, and keep the books."""
        first = self.next_number if work in ADDING else 0
        numbers = range(first, first + count)
        try:
            outcome = crew.run(work, numbers, self.case.data_bytes, batch, self.seconds_max)
        except NotOffered:
            if work not in ("fill", "bulk add") or self.case.group == "bulk":
                raise
            outcome = crew.run("add", numbers, self.case.data_bytes, batch, self.seconds_max)
        if not outcome.jobs:
            raise LoadError(f"{self.peer.name}: {work} did nothing")
        if work in ADDING:
            self.next_number += count
            self.added += outcome.jobs
        if work in FINISHING:
            self.finished += outcome.jobs
            self._see(outcome, work)
        return outcome

    def _see(self, outcome: Outcome, work: str) -> None:
        before = len(self.seen)
        self.seen.update(outcome.seen)
        if len(self.seen) - before != outcome.jobs:
            raise LoadError(
                f"{self.peer.name}: {work} of {outcome.jobs:,} jobs saw {len(outcome.seen):,}, "
                f"of which {len(self.seen) - before:,} were new"
            )
        if self.seen and max(self.seen) >= self.next_number:
            raise LoadError(f"{self.peer.name}: a job came that was never added")

    def _check_left(self) -> None:
        left, expected = self.peer.left(), self.added - self.finished
        if left is not None and left != expected:
            raise LoadError(f"{self.peer.name} holds {left:,} jobs, and not {expected:,}")

    def _note_memory(self, before: int) -> None:
        if self.case.group == "fill" and self.peer.processes():
            self.lines["fill"].figures["memory_bytes_per_job"] = (self._memory_bytes() - before) / self.added

    def _note_cycle(self) -> None:
        """What a job takes through all three: adding, pulling and finishing it in batches."""
        lines = [self.lines[work] for work in GROUPS["bulk"]]
        if all(line.figures for line in lines):
            rate = 1 / sum(1 / line.figures["jobs_per_s"] for line in lines)
            notes = list(dict.fromkeys(note for line in lines for note in line.notes))
            self.lines["bulk cycle"] = Line({"jobs": lines[-1].figures["jobs"], "jobs_per_s": rate}, notes)

    def _crew(self, connections: int) -> closing[Crew]:
        # The clients of a batch work on it for long: one that shares its thread with others would keep them waiting.
        count = min(connections, self.peer.processes_max if self.case.group in ONE_BY_ONE else BULK_PROCESSES_MAX)
        shape = [len(range(place, connections, count)) for place in range(count)]
        return closing(Crew(self.peer, shape))

    def _workers(self) -> closing[Crew]:
        return closing(Crew(self.peer, [1] * min(self.case.connections, self.peer.workers_max)))

    def _cpu_seconds(self) -> float:
        return sum(process.cpu_seconds for process in self.peer.processes())

    def _memory_bytes(self) -> int:
        return sum(process.memory_bytes("Pss") for process in self.peer.processes())


def figures(outcome: Outcome) -> Figures:
    """What an outcome says, the server's part aside."""
    return {
        "jobs": outcome.jobs,
        "jobs_per_s": outcome.jobs / outcome.seconds,
        **percentiles(outcome.latencies),
        "generator_cpu_us_per_job": outcome.cpu_seconds / outcome.jobs * 1e6,
        "generator_part_of_a_core": outcome.busiest,
    }
