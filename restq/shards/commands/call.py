"""One call of an operation, and the three ways in which it ends: done, carried on in steps, or waiting."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import msgspec

from restq.shards.archive import Archive
from restq.shards.data import Large
from restq.shards.job import Job
from restq.shards.realm import Realm

NOTHING = b"{}"
NULL = msgspec.Raw(b"null")

encode = msgspec.json.Encoder().encode


class Call(NamedTuple):
    """One call. `params` are the path's and the query's, as text; None where the query has none."""

    params: list[Any]
    body: bytes
    now: float
    archive: Archive
    is_resumed: bool = False  # it was checked and begun before a crash

    def data(self, job: Job) -> msgspec.Raw:
        """A job's data as it came."""
        if job.data is None:
            return NULL
        return msgspec.Raw(self.archive.payload(job.key) if isinstance(job.data, Large) else job.data)


class Done(NamedTuple):
    """The reply; `lease` is the number of the pull if it leased any, `held_until`: the end of the last lease."""

    body: bytes
    lease: int = 0
    held_until: float = 0.0


class Steps(Protocol):
    """What goes on in steps."""

    def step(self, count: int) -> bool:
        """Do up to `count`; True once all is done."""


class Work(NamedTuple):
    """What goes on in steps, and what to reply once it is done."""

    steps: Steps
    reply: Callable[[], Done]


class Wait(NamedTuple):
    """What can't be answered yet, or with nothing only.

    `again` tries once more, in the realm to which something happened, and gives None where that is in vain: then it is
    in vain for all of this `group`. `watch` is a tag whose end is waited for; without one, jobs are, or news of what
    happens. `nothing` is the answer when time is up. `realms` are those that a request on several is about: None is
    all, also those that come to be later.
    """

    seconds: float
    group: Hashable
    again: Callable[[Realm, Call], Done | None]
    nothing: Callable[[Realm, Call], Done]
    watch: str | None = None
    realms: tuple[str, ...] | None = None
    is_for_news: bool = False

    @property
    def is_for_jobs(self) -> bool:
        """Whether it stands in the lines of realms."""
        return self.watch is None and not self.is_for_news


Outcome = Done | Work | Wait
