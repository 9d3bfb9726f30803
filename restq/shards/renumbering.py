"""The keys of a realm that moves: the other file gives them new numbers, in the order of the old, without the gaps.

All keys of a file come from one counter, so those of a realm that was elsewhere before lie far apart. Were it moved as
it stands, the other file's counter would grow by all that is between them, and twice that with the move back, until
the numbers end. So keys move in blocks: those in which the source has rows come to stand side by side.

Lease ids and cursors name a key as it first was, wherever it is now: `FirstKeys`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable

BLOCK_BITS = 24
_BLOCK = 1 << BLOCK_BITS


class Renumbering:
    """What the keys of a source become in a target, by the blocks the source has rows in and both counters."""

    __slots__ = ("_bases", "next_key")

    def __init__(self, blocks: Iterable[int], source_next_key: int, target_next_key: int) -> None:
        last = source_next_key >> BLOCK_BITS
        # No number of the source may be given out here again: leases are proven by them.
        first = (max(source_next_key, target_next_key) + _BLOCK - 1) >> BLOCK_BITS
        used = sorted({last, *(block for block in blocks if block < last)})
        self._bases = {block: (first + index) << BLOCK_BITS for index, block in enumerate(used)}
        self.next_key = self.key(source_next_key)  # of the target, from now on

    def key(self, key: int) -> int:
        """The key in the target of what has this key in the source."""
        return self._bases[key >> BLOCK_BITS] + (key & (_BLOCK - 1))

    def blocks(self) -> Iterable[tuple[int, int]]:
        """The first key of each block in the source and in the target, in their order."""
        return ((block << BLOCK_BITS, base) for block, base in self._bases.items())


class FirstKeys:
    """What the keys of a realm first were, before any move.

    Pieces of its range, from 0 on, each with the lowest key of the piece and by how much the keys of it have grown.
    """

    __slots__ = ("_pieces", "_starts", "text")

    def __init__(self, pieces: Iterable[tuple[int, int]] = ((0, 0),)) -> None:
        self._pieces = list(pieces)
        self._starts = [start for start, _ in self._pieces]
        self.text: int | str = json.dumps(self._pieces) if any(grown for _, grown in self._pieces) else 0  # for a row

    @classmethod
    def read(cls, text: int | str) -> FirstKeys:
        """Those of a row. A number is by how much all keys have grown."""
        if isinstance(text, int):
            return cls([(0, text)]) if text else UNMOVED
        return cls((start, grown) for start, grown in json.loads(text))

    def first(self, key: int) -> int:
        """What this key first was."""
        return key - self._pieces[bisect_right(self._starts, key) - 1 if len(self._starts) > 1 else 0][1]

    def key(self, first: int) -> int:
        """The key that first was this one; where there is none any more, one from which on all first were higher."""
        above = None
        for start, grown in reversed(self._pieces):
            key = first + grown
            if key >= start:
                break
            above = start
        return key if above is None else min(key, above - 1)

    def moved(self, renumbering: Renumbering) -> FirstKeys:
        """Those of the realm in another file."""
        pieces: list[tuple[int, int]] = []
        for key, base in renumbering.blocks():
            grown = base - self.first(key)
            if not pieces or pieces[-1][1] != grown:
                pieces.append((base if pieces else 0, grown))
        return FirstKeys(pieces)


UNMOVED = FirstKeys()
