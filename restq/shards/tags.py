"""The tag index: which jobs carry a tag. A tag exists while a job carries it."""

from __future__ import annotations

import json

from restq.shards.queue import Job

SETS_MAX = 1024


class TagIndex(dict[str, set[Job]]):
    """From each tag to the jobs that carry it; a set is never empty."""

    __slots__ = ("_sets",)

    def __init__(self) -> None:
        super().__init__()
        # Equal sets of tags, once as a tuple and once as JSON: a batch of a million jobs needs one, not a million.
        self._sets: dict[tuple[str, ...], tuple[tuple[str, ...], str]] = {}

    def carry(self, tag: str, job: Job) -> None:
        """The job carries the tag from now on."""
        carriers = self.get(tag)
        if carriers is None:
            self[tag] = {job}
        else:
            carriers.add(job)

    def drop(self, job: Job) -> None:
        """The job carries nothing any more."""
        for tag in job.tags:
            carriers = self.get(tag)
            if carriers is None:
                continue  # the removal of all that carry it is under way
            carriers.discard(job)
            if not carriers:
                del self[tag]

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
