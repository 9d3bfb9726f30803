"""The tag index: which jobs carry a tag, in which states they are, and what is held up by a tag.

A tag exists while a job carries it. What is configured for it stays without it.
"""

from __future__ import annotations

import json

from restq.shards.gates import After, Gate, Limit
from restq.shards.job import PLAIN, Job, Terms
from restq.shards.roll import Roll

SETS_MAX = 1024


class Tag:
    """The jobs that carry a tag, never none, and how many of their places are in each state."""

    __slots__ = ("counts", "jobs")

    def __init__(self) -> None:
        self.jobs = Roll()
        self.counts = [0, 0, 0, 0]


class TagIndex(dict[str, Tag]):
    """From each tag that is carried to what is known of it."""

    __slots__ = ("_after", "_last_gates", "_last_terms", "_sets", "carried_count", "limits", "vanished", "watched")

    def __init__(self) -> None:
        super().__init__()
        self.carried_count = 0  # of each tag by each job
        self.limits: dict[str, Limit] = {}
        self.watched: set[str] = set()  # somebody waits until these are gone
        self.vanished: list[str] = []  # of those, what went
        self._after: dict[str, dict[int, After]] = {}  # by tag, then by `own`
        self._last_gates: tuple[Gate, ...] = ()
        self._last_terms = PLAIN
        # Equal sets of tags, once as a tuple and once as JSON: a batch of a million jobs needs one, not a million.
        self._sets: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = {}

    def carriers(self, tag: str) -> Roll:
        """The jobs that carry the tag, to which one is appended at once where there is none."""
        found = self.get(tag)
        if found is None:
            found = self[tag] = Tag()
        return found.jobs

    def carry(self, tag: str, job: Job) -> None:
        """The job, which did not, carries the tag from now on."""
        self.carriers(tag).append(job)
        self.carried_count += 1
        if tag in self._after:
            self._turn(tag)

    def drop(self, job: Job) -> None:
        """The job carries nothing any more: it let go of all its places."""
        self.carried_count -= len(job.tags)
        for tag in job.tags:
            found = self[tag]
            if not found.jobs.dropped():
                del self[tag]
                if tag in self.watched:
                    self.vanished.append(tag)
            if tag in self._after:
                self._turn(tag)

    def _turn(self, tag: str) -> None:
        carried = self.get(tag)
        count = 0 if carried is None else len(carried.jobs)
        for gate in self._after[tag].values():
            gate.turn(count > gate.own)

    def gates_of(self, job: Job) -> tuple[Gate, ...]:
        """What holds up the job: the limits of its tags, and the tags that it comes after."""
        if not self.limits and not job.terms.after:
            return ()
        limits: list[Gate] = [self.limits[tag] for tag in job.tags if tag in self.limits]
        after = [self._gate(tag, 1 if tag in job.tags else 0) for tag in job.terms.after]
        gates = (*limits, *after)
        if gates != self._last_gates:  # jobs of a batch have the same: each has the one tuple
            self._last_gates = gates
        return self._last_gates

    def shared_terms(self, terms: Terms) -> Terms:
        """Equal terms of jobs that came one after the other, once."""
        if terms != self._last_terms:
            self._last_terms = terms
        return self._last_terms

    def _gate(self, tag: str, own: int) -> After:
        gates = self._after.setdefault(tag, {})
        if own not in gates:
            gates[own] = After(tag, own)
            self._turn(tag)
        return gates[own]

    def set_gates(self, job: Job, gates: tuple[Gate, ...]) -> None:
        """Have the job behind these; a dependency that no job is behind any more is forgotten."""
        before, job.gates = job.gates, gates
        for gate in gates:
            if isinstance(gate, After):
                gate.job_count += 1
        for gate in before:
            if isinstance(gate, After):
                gate.job_count -= 1
                if not gate.job_count:
                    del self._after[gate.tag][gate.own]
                    if not self._after[gate.tag]:
                        del self._after[gate.tag]

    def shared(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """The one tuple that all jobs with these tags share."""
        return self._set(tags)[0]

    def text(self, tags: tuple[str, ...]) -> str:
        """The tags as JSON."""
        return self._set(tags)[1]

    def _set(self, tags: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
        found = self._sets.get(tags)
        if found is None:
            if len(self._sets) >= SETS_MAX:
                self._sets.clear()
            found = self._sets[tags] = (tags, json.dumps(tags, ensure_ascii=False))
        return found
