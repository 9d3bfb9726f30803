"""A binary heap whose entries may die in place. It knows nothing of jobs.

An entry is anything that compares; whoever pushed it decides whether it is still *live*. Taking one out of
the middle costs O(1): its owner stops calling it live and tells the heap (`discard`), which drops it when it
comes to the top, or when dead entries outnumber the live ones and the heap is rebuilt without them. That
keeps push and pop at the speed of `heapq`, and memory within twice of what is live.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Generic, Protocol, TypeVar


class Ordered(Protocol):
    """What a heap can hold."""

    def __lt__(self, other: Any, /) -> bool: ...


Entry = TypeVar("Entry", bound=Ordered)

TRIMMED_COUNT = 2  # dead entries that one death takes from the top
DEAD_COUNT_MIN = 64  # below this a rebuild is not worth its call


class LazyHeap(Generic[Entry]):
    """Entries in order, smallest first; `is_live(entry)` says whether one still counts.

    `live_of(entries)` gives those of a list that do: a rebuild asks it once instead of each entry by itself.
    """

    __slots__ = ("_dead_count", "_is_live", "_live_of", "entries")

    def __init__(
        self, is_live: Callable[[Entry], bool], live_of: Callable[[list[Entry]], list[Entry]] | None = None
    ) -> None:
        self.entries: list[Entry] = []
        self._dead_count = 0
        self._is_live = is_live
        self._live_of = live_of or (lambda entries: [entry for entry in entries if is_live(entry)])

    def __len__(self) -> int:
        """How many entries are live."""
        return len(self.entries) - self._dead_count

    def push(self, entry: Entry) -> None:
        """Add one live entry: O(log n), O(1) where it is the largest."""
        heappush(self.entries, entry)

    def peek(self) -> Entry | None:
        """The smallest live entry, which stays; None when there is none."""
        entries = self.entries
        while entries:
            if self._is_live(entries[0]):
                return entries[0]
            heappop(entries)
            self._dead_count -= 1
        return None

    def pop(self) -> Entry | None:
        """Take the smallest live entry; None when there is none."""
        entries = self.entries
        while entries:
            entry = heappop(entries)
            if self._is_live(entry):
                return entry
            self._dead_count -= 1
        return None

    def discard(self) -> None:
        """One entry that was live is dead from now on. Call it after `is_live` says so.

        Entries mostly die in their order, so what is dead at the top goes at once: then nothing is left to rebuild,
        which takes a tenth of a second for a million.
        """
        self._dead_count += 1
        entries = self.entries
        for _ in range(TRIMMED_COUNT):
            if not entries or self._is_live(entries[0]):
                break
            heappop(entries)
            self._dead_count -= 1
        if self._dead_count >= DEAD_COUNT_MIN and self._dead_count * 2 > len(self.entries):
            self.rebuild(self._live_of(self.entries))

    def rebuild(self, entries: list[Entry]) -> None:
        """Hold exactly these live entries, in any order: O(n)."""
        heapify(entries)
        self.entries = entries
        self._dead_count = 0
