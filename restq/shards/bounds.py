"""What all realms of a shard hold together, and how much that may be: beyond it adds are refused, and nothing else.

Pure, and O(1) for each operation: every realm knows what it holds, and after an operation its share is counted anew. So
what is counted is what is there, however it came: by a start, a move, a merge, the slices of a large body. A body that
is added in slices counts as a whole from its check on. A realm that moves in is taken whatever it holds.

The memory is an estimate, made of numbers of things and their costs as measured; it is rather too high than too low.
What lives only in the file, such as large data, counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from restq.errors import QueueFull
from restq.names import QueueId
from restq.shards.data import INLINE_BYTES_MAX

if TYPE_CHECKING:
    from restq.shards.adding import NewJob
    from restq.shards.realm import Realm

# Bytes, as measured with CPython 3.11: a job in one queue, what a further queue adds to it, a tag that it carries,
# a tag that no other job carries, a queue, a reply that is kept.
JOB, PLACE, CARRIED, TAG, QUEUE, REPLY = 400, 200, 24, 600, 1_800, 700

Held = tuple[int, int]  # jobs, and bytes of memory

_NOTHING: Held = (0, 0)


def held_by(realm: Realm) -> Held:
    """What a realm holds."""
    count = len(realm.jobs)
    memory = count * (JOB - PLACE) + realm.place_count * PLACE + realm.inline_bytes
    memory += realm.tags.carried_count * CARRIED + len(realm.tags) * TAG + len(realm.queues) * QUEUE
    return count, memory


def growth(realm: Realm, new_jobs: Sequence[NewJob]) -> int:
    """How much memory these would take at most, as far as they are not there already."""
    memory = 0
    new_tags: set[str] = set()
    new_queues: set[QueueId] = set()
    for job_id, queue_id, data, tags, _ in new_jobs:
        job = realm.jobs.get(job_id)
        if job is None:
            inline = 0 if data is None or len(data) > INLINE_BYTES_MAX else len(data)
            memory += JOB + len(job_id) + inline
        elif job.place_in(queue_id) is None:
            memory += PLACE
        added = [tag for tag in tags if job is None or tag not in job.tags]
        memory += len(added) * CARRIED
        new_tags.update(tag for tag in added if tag not in realm.tags)
        if queue_id not in realm.queues:
            new_queues.add(queue_id)
    return memory + len(new_tags) * TAG + len(new_queues) * QUEUE


class Bounds:
    """What a shard holds and may hold; 0 is no bound."""

    def __init__(self, jobs_max: int = 0, memory_max: int = 0) -> None:
        self.jobs = 0
        self.memory = 0
        self.memory_left: float = math.inf  # of the machine's, for the jobs of this shard; what they hold is part of it
        self._jobs_max = jobs_max or math.inf
        self._memory_max = memory_max or math.inf
        self.reply_count = 0
        self._held: dict[int, Held] = {}  # by the key of the realm
        self._promised: dict[int, Held] = {}  # what it will hold once a body that was checked is added

    @property
    def are_set(self) -> bool:
        """Whether there are any at this moment."""
        return min(self._jobs_max, self._memory_max, self.memory_left) < math.inf

    def forget(self) -> None:
        """Memory goes back to the store: all will be counted again."""
        self.jobs = self.memory = 0
        self._held.clear()
        self._promised.clear()

    def count(self, realm: Realm) -> None:
        """Something happened to a realm."""
        held = held_by(realm) if realm.exists else _NOTHING
        if self._promised:
            held = self._with_promise(realm, held)
        before = self._held.get(realm.key, _NOTHING)
        if held == before:
            return
        self.jobs += held[0] - before[0]
        self.memory += held[1] - before[1]
        if held == _NOTHING:
            del self._held[realm.key]
        else:
            self._held[realm.key] = held

    def _with_promise(self, realm: Realm, held: Held) -> Held:
        promised = self._promised.get(realm.key)
        if promised is None:
            return held
        if realm.task is None:  # the body is added, or was refused
            del self._promised[realm.key]
            return held
        return max(held[0], promised[0]), max(held[1], promised[1])

    def promise(self, realm: Realm, jobs: int, memory: int) -> None:
        """From the next count on, a body under way in this realm counts as added, until it is."""
        count, size = held_by(realm)
        self._promised[realm.key] = (count + jobs, size + memory)

    def check(self, jobs: int, memory: int) -> None:
        """Raise QueueFull where so many more jobs, or so much more memory, is too much."""
        if jobs > 0 and self.jobs + jobs > self._jobs_max:
            raise QueueFull(
                f"the shard of this realm holds {self.jobs} jobs and takes no more than {self._jobs_max}"
                " (webapp.shard_jobs_max)"
            )
        held = self.memory + self.reply_count * REPLY
        if memory > 0 and held + memory > self._memory_max:
            raise QueueFull(
                f"the jobs in the shard of this realm hold {held} bytes of memory, and may hold {self._memory_max}"
                " (webapp.shard_memory_max)"
            )
        if memory > 0 and held + memory > self.memory_left:
            raise QueueFull(
                "the machine has nearly no memory left: nothing is added until it has (webapp.shard_memory_max can keep"
                " restq from taking so much)"
            )


UNBOUNDED = Bounds()
