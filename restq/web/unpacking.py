"""How much msgpack of others may hold. Its size says little of it: an empty array is a byte there, and 72 in memory.

So what one value holds is counted while it is read, by the hooks of `msgpack`. What bodies and frames are is not known
here.
"""

from __future__ import annotations

from typing import Any

UNCOUNTED_BYTES_MAX = 64 << 10  # of input: it takes a few megabytes whatever it holds, and to count takes time


class Count:
    """Counts the arrays and maps of one value and what is in them, and stops the reading of one that holds too much.

    An array counts once it is read to its end: those in it before it, and short strings in those around it not yet.
    Who reads several values sets `so_far` to 0 before each.
    """

    __slots__ = ("_count_max", "so_far")

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self.so_far = 0

    def __call__(self, made: Any) -> Any:
        """A hook of `msgpack`. Raises ValueError."""
        self.so_far += 1 + len(made)
        if self.so_far > self._count_max:
            raise ValueError(f"it holds more than {self._count_max:,} arrays, maps and values in them")
        return made


_IDLE = Count(0)


def counting(size: int, count_max: int) -> tuple[Count, dict[str, Any]]:
    """What counts in so many bytes, and the keywords that have `msgpack` use it."""
    lengths = {"max_array_len": count_max, "max_map_len": count_max}
    if size <= UNCOUNTED_BYTES_MAX:
        return _IDLE, lengths
    count = Count(count_max)
    return count, {**lengths, "list_hook": count, "object_hook": count}
