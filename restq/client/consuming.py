"""What `consume` and `wait_for_tag` decide, in both clients: whether to go on, and after which pause. No clock."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from restq.client.call import Call
from restq.client.leased import Leased
from restq.client.peer import RETRY_SECONDS_MAX
from restq.errors import RestqError

LOG = logging.getLogger("restq.client")

# The soonest that a question is asked again which found nothing: with wait=0, and where a server does not wait.
IDLE_SECONDS_MIN = 1.0
# One long poll: less than what proxies, which often cut after 60 seconds, let pass.
POLL_SECONDS_MAX = 30.0


@dataclass
class Consuming:
    """One `consume`, from its first pull to its last."""

    stop_when_empty: bool
    keep_going: bool
    is_over: bool = False

    def took(self, jobs: Sequence[Leased]) -> None:
        """These came of a pull."""
        for job in jobs:
            job.keeps_going = self.keep_going
        self.is_over = self.stop_when_empty and not jobs

    def missed(self, error: RestqError) -> float:
        """The server is away: the seconds until the next pull. Raises the error unless it is to keep going."""
        if not self.keep_going:
            raise error
        LOG.warning("no jobs, which is tried again: %s", error)
        return random.uniform(0, RETRY_SECONDS_MAX)


def idle_seconds(asked_at: float, now: float) -> float:
    """How long to pause after a question that found nothing."""
    return max(0.0, IDLE_SECONDS_MIN - (now - asked_at))


def poll_seconds(until: float | None, now: float) -> float:
    """How long the next long poll may last; `until` None is for ever."""
    return POLL_SECONDS_MAX if until is None else min(max(until - now, 0), POLL_SECONDS_MAX)


def through_outages(call: Call[Any]) -> Call[Any]:
    """The call, asked again after a cut connection: it changes nothing, and a wait of hours outlives a restart."""
    return replace(call, only_reads=True)
